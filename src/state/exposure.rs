//! Decides which listeners and namespaces have series. Listeners and namespaces without series are
//! still sampled, and their overflows are counted.

use std::time::Duration;

use regex::Regex;

use crate::view::ListenerName;

use super::places::{Limits, Places};
use super::tracking::Tracking;

/// How long a new listener or namespace waits for its series. A closed listener that never queued,
/// dropped or overflowed is remembered for the same time.
pub(super) const PROBATION: Duration = Duration::from_secs(15);
/// The interval at which places are assigned when nothing is urgent and few listeners are hidden.
const PACE: Duration = Duration::from_secs(1);
/// The number of hidden listeners that an interval of [`PACE`] pays for: an assignment compares all
/// of them.
const HIDDEN_PER_PACE: usize = 4_000;
/// The number of hidden listeners up to which an assignment is cheap.
const FEW_HIDDEN: usize = 1_000;
/// The number of samples that an urgent request waits after an urgent assignment changed nothing.
/// Without the wait, an attacker with many listeners in trouble would cause an assignment in every
/// sample. Overflows must be accounted for after three samples.
const WAIT_IN_SAMPLES: u32 = 3;

/// The filter for listeners that may have series. The regular expressions match against
/// `netns/protocol/address:port`.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// If set, a listener must match to have series.
    pub include: Option<Regex>,
    /// If set, a listener that matches has no series.
    pub exclude: Option<Regex>,
}

/// Whether a listener or namespace has series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exposure {
    /// Has series.
    Exposed {
        /// The time since which it has series.
        since: Duration,
        /// Whether its name is already counted: the name was new when the series started, or was
        /// known before.
        is_paid: bool,
    },
    /// Has no series: it is too new, or all places are taken.
    Hidden,
    /// Has no series, because a filter excludes it.
    Excluded,
}

/// The priority of a listener or namespace for a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) level: Level,
    /// Overflows attributed while listenq watched.
    pub(super) overflows: u64,
    /// The largest length in the peak window.
    pub(super) peak: u32,
}

/// The first criterion of a [`Rank`], lowest first; decides when there are too few places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Closed, without overflows or diagnoses within the grace time.
    #[default]
    Closed,
    /// Open and idle.
    Calm,
    /// Had a queue within the peak window.
    Queued,
    /// Overflowed or had a diagnosis within the grace time.
    Past,
    /// Overflowed within the last half minute, or has a diagnosis.
    Troubled,
    /// The namespace of listenq itself, which always has series.
    Own,
}

/// Decides which listeners and namespaces have series: applies the filter and assigns places.
#[derive(Debug)]
pub(super) struct Admission {
    filter: Filter,
    pub(super) listeners: Places,
    pub(super) namespaces: Places,
    pub(super) tracking: Tracking,
    /// The number of listeners and namespaces that have no series and are not excluded by a filter.
    hidden: usize,
    is_urgent: bool,
    given_at: Option<Duration>,
    /// The number of samples in which an urgent request still waits.
    waits: u32,
    /// Overflows of listeners that had no series at the time of the overflow.
    unexposed_overflows: u64,
}

// === impl Filter ===

impl Filter {
    /// Whether a listener of namespace `netns` may have series.
    pub fn admits(&self, netns: &str, name: &ListenerName) -> bool {
        // Builds no text in the usual case without filters.
        let is_open = self.include.is_none() && self.exclude.is_none();
        is_open || self.admits_text(&name.described(netns))
    }

    /// Whether a listener named `netns/protocol/address:port` may have series.
    pub fn admits_text(&self, text: &str) -> bool {
        self.include.as_ref().is_none_or(|include| include.is_match(text))
            && !self.exclude.as_ref().is_some_and(|exclude| exclude.is_match(text))
    }
}

// === impl Exposure ===

impl Exposure {
    pub(super) fn is_exposed(self) -> bool {
        matches!(self, Self::Exposed { .. })
    }
}

// === impl Admission ===

impl Admission {
    /// Limits the series to `max_listeners` listeners that `filter` admits and to `max_namespaces`
    /// namespaces, and the tracked sockets to about `max_sockets`.
    pub(super) fn new(
        filter: Filter,
        max_listeners: usize,
        max_namespaces: usize,
        max_sockets: usize,
    ) -> Self {
        Self {
            filter,
            listeners: Places::new(max_listeners, Limits::LISTENERS),
            namespaces: Places::new(max_namespaces, Limits::NAMESPACES),
            tracking: Tracking::new(max_sockets),
            hidden: 0,
            is_urgent: false,
            given_at: None,
            waits: 0,
            unexposed_overflows: 0,
        }
    }

    /// The number of listeners that should have series but have none.
    pub(super) fn omitted_listeners(&self) -> usize {
        // Places are not assigned while nothing is hidden.
        self.listeners.omitted().min(self.hidden)
    }

    /// The number of namespaces that should have series but have none.
    pub(super) fn omitted_namespaces(&self) -> usize {
        self.namespaces.omitted().min(self.hidden)
    }

    /// Overflows of listeners that had no series at the time of the overflow, over all namespaces;
    /// without the overflows of excluded listeners.
    pub(super) fn unexposed_overflows(&self) -> u64 {
        self.unexposed_overflows
    }

    /// Registers a new listener as excluded or hidden.
    pub(super) fn enter(&mut self, netns: &str, name: &ListenerName) -> Exposure {
        if !self.filter.admits(netns, name) {
            return Exposure::Excluded;
        }
        self.hidden += 1;
        Exposure::Hidden
    }

    /// Registers a new namespace as hidden.
    pub(super) fn enter_netns(&mut self) -> Exposure {
        self.hidden += 1;
        Exposure::Hidden
    }

    /// Records that a hidden listener or namespace got series or is forgotten.
    pub(super) fn less_hidden(&mut self) {
        self.hidden -= 1;
    }

    /// Records that a listener or namespace lost its series but is not forgotten.
    pub(super) fn more_hidden(&mut self) {
        self.hidden += 1;
    }

    /// Requests an assignment of places: a hidden listener or namespace is in trouble.
    pub(super) fn hurry(&mut self) {
        self.is_urgent = true;
    }

    /// Requests an assignment of places for a listener or namespace that was found at startup. If
    /// very many listeners are hidden and no place is free, the request waits for the next regular
    /// assignment. Each assignment compares all listeners, and an assignment after each of very
    /// many namespaces would be too expensive.
    pub(super) fn hurry_newcomer(&mut self) {
        self.is_urgent |= self.listeners.has_room() || self.hidden <= FEW_HIDDEN;
    }

    /// Adds overflows of listeners without series.
    pub(super) fn count_unexposed(&mut self, overflows: u64) {
        self.unexposed_overflows += overflows;
    }

    /// Whether to assign places now: once per second while anything is hidden, less often while
    /// very many listeners are hidden, and at once if urgent.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        let is_time = self.given_at.is_none_or(|at| now >= at + self.pace());
        self.hidden > 0 && (is_time || self.is_urgent && self.waits == 0)
    }

    fn pace(&self) -> Duration {
        PACE * (self.hidden / HIDDEN_PER_PACE).clamp(1, 30) as u32
    }

    /// Records an assignment of places at `now` with its number of changes.
    pub(super) fn given(&mut self, now: Duration, changes: usize) {
        self.waits = match self.is_urgent && changes == 0 {
            true => WAIT_IN_SAMPLES,
            false => 0,
        };
        self.given_at = Some(now);
    }

    /// Ends the sample. Returns whether an urgent request was met: listeners that still have no
    /// series then get none for what happened so far.
    pub(super) fn end_sample(&mut self) -> bool {
        let is_met = self.is_urgent && (self.waits == 0 || self.waits == WAIT_IN_SAMPLES);
        self.is_urgent &= !is_met;
        self.waits = self.waits.saturating_sub(1);
        is_met
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Protocol;

    fn name(protocol: Protocol, address: &str, port: &str) -> ListenerName {
        ListenerName { protocol, address: address.into(), port: port.into() }
    }

    #[test]
    fn filters_match_the_whole_name() {
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
    fn places_for_very_many_hidden_listeners_are_assigned_less_often_unless_it_is_urgent() {
        let at = Duration::from_secs;
        let mut admission = Admission::new(Filter::default(), 1, 1, 1);
        for _ in 0..5 * HIDDEN_PER_PACE {
            admission.enter("host", &name(Protocol::Tcp, "::", "80"));
        }
        admission.given(at(100), 0);
        assert!(!admission.is_due(at(104)) && admission.is_due(at(105)));
        admission.hurry();
        assert!(admission.is_due(at(100)));
    }

    #[test]
    fn a_listener_found_at_startup_waits_if_very_many_are_hidden_and_no_place_is_free() {
        let at = Duration::from_millis;
        let table = [(1, FEW_HIDDEN + 1, true), (0, FEW_HIDDEN, true), (0, FEW_HIDDEN + 1, false)];
        for (max, hidden, is_urgent) in table {
            let mut admission = Admission::new(Filter::default(), max, 1, 1);
            for _ in 0..hidden {
                admission.enter("host", &name(Protocol::Tcp, "::", "80"));
            }
            admission.given(at(0), 0);
            admission.hurry_newcomer();
            let is_due = [100, 1000].map(|millis| admission.is_due(at(millis)));
            assert_eq!(is_due, [is_urgent, true], "{max} {hidden}");
        }
    }

    #[test]
    fn urgent_assignments_run_at_once_if_they_help_and_else_after_a_wait() {
        let at = Duration::from_millis;
        let mut admission = Admission::new(Filter::default(), 1, 1, 1);
        assert!(!admission.is_due(at(0)));
        admission.enter("host", &name(Protocol::Tcp, "::", "80"));
        assert!(admission.is_due(at(0)));
        admission.given(at(0), 0);
        assert!(!admission.end_sample());
        assert!(!admission.is_due(at(900)) && admission.is_due(at(1000)));
        admission.hurry();
        assert!(admission.is_due(at(100)));
        admission.given(at(100), 0);
        assert!(admission.end_sample());
        // The request of the next sample is met two samples later, and is not lost before.
        admission.hurry();
        for sample in 2..4 {
            assert!(!admission.is_due(at(100 * sample)) && !admission.end_sample(), "{sample}");
        }
        assert!(admission.is_due(at(400)));
        admission.given(at(400), 1);
        assert!(admission.end_sample());
        admission.hurry();
        assert!(admission.is_due(at(500)));
    }
}
