//! A cap on open connections: whatever clients do, descriptors and memory stay bounded. When every place is taken, the
//! connection let in longest ago gives its own up, so that nobody who leaves handshakes or requests half-done, asks without
//! end or leaves answers unread keeps out one who asks. The first request of a connection is answered in any case.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Extension, Request};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::oneshot;

/// The places of all connections.
#[derive(Clone, Debug)]
pub(super) struct Places {
    most: usize,
    taken: Arc<Mutex<Taken>>,
}

/// A place taken: given back when the connection, and with it its service, ends.
#[derive(Debug)]
pub(super) struct Place {
    key: u64,
    places: Places,
    /// Whether it has not asked yet.
    is_new: AtomicBool,
}

/// Done when the place is lost.
pub(super) type Eviction = oneshot::Receiver<()>;

#[derive(Debug, Default)]
struct Taken {
    /// The key of the next one, larger than all before it.
    next: u64,
    by_key: BTreeMap<u64, Seat>,
}

/// One connection.
#[derive(Debug)]
struct Seat {
    /// Whether its first request is being answered.
    is_attended: bool,
    /// Dropping it ends the connection.
    _evict: oneshot::Sender<()>,
}

/// Keeps the place of a connection while its first request is answered. To take the answer is up to the client again.
pub(super) async fn attend(
    Extension(place): Extension<Arc<Place>>,
    request: Request,
    next: Next,
) -> Response {
    place.attend(place.is_new.swap(false, Ordering::Relaxed));
    let response = next.run(request).await;
    place.attend(false);
    response
}

// === impl Places ===

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self { most, taken: Arc::default() }
    }

    /// Takes a place, if need be that of another; fails where all of them are answered for the first time.
    pub(super) fn take(&self) -> io::Result<(Place, Eviction)> {
        let mut taken = self.taken();
        if taken.by_key.len() >= self.most {
            let oldest = taken.by_key.iter().find(|(_, seat)| !seat.is_attended);
            let oldest = oldest.map(|(key, _)| *key);
            let oldest = oldest.ok_or_else(|| io::Error::other("too many connections"))?;
            taken.by_key.remove(&oldest);
        }
        let (evict, eviction) = oneshot::channel();
        let key = taken.next;
        taken.next += 1;
        taken.by_key.insert(key, Seat { is_attended: false, _evict: evict });
        Ok((Place { key, places: self.clone(), is_new: true.into() }, eviction))
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Place ===

impl Place {
    fn attend(&self, is_attended: bool) {
        if let Some(seat) = self.places.taken().by_key.get_mut(&self.key) {
            seat.is_attended = is_attended;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().by_key.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    /// Whether each of them has lost its place.
    fn lost<const N: usize>(taken: &mut [(Place, Eviction); N]) -> [bool; N] {
        taken.each_mut().map(|(_, eviction)| eviction.try_recv() != Err(TryRecvError::Empty))
    }

    #[test]
    fn who_was_let_in_longest_ago_loses_the_place_unless_attended() {
        let places = Places::new(3);
        let mut first = [(); 3].map(|()| places.take().unwrap());
        first[0].0.attend(true);
        let _newcomer = places.take().unwrap();
        assert_eq!(lost(&mut first), [false, true, false]);
        first[0].0.attend(false);
        let _newcomer = places.take().unwrap();
        assert_eq!(first[0].1.try_recv(), Err(TryRecvError::Closed));
        assert_eq!(first[2].1.try_recv(), Err(TryRecvError::Empty));
    }

    #[test]
    fn nobody_loses_the_place_while_one_is_free_or_all_are_attended() {
        let places = Places::new(3);
        let mut taken = [(); 3].map(|()| places.take().unwrap());
        taken.iter().for_each(|(place, _)| place.attend(true));
        assert!(places.take().is_err());
        assert_eq!(lost(&mut taken), [false; 3]);
        drop(taken);
        let mut again = [(); 3].map(|()| places.take().unwrap());
        assert_eq!(lost(&mut again), [false; 3]);
    }

    #[test]
    fn a_place_that_was_lost_is_not_given_back_twice() {
        let places = Places::new(1);
        let (first, _) = places.take().unwrap();
        let (second, mut eviction) = places.take().unwrap();
        drop(first);
        assert_eq!(eviction.try_recv(), Err(TryRecvError::Empty));
        second.attend(true);
        assert!(places.take().is_err());
    }
}
