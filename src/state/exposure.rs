//! Which listeners have series: those that the filters let through, and of these at most so many. Who is left
//! out is still watched, so that every overflow stays accounted for.

use std::cmp::Reverse;
use std::time::Duration;

use regex::Regex;

use crate::view::ListenerName;

/// For so long at least a listener keeps its series.
const HOLD: Duration = Duration::from_secs(10);

/// Which listeners may have series at all: the regular expressions look at `netns/protocol/address:port`.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only listeners that match.
    pub include: Option<Regex>,
    /// Not those that match.
    pub exclude: Option<Regex>,
}

/// Whether a listener has series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exposure {
    /// It has, since then.
    Exposed(Duration),
    /// It has not, because there are too many.
    Omitted,
    /// It has not, because a filter says so.
    Excluded,
}

/// How much a listener is worth showing: overflows first, then a long queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Charged while it was watched.
    pub(super) overflows: u64,
    /// Its peak.
    pub(super) peak: u32,
}

/// Who comes in: the filter, the cap, and how the places stand.
#[derive(Debug)]
pub(super) struct Admission {
    filter: Filter,
    max: usize,
    exposed: usize,
    omitted: usize,
    checked_at: Duration,
}

/// One listener before the cap, with a way back to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<K> {
    /// The way back.
    pub(super) key: K,
    /// Whether it has series now.
    pub(super) exposure: Exposure,
    /// How much it is worth.
    pub(super) rank: Rank,
    /// Whether it has a socket.
    pub(super) is_open: bool,
}

// === impl Filter ===

impl Filter {
    /// Whether a listener of namespace `netns` may have series.
    pub fn admits(&self, netns: &str, name: &ListenerName) -> bool {
        // Nearly always: then there is no text to make.
        let is_open = self.include.is_none() && self.exclude.is_none();
        is_open || self.admits_text(&name.described(netns))
    }

    /// Whether a listener may be shown that is called so: `netns/protocol/address:port`.
    pub fn admits_text(&self, text: &str) -> bool {
        self.include.as_ref().is_none_or(|include| include.is_match(text))
            && !self.exclude.as_ref().is_some_and(|exclude| exclude.is_match(text))
    }
}

// === impl Exposure ===

impl Exposure {
    /// Whether it means to have series.
    pub(super) fn is_exposed(self) -> bool {
        matches!(self, Self::Exposed(_))
    }

    fn is_older_than(self, age: Duration, now: Duration) -> bool {
        matches!(self, Self::Exposed(since) if now >= since + age)
    }
}

// === impl Candidate ===

impl<K> Candidate<K> {
    /// The same listener, known by a longer way.
    pub(super) fn with_key<L>(&self, key: L) -> Candidate<L> {
        let Self { key: _, exposure, rank, is_open } = *self;
        Candidate { key, exposure, rank, is_open }
    }

    /// Whether it has series and showed nothing but zeroes.
    fn is_idle(&self) -> bool {
        self.exposure.is_exposed() && self.rank == Rank::default()
    }
}

// === impl Admission ===

impl Admission {
    /// At most `max` of the listeners that `filter` lets through have series.
    pub(super) fn new(filter: Filter, max: usize) -> Self {
        Self { filter, max, exposed: 0, omitted: 0, checked_at: Duration::ZERO }
    }

    /// Listeners that have no series for want of places.
    pub(super) fn omitted(&self) -> usize {
        self.omitted
    }

    /// A new listener: out if the filter says so, in if there is a place.
    pub(super) fn enter(&mut self, netns: &str, name: &ListenerName, now: Duration) -> Exposure {
        if !self.filter.admits(netns, name) {
            Exposure::Excluded
        } else if self.exposed < self.max {
            self.exposed += 1;
            Exposure::Exposed(now)
        } else {
            self.omitted += 1;
            Exposure::Omitted
        }
    }

    /// A listener that is forgotten, or changes places.
    pub(super) fn leave(&mut self, exposure: Exposure) {
        match exposure {
            Exposure::Exposed(_) => self.exposed -= 1,
            Exposure::Omitted => self.omitted -= 1,
            Exposure::Excluded => {}
        }
    }

    /// A listener takes the place that was found for it.
    pub(super) fn expose(&mut self) {
        self.omitted -= 1;
        self.exposed += 1;
    }

    /// A listener gives its place away.
    pub(super) fn omit(&mut self) {
        self.exposed -= 1;
        self.omitted += 1;
    }

    /// Whether it is time to look who deserves a place: only if somebody waits, and once a second is enough.
    pub(super) fn is_due(&mut self, now: Duration) -> bool {
        let is_due = self.omitted > 0 && now >= self.checked_at + Duration::from_secs(1);
        if is_due {
            self.checked_at = now;
        }
        is_due
    }

    /// Who comes in and who goes out. Free places go to the highest rank. Of listeners that never held a queue or
    /// overflowed, a closed one gives its place to any open one, and an open one soon to a busy one: whoever showed
    /// trouble stays for the grace time at least.
    pub(super) fn changes<K: Copy + Ord>(
        &self,
        candidates: &[Candidate<K>],
        now: Duration,
    ) -> (Vec<K>, Vec<K>) {
        let waits = |one: &&Candidate<K>| one.exposure == Exposure::Omitted && one.is_open;
        let mut waiting: Vec<_> = candidates.iter().filter(waits).collect();
        waiting.sort_by_key(|one| (Reverse(one.rank), one.key));
        let room = self.max.saturating_sub(self.exposed).min(waiting.len());
        let (free, rest) = waiting.split_at(room);
        let idle = || candidates.iter().filter(|one| one.is_idle());
        let closed: Vec<K> = idle().filter(|one| !one.is_open).map(|one| one.key).collect();
        let (any, rest) = rest.split_at(closed.len().min(rest.len()));
        let long_idle = idle().filter(|one| one.is_open && one.exposure.is_older_than(HOLD, now));
        let busy = rest.iter().filter(|one| one.rank > Rank::default());
        let (taking, giving): (Vec<K>, Vec<K>) =
            busy.zip(long_idle).map(|(busy, idle)| (busy.key, idle.key)).unzip();
        let incoming = free.iter().chain(any).map(|one| one.key).chain(taking).collect();
        let outgoing = closed.into_iter().take(any.len()).chain(giving).collect();
        (incoming, outgoing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::GRACE;
    use crate::view::Protocol;

    fn name(protocol: Protocol, address: &str, port: &str) -> ListenerName {
        ListenerName { protocol, address: address.into(), port: port.into() }
    }

    fn candidate(key: u32, exposure: Exposure, overflows: u64) -> Candidate<u32> {
        Candidate { key, exposure, rank: Rank { overflows, peak: 0 }, is_open: true }
    }

    #[test]
    fn filters_look_at_the_whole_name() {
        let filter = |include, exclude| Filter {
            include: Option::map(include, |text| Regex::new(text).unwrap()),
            exclude: Option::map(exclude, |text| Regex::new(text).unwrap()),
        };
        let (tcp, unix) = (name(Protocol::Tcp, "::", "80"), name(Protocol::Unix, "/run/a", ""));
        assert!(filter(None, None).admits("host", &tcp));
        assert!(filter(Some("^host/tcp/::?:80$"), None).admits("host", &tcp));
        assert!(!filter(Some("^host/tcp/"), None).admits("pod", &tcp));
        assert!(!filter(Some("unix/run/a$"), None).admits("host", &unix));
        assert!(filter(Some("unix//run/a$"), None).admits("host", &unix));
        assert!(!filter(Some("host"), Some("/run/")).admits("host", &unix));
    }

    #[test]
    fn places_are_given_until_there_are_none() {
        let mut admission = Admission::new(Filter::default(), 1);
        let tcp = name(Protocol::Tcp, "::", "80");
        assert_eq!(admission.enter("host", &tcp, GRACE), Exposure::Exposed(GRACE));
        assert_eq!(admission.enter("host", &tcp, GRACE), Exposure::Omitted);
        assert_eq!((admission.exposed, admission.omitted()), (1, 1));
    }

    #[test]
    fn free_places_go_to_the_highest_rank() {
        let admission = Admission::new(Filter::default(), 2);
        let waiting = |key, overflows| candidate(key, Exposure::Omitted, overflows);
        let (incoming, outgoing) =
            admission.changes(&[waiting(1, 0), waiting(2, 7), waiting(3, 9)], GRACE);
        assert_eq!((incoming, outgoing), (vec![3, 2], vec![]));
    }

    #[test]
    fn a_place_changes_hands_only_from_the_long_idle_to_the_busy() {
        let admission =
            Admission { exposed: 3, omitted: 3, ..Admission::new(Filter::default(), 3) };
        let exposed = |key, since, overflows| candidate(key, Exposure::Exposed(since), overflows);
        let fresh = GRACE - HOLD / 2;
        let all = [
            exposed(1, Duration::ZERO, 5),
            exposed(2, fresh, 0),
            exposed(3, Duration::ZERO, 0),
            candidate(4, Exposure::Omitted, 0),
            candidate(5, Exposure::Omitted, 1),
            candidate(6, Exposure::Omitted, 2),
            candidate(7, Exposure::Excluded, 9),
        ];
        assert_eq!(admission.changes(&all, GRACE), (vec![6], vec![3]));
    }

    #[test]
    fn a_closed_listener_that_showed_nothing_makes_room_at_once() {
        let admission =
            Admission { exposed: 2, omitted: 2, ..Admission::new(Filter::default(), 2) };
        let closed = |key, exposure, overflows| Candidate {
            is_open: false,
            ..candidate(key, exposure, overflows)
        };
        let all = [
            closed(1, Exposure::Exposed(GRACE), 0),
            closed(2, Exposure::Exposed(GRACE), 3),
            candidate(3, Exposure::Omitted, 0),
            closed(4, Exposure::Omitted, 9),
        ];
        assert_eq!(admission.changes(&all, GRACE), (vec![3], vec![1]));
    }
}
