//! Assigns a limited number of exposure places to candidates, troubled candidates first, and limits
//! how many new names each source adds.
//!
//! A name that was never exposed costs Prometheus new series. A new name of a young candidate is
//! added to the account of its source when the candidate gets its series. The name of a mature
//! candidate is added when the candidate is forgotten. Additional names of mature candidates are
//! therefore free, and only replaced names count. The account of a source shrinks by one name every
//! [`REFILL`].

use std::cmp::Reverse;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::exposure::{Exposure, Level, Rank};
use super::source::Source;

/// The time in which an account shrinks by one name: 100 names per hour.
const REFILL: Duration = Duration::from_secs(36);
/// How long a name is known after it was last exposed. Prometheus keeps the series in memory for
/// this time anyway.
const KNOWN: Duration = Duration::from_secs(3600);
/// The largest number of known names.
const MOST_KNOWN: usize = 8192;
/// The minimum time that a listener without trouble keeps its place before another listener without
/// trouble can take it.
const HOLD: Duration = Duration::from_secs(10);
/// The largest number of places that candidates without trouble take from others in one assignment.
const CALM_MOVES: usize = 32;

/// The number of names that the account of a source may hold before new names have to wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Limit for young candidates, which hold a queue.
    young: f64,
    /// Limit for candidates that existed for the whole probation.
    mature: f64,
    /// Limit for candidates in trouble.
    troubled: f64,
    /// The cost of one name, in units of one listener's series.
    weight: f64,
}

/// A limited number of exposure places, and the accounts that decide which candidates get them.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    taken: usize,
    omitted: usize,
    /// The limits of a source that root manages, then the limits of a user.
    limits: [Limits; 2],
    accounts: FxHashMap<Source, Account>,
    known: FxHashMap<u64, Duration>,
}

/// The number of names that a source added, as of `at`.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    names: f64,
    at: Duration,
}

/// One listener or namespace that has a place or waits for a place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<K> {
    /// The caller's key for the candidate.
    pub(super) key: K,
    /// Whether the candidate has series now.
    pub(super) exposure: Exposure,
    /// The priority of the candidate.
    pub(super) rank: Rank,
    /// The end of the candidate's probation.
    pub(super) due_at: Duration,
    /// The source that the candidate belongs to.
    pub(super) source: Source,
    /// A hash of the candidate's labels.
    pub(super) name: u64,
}

/// The candidates that get a place, each with whether its name is already paid for, and the
/// candidates that lose a place.
#[derive(Debug)]
pub(super) struct Changes<K> {
    pub(super) incoming: Vec<(K, bool)>,
    pub(super) outgoing: Vec<K>,
}

/// The candidates that hold a place during one assignment.
struct Holders<'a, K> {
    all: Vec<&'a Candidate<K>>,
    by_source: FxHashMap<Source, usize>,
}

// === impl Limits ===

impl Limits {
    /// Limits for listeners: of sources that root manages, and of users.
    pub(super) const LISTENERS: [Self; 2] = [
        Self { young: 10.0, mature: 100.0, troubled: 150.0, weight: 1.0 },
        Self { young: 10.0, mature: 30.0, troubled: 60.0, weight: 1.0 },
    ];
    /// Limits for namespaces. All namespaces made by root belong to one source, and a node may
    /// replace every pod at once.
    pub(super) const NAMESPACES: [Self; 2] = [
        Self { young: 10.0, mature: 1000.0, troubled: 1000.0, weight: 2.0 },
        Self { young: 4.0, mature: 16.0, troubled: 32.0, weight: 2.0 },
    ];
}

// === impl Account ===

impl Account {
    fn names_at(&self, now: Duration) -> f64 {
        let forgotten = now.saturating_sub(self.at).as_secs_f64() / REFILL.as_secs_f64();
        (self.names - forgotten).max(0.0)
    }

    fn add(&mut self, names: f64, now: Duration) {
        *self = Self { names: self.names_at(now) + names, at: now };
    }
}

// === impl Changes ===

impl<K> Changes<K> {
    /// The number of places assigned and removed.
    pub(super) fn len(&self) -> usize {
        self.incoming.len() + self.outgoing.len()
    }

    /// Replaces each key by `way(key)`.
    pub(super) fn map<L>(self, way: impl Fn(K) -> L) -> Changes<L> {
        Changes {
            incoming: self.incoming.into_iter().map(|(key, is_paid)| (way(key), is_paid)).collect(),
            outgoing: self.outgoing.into_iter().map(way).collect(),
        }
    }
}

// === impl Candidate ===

impl<K> Candidate<K> {
    /// The same candidate with another key.
    pub(super) fn with_key<L>(self, key: L) -> Candidate<L> {
        let Self { key: _, exposure, rank, due_at, source, name } = self;
        Candidate { key, exposure, rank, due_at, source, name }
    }

    fn is_troubled(&self) -> bool {
        self.rank.level >= Level::Troubled
    }
}

// === impl Places ===

impl Places {
    /// `max` free places.
    pub(super) fn new(max: usize, limits: [Limits; 2]) -> Self {
        Self {
            max,
            taken: 0,
            omitted: 0,
            limits,
            accounts: FxHashMap::default(),
            known: FxHashMap::default(),
        }
    }

    /// Whether a place is free.
    pub(super) fn has_room(&self) -> bool {
        self.taken < self.max
    }

    /// The number of candidates that should have a place and have none, as of the last assignment.
    pub(super) fn omitted(&self) -> usize {
        self.omitted
    }

    /// Releases the place of a forgotten candidate. Adds its name to the account of its source
    /// unless the name is paid for.
    pub(super) fn forget(&mut self, source: Source, name: u64, exposure: Exposure, now: Duration) {
        let Exposure::Exposed { is_paid, .. } = exposure else { return };
        self.taken -= 1;
        if !is_paid {
            self.add_name(source, now);
        }
        self.remember(name, now);
    }

    /// Releases the place of a candidate that still exists.
    pub(super) fn give_up(&mut self, name: u64, now: Duration) {
        self.taken -= 1;
        self.remember(name, now);
    }

    /// Adds one name, which the source added or replaced, to the account of the source.
    pub(super) fn add_name(&mut self, source: Source, now: Duration) {
        let weight = self.limits_of(source).weight;
        self.accounts.entry(source).or_default().add(weight, now);
    }

    fn limits_of(&self, source: Source) -> Limits {
        self.limits[usize::from(!source.is_managed())]
    }

    fn is_known(&self, name: u64, now: Duration) -> bool {
        self.known.get(&name).is_some_and(|shown_at| now.saturating_sub(*shown_at) < KNOWN)
    }

    /// Decides which candidates get a place and which candidates lose one.
    pub(super) fn assign<K: Copy + Ord>(
        &mut self,
        candidates: &[Candidate<K>],
        now: Duration,
    ) -> Changes<K> {
        self.accounts.retain(|_, account| account.names_at(now) > 0.0);
        let mut holders = Holders::of(candidates);
        let waiting = self.waiting(candidates, &holders, now);
        let mut changes = Changes { incoming: Vec::new(), outgoing: Vec::new() };
        self.omitted = waiting.len();
        let mut calm_moves = CALM_MOVES;
        for one in waiting {
            if !self.may_bring(one, now) {
                continue;
            }
            if !self.has_room() {
                if !one.is_troubled() && calm_moves == 0 {
                    continue;
                }
                calm_moves -= usize::from(!one.is_troubled());
                let Some(held) = holders.make_room_for(one, now) else { continue };
                changes.outgoing.push(held.key);
                self.omitted += usize::from(held.rank.level > Level::Closed);
                self.give_up(held.name, now);
            }
            let is_paid = self.take(one, now);
            *holders.by_source.entry(one.source).or_default() += 1;
            changes.incoming.push((one.key, is_paid));
        }
        changes
    }

    /// The candidates that should have a place: troubled candidates first, then sources in turns.
    fn waiting<'a, K: Copy + Ord>(
        &self,
        candidates: &'a [Candidate<K>],
        holders: &Holders<'_, K>,
        now: Duration,
    ) -> Vec<&'a Candidate<K>> {
        let is_due = |one: &&Candidate<K>| {
            one.exposure == Exposure::Hidden
                && one.rank.level > Level::Closed
                && (one.rank.level > Level::Calm
                    || now >= one.due_at
                    || self.is_known(one.name, now))
        };
        let mut waiting: Vec<_> = candidates.iter().filter(is_due).collect();
        waiting.sort_by_key(|one| (Reverse(one.rank), one.key));
        let mut turns = holders.by_source.clone();
        waiting.sort_by_cached_key(|one| {
            let turn = turns.entry(one.source).or_default();
            *turn += 1;
            // The sort is stable, so the ranks stay in order.
            (Reverse(one.rank.level), *turn)
        });
        waiting
    }

    /// Whether the source of this candidate may add another name.
    fn may_bring<K>(&self, one: &Candidate<K>, now: Duration) -> bool {
        if self.is_known(one.name, now) || one.rank.level == Level::Own {
            return true;
        }
        let names = self.accounts.get(&one.source).map_or(0.0, |account| account.names_at(now));
        let Limits { young, mature, troubled, weight: _ } = self.limits_of(one.source);
        let limit = match one.rank.level {
            Level::Past | Level::Troubled | Level::Own => troubled,
            _ if now < one.due_at => young,
            _ => mature,
        };
        names < limit
    }

    /// Gives a place to a candidate. Returns whether its name is paid for.
    fn take<K>(&mut self, one: &Candidate<K>, now: Duration) -> bool {
        self.taken += 1;
        self.omitted -= 1;
        let is_known = self.is_known(one.name, now);
        let is_young = now < one.due_at;
        if is_young && !is_known {
            self.add_name(one.source, now);
        }
        self.remember(one.name, now);
        is_young || is_known
    }

    /// Records that the name is exposed at `now`.
    fn remember(&mut self, name: u64, now: Duration) {
        self.known.insert(name, now);
        if self.known.len() > MOST_KNOWN {
            let mut times: Vec<Duration> = self.known.values().copied().collect();
            let (_, middle, _) = times.select_nth_unstable(MOST_KNOWN / 2);
            let oldest = (*middle).max(now.saturating_sub(KNOWN));
            self.known.retain(|_, at| *at >= oldest);
        }
    }
}

// === impl Holders ===

impl<'a, K: Copy + Ord> Holders<'a, K> {
    fn of(candidates: &'a [Candidate<K>]) -> Self {
        let all: Vec<_> = candidates.iter().filter(|one| one.exposure.is_exposed()).collect();
        let mut by_source = FxHashMap::default();
        for one in &all {
            *by_source.entry(one.source).or_default() += 1;
        }
        Self { all, by_source }
    }

    /// Removes the lowest-ranked holder that may lose its place to `one`. Among holders of equal
    /// level, removes one of the source that holds the most places.
    fn make_room_for(&mut self, one: &Candidate<K>, now: Duration) -> Option<&'a Candidate<K>> {
        let own = self.held_by(one.source);
        let may_lose =
            self.all.iter().enumerate().filter(|(_, held)| self.yields(held, one, own, now));
        let least = may_lose.min_by_key(|(_, held)| {
            (held.rank.level, Reverse(self.held_by(held.source)), held.rank, held.key)
        });
        let (place, _) = least?;
        let held = self.all.swap_remove(place);
        if let Some(count) = self.by_source.get_mut(&held.source) {
            *count -= 1;
        }
        Some(held)
    }

    fn held_by(&self, source: Source) -> usize {
        self.by_source.get(&source).copied().unwrap_or(0)
    }

    /// Whether `held` gives its place to `one`, whose source holds `own` places.
    fn yields(&self, held: &Candidate<K>, one: &Candidate<K>, own: usize, now: Duration) -> bool {
        let Exposure::Exposed { since, .. } = held.exposure else { return false };
        let (old, new) = (held.rank.level, one.rank.level);
        let theirs = self.held_by(held.source);
        // Balances the sources. The margin of one place prevents moves back and forth.
        let evens_out = theirs > own + 1;
        let is_long_held = now >= since + HOLD;
        match (old, new) {
            (Level::Own, _) => false,
            (Level::Closed, _) => true,
            (Level::Troubled, Level::Troubled) => evens_out,
            (_, Level::Troubled) => true,
            (Level::Past | Level::Troubled, _) => false,
            (Level::Calm, Level::Queued | Level::Past) => is_long_held && theirs >= own,
            _ => is_long_held && evens_out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::NetnsId;
    use crate::state::source::NameHash;

    const NOW: Duration = Duration::from_secs(1000);
    const USER: Source = Source::User(1000);
    const OTHER: Source = Source::Service { uid: 0, cgroup: 7 };

    /// A candidate after its probation, without a place.
    fn hidden(key: u32, source: Source, level: Level) -> Candidate<u32> {
        let rank = Rank { level, ..Rank::default() };
        let (exposure, name) = (Exposure::Hidden, key.into());
        Candidate { key, exposure, rank, due_at: Duration::ZERO, source, name }
    }

    /// The same candidate with a place.
    fn exposed(key: u32, source: Source, level: Level) -> Candidate<u32> {
        let exposure = Exposure::Exposed { since: Duration::ZERO, is_paid: false };
        Candidate { exposure, ..hidden(key, source, level) }
    }

    /// `max` places, some of which these candidates hold.
    fn places(max: usize, candidates: &[Candidate<u32>]) -> Places {
        let taken = candidates.iter().filter(|one| one.exposure.is_exposed()).count();
        Places { taken, ..Places::new(max, Limits::LISTENERS) }
    }

    /// The keys of the candidates that get a place and of the candidates that lose one.
    fn changes(max: usize, candidates: &[Candidate<u32>]) -> (Vec<u32>, Vec<u32>) {
        let Changes { incoming, outgoing } = places(max, candidates).assign(candidates, NOW);
        (incoming.into_iter().map(|(key, _)| key).collect(), outgoing)
    }

    #[test]
    fn free_places_go_to_listeners_in_trouble_first() {
        let all = [
            hidden(1, USER, Level::Calm),
            hidden(2, USER, Level::Troubled),
            hidden(3, USER, Level::Queued),
            hidden(4, USER, Level::Closed),
        ];
        assert_eq!(changes(2, &all), (vec![2, 3], vec![]));
        assert_eq!(changes(9, &all), (vec![2, 3, 1], vec![]));
    }

    #[test]
    fn free_places_are_shared_in_turns_between_sources() {
        let mut all: Vec<_> = (0..9).map(|key| hidden(key, USER, Level::Calm)).collect();
        all.extend((20..23).map(|key| hidden(key, OTHER, Level::Calm)));
        assert_eq!(changes(5, &all), (vec![0, 20, 1, 21, 2], vec![]));
    }

    /// Each row: level of the candidate that holds the only place, level of the candidate that
    /// waits, whether both belong to one source, and whether the place moves.
    #[test]
    fn a_listener_displaces_only_less_important_ones() {
        use Level::{Calm, Closed, Own, Past, Queued, Troubled};
        let table = [
            (Closed, Calm, true),
            (Closed, Troubled, true),
            (Calm, Calm, false),
            (Calm, Queued, true),
            (Calm, Troubled, true),
            (Queued, Calm, false),
            (Queued, Queued, false),
            (Queued, Troubled, true),
            (Past, Queued, false),
            (Past, Troubled, true),
            (Troubled, Troubled, false),
            (Own, Troubled, false),
        ];
        for (held, waiting, moves) in table {
            for source in [USER, OTHER] {
                let all = [exposed(1, source, held), hidden(2, USER, waiting)];
                let (incoming, outgoing) = changes(1, &all);
                assert_eq!(
                    (incoming.len(), outgoing.len()),
                    (moves.into(), moves.into()),
                    "{all:?}"
                );
            }
        }
    }

    #[test]
    fn a_source_with_many_places_gives_places_to_a_source_with_few() {
        for level in [Level::Calm, Level::Queued, Level::Troubled] {
            let mut all: Vec<_> = (0..6).map(|key| exposed(key, USER, level)).collect();
            all.extend((20..26).map(|key| hidden(key, OTHER, level)));
            let (incoming, outgoing) = changes(6, &all);
            assert_eq!((incoming, outgoing.len()), (vec![20, 21, 22], 3), "{level:?}");
        }
    }

    #[test]
    fn a_calm_listener_of_a_small_source_replaces_a_queued_one_of_a_large_source() {
        let mut all: Vec<_> = (0..6).map(|key| exposed(key, USER, Level::Queued)).collect();
        all.push(hidden(20, OTHER, Level::Calm));
        assert_eq!(changes(6, &all), (vec![20], vec![0]));
        let fresh = Exposure::Exposed { since: NOW - HOLD / 2, is_paid: false };
        all.iter_mut().filter(|one| one.key < 6).for_each(|one| one.exposure = fresh);
        assert_eq!(changes(6, &all), (vec![], vec![]));
    }

    #[test]
    fn a_new_idle_listener_waits_for_its_probation() {
        let young = |level| Candidate { due_at: NOW + HOLD, ..hidden(1, USER, level) };
        assert_eq!(changes(1, &[young(Level::Calm)]).0, [0; 0]);
        assert_eq!(changes(1, &[young(Level::Queued)]).0, [1]);
        let mut places = places(1, &[]);
        assert!(places.assign(&[young(Level::Calm)], NOW).incoming.is_empty());
        assert_eq!(places.omitted(), 0);
    }

    /// Every second for an hour, a new listener tries to get a place and is then forgotten. Returns
    /// how many listeners got a place.
    fn shown_within_an_hour(source: Source, level: Level, age: Duration) -> usize {
        let (mut places, mut shown) = (places(1000, &[]), 0);
        for second in 0..3600 {
            let now = NOW + Duration::from_secs(second);
            let due_at = now + Duration::from_secs(15) - age;
            let one = Candidate { due_at, ..hidden(second as u32, source, level) };
            for (key, is_paid) in places.assign(&[one], now).incoming {
                shown += 1;
                let exposure = Exposure::Exposed { since: now, is_paid };
                places.forget(source, key.into(), exposure, now);
            }
        }
        shown
    }

    #[test]
    fn a_source_that_replaces_its_listeners_gets_series_for_few_of_them() {
        let old = Duration::from_secs(16);
        let young = Duration::from_secs(1);
        let table = [
            (USER, Level::Queued, young, 10),
            (USER, Level::Calm, old, 30),
            (USER, Level::Troubled, young, 60),
            (OTHER, Level::Queued, young, 10),
            (OTHER, Level::Calm, old, 100),
            (OTHER, Level::Troubled, young, 150),
            (Source::Netns(NetnsId(7), NameHash::default()), Level::Calm, old, 100),
        ];
        for (source, level, age, burst) in table {
            let shown = shown_within_an_hour(source, level, age);
            let expected = burst + 3600 / REFILL.as_secs() as usize;
            assert!(shown.abs_diff(expected) <= 2, "{source} {level:?}: {shown} of {expected}");
        }
    }

    #[test]
    fn additional_names_and_known_names_are_free() {
        let all: Vec<_> = (0..500).map(|key| hidden(key, USER, Level::Calm)).collect();
        let mut places = places(1000, &[]);
        for round in 0..3 {
            let now = NOW + Duration::from_secs(60 * round);
            let incoming = places.assign(&all, now).incoming;
            assert_eq!(incoming.len(), 500);
            for (key, is_paid) in incoming {
                assert_eq!(is_paid, round > 0);
                let exposure = Exposure::Exposed { since: now, is_paid };
                places.forget(USER, key.into(), exposure, now);
            }
        }
        // Every name was replaced once: other names wait for hours.
        let now = NOW + Duration::from_secs(200);
        let others: Vec<_> = (500..600).map(|key| hidden(key, USER, Level::Calm)).collect();
        assert_eq!((places.assign(&others, now).incoming.len(), places.omitted()), (0, 100));
        let another = [hidden(700, OTHER, Level::Calm)];
        assert_eq!(places.assign(&another, now).incoming.len(), 1);
    }

    #[test]
    fn of_too_many_known_names_the_oldest_are_forgotten() {
        let mut places = places(1, &[]);
        for name in 0..3 * MOST_KNOWN as u64 {
            places.remember(name, NOW + Duration::from_millis(name));
        }
        let last = 3 * MOST_KNOWN as u64 - 1;
        assert!(places.known.len() <= MOST_KNOWN && places.is_known(last, NOW));
        assert!(!places.is_known(0, NOW) && !places.is_known(last, NOW + 2 * KNOWN));
    }
}
