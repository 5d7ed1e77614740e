//! A sliding window of numbered slots in constant space: slots that leave the window are lost.

use std::iter::repeat_n;

/// The values of the last `N` slots. A slot that was never written has the default value.
#[derive(Clone, Debug)]
pub(super) struct Ring<T, const N: usize> {
    slots: [T; N],
    newest: u64,
}

// === impl Ring ===

impl<T: Copy + Default, const N: usize> Ring<T, N> {
    /// A mutable reference to the value of `slot`. The window slides so that it holds the slot. A
    /// slot older than the window is treated as its newest slot.
    pub(super) fn at(&mut self, slot: u64) -> &mut T {
        if slot > self.newest {
            for gone in 0..(slot - self.newest).min(N as u64) {
                self.slots[place::<N>(slot - gone)] = T::default();
            }
            self.newest = slot;
        }
        &mut self.slots[place::<N>(self.newest)]
    }

    /// The slot that was written last.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// The values of the window that ends with `slot`, the oldest first.
    pub(super) fn until(&self, slot: u64) -> impl Iterator<Item = T> {
        let (older, newer) = self.unknown(slot);
        let (late, early) = self.slots.split_at(place::<N>(self.newest) + 1);
        let known = early.iter().chain(late).copied().skip(newer).take(N - newer - older);
        repeat_n(T::default(), older).chain(known).chain(repeat_n(T::default(), newer))
    }

    /// The same values as an array: copying small values costs less than iterating over them.
    pub(super) fn window(&self, slot: u64) -> [T; N] {
        let mut window = [T::default(); N];
        let (older, newer) = self.unknown(slot);
        let (late, early) = self.slots.split_at(place::<N>(self.newest) + 1);
        window[..early.len()].copy_from_slice(early);
        window[early.len()..].copy_from_slice(late);
        if older > 0 {
            window.copy_within(..N - older, older);
            window[..older].fill(T::default());
        }
        if newer > 0 {
            window.copy_within(newer.., 0);
            window[N - newer..].fill(T::default());
        }
        window
    }

    /// How many values of the window that ends with `slot` are older, and how many newer, than the
    /// known values.
    fn unknown(&self, slot: u64) -> (usize, usize) {
        let distance = |late: u64, early: u64| late.saturating_sub(early).min(N as u64) as usize;
        (distance(self.newest, slot), distance(slot, self.newest))
    }
}

impl<T: Copy + Default, const N: usize> Default for Ring<T, N> {
    fn default() -> Self {
        Self { slots: [T::default(); N], newest: 0 }
    }
}

fn place<const N: usize>(slot: u64) -> usize {
    (slot % N as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut ring: Ring<u32, 4> = Ring::default();
        *ring.at(1) += 2;
        *ring.at(1) += 1;
        *ring.at(3) += 5;
        let until = |ring: &Ring<u32, 4>, slot| {
            let all: Vec<u32> = ring.until(slot).collect();
            assert_eq!(all, ring.window(slot));
            all
        };
        assert_eq!(until(&ring, 3), [0, 3, 0, 5]);
        assert_eq!(until(&ring, 5), [0, 5, 0, 0]);
        assert_eq!(until(&ring, 1_000), [0; 4]);
        // The windows at earlier slots, as far as they are known.
        assert_eq!([2, 1, 0].map(|slot| until(&ring, slot)), [[0, 0, 3, 0], [0, 0, 0, 3], [0; 4]]);
        *ring.at(1_000) += 9;
        assert_eq!((ring.newest(), until(&ring, 1_000)), (1_000, vec![0, 0, 0, 9]));
    }
}
