//! The formatted labels of namespaces and listeners: each is formatted once for all its series.

use std::ops::{Index, Range};

use crate::view::View;

use super::table::{self, LISTENER, NETNS, Subject};

/// The formatted labels of everything in a view. `B` is a buffer of text or bytes.
pub(super) struct Labels<B> {
    namespaces: Blocks<B>,
    listeners: Blocks<B>,
}

/// The labels of consecutive subjects in one buffer.
#[derive(Default)]
struct Blocks<B> {
    buffer: B,
    ends: Vec<usize>,
}

// === impl Labels ===

impl<B: Default + AsRef<[u8]> + Index<Range<usize>>> Labels<B> {
    /// Formats all labels. `write` appends the labels with these names of a subject.
    pub(super) fn new(view: &View, write: impl Fn(&mut B, &[&str], Subject<'_>)) -> Self {
        let (mut namespaces, mut listeners) = (Blocks::default(), Blocks::default());
        let push = |blocks: &mut Blocks<B>, names, subject| {
            write(&mut blocks.buffer, names, subject);
            blocks.ends.push(blocks.buffer.as_ref().len());
        };
        table::namespaces(view).for_each(|(subject, _)| push(&mut namespaces, NETNS, subject));
        table::listeners(view, None)
            .for_each(|(subject, _)| push(&mut listeners, LISTENER, subject));
        Self { namespaces, listeners }
    }

    /// The formatted labels of a subject, and their number; listenq itself has none.
    pub(super) fn of(&self, subject: Subject<'_>) -> (Option<&B::Output>, usize) {
        match subject {
            Subject::SelfStats => (None, 0),
            Subject::Netns(place, _) => (Some(self.namespaces.get(place)), NETNS.len()),
            Subject::Listener(place, ..) => (Some(self.listeners.get(place)), LISTENER.len()),
        }
    }

    /// The number of listeners, and the bytes of all their labels.
    pub(super) fn of_listeners(&self) -> (usize, usize) {
        (self.listeners.ends.len(), self.listeners.buffer.as_ref().len())
    }
}

// === impl Blocks ===

impl<B: Index<Range<usize>>> Blocks<B> {
    fn get(&self, place: usize) -> &B::Output {
        let start = place.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.buffer[start..self.ends[place]]
    }
}
