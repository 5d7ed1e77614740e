//! The largest length within a trailing window, in constant space. The window is divided into
//! slots, and each slot keeps one maximum.

use std::time::Duration;

use super::ring::Ring;

/// The number of slots in a window. The length of a window is accurate to one part in this number.
const SLOTS: usize = 31;

/// The division of a window into slots, the same for every listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    slot: Duration,
}

/// One slot of the window, numbered from time zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(u64);

/// The maxima of one listener's slots.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peak {
    /// `None` before the first connection waited: most listeners never hold a connection.
    maxima: Option<Box<Ring<u32, SLOTS>>>,
    largest: u32,
}

// === impl Window ===

impl Window {
    /// A window that is never shorter than `length`, and at most a thirtieth longer.
    pub(crate) fn new(length: Duration) -> Self {
        let slot = length / (SLOTS as u32 - 1);
        Self { slot: slot.max(Duration::from_nanos(1)) }
    }

    /// The slot that contains `now`.
    pub(crate) fn slot_at(self, now: Duration) -> Slot {
        Slot((now.as_nanos() / self.slot.as_nanos()) as u64)
    }
}

// === impl Peak ===

impl Peak {
    /// Records a length that was reached in `slot`.
    pub(crate) fn record(&mut self, Slot(slot): Slot, length: u32) {
        // If every slot is zero there is nothing to forget. This is the path of every idle
        // listener.
        if self.largest == 0 && length == 0 {
            return;
        }
        let maxima = self.maxima.get_or_insert_default();
        let slides = slot > maxima.newest();
        let maximum = maxima.at(slot);
        *maximum = length.max(*maximum);
        self.largest = match slides {
            true => maxima.until(slot).max().unwrap_or_default(),
            false => self.largest.max(length),
        };
    }

    /// The largest length of the window that ended with the last record.
    pub(crate) fn largest(&self) -> u32 {
        self.largest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_peak_is_kept_for_the_window() {
        let window = Window::new(seconds(150));
        let mut peak = Peak::default();
        peak.record(window.slot_at(seconds(7)), 9);
        let mut seen = Vec::new();
        for now in [8, 100, 157, 165] {
            peak.record(window.slot_at(seconds(now)), 1);
            seen.push(peak.largest());
        }
        assert_eq!(seen, [9, 9, 9, 1]);
    }

    #[test]
    fn a_pause_longer_than_the_window_clears_all_slots() {
        let window = Window::new(seconds(150));
        let mut peak = Peak::default();
        peak.record(window.slot_at(seconds(1)), 9);
        peak.record(window.slot_at(seconds(100_000)), 0);
        assert_eq!(peak.largest(), 0);
    }

    #[test]
    fn the_peak_equals_the_maximum_within_the_window() {
        let window = Window::new(seconds(30));
        let mut peak = Peak::default();
        let mut all = Vec::new();
        for now in 0..500u64 {
            let length = (now * now * 7919 % 101) as u32;
            all.push((now, length));
            peak.record(window.slot_at(seconds(now)), length);
            let over = |span: u64| {
                all.iter()
                    .filter(|(at, _)| at + span >= now)
                    .map(|(_, length)| *length)
                    .max()
                    .unwrap()
            };
            let largest = peak.largest();
            assert!(over(30) <= largest && largest <= over(31), "at {now}: {largest}");
        }
    }
}
