//! The namespaces that were found and are not entered yet. To enter a namespace costs CPU time, so
//! the users who created the namespaces take turns: a user with very many namespaces does not delay
//! other users. Of one user, new namespaces come before those that existed at the start. Uses no
//! clock.
//!
//! At the start only some namespaces of each user are entered without a pause, see [`AT_START`].

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::kernel::namespaces::Entrance;
use crate::snapshot::NetnsId;
use crate::snapshot::owner::user_of;

/// Number of namespaces that are entered at the start for each user except root. The first readings
/// of very many namespaces cost more than the CPU budget of samples, so the others are entered
/// later. Namespaces of root, such as those of most containers, have no such limit.
const AT_START: usize = 32;
const ROOT: u32 = 0;

/// Namespaces to enter.
#[derive(Debug, Default)]
pub struct Waiting {
    /// The candidates of each user, the next one first.
    makers: BTreeMap<u32, BTreeMap<Rank, Candidate>>,
    /// The user and the rank of each candidate.
    places: BTreeMap<NetnsId, (u32, Rank)>,
    /// The user whose namespace was returned last.
    last: Option<u32>,
    /// Number of namespaces of each user that were returned for the start.
    at_start: BTreeMap<u32, usize>,
}

/// Which namespaces are entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// A limited number for each user.
    AtStart,
    All,
}

/// Whether the namespace existed at the start, and its id: new namespaces come first.
type Rank = (bool, NetnsId);

/// A namespace to enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub id: NetnsId,
    pub entrance: Entrance,
    /// User who created the namespace, unless that user is root.
    pub made_by: Option<u32>,
    /// Whether the namespace appeared while listenq was running.
    pub is_newborn: bool,
}

// === impl Waiting ===

impl Waiting {
    /// Returns the ids of the namespaces.
    pub fn ids(&self) -> impl Iterator<Item = NetnsId> {
        self.places.keys().copied()
    }

    /// Whether no namespace waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Adds a namespace.
    pub fn add(&mut self, candidate: Candidate) {
        self.remove(candidate.id);
        let (id, maker) = (candidate.id, candidate.made_by.map_or(ROOT, user_of));
        let rank = (!candidate.is_newborn, id);
        self.places.insert(id, (maker, rank));
        self.makers.entry(maker).or_default().insert(rank, candidate);
    }

    /// Returns the namespace with this id.
    pub fn get_mut(&mut self, id: NetnsId) -> Option<&mut Candidate> {
        let (maker, rank) = self.places.get(&id)?;
        self.makers.get_mut(maker)?.get_mut(rank)
    }

    /// Removes every namespace for which `stays` returns false.
    pub fn retain(&mut self, stays: impl Fn(NetnsId) -> bool) {
        let ended: Vec<NetnsId> = self.ids().filter(|id| !stays(*id)).collect();
        ended.into_iter().for_each(|id| self.remove(id));
    }

    /// Removes and returns the namespace to enter next.
    pub fn pop(&mut self, which: Which) -> Option<Candidate> {
        let has_room = |maker: u32| {
            let entered = self.at_start.get(&maker).copied().unwrap_or_default();
            which == Which::All || maker == ROOT || entered < AT_START
        };
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.makers.range((after, Bound::Unbounded)).chain(&self.makers);
        let (maker, candidates) = next.into_iter().find(|(maker, _)| has_room(**maker))?;
        let (maker, candidate) = (*maker, candidates.values().next()?.clone());
        self.last = Some(maker);
        if which == Which::AtStart {
            *self.at_start.entry(maker).or_default() += 1;
        }
        self.remove(candidate.id);
        Some(candidate)
    }

    fn remove(&mut self, id: NetnsId) {
        let Some((maker, rank)) = self.places.remove(&id) else { return };
        if let Some(candidates) = self.makers.get_mut(&maker) {
            candidates.remove(&rank);
            if candidates.is_empty() {
                self.makers.remove(&maker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    fn candidate(id: u64, made_by: Option<u32>, is_newborn: bool) -> Candidate {
        let entrance = Entrance { path: "/proc/7/ns/net".into(), mount: None, pid: Some(7) };
        Candidate { id: NetnsId(id), entrance, made_by, is_newborn }
    }

    fn order(waiting: &mut Waiting) -> Vec<u64> {
        std::iter::from_fn(|| waiting.pop(Which::All).map(|candidate| candidate.id.0)).collect()
    }

    #[test]
    fn users_take_turns_and_new_namespaces_of_a_user_come_first() {
        let mut waiting = Waiting::default();
        (1..=4).for_each(|id| waiting.add(candidate(id, Some(1000), false)));
        (11..=12).for_each(|id| waiting.add(candidate(id, None, false)));
        waiting.add(candidate(99, None, true));
        waiting.add(candidate(21, Some(1001), false));
        assert_eq!(waiting.ids().count(), 8);
        assert_eq!(order(&mut waiting), [99, 1, 21, 11, 2, 12, 3, 4]);
        assert!(waiting.is_empty() && waiting.makers.is_empty());
    }

    #[test]
    fn a_new_namespace_waits_for_one_namespace_of_each_other_user() {
        let mut waiting = Waiting::default();
        (1..=1_400).for_each(|id| waiting.add(candidate(id, Some(1000), false)));
        (0..500).for_each(|_| _ = waiting.pop(Which::All));
        waiting.add(candidate(2_000, None, true));
        let place = order(&mut waiting).iter().position(|id| *id == 2_000);
        assert!(place.is_some_and(|place| place <= 1), "{place:?}");
    }

    #[test]
    fn at_the_start_users_have_a_limit_and_root_has_none() {
        let mut waiting = Waiting::default();
        (0..1_400).for_each(|id| waiting.add(candidate(id, Some(1000), false)));
        (2_000..2_300).for_each(|id| waiting.add(candidate(id, None, false)));
        waiting.add(candidate(3_000, Some(1001), false));
        let at_start: Vec<u64> =
            std::iter::from_fn(|| Some(waiting.pop(Which::AtStart)?.id.0)).collect();
        let count = |ids: Range<u64>| at_start.iter().filter(|id| ids.contains(id)).count();
        assert_eq!([count(0..1_400), count(2_000..2_300), count(3_000..3_001)], [AT_START, 300, 1]);
        assert_eq!(order(&mut waiting).len(), 1_400 - AT_START);
    }

    #[test]
    fn a_namespace_waits_once_and_not_after_its_end() {
        let mut waiting = Waiting::default();
        waiting.add(candidate(1, Some(1000), false));
        waiting.add(candidate(1, None, true));
        waiting.add(candidate(2, None, false));
        assert_eq!(waiting.get_mut(NetnsId(1)).map(|candidate| candidate.made_by), Some(None));
        waiting.retain(|id| id.0 == 2);
        assert_eq!(order(&mut waiting), [2]);
    }
}
