//! Decides whether trouble at a listener began with more arrivals or with a slower server: a pure
//! function over the history of accepted connections, queue length, full time and overflows.
//!
//! Two facts are proof. A server that accepts fewer connections than before while clients wait is
//! slower. A queue that admits more connections than before has more arrivals. Refusals prove
//! nothing: a refused client tries again. Where neither fact is certain, there is no answer.

use serde::{Deserialize, Serialize};

/// The seconds of one slot of the history.
pub const SLOT_SECONDS: f64 = 5.0;
/// Trouble that ended this number of slots ago is over.
const OVER: usize = 6;
/// The number of slots without trouble that do not end it.
const GAP: usize = 2;
/// The minimum and maximum number of slots before the trouble that are compared.
const BEFORE: std::ops::RangeInclusive<usize> = 6..=24;
/// The number of slots from the beginning of the trouble that are compared.
const AFTER: usize = 24;
/// Clients count as waiting for the server at this mean wait in seconds, or a longer one.
const WAIT: f64 = 0.2;
/// The server counts as slower at this ratio to its rate before the trouble, or a lower one.
const SLOWER: f64 = 0.8;
/// Arrivals count as more at this ratio to their rate before the trouble, or a higher one.
const MORE: f64 = 1.25;
/// A difference of this number of standard errors, or more, is not chance.
const CERTAIN: f64 = 4.0;
/// The minimum number of connections from which a rate is computed.
const FEWEST: f64 = 20.0;

/// The activity of a listener within one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slot {
    /// Connections accepted.
    pub accepted: u32,
    /// Overflows attributed to the listener.
    pub overflows: u32,
    /// The queue length at the end of the slot.
    pub length: u32,
    /// The queue length integrated over the slot, in seconds.
    pub waited: f32,
    /// The seconds for which the queue was full.
    pub full: f32,
}

/// How the trouble began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Beginning {
    /// More connections arrived than before.
    MoreArrivals,
    /// The server accepted fewer connections than before while clients waited.
    SlowerServer,
}

/// The beginning of the trouble with the rates that prove it, per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Onset {
    pub beginning: Beginning,
    /// Connections that arrived, and were accepted, before the trouble.
    pub before: f64,
    /// For more arrivals: a lower bound of the arrivals since the trouble began. For a slower
    /// server: the connections that it accepted while clients waited.
    pub after: f64,
}

/// The trouble that the end of a history shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trouble {
    /// The history ends without trouble.
    None,
    /// The trouble began before the history, or so long ago that its onset was already decided.
    Earlier,
    /// The trouble began with this slot.
    Since(usize, Option<Onset>),
}

/// The connections per slot, as a mean over several slots.
#[derive(Clone, Copy, Debug)]
struct Mean {
    value: f64,
    variance: f64,
    slots: f64,
}

// === impl Slot ===

impl Slot {
    /// Whether clients were refused or waited.
    fn is_trouble(&self) -> bool {
        self.overflows > 0 || self.full >= 1.0 || self.waits()
    }

    /// Whether clients waited for the server, so that its pace decided how many were accepted.
    fn is_limited_by_server(&self) -> bool {
        f64::from(self.full) >= SLOT_SECONDS / 2.0 || self.waits()
    }

    fn waits(&self) -> bool {
        let waited = f64::from(self.waited);
        waited >= SLOT_SECONDS && waited >= WAIT * f64::from(self.accepted)
    }
}

// === impl Mean ===

impl Mean {
    fn new(slots: &[Slot]) -> Self {
        let count = slots.len() as f64;
        let accepted = || slots.iter().map(|slot| f64::from(slot.accepted));
        let value = accepted().sum::<f64>() / count;
        let squares: f64 = accepted().map(|one| (one - value).powi(2)).sum();
        // Independent arrivals vary by their number.
        let variance = (squares / (count - 1.0).max(1.0)).max(value).max(1.0);
        Self { value, variance, slots: count }
    }

    /// Whether the mean of `slots` other slots differs by more than chance explains.
    fn differs(&self, other: f64, slots: usize) -> bool {
        let error = (self.variance * (1.0 / self.slots + 1.0 / slots as f64)).sqrt();
        (other - self.value).abs() >= CERTAIN * error
    }
}

/// Finds the trouble that lasts at the end of `history`, and how it began. All slots are known; the
/// oldest is first.
pub fn find(history: &[Slot]) -> Trouble {
    let Some(first) = first_of_trouble(history) else { return Trouble::None };
    let is_decided = history.len() - first > AFTER;
    if is_decided || first < *BEFORE.start() {
        return Trouble::Earlier;
    }
    let calm = &history[..first];
    let earlier = calm.iter().rposition(Slot::is_trouble).map_or(0, |last| last + 1);
    let calm = &calm[earlier.max(first.saturating_sub(*BEFORE.end()))..];
    let onset = match calm.len() < *BEFORE.start() {
        true => None,
        false => compare(calm, &history[first..]),
    };
    Trouble::Since(first, onset)
}

/// The index at which the trouble began that lasts at the end of the history.
fn first_of_trouble(history: &[Slot]) -> Option<usize> {
    let last = history.iter().rposition(Slot::is_trouble)?;
    if last + OVER < history.len() {
        return None;
    }
    let mut first = last;
    while let Some(earlier) =
        history[first.saturating_sub(GAP + 1)..first].iter().position(Slot::is_trouble)
    {
        first = first.saturating_sub(GAP + 1) + earlier;
    }
    Some(first)
}

fn compare(calm: &[Slot], trouble: &[Slot]) -> Option<Onset> {
    let before = Mean::new(calm);
    let length = calm.last().map_or(0, |slot| slot.length);
    let more = more_arrivals(&before, length, trouble);
    let slower = slower_server(&before, trouble);
    match (more, slower) {
        (Some((_, onset)), None) | (None, Some((_, onset))) => Some(onset),
        // Clients of a slow server try again, and an overloaded server becomes slow. The trouble
        // began with the earlier fact, if it is at least one whole slot earlier.
        (Some((certain, onset)), Some((began, _))) => {
            (began > 1 && certain < began).then_some(onset)
        }
        (None, None) => None,
    }
}

/// The slot of the trouble in which more arrivals than before are certain, and the rates.
///
/// Each connection that a queue admits is one arrival; arrivals that the queue refuses are not
/// counted.
fn more_arrivals(before: &Mean, length: u32, trouble: &[Slot]) -> Option<(usize, Onset)> {
    let mut accepted = 0.0;
    for (nth, slot) in trouble.iter().enumerate() {
        accepted += f64::from(slot.accepted);
        let slots = nth + 1;
        let admitted = accepted + f64::from(slot.length) - f64::from(length);
        let mean = admitted / slots as f64;
        let is_more = admitted - before.value * slots as f64 >= FEWEST
            && mean >= MORE * before.value
            && before.differs(mean, slots);
        if is_more {
            return Some((nth, onset(Beginning::MoreArrivals, before, mean)));
        }
    }
    None
}

/// The first slot of the trouble in which the server is slower than before, and the rates. The
/// first slot of the trouble also contains time before it.
fn slower_server(before: &Mean, trouble: &[Slot]) -> Option<(usize, Onset)> {
    let limited =
        || trouble.iter().enumerate().skip(1).filter(|(_, slot)| slot.is_limited_by_server());
    let slots = limited().count();
    let accepted: f64 = limited().map(|(_, slot)| f64::from(slot.accepted)).sum();
    let mean = accepted / slots.max(1) as f64;
    let is_slower = slots >= 2
        && before.value * slots as f64 >= FEWEST
        && mean <= SLOWER * before.value
        && before.differs(mean, slots);
    let is_slow = |slot: &Slot| f64::from(slot.accepted) <= SLOWER * before.value;
    let began = limited().find(|(_, slot)| is_slow(slot)).map_or(0, |(nth, _)| nth);
    is_slower.then(|| (began, onset(Beginning::SlowerServer, before, mean)))
}

fn onset(beginning: Beginning, before: &Mean, after: f64) -> Onset {
    Onset { beginning, before: before.value / SLOT_SECONDS, after: after / SLOT_SECONDS }
}

// === impl Beginning ===

impl Beginning {
    /// The words of a sentence: `with more arrivals`.
    pub const fn words(self) -> &'static str {
        match self {
            Self::MoreArrivals => "more arrivals",
            Self::SlowerServer => "a slower server",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server with a queue of 129 places, simulated in steps of 100 ms, and clients that try
    /// again after a refusal.
    struct Scene {
        history: Vec<Slot>,
        length: f64,
        again: f64,
    }

    impl Scene {
        fn new() -> Self {
            Self { history: Vec::new(), length: 0.0, again: 0.0 }
        }

        /// Adds slots with these arrivals and this capacity per second.
        fn run(mut self, slots: usize, arrivals: f64, capacity: f64) -> Self {
            for nth in 0..slots {
                // Arrivals vary by a few percent from slot to slot.
                let wobble = 1.0 + 0.04 * (nth as f64 * 2.4).sin();
                let slot = self.slot(arrivals * wobble, capacity);
                self.history.push(slot);
            }
            self
        }

        fn slot(&mut self, arrivals: f64, capacity: f64) -> Slot {
            let (mut slot, mut accepted, mut refused) = (Slot::default(), 0.0, 0.0);
            for _ in 0..50 {
                let offered = self.length + arrivals / 10.0 + self.again / 10.0;
                self.again -= self.again / 10.0;
                let served = offered.min(capacity / 10.0);
                let left = offered - served;
                let over = (left - 129.0).max(0.0);
                self.again += over;
                self.length = left - over;
                accepted += served;
                refused += over;
                slot.waited += (self.length * 0.1) as f32;
                slot.full += if over > 0.0 { 0.1 } else { 0.0 };
            }
            slot.accepted = accepted.round() as u32;
            slot.overflows = refused.round() as u32;
            slot.length = self.length.round() as u32;
            slot
        }

        fn found(&self) -> Option<Onset> {
            match find(&self.history) {
                Trouble::Since(_, onset) => onset,
                Trouble::None | Trouble::Earlier => None,
            }
        }
    }

    #[track_caller]
    fn assert_beginning(scene: Scene, expected: Option<Beginning>) {
        let found = scene.found();
        assert_eq!(found.map(|onset| onset.beginning), expected, "{found:?}");
    }

    const MORE_ARRIVALS: Option<Beginning> = Some(Beginning::MoreArrivals);
    const SLOWER_SERVER: Option<Beginning> = Some(Beginning::SlowerServer);

    #[test]
    fn doubled_arrivals_are_more_arrivals() {
        for capacity in [110.0, 150.0, 180.0] {
            let scene = Scene::new().run(24, 100.0, capacity).run(6, 300.0, capacity);
            assert_beginning(scene, MORE_ARRIVALS);
        }
        // Connections arrive at a listener that had none before.
        assert_beginning(Scene::new().run(24, 0.0, 50.0).run(4, 80.0, 50.0), MORE_ARRIVALS);
    }

    #[test]
    fn a_server_that_accepts_fewer_is_slower() {
        for capacity in [0.0, 10.0, 50.0, 70.0] {
            let scene = Scene::new().run(24, 100.0, 500.0).run(6, 100.0, capacity);
            assert_beginning(scene, SLOWER_SERVER);
        }
        let scene = Scene::new().run(24, 100.0, 500.0).run(6, 100.0, 20.0);
        let onset = scene.found().unwrap();
        assert!((onset.before - 100.0).abs() < 2.0 && (onset.after - 20.0).abs() < 2.0);
    }

    #[test]
    fn retries_at_a_slow_server_are_not_more_arrivals() {
        // Each client comes back with three others.
        let scene = Scene::new().run(24, 100.0, 500.0).run(2, 110.0, 30.0).run(10, 400.0, 30.0);
        assert_beginning(scene, SLOWER_SERVER);
    }

    #[test]
    fn a_server_that_slows_down_under_load_began_with_more_arrivals() {
        let scene = Scene::new().run(24, 100.0, 300.0).run(4, 400.0, 300.0).run(6, 400.0, 20.0);
        assert_beginning(scene, MORE_ARRIVALS);
    }

    #[test]
    fn a_server_is_slower_whatever_arrives() {
        for arrivals in [60.0, 400.0] {
            let scene = Scene::new().run(24, 100.0, 500.0).run(6, arrivals, 20.0);
            assert_beginning(scene, SLOWER_SERVER);
        }
    }

    #[test]
    fn uncertain_histories_have_no_answer() {
        for (name, scene) in [
            ("no trouble", Scene::new().run(60, 100.0, 500.0)),
            (
                "fewer arrivals without a queue",
                Scene::new().run(30, 100.0, 500.0).run(6, 10.0, 500.0),
            ),
            (
                "more arrivals without a queue",
                Scene::new().run(30, 100.0, 900.0).run(6, 500.0, 900.0),
            ),
            ("trouble from the beginning", Scene::new().run(12, 100.0, 20.0)),
            ("too little is known before", Scene::new().run(4, 100.0, 500.0).run(6, 100.0, 20.0)),
            ("too few connections", Scene::new().run(24, 0.1, 50.0).run(6, 0.5, 0.0)),
            (
                "trouble that is over",
                Scene::new().run(20, 100.0, 500.0).run(4, 100.0, 20.0).run(8, 100.0, 500.0),
            ),
            (
                "it had no reserve, and has one tenth more",
                Scene::new().run(24, 100.0, 104.1).run(6, 110.0, 104.1),
            ),
            (
                "a stop of a server whose clients try again",
                Scene::new().run(24, 2.0, 50.0).run(6, 20.0, 0.0),
            ),
        ] {
            assert_eq!(scene.found(), None, "{name}");
        }
    }

    #[test]
    fn bursts_that_also_came_before_prove_nothing() {
        let mut scene = Scene::new();
        for _ in 0..10 {
            scene = scene.run(1, 600.0, 900.0).run(2, 10.0, 900.0);
        }
        // The same burst meets a pause of the server of 5 s.
        let calm = scene.history.iter().all(|slot| !slot.is_trouble());
        assert!(calm);
        assert_beginning(scene.run(1, 600.0, 0.0).run(1, 10.0, 900.0), None);
    }

    #[test]
    fn a_gap_of_ten_seconds_does_not_end_the_trouble() {
        let scene = Scene::new().run(24, 100.0, 500.0).run(3, 100.0, 20.0);
        let scene = scene.run(2, 100.0, 900.0).run(4, 100.0, 20.0);
        assert!(matches!(find(&scene.history), Trouble::Since(24, Some(_))));
    }

    #[test]
    fn an_old_beginning_is_decided() {
        let scene = Scene::new().run(24, 100.0, 500.0).run(25, 100.0, 20.0);
        assert_eq!(find(&scene.history), Trouble::Earlier);
    }
}
