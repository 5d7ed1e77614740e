//! Schedules the next sample. Uses no clock.
//!
//! The interval is jittered, so that no periodic server is sampled in phase, and stretched when
//! samples cost more than their share of a core.
//!
//! Other namespaces than listenq's own are read in turn ([`turns`](super::turns)), for at least
//! half of the budget; their cost is not counted here. A sample that costs more than a second's
//! budget delays the next sample at once.

use std::time::Duration;

/// Approximate number of samples in the mean.
const MEMORY: f64 = 32.0;

/// Number of first samples whose cost does not count, because they find nothing ready. The cost of
/// the same number of samples after these is not yet reliable.
const WARM_UP: f64 = 10.0;

/// Seconds of the budget that may be used at once.
const BURST: f64 = 1.0;
/// Maximum delay after a costly sample, in seconds.
const LONGEST_PAUSE: f64 = 60.0;

/// Times of samples, on the sampler's own clock.
#[derive(Debug)]
pub struct Schedule {
    target: Duration,
    budget: f64,
    due: Duration,
    cost: Mean,
    /// Cost of the other namespaces.
    others: Mean,
    gap: Mean,
    /// CPU time used beyond the budget, in seconds; negative if budget is left.
    debt: f64,
    last_start: Option<Duration>,
    random: fastrand::Rng,
}

/// A mean that decays slowly; the plain mean at first.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    value: f64,
    count: f64,
}

// === impl Mean ===

impl Mean {
    fn add(&mut self, value: f64) {
        self.count = (self.count + 1.0).min(MEMORY);
        self.value += (value - self.value) / self.count;
    }

    fn get(self) -> Option<f64> {
        (self.count > 0.0).then_some(self.value)
    }
}

// === impl Schedule ===

impl Schedule {
    /// Creates a schedule with one sample per `target` on average, using at most `budget` of a
    /// core. `seed` seeds the jitter.
    pub fn new(target: Duration, budget: f64, seed: u64) -> Self {
        Self {
            target,
            budget,
            due: Duration::ZERO,
            cost: Mean::default(),
            others: Mean::default(),
            debt: 0.0,
            gap: Mean::default(),
            last_start: None,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// Returns when the next sample is due.
    pub fn due(&self) -> Duration {
        self.due
    }

    /// Returns the current interval: the target, or a longer interval that the budget allows.
    pub fn interval(&self) -> Duration {
        if self.cost.count < WARM_UP {
            return self.target;
        }
        let affordable = self.cost.value / self.own_budget();
        self.target.max(Duration::from_secs_f64(affordable.min(3600.0)))
    }

    /// Returns the share of a core for the other namespaces: the rest of the budget, and at least
    /// half.
    pub fn others_budget(&self) -> f64 {
        let own = self.cost.value / self.interval().as_secs_f64();
        (self.budget - own).max(self.budget / 2.0)
    }

    fn own_budget(&self) -> f64 {
        let others = self.gap.get().map_or(0.0, |gap| self.others.value / gap);
        (self.budget - others).max(self.budget / 2.0)
    }

    /// Returns the mean gap between the starts of about the last 32 samples; `None` before the
    /// second sample.
    pub fn achieved(&self) -> Option<Duration> {
        self.gap.get().map(Duration::from_secs_f64)
    }

    /// Records a sample that started at `start`, ended at `end` and used `cpu`, plus `others` for
    /// other namespaces. Returns the number of missed samples.
    pub fn sampled(
        &mut self,
        start: Duration,
        end: Duration,
        cpu: Duration,
        others: Duration,
    ) -> u64 {
        if let Some(last) = self.last_start.replace(start) {
            let gap = start.saturating_sub(last).as_secs_f64();
            self.gap.add(gap);
            if self.gap.count > WARM_UP {
                self.cost.add(cpu.as_secs_f64());
                self.others.add(others.as_secs_f64());
                if self.cost.count >= WARM_UP {
                    self.pay(gap, cpu.as_secs_f64());
                }
            }
        }
        let interval = self.interval();
        self.due += interval.mul_f64(0.5 + self.random.f64());
        let missed = match end.checked_sub(self.due).filter(|late| !late.is_zero()) {
            Some(late) => 1 + (late.as_secs_f64() / interval.as_secs_f64()) as u64,
            None => 0,
        };
        let pause = (self.debt / self.own_budget()).clamp(0.0, LONGEST_PAUSE);
        let paid = start + Duration::from_secs_f64(pause);
        self.due = self.due.max(paid);
        if missed > 0 {
            self.due = self.due.max(end);
        }
        missed
    }

    /// Adds the budget of `gap` seconds and the cost of a sample to the debt.
    fn pay(&mut self, gap: f64, cost: f64) {
        let budget = self.own_budget();
        self.debt = (self.debt - gap * budget).max(-BURST * budget) + cost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(100);

    /// Runs `samples` samples that each take and cost `cost`. Returns the start of the last sample
    /// and the number of missed samples.
    fn run(schedule: &mut Schedule, samples: u32, cost: Duration) -> (Duration, u64) {
        let mut missed = 0;
        let mut start = Duration::ZERO;
        for _ in 0..samples {
            start = schedule.due();
            missed += schedule.sampled(start, start + cost, cost, Duration::ZERO);
        }
        (start, missed)
    }

    #[test]
    fn gaps_vary_by_half_and_their_mean_is_the_interval() {
        let mut schedule = Schedule::new(TARGET, 0.02, 1);
        let (mut last, mut gaps) = (Duration::ZERO, Vec::new());
        for _ in 0..10_000 {
            schedule.sampled(last, last, Duration::ZERO, Duration::ZERO);
            gaps.push(schedule.due() - last);
            last = schedule.due();
        }
        assert!(gaps.iter().all(|gap| (50..=150).contains(&gap.as_millis())));
        assert!((0.98..1.02).contains(&(last.as_secs_f64() / 1000.0)), "{last:?}");
        let spread = gaps.iter().max().unwrap().abs_diff(*gaps.iter().min().unwrap());
        assert!(spread > Duration::from_millis(90), "{spread:?}");
    }

    #[test]
    fn costly_samples_stretch_the_interval() {
        let mut schedule = Schedule::new(TARGET, 0.02, 1);
        let (_, missed) = run(&mut schedule, 1000, Duration::from_millis(8));
        assert_eq!(missed, 0);
        assert_eq!(schedule.interval().as_millis(), 400);
        let achieved = schedule.achieved().unwrap().as_secs_f64();
        assert!((0.36..0.44).contains(&achieved), "{achieved}");
    }

    #[test]
    fn costly_first_samples_do_not_stretch_it() {
        let mut schedule = Schedule::new(TARGET, 0.02, 1);
        run(&mut schedule, 10, Duration::from_millis(80));
        run(&mut schedule, 50, Duration::from_millis(1));
        assert_eq!(schedule.interval(), TARGET);
    }

    #[test]
    fn a_stall_is_counted_and_not_caught_up() {
        let mut schedule = Schedule::new(TARGET, 0.02, 1);
        let end = Duration::from_secs(30);
        let missed = schedule.sampled(Duration::ZERO, end, Duration::ZERO, Duration::ZERO);
        assert!((298..=300).contains(&missed), "{missed}");
        assert_eq!(schedule.due(), end);
    }

    #[test]
    fn one_overrun_delays_the_next_sample_at_once() {
        let mut schedule = Schedule::new(TARGET, 0.02, 1);
        run(&mut schedule, 50, Duration::from_millis(1));
        let start = schedule.due();
        schedule.sampled(start, start, Duration::from_millis(100), Duration::ZERO);
        // A second's budget is 20 ms.
        let pause = (schedule.due() - start).as_secs_f64();
        assert!((3.5..4.5).contains(&pause), "{pause}");
    }

    #[test]
    fn other_namespaces_have_half_of_the_budget_and_what_is_left() {
        let mut schedule = Schedule::new(TARGET, 0.02, 1);
        let mut sample = |own, others| {
            for _ in 0..200 {
                let start = schedule.due();
                let [own, others] = [own, others].map(Duration::from_micros);
                schedule.sampled(start, start, own, others);
            }
            (schedule.others_budget(), schedule.interval().as_millis())
        };
        let (budget, interval) = sample(100, 1_800);
        assert!((0.018..0.0195).contains(&budget) && interval == 100, "{budget} {interval}");
        let (budget, interval) = sample(4_000, 1_000);
        assert!(budget == 0.01 && (230..=300).contains(&interval), "{budget} {interval}");
    }
}
