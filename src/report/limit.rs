//! Determines which cap binds an accept queue's limit, and which limit would be enough.

use std::time::Duration;

use crate::diagnosis::WINDOW;
use crate::report::Listener;

/// The time that one element of a listener's history covers.
const HISTORY_STEP: Duration = Duration::from_secs(5);
/// The largest limit that advice recommends. At any realistic accept rate, clients at the end of a
/// longer queue give up before they are accepted.
const MAX_LIMIT: u64 = 65_535;

/// The cap from which a listener's limit comes. All numbers are per socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    /// `net.core.somaxconn`: the server may have requested more.
    Somaxconn(u64),
    /// The server's own backlog: `net.core.somaxconn` allows more.
    Backlog(u64),
    /// The limit or the setting is not known.
    Unknown,
}

/// The recommended limit, and its basis. All limits are per socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A limit that holds the largest burst.
    Enough {
        /// The limit to set.
        limit: u64,
        /// The connections that arrived within one second: waiting and refused connections.
        burst: u64,
    },
    /// Twice the current limit: connections were refused, and the size of the burst is unknown.
    Double {
        /// The limit to set.
        limit: u64,
    },
    /// The useful limit, which is smaller than the burst: clients give up in a longer queue.
    Useful {
        /// The limit to set.
        limit: u64,
    },
    /// The limit already equals the useful limit or exceeds it.
    LongEnough,
}

/// The cap that binds the limit of `listener`.
pub fn binding(listener: &Listener) -> Cap {
    let somaxconn = listener.settings.somaxconn.and_then(|cap| u64::try_from(cap).ok());
    match (per_socket(listener), somaxconn) {
        (Some(limit), Some(somaxconn)) if limit >= somaxconn => Cap::Somaxconn(limit),
        (Some(limit), Some(_)) => Cap::Backlog(limit),
        _ => Cap::Unknown,
    }
}

/// The limit of one socket of the listener; all sockets are equal if one server opened them.
pub fn per_socket(listener: &Listener) -> Option<u64> {
    listener.limit.map(|limit| limit / sockets(listener))
}

/// The largest limit per socket for which clients wait, if it is known and credible. Never less
/// than the largest burst that the server handled.
pub fn useful_per_socket(listener: &Listener) -> Option<u64> {
    let useful = listener.credible_useful_limit()? as u64;
    Some(useful.max(largest_served(listener)) / sockets(listener))
}

/// The smallest power of two that holds the largest burst, up to the useful limit.
pub fn target(listener: &Listener) -> Target {
    let now = per_socket(listener).unwrap_or(0);
    let burst = listener.recent.and_then(|recent| recent.largest_burst);
    let enough = match burst {
        Some(burst) => burst.div_ceil(sockets(listener)).max(now + 1).next_power_of_two(),
        None => now.saturating_mul(2).max(1),
    };
    let limit = enough.min(MAX_LIMIT);
    match useful_per_socket(listener) {
        Some(useful) if useful <= now => Target::LongEnough,
        Some(useful) if useful < limit => Target::Useful { limit: useful },
        _ => burst.map_or(Target::Double { limit }, |burst| Target::Enough { limit, burst }),
    }
}

/// The largest queue length within the last five minutes that the server emptied before the trouble
/// began.
fn largest_served(listener: &Listener) -> u64 {
    let trouble = listener.diagnoses.iter().map(|held| held.for_seconds).fold(0.0, f64::max);
    let trouble = trouble + WINDOW.as_secs_f64();
    let skipped = (trouble / HISTORY_STEP.as_secs_f64()).ceil() as usize;
    let before = listener.history.len().saturating_sub(skipped);
    listener.history[..before].iter().max().map_or(0, |length| u64::from(*length))
}

fn sockets(listener: &Listener) -> u64 {
    u64::from(listener.sockets.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::Diagnosis;
    use crate::report::{Caps, Diagnosed, Recent};

    fn limited(limit: u64, sockets: u32, somaxconn: Option<i64>) -> Listener {
        Listener {
            limit: Some(limit),
            sockets,
            settings: Caps { somaxconn, ..Caps::default() },
            ..Listener::default()
        }
    }

    fn overflowing(limit: u64, sockets: u32, largest_burst: Option<u64>) -> Listener {
        let recent = Some(Recent { overflows: 9_999, largest_burst, ..Recent::default() });
        Listener { recent, peak_length: limit + 1, ..limited(limit, sockets, Some(4_096)) }
    }

    #[test]
    fn the_cap_is_somaxconn_where_the_limit_reaches_it() {
        assert_eq!(binding(&limited(128, 1, Some(128))), Cap::Somaxconn(128));
        assert_eq!(binding(&limited(511, 1, Some(4_096))), Cap::Backlog(511));
        // A group of four sockets has four queues.
        assert_eq!(binding(&limited(512, 4, Some(128))), Cap::Somaxconn(128));
        assert_eq!(binding(&limited(128, 4, Some(128))), Cap::Backlog(32));
        // The sysctl was lowered after `listen(2)`: another `listen(2)` would make the queue
        // smaller.
        assert_eq!(binding(&limited(511, 1, Some(128))), Cap::Somaxconn(511));
        assert_eq!(binding(&limited(128, 1, None)), Cap::Unknown);
        assert_eq!(binding(&Listener { limit: None, ..limited(0, 1, Some(128)) }), Cap::Unknown);
    }

    #[test]
    fn the_target_holds_the_burst() {
        let held = |limit, sockets, burst| target(&overflowing(limit, sockets, Some(burst)));
        assert_eq!(held(8, 1, 41), Target::Enough { limit: 64, burst: 41 });
        assert_eq!(held(5, 1, 64), Target::Enough { limit: 64, burst: 64 });
        assert_eq!(held(128, 1, 129), Target::Enough { limit: 256, burst: 129 });
        assert_eq!(held(32, 4, 128), Target::Enough { limit: 32, burst: 128 });
        assert_eq!(held(511, 1, 513), Target::Enough { limit: 1_024, burst: 513 });
        let flood = Target::Enough { limit: 65_535, burst: 1_004_097 };
        assert_eq!(held(4_096, 1, 1_004_097), flood);
    }

    #[test]
    fn a_burst_of_unknown_size_doubles_the_limit() {
        assert_eq!(target(&overflowing(128, 1, None)), Target::Double { limit: 256 });
        assert_eq!(target(&overflowing(0, 1, None)), Target::Double { limit: 1 });
        assert_eq!(target(&overflowing(60_000, 1, None)), Target::Double { limit: 65_535 });
    }

    #[test]
    fn the_target_is_never_more_than_useful() {
        let with =
            |useful| Listener { useful_limit: Some(useful), ..overflowing(128, 1, Some(3_129)) };
        assert_eq!(target(&with(588.4)), Target::Useful { limit: 588 });
        assert_eq!(target(&with(100.0)), Target::LongEnough);
        assert_eq!(target(&with(128.0)), Target::LongEnough);
        assert_eq!(target(&with(9_000.0)), Target::Enough { limit: 4_096, burst: 3_129 });
    }

    #[test]
    fn no_limit_goes_below_the_largest_burst_that_was_served() {
        let mut slow = Listener { useful_limit: Some(30.0), ..limited(511, 1, Some(4_096)) };
        slow.history = [vec![0, 200], vec![512; 8]].concat();
        slow.diagnoses = vec![Diagnosed::new(&slow, Diagnosis::SlowAccept, 10.0)];
        assert_eq!(useful_per_socket(&slow), Some(200));
        // The trouble and the 30 s of evidence before it cover the whole history.
        slow.diagnoses[0].for_seconds = 20.0;
        assert_eq!(useful_per_socket(&slow), Some(30));
        slow.history.clear();
        assert_eq!(useful_per_socket(&slow), Some(30));
    }
}
