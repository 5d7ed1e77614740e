//! Decides which sockets are tracked when there are more than the memory limit allows: fairly
//! between sources, and sockets with a queue or drops before idle sockets.

use rustc_hash::FxHashMap;

use super::source::Source;

/// The number of tracked sockets by source.
#[derive(Debug)]
pub(super) struct Tracking {
    max: usize,
    tracked: usize,
    by_source: FxHashMap<Source, usize>,
    omitted: usize,
}

// === impl Tracking ===

impl Tracking {
    /// Tracks up to `max` sockets.
    pub(super) fn new(max: usize) -> Self {
        Self { max, tracked: 0, by_source: FxHashMap::default(), omitted: 0 }
    }

    /// The number of tracked sockets.
    pub(super) fn tracked(&self) -> usize {
        self.tracked
    }

    /// The number of untracked sockets in the last dumps.
    pub(super) fn omitted(&self) -> usize {
        self.omitted
    }

    /// Replaces the number of sockets that the previous dump left out by the number of the new
    /// dump.
    pub(super) fn omit(&mut self, before: usize, now: usize) {
        self.omitted = self.omitted - before + now;
    }

    /// Whether one more socket of this source may be tracked. A source below its share may always
    /// add one. A socket that is not idle is admitted as long as the excess is at most a quarter of
    /// the limit: listenq then stops tracking idle sockets.
    pub(super) fn admits(&self, source: Source, is_idle: bool) -> bool {
        self.has_room()
            || self.held_by(source) < self.share()
            || !is_idle && self.tracked < self.max.saturating_add(self.max / 4)
    }

    /// Whether the number of tracked sockets is below the limit.
    pub(super) fn has_room(&self) -> bool {
        self.tracked < self.max
    }

    /// The number of sockets to give up.
    pub(super) fn excess(&self) -> usize {
        self.tracked.saturating_sub(self.max)
    }

    /// Whether a source holds more than its share.
    pub(super) fn holds_too_much(&self, source: Source) -> bool {
        self.held_by(source) > self.share()
    }

    /// Counts a socket that is now tracked.
    pub(super) fn add(&mut self, source: Source) {
        self.tracked += 1;
        *self.by_source.entry(source).or_default() += 1;
    }

    /// Counts a socket that is no longer tracked.
    pub(super) fn remove(&mut self, source: Source) {
        self.tracked -= 1;
        if let Some(held) = self.by_source.get_mut(&source) {
            *held -= 1;
            if *held == 0 {
                self.by_source.remove(&source);
            }
        }
    }

    fn held_by(&self, source: Source) -> usize {
        self.by_source.get(&source).copied().unwrap_or(0)
    }

    fn share(&self) -> usize {
        self.max / self.by_source.len().max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: Source = Source::User(1000);
    const OTHER: Source = Source::User(1001);

    /// How many of `count` sockets of a source that appear at once are tracked.
    fn come(tracking: &mut Tracking, source: Source, count: usize, is_idle: bool) -> usize {
        let admitted = (0..count).filter(|_| {
            let is_admitted = tracking.admits(source, is_idle);
            if is_admitted {
                tracking.add(source);
            }
            is_admitted
        });
        admitted.count()
    }

    #[test]
    fn a_source_tracks_more_than_its_share_only_while_there_is_room() {
        let mut tracking = Tracking::new(100);
        assert_eq!(come(&mut tracking, USER, 500, true), 100);
        // The other source has no share yet, and no free socket is left for its first one.
        assert_eq!(come(&mut tracking, OTHER, 500, true), 50);
        assert_eq!(tracking.excess(), 50);
        assert!(tracking.holds_too_much(USER) && !tracking.holds_too_much(OTHER));
        (0..50).for_each(|_| tracking.remove(USER));
        assert_eq!((tracking.excess(), tracking.holds_too_much(USER)), (0, false));
        assert_eq!(come(&mut tracking, USER, 5, true), 0);
        assert_eq!(come(&mut tracking, USER, 500, false), 25);
        (0..75).for_each(|_| tracking.remove(USER));
        (0..50).for_each(|_| tracking.remove(OTHER));
        assert_eq!((tracking.tracked(), tracking.by_source.len()), (0, 0));
    }
}
