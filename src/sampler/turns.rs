//! Decides how often each namespace is read, so that all namespaces together stay within a share of
//! a core. Uses no clock.
//!
//! Max-min fairness divides the share, first among the users who created the namespaces, then among
//! the namespaces of each user: a user or namespace that needs less than an equal part gets all of
//! its need, and the rest is divided again. Cheap namespaces are therefore read in every sample.
//! Neither a namespace with very many listeners nor a user with very many namespaces reduces how
//! often another namespace is read. listenq's own namespace is not included: it has a separate
//! share.
//!
//! Whole dumps have a separate part of the share, at most a quarter of it unless the other readings
//! need less: most listeners are known, and their queues are read between dumps. It is divided in
//! the same way, by the dumps that each namespace needs. Dumps of the Unix listeners come as often
//! as their own share allows, and the first dump of a namespace is made at once: these two delay no
//! other reading of their namespace, and leave less to all namespaces.

use std::collections::BTreeMap;
use std::time::Duration;

use super::dumps::{Allowed, DumpAccount};

/// Interval between divisions of the share.
const DIVIDE: Duration = Duration::from_secs(1);
/// Assumed cost of a namespace that was never read.
const UNKNOWN_COST: Duration = Duration::from_micros(100);
/// Assumed need for whole dumps of a namespace that was never read, as a share of a core. If it
/// exceeds the budget, the dumps after the first one wait for their share.
const UNKNOWN_DUMPS: f64 = 0.000_1;
/// Minimum part of the share for readings without a whole dump.
const PLAIN_PART: f64 = 0.75;
/// Maximum time for which unused share is saved. Some readings cost much more than others, for
/// example the readings of settings.
const MOST_SAVED: Duration = Duration::from_millis(250);
/// Maximum gap between two readings, in mean intervals.
const LATE: u32 = 3;
/// Number of namespaces of one user that begin with a reserve of dumps.
const MOST_RESERVES: usize = 64;
/// Maximum interval between readings of a namespace.
const SLOWEST: Duration = Duration::from_secs(600);

/// Reading times of one namespace.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// User who created the namespace.
    maker: u32,
    /// Mean cost of a reading without a whole dump.
    cost: MeanCost,
    /// Share of a core for readings without a whole dump.
    share: f64,
    /// CPU time saved at `saved_at`, in seconds; negative if the last readings cost more than was
    /// saved.
    saved: f64,
    saved_at: Duration,
    dumps: DumpAccount,
    /// Cost since the last division of readings that wait for no share: dumps of the Unix
    /// listeners, and the first whole dump.
    unshared: Duration,
    read_at: Option<Duration>,
    gap: Duration,
}

/// Mean cost of about the last 16 readings.
#[derive(Clone, Copy, Debug, Default)]
struct MeanCost {
    value: Duration,
    count: u32,
}

/// Cost of a reading. A higher cost counts at once, a lower cost gradually.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    known: Option<Duration>,
    /// Whether only one reading was measured. The first one allocates memory and costs more.
    is_first: bool,
}

/// The share of all namespaces, and the time of its last division.
#[derive(Debug, Default)]
pub struct Turns {
    divided_at: Option<Duration>,
}

/// The shares of a core that the readings of one namespace need.
struct Needs<'a> {
    turn: &'a mut Turn,
    /// The share for readings without a whole dump.
    plain: f64,
    /// The share for whole dumps.
    dumps: f64,
}

/// Whether a reading was a whole dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DumpOutcome {
    /// No dump was due.
    NotDue,
    /// A dump was due and not allowed.
    Postponed,
    /// The reading was a dump.
    Made,
}

// === impl Cost ===

impl Cost {
    /// Adds a measured cost.
    pub fn add(&mut self, cost: Duration) {
        const FORGET: u32 = 16;
        let before = self.known.filter(|_| !self.is_first).unwrap_or(cost);
        self.is_first = self.known.is_none();
        self.known = Some(match cost > before {
            true => (before + cost) / 2,
            false => before - (before - cost) / FORGET,
        });
    }

    /// Returns the cost; `None` before the first measurement.
    pub fn known(self) -> Option<Duration> {
        self.known
    }
}

// === impl MeanCost ===

impl MeanCost {
    fn add(&mut self, cost: Duration) {
        const MEMORY: u32 = 16;
        // The first reading allocates memory and costs more.
        let cost = if self.count == 0 { cost.min(UNKNOWN_COST) } else { cost };
        self.count = (self.count + 1).min(MEMORY);
        self.value = (self.value * (self.count - 1) + cost) / self.count;
    }

    fn get(self) -> Duration {
        if self.count == 0 { UNKNOWN_COST } else { self.value }
    }
}

// === impl Turn ===

impl Turn {
    /// Creates the turn of a namespace created by the user `maker`, due at once.
    pub fn new(maker: u32) -> Self {
        let (cost, dumps) = (MeanCost::default(), DumpAccount::default());
        let (saved_at, unshared, gap) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        let (share, saved, read_at) = (f64::INFINITY, 0.0, None);
        Self { maker, cost, share, saved, saved_at, dumps, unshared, read_at, gap }
    }

    /// Creates the turn of another namespace. Beyond 64 namespaces of one user it has no reserve of
    /// dumps: the reserves of very many namespaces would cost more than the share.
    pub fn among(turns: &[Self], maker: u32) -> Self {
        let mut turn = Self::new(maker);
        if turns.iter().filter(|turn| turn.maker == maker).count() >= MOST_RESERVES {
            turn.dumps = DumpAccount::without_reserve();
        }
        turn
    }

    /// Whether the namespace is due at `now`.
    pub fn is_due(&self, now: Duration) -> bool {
        // The cost of an expensive reading is spread over several later readings, so that it does
        // not delay only the next one.
        let is_late = |at| now.saturating_sub(at) >= (self.period() * LATE).min(SLOWEST);
        self.saved(now) >= 0.0 || self.read_at.is_none_or(is_late)
    }

    /// Records a reading at `now` with this cost, of which a dump of the Unix listeners took
    /// `unix`.
    pub fn read(&mut self, now: Duration, cost: Duration, unix: Duration, dump: DumpOutcome) {
        let is_first_dump = self.read_at.is_none() && dump == DumpOutcome::Made;
        self.unshared += if is_first_dump { cost } else { unix };
        let cost = cost.saturating_sub(unix);
        self.gap = self.read_at.replace(now).map_or(Duration::ZERO, |at| now.saturating_sub(at));
        if dump != DumpOutcome::NotDue {
            self.dumps.wanted();
        }
        match dump {
            DumpOutcome::Made => self.dumps.made(now, cost),
            _ => self.pay(now, cost),
        }
    }

    fn pay(&mut self, now: Duration, cost: Duration) {
        self.cost.add(cost);
        (self.saved, self.saved_at) = (self.saved(now) - cost.as_secs_f64(), now);
    }

    fn set_share(&mut self, now: Duration, share: f64) {
        (self.saved, self.saved_at) = (self.saved(now), now);
        self.share = share;
    }

    /// Returns the CPU time saved at `now`, in seconds.
    fn saved(&self, now: Duration) -> f64 {
        // With an unbounded share, no savings are needed.
        if self.share.is_infinite() {
            return 0.0;
        }
        let gained = self.share * now.saturating_sub(self.saved_at).as_secs_f64();
        (self.saved + gained).min(self.share * MOST_SAVED.as_secs_f64())
    }

    /// Returns the whole dumps that are allowed at `now`.
    pub fn dumps(&self, now: Duration) -> Allowed {
        self.dumps.allowed(now)
    }

    /// Returns the interval of whole dumps that the share allows.
    pub fn dump_interval(&self) -> Duration {
        self.dumps.interval()
    }

    /// Returns the target interval of the namespace; `None` if it is read in every sample.
    pub fn interval(&self) -> Option<Duration> {
        self.share.is_finite().then(|| self.gap.max(self.period()))
    }

    fn period(&self) -> Duration {
        let seconds = self.cost.get().as_secs_f64() / self.share;
        Duration::from_secs_f64(seconds.min(SLOWEST.as_secs_f64()))
    }
}

// === impl Turns ===

impl Turns {
    /// Divides `budget`, a share of a core, among `turns` if a division is due. `interval` is the
    /// gap between two samples.
    pub fn divide<'a>(
        &mut self,
        now: Duration,
        interval: Duration,
        budget: f64,
        turns: impl Iterator<Item = &'a mut Turn>,
    ) {
        let since = self.divided_at.map_or(DIVIDE, |at| now.saturating_sub(at));
        if since < DIVIDE {
            return;
        }
        self.divided_at = Some(now);
        let mut unshared = Duration::ZERO;
        let needs = turns.map(|turn| {
            unshared += std::mem::take(&mut turn.unshared);
            Needs::new(turn, interval, since)
        });
        let mut needs: Vec<Needs<'_>> = needs.collect();
        let unshared = unshared.as_secs_f64() / since.as_secs_f64();
        let budget = (budget - unshared).max(budget / 2.0);
        let plain: f64 = needs.iter().map(|one| one.plain).sum();
        let dumps: f64 = needs.iter().map(|one| one.dumps).sum();
        let plain = plain.min((budget - dumps).max(budget * PLAIN_PART));
        let dumps = dumps.min(budget - plain);
        let plain_shares = shares(&needs, |one| one.plain, budget - dumps);
        let dump_shares = shares(&needs, |one| one.dumps, budget - plain);
        for ((one, plain), dumps) in needs.iter_mut().zip(plain_shares).zip(dump_shares) {
            one.turn.set_share(now, plain);
            one.turn.dumps.set_share(now, dumps);
        }
    }

    /// Forces a division before the next sample, because namespaces appeared or ended.
    pub fn forget(&mut self) {
        self.divided_at = None;
    }
}

// === impl Needs ===

impl<'a> Needs<'a> {
    /// Returns the needs of a namespace. `interval` is the interval between samples, and `since`
    /// the time since the last division.
    fn new(turn: &'a mut Turn, interval: Duration, since: Duration) -> Self {
        let plain = turn.cost.get().as_secs_f64() / interval.as_secs_f64();
        let dumps = match turn.read_at {
            Some(_) => turn.dumps.need(since),
            None => UNKNOWN_DUMPS,
        };
        Self { turn, plain, dumps }
    }
}

/// Divides `total` first among the makers, then among the namespaces of each maker. Returns the
/// share of each namespace. A share that covers the whole need is infinite: the namespace is then
/// read in every sample, whatever its jitter.
fn shares(all: &[Needs<'_>], need: impl Fn(&Needs<'_>) -> f64, total: f64) -> Vec<f64> {
    let mut makers: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    for one in all {
        makers.entry(one.turn.maker).or_default().push(need(one));
    }
    let of_makers: Vec<f64> = makers.values().map(|needs| needs.iter().sum()).collect();
    let most = fair_level(&of_makers, total);
    let level_of = |((maker, needs), need): ((&u32, &Vec<f64>), &f64)| {
        (*maker, fair_level(needs, need.min(most)))
    };
    let levels: BTreeMap<u32, f64> = makers.iter().zip(&of_makers).map(level_of).collect();
    let share = |one: &Needs<'_>| {
        let level = levels[&one.turn.maker];
        if need(one) <= level { f64::INFINITY } else { level }
    };
    all.iter().map(share).collect()
}

/// Returns the largest share per consumer such that all together use at most `total`. A consumer
/// that needs less leaves the rest to the others.
fn fair_level(needs: &[f64], total: f64) -> f64 {
    let mut sorted = needs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (mut left, mut others) = (total, sorted.len());
    for need in sorted {
        let equal = left / others as f64;
        if need > equal {
            return equal;
        }
        left -= need;
        others -= 1;
    }
    f64::INFINITY
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(100);
    const BUDGET: f64 = 0.01;

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    /// Takes `samples` samples. `cost` returns the cost of reading a namespace in a sample, and the
    /// cost of dumping its Unix listeners. Calls `read` with each reading and its whole cost.
    fn simulate(
        turns: &mut [Turn],
        samples: u32,
        cost: impl Fn(u32, usize) -> [Duration; 2],
        mut read: impl FnMut(u32, usize, Duration),
    ) {
        let mut all = Turns::default();
        for nth in 0..samples {
            let now = INTERVAL * nth;
            all.divide(now, INTERVAL, BUDGET, turns.iter_mut());
            for (place, turn) in turns.iter_mut().enumerate().filter(|(_, turn)| turn.is_due(now)) {
                let [plain, unix] = cost(nth, place);
                turn.read(now, plain + unix, unix, DumpOutcome::NotDue);
                read(nth, place, plain + unix);
            }
        }
    }

    /// Runs `turns` for `seconds`. Returns how often each namespace is read, and the share of a
    /// core that all of them used.
    fn run_costs(
        mut turns: Vec<Turn>,
        seconds: u32,
        cost: impl Fn(u32, usize) -> [Duration; 2],
    ) -> (Vec<u32>, f64) {
        // The first readings measure the cost of each namespace.
        const FIRST: u32 = 20;
        let (mut reads, mut used) = (vec![0; turns.len()], Duration::ZERO);
        simulate(&mut turns, FIRST + seconds * 10, cost, |nth, place, cost| {
            if nth >= FIRST {
                reads[place] += 1;
                used += cost;
            }
        });
        (reads, used.as_secs_f64() / f64::from(seconds))
    }

    /// Runs namespaces given by maker and cost of a reading.
    fn run(namespaces: &[(u32, Duration)], seconds: u32) -> (Vec<u32>, f64) {
        let turns = namespaces.iter().map(|(maker, _)| Turn::new(*maker)).collect();
        run_costs(turns, seconds, |_, place| [namespaces[place].1, Duration::ZERO])
    }

    fn equal(namespaces: usize) -> Vec<Turn> {
        (0..namespaces).map(|_| Turn::new(0)).collect()
    }

    /// Whether the sample is the one in `samples` at which something happens in a namespace.
    fn once_in(samples: usize, nth: u32, place: usize) -> bool {
        (nth as usize + place).is_multiple_of(samples)
    }

    #[test]
    fn the_level_gives_the_unused_part_of_a_share_to_other_consumers() {
        assert_eq!(fair_level(&[1.0, 2.0], 4.0), f64::INFINITY);
        assert_eq!(fair_level(&[4.0, 4.0], 4.0), 2.0);
        assert_eq!(fair_level(&[1.0, 9.0, 9.0], 5.0), 2.0);
        assert_eq!(fair_level(&[], 5.0), f64::INFINITY);
    }

    #[test]
    fn a_few_cheap_namespaces_are_read_in_every_sample() {
        let (reads, used) = run(&[(0, micros(20)); 40], 60);
        assert!(reads.iter().all(|reads| *reads == 600) && used < BUDGET, "{used}");
    }

    #[test]
    fn a_costly_namespace_delays_no_other() {
        let mut namespaces = [(0, micros(20)); 40];
        namespaces[0].1 = Duration::from_millis(15);
        let (reads, used) = run(&namespaces, 60);
        assert!(reads[1..].iter().all(|reads| *reads == 600), "{reads:?}");
        assert!((5..30).contains(&reads[0]) && used <= 1.05 * BUDGET, "{} {used}", reads[0]);
    }

    #[test]
    fn a_user_with_very_many_namespaces_delays_no_other_user() {
        let mut namespaces = vec![(1000, micros(30)); 1_400];
        namespaces.extend([(0, micros(30)); 10]);
        namespaces.extend([(1001, micros(30)); 2]);
        let (reads, used) = run(&namespaces, 60);
        assert!(reads[1_400..].iter().all(|reads| *reads == 600), "{:?}", &reads[1_400..]);
        assert!(reads[..1_400].iter().all(|reads| *reads >= 8) && used <= 1.1 * BUDGET, "{used}");
    }

    #[test]
    fn dumps_of_unix_listeners_delay_no_reading_and_are_within_the_budget() {
        // Each namespace dumps its Unix listeners once in ten seconds.
        let (reads, used) = run_costs(equal(40), 60, |nth, place| {
            [micros(10), micros(if once_in(100, nth, place) { 1_000 } else { 0 })]
        });
        assert!(reads.iter().all(|reads| *reads == 600), "{reads:?}");
        assert!(used <= 1.05 * BUDGET, "{used:?}");
    }

    #[test]
    fn an_expensive_reading_does_not_delay_the_next_one_for_long() {
        let (mut last, mut longest) = ([Duration::ZERO; 20], Duration::ZERO);
        let cost = |nth, place| {
            let is_expensive = nth == 0 || once_in(1_000, nth, place);
            [micros(if is_expensive { 10_000 } else { 300 }), Duration::ZERO]
        };
        simulate(&mut equal(20), 1_200, cost, |nth, place, _| {
            longest = longest.max(INTERVAL * nth - last[place]);
            last[place] = INTERVAL * nth;
        });
        // One of these costs is the share of a namespace for 13 s.
        assert!(longest < Duration::from_secs(8), "{longest:?}");
    }

    #[test]
    fn readings_that_cost_much_more_than_others_count_by_their_mean() {
        // Once in two seconds a reading costs 300 µs: the need is twelve tenths of the budget.
        let (reads, share) = run_costs(equal(40), 60, |nth, place| {
            [micros(if once_in(20, nth, place) { 300 } else { 16 }), Duration::ZERO]
        });
        assert!(reads.iter().all(|reads| *reads >= 300), "{reads:?}");
        assert!((0.7 * BUDGET..=1.1 * BUDGET).contains(&share), "{share}");
    }

    #[test]
    fn dumps_after_the_first_one_of_very_many_new_namespaces_wait_for_their_share() {
        let made_in_5_s = |namespaces: usize| {
            let mut turns = Vec::new();
            (0..namespaces).for_each(|_| turns.push(Turn::among(&turns, 1_000)));
            let (mut all, mut made) = (Turns::default(), vec![0; namespaces]);
            for now in (0..50).map(|nth| INTERVAL * nth) {
                all.divide(now, INTERVAL, BUDGET, turns.iter_mut());
                for (turn, made) in turns.iter_mut().zip(&mut made) {
                    let is_made = *made < 4 && turn.dumps(now) == Allowed::All;
                    let outcome = if is_made { DumpOutcome::Made } else { DumpOutcome::NotDue };
                    let cost = Duration::from_millis(if is_made { 1 } else { 0 });
                    turn.read(now, cost, Duration::ZERO, outcome);
                    *made += u32::from(is_made);
                }
            }
            made
        };
        assert!(made_in_5_s(600)[MOST_RESERVES..].iter().all(|made| *made == 1));
        assert!(made_in_5_s(5).iter().all(|made| *made == 4));
    }

    #[test]
    fn one_overrun_lengthens_the_interval_at_once() {
        let mut turn = Turn::new(0);
        // A quarter of this is for the first dump.
        let budget = 0.000_1 / PLAIN_PART;
        Turns::default().divide(Duration::ZERO, INTERVAL, budget, std::iter::once(&mut turn));
        turn.read(Duration::ZERO, micros(20), Duration::ZERO, DumpOutcome::NotDue);
        turn.read(Duration::ZERO, micros(20), Duration::ZERO, DumpOutcome::NotDue);
        assert!(turn.is_due(Duration::from_millis(400)));
        turn.read(
            Duration::from_millis(200),
            Duration::from_millis(5),
            Duration::ZERO,
            DumpOutcome::NotDue,
        );
        assert!(
            !turn.is_due(Duration::from_secs(40))
                && turn.interval() > Some(Duration::from_secs(10))
        );
        assert!(turn.is_due(Duration::from_secs(60)));
    }
}
