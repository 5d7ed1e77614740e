//! Separates first refusals from repetitions by clients that were refused before. For up to a
//! minute after the last client left, the kernel counts the repeated ACKs, data and FINs of one
//! burst as overflows.
//!
//! Other kernel counters reveal two kinds of repetition:
//!
//! - A client that was sent a cookie and refused repeats its last ACK, data or FIN. Each repetition
//!   counts as a received cookie (`SyncookiesRecv`) although no further cookie was sent.
//! - A half-open connection whose last ACK was refused repeats the ACK when the SYN-ACK is sent
//!   again. This refusal increases `sk_drops` by two; any other refusal increases it by one.

use std::time::Duration;

/// A cookie returns within one round trip.
const COOKIE_RETURNS: Duration = Duration::from_secs(4);
/// A half-open connection ends after `tcp_synack_retries` retries: 63 s by default.
const HALF_OPEN_LASTS: Duration = Duration::from_secs(64);

/// The cookies of one namespace.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cookies {
    /// Cookies sent that have not returned yet.
    unanswered: u64,
    sent_at: Duration,
}

/// The refusals of one listener since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Refusals {
    overflows: u64,
    /// Drops of the previous look, if it had no overflow, and of this look. An overflow may be
    /// attributed later than its drops.
    drops: [u64; 2],
    /// Clients whose last ACK was refused. These clients may repeat the ACK.
    half_open: u64,
    half_open_at: Duration,
}

// === impl Cookies ===

impl Cookies {
    /// Adds growth of the counters of cookies sent and received. Returns how many received cookies
    /// were repetitions.
    pub(super) fn grew(&mut self, now: Duration, sent: u64, received: u64) -> u64 {
        if sent > 0 {
            self.sent_at = now;
        } else if now.saturating_sub(self.sent_at) >= COOKIE_RETURNS {
            // Cookies that have not returned by now never return.
            self.unanswered = 0;
        }
        self.unanswered += sent;
        let first = received.min(self.unanswered);
        self.unanswered -= first;
        received - first
    }
}

// === impl Refusals ===

impl Refusals {
    /// Adds growth of `sk_drops`.
    pub(super) fn dropped(&mut self, drops: u64) {
        self.drops[1] += drops;
    }

    /// Adds overflows attributed to the listener.
    pub(super) fn overflowed(&mut self, overflows: u64) {
        self.overflows += overflows;
    }

    /// Records that the listener has no half-open connections.
    pub(super) fn none_half_open(&mut self) {
        self.half_open = 0;
    }

    /// Takes the refusals since the last look, and returns how many are no repetitions.
    /// `repeated_cookies` is the share of the namespace's overflows that repeat a cookie.
    pub(super) fn look(&mut self, now: Duration, repeated_cookies: f64) -> u64 {
        let all = std::mem::take(&mut self.overflows);
        if all == 0 {
            self.drops = [self.drops[1], 0];
            return 0;
        }
        let drops: u64 = std::mem::take(&mut self.drops).into_iter().sum();
        let others = all - (all as f64 * repeated_cookies.clamp(0.0, 1.0)).round() as u64;
        let at_last_ack = drops.saturating_sub(all).min(others);
        let repeated = at_last_ack.min(self.half_open_since(now));
        if at_last_ack > self.half_open {
            (self.half_open, self.half_open_at) = (at_last_ack, now);
        }
        others - repeated
    }

    fn half_open_since(&mut self, now: Duration) -> u64 {
        if now.saturating_sub(self.half_open_at) >= HALF_OPEN_LASTS {
            self.half_open = 0;
        }
        self.half_open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_cookie_received_twice_is_a_repetition() {
        let mut cookies = Cookies::default();
        // Sent, sent and received, received within the round trip, and the data after it.
        let seen = [(1, 40, 0), (2, 10, 30), (3, 0, 20), (4, 0, 50)];
        assert_eq!(
            seen.map(|(at, sent, received)| cookies.grew(seconds(at), sent, received)),
            [0, 0, 0, 50]
        );
        // Cookies of a flood never return.
        assert_eq!(cookies.grew(seconds(10), 5_000, 0), 0);
        assert_eq!(cookies.grew(seconds(20), 0, 7), 7);
    }

    /// First refusals of each second, from overflows, drops and repeated cookies.
    fn firsts(seconds: &[(u64, u64, u64, u64)]) -> Vec<u64> {
        let mut refusals = Refusals::default();
        let first = |&(at, overflows, drops, repeated_cookies): &(u64, u64, u64, u64)| {
            refusals.dropped(drops);
            refusals.overflowed(overflows);
            let share = repeated_cookies as f64 / overflows as f64;
            refusals.look(Duration::from_secs(at), share)
        };
        seconds.iter().map(first).collect()
    }

    #[test]
    fn a_burst_that_the_kernel_counts_for_a_minute_is_one_burst() {
        // Measured: 400 clients at listen(5), five accepted per second; clients close after 5 s.
        let tail = [
            (6, 1_489, 1_489, 1_489),
            (7, 366, 366, 366),
            (12, 353, 353, 353),
            (32, 339, 339, 339),
            (59, 333, 333, 333),
        ];
        let begin = [(0, 394, 394, 0), (1, 238, 239, 0)];
        assert_eq!(firsts(&[&begin[..], &tail].concat()), [394, 238, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_repeated_last_ack_is_not_a_first_refusal() {
        assert_eq!(
            firsts(&[(0, 108, 216, 0), (1, 20, 40, 0), (3, 3, 6, 0), (90, 5, 10, 0)]),
            [108, 0, 0, 5]
        );
        // The refusals beyond the previous number are new.
        assert_eq!(firsts(&[(0, 8, 16, 0), (5, 12, 24, 0)]), [8, 4]);
    }

    #[test]
    fn refused_syns_are_first_refusals_beside_repeated_acks() {
        assert_eq!(firsts(&[(0, 100, 100, 0), (5, 30, 50, 0), (6, 60, 60, 40)]), [100, 30, 20]);
    }
}
