//! The history of a listener that held a queue, overflowed or met a full SYN queue: recent events,
//! the diagnoses that follow from them, and the resulting incident.

use std::sync::Arc;
use std::time::Duration;

use crate::cause::{Awaited, Causes};
use crate::diagnosis::{Diagnoses, Diagnosis, Evidence, ScanEvidence, WINDOW, diagnose, undecided};
use crate::view::{Case, CauseCase};

use super::GRACE;
use super::burst::{BurstSize, Bursts};
use super::cause_history::CauseHistory;
use super::connections::HalfOpenCount;
use super::cookie_credit::CookieCount;
use super::held::Held;
use super::refusals::Refusals;
use super::ring::Ring;
use super::scans::{Open, Scans, Verdict};
use super::trailing::Trailing;

/// The history of one listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    seconds: Trailing<Second>,
    bursts: Bursts,
    /// The largest burst since the last look.
    burst: BurstSize,
    /// The most drops within one second without overflows, as of the last look. In a second with
    /// overflows, not all drops are caused by the overflows.
    harmless_drops: u64,
    refusals: Refusals,
    lengths: Lengths,
    /// The time since which at least one of its sockets is at its limit.
    brimming_since: Option<Duration>,
    /// The time since which all of its sockets are at their limits.
    all_brimming_since: Option<Duration>,
    pub(super) scans: Scans,
    scanned: Option<ScanEvidence>,
    held: Held,
    /// The causes from the readings of its owner.
    pub(super) causes: CauseHistory,
    /// Whether a process that watches the socket was found stopped or frozen: it is meant to
    /// accept.
    has_acceptor: bool,
    slow_at: Option<Duration>,
    incident: Option<IncidentSummary>,
    active_at: Duration,
}

/// Events of one second.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    covered: Coverage,
    overflows: u64,
    first_refusals: u64,
    drops: u64,
    burst: u64,
    /// SYN cookies that only this listener can have caused.
    cookies: CookieCount,
}

/// Totals over the window.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    covered: Coverage,
    /// Coverage since the first overflow.
    since_overflow: Coverage,
    overflows: u64,
    first_refusals: u64,
    largest_burst: u64,
    cookies: CookieCount,
}

/// Time that samples cover.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Coverage {
    /// All covered time.
    pub(super) sampled: Duration,
    /// Covered time during which any of the sockets was full.
    pub(super) full: Duration,
    /// Covered time during which more than half of a queue was in use.
    pub(super) loaded: Duration,
}

/// The largest queue lengths of the last five minutes, one per [`Case::SLOT`].
#[derive(Clone, Debug, Default)]
struct Lengths(Ring<u32, { Case::SLOTS }>);

/// A period during which at least one diagnosis held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IncidentSummary {
    /// The first diagnosis of the period.
    pub diagnosis: Diagnosis,
    /// All diagnoses of the period.
    pub all: Diagnoses,
    /// The start of the period, on the fold's own clock.
    pub began: Duration,
    /// The largest queue length in the period.
    pub peak: u64,
    /// Overflows in the period.
    pub overflows: u64,
    /// The largest number of abandoned connections at one time.
    pub abandoned: u64,
    /// All causes found in the period.
    pub causes: Causes,
    /// The peer that most workers waited for when the first cause was found.
    pub awaited: Option<Awaited>,
    /// A process that accepted when the first cause was found.
    pub accepting_pid: Option<u32>,
}

/// A change of an incident. Each is reported once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum IncidentEvent {
    /// An incident started.
    Started(IncidentSummary),
    /// The first cause was found, later than the start.
    Explained(IncidentSummary),
    /// The incident ended: no diagnosis holds.
    Ended(IncidentSummary),
}

// === impl Record ===

impl Record {
    /// Adds the time since the last sample, as that sample saw it.
    pub(super) fn covered(&mut self, now: Duration, coverage: Coverage) {
        self.seconds.at(now).covered.add(coverage);
    }

    /// Adds a sample with `length` waiting connections.
    pub(super) fn sampled(&mut self, now: Duration, length: u64) {
        if length > 0 {
            self.waited(now, u32::try_from(length).unwrap_or(u32::MAX));
            self.active_at = now;
        }
        if let Some(incident) = &mut self.incident {
            incident.peak = incident.peak.max(length);
        }
    }

    /// Adds growth of `sk_drops` of its sockets.
    pub(super) fn dropped(&mut self, now: Duration, drops: u64) {
        self.seconds.at(now).drops += drops;
        self.bursts.dropped(now, drops);
        self.refusals.dropped(drops);
    }

    /// Adds overflows attributed to the listener, of which `repeated` repeat a cookie. `limit` is
    /// the sum of the limits of its sockets.
    pub(super) fn overflowed(&mut self, now: Duration, overflows: u64, repeated: u64, limit: u64) {
        self.bursts.overflowed(now, overflows, repeated);
        self.refusals.overflowed(overflows);
        let burst = self.bursts.size(now, limit + 1, self.harmless_drops);
        self.burst = std::cmp::max_by_key(self.burst, burst, |burst| burst.total());
        self.seconds.at(now).overflows += overflows;
        self.active_at = now;
        if let Some(incident) = &mut self.incident {
            incident.overflows += overflows;
        }
    }

    /// Adds SYN cookies that only this listener can have caused.
    pub(super) fn credit_cookies(&mut self, now: Duration, cookies: CookieCount) {
        self.seconds.at(now).cookies.add(cookies);
    }

    /// Adds a queue length that an overflow proves although no sample saw it.
    pub(super) fn peaked(&mut self, now: Duration, length: u32) {
        self.waited(now, length);
        if let Some(incident) = &mut self.incident {
            incident.peak = incident.peak.max(length.into());
        }
    }

    fn waited(&mut self, now: Duration, length: u32) {
        self.lengths.record(now, length);
        self.bursts.waited(now, length);
        let second = self.seconds.at(now);
        second.burst = second.burst.max(length.into());
    }

    /// Records whether any, and whether all, of its sockets are at their limits.
    pub(super) fn brimming(&mut self, now: Duration, any: bool, all: bool) {
        for (since, brims) in [(&mut self.brimming_since, any), (&mut self.all_brimming_since, all)]
        {
            match brims {
                true => _ = since.get_or_insert(now),
                false => *since = None,
            }
        }
    }

    /// Adds the scan of the waiting connections, if any wait, and of the half-open connections.
    pub(super) fn scanned(
        &mut self,
        at: Duration,
        length: u64,
        verdict: Option<Verdict>,
        half_open: HalfOpenCount,
        open: Open,
    ) {
        let Verdict { oldest, abandoned, untaken, unmoved, standing, pause, .. } =
            verdict.unwrap_or_default();
        let Verdict { alive, had_victim, .. } = verdict.unwrap_or_default();
        if verdict.is_none() {
            self.scans.clear(at);
        }
        if half_open.all == 0 {
            self.refusals.none_half_open();
        }
        self.scanned = Some(ScanEvidence {
            length,
            oldest: oldest.unwrap_or_default(),
            untaken,
            abandoned: abandoned.unwrap_or(0),
            alive,
            had_victim,
            unmoved,
            standing,
            pause,
            open: open.now,
            most_open: open.most,
            half_open: half_open.all,
            old_half_open: half_open.old,
        });
        if let Some(incident) = &mut self.incident {
            incident.abandoned = incident.abandoned.max(abandoned.unwrap_or(0));
        }
    }

    /// Connections accepted per second. Known only where the queue was full since the connection at
    /// its head came: each connection behind the head then replaced an accepted connection.
    pub(super) fn drain_rate(&self, at: Duration, length: u64, verdict: Verdict) -> Option<f64> {
        let oldest = verdict.oldest.filter(|oldest| !oldest.is_zero() && verdict.drains)?;
        let was_full = self.all_brimming_since? + oldest <= at;
        was_full.then(|| length as f64 / oldest.as_secs_f64())
    }

    /// Forgets the last scan, which is too old. Its connections remain for comparison with the next
    /// scan: connections that still wait then were not accepted.
    pub(super) fn forget_scan(&mut self) {
        self.scanned = None;
    }

    /// Handles a listener without sockets. Its history remains because this may be a restart.
    pub(super) fn closed(&mut self) {
        (self.brimming_since, self.all_brimming_since) = (None, None);
        self.scans.forget_line();
        self.scanned = None;
        self.held.close();
    }

    /// Whether a diagnosis holds.
    pub(super) fn is_in_trouble(&self) -> bool {
        !self.held.now().is_empty()
    }

    /// Records activity at `at`.
    pub(super) fn was_active(&mut self, at: Duration) {
        self.active_at = self.active_at.max(at);
    }

    /// Handles a queue seen empty: the results of earlier scans no longer apply.
    pub(super) fn emptied(&mut self, now: Duration) {
        self.scans.clear(now);
        if let Some(scan) = &mut self.scanned {
            (scan.length, scan.abandoned, scan.alive, scan.had_victim) = (0, 0, 0, false);
            (scan.oldest, scan.untaken) = (Duration::ZERO, Duration::ZERO);
            (scan.unmoved, scan.standing) = (Duration::ZERO, Duration::ZERO);
        }
    }

    /// Handles a socket seen without a queue: not every client waits.
    pub(super) fn has_room_at_once(&mut self) {
        self.scans.has_room_at_once();
        if let Some(scan) = &mut self.scanned {
            scan.standing = Duration::ZERO;
        }
    }

    /// Concludes the case from `evidence`, the facts about the sockets and the namespace.
    /// `repeated_cookies` is the share of the namespace's overflows that repeat a cookie. Returns
    /// the case, and the start or the end of the incident, if any.
    pub(super) fn conclude(
        &mut self,
        now: Duration,
        evidence: Evidence,
        repeated_cookies: f64,
    ) -> (Arc<Case>, Option<IncidentEvent>) {
        self.look_at_refusals(now, repeated_cookies);
        self.has_acceptor |= self.causes.holds_up_an_acceptor();
        let evidence = self.complete(now, evidence);
        let found = diagnose(&evidence);
        if found.contains(Diagnosis::SlowAccept) {
            self.slow_at = Some(now);
        }
        self.held.look(now, found, undecided(&evidence));
        let causes = self.causes.conclude(now, !self.held.now().is_empty());
        let event = self.event(now, &evidence);
        let event = self.explain(&causes, event);
        let case = Case {
            evidence,
            diagnoses: self.held.shown(now),
            causes,
            history: self.lengths.all(now),
        };
        (Arc::new(case), event)
    }

    /// How long scans have found nothing accepted from the queue; `None` without a recent scan.
    pub(super) fn untaken(&self) -> Option<Duration> {
        self.scanned.map(|scan| scan.untaken)
    }

    /// Ends the incident of a closed listener.
    pub(super) fn end(&mut self) -> Option<IncidentEvent> {
        self.incident.take().map(IncidentEvent::Ended)
    }

    /// Whether any diagnosis holds.
    pub(super) fn is_diagnosed(&self) -> bool {
        self.incident.is_some()
    }

    /// Whether nothing happened for the grace time, so that the record can be dropped.
    pub(super) fn is_over(&self, now: Duration) -> bool {
        let last = self.held.held_at().map_or(self.active_at, |at| at.max(self.active_at));
        now.saturating_sub(last) >= GRACE
    }

    /// Records which refusals since the last look were the first of their clients.
    fn look_at_refusals(&mut self, now: Duration, repeated_cookies: f64) {
        let first = self.refusals.look(now, repeated_cookies);
        let burst = std::mem::take(&mut self.burst);
        let quiet = self.seconds.within(now).filter(|second| second.overflows == 0);
        self.harmless_drops = quiet.map(|second| second.drops).max().unwrap_or(0);
        let second = self.seconds.at(now);
        second.first_refusals += first;
        second.burst = second.burst.max(burst.total());
    }

    fn complete(&self, now: Duration, evidence: Evidence) -> Evidence {
        let within_window =
            |at: Option<Duration>| at.is_some_and(|at| now.saturating_sub(at) < WINDOW);
        let sum = self.seconds.within(now).fold(Sum::default(), Sum::plus);
        let since = if sum.overflows > 0 { sum.since_overflow } else { sum.covered };
        let CookieCount { sent, received } = sum.cookies;
        let [cookies_sent, cookies_received] = match evidence.gets_all_cookies {
            true => [evidence.cookies_sent, evidence.cookies_received],
            false => [sent, received],
        };
        Evidence {
            sampled: sum.covered.sampled,
            full: sum.covered.full,
            overflows: sum.overflows,
            first_refusals: sum.first_refusals,
            largest_burst: sum.largest_burst,
            since_overflow: since.sampled,
            loaded: since.loaded,
            brimming: self.brimming_since.map_or(Duration::ZERO, |since| now.saturating_sub(since)),
            was_slow: within_window(self.slow_at),
            scan: self.scanned,
            has_accepted: evidence.has_accepted || self.has_acceptor,
            cookies_sent,
            cookies_received,
            ..evidence
        }
    }

    fn event(&mut self, now: Duration, evidence: &Evidence) -> Option<IncidentEvent> {
        let holding: Diagnoses =
            self.held.now().iter().filter(|diagnosis| !diagnosis.is_information()).collect();
        match (&mut self.incident, holding.iter().next()) {
            (Some(incident), Some(_)) => {
                holding.iter().for_each(|diagnosis| incident.all.insert(diagnosis));
                None
            }
            (None, Some(diagnosis)) => {
                let span = IncidentSummary {
                    diagnosis,
                    all: holding,
                    began: now,
                    peak: u64::from(self.lengths.largest(now)),
                    overflows: evidence.overflows,
                    abandoned: evidence.scan.map_or(0, |scan| scan.abandoned),
                    causes: Causes::default(),
                    awaited: None,
                    accepting_pid: None,
                };
                self.incident = Some(span);
                Some(IncidentEvent::Started(span))
            }
            (_, None) => self.end(),
        }
    }

    /// Adds the causes that hold to the incident. The first of them is a separate change, unless
    /// the incident just started.
    fn explain(&mut self, case: &CauseCase, event: Option<IncidentEvent>) -> Option<IncidentEvent> {
        let Some(incident) = &mut self.incident else { return event };
        let is_first = incident.causes.is_empty();
        let holding = case.causes.iter().filter(|held| held.since.is_some());
        holding.for_each(|held| incident.causes.insert(held.cause));
        if !is_first || incident.causes.is_empty() {
            return event;
        }
        incident.awaited = case.awaited;
        let process = case.numbers.as_ref().and_then(|numbers| numbers.process.as_ref());
        incident.accepting_pid = process.map(|(pid, _)| *pid);
        Some(match event {
            Some(IncidentEvent::Started(_)) => IncidentEvent::Started(*incident),
            _ => IncidentEvent::Explained(*incident),
        })
    }
}

// === impl Coverage ===

impl Coverage {
    fn add(&mut self, other: Self) {
        self.sampled += other.sampled;
        self.full += other.full;
        self.loaded += other.loaded;
    }
}

// === impl Sum ===

impl Sum {
    /// Adds the next second of the window.
    fn plus(mut self, second: Second) -> Self {
        self.covered.add(second.covered);
        self.overflows += second.overflows;
        self.first_refusals += second.first_refusals;
        self.largest_burst = self.largest_burst.max(second.burst);
        self.cookies.add(second.cookies);
        if self.overflows > 0 {
            self.since_overflow.add(second.covered);
        }
        self
    }
}

// === impl Lengths ===

impl Lengths {
    fn record(&mut self, now: Duration, length: u32) {
        let slot = self.0.at(Self::slot(now));
        *slot = length.max(*slot);
    }

    /// All slots, the oldest first. The last slot contains `now`.
    fn all(&self, now: Duration) -> Vec<u32> {
        self.0.until(Self::slot(now)).collect()
    }

    fn largest(&self, now: Duration) -> u32 {
        self.0.until(Self::slot(now)).max().unwrap_or(0)
    }

    fn slot(now: Duration) -> u64 {
        now.as_secs() / Case::SLOT.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::Cause;
    use crate::view::{HeldCause, OwnerNumbers};

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_history_is_five_minutes_of_maxima() {
        let mut lengths = Lengths::default();
        for (at, length) in [(1, 3), (4, 7), (5, 2), (299, 9)] {
            lengths.record(seconds(at), length);
        }
        let all = lengths.all(seconds(299));
        assert_eq!((all.len(), all[0], all[1], all[2], all[59]), (60, 7, 2, 0, 9));
        assert_eq!(lengths.all(seconds(301))[58..], [9, 0]);
        assert_eq!(lengths.all(seconds(10_000)), vec![0; 60]);
    }

    /// Samples of one second each, with a number of overflows, at a listener with a limit of 8.
    struct Story {
        record: Record,
        changes: Vec<(u64, IncidentEvent)>,
    }

    impl Story {
        fn new() -> Self {
            Self { record: Record::default(), changes: Vec::new() }
        }

        /// The diagnoses after a second in which the queue was full for `full` and loaded for
        /// `loaded`.
        fn second(
            &mut self,
            second: u64,
            overflows: u64,
            full: f64,
            loaded: f64,
        ) -> Vec<Diagnosis> {
            let now = seconds(second);
            let (full, loaded) = (Duration::from_secs_f64(full), Duration::from_secs_f64(loaded));
            self.record.covered(now, Coverage { sampled: SECOND, full, loaded });
            self.record.sampled(now, second % 7);
            if overflows > 0 {
                self.record.overflowed(now, overflows, 0, 8);
            }
            let (case, change) = self.record.conclude(now, Evidence::default(), 0.0);
            self.changes.extend(change.map(|change| (second, change)));
            let holding = case.diagnoses.iter().filter(|held| held.since.is_some());
            holding.map(|held| held.diagnosis).collect()
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_cause_found_after_the_start_is_reported_separately() {
        let mut story = Story::new();
        let mut second = |second| story.second(second, 3, 0.0, 0.0);
        (100..120).for_each(|now| _ = second(now));
        let holding = |cause, since| HeldCause { cause, since };
        let numbers = OwnerNumbers { process: Some((7, "web".into())), ..OwnerNumbers::default() };
        let case =
            |causes| CauseCase { causes, numbers: Some(numbers.clone()), ..CauseCase::default() };
        let throttled = holding(Cause::CpuThrottled, Some(SECOND));
        let stopped = holding(Cause::Stopped, Some(SECOND));
        let record = &mut story.record;
        assert_eq!(record.explain(&case(vec![]), None), None);
        assert_eq!(record.explain(&case(vec![holding(Cause::Lock, None)]), None), None);
        let Some(IncidentEvent::Explained(span)) = record.explain(&case(vec![throttled]), None)
        else {
            panic!("not explained")
        };
        assert_eq!(
            (span.accepting_pid, span.causes.contains(Cause::CpuThrottled)),
            (Some(7), true)
        );
        assert_eq!(record.explain(&case(vec![throttled]), None), None);
        assert_eq!(record.explain(&case(vec![throttled, stopped]), None), None);
        let Some(IncidentEvent::Ended(span)) = record.end() else { panic!("not ended") };
        assert!(span.causes.contains(Cause::Stopped));
    }

    #[test]
    fn an_incident_is_logged_once_at_its_start_and_once_at_its_end() {
        let mut story = Story::new();
        for second in 100..200 {
            story.second(second, if (110..120).contains(&second) { 3 } else { 0 }, 0.0, 0.0);
        }
        let [(start, IncidentEvent::Started(started)), (end, IncidentEvent::Ended(ended))] =
            story.changes[..]
        else {
            panic!("{:?}", story.changes)
        };
        // It takes 3 s to see that the queue drains.
        assert_eq!((start, started.overflows, started.peak), (112, 9, 6));
        // The overflows stay in the window for 30 s, and the diagnosis holds 10 s longer.
        assert!((155..=160).contains(&end), "{end}");
        assert_eq!((ended.diagnosis, ended.overflows, ended.peak), (Diagnosis::ShortQueue, 30, 6));
    }

    #[test]
    fn a_server_that_becomes_slow_has_one_diagnosis() {
        let mut story = Story::new();
        let mut words = Vec::new();
        for second in 100..160 {
            // From second 110 on, the queue is nearly full and overflows occasionally.
            let is_slow = second >= 110;
            let (full, loaded) = if is_slow { (0.25, 1.0) } else { (0.0, 0.0) };
            words.extend(story.second(second, u64::from(is_slow && second % 3 == 0), full, loaded));
        }
        words.dedup();
        assert_eq!(words, [Diagnosis::SlowAccept]);
    }

    #[test]
    fn a_crash_loop_keeps_its_history() {
        let mut story = Story::new();
        let mut words = Vec::new();
        for second in 100..170 {
            // The queue is full for five of eight seconds, the server exits, and a new one starts a
            // second later.
            let phase = second % 8;
            match phase {
                0 => story.record.closed(),
                1..=2 => words.extend(story.second(second, 0, 0.0, 0.0)),
                _ => words.extend(story.second(second, 100, 1.0, 1.0)),
            }
        }
        words.dedup();
        assert_eq!(words, [Diagnosis::SlowAccept]);
        assert_eq!(story.changes.len(), 1);
    }

    #[test]
    fn late_samples_end_no_diagnosis() {
        let mut story = Story::new();
        (100..115).for_each(|second| _ = story.second(second, 9, 1.0, 1.0));
        // Samples come every 18 s: the time between samples is unknown.
        for nth in 1..12 {
            let now = seconds(114 + 18 * nth);
            story.record.sampled(now, 9);
            let evidence = Evidence { is_loaded: true, ..Evidence::default() };
            let (case, change) = story.record.conclude(now, evidence, 0.0);
            assert_eq!((case.diagnoses[0].since.is_some(), change), (true, None), "{nth}");
        }
    }

    #[test]
    fn a_record_is_over_when_nothing_happened_for_the_grace_time() {
        let mut story = Story::new();
        story.second(100, 1, 0.0, 0.0);
        (101..150).for_each(|second| _ = story.second(second, 0, 0.0, 0.0));
        assert!(!story.record.is_over(seconds(399)));
        assert!(story.record.is_over(seconds(150) + GRACE));
    }
}
