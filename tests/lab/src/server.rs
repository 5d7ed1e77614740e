//! Servers: a thread that accepts from one listener at a chosen pace.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::listener::{Listener, accepted, wait_for};

/// The longest sleep before a server checks whether to stop.
const TURN: Duration = Duration::from_millis(20);
/// The longest sleep while clients may send a request.
const SHORT_TURN: Duration = Duration::from_millis(1);
/// A client that sends nothing is closed after this time.
const MOST_SILENT: Duration = Duration::from_secs(10);

/// The pace at which a server accepts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// At once.
    Fast,
    /// At most this number of connections per second, evenly spaced.
    PerSecond(f64),
    /// Not at all.
    Never,
    /// All waiting connections, after each pause.
    Bursts(Duration),
}

/// What a server does with a connection it accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Service {
    /// Closes the connection after this time.
    Hold(Duration),
    /// Waits for the client's first data or FIN, sends this answer, and closes.
    Answer(Vec<u8>),
}

/// A non-blocking listen socket from which connections are accepted.
pub trait Accept: Send + 'static {
    /// The socket itself.
    fn listen_socket(&self) -> &Socket;
}

/// A running server. It stops when dropped.
#[derive(Debug)]
pub struct Server<L = Listener> {
    accepted: Arc<AtomicU64>,
    stop: Sender<()>,
    thread: Option<JoinHandle<L>>,
}

/// The state of the server's thread.
struct Worker<L> {
    listener: L,
    pace: Pace,
    service: Service,
    held: VecDeque<(Instant, Socket)>,
    next: Instant,
    accepted: Arc<AtomicU64>,
    stop: Receiver<()>,
}

// === impl Server ===

impl<L: Accept> Server<L> {
    /// Serves `listener` at this pace; each connection is closed as soon as it is accepted.
    #[must_use]
    pub fn start(listener: L, pace: Pace) -> Self {
        Self::start_holding(listener, pace, Duration::ZERO)
    }

    /// Serves `listener` at this pace; each connection is closed after `hold`.
    #[must_use]
    pub fn start_holding(listener: L, pace: Pace, hold: Duration) -> Self {
        Self::start_serving(listener, pace, Service::Hold(hold))
    }

    /// Serves `listener` at this pace, and handles each connection in this way.
    #[must_use]
    pub fn start_serving(listener: L, pace: Pace, service: Service) -> Self {
        let accepted = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = channel();
        let worker = Worker {
            listener,
            pace,
            service,
            held: VecDeque::new(),
            next: Instant::now(),
            accepted: Arc::clone(&accepted),
            stop: stopped,
        };
        Self { accepted, stop, thread: Some(thread::spawn(|| worker.run())) }
    }

    /// Starts one server, with a separate thread, for each listener.
    #[must_use]
    pub fn start_each(listeners: impl IntoIterator<Item = L>, pace: Pace) -> Vec<Self> {
        listeners.into_iter().map(|listener| Self::start(listener, pace)).collect()
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Stops within 100 ms, closes the held connections, and returns the open listener.
    ///
    /// # Panics
    ///
    /// When the server's thread panicked.
    pub fn stop(mut self) -> L {
        let thread = self.thread.take().expect("only stop and drop take the thread");
        let _ = self.stop.send(());
        thread.join().expect("the server's thread panicked")
    }
}

impl<L> Drop for Server<L> {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

// === impl Service ===

impl Service {
    /// How long to keep a new connection; `None` if nothing is left to do for it.
    fn begin(&self, connection: &Socket) -> Option<Duration> {
        match self {
            Self::Hold(hold) => (*hold > Duration::ZERO).then_some(*hold),
            Self::Answer(text) => (!answered(connection, text)).then_some(MOST_SILENT),
        }
    }
}

// === impl Worker ===

impl<L: Accept> Worker<L> {
    fn run(mut self) -> L {
        loop {
            let pause = self.turn().min(self.longest());
            if self.stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return self.listener;
            }
            self.release();
        }
    }

    /// Accepts according to the pace, and returns how long to sleep before the next turn.
    fn turn(&mut self) -> Duration {
        let until_next = self.next.saturating_duration_since(Instant::now());
        match self.pace {
            Pace::Never => return TURN,
            Pace::PerSecond(_) | Pace::Bursts(_) if until_next > Duration::ZERO => {
                return until_next.min(TURN);
            }
            Pace::Fast => {
                wait_for(self.listener.listen_socket(), self.longest());
                self.take(usize::MAX);
            }
            Pace::PerSecond(rate) => self.take_one(rate),
            Pace::Bursts(pause) => {
                self.take(usize::MAX);
                self.next = Instant::now() + pause;
            }
        }
        Duration::ZERO
    }

    /// Takes one connection if it arrives in time; a late connection does not delay the next one.
    fn take_one(&mut self, rate: f64) {
        wait_for(self.listener.listen_socket(), self.longest());
        if self.take(1) == 1 {
            self.next = (self.next + Duration::from_secs_f64(1.0 / rate)).max(Instant::now());
        }
    }

    /// The longest sleep now: short while clients may send a request.
    fn longest(&self) -> Duration {
        let answers = matches!(self.service, Service::Answer(_)) && !self.held.is_empty();
        if answers { SHORT_TURN } else { TURN }
    }

    fn take(&mut self, most: usize) -> usize {
        let mut taken = 0;
        for connection in accepted(self.listener.listen_socket()).take(most) {
            taken += 1;
            self.accepted.fetch_add(1, Ordering::Relaxed);
            if let Some(hold) = self.service.begin(&connection) {
                self.held.push_back((Instant::now() + hold, connection));
            }
        }
        taken
    }

    /// Closes connections that were held long enough, and answers clients that sent a request.
    fn release(&mut self) {
        let now = Instant::now();
        while self.held.pop_front_if(|(end, _)| *end <= now).is_some() {}
        if let Service::Answer(text) = &self.service {
            self.held.retain(|(_, connection)| !answered(connection, text));
        }
    }
}

/// Answers a client that has sent a request or FIN. A client that left counts as answered.
fn answered(connection: &Socket, text: &[u8]) -> bool {
    let mut connection = connection;
    match connection.read(&mut [0; 4096]) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
        Err(_) => {}
        Ok(_) => {
            let _ = connection.write_all(text);
        }
    }
    true
}
