//! Hands views from the sampler to the readers: the sampler publishes a view, and readers take the
//! current view without waiting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use crate::view::View;

/// A view and the time of its publication.
#[derive(Clone, Debug)]
pub struct Published {
    pub view: View,
    at: Instant,
}

/// The sampler's side. Reuses the view before the last one as a buffer, unless a reader still holds
/// that view.
#[derive(Debug, Default)]
pub struct Publisher {
    current: Arc<ArcSwapOption<Published>>,
    spare: Option<Arc<Published>>,
}

/// The readers' side.
#[derive(Clone, Debug)]
pub struct Reader(Arc<ArcSwapOption<Published>>);

// === impl Published ===

impl Published {
    /// The time of publication. Two views of one publisher never have equal times.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// The time since publication.
    pub fn age(&self) -> Duration {
        self.at.elapsed()
    }
}

impl Default for Published {
    fn default() -> Self {
        Self { view: View::default(), at: Instant::now() }
    }
}

// === impl Publisher ===

impl Publisher {
    /// Calls `fill` to write a view and makes it the current one.
    pub fn publish(&mut self, fill: impl FnOnce(&mut View)) {
        let mut next = self.spare.take().unwrap_or_default();
        let published = Arc::make_mut(&mut next);
        fill(&mut published.view);
        published.at = Instant::now();
        self.spare = self.current.swap(Some(next));
    }

    /// A reader of the views that this publisher publishes.
    pub fn reader(&self) -> Reader {
        Reader(self.current.clone())
    }
}

// === impl Reader ===

impl Reader {
    /// The current view; `None` before the first sample.
    pub fn read(&self) -> Option<Arc<Published>> {
        self.0.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now_of(reader: &Reader) -> Option<u64> {
        reader.read().map(|published| published.view.now.as_secs())
    }

    #[test]
    fn a_reader_keeps_its_view_while_others_are_published() {
        let mut publisher = Publisher::default();
        let reader = publisher.reader();
        assert_eq!(now_of(&reader), None);
        publisher.publish(|view| view.now = Duration::from_secs(1));
        let kept = reader.read().unwrap();
        for second in 2..5 {
            publisher.publish(|view| view.now = Duration::from_secs(second));
            assert_eq!(now_of(&reader), Some(second));
        }
        assert_eq!(kept.view.now, Duration::from_secs(1));
    }
}
