//! Formats once the text that all series of a namespace or listener share, such as their labels.

use std::ops::{Index, Range};

use crate::view::View;

use super::table::{self, LISTENER, NETNS, Subject};

/// A formatted block for each namespace and listener of a view. `B` is a buffer of text or bytes.
pub(super) struct PerSubject<B> {
    namespaces: Blocks<B>,
    listeners: Blocks<B>,
}

/// The blocks of consecutive subjects in one buffer.
#[derive(Default)]
struct Blocks<B> {
    buffer: B,
    ends: Vec<usize>,
}

// === impl PerSubject ===

impl<B: Default + AsRef<[u8]> + Index<Range<usize>>> PerSubject<B> {
    /// Formats all blocks. `write` appends the block of a subject, whose labels have these names.
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

    /// The block of a subject, and the number of its labels; listenq itself has none.
    pub(super) fn of(&self, subject: Subject<'_>) -> (Option<&B::Output>, usize) {
        match subject {
            Subject::SelfStats => (None, 0),
            Subject::Netns(place, _) => (Some(self.namespaces.get(place)), NETNS.len()),
            Subject::Listener(place, ..) => (Some(self.listeners.get(place)), LISTENER.len()),
        }
    }

    /// The number of listeners, and the bytes of all their blocks.
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
