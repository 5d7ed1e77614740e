//! What is remembered of a listener that held a queue, overflowed or met a full SYN queue: what happened at it lately,
//! the diagnoses that follow, and the incident they make.

use std::sync::Arc;
use std::time::Duration;

use crate::diagnosis::{Diagnoses, Diagnosis, Evidence, ScanEvidence, WINDOW, diagnose, undecided};
use crate::view::Case;

use super::GRACE;
use super::burst::Bursts;
use super::cause_history::CauseHistory;
use super::held::Held;
use super::refusals::{Looked, Refusals};
use super::ring::Ring;
use super::scans::{Open, Scans, Verdict};
use super::trailing::Trailing;

/// The history of one listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    seconds: Trailing<Second>,
    bursts: Bursts,
    /// The largest burst since the last look: those that waited, and those that were refused.
    burst: [u64; 2],
    refusals: Refusals,
    lengths: Lengths,
    /// Since when it has been at its limit.
    brimming_since: Option<Duration>,
    /// Since when all its sockets have been.
    all_brimming_since: Option<Duration>,
    /// Its scans.
    pub(super) scans: Scans,
    scanned: Option<ScanEvidence>,
    held: Held,
    /// The looks at its owner.
    pub(super) causes: CauseHistory,
    slow_at: Option<Duration>,
    incident: Option<Span>,
    active_at: Duration,
}

/// What happened within one second.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    covered: Coverage,
    overflows: u64,
    first_refusals: u64,
    drops: u64,
    burst: u64,
}

/// What happened within the window.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    covered: Coverage,
    /// Since the first overflow.
    since_overflow: Coverage,
    overflows: u64,
    first_refusals: u64,
    largest_burst: u64,
}

/// Time that samples cover.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Coverage {
    /// All of it.
    pub(super) sampled: Duration,
    /// During which any of the sockets was full.
    pub(super) full: Duration,
    /// During which more than half of a queue was in use.
    pub(super) loaded: Duration,
}

/// The largest lengths of the last five minutes, by [`Case::SLOT`].
#[derive(Clone, Debug, Default)]
struct Lengths(Ring<u32, { Case::SLOTS }>);

/// A time in which some diagnosis held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// The first one.
    pub diagnosis: Diagnosis,
    /// Everything that was diagnosed in its course.
    pub all: Diagnoses,
    /// When it began, on the fold's own clock.
    pub began: Duration,
    /// The largest length in it.
    pub peak: u64,
    /// Overflows in it.
    pub overflows: u64,
    /// The most clients that were gone at once.
    pub abandoned: u64,
}

/// An incident as it is told: once when it starts and once when it ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Turn {
    /// Something is wrong from now on.
    Started(Span),
    /// Nothing is wrong any more.
    Ended(Span),
}

// === impl Record ===

impl Record {
    /// The time since the last sample, as that sample saw it.
    pub(super) fn covered(&mut self, now: Duration, coverage: Coverage) {
        self.seconds.at(now).covered.add(coverage);
    }

    /// A sample: so many wait now.
    pub(super) fn sampled(&mut self, now: Duration, length: u64) {
        if length > 0 {
            self.waited(now, u32::try_from(length).unwrap_or(u32::MAX));
            self.active_at = now;
        }
        if let Some(incident) = &mut self.incident {
            incident.peak = incident.peak.max(length);
        }
    }

    /// `sk_drops` of its sockets grew.
    pub(super) fn dropped(&mut self, now: Duration, drops: u64) {
        self.seconds.at(now).drops += drops;
        self.bursts.dropped(now, drops);
        self.refusals.dropped(drops);
    }

    /// So many overflows were attributed to it. `limit` is the sum of its sockets' limits.
    pub(super) fn overflowed(&mut self, now: Duration, overflows: u64, limit: u64) {
        self.bursts.overflowed(now, overflows);
        self.refusals.overflowed(overflows);
        let burst = self.bursts.size(now, limit + 1, || self.harmless_drops(now));
        self.burst = self.burst.max(burst);
        self.seconds.at(now).overflows += overflows;
        self.active_at = now;
        if let Some(incident) = &mut self.incident {
            incident.overflows += overflows;
        }
    }

    /// An overflow proves that so many waited, though no sample saw them.
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

    /// Drops in a second without any overflow: those that come with overflows need not all be theirs.
    fn harmless_drops(&self, now: Duration) -> u64 {
        let quiet = self.seconds.within(now).filter(|second| second.overflows == 0);
        quiet.map(|second| second.drops).max().unwrap_or(0)
    }

    /// Notes whether any, and whether all, of its sockets are at their limit.
    pub(super) fn brimming(&mut self, now: Duration, any: bool, all: bool) {
        for (since, brims) in [(&mut self.brimming_since, any), (&mut self.all_brimming_since, all)]
        {
            match brims {
                true => _ = since.get_or_insert(now),
                false => *since = None,
            }
        }
    }

    /// What a scan says of those who wait, if any do, and of the handshakes under way: all, and the old ones.
    pub(super) fn scanned(
        &mut self,
        at: Duration,
        length: u64,
        verdict: Option<Verdict>,
        [half_open, old_half_open]: [u64; 2],
        open: Open,
    ) {
        let Verdict { oldest, abandoned, alive, untaken, unmoved, standing, pause, .. } =
            verdict.unwrap_or_default();
        if verdict.is_none() {
            self.scans.clear(at);
        }
        if half_open == 0 {
            self.refusals.none_half_open();
        }
        self.scanned = Some(ScanEvidence {
            length,
            oldest: oldest.unwrap_or_default(),
            untaken,
            abandoned: abandoned.unwrap_or(0),
            alive,
            unmoved,
            standing,
            pause,
            open: open.now,
            most_open: open.most,
            half_open,
            old_half_open,
        });
        if let Some(incident) = &mut self.incident {
            incident.abandoned = incident.abandoned.max(abandoned.unwrap_or(0));
        }
    }

    /// Connections accepted per second, where the queue was full ever since the one at its head came: all that stand
    /// behind it came to take the place of one that was accepted.
    pub(super) fn drain_rate(&self, at: Duration, length: u64, verdict: Verdict) -> Option<f64> {
        let oldest = verdict.oldest.filter(|oldest| !oldest.is_zero() && verdict.drains)?;
        let was_full = self.all_brimming_since? + oldest <= at;
        was_full.then(|| length as f64 / oldest.as_secs_f64())
    }

    /// The last scan is too old to say anything. Its connections stay for the next one to compare with: those that still
    /// wait then were not taken.
    pub(super) fn forget_scan(&mut self) {
        self.scanned = None;
    }

    /// The listener has no socket. What happened stays: it may be a restart.
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

    /// Something happened at `at` that is worth remembering.
    pub(super) fn was_active(&mut self, at: Duration) {
        self.active_at = self.active_at.max(at);
    }

    /// The queue was seen empty: what scans said of it is over.
    pub(super) fn emptied(&mut self, now: Duration) {
        self.scans.clear(now);
        if let Some(scan) = &mut self.scanned {
            (scan.length, scan.abandoned, scan.alive) = (0, 0, 0);
            (scan.oldest, scan.untaken) = (Duration::ZERO, Duration::ZERO);
            (scan.unmoved, scan.standing) = (Duration::ZERO, Duration::ZERO);
        }
    }

    /// One of its sockets was seen without a queue: not every client waits.
    pub(super) fn has_room_at_once(&mut self) {
        self.scans.has_room_at_once();
        if let Some(scan) = &mut self.scanned {
            scan.standing = Duration::ZERO;
        }
    }

    /// Adds up what is known to a case; `evidence` comes with what others know, and `repeated_cookies` is the share of the
    /// namespace's overflows that repeat a cookie. Gives the case, and whether an incident started or ended with it.
    pub(super) fn conclude(
        &mut self,
        now: Duration,
        evidence: Evidence,
        repeated_cookies: f64,
    ) -> (Arc<Case>, Option<Turn>) {
        self.look_at_refusals(now, repeated_cookies);
        let evidence = self.complete(now, evidence);
        let found = diagnose(&evidence);
        if found.contains(Diagnosis::SlowAccept) {
            self.slow_at = Some(now);
        }
        self.held.look(now, found, undecided(&evidence));
        let turn = self.turn(now, &evidence);
        let case = Case {
            evidence,
            diagnoses: self.held.shown(now),
            causes: self.causes.conclude(now, !self.held.now().is_empty()),
            history: self.lengths.all(now),
        };
        (Arc::new(case), turn)
    }

    /// For how long scans have found nothing taken from the queue; `None` without a young scan.
    pub(super) fn untaken(&self) -> Option<Duration> {
        self.scanned.map(|scan| scan.untaken)
    }

    /// The listener is closed: whatever was wrong is over.
    pub(super) fn end(&mut self) -> Option<Turn> {
        self.incident.take().map(Turn::Ended)
    }

    /// Whether any diagnosis holds.
    pub(super) fn is_diagnosed(&self) -> bool {
        self.incident.is_some()
    }

    /// Whether nothing happened for so long that there is nothing left to remember.
    pub(super) fn is_over(&self, now: Duration) -> bool {
        let last = self.held.held_at().map_or(self.active_at, |at| at.max(self.active_at));
        now.saturating_sub(last) >= GRACE
    }

    /// Notes which refusals since the last look were the first of their clients.
    fn look_at_refusals(&mut self, now: Duration, repeated_cookies: f64) {
        let Looked { all, first } = self.refusals.look(now, repeated_cookies);
        let [waited, refused] = std::mem::take(&mut self.burst);
        let refused = (refused * first).checked_div(all).unwrap_or(0);
        let second = self.seconds.at(now);
        second.first_refusals += first;
        second.burst = second.burst.max(waited + refused);
    }

    fn complete(&self, now: Duration, evidence: Evidence) -> Evidence {
        let lately = |at: Option<Duration>| at.is_some_and(|at| now.saturating_sub(at) < WINDOW);
        let sum = self.seconds.within(now).fold(Sum::default(), Sum::plus);
        let since = if sum.overflows > 0 { sum.since_overflow } else { sum.covered };
        Evidence {
            sampled: sum.covered.sampled,
            full: sum.covered.full,
            overflows: sum.overflows,
            first_refusals: sum.first_refusals,
            largest_burst: sum.largest_burst,
            since_overflow: since.sampled,
            loaded: since.loaded,
            brimming: self.brimming_since.map_or(Duration::ZERO, |since| now.saturating_sub(since)),
            was_slow: lately(self.slow_at),
            scan: self.scanned,
            ..evidence
        }
    }

    fn turn(&mut self, now: Duration, evidence: &Evidence) -> Option<Turn> {
        let holding: Diagnoses =
            self.held.now().iter().filter(|diagnosis| !diagnosis.is_information()).collect();
        match (&mut self.incident, holding.iter().next()) {
            (Some(incident), Some(_)) => {
                holding.iter().for_each(|diagnosis| incident.all.insert(diagnosis));
                None
            }
            (None, Some(diagnosis)) => {
                let span = Span {
                    diagnosis,
                    all: holding,
                    began: now,
                    peak: u64::from(self.lengths.largest(now)),
                    overflows: evidence.overflows,
                    abandoned: evidence.scan.map_or(0, |scan| scan.abandoned),
                };
                self.incident = Some(span);
                Some(Turn::Started(span))
            }
            (_, None) => self.end(),
        }
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
    /// The next second of the window.
    fn plus(mut self, second: Second) -> Self {
        self.covered.add(second.covered);
        self.overflows += second.overflows;
        self.first_refusals += second.first_refusals;
        self.largest_burst = self.largest_burst.max(second.burst);
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

    /// The oldest first; the slot that `now` falls into is the last.
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

    /// Samples of one second, with so many overflows each, at a listener with a limit of 8.
    struct Story {
        record: Record,
        changes: Vec<(u64, Turn)>,
    }

    impl Story {
        fn new() -> Self {
            Self { record: Record::default(), changes: Vec::new() }
        }

        /// What holds after a second in which it was full for `full` and loaded for `loaded`.
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
                self.record.overflowed(now, overflows, 8);
            }
            let (case, change) = self.record.conclude(now, Evidence::default(), 0.0);
            self.changes.extend(change.map(|change| (second, change)));
            let holding = case.diagnoses.iter().filter(|held| held.since.is_some());
            holding.map(|held| held.diagnosis).collect()
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_incident_is_logged_once_at_its_start_and_once_at_its_end() {
        let mut story = Story::new();
        for second in 100..200 {
            story.second(second, if (110..120).contains(&second) { 3 } else { 0 }, 0.0, 0.0);
        }
        let [(start, Turn::Started(started)), (end, Turn::Ended(ended))] = story.changes[..] else {
            panic!("{:?}", story.changes)
        };
        // It takes 3 s to see that the queue drains.
        assert_eq!((start, started.overflows, started.peak), (112, 9, 6));
        // The overflows stay in the window for 30 s, and the diagnosis holds 10 s longer.
        assert!((155..=160).contains(&end), "{end}");
        assert_eq!((ended.diagnosis, ended.overflows, ended.peak), (Diagnosis::ShortQueue, 30, 6));
    }

    #[test]
    fn a_server_that_becomes_slow_has_one_word() {
        let mut story = Story::new();
        let mut words = Vec::new();
        for second in 100..160 {
            // From second 110 on its queue is nearly full and overflows now and then.
            let is_slow = second >= 110;
            let (full, loaded) = if is_slow { (0.25, 1.0) } else { (0.0, 0.0) };
            words.extend(story.second(second, u64::from(is_slow && second % 3 == 0), full, loaded));
        }
        words.dedup();
        assert_eq!(words, [Diagnosis::SlowAccept]);
    }

    #[test]
    fn a_crash_loop_has_a_history() {
        let mut story = Story::new();
        let mut words = Vec::new();
        for second in 100..170 {
            // It is full for five seconds of eight, dies, and is back a second later.
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
    fn late_samples_take_no_word_back() {
        let mut story = Story::new();
        (100..115).for_each(|second| _ = story.second(second, 9, 1.0, 1.0));
        // Samples come every 18 s: the time between them is not known.
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
