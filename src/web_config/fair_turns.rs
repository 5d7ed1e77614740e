//! A lock granted to clients in turn: a client with many requests waits behind a client with one
//! request.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::client_address::ClientAddress;

/// The fair lock.
#[derive(Clone, Debug)]
pub struct FairTurns {
    most_waiting: usize,
    queue: Arc<Mutex<Queue>>,
}

/// The right to run. Dropping it passes the right to the next request.
#[derive(Debug)]
pub struct FairTurn(FairTurns);

#[derive(Debug, Default)]
struct Queue {
    is_taken: bool,
    /// The waiting clients, the next client first; each with its requests, the oldest first.
    clients: VecDeque<(ClientAddress, VecDeque<oneshot::Sender<FairTurn>>)>,
}

// === impl FairTurns ===

impl FairTurns {
    /// Creates a lock for which `most_waiting` requests may wait.
    pub fn new(most_waiting: usize) -> Self {
        Self { most_waiting, queue: Arc::default() }
    }

    /// Waits for a turn; `None` if too many requests wait, and no other client has more than this
    /// client.
    pub async fn take(&self, client: ClientAddress) -> Option<FairTurn> {
        let turn = {
            let mut queue = self.queue();
            if !queue.is_taken {
                queue.is_taken = true;
                return Some(FairTurn(self.clone()));
            }
            queue.enter(client, self.most_waiting)?
        };
        turn.await.ok()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Queue ===

impl Queue {
    fn enter(&mut self, client: ClientAddress, most: usize) -> Option<oneshot::Receiver<FairTurn>> {
        self.make_room(client, most)?;
        let (sender, receiver) = oneshot::channel();
        match self.clients.iter_mut().find(|(waiting, _)| *waiting == client) {
            Some((_, requests)) => requests.push_back(sender),
            None => self.clients.push_back((client, [sender].into())),
        }
        Some(receiver)
    }

    /// Makes room for a request of `client`: in a full queue the client with the most requests
    /// loses its newest request. `None` if that client is `client` itself.
    fn make_room(&mut self, client: ClientAddress, most: usize) -> Option<()> {
        let (mut total, mut own) = (0, 0);
        for (waiting, requests) in &mut self.clients {
            requests.retain(|request| !request.is_closed());
            total += requests.len();
            own += if *waiting == client { requests.len() } else { 0 };
        }
        if total < most {
            return Some(());
        }
        let (_, heaviest) = self.clients.iter_mut().max_by_key(|(_, requests)| requests.len())?;
        if heaviest.len() <= own + 1 {
            return None;
        }
        heaviest.pop_back().map(drop)
    }

    /// Returns the oldest request of the next client, and moves the client to the end.
    fn next(&mut self) -> Option<oneshot::Sender<FairTurn>> {
        while let Some((client, mut requests)) = self.clients.pop_front() {
            requests.retain(|request| !request.is_closed());
            let Some(next) = requests.pop_front() else { continue };
            if !requests.is_empty() {
                self.clients.push_back((client, requests));
            }
            return Some(next);
        }
        None
    }
}

// === impl FairTurn ===

impl Drop for FairTurn {
    fn drop(&mut self) {
        let next = {
            let mut queue = self.0.queue();
            let next = queue.next();
            queue.is_taken = next.is_some();
            next
        };
        if let Some(next) = next {
            // A cancelled request returns the turn, which is dropped here and passed on again.
            let _ = next.send(Self(self.0.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn client(number: u8) -> ClientAddress {
        IpAddr::from([192, 0, 2, number]).into()
    }

    /// Polls a future once.
    fn now<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_client_that_asks_once_waits_for_one_request_of_each_other() {
        let turns = FairTurns::new(10);
        let running = now(pin!(turns.take(client(1)))).unwrap();
        let mut many: Vec<_> = (0..9).map(|_| Box::pin(turns.take(client(1)))).collect();
        assert!(many.iter_mut().all(|request| now(request.as_mut()).is_none()));
        let mut one = pin!(turns.take(client(2)));
        assert!(now(one.as_mut()).is_none());
        drop(running);
        assert!(now(one.as_mut()).is_none());
        let first = now(many[0].as_mut()).unwrap().unwrap();
        drop(first);
        assert!(now(one.as_mut()).is_some());
    }

    #[test]
    fn too_many_requests_of_one_client_are_refused_and_those_of_another_are_not() {
        let turns = FairTurns::new(2);
        let _running = now(pin!(turns.take(client(1)))).unwrap();
        let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(turns.take(client(1)))).collect();
        assert!(waiting.iter_mut().all(|request| now(request.as_mut()).is_none()));
        assert!(now(pin!(turns.take(client(1)))).unwrap().is_none());
        assert!(now(pin!(turns.take(client(2)))).is_none());
        // A cancelled request frees its slot.
        waiting.pop();
        assert!(now(pin!(turns.take(client(1)))).is_none());
    }

    #[test]
    fn a_cancelled_request_does_not_lose_a_turn() {
        let turns = FairTurns::new(10);
        let running = now(pin!(turns.take(client(1)))).unwrap();
        let mut waiting: Vec<_> = (1..6).map(|n| Box::pin(turns.take(client(n)))).collect();
        assert!(waiting.iter_mut().all(|request| now(request.as_mut()).is_none()));
        drop(running);
        // The first request was given its turn and was not polled since; the second was not given a
        // turn.
        waiting.drain(..2);
        assert!(now(waiting[0].as_mut()).is_some());
        drop(waiting);
        assert!(now(pin!(turns.take(client(9)))).is_some());
    }
}
