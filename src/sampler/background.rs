//! The CPU budget that scans, discovery, owner searches and cause readings share. Uses no clock.
//!
//! Each kind of task has its own limit. Together the tasks may use what the sampler leaves of 2.25 %
//! of a core, and at least 0.25 %. A task that exceeds the shared budget delays the next task of its
//! kind. Most kinds may always use a separate share, even if that exceeds the budget: without it,
//! costly discovery on a machine with many processes would delay every diagnosis. The sampler then
//! reduces its own budget by the CPU time by which the tasks exceed theirs.
//!
//! The rest of the 2.5 % of a core that listenq may use is for serving scrapes, the log, the timers
//! and variations.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Share of a core for the sampler and all background tasks together.
const ALL: f64 = 0.022_5;
/// Minimum share of a core that is left for the background tasks.
const LEAST: f64 = 0.002_5;
/// Maximum time for which unused budget is saved.
const MOST_SAVED: Duration = Duration::from_secs(20);
/// Maximum delay after one task without a separate share.
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// Maximum time for which the budget is spent in advance.
const MOST_OWED: Duration = Duration::from_secs(60);
/// Time over which the CPU time of the tasks is averaged, in seconds.
const AVERAGED: f64 = 30.0;

/// The shared budget.
#[derive(Debug)]
pub struct Background(Mutex<Shared>);

#[derive(Clone, Copy, Debug)]
struct Shared {
    /// Share of a core for the tasks.
    share: f64,
    /// The budget up to this time is spent.
    spent_until: Duration,
    /// Share of a core that the tasks used recently, at `used_at`.
    used: f64,
    used_at: Duration,
}

// === impl Background ===

impl Default for Background {
    fn default() -> Self {
        Self(Mutex::new(Shared {
            share: ALL - LEAST,
            spent_until: Duration::ZERO,
            used: 0.0,
            used_at: Duration::ZERO,
        }))
    }
}

impl Background {
    /// Sets the share of a core that the sampler needs, at most its `budget`. Returns the share by
    /// which the tasks exceed what that budget leaves them: the sampler has to use less by that.
    pub fn balance(&self, now: Duration, wanted: f64, budget: f64) -> f64 {
        let mut shared = self.lock();
        shared.share = (ALL - wanted).max(LEAST);
        shared.add(now, Duration::ZERO);
        (shared.used - (ALL - budget).max(LEAST)).max(0.0)
    }

    /// Spends `cpu` at `now`. Returns the delay of the next task of the same kind, which may always
    /// use the share `own` of a core.
    pub fn spend_of(&self, own: f64, now: Duration, cpu: Duration) -> Duration {
        self.lock().spend(now, cpu).min(cpu.div_f64(own))
    }

    /// Spends `cpu` at `now`. Returns the delay of the next task of the same kind.
    pub fn spend(&self, now: Duration, cpu: Duration) -> Duration {
        self.lock().spend(now, cpu).min(LONGEST_DELAY)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Shared ===

impl Shared {
    /// Spends `cpu` at `now`. Returns the time until the budget allows another task.
    fn spend(&mut self, now: Duration, cpu: Duration) -> Duration {
        self.add(now, cpu);
        let begin = self.spent_until.max(now.saturating_sub(MOST_SAVED));
        let spent_until = begin + cpu.div_f64(self.share);
        // Tasks with a separate share may exceed the budget for hours: tasks that come later do not
        // wait for all of that time.
        self.spent_until = spent_until.min(now + MOST_OWED);
        spent_until.saturating_sub(now)
    }

    /// Adds `cpu` to the share that the tasks used recently.
    fn add(&mut self, now: Duration, cpu: Duration) {
        let elapsed = now.saturating_sub(self.used_at).as_secs_f64();
        self.used = self.used * (-elapsed / AVERAGED).exp() + cpu.as_secs_f64() / AVERAGED;
        self.used_at = self.used_at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::schedule::Schedule;
    use crate::sampler::turns::DumpOutcome;

    const LOOK: Duration = Duration::from_secs(10_000);
    /// The budget of the sampler.
    const BUDGET: f64 = 0.02;

    /// Runs tasks that cost `costs` and come as soon as the budget allows it, at most every second.
    /// Returns the share of a core that they use.
    fn run(sampler: f64, costs: &[u64]) -> f64 {
        let background = Background::default();
        background.balance(Duration::ZERO, sampler, BUDGET);
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
            (0.001, &[50, 50, 50], 0.021_5),
            (0.02, &[20, 20, 20], 0.002_5),
            (0.02, &[50], 0.002_5),
            (0.5, &[10, 1], 0.002_5),
        ];
        for (sampler, costs, expected) in table {
            let used = run(sampler, costs);
            assert!((used / expected - 1.0).abs() < 0.05, "{sampler} {costs:?} {used}");
        }
    }

    #[test]
    fn a_task_with_a_share_of_its_own_does_not_wait_for_others() {
        let background = Background::default();
        background.balance(Duration::ZERO, 0.5, 0.5);
        let second = Duration::from_secs(1);
        background.spend(100 * second, second);
        assert_eq!(background.spend(100 * second, second / 100), LONGEST_DELAY);
        assert_eq!(background.spend_of(0.005, 100 * second, second / 100), 2 * second);
    }

    #[test]
    fn budget_saved_while_idle_covers_a_costly_task() {
        let background = Background::default();
        background.balance(Duration::ZERO, 0.012_5, BUDGET);
        let second = Duration::from_secs(1);
        assert_eq!(background.spend(100 * second, Duration::from_millis(200)), Duration::ZERO);
        assert_eq!(background.spend(100 * second, Duration::from_millis(50)), 5 * second);
        assert_eq!(background.spend(100 * second, second), LONGEST_DELAY);
    }

    #[test]
    fn hours_of_tasks_beyond_the_budget_do_not_delay_a_later_task_for_hours() {
        let background = Background::default();
        background.balance(Duration::ZERO, BUDGET, BUDGET);
        let second = Duration::from_secs(1);
        for now in 0..7_200 {
            background.spend_of(0.01, now * second, second / 100);
        }
        assert_eq!(background.spend(7_270 * second, second / 1_000), Duration::ZERO);
    }

    /// Returns the shares of a core that the sampler and the tasks use in 1,000 s. A sample costs
    /// `sample`. Each task costs 20 ms and runs whenever its share in `own` or the budget allows it.
    fn all_greedy(sample: Duration, own: &[f64]) -> [f64; 2] {
        let background = Background::default();
        let mut schedule = Schedule::new(Duration::from_millis(100), BUDGET, 1);
        let task = Duration::from_millis(20);
        let mut due = vec![Duration::ZERO; own.len()];
        let mut used = [Duration::ZERO; 2];
        for now in (0..110_000).map(|step| Duration::from_millis(10) * step) {
            let is_measured = now >= Duration::from_secs(100);
            if now >= schedule.due() {
                schedule.sampled(now, now, [sample, Duration::ZERO], DumpOutcome::NotDue);
                schedule.balance(&background, now);
                used[0] += if is_measured { sample } else { Duration::ZERO };
            }
            for (due, own) in due.iter_mut().zip(own).filter(|(due, _)| now >= **due) {
                *due = now + background.spend_of(*own, now, task);
                used[1] += if is_measured { task } else { Duration::ZERO };
            }
        }
        used.map(|used| used.as_secs_f64() / 1_000.0)
    }

    #[test]
    fn the_sampler_leaves_the_tasks_what_exceeds_their_budget() {
        let costly = Duration::from_millis(8);
        // The shares of scans, searches and cause readings.
        let [sampler, tasks] = all_greedy(costly, &[0.005, 0.005, 0.002_5]);
        assert!((0.009_5..0.011_5).contains(&sampler), "{sampler} {tasks}");
        assert!((0.012..0.013).contains(&tasks) && sampler + tasks < 0.023_5, "{sampler} {tasks}");
        // Without an excess the sampler keeps its budget.
        let [sampler, tasks] = all_greedy(costly, &[0.002_5]);
        assert!((0.019..0.021).contains(&sampler), "{sampler} {tasks}");
        assert!((0.002..0.003_5).contains(&tasks), "{sampler} {tasks}");
        // Cheap samples leave the tasks most of the budget.
        let [sampler, tasks] = all_greedy(Duration::from_micros(100), &[0.005, 0.005, 0.002_5]);
        assert!(sampler < 0.001_1 && (0.020..0.023).contains(&tasks), "{sampler} {tasks}");
    }
}
