//! Schedules the next sample. Uses no clock.
//!
//! The interval is jittered, so that no periodic server is sampled in phase, and stretched when
//! samples cost more than their share of a core.
//!
//! Whole dumps of the own namespace are not counted in this interval: they have a budget of their
//! own ([`dumps`](super::dumps)), so that expensive dumps come less often while the listeners that
//! hold a queue are still sampled at the target interval. Each of the two budgets may use the
//! unused rest of the other one. Dumps may use at least a quarter, and the other samples three
//! quarters.
//!
//! Other namespaces than listenq's own are read in turn ([`turns`](super::turns)), for at least
//! half of the budget; their cost is not counted here. A sample that costs more than a second's
//! budget delays the next sample at once.
//!
//! If the background tasks exceed their budget ([`background`](super::background)), the samples
//! use less by that: whole dumps and the other namespaces come less often first.

use std::time::Duration;

use super::background::Background;
use super::dumps::{Allowed, DumpAccount};
use super::turns::DumpOutcome;

/// Approximate number of samples in the mean.
const MEMORY: f64 = 32.0;

/// Number of samples after which a lower and a higher cost count as typical, approximately.
const TYPICAL_FALLS: f64 = 4.0;
const TYPICAL_RISES: f64 = 64.0;

/// Number of samples at the start whose cost does not count, because nothing is cached yet. The
/// mean cost of the same number of samples after these is not yet reliable.
const WARM_UP: f64 = 10.0;

/// Minimum part of the budget of the own namespace for whole dumps.
const DUMPS: f64 = 0.25;
/// Part of the budget for dumps of Unix listeners: of the own namespace, and of all others
/// together.
const UNIX_PART: f64 = 0.125;

/// Minimum part of the budget that the background tasks leave.
const KEPT: f64 = 0.5;

/// Maximum time for which unused budget is saved, in seconds.
const BURST: f64 = 3.0;
/// Maximum delay after a costly sample, in seconds.
const LONGEST_PAUSE: f64 = 60.0;

/// Times of samples, on the sampler's own clock.
#[derive(Debug)]
pub struct Schedule {
    target: Duration,
    /// The configured budget.
    whole_budget: f64,
    /// The budget without the share that the background tasks need.
    budget: f64,
    due: Duration,
    /// Cost of a sample without a whole dump of the own namespace.
    cost: Mean,
    /// Cost of most of these samples. Some samples also do work that is due once a second, for
    /// example update the diagnoses: a longer interval would save none of that work.
    typical: Option<f64>,
    /// Cost of whole dumps of the own namespace, in every sample.
    dump_cost: Mean,
    dumps: DumpAccount,
    /// Cost of the other namespaces.
    others: Mean,
    /// Cost of all namespaces.
    all: Mean,
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
            whole_budget: budget,
            budget,
            due: Duration::ZERO,
            cost: Mean::default(),
            typical: None,
            dump_cost: Mean::default(),
            dumps: DumpAccount::default(),
            others: Mean::default(),
            all: Mean::default(),
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
        let affordable = self.typical.unwrap_or(0.0) / self.plain_budget();
        self.target.max(Duration::from_secs_f64(affordable.min(3600.0)))
    }

    /// Returns the share of a core for the other namespaces: the rest of the budget, and at least
    /// half.
    pub fn others_budget(&self) -> f64 {
        let own = self.cost.value / self.interval().as_secs_f64() + self.dump_share();
        (self.budget - own).max(self.budget / 2.0)
    }

    /// Returns the share of a core for dumps of the Unix listeners of each of `namespaces`.
    pub fn unix_share(&self, namespaces: usize) -> f64 {
        self.budget * UNIX_PART / namespaces.max(1) as f64
    }

    /// Returns the whole dumps of the own namespace that are allowed at `now`.
    pub fn dumps(&self, now: Duration) -> Allowed {
        self.dumps.allowed(now)
    }

    /// Returns the interval of whole dumps of the own namespace that the budget allows.
    pub fn dump_interval(&self) -> Duration {
        self.dumps.interval()
    }

    /// Returns the share of a core that whole dumps of the own namespace use.
    fn dump_share(&self) -> f64 {
        self.gap.get().map_or(0.0, |gap| self.dump_cost.value / gap)
    }

    /// Returns the budget of samples without a whole dump. Background tasks do not reduce its
    /// minimum: they delay dumps and the other namespaces, not the samples of the own namespace.
    fn plain_budget(&self) -> f64 {
        let own = self.own_budget();
        let least = self.whole_budget / 2.0 * (1.0 - DUMPS);
        (own - self.dump_share()).max(own * (1.0 - DUMPS)).max(least)
    }

    /// Leaves the background tasks the share by which they exceed their budget, and keeps a part of
    /// its own budget.
    pub fn balance(&mut self, tasks: &Background, now: Duration) {
        let excess = tasks.balance(now, self.wanted(), self.whole_budget);
        self.budget = (self.whole_budget - excess).max(self.whole_budget * KEPT);
    }

    /// Returns the share of a core that samples use; the whole budget if samples would use more
    /// than the background tasks leave.
    fn wanted(&self) -> f64 {
        const NEARLY: f64 = 0.8;
        let used = self.gap.get().map_or(0.0, |gap| self.all.value / gap);
        if used < NEARLY * self.budget { used } else { used.max(self.whole_budget) }
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
    /// other namespaces. `dump` is the outcome of the whole dump of the own namespace. Returns the
    /// number of missed samples.
    pub fn sampled(
        &mut self,
        start: Duration,
        end: Duration,
        [cpu, others]: [Duration; 2],
        dump: DumpOutcome,
    ) -> u64 {
        if let Some(last) = self.last_start.replace(start) {
            let gap = start.saturating_sub(last).as_secs_f64();
            self.gap.add(gap);
            if self.gap.count > WARM_UP {
                self.others.add(others.as_secs_f64());
                self.all.add((cpu + others).as_secs_f64());
                self.count(start, gap, cpu, dump);
            }
        }
        let interval = self.interval();
        self.due += interval.mul_f64(0.5 + self.random.f64());
        let missed = match end.checked_sub(self.due).filter(|late| !late.is_zero()) {
            Some(late) => 1 + (late.as_secs_f64() / interval.as_secs_f64()) as u64,
            None => 0,
        };
        let pause = (self.debt / self.plain_budget()).clamp(0.0, LONGEST_PAUSE);
        let paid = start + Duration::from_secs_f64(pause);
        self.due = self.due.max(paid);
        if missed > 0 {
            self.due = self.due.max(end);
        }
        missed
    }

    /// Adds the cost of the own namespace.
    fn count(&mut self, now: Duration, gap: f64, cpu: Duration, dump: DumpOutcome) {
        let is_dump = dump == DumpOutcome::Made;
        self.dump_cost.add(if is_dump { cpu.as_secs_f64() } else { 0.0 });
        if is_dump {
            self.dumps.made(now, cpu);
        } else {
            let cpu = cpu.as_secs_f64();
            self.cost.add(cpu);
            if self.cost.count >= WARM_UP {
                self.pay(gap, cpu);
            }
            let typical = *self.typical.get_or_insert(cpu);
            let pace = if cpu < typical { TYPICAL_FALLS } else { TYPICAL_RISES };
            self.typical = Some(typical + (cpu - typical) / pace);
        }
        let own = self.own_budget();
        let plain = self.cost.value / self.target.as_secs_f64();
        self.dumps.set_share(now, (own - plain).max(own * DUMPS));
    }

    /// Adds the budget of `gap` seconds and the cost of a sample to the debt.
    fn pay(&mut self, gap: f64, cost: f64) {
        let budget = self.plain_budget();
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
            missed +=
                schedule.sampled(start, start + cost, [cost, Duration::ZERO], DumpOutcome::NotDue);
        }
        (start, missed)
    }

    #[test]
    fn gaps_vary_by_half_and_their_mean_is_the_interval() {
        let mut schedule = Schedule::new(TARGET, 0.02, 1);
        let (mut last, mut gaps) = (Duration::ZERO, Vec::new());
        for _ in 0..10_000 {
            schedule.sampled(last, last, [Duration::ZERO; 2], DumpOutcome::NotDue);
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
    fn costly_first_samples_do_not_stretch_the_interval() {
        let mut schedule = Schedule::new(TARGET, 0.02, 1);
        run(&mut schedule, 10, Duration::from_millis(80));
        run(&mut schedule, 50, Duration::from_millis(1));
        assert_eq!(schedule.interval(), TARGET);
    }

    #[test]
    fn samples_missed_in_a_stall_are_counted_and_not_repeated() {
        let mut schedule = Schedule::new(TARGET, 0.02, 1);
        let end = Duration::from_secs(30);
        let missed =
            schedule.sampled(Duration::ZERO, end, [Duration::ZERO; 2], DumpOutcome::NotDue);
        assert!((298..=300).contains(&missed), "{missed}");
        assert_eq!(schedule.due(), end);
    }

    #[test]
    fn one_overrun_delays_the_next_sample_at_once() {
        let mut schedule = Schedule::new(TARGET, 0.02, 1);
        run(&mut schedule, 200, Duration::from_millis(1));
        let start = schedule.due();
        schedule.sampled(
            start,
            start,
            [Duration::from_millis(100), Duration::ZERO],
            DumpOutcome::NotDue,
        );
        // The budget of three seconds, 60 ms, is saved.
        let pause = (schedule.due() - start).as_secs_f64();
        assert!((1.5..2.5).contains(&pause), "{pause}");
    }

    #[test]
    fn other_namespaces_have_half_of_the_budget_and_the_unused_rest() {
        let mut schedule = Schedule::new(TARGET, 0.02, 1);
        let mut sample = |own, others| {
            for _ in 0..200 {
                let start = schedule.due();
                let costs = [own, others].map(Duration::from_micros);
                schedule.sampled(start, start, costs, DumpOutcome::NotDue);
            }
            (schedule.others_budget(), schedule.interval().as_millis())
        };
        let (budget, interval) = sample(100, 1_800);
        assert!((0.018..0.0195).contains(&budget) && interval == 100, "{budget} {interval}");
        let (budget, interval) = sample(4_000, 1_000);
        assert!(budget == 0.01 && (230..=300).contains(&interval), "{budget} {interval}");
    }

    #[test]
    fn costly_dumps_come_less_often_and_delay_no_sample() {
        let mut schedule = Schedule::new(TARGET, 0.02, 1);
        let (dump_cost, plain) = (Duration::from_millis(40), Duration::from_micros(300));
        let (mut samples, mut dumps, mut used) = (0, 0, Duration::ZERO);
        while schedule.due() < Duration::from_secs(120) {
            let start = schedule.due();
            let dump = match schedule.dumps(start) {
                Allowed::All => DumpOutcome::Made,
                _ => DumpOutcome::Postponed,
            };
            let cost = if dump == DumpOutcome::Made { dump_cost } else { plain };
            schedule.sampled(start, start + cost, [cost, Duration::ZERO], dump);
            if start > Duration::from_secs(20) {
                samples += 1;
                dumps += u32::from(dump == DumpOutcome::Made);
                used += cost;
            }
        }
        assert!((960..=1_020).contains(&samples), "{samples}");
        // The rest of the budget, 17 ms each second, allows a dump every 2.4 s.
        assert!((38..=45).contains(&dumps), "{dumps}");
        let share = used.as_secs_f64() / 100.0;
        assert!((0.018..0.0205).contains(&share), "{share}");
    }

    #[test]
    fn background_tasks_beyond_their_budget_delay_dumps_and_no_sample() {
        let (mut schedule, background) = (Schedule::new(TARGET, 0.02, 1), Background::default());
        let (dump_cost, plain) = (Duration::from_millis(40), Duration::from_micros(300));
        let (mut samples, mut used, mut last) = (0, Duration::ZERO, Duration::ZERO);
        while schedule.due() < Duration::from_secs(220) {
            let start = schedule.due();
            let is_dump = schedule.dumps(start) == Allowed::All;
            let (dump, cost) = match is_dump {
                true => (DumpOutcome::Made, dump_cost),
                false => (DumpOutcome::Postponed, plain),
            };
            schedule.sampled(start, start + cost, [cost, Duration::ZERO], dump);
            // The tasks use a hundredth of a core, 0.75 % more than their budget.
            background.spend(start, (start - last) / 100);
            schedule.balance(&background, start);
            last = start;
            if start > Duration::from_secs(120) {
                (samples, used) = (samples + 1, used + cost);
            }
        }
        assert!((950..=1_020).contains(&samples), "{samples}");
        let share = used.as_secs_f64() / 100.0;
        assert!((0.011..0.013_5).contains(&share), "{share}");
    }

    #[test]
    fn costly_samples_leave_a_quarter_to_dumps_and_dumps_leave_the_rest_to_samples() {
        let mut schedule = Schedule::new(TARGET, 0.02, 1);
        let (mut samples, mut used, mut on_dumps) = (0, Duration::ZERO, Duration::ZERO);
        while schedule.due() < Duration::from_secs(220) {
            let start = schedule.due();
            let is_dump = schedule.dumps(start) == Allowed::All;
            let (dump, cost) = match is_dump {
                true => (DumpOutcome::Made, Duration::from_millis(40)),
                false => (DumpOutcome::Postponed, Duration::from_micros(2_500)),
            };
            schedule.sampled(start, start + cost, [cost, Duration::ZERO], dump);
            if start > Duration::from_secs(20) {
                samples += u32::from(!is_dump);
                used += cost;
                on_dumps += if is_dump { cost } else { Duration::ZERO };
            }
        }
        // 15 of the 20 ms per second allow six samples.
        assert!((1_100..=1_250).contains(&samples), "{samples}");
        let shares = [used, on_dumps].map(|used| used.as_secs_f64() / 200.0);
        assert!((0.018..0.0215).contains(&shares[0]), "{shares:?}");
        assert!((0.004..0.006).contains(&shares[1]), "{shares:?}");
    }

    #[test]
    fn work_due_once_a_second_does_not_stretch_the_interval() {
        let mut schedule = Schedule::new(TARGET, 0.02, 1);
        let (mut samples, mut used, mut worked) = (0, Duration::ZERO, Duration::ZERO);
        // Starts with a stall, after which every sample does the work that is due once a second.
        for _ in 0..40 {
            let start = schedule.due() + Duration::from_secs(1);
            schedule.sampled(
                start,
                start,
                [Duration::from_millis(5), Duration::ZERO],
                DumpOutcome::NotDue,
            );
            worked = start;
        }
        let begin = schedule.due();
        while schedule.due() < begin + Duration::from_secs(200) {
            let start = schedule.due();
            let mut cost = Duration::from_micros(300);
            if start - worked >= Duration::from_secs(1) {
                (worked, cost) = (start, Duration::from_millis(5));
            }
            schedule.sampled(start, start + cost, [cost, Duration::ZERO], DumpOutcome::NotDue);
            if start - begin > Duration::from_secs(100) {
                (samples, used) = (samples + 1, used + cost);
            }
        }
        assert!(samples >= 950, "{samples}");
        assert!(used < Duration::from_secs(1), "{used:?}");
    }

    #[test]
    fn cheap_dumps_are_made_in_every_sample() {
        let mut schedule = Schedule::new(TARGET, 0.02, 1);
        for _ in 0..1_000 {
            let start = schedule.due();
            assert_eq!(schedule.dumps(start), Allowed::All);
            let cost = Duration::from_micros(500);
            schedule.sampled(start, start + cost, [cost, Duration::ZERO], DumpOutcome::Made);
        }
        assert_eq!(schedule.interval(), TARGET);
    }
}
