//! Decides which whole dumps of a namespace the CPU budget allows. Uses no clock.
//!
//! A namespace has a share of a core for dumps and saves what it does not use, for a few dumps.
//! Most of the savings are a reserve for urgent dumps: the overflows of the namespace grow, and a
//! dump is needed to attribute them.

use std::time::Duration;

use super::turns::Cost;

/// Maximum savings, in dumps.
const MOST_SAVED: f64 = 4.0;
/// Savings below which only urgent dumps are allowed, in dumps.
const RESERVE: f64 = 3.0;

/// The whole dumps that are allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allowed {
    /// Every dump.
    #[default]
    All,
    /// Dumps on which the attribution of overflows waits.
    Urgent,
    /// No dump.
    None,
}

/// The dumps of one namespace.
#[derive(Clone, Copy, Debug)]
pub struct DumpAccount {
    cost: Cost,
    /// Savings at the first dump, in dumps.
    at_first: f64,
    /// Share of a core for dumps.
    share: f64,
    /// Saved CPU time at `at`, in seconds.
    saved: f64,
    at: Duration,
    /// Number of dumps made or postponed since the last division of the budget.
    wanted: u32,
    /// Wanted dumps per second. A higher rate counts at once, a lower rate gradually.
    rate: f64,
}

// === impl DumpAccount ===

impl Default for DumpAccount {
    fn default() -> Self {
        let (cost, at) = (Cost::default(), Duration::ZERO);
        let (share, at_first) = (f64::INFINITY, RESERVE);
        Self { cost, at_first, share, saved: 0.0, at, wanted: 0, rate: 0.0 }
    }
}

impl DumpAccount {
    /// Creates an account that saves its reserve after the first dump.
    pub fn without_reserve() -> Self {
        Self { at_first: 0.0, ..Self::default() }
    }

    /// Returns the dumps that are allowed at `now`.
    pub fn allowed(&self, now: Duration) -> Allowed {
        let Some(cost) = self.cost.known() else { return Allowed::All };
        match self.saved(now) / cost.as_secs_f64() {
            dumps if !self.share.is_finite() || dumps >= RESERVE => Allowed::All,
            dumps if dumps >= 1.0 => Allowed::Urgent,
            _ => Allowed::None,
        }
    }

    /// Records a dump, or a dump that was due and not allowed.
    pub fn wanted(&mut self) {
        self.wanted += 1;
    }

    /// Records the cost of a dump at `now`.
    pub fn made(&mut self, now: Duration, cost: Duration) {
        if self.cost.known().is_none() {
            self.saved = self.at_first * cost.as_secs_f64();
        }
        self.cost.add(cost);
        if self.share.is_finite() {
            self.saved = self.saved(now) - cost.as_secs_f64();
        }
        self.at = now;
    }

    /// Sets the share of a core for dumps from `now` on.
    pub fn set_share(&mut self, now: Duration, share: f64) {
        (self.saved, self.at) = (self.saved(now), now);
        self.share = share;
    }

    /// Returns the share of a core that the wanted dumps of the last `time` need.
    pub fn need(&mut self, time: Duration) -> f64 {
        const FORGET: f64 = 8.0;
        let wanted = f64::from(std::mem::take(&mut self.wanted));
        let rate = wanted / time.as_secs_f64().max(1.0);
        self.rate = rate.max(self.rate - self.rate / FORGET);
        self.rate * self.cost.known().unwrap_or_default().as_secs_f64()
    }

    /// Returns the interval of dumps that the share allows.
    pub fn interval(&self) -> Duration {
        let seconds = self.cost.known().unwrap_or_default().as_secs_f64() / self.share;
        Duration::from_secs_f64(seconds.clamp(0.0, 3600.0))
    }

    fn saved(&self, now: Duration) -> f64 {
        let most = MOST_SAVED * self.cost.known().unwrap_or_default().as_secs_f64();
        let gained = match self.share.is_finite() {
            true => self.share * now.saturating_sub(self.at).as_secs_f64(),
            // With an unbounded share, no savings are needed.
            false => 0.0,
        };
        (self.saved + gained).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: Duration = Duration::from_millis(2);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Returns an account that made two dumps, with a share that allows one dump every second.
    fn account() -> DumpAccount {
        let mut account = DumpAccount::default();
        account.made(Duration::ZERO, COST);
        account.made(Duration::ZERO, COST);
        account.set_share(Duration::ZERO, 0.002);
        account
    }

    #[test]
    fn an_unbounded_share_allows_every_dump() {
        let mut account = account();
        account.set_share(Duration::ZERO, f64::INFINITY);
        for nth in 0..100 {
            assert_eq!(account.allowed(millis(nth)), Allowed::All);
            account.made(millis(nth), COST);
        }
        assert_eq!(account.interval(), Duration::ZERO);
    }

    #[test]
    fn dumps_keep_to_the_share_and_leave_a_reserve() {
        let (mut account, mut made) = (account(), 0);
        for nth in 0..600 {
            let now = millis(100 * nth);
            if account.allowed(now) == Allowed::All {
                account.made(now, COST);
                made += 1;
            }
            assert_ne!(account.allowed(now), Allowed::None);
        }
        assert!((59..=62).contains(&made), "{made}");
        let urgent = |account: &mut DumpAccount| {
            let mut made = 0;
            while account.allowed(millis(60_000)) != Allowed::None {
                account.made(millis(60_000), COST);
                made += 1;
            }
            made
        };
        assert!((2..=4).contains(&urgent(&mut account)));
        assert_eq!(account.interval(), Duration::from_secs(1));
    }

    #[test]
    fn without_a_reserve_the_first_dump_is_followed_by_none() {
        for (mut account, expected) in [
            (DumpAccount::default(), Allowed::All),
            (DumpAccount::without_reserve(), Allowed::None),
        ] {
            assert_eq!(account.allowed(Duration::ZERO), Allowed::All);
            account.made(Duration::ZERO, COST);
            account.set_share(Duration::ZERO, 0.002);
            assert_eq!(account.allowed(Duration::ZERO), expected);
            assert_eq!(account.allowed(millis(3_100)), Allowed::All);
        }
    }

    #[test]
    fn a_dump_that_costs_more_than_expected_delays_later_dumps() {
        let mut account = account();
        (0..3).for_each(|_| account.made(millis(1), millis(20)));
        assert_eq!(account.allowed(millis(5_000)), Allowed::None);
    }

    #[test]
    fn the_need_is_the_cost_of_the_wanted_dumps() {
        let mut account = account();
        (0..10).for_each(|_| account.wanted());
        assert!((account.need(Duration::from_secs(2)) - 0.01).abs() < 1e-9);
        let later: Vec<f64> = (0..40).map(|_| account.need(Duration::from_secs(1))).collect();
        assert!(later[0] > 0.008 && later[39] < 0.0001, "{later:?}");
    }
}
