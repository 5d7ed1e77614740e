//! Counts the connections accepted from the accept queues of a namespace.
//!
//! The kernel has no counter for accepted connections. Each opened connection (`PassiveOpens`)
//! still waits, was discarded when its listener closed, or was accepted.

use std::sync::Arc;
use std::time::Duration;

use crate::onset::{self, Slot, Trouble};
use crate::snapshot::{Counter, Counters};
use crate::view::{Accepts, Began};

use super::ring::Ring;

/// The number of accepted connections in one namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct Accepted {
    /// Connections that were opened before the count began and were not waiting at that time.
    base: Option<i128>,
    /// The queues of the last sample, used while the base may change.
    beginning: Option<Queues>,
    is_settled: bool,
    total: u64,
    /// The last value of `MPJoinAckRx`. `PassiveOpens` also counts MPTCP joins, and joins never
    /// wait in an accept queue.
    joins: Option<u64>,
    /// Whether the count missed connections: MPTCP joins, or connections in queues that are not
    /// tracked.
    is_unknown: bool,
}

/// The sum over all accept queues of a namespace.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Queues {
    /// Connections that are waiting.
    pub(super) waiting: u64,
    /// Connections that the kernel discarded when their listener closed.
    pub(super) discarded: u64,
    /// Whether a dump may still show, for the first time, sockets that were open from the
    /// beginning.
    pub(super) is_baseline: bool,
    /// Whether the namespace has more sockets than are tracked, so that some queues are unknown.
    pub(super) is_partial: bool,
}

/// The connections accepted by the only listener of a namespace, over time.
#[derive(Clone, Debug, Default)]
pub(super) struct Flow {
    slots: Ring<Slot, { Accepts::SLOTS }>,
    totals: Totals,
    total: u64,
    since: Duration,
    shown_at: Duration,
    /// The time from which all slots are empty.
    empty_at: Duration,
    began: Option<Began>,
}

/// The listener's own totals at one sample.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) connection_seconds: f64,
    pub(super) full_seconds: f64,
    pub(super) overflows: u64,
    /// The current length of the queue.
    pub(super) length: u64,
}

// === impl Accepted ===

impl Accepted {
    /// Starts the count. A namespace that started while listenq watched has accepted nothing
    /// before.
    pub(super) fn new(is_newborn: bool) -> Self {
        Self { base: is_newborn.then_some(0), is_settled: is_newborn, ..Self::default() }
    }

    /// Applies the queues of a dump and returns the number of connections accepted since the last
    /// call.
    ///
    /// `counters` must be read before the dump: counters read after the dump include connections
    /// that the dump did not show as waiting. `newer` holds the counters read after the previous
    /// dump, if any.
    pub(super) fn sampled(
        &mut self,
        counters: &Counters,
        newer: Option<&Counters>,
        queues: Queues,
    ) -> u64 {
        self.note_joins(counters);
        self.is_unknown |= queues.is_partial;
        if !self.is_settled {
            self.begin(newer, queues);
        }
        let opened = counters.get(Counter::PassiveOpens);
        let (Some(opened), Some(base)) = (opened, self.base) else { return 0 };
        let total = u64::try_from(queues.gone(opened) - base).unwrap_or(0).max(self.total);
        total - std::mem::replace(&mut self.total, total)
    }

    /// Sets the base from `newer`. An older counter would make the base too low, and the total too
    /// high for ever.
    fn begin(&mut self, newer: Option<&Counters>, queues: Queues) {
        let opened = newer.and_then(|newer| newer.get(Counter::PassiveOpens));
        if let (Some(opened), Some(before)) = (opened, self.beginning) {
            self.base = Some(before.gone(opened));
            self.is_settled = !before.is_baseline;
        }
        self.beginning = Some(queues);
    }

    /// The total. `None` before the base is settled, after an MPTCP join, and if some sockets are
    /// not tracked.
    pub(super) fn total(&self) -> Option<u64> {
        (self.is_settled && !self.is_unknown).then_some(self.total)
    }

    fn note_joins(&mut self, counters: &Counters) {
        let Some(joins) = counters.get(Counter::MpJoinAckRx) else { return };
        self.is_unknown |= self.joins.replace(joins).is_some_and(|before| before != joins);
    }
}

// === impl Queues ===

impl Queues {
    /// Opened connections that neither wait nor were discarded.
    fn gone(&self, opened: u64) -> i128 {
        i128::from(opened) - i128::from(self.waiting) - i128::from(self.discarded)
    }
}

// === impl Flow ===

impl Flow {
    /// Adds connections accepted until `now`, and what grew since the last `totals`.
    ///
    /// Returns a new view if one is due: once a second, while the slots are not empty.
    pub(super) fn accepted(
        &mut self,
        now: Duration,
        accepted: u64,
        totals: Totals,
    ) -> Option<Arc<Accepts>> {
        let before = std::mem::replace(&mut self.totals, totals);
        let waited = totals.connection_seconds - before.connection_seconds;
        let overflows = totals.overflows.saturating_sub(before.overflows);
        if accepted > 0 || waited > 0.0 || overflows > 0 {
            self.total += accepted;
            self.empty_at = now + Accepts::SLOT * (Accepts::SLOTS as u32 + 2);
            let slot = self.slots.at(slot(now));
            slot.accepted = added(slot.accepted, accepted);
            slot.overflows = added(slot.overflows, overflows);
            slot.length = added(0, totals.length);
            slot.waited += waited as f32;
            slot.full += (totals.full_seconds - before.full_seconds) as f32;
        }
        let is_due = now.saturating_sub(self.shown_at) >= Duration::from_secs(1);
        let is_due = is_due && now < self.empty_at && self.complete(now) > 0;
        is_due.then(|| {
            self.shown_at = now;
            Arc::new(self.show(now))
        })
    }

    /// Starts at a listener with the given totals at `now`.
    pub(super) fn new(now: Duration, totals: Totals) -> Self {
        Self { totals, since: now, ..Self::default() }
    }

    /// Builds the view. The slot of `now` is not complete, so it counts only in the total.
    fn show(&mut self, now: Duration) -> Accepts {
        let slots: Vec<Slot> = match slot(now).checked_sub(1) {
            Some(last) => self.slots.until(last).collect(),
            None => Vec::new(),
        };
        self.find_beginning(now, &slots);
        let known = Accepts::RECENT.min(self.complete(now)).min(slots.len());
        let recent = &slots[slots.len() - known..];
        let accepted: u64 = recent.iter().map(|slot| u64::from(slot.accepted)).sum();
        let time = Accepts::SLOT * known as u32;
        Accepts {
            total: self.total,
            per_second: accepted as f64 / time.as_secs_f64(),
            mean_wait: mean_wait(recent, accepted).filter(|wait| *wait <= time),
            history: slots.iter().map(|slot| slot.accepted).collect(),
            began: self.began,
        }
    }

    /// Returns the number of complete slots. The slots in which the flow started and of `now` are
    /// not complete.
    fn complete(&self, now: Duration) -> usize {
        let complete = slot(now).saturating_sub(slot(self.since) + 1);
        usize::try_from(complete).unwrap_or(usize::MAX)
    }

    /// Updates what the present trouble began with.
    fn find_beginning(&mut self, now: Duration, slots: &[Slot]) {
        let known = slots.len().min(self.complete(now));
        self.began = match onset::find(&slots[slots.len() - known..]) {
            Trouble::None => None,
            Trouble::Earlier => self.began,
            Trouble::Since(first, onset) => onset.map(|onset| Began {
                at: Accepts::SLOT * (slot(now) - (known - first) as u64) as u32,
                onset,
            }),
        };
    }
}

/// Returns the mean wait of the accepted connections: connection seconds over accepted. `None` when
/// nothing was accepted at last although connections wait: their time in the queue is not the wait
/// of those that were accepted.
fn mean_wait(recent: &[Slot], accepted: u64) -> Option<Duration> {
    let is_stuck = recent.last().is_some_and(|last| last.accepted == 0 && last.waited > 0.0);
    let waited: f64 = recent.iter().map(|slot| f64::from(slot.waited)).sum();
    let mean = waited.max(0.0) / accepted as f64;
    (accepted > 0 && !is_stuck).then(|| Duration::from_secs_f64(mean))
}

fn added(sum: u32, more: u64) -> u32 {
    sum.saturating_add(u32::try_from(more).unwrap_or(u32::MAX))
}

fn slot(now: Duration) -> u64 {
    now.as_secs() / Accepts::SLOT.as_secs()
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    fn counters(opened: u64, joins: u64) -> Counters {
        let mut counters = Counters::default();
        counters.set(Counter::PassiveOpens, opened);
        counters.set(Counter::MpJoinAckRx, joins);
        counters
    }

    fn queues(waiting: u64, discarded: u64) -> Queues {
        Queues { waiting, discarded, ..Queues::default() }
    }

    /// The totals after samples of (opened, waiting, discarded). The first sample is the baseline.
    fn totals(mut accepted: Accepted, samples: &[(u64, u64, u64)]) -> Vec<u64> {
        let mut sample = |(opened, waiting, discarded): &(u64, u64, u64)| {
            let counters = counters(*opened, 0);
            accepted.sampled(&counters, Some(&counters), queues(*waiting, *discarded));
            accepted.total()
        };
        sample(&samples[0]);
        samples.iter().map(|one| sample(one).unwrap()).collect()
    }

    #[test]
    fn opened_connections_that_no_longer_wait_were_accepted() {
        let samples = [(100, 3, 0), (110, 5, 0), (110, 0, 0), (120, 4, 0), (120, 0, 4)];
        assert_eq!(totals(Accepted::new(false), &samples), [0, 8, 13, 19, 19]);
        assert_eq!(totals(Accepted::new(true), &samples), [97, 105, 110, 116, 116]);
    }

    #[test]
    fn the_count_never_decreases_if_counters_are_older_than_queues() {
        let samples = [(100, 0, 0), (110, 0, 0), (110, 5, 0), (115, 5, 0), (115, 0, 0)];
        assert_eq!(totals(Accepted::new(false), &samples), [0, 10, 10, 10, 15]);
    }

    #[test]
    fn a_burst_during_the_first_samples_counts_only_once_it_is_accepted() {
        let mut accepted = Accepted::new(false);
        let (old, new) = (counters(0, 0), counters(9, 0));
        accepted.sampled(&Counters::default(), Some(&old), queues(0, 0));
        // Nine connections were opened after the counters were read.
        for newer in [None, Some(&new), Some(&new)] {
            let known = if newer.is_some() { &new } else { &old };
            accepted.sampled(known, newer, queues(9, 0));
        }
        assert_eq!(accepted.total(), Some(0));
        accepted.sampled(&new, Some(&new), queues(2, 0));
        assert_eq!(accepted.total(), Some(7));
    }

    #[test]
    fn sockets_that_the_first_dumps_missed_were_open_before() {
        let mut accepted = Accepted::new(false);
        let opened = counters(50, 0);
        for waiting in [0, 7, 7] {
            let queues = Queues { waiting, is_baseline: true, ..Queues::default() };
            assert_eq!(accepted.sampled(&opened, Some(&opened), queues), 0);
        }
        for (waiting, taken) in [(7, 0), (7, 0), (0, 7)] {
            assert_eq!(accepted.sampled(&opened, Some(&opened), queues(waiting, 0)), taken);
        }
    }

    #[test]
    fn mptcp_joins_make_the_count_permanently_unknown() {
        let mut accepted = Accepted::new(false);
        let mut sample = |opened, joins| {
            let counters = counters(opened, joins);
            accepted.sampled(&counters, Some(&counters), queues(0, 0));
            accepted.total()
        };
        assert_eq!([sample(50, 9), sample(50, 9)], [None, Some(0)]);
        assert_eq!([sample(51, 10), sample(51, 10)], [None, None]);
    }

    #[test]
    fn the_mean_wait_is_connection_seconds_over_accepted() {
        let totals = |connection_seconds| Totals { connection_seconds, ..Totals::default() };
        let mut flow = Flow::new(Duration::ZERO, totals(100.0));
        let mut shown = None;
        for second in 1..=60u64 {
            let at = Duration::from_secs(second);
            shown = flow.accepted(at, 20, totals(100.0 + second as f64 * 0.5)).or(shown);
        }
        let shown = shown.unwrap();
        assert_eq!((shown.total, shown.per_second), (1_200, 20.0));
        assert!((shown.mean_wait.unwrap().as_secs_f64() - 0.025).abs() < 1e-6);
        assert_eq!((shown.history.len(), shown.history[58..].to_vec()), (60, vec![100, 100]));
    }

    #[test]
    fn the_rate_is_that_of_the_time_for_which_the_listener_was_watched() {
        let mut flow = Flow::new(Duration::from_secs(102), Totals::default());
        let rates: Vec<Option<f64>> = (103..=140)
            .map(|second| flow.accepted(Duration::from_secs(second), 20, Totals::default()))
            .map(|shown| shown.map(|accepts| accepts.per_second))
            .collect();
        // The first complete slot is that of the seconds 105 to 109.
        assert_eq!(rates[..7], [None; 7]);
        assert!(rates[7..].iter().all(|rate| *rate == Some(20.0)), "{rates:?}");
    }

    /// Accepts this number of connections in each of these seconds while a queue of this length
    /// waits. Returns the last view.
    fn shown(flow: &mut Flow, seconds: Range<u64>, accepted: u64, length: u64) -> Accepts {
        let views = seconds.map(|second| {
            let connection_seconds = flow.totals.connection_seconds + length as f64;
            let totals = Totals { connection_seconds, length, ..flow.totals };
            flow.accepted(Duration::from_secs(second), accepted, totals)
        });
        Accepts::clone(&views.last().flatten().unwrap())
    }

    #[test]
    fn a_queue_that_stands_still_has_no_mean_wait() {
        let mut flow = Flow::new(Duration::ZERO, Totals::default());
        let mut wait =
            |seconds, accepted, length| shown(&mut flow, seconds, accepted, length).mean_wait;
        assert_eq!(wait(1..51, 5, 0), Some(Duration::ZERO));
        assert_eq!(wait(51..61, 0, 60), None);
        // The mean is longer than the time over which it is known.
        assert_eq!(wait(61..101, 1, 60), None);
        assert_eq!(wait(101..141, 5, 60), Some(Duration::from_secs(12)));
    }

    #[test]
    fn the_beginning_of_a_trouble_is_kept_while_it_lasts() {
        let mut flow = Flow::new(Duration::ZERO, Totals::default());
        let mut began =
            |seconds, accepted, length| shown(&mut flow, seconds, accepted, length).began;
        assert_eq!(began(1..100, 50, 0), None);
        let found = began(100..130, 5, 100).unwrap();
        assert_eq!((found.at, found.onset.before), (Duration::from_secs(100), 50.0));
        assert_eq!(found.onset.beginning, onset::Beginning::SlowerServer);
        // After ten minutes the history no longer shows the beginning.
        assert_eq!(began(130..700, 5, 100).map(|began| began.at), Some(found.at));
        assert_eq!(began(700..740, 50, 0), None);
    }
}
