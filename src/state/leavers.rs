//! The clients of one listener that left before they were accepted: how long each client waited,
//! and which share of the clients left.

use std::collections::VecDeque;
use std::time::Duration;

use crate::snapshot::Cookie;
use crate::snapshot::scan::{LEFT_AT_ONCE, Waiting};
use crate::view::Patience;

use super::ring::Ring;

/// Clients that left within this time count for the patience.
const RECENT: Duration = Duration::from_secs(300);
/// The fewest clients for which a median is shown.
const FEWEST: usize = 20;
/// The number of clients that are remembered. The oldest are dropped.
const MAX_LEAVERS: usize = 512;
/// The length of one slot of outcomes. The twelve slots cover one minute.
const SLOT: Duration = Duration::from_secs(5);
/// The fewest clients for which a share is shown.
const FEWEST_OUTCOMES: u32 = 10;

/// The clients that left.
#[derive(Clone, Debug, Default)]
pub(super) struct Leavers {
    all: VecDeque<Leaver>,
    /// The times at which clients that had closed were answered: such a client closed only its
    /// sending direction.
    answered: VecDeque<Duration>,
    outcomes: Ring<Outcomes, 12>,
}

/// The outcomes, within one slot, of clients that scans saw waiting.
#[derive(Clone, Copy, Debug, Default)]
struct Outcomes {
    left: u32,
    served: u32,
}

/// A client that closed while it waited.
#[derive(Clone, Copy, Debug)]
struct Leaver {
    cookie: Cookie,
    at: Duration,
    patience: Duration,
}

// === impl Leavers ===

impl Leavers {
    /// Applies the rows of a scan at `at`. `before` contains the cookies of the previous scan in
    /// sorted order, each with whether its client had left.
    pub(super) fn take(
        &mut self,
        at: Duration,
        before: Option<&[(Cookie, bool)]>,
        rows: &[Waiting],
    ) {
        let had_left = |cookie: Cookie| match before {
            Some(before) => before.binary_search(&(cookie, true)).is_ok(),
            None => self.all.iter().any(|leaver| leaver.cookie == cookie),
        };
        let new = rows.iter().filter(|row| !had_left(row.cookie));
        let new: Vec<Leaver> = new.filter_map(|row| Leaver::of(at, row)).collect();
        self.all.extend(new);
        self.forget(at);
    }

    /// Records that the clients with these cookies, in sorted order, were answered after they had
    /// closed.
    pub(super) fn answered(&mut self, at: Duration, cookies: &[Cookie]) {
        if self.all.is_empty() || cookies.is_empty() {
            return;
        }
        let before = self.all.len();
        self.all.retain(|leaver| cookies.binary_search(&leaver.cookie).is_err());
        self.answered.extend(std::iter::repeat_n(at, before - self.all.len()));
        self.forget(at);
    }

    /// Whether most clients that close are answered: such clients close only their sending
    /// direction.
    pub(super) fn half_close(&self, now: Duration) -> bool {
        let recent = |at: &&Duration| now.saturating_sub(**at) < RECENT;
        let answered = self.answered.iter().filter(recent).count();
        answered > 1 && answered >= self.recent(now).count()
    }

    /// Counts clients that left, and clients that were accepted in time.
    pub(super) fn count(&mut self, at: Duration, left: u64, served: u64) {
        if left + served > 0 {
            let outcomes = self.outcomes.at(slot(at));
            outcomes.left = outcomes.left.saturating_add(left.try_into().unwrap_or(u32::MAX));
            outcomes.served = outcomes.served.saturating_add(served.try_into().unwrap_or(u32::MAX));
        }
    }

    /// The median patience of the clients that left within the last five minutes.
    pub(super) fn patience(&self, now: Duration) -> Option<Patience> {
        let mut all: Vec<Duration> = self.recent(now).map(|leaver| leaver.patience).collect();
        if all.len() < FEWEST || self.half_close(now) {
            return None;
        }
        let middle = all.len() / 2;
        let clients = all.len();
        Some(Patience { median: *all.select_nth_unstable(middle).1, clients })
    }

    /// The share of clients that left, among the clients that scans saw waiting within the last
    /// minute.
    pub(super) fn share(&self, now: Duration) -> Option<f64> {
        let sum = self.outcomes.until(slot(now)).fold(Outcomes::default(), |sum, one| Outcomes {
            left: sum.left.saturating_add(one.left),
            served: sum.served.saturating_add(one.served),
        });
        let all = sum.left.saturating_add(sum.served);
        (all >= FEWEST_OUTCOMES).then(|| f64::from(sum.left) / f64::from(all))
    }

    fn recent(&self, now: Duration) -> impl Iterator<Item = &Leaver> {
        self.all.iter().filter(move |leaver| now.saturating_sub(leaver.at) < RECENT)
    }

    fn forget(&mut self, now: Duration) {
        let too_many = self.all.len().saturating_sub(MAX_LEAVERS);
        self.all.drain(..too_many);
        self.all.retain(|leaver| now.saturating_sub(leaver.at) < RECENT);
        let too_many = self.answered.len().saturating_sub(MAX_LEAVERS);
        self.answered.drain(..too_many);
    }
}

// === impl Leaver ===

impl Leaver {
    /// Returns `None` if the client has not left, closed within [`LEFT_AT_ONCE`], or has an unknown
    /// patience.
    fn of(at: Duration, row: &Waiting) -> Option<Self> {
        let patience = row.patience.filter(|patience| *patience >= LEFT_AT_ONCE)?;
        let ago = row.age?.saturating_sub(patience);
        Some(Self { cookie: row.cookie, at: at.saturating_sub(ago), patience })
    }
}

fn slot(at: Duration) -> u64 {
    at.as_secs() / SLOT.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::scan::Local;

    fn row(cookie: u64, waited: u64, closed_after: u64) -> Waiting {
        let local = Local { ip: [127, 0, 0, 1].into(), port: 80, interface: 0 };
        let [age, patience] = [waited, closed_after].map(|ms| Some(Duration::from_millis(ms)));
        let client = local.ip;
        Waiting { cookie: Cookie(cookie), local, client, age, is_closed: true, patience }
    }

    const NOW: Duration = Duration::from_secs(1_000);

    fn rows(number: u64, waited: u64, closed_after: impl Fn(u64) -> u64) -> Vec<Waiting> {
        (0..number).map(|nth| row(nth, waited, closed_after(nth))).collect()
    }

    fn patience(rows: &[Waiting]) -> Option<u128> {
        let mut leavers = Leavers::default();
        leavers.take(NOW, None, rows);
        leavers.patience(NOW).map(|patience| patience.median.as_millis())
    }

    #[test]
    fn the_patience_is_the_median_of_twenty_or_more() {
        assert_eq!(patience(&rows(19, 9_000, |_| 3_000)), None);
        assert_eq!(patience(&rows(20, 9_000, |_| 3_000)), Some(3_000));
        assert_eq!(patience(&rows(41, 9_000, |nth| 1_000 + nth * 100)), Some(3_000));
    }

    #[test]
    fn clients_that_close_at_once_or_left_long_ago_have_no_patience() {
        assert_eq!(patience(&rows(50, 9_000, |_| 99)), None);
        assert_eq!(patience(&rows(50, 304_000, |_| 3_000)), None);
        let unknown: Vec<Waiting> = rows(50, 9_000, |_| 3_000)
            .into_iter()
            .map(|row| Waiting { patience: None, ..row })
            .collect();
        assert_eq!(patience(&unknown), None);
    }

    #[test]
    fn a_client_counts_once_however_often_it_is_seen() {
        let mut leavers = Leavers::default();
        let rows = rows(19, 9_000, |_| 3_000);
        let seen: Vec<_> = rows.iter().map(|row| (row.cookie, true)).collect();
        leavers.take(NOW, None, &rows);
        leavers.take(NOW, Some(&seen), &rows);
        leavers.take(NOW, None, &rows);
        assert_eq!(leavers.all.len(), 19);
    }

    #[test]
    fn clients_that_are_answered_after_they_closed_have_not_left() {
        let mut leavers = Leavers::default();
        leavers.take(NOW, None, &rows(30, 9_000, |_| 3_000));
        leavers.answered(NOW, &(0..8).map(Cookie).collect::<Vec<_>>());
        let patience = leavers.patience(NOW).map(|patience| (patience.median, patience.clients));
        assert_eq!(patience, Some((Duration::from_secs(3), 22)));
        assert!(!leavers.half_close(NOW));
        leavers.answered(NOW, &(0..20).map(Cookie).collect::<Vec<_>>());
        assert!(leavers.half_close(NOW));
        assert_eq!(leavers.patience(NOW), None);
    }

    #[test]
    fn only_the_latest_leavers_are_remembered() {
        let mut leavers = Leavers::default();
        leavers.take(NOW, None, &rows(2_000, 9_000, |nth| if nth < 1_488 { 500 } else { 8_000 }));
        assert_eq!(leavers.all.len(), MAX_LEAVERS);
        let median = leavers.patience(NOW).map(|patience| patience.median);
        assert_eq!(median, Some(Duration::from_secs(8)));
    }
}
