//! Owns servers: a thread that accepts from one listener at a chosen pace.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::listener::Listener;

/// The longest a server sleeps before it looks whether it shall stop.
const TURN: Duration = Duration::from_millis(20);

/// How a server accepts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// At once.
    Fast,
    /// At most so many connections a second, evenly spaced.
    PerSecond(f64),
    /// Not at all.
    Never,
    /// Everything that waits, after each pause.
    Bursts(Duration),
}

/// A running server. It stops when dropped.
#[derive(Debug)]
pub struct Server {
    accepted: Arc<AtomicU64>,
    stop: Sender<()>,
    thread: Option<JoinHandle<Listener>>,
}

/// What the server's thread works with.
struct Worker {
    listener: Listener,
    pace: Pace,
    hold: Duration,
    held: VecDeque<(Instant, Socket)>,
    next: Instant,
    accepted: Arc<AtomicU64>,
    stop: Receiver<()>,
}

// === impl Server ===

impl Server {
    /// Serves `listener` at this pace; each connection is closed as soon as it is accepted.
    #[must_use]
    pub fn start(listener: Listener, pace: Pace) -> Self {
        Self::start_holding(listener, pace, Duration::ZERO)
    }

    /// Serves `listener` at this pace; each connection is closed when it was held for `hold`.
    #[must_use]
    pub fn start_holding(listener: Listener, pace: Pace, hold: Duration) -> Self {
        let accepted = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = channel();
        let worker = Worker {
            listener,
            pace,
            hold,
            held: VecDeque::new(),
            next: Instant::now(),
            accepted: Arc::clone(&accepted),
            stop: stopped,
        };
        Self { accepted, stop, thread: Some(thread::spawn(|| worker.run())) }
    }

    /// One server, with a thread of its own, for each of the listeners.
    #[must_use]
    pub fn start_each(listeners: impl IntoIterator<Item = Listener>, pace: Pace) -> Vec<Self> {
        listeners.into_iter().map(|listener| Self::start(listener, pace)).collect()
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Stops within 100 ms, closes the connections it holds, and gives the open listener back.
    ///
    /// # Panics
    ///
    /// When the server's thread panicked.
    pub fn stop(mut self) -> Listener {
        let thread = self.thread.take().expect("only stop and drop take the thread");
        let _ = self.stop.send(());
        thread.join().expect("the server's thread panicked")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

// === impl Worker ===

impl Worker {
    fn run(mut self) -> Listener {
        loop {
            let pause = self.turn();
            if self.stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return self.listener;
            }
            self.release();
        }
    }

    /// Does what the pace asks for now, and says how long to sleep before the next turn.
    fn turn(&mut self) -> Duration {
        let until_next = self.next.saturating_duration_since(Instant::now());
        match self.pace {
            Pace::Never => return TURN,
            Pace::PerSecond(_) | Pace::Bursts(_) if until_next > Duration::ZERO => {
                return until_next.min(TURN);
            }
            Pace::Fast => {
                self.listener.wait(TURN);
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

    /// Takes one connection if it comes in time; one taken late does not delay the next.
    fn take_one(&mut self, rate: f64) {
        self.listener.wait(TURN);
        if self.take(1) == 1 {
            self.next = (self.next + Duration::from_secs_f64(1.0 / rate)).max(Instant::now());
        }
    }

    fn take(&mut self, most: usize) -> usize {
        let mut taken = 0;
        for connection in self.listener.drain().take(most) {
            taken += 1;
            self.accepted.fetch_add(1, Ordering::Relaxed);
            if self.hold > Duration::ZERO {
                self.held.push_back((Instant::now() + self.hold, connection));
            }
        }
        taken
    }

    /// Closes what was held long enough.
    fn release(&mut self) {
        let now = Instant::now();
        while self.held.pop_front_if(|(end, _)| *end <= now).is_some() {}
    }
}
