//! A cap on open connections: whatever clients do, descriptors and memory stay bounded.

use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;

use axum_server::accept::Accept;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_http::add_extension::AddExtension;

/// Lets only so many connections be open at once, and closes the others at once.
#[derive(Clone, Debug)]
pub(super) struct Capped {
    places: Arc<Semaphore>,
}

/// A place taken: given back when the connection, and with it its service, ends.
type Place = Arc<OwnedSemaphorePermit>;

// === impl Capped ===

impl Capped {
    pub(super) fn new(connections: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(connections)) }
    }
}

impl<I, S> Accept<I, S> for Capped {
    type Stream = I;
    type Service = AddExtension<S, Place>;
    type Future = Ready<io::Result<(I, Self::Service)>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let place = self.places.clone().try_acquire_owned();
        ready(match place {
            Ok(place) => Ok((stream, AddExtension::new(service, Arc::new(place)))),
            Err(_) => Err(io::Error::other("too many connections")),
        })
    }
}
