//! Which listeners and namespaces have series. What has none is watched all the same, and its overflows are counted.

use std::time::Duration;

use regex::Regex;

use crate::view::ListenerName;

use super::places::{Limits, Places};
use super::tracking::Tracking;

/// How long something new waits for its series, and how long a closed listener that never mattered is remembered.
pub(super) const PROBATION: Duration = Duration::from_secs(15);
/// How often places are given when nothing is urgent.
const PACE: Duration = Duration::from_secs(1);

/// Which listeners may have series at all: the regular expressions look at `netns/protocol/address:port`.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only listeners that match.
    pub include: Option<Regex>,
    /// Not those that match.
    pub exclude: Option<Regex>,
}

/// Whether a listener or namespace has series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exposure {
    /// It has.
    Exposed {
        /// Since when.
        since: Duration,
        /// Whether its name is accounted for: it was new when it got its series, or was known before.
        is_paid: bool,
    },
    /// It has none yet, or there is no place for it.
    Hidden,
    /// It has none, because a filter says so.
    Excluded,
}

/// How much a listener or namespace is worth showing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) level: Level,
    /// Overflows attributed while it was watched.
    pub(super) overflows: u64,
    /// The largest length in the peak window.
    pub(super) peak: u32,
}

/// What goes before what when there are more than places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Closed, and nothing was wrong with it within the grace time.
    #[default]
    Closed,
    /// Open and idle.
    Calm,
    /// Held a queue within the peak window.
    Queued,
    /// Overflowed or had a diagnosis within the grace time.
    Past,
    /// Overflowed within the last half minute, or has a diagnosis.
    Troubled,
    /// listenq's own namespace, which always has series.
    Own,
}

/// Decides who has series: the filter, and the places of listeners and namespaces.
#[derive(Debug)]
pub(super) struct Admission {
    filter: Filter,
    pub(super) listeners: Places,
    pub(super) namespaces: Places,
    pub(super) tracking: Tracking,
    /// Listeners and namespaces that have no series and that no filter excludes.
    hidden: usize,
    is_urgent: bool,
    given_at: Option<Duration>,
    /// Whether the last urgent giving changed nothing: then the next waits for its time.
    was_in_vain: bool,
    /// Overflows that had no series when they happened.
    unexposed_overflows: u64,
}

// === impl Filter ===

impl Filter {
    /// Whether a listener of namespace `netns` may have series.
    pub fn admits(&self, netns: &str, name: &ListenerName) -> bool {
        // Without filters, which is the rule, no text is built.
        let is_open = self.include.is_none() && self.exclude.is_none();
        is_open || self.admits_text(&name.described(netns))
    }

    /// Whether a listener called `netns/protocol/address:port` may have series.
    pub fn admits_text(&self, text: &str) -> bool {
        self.include.as_ref().is_none_or(|include| include.is_match(text))
            && !self.exclude.as_ref().is_some_and(|exclude| exclude.is_match(text))
    }
}

// === impl Exposure ===

impl Exposure {
    /// Whether it has series.
    pub(super) fn is_exposed(self) -> bool {
        matches!(self, Self::Exposed { .. })
    }
}

// === impl Admission ===

impl Admission {
    /// At most `max_listeners` of the listeners that `filter` admits, and `max_namespaces` namespaces, have series; about
    /// `max_sockets` sockets are tracked.
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
            was_in_vain: false,
            unexposed_overflows: 0,
        }
    }

    /// Listeners that should have series and have none.
    pub(super) fn omitted_listeners(&self) -> usize {
        // Places are not given while nothing is hidden.
        self.listeners.omitted().min(self.hidden)
    }

    /// Namespaces that should have series and have none.
    pub(super) fn omitted_namespaces(&self) -> usize {
        self.namespaces.omitted().min(self.hidden)
    }

    /// Overflows that had no series when they happened, of all namespaces; not those of excluded listeners.
    pub(super) fn unexposed_overflows(&self) -> u64 {
        self.unexposed_overflows
    }

    /// A new listener: excluded or hidden.
    pub(super) fn enter(&mut self, netns: &str, name: &ListenerName) -> Exposure {
        if !self.filter.admits(netns, name) {
            return Exposure::Excluded;
        }
        self.hidden += 1;
        Exposure::Hidden
    }

    /// A new namespace is hidden.
    pub(super) fn enter_netns(&mut self) -> Exposure {
        self.hidden += 1;
        Exposure::Hidden
    }

    /// Something hidden got its series, or is forgotten.
    pub(super) fn less_hidden(&mut self) {
        self.hidden -= 1;
    }

    /// Something lost its series and lives on.
    pub(super) fn more_hidden(&mut self) {
        self.hidden += 1;
    }

    /// Places are to be given at the end of this sample: something hidden is in trouble, or was found at start-up.
    pub(super) fn hurry(&mut self) {
        self.is_urgent = true;
    }

    /// Overflows that have no series.
    pub(super) fn count_unexposed(&mut self, overflows: u64) {
        self.unexposed_overflows += overflows;
    }

    /// Whether anything hidden was attributed an overflow in this sample.
    pub(super) fn is_urgent(&self) -> bool {
        self.is_urgent
    }

    /// Whether it is time to give places: once a second while something is hidden, at once when it is urgent.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        let is_time = self.given_at.is_none_or(|at| now >= at + PACE);
        self.hidden > 0 && (is_time || self.is_urgent && !self.was_in_vain)
    }

    /// Places were given.
    pub(super) fn given(&mut self, now: Duration, changes: usize) {
        self.was_in_vain = self.is_urgent && changes == 0;
        self.given_at = Some(now);
    }

    /// The sample ended.
    pub(super) fn calm_down(&mut self) {
        self.is_urgent = false;
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
    fn places_are_given_at_once_when_it_helps_and_else_once_a_second() {
        let at = Duration::from_millis;
        let mut admission = Admission::new(Filter::default(), 1, 1, 1);
        assert!(!admission.is_due(at(0)));
        admission.enter("host", &name(Protocol::Tcp, "::", "80"));
        assert!(admission.is_due(at(0)));
        admission.given(at(0), 0);
        assert!(!admission.is_due(at(900)) && admission.is_due(at(1000)));
        admission.hurry();
        assert!(admission.is_due(at(100)));
        admission.given(at(100), 0);
        admission.calm_down();
        admission.hurry();
        assert!(!admission.is_due(at(200)) && admission.is_due(at(1100)));
        admission.given(at(1100), 1);
        assert!(admission.is_due(at(1200)));
    }
}
