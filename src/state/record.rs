//! What is remembered of a listener that held a queue, overflowed or met a full SYN queue: what happened at it lately,
//! the diagnoses that follow, and the incident they make.

use std::sync::Arc;
use std::time::Duration;

use crate::diagnosis::{Diagnoses, Diagnosis, Evidence, HOLD, ScanEvidence, WINDOW, diagnose};
use crate::view::{Case, HeldDiagnosis};

use super::GRACE;
use super::burst::Bursts;
use super::ring::Ring;
use super::scans::{Scans, Verdict};
use super::trailing::Trailing;

/// So many half-open connections at once are worth remembering.
pub(super) const MANY_HALF_OPEN: u64 = 16;

const DIAGNOSES: usize = Diagnosis::ALL.len();

/// The history of one listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    seconds: Trailing<Second>,
    bursts: Bursts,
    lengths: Lengths,
    /// Since when it has been at its limit.
    brimming_since: Option<Duration>,
    /// Since when all its sockets have been.
    all_brimming_since: Option<Duration>,
    /// Its scans.
    pub(super) scans: Scans,
    scanned: Option<ScanEvidence>,
    held: [Holding; DIAGNOSES],
    slow_at: Option<Duration>,
    incident: Option<Span>,
    active_at: Duration,
}

/// What happened within one second.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    full: Duration,
    overflows: u64,
    drops: u64,
    burst: u64,
}

/// The largest lengths of the last five minutes, by [`Case::SLOT`].
#[derive(Clone, Debug, Default)]
struct Lengths(Ring<u32, { Case::SLOTS }>);

/// How one diagnosis holds.
#[derive(Clone, Copy, Debug, Default)]
struct Holding {
    since: Option<Duration>,
    /// When the evidence last spoke for it.
    fresh_at: Duration,
    /// When it last held.
    held_at: Option<Duration>,
}

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
    /// A sample: so many wait now, and `full` of the time since the last one was spent full.
    pub(super) fn sampled(&mut self, now: Duration, length: u64, full: Duration) {
        if !full.is_zero() {
            self.seconds.at(now).full += full;
        }
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
    }

    /// It was charged with so many overflows. `limit` is the sum of its sockets' limits.
    pub(super) fn overflowed(&mut self, now: Duration, overflows: u64, limit: u64) {
        self.bursts.overflowed(now, overflows);
        let burst = self.bursts.size(now, limit + 1, self.harmless_drops(now));
        let second = self.seconds.at(now);
        second.overflows += overflows;
        second.burst = second.burst.max(burst);
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
    ) {
        let Verdict { oldest, abandoned, untaken, drains: _ } = verdict.unwrap_or_default();
        if verdict.is_none() {
            self.scans.clear();
        }
        if half_open >= MANY_HALF_OPEN {
            self.active_at = self.active_at.max(at);
        }
        self.scanned = Some(ScanEvidence {
            length,
            oldest: oldest.unwrap_or_default(),
            untaken,
            abandoned: abandoned.unwrap_or(0),
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

    /// The last scan is too old to say anything.
    pub(super) fn forget_scan(&mut self) {
        self.scans.clear();
        self.scanned = None;
    }

    /// The queue was seen empty: what scans said of it is over.
    pub(super) fn emptied(&mut self) {
        self.scans.clear();
        if let Some(scan) = &mut self.scanned {
            (scan.length, scan.abandoned) = (0, 0);
            (scan.oldest, scan.untaken) = (Duration::ZERO, Duration::ZERO);
        }
    }

    /// Adds up what is known to a case; `evidence` comes with what others know. Gives the case, and whether an incident
    /// started or ended with it.
    pub(super) fn conclude(
        &mut self,
        now: Duration,
        evidence: Evidence,
    ) -> (Arc<Case>, Option<Turn>) {
        let evidence = self.complete(now, evidence);
        let diagnoses = diagnose(&evidence);
        if diagnoses.contains(Diagnosis::SlowAccept) {
            self.slow_at = Some(now);
        }
        for (diagnosis, holding) in Diagnosis::ALL.into_iter().zip(&mut self.held) {
            holding.hear(now, diagnoses.contains(diagnosis));
        }
        let turn = self.turn(now, &evidence);
        let case = Case { evidence, diagnoses: self.shown(now), history: self.lengths.all(now) };
        (Arc::new(case), turn)
    }

    /// The listener is closed: whatever was wrong is over.
    pub(super) fn end(&mut self) -> Option<Turn> {
        self.incident.take().map(Turn::Ended)
    }

    /// Whether nothing happened for so long that there is nothing left to remember.
    pub(super) fn is_over(&self, now: Duration) -> bool {
        let last = self
            .held
            .iter()
            .filter_map(|holding| holding.held_at)
            .fold(self.active_at, Duration::max);
        now.saturating_sub(last) >= GRACE
    }

    fn complete(&self, now: Duration, evidence: Evidence) -> Evidence {
        let lately = |at: Option<Duration>| at.is_some_and(|at| now.saturating_sub(at) < WINDOW);
        Evidence {
            full: self.seconds.within(now).map(|second| second.full).sum(),
            overflows: self.seconds.within(now).map(|second| second.overflows).sum(),
            largest_burst: self.seconds.within(now).map(|second| second.burst).max().unwrap_or(0),
            brimming: self.brimming_since.map_or(Duration::ZERO, |since| now.saturating_sub(since)),
            was_slow: lately(self.slow_at),
            scan: self.scanned,
            ..evidence
        }
    }

    /// Those that hold or have held within the grace time, in order of precedence.
    fn shown(&self, now: Duration) -> Vec<HeldDiagnosis> {
        let pairs = Diagnosis::ALL.into_iter().zip(&self.held);
        let shown = pairs.filter(|(_, holding)| holding.is_shown(now));
        shown
            .map(|(diagnosis, holding)| HeldDiagnosis { diagnosis, since: holding.since })
            .collect()
    }

    fn turn(&mut self, now: Duration, evidence: &Evidence) -> Option<Turn> {
        let pairs = Diagnosis::ALL.into_iter().zip(&self.held);
        let holding: Diagnoses = pairs
            .filter(|(_, holding)| holding.since.is_some())
            .map(|(diagnosis, _)| diagnosis)
            .collect();
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

// === impl Holding ===

impl Holding {
    /// It holds as long as the evidence speaks for it, and a while longer: nothing flickers.
    fn hear(&mut self, now: Duration, speaks_for: bool) {
        if speaks_for {
            self.fresh_at = now;
            self.since.get_or_insert(now);
        } else if now.saturating_sub(self.fresh_at) >= HOLD {
            self.since = None;
        }
        if self.since.is_some() {
            self.held_at = Some(now);
        }
    }

    fn is_shown(&self, now: Duration) -> bool {
        self.held_at.is_some_and(|at| now.saturating_sub(at) < GRACE)
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

    /// An evidence that speaks for `short_queue` as soon as it is told of overflows.
    fn context() -> Evidence {
        Evidence { watched: WINDOW, ..Evidence::default() }
    }

    #[test]
    fn an_incident_is_told_once_at_its_start_and_once_at_its_end() {
        let mut record = Record::default();
        let mut turns = Vec::new();
        for second in 100..200 {
            record.sampled(seconds(second), second % 7, Duration::ZERO);
            if (110..120).contains(&second) {
                record.overflowed(seconds(second), 3, 8);
            }
            let (_, turn) = record.conclude(seconds(second), context());
            turns.extend(turn.map(|turn| (second, turn)));
        }
        let [(start, Turn::Started(started)), (end, Turn::Ended(ended))] = turns[..] else {
            panic!("{turns:?}")
        };
        // The overflows stay in the window for 30 s, and the diagnosis holds 10 s longer.
        assert_eq!((start, started.overflows, started.peak), (110, 3, 6));
        assert!((155..=160).contains(&end), "{end}");
        assert_eq!((ended.diagnosis, ended.overflows, ended.peak), (Diagnosis::ShortQueue, 30, 6));
    }

    #[test]
    fn a_diagnosis_is_shown_for_the_grace_time_after_it_held() {
        let mut record = Record::default();
        record.overflowed(seconds(100), 1, 8);
        let held =
            |record: &mut Record, at| record.conclude(seconds(at), context()).0.diagnoses.clone();
        let short = |since| vec![HeldDiagnosis { diagnosis: Diagnosis::ShortQueue, since }];
        assert_eq!(held(&mut record, 100), short(Some(seconds(100))));
        assert_eq!(held(&mut record, 129), short(Some(seconds(100))));
        assert_eq!(held(&mut record, 140), short(None));
        assert!(!record.is_over(seconds(139) + GRACE - seconds(20)));
        assert_eq!(held(&mut record, 500), []);
        assert!(record.is_over(seconds(500)));
    }
}
