//! The CPU budget that scans, discovery, owner searches and cause readings share. Uses no clock.
//!
//! Each kind of task has its own limit. Together the tasks may use what the sampler leaves of 1/40
//! of a core, and at least 1/200. A task that exceeds the shared budget delays the next task of its
//! kind. Scans and cause readings may always use a separate share, even if that exceeds the budget:
//! without it, costly discovery on a machine with many processes would delay every diagnosis.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Share of a core for the sampler and all background tasks together.
const ALL: f64 = 0.025;
/// Minimum share of a core that is left for the background tasks.
const LEAST: f64 = 0.005;
/// Maximum time for which unused budget is saved.
const MOST_SAVED: Duration = Duration::from_secs(20);
/// Maximum delay after one task.
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// The shared budget.
#[derive(Debug)]
pub struct Background(Mutex<Shared>);

#[derive(Clone, Copy, Debug)]
struct Shared {
    share: f64,
    /// The budget up to this time is spent.
    spent_until: Duration,
}

// === impl Background ===

impl Default for Background {
    fn default() -> Self {
        Self(Mutex::new(Shared { share: ALL - LEAST, spent_until: Duration::ZERO }))
    }
}

impl Background {
    /// Sets the share of a core that the sampler uses.
    pub fn set_sampler_share(&self, sampler: f64) {
        self.lock().share = (ALL - sampler).max(LEAST);
    }

    /// Spends `cpu` at `now`. Returns the delay of the next task of the same kind, which may always
    /// use the share `own` of a core.
    pub fn spend_of(&self, own: f64, now: Duration, cpu: Duration) -> Duration {
        self.spend(now, cpu).min(cpu.div_f64(own))
    }

    /// Spends `cpu` at `now`. Returns the delay of the next task of the same kind.
    pub fn spend(&self, now: Duration, cpu: Duration) -> Duration {
        let mut shared = self.lock();
        let begin = shared.spent_until.max(now.saturating_sub(MOST_SAVED));
        shared.spent_until = begin + cpu.div_f64(shared.share);
        shared.spent_until.saturating_sub(now).min(LONGEST_DELAY)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_secs(10_000);

    /// Runs tasks that cost `costs` and come as soon as the budget allows it, at most every second.
    /// Returns the share of a core that they use.
    fn run(sampler: f64, costs: &[u64]) -> f64 {
        let background = Background::default();
        background.set_sampler_share(sampler);
        let (mut now, mut used) = (Duration::ZERO, Duration::ZERO);
        let mut due = vec![Duration::ZERO; costs.len()];
        while now < LOOK {
            for (due, cost) in due.iter_mut().zip(costs) {
                if now >= *due {
                    let cost = Duration::from_millis(*cost);
                    used += cost;
                    *due = now + background.spend(now, cost).max(Duration::from_secs(1));
                }
            }
            now += Duration::from_millis(100);
        }
        used.as_secs_f64() / LOOK.as_secs_f64()
    }

    #[test]
    fn all_tasks_together_use_the_share_that_the_sampler_leaves() {
        // The share of the sampler, the costs of the tasks in ms, and the share that they use.
        let table: [(f64, &[u64], f64); 5] = [
            (0.001, &[1, 1, 1], 0.003),
            (0.001, &[50, 50, 50], 0.024),
            (0.02, &[50, 50, 50], 0.005),
            (0.02, &[50], 0.005),
            (0.5, &[10, 1], 0.005),
        ];
        for (sampler, costs, expected) in table {
            let used = run(sampler, costs);
            assert!((used / expected - 1.0).abs() < 0.05, "{sampler} {costs:?} {used}");
        }
    }

    #[test]
    fn a_task_with_a_share_of_its_own_does_not_wait_for_others() {
        let background = Background::default();
        background.set_sampler_share(0.5);
        let second = Duration::from_secs(1);
        background.spend(100 * second, second);
        assert_eq!(background.spend(100 * second, second / 100), LONGEST_DELAY);
        assert_eq!(background.spend_of(0.005, 100 * second, second / 100), 2 * second);
    }

    #[test]
    fn budget_saved_while_idle_covers_a_costly_task() {
        let background = Background::default();
        background.set_sampler_share(0.015);
        let second = Duration::from_secs(1);
        assert_eq!(background.spend(100 * second, Duration::from_millis(200)), Duration::ZERO);
        assert_eq!(background.spend(100 * second, Duration::from_millis(50)), 5 * second);
        assert_eq!(background.spend(100 * second, second), LONGEST_DELAY);
    }
}
