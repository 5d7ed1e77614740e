//! The size of a burst: how many connections arrived at once, both waiting and refused. The queue
//! limit must hold this number.
//!
//! The kernel counts refusals, not clients. A client whose SYN is refused sends the SYN again one
//! second later. A client that is refused at the last ACK of its handshake believes that it is
//! connected; the kernel refuses its data and the retransmissions of its data within the same
//! second. These repetitions are removed:
//!
//! * a refusal one second after another refusal repeats it;
//! * a refusal at the last ACK increments `sk_drops` by two and any other refusal by one, so drops
//!   minus overflows are the refusals at the last ACK. The number of their clients is at most the
//!   capacity of the SYN queue;
//! * a refusal that repeats a cookie shows in the counters of the namespace.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::ring::Ring;

const SLOT: Duration = Duration::from_millis(125);
const SLOTS: usize = 16;
/// The window is shorter than one second: a refusal and its repetition one second later never fall
/// into the same window, even if the refusal is attributed one sample late.
const WINDOW_SLOTS: usize = 7;
/// The slots between a refusal and its repetition one second later: eight slots, and one slot more
/// or less because a sample may attribute either refusal late.
const REPEAT_SLOTS: RangeInclusive<usize> = 7..=9;

/// The queue lengths, overflows and drops of one listener within the last two seconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Bursts(Ring<Sum, SLOTS>);

/// The sum over one slot or several slots.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sum {
    /// The largest length.
    length: u32,
    overflows: u32,
    /// Overflows that repeat a cookie.
    repeated: u32,
    drops: u32,
}

/// The connections of a burst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BurstSize {
    pub(super) waiting: u64,
    pub(super) refused: u64,
}

// === impl Bursts ===

impl Bursts {
    /// Records that `length` connections were waiting.
    pub(super) fn waited(&mut self, now: Duration, length: u32) {
        let slot = self.at(now);
        slot.length = slot.length.max(length);
    }

    /// Records `overflows` attributed to the listener, of which `repeated` repeat a cookie.
    pub(super) fn overflowed(&mut self, now: Duration, overflows: u64, repeated: u64) {
        let slot = self.at(now);
        slot.overflows = slot.overflows.saturating_add(clamped(overflows));
        slot.repeated = slot.repeated.saturating_add(clamped(repeated));
    }

    /// Records growth of `sk_drops` of the listener's sockets.
    pub(super) fn dropped(&mut self, now: Duration, drops: u64) {
        let slot = self.at(now);
        slot.drops = slot.drops.saturating_add(clamped(drops));
    }

    /// The connections that arrived within the second before `now`.
    ///
    /// `half_open_cap` is the capacity of the SYN queue, and `harmless_drops` the drops per second
    /// that the listener has without overflows.
    pub(super) fn size(&self, now: Duration, half_open_cap: u64, harmless_drops: u64) -> BurstSize {
        let slots = self.0.window(slot_of(now));
        let (before, last) = slots.split_at(SLOTS - WINDOW_SLOTS);
        let sum = |slots: &[Sum]| slots.iter().copied().fold(Sum::default(), Sum::plus);
        let refused = |sum: Sum| sum.refused_clients(half_open_cap, harmless_drops);
        let repeats = match sum(before).overflows {
            0 => 0,
            _ => refused(sum(&repeated(&slots))),
        };
        let last = sum(last);
        BurstSize {
            waiting: u64::from(last.length),
            refused: refused(last).saturating_sub(repeats),
        }
    }

    fn at(&mut self, now: Duration) -> &mut Sum {
        self.0.at(slot_of(now))
    }
}

/// The earlier slots whose refusals may be repeated by the refusals of the window.
fn repeated(slots: &[Sum; SLOTS]) -> [Sum; SLOTS - WINDOW_SLOTS] {
    const BEFORE: usize = SLOTS - WINDOW_SLOTS;
    let mut repeated = [Sum::default(); BEFORE];
    let refusing = (BEFORE..SLOTS).filter(|slot| slots[*slot].overflows > 0);
    for slot in refusing.flat_map(|slot| REPEAT_SLOTS.filter_map(move |ago| slot.checked_sub(ago)))
    {
        if slot < BEFORE {
            repeated[slot] = slots[slot];
        }
    }
    repeated
}

fn slot_of(now: Duration) -> u64 {
    (now.as_nanos() / SLOT.as_nanos()) as u64
}

fn clamped(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

// === impl BurstSize ===

impl BurstSize {
    /// All connections of the burst, waiting and refused.
    pub(super) fn total(self) -> u64 {
        self.waiting + self.refused
    }
}

// === impl Sum ===

impl Sum {
    fn plus(self, other: Self) -> Self {
        Self {
            length: self.length.max(other.length),
            overflows: self.overflows.saturating_add(other.overflows),
            repeated: self.repeated.saturating_add(other.repeated),
            drops: self.drops.saturating_add(other.drops),
        }
    }

    /// The number of clients that caused the overflows of one second.
    fn refused_clients(self, half_open_cap: u64, harmless_drops: u64) -> u64 {
        let overflows = u64::from(self.overflows);
        let drops = u64::from(self.drops).saturating_sub(harmless_drops);
        let at_last_ack = drops.saturating_sub(overflows).min(overflows);
        let clients = overflows - at_last_ack + at_last_ack.min(half_open_cap);
        clients.saturating_sub(self.repeated.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The burst size with room for many half-open connections and with no drops other than
    /// overflows.
    fn size(bursts: &Bursts, millis: u64) -> u64 {
        bursts.size(Duration::from_millis(millis), 1_000, 0).total()
    }

    /// The burst size after each (milliseconds, overflows) pair, at the time of the pair. The queue
    /// holds 5 connections.
    fn sizes(overflows: &[(u64, u64)]) -> Vec<u64> {
        let mut bursts = Bursts::default();
        let size_after = |(millis, overflows): &(u64, u64)| {
            let now = Duration::from_millis(*millis);
            bursts.waited(now, 5);
            bursts.overflowed(now, *overflows, 0);
            bursts.dropped(now, *overflows);
            size(&bursts, *millis)
        };
        overflows.iter().map(size_after).collect()
    }

    #[test]
    fn a_burst_is_the_sum_of_waiting_and_refused_connections() {
        assert_eq!(sizes(&[(5_000, 35)]), [40]);
        // Over several samples, and across a full second of the clock.
        assert_eq!(sizes(&[(4_900, 10), (4_990, 10), (5_010, 10), (5_200, 5)]), [15, 25, 35, 40]);
    }

    #[test]
    fn retries_are_not_a_second_burst() {
        // The kernel sends a SYN again after 1, 2, 3 s; the sample that attributes the refusal may
        // be late or early.
        assert_eq!(sizes(&[(5_000, 35), (6_000, 35), (7_000, 35)]), [40, 5, 5]);
        assert_eq!(sizes(&[(5_110, 35), (6_000, 35)]), [40, 5]);
        // The clients refused before, and as many new clients.
        assert_eq!(sizes(&[(5_000, 35), (6_000, 74), (7_000, 113)]), [40, 44, 44]);
    }

    #[test]
    fn refusals_within_one_second_are_not_repetitions() {
        // Clients of a burst at 5.0 s come again after 1 and 2 s and leave. The next burst comes
        // 1.5 s later.
        let next = [(5_000, 117), (6_000, 84), (7_000, 51), (8_500, 117)];
        assert_eq!(sizes(&next), [122, 5, 5, 122]);
    }

    #[test]
    fn steady_overflows_are_never_summed_over_the_window() {
        let steady: Vec<(u64, u64)> = (0..300).map(|nth| (nth * 100, 10)).collect();
        assert!(sizes(&steady).into_iter().all(|size| size <= 95));
    }

    #[test]
    fn retransmissions_after_the_last_ack_are_not_further_clients() {
        let mut bursts = Bursts::default();
        let now = Duration::from_secs(9);
        bursts.waited(now, 65);
        // 60 clients were refused at the last ACK and sent their data three times within the
        // second.
        bursts.overflowed(now, 240, 0);
        bursts.dropped(now, 480);
        assert_eq!(bursts.size(now, 64, 0), BurstSize { waiting: 65, refused: 64 });
        // The same overflows at the SYN are 240 clients, whatever other drops the listener has.
        let mut bursts = Bursts::default();
        bursts.waited(now, 65);
        bursts.overflowed(now, 240, 0);
        bursts.dropped(now, 480);
        assert_eq!(bursts.size(now, 64, 240), BurstSize { waiting: 65, refused: 240 });
    }

    #[test]
    fn without_overflows_a_burst_is_the_queue_length() {
        let mut bursts = Bursts::default();
        bursts.waited(Duration::from_millis(1_500), 7);
        bursts.waited(Duration::from_millis(1_600), 3);
        assert_eq!((size(&bursts, 1_600), size(&bursts, 9_000)), (7, 0));
    }
}
