//! Values per second for the last half minute.

use std::time::Duration;

use crate::diagnosis::WINDOW;

use super::ring::Ring;

const SECONDS: usize = WINDOW.as_secs() as usize;

/// One value for each second of the last [`WINDOW`].
#[derive(Clone, Debug, Default)]
pub(super) struct Trailing<T: Copy + Default>(Ring<T, SECONDS>);

// === impl Trailing ===

impl<T: Copy + Default> Trailing<T> {
    /// A mutable reference to the value of the second that contains `now`.
    pub(super) fn at(&mut self, now: Duration) -> &mut T {
        self.0.at(now.as_secs())
    }

    /// The values within the window that ends at `now`.
    pub(super) fn within(&self, now: Duration) -> impl Iterator<Item = T> {
        self.0.until(now.as_secs())
    }
}

/// The length of the window at `now`. Its last second is not over yet.
pub(super) fn covered(now: Duration) -> Duration {
    Duration::new(WINDOW.as_secs() - 1, now.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut trailing = Trailing::default();
        let at = |millis| Duration::from_millis(millis);
        *trailing.at(at(500)) += 1;
        *trailing.at(at(900)) += 1;
        *trailing.at(at(10_000)) += 5;
        let sum = |trailing: &Trailing<u32>, now| trailing.within(at(now)).sum::<u32>();
        assert_eq!(
            [10_000, 29_999, 30_000, 39_999, 40_000].map(|now| sum(&trailing, now)),
            [7, 7, 5, 5, 0]
        );
        *trailing.at(at(1_000_000)) += 9;
        assert_eq!(sum(&trailing, 1_000_000), 9);
    }
}
