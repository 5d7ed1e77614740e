//! Limits open connections, and the bytes of rendered answers that wait for their clients. At a
//! limit, the client address with the most connections loses some of them, so that a client at
//! another address is always served.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use axum::extract::{Extension, Request};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;

use crate::web_config::client_address::ClientAddress;

use super::render::Rendered;

/// Bytes of distinct rendered answers that may wait for their clients.
const MOST_BYTES: usize = 4 << 20;
/// Maximum number of large answers that may wait: enough for several Prometheus servers at once.
const MOST_ANSWERS: usize = 3;
/// Connections that may have a large send buffer at once, in total and per client.
const LARGE_BUFFERS: usize = 12;
const LARGE_BUFFERS_PER_CLIENT: usize = 2;

/// The permits of all connections of one listenq.
#[derive(Clone, Debug)]
pub(super) struct ConnectionPermits {
    most: usize,
    connections: Arc<Mutex<Connections>>,
}

/// The permit of one connection; dropping it returns the permit.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    id: u64,
    client: ClientAddress,
    has_large_buffer: bool,
    permits: ConnectionPermits,
    /// Whether the connection has sent no request yet.
    is_new: AtomicBool,
    /// Whether a response was queued and is not known to be written.
    is_answered: AtomicBool,
    /// Whether a write waits for the client to read.
    is_blocked: AtomicBool,
    flushed: Notify,
}

/// Completes when the permit is revoked.
pub(super) type Eviction = oneshot::Receiver<()>;

#[derive(Debug, Default)]
struct Connections {
    /// The id of the next connection, larger than all earlier ones.
    next: u64,
    by_id: BTreeMap<u64, Connection>,
    by_client: BTreeMap<ClientAddress, OfClient>,
    large_buffers: usize,
}

/// The connections of one client.
#[derive(Debug, Default)]
struct OfClient {
    /// The connections in the order of eviction.
    connections: BTreeSet<(Phase, u64)>,
    large_buffers: usize,
}

#[derive(Debug)]
struct Connection {
    client: ClientAddress,
    phase: Phase,
    /// The rendered answer that is being written to the connection.
    sending: Weak<Rendered>,
    has_large_buffer: bool,
    /// Dropping it ends the connection.
    _evict: oneshot::Sender<()>,
}

/// The state of a connection; earlier variants are evicted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// The connection has sent no whole request, or has received the answer to its first request.
    Idle,
    /// The client does not read the data written to it.
    Blocked,
    /// The first request is being answered.
    Answering,
}

/// Runs a request of a connection once the previous answer is written, and protects the connection
/// from eviction until its first answer is written.
pub(super) async fn attend(
    Extension(permit): Extension<Arc<ConnectionPermit>>,
    mut request: Request,
    next: Next,
) -> Response {
    permit.flushed().await;
    if !permit.begin() {
        // A connection with many pipelined requests runs one request, and then yields to other
        // connections.
        yield_now().await;
    }
    request.extensions_mut().insert(permit.client);
    let mut response = next.run(request).await;
    permit.answered(response.extensions_mut().remove());
    response
}

// === impl ConnectionPermits ===

impl ConnectionPermits {
    pub(super) fn new(most: usize) -> Self {
        Self { most, connections: Arc::default() }
    }

    /// Takes a permit, if necessary from another connection; fails if every evictable connection is
    /// receiving its first answer.
    pub(super) fn take(&self, client: ClientAddress) -> io::Result<(ConnectionPermit, Eviction)> {
        let mut connections = self.connections();
        if connections.by_id.len() >= self.most {
            let victim = connections.victim(client);
            let victim = victim.ok_or_else(|| io::Error::other("too many connections"))?;
            connections.remove(victim);
        }
        let (id, has_large_buffer, eviction) = connections.add(client);
        let permit = ConnectionPermit {
            id,
            client,
            has_large_buffer,
            permits: self.clone(),
            is_new: true.into(),
            is_answered: false.into(),
            is_blocked: false.into(),
            flushed: Notify::new(),
        };
        Ok((permit, eviction))
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Connections ===

impl Connections {
    fn add(&mut self, client: ClientAddress) -> (u64, bool, Eviction) {
        let (evict, eviction) = oneshot::channel();
        let id = self.next;
        self.next += 1;
        let of_client = self.by_client.entry(client).or_default();
        let has_large_buffer = self.large_buffers < LARGE_BUFFERS
            && of_client.large_buffers < LARGE_BUFFERS_PER_CLIENT;
        self.large_buffers += usize::from(has_large_buffer);
        of_client.large_buffers += usize::from(has_large_buffer);
        let phase = Phase::Idle;
        of_client.connections.insert((phase, id));
        let sending = Weak::new();
        let connection = Connection { client, phase, sending, has_large_buffer, _evict: evict };
        self.by_id.insert(id, connection);
        (id, has_large_buffer, eviction)
    }

    fn remove(&mut self, id: u64) {
        let Some(removed) = self.by_id.remove(&id) else { return };
        let large_buffer = usize::from(removed.has_large_buffer);
        self.large_buffers -= large_buffer;
        let Some(of_client) = self.by_client.get_mut(&removed.client) else { return };
        of_client.large_buffers -= large_buffer;
        of_client.connections.remove(&(removed.phase, id));
        if of_client.connections.is_empty() {
            self.by_client.remove(&removed.client);
        }
    }

    fn set_phase(&mut self, id: u64, phase: Phase) {
        let Some(connection) = self.by_id.get_mut(&id) else { return };
        let before = std::mem::replace(&mut connection.phase, phase);
        if let Some(of_client) = self.by_client.get_mut(&connection.client) {
            of_client.connections.remove(&(before, id));
            of_client.connections.insert((phase, id));
        }
    }

    fn set_sending(&mut self, id: u64, sending: Weak<Rendered>) {
        if let Some(connection) = self.by_id.get_mut(&id) {
            connection.sending = sending;
        }
    }

    /// The connection to evict for a new connection of `client`: of the addresses with the most
    /// connections, the one in the earliest phase, and the oldest of those. No connection is
    /// evicted before its first answer is written for another connection of the same address.
    fn victim(&self, client: ClientAddress) -> Option<u64> {
        let held = |(address, of_client): (&ClientAddress, &OfClient)| {
            of_client.connections.len() + usize::from(*address == client)
        };
        let most = self.by_client.iter().map(held).max()?;
        let own = self.by_client.get(&client).map_or(0, |own| own.connections.len()) + 1;
        let heaviest = self.by_client.iter().filter(|of| held(*of) == most);
        let first = heaviest.filter_map(|(_, of_client)| of_client.connections.first()).min()?;
        match *first {
            (Phase::Answering, _) if own >= most => None,
            (_, id) => Some(id),
        }
    }

    /// Evicts connections until the rendered answers in flight, including `newest`, fit.
    fn make_room(&mut self, newest: &Rendered) {
        let most = MOST_BYTES.max(MOST_ANSWERS * newest.len());
        while self.bytes_in_flight() > most {
            let Some((client, answer)) = self.heaviest(newest.id) else { return };
            let is_victim = |connection: &Connection| {
                connection.client == client && connection.sending_id() == Some(answer)
            };
            let victims = self.by_id.iter().filter(|(_, connection)| is_victim(connection));
            for victim in victims.map(|(id, _)| *id).collect::<Vec<_>>() {
                self.remove(victim);
            }
        }
    }

    fn bytes_in_flight(&self) -> usize {
        let sending = self.by_id.values().filter_map(|connection| connection.sending.upgrade());
        let distinct: BTreeMap<u64, usize> = sending.map(|text| (text.id, text.len())).collect();
        distinct.values().sum()
    }

    /// The client with the most connections that receive an older answer than `newest`, and the
    /// oldest of those answers.
    fn heaviest(&self, newest: u64) -> Option<(ClientAddress, u64)> {
        let mut held: HashMap<ClientAddress, (usize, u64)> = HashMap::new();
        for connection in self.by_id.values() {
            let Some(id) = connection.sending_id().filter(|id| *id != newest) else { continue };
            let (count, oldest) = held.entry(connection.client).or_insert((0, id));
            *count += 1;
            *oldest = id.min(*oldest);
        }
        let heaviest = held.into_iter().max_by_key(|(_, (count, _))| *count);
        heaviest.map(|(client, (_, oldest))| (client, oldest))
    }
}

// === impl Connection ===

impl Connection {
    fn sending_id(&self) -> Option<u64> {
        self.sending.upgrade().map(|answer| answer.id)
    }
}

// === impl ConnectionPermit ===

impl ConnectionPermit {
    pub(super) fn has_large_buffer(&self) -> bool {
        self.has_large_buffer
    }

    /// Records that a write waits for the client.
    pub(super) fn write_blocked(&self) {
        if !self.is_blocked.swap(true, Ordering::Relaxed) {
            self.permits.connections().set_phase(self.id, Phase::Blocked);
        }
    }

    /// Records that all data so far is written.
    pub(super) fn write_flushed(&self) {
        let was_blocked = self.is_blocked.swap(false, Ordering::Relaxed);
        if self.is_answered.swap(false, Ordering::Relaxed) || was_blocked {
            let mut connections = self.permits.connections();
            connections.set_phase(self.id, Phase::Idle);
            connections.set_sending(self.id, Weak::new());
            drop(connections);
            self.flushed.notify_waiters();
        }
    }

    /// Waits until no write is blocked: a client that sends requests and does not read has one
    /// answer in flight.
    async fn flushed(&self) {
        loop {
            let flushed = self.flushed.notified();
            if !self.is_blocked.load(Ordering::Relaxed) {
                return;
            }
            flushed.await;
        }
    }

    /// Records that a request is about to run; returns whether it is the first request.
    fn begin(&self) -> bool {
        let is_first = self.is_new.swap(false, Ordering::Relaxed);
        if is_first {
            self.permits.connections().set_phase(self.id, Phase::Answering);
        }
        is_first
    }

    fn answered(&self, rendered: Option<Weak<Rendered>>) {
        self.is_answered.store(true, Ordering::Relaxed);
        let Some(newest) = rendered.and_then(|sending| sending.upgrade()) else { return };
        let mut connections = self.permits.connections();
        connections.set_sending(self.id, Arc::downgrade(&newest));
        connections.make_room(&newest);
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.permits.connections().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    type Taken = (ConnectionPermit, Eviction);

    fn client(number: u8) -> ClientAddress {
        IpAddr::from([192, 0, 2, number]).into()
    }

    fn take(permits: &ConnectionPermits, number: u8) -> Taken {
        permits.take(client(number)).unwrap()
    }

    fn is_evicted(taken: &mut Taken) -> bool {
        taken.1.try_recv() != Err(TryRecvError::Empty)
    }

    fn evicted<const N: usize>(taken: &mut [Taken; N]) -> [bool; N] {
        taken.each_mut().map(is_evicted)
    }

    fn answer(permits: &ConnectionPermits, number: u8, bytes: usize) -> (Taken, Arc<Rendered>) {
        let rendered = Arc::new(Rendered::of_len(bytes));
        let taken = take(permits, number);
        assert!(taken.0.begin());
        taken.0.answered(Some(Arc::downgrade(&rendered)));
        (taken, rendered)
    }

    #[test]
    fn the_oldest_connection_is_evicted_unless_it_is_answered_for_the_first_time() {
        let permits = ConnectionPermits::new(3);
        let mut first = [(); 3].map(|()| take(&permits, 1));
        assert!(first[0].0.begin());
        let _new = take(&permits, 1);
        assert_eq!(evicted(&mut first), [false, true, false]);
        // An answer that is not written yet protects the connection.
        first[0].0.answered(None);
        let _new = take(&permits, 1);
        assert!(!is_evicted(&mut first[0]) && is_evicted(&mut first[2]));
        first[0].0.write_flushed();
        let _new = take(&permits, 1);
        assert!(is_evicted(&mut first[0]));
    }

    #[test]
    fn the_address_with_the_most_connections_loses_one_in_any_phase() {
        let permits = ConnectionPermits::new(4);
        let mut few = take(&permits, 1);
        let mut many = [(); 3].map(|()| take(&permits, 2));
        many.iter().for_each(|(permit, _)| assert!(permit.begin()));
        let mut other = take(&permits, 3);
        assert_eq!(evicted(&mut many), [true, false, false]);
        // A further connection of the same address is refused.
        assert!(permits.take(client(2)).is_err());
        assert!(!is_evicted(&mut few) && !is_evicted(&mut other));
    }

    #[test]
    fn a_client_that_does_not_read_is_evicted_before_one_that_is_answered() {
        let permits = ConnectionPermits::new(2);
        let mut taken = [(); 2].map(|()| take(&permits, 1));
        taken.iter().for_each(|(permit, _)| assert!(permit.begin()));
        taken[1].0.write_blocked();
        let _new = take(&permits, 1);
        assert_eq!(evicted(&mut taken), [false, true]);
    }

    #[test]
    fn no_connection_is_evicted_while_a_permit_is_free_or_all_are_answered() {
        let permits = ConnectionPermits::new(3);
        let mut taken = [(); 3].map(|()| take(&permits, 1));
        taken.iter().for_each(|(permit, _)| assert!(permit.begin()));
        assert!(permits.take(client(1)).is_err());
        assert_eq!(evicted(&mut taken), [false; 3]);
        drop(taken);
        let mut again = [(); 3].map(|()| take(&permits, 1));
        assert_eq!(evicted(&mut again), [false; 3]);
    }

    #[test]
    fn a_revoked_permit_is_not_given_back_twice() {
        let permits = ConnectionPermits::new(1);
        let (first, _) = take(&permits, 1);
        let mut second = take(&permits, 1);
        drop(first);
        assert!(!is_evicted(&mut second));
        assert!(second.0.begin());
        assert!(permits.take(client(1)).is_err());
    }

    #[test]
    fn old_answers_of_the_heaviest_address_make_room_for_new_ones() {
        let permits = ConnectionPermits::new(100);
        let part = MOST_BYTES / 8;
        let (mut few, _text) = answer(&permits, 1, part);
        let mut many: Vec<_> = (0..7).map(|_| answer(&permits, 2, part)).collect();
        assert!(many.iter_mut().all(|(taken, _)| !is_evicted(taken)));
        let (mut newest, _text) = answer(&permits, 2, part);
        let lost: Vec<bool> = many.iter_mut().map(|(taken, _)| is_evicted(taken)).collect();
        assert_eq!(lost, [true, false, false, false, false, false, false]);
        assert!(!is_evicted(&mut few) && !is_evicted(&mut newest));
    }

    #[test]
    fn some_answers_are_kept_however_large_they_are() {
        let permits = ConnectionPermits::new(100);
        let mut taken: Vec<_> =
            (0..MOST_ANSWERS).map(|_| answer(&permits, 1, MOST_BYTES)).collect();
        assert!(taken.iter_mut().all(|(taken, _)| !is_evicted(taken)));
        let _newest = answer(&permits, 1, MOST_BYTES);
        assert!(is_evicted(&mut taken[0].0));
    }

    #[test]
    fn large_buffers_are_few_for_each_client_and_for_all() {
        let permits = ConnectionPermits::new(100);
        let mut large = |number| {
            let taken = take(&permits, number);
            let is_large = taken.0.has_large_buffer();
            std::mem::forget(taken);
            is_large
        };
        assert_eq!([1, 1, 1, 2].map(&mut large), [true, true, false, true]);
        assert_eq!((3..50).filter(|number| large(*number)).count(), LARGE_BUFFERS - 3);
    }
}
