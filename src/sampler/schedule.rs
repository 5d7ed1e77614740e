//! When the next sample is due: jittered, so that no periodic server is sampled in phase, and stretched when
//! samples cost more than their share of a core. Knows no clock.

use std::time::Duration;

/// The mean is taken over about so many samples.
const MEMORY: f64 = 128.0;

/// The cost of the first samples does not count, for they find nothing ready, and that of so many more says little.
const WARM_UP: f64 = 10.0;

/// The times of samples, on the sampler's own clock.
#[derive(Debug)]
pub struct Schedule {
    target: Duration,
    budget: f64,
    due: Duration,
    cost: Mean,
    gap: Mean,
    last_start: Option<Duration>,
    random: fastrand::Rng,
}

/// A mean that forgets slowly, and is the plain mean at first.
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
    /// A sample every `target` on average, using at most `budget` of a core. `seed` makes the jitter.
    pub fn new(target: Duration, budget: f64, seed: u64) -> Self {
        Self {
            target,
            budget,
            due: Duration::ZERO,
            cost: Mean::default(),
            gap: Mean::default(),
            last_start: None,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// When the next sample is due.
    pub fn due(&self) -> Duration {
        self.due
    }

    /// The interval in force: the target, or what the budget allows.
    pub fn interval(&self) -> Duration {
        if self.cost.count < WARM_UP {
            return self.target;
        }
        let affordable = self.cost.value / self.budget;
        self.target.max(Duration::from_secs_f64(affordable.min(3600.0)))
    }

    /// The mean gap between the starts of samples lately; `None` before the second.
    pub fn achieved(&self) -> Option<Duration> {
        self.gap.get().map(Duration::from_secs_f64)
    }

    /// A sample started at `start`, ended at `end` and used `cpu`. Gives how many samples were missed.
    pub fn sampled(&mut self, start: Duration, end: Duration, cpu: Duration) -> u64 {
        if let Some(last) = self.last_start.replace(start) {
            self.gap.add(start.saturating_sub(last).as_secs_f64());
            if self.gap.count > WARM_UP {
                self.cost.add(cpu.as_secs_f64());
            }
        }
        let interval = self.interval();
        self.due += interval.mul_f64(0.5 + self.random.f64());
        if self.due >= end {
            return 0;
        }
        let late = (end - self.due).as_secs_f64();
        self.due = end;
        1 + (late / interval.as_secs_f64()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(100);

    /// Runs `samples` samples that each take and cost `cost`; gives when the last began and how many were missed.
    fn run(schedule: &mut Schedule, samples: u32, cost: Duration) -> (Duration, u64) {
        let mut missed = 0;
        let mut start = Duration::ZERO;
        for _ in 0..samples {
            start = schedule.due();
            missed += schedule.sampled(start, start + cost, cost);
        }
        (start, missed)
    }

    #[test]
    fn gaps_vary_by_half_and_their_mean_is_the_interval() {
        let mut schedule = Schedule::new(TARGET, 0.02, 1);
        let (mut last, mut gaps) = (Duration::ZERO, Vec::new());
        for _ in 0..10_000 {
            schedule.sampled(last, last, Duration::ZERO);
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
        let missed = schedule.sampled(Duration::ZERO, end, Duration::ZERO);
        assert!((298..=300).contains(&missed), "{missed}");
        assert_eq!(schedule.due(), end);
    }
}
