//! Which cap keeps an accept queue's limit where it is, and how long a queue would do.

use crate::report::Listener;

/// No advice asks for more: a queue of this length holds clients for longer than they wait, at any rate a server has.
const MAX_LIMIT: u64 = 65_535;

/// What the limit of a listener comes from. All numbers are per socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    /// `net.core.somaxconn`, which is so high: the server may have asked for more.
    Somaxconn(u64),
    /// The server's own backlog, which is so high: it asked for no more.
    Backlog(u64),
    /// Limit or setting are not known.
    Unknown,
}

/// How long the queue should be, and how that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Long enough for the burst that was seen.
    Enough {
        /// Per socket.
        limit: u64,
        /// The connections that came at once, as far as known: those that waited and those that were turned away.
        burst: u64,
    },
    /// As long as clients still have patience for, which is less than the burst.
    Useful {
        /// Per socket.
        limit: u64,
    },
    /// The queue is as long as clients have patience for.
    LongEnough,
}

/// Which cap binds.
pub fn binding(listener: &Listener) -> Cap {
    let somaxconn = listener.settings.somaxconn.and_then(|cap| u64::try_from(cap).ok());
    match (per_socket(listener), somaxconn) {
        (Some(limit), Some(somaxconn)) if limit >= somaxconn => Cap::Somaxconn(limit),
        (Some(limit), Some(_)) => Cap::Backlog(limit),
        _ => Cap::Unknown,
    }
}

/// The limit of one of its sockets; they are alike as long as one server opened them.
pub fn per_socket(listener: &Listener) -> Option<u64> {
    listener.limit.map(|limit| limit / sockets(listener))
}

/// The largest limit of one of its sockets for which clients still have patience, where that is known.
pub fn useful_per_socket(listener: &Listener) -> Option<u64> {
    listener.useful_limit.map(|useful| useful as u64 / sockets(listener))
}

/// The smallest power of two that holds the burst, but no more than is useful.
pub fn target(listener: &Listener) -> Target {
    let limit = listener.limit.unwrap_or(0);
    let turned_away = listener.recent.map_or(0, |recent| recent.overflows);
    let burst = listener.peak_length.max(limit + 1) + turned_away;
    let share = burst.div_ceil(sockets(listener));
    let enough =
        share.max(per_socket(listener).unwrap_or(0) + 1).next_power_of_two().min(MAX_LIMIT);
    match useful_per_socket(listener) {
        Some(useful) if useful <= per_socket(listener).unwrap_or(0) => Target::LongEnough,
        Some(useful) if useful < enough => Target::Useful { limit: useful },
        _ => Target::Enough { limit: enough, burst },
    }
}

fn sockets(listener: &Listener) -> u64 {
    u64::from(listener.sockets.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Caps, Recent};

    fn limited(limit: u64, sockets: u32, somaxconn: Option<i64>) -> Listener {
        Listener {
            limit: Some(limit),
            sockets,
            settings: Caps { somaxconn, ..Caps::default() },
            ..Listener::default()
        }
    }

    fn overflowing(limit: u64, sockets: u32, overflows: u64) -> Listener {
        let recent = Some(Recent { overflows, ..Recent::default() });
        Listener { recent, peak_length: limit + 1, ..limited(limit, sockets, Some(4_096)) }
    }

    #[test]
    fn the_cap_is_somaxconn_where_the_limit_reaches_it() {
        assert_eq!(binding(&limited(128, 1, Some(128))), Cap::Somaxconn(128));
        assert_eq!(binding(&limited(511, 1, Some(4_096))), Cap::Backlog(511));
        // A group of four is four queues.
        assert_eq!(binding(&limited(512, 4, Some(128))), Cap::Somaxconn(128));
        assert_eq!(binding(&limited(128, 4, Some(128))), Cap::Backlog(32));
        // Lowered since: to listen again would make it smaller.
        assert_eq!(binding(&limited(511, 1, Some(128))), Cap::Somaxconn(511));
        assert_eq!(binding(&limited(128, 1, None)), Cap::Unknown);
        assert_eq!(binding(&Listener { limit: None, ..limited(0, 1, Some(128)) }), Cap::Unknown);
    }

    #[test]
    fn the_target_holds_the_burst() {
        assert_eq!(target(&overflowing(8, 1, 41)), Target::Enough { limit: 64, burst: 50 });
        assert_eq!(target(&overflowing(128, 1, 0)), Target::Enough { limit: 256, burst: 129 });
        assert_eq!(target(&overflowing(32, 4, 95)), Target::Enough { limit: 32, burst: 128 });
        let flood = target(&overflowing(4_096, 1, 1_000_000));
        assert_eq!(flood, Target::Enough { limit: 65_535, burst: 1_004_097 });
    }

    #[test]
    fn the_target_is_never_more_than_useful() {
        let with = |useful| Listener { useful_limit: Some(useful), ..overflowing(128, 1, 3_000) };
        assert_eq!(target(&with(588.4)), Target::Useful { limit: 588 });
        assert_eq!(target(&with(100.0)), Target::LongEnough);
        assert_eq!(target(&with(128.0)), Target::LongEnough);
        assert_eq!(target(&with(9_000.0)), Target::Enough { limit: 4_096, burst: 3_129 });
    }
}
