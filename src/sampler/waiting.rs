//! The namespaces that were found and are not entered yet. To enter a namespace costs CPU time, so
//! the users who created the namespaces take turns: a user with very many namespaces does not delay
//! other users. Of one user, new namespaces come before those that existed at the start. Uses no
//! clock.
//!
//! The first readings of very many namespaces cost more than the CPU budget, and their readers more
//! memory than listenq may use. Therefore users other than root have limits ([`Entered`]).

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::kernel::namespaces::Entrance;
use crate::snapshot::NetnsId;
use crate::snapshot::owner::user_of;

/// Number of namespaces of each user that are entered at the start, before any pause.
const AT_START: usize = 32;
/// Number of namespaces that each user may always have entered.
const OF_A_USER: usize = 64;
/// Number of entered namespaces of all users above which no user may exceed [`OF_A_USER`].
const OF_ALL_USERS: usize = 512;
/// Namespaces of root, such as those of most containers, have no limits.
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
}

/// The entered namespaces of users other than root, with their users.
#[derive(Debug, Default)]
pub struct Entered(BTreeMap<NetnsId, u32>);

/// Which namespaces are entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Few of each user.
    AtStart,
    /// As many as the limits allow.
    Later,
    /// All, without limits.
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

// === impl Candidate ===

impl Candidate {
    /// Returns the user for whom the namespace counts.
    fn user(&self) -> u32 {
        self.made_by.map_or(ROOT, user_of)
    }
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

    /// Whether a namespace waits whose user may have one more.
    pub fn has_next(&self, which: Which, entered: &Entered) -> bool {
        self.makers.keys().any(|maker| entered.allows(which, *maker))
    }

    /// Adds a namespace.
    pub fn add(&mut self, candidate: Candidate) {
        self.remove(candidate.id);
        let (id, maker) = (candidate.id, candidate.user());
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

    /// Removes and returns the namespace to enter next; `None` if no user whose namespaces wait may
    /// have one more.
    pub fn pop(&mut self, which: Which, entered: &Entered) -> Option<Candidate> {
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.makers.range((after, Bound::Unbounded)).chain(&self.makers);
        let (maker, candidates) =
            next.into_iter().find(|(maker, _)| entered.allows(which, **maker))?;
        let (maker, candidate) = (*maker, candidates.values().next()?.clone());
        self.last = Some(maker);
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

// === impl Entered ===

impl Entered {
    /// Counts an entered namespace.
    pub fn add(&mut self, candidate: &Candidate) {
        let user = candidate.user();
        if user != ROOT {
            self.0.insert(candidate.id, user);
        }
    }

    /// Counts a namespace that was released.
    pub fn remove(&mut self, id: NetnsId) {
        self.0.remove(&id);
    }

    fn allows(&self, which: Which, user: u32) -> bool {
        let count = || self.0.values().filter(|of| **of == user).count();
        match which {
            _ if user == ROOT => true,
            Which::AtStart => count() < AT_START,
            Which::Later => self.0.len() < OF_ALL_USERS || count() < OF_A_USER,
            Which::All => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(id: u64, made_by: Option<u32>, is_newborn: bool) -> Candidate {
        let entrance = Entrance { path: "/proc/7/ns/net".into(), mount: None, pid: Some(7) };
        Candidate { id: NetnsId(id), entrance, made_by, is_newborn }
    }

    fn order(waiting: &mut Waiting) -> Vec<u64> {
        std::iter::from_fn(|| {
            waiting.pop(Which::All, &Entered::default()).map(|candidate| candidate.id.0)
        })
        .collect()
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
        (0..500).for_each(|_| _ = waiting.pop(Which::All, &Entered::default()));
        waiting.add(candidate(2_000, None, true));
        let place = order(&mut waiting).iter().position(|id| *id == 2_000);
        assert!(place.is_some_and(|place| place <= 1), "{place:?}");
    }

    /// Enters all namespaces that the limits allow. Returns how many of each user were entered.
    fn enter(waiting: &mut Waiting, entered: &mut Entered, which: Which) -> BTreeMap<u32, usize> {
        let mut counts = BTreeMap::new();
        while let Some(candidate) = waiting.pop(which, entered) {
            entered.add(&candidate);
            *counts.entry(candidate.user()).or_default() += 1;
        }
        counts
    }

    #[test]
    fn users_have_limits_and_root_has_none() {
        let (mut waiting, mut entered) = (Waiting::default(), Entered::default());
        (0..1_400).for_each(|id| waiting.add(candidate(id, Some(1000), false)));
        (2_000..3_000).for_each(|id| waiting.add(candidate(id, None, false)));
        waiting.add(candidate(4_000, Some(1001), false));
        let at_start = enter(&mut waiting, &mut entered, Which::AtStart);
        assert_eq!(at_start, [(ROOT, 1_000), (1000, AT_START), (1001, 1)].into());
        let later = enter(&mut waiting, &mut entered, Which::Later);
        assert_eq!(later, [(1000, OF_ALL_USERS - AT_START - 1)].into());
        // Another user may have some although all places are taken, and then no more.
        (5_000..5_100).for_each(|id| waiting.add(candidate(id, Some(1002), false)));
        let later = enter(&mut waiting, &mut entered, Which::Later);
        assert_eq!(later, [(1002, OF_A_USER)].into());
        // A namespace that ends makes room.
        (0..70).for_each(|id| entered.remove(NetnsId(id)));
        assert_eq!(enter(&mut waiting, &mut entered, Which::Later).values().sum::<usize>(), 6);
        assert_eq!(order(&mut waiting).len(), 1_400 + 100 - OF_ALL_USERS + 1 - OF_A_USER - 6);
        (0..6_000).for_each(|id| entered.remove(NetnsId(id)));
        assert!(entered.0.is_empty());
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
