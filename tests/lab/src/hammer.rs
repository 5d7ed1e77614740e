//! Open-loop load: clients arrive at a rate that does not depend on the server, and leave when
//! their patience ends.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::limits::raise_descriptor_limit;
pub use crate::visit::{Manner, Target};
use crate::visit::{News, Visit};

/// The longest sleep between two reads of the clock.
const TURN: Duration = Duration::from_millis(5);
/// The maximum duration of a load.
const LONGEST: Duration = Duration::from_secs(3600);

/// A load of clients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Arrivals per second.
    pub rate: f64,
    /// How long clients arrive, at most an hour.
    pub lasting: Duration,
    /// How long a client waits, from its start, to be served: until the server closes the
    /// connection.
    pub patience: Duration,
    /// The maximum number of clients at once; further arrivals are skipped and counted.
    pub at_once: usize,
}

/// The outcome of the clients: `started` is the sum of `served`, `gave_up` and `failed`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections started.
    pub started: u64,
    /// Handshakes complete on the client side; the server may have refused the last ACK.
    pub connected: u64,
    /// Connections closed by the server after the handshake.
    pub served: u64,
    /// Clients that left when their patience ended.
    pub gave_up: u64,
    /// Connections refused, reset or not started because of an error.
    pub failed: u64,
    /// Clients not started because too many others were open.
    pub skipped: u64,
    /// Clients that gave up before the handshake was complete.
    pub unconnected: u64,
    /// Failed clients: no socket listened.
    pub refused: u64,
    /// Failed clients: reset by the server.
    pub reset: u64,
    /// Failed clients: a full Unix queue returned `EAGAIN`.
    pub again: u64,
}

/// The outcome of clients that may have received answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The counts of the outcomes.
    pub tally: Tally,
    /// The number of served clients by the first line of their answer; an empty line means no
    /// answer.
    pub answers: BTreeMap<String, u64>,
}

/// The open clients by number, oldest first.
struct Crowd<'a> {
    target: Target,
    load: Load,
    manner: &'a Manner,
    epoll: OwnedFd,
    open: HashMap<u64, Visit>,
    leaving: VecDeque<(Instant, u64)>,
    outcome: Outcome,
}

/// Sends clients to `address` according to `load` and returns when the last client has been served
/// or has left.
///
/// Uses only the calling thread; the clients are in the thread's namespace.
///
/// # Panics
///
/// When the address is not local or the load is not bounded.
#[must_use]
pub fn hammer(address: SocketAddr, load: Load) -> Tally {
    try_hammer(address, load).unwrap_or_else(|e| panic!("{e:#}"))
}

/// Like [`hammer`], but returns errors.
///
/// # Errors
///
/// When the address is not local or the load is not bounded.
pub fn try_hammer(address: SocketAddr, load: Load) -> Result<Tally> {
    Ok(try_visit(&address.into(), load, &Manner::default())?.tally)
}

/// Like [`hammer`], for a TCP or Unix listener, with clients that send a request and receive an
/// answer.
///
/// # Panics
///
/// When the address is not local or the load is not bounded.
#[must_use]
pub fn visit(target: impl Into<Target>, load: Load, manner: &Manner) -> Outcome {
    try_visit(&target.into(), load, manner).unwrap_or_else(|e| panic!("{e:#}"))
}

fn try_visit(target: &Target, load: Load, manner: &Manner) -> Result<Outcome> {
    target.ensure_local()?;
    ensure!(
        load.rate > 0.0 && load.rate <= 1e6,
        "a rate is above 0 and at most a million per second"
    );
    ensure!(load.lasting <= LONGEST && load.patience <= LONGEST, "a load lasts at most an hour");
    raise_descriptor_limit();
    let epoll = epoll::create(CreateFlags::CLOEXEC).context("making an epoll descriptor")?;
    let (open, leaving, outcome) = (HashMap::new(), VecDeque::new(), Outcome::default());
    let target = target.clone();
    let crowd = Crowd { target, load, manner, epoll, open, leaving, outcome };
    crowd.run().context("waiting for clients")
}

// === impl Crowd ===

impl Crowd<'_> {
    fn run(mut self) -> io::Result<Outcome> {
        let (begin, mut arrived) = (Instant::now(), 0);
        loop {
            let elapsed = begin.elapsed().min(self.load.lasting);
            let due = (elapsed.as_secs_f64() * self.load.rate) as u64;
            for n in arrived..due {
                self.arrive(n);
            }
            arrived = due;
            if elapsed == self.load.lasting && self.open.is_empty() {
                return Ok(self.outcome);
            }
            self.serve()?;
            self.leave();
        }
    }

    fn arrive(&mut self, n: u64) {
        if self.open.len() >= self.load.at_once {
            self.outcome.tally.skipped += 1;
            return;
        }
        self.outcome.tally.started += 1;
        match self.begin(n) {
            Ok(client) => {
                self.open.insert(n, client);
                self.leaving.push_back((Instant::now() + self.load.patience, n));
            }
            Err(e) => self.outcome.tally.fail(&e),
        }
    }

    fn begin(&self, n: u64) -> io::Result<Visit> {
        let client = Visit::begin(&self.target, n as usize)?;
        let news = EventFlags::OUT | EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, client.socket(), EventData::new_u64(n), news)?;
        Ok(client)
    }

    /// Waits briefly for events of the clients and records them.
    fn serve(&mut self) -> io::Result<()> {
        let turn = TURN.min(Duration::from_secs_f64(1.0 / self.load.rate));
        let turn = Timespec::try_from(turn).map_err(io::Error::other)?;
        let mut events: Vec<Event> = Vec::with_capacity(256);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&turn)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        for event in events {
            self.note(event.data.u64(), event.flags);
        }
        Ok(())
    }

    fn note(&mut self, n: u64, flags: EventFlags) {
        let Some(client) = self.open.get_mut(&n) else {
            return;
        };
        let (before, tally) = (client.connected, &mut self.outcome.tally);
        let news = client.note(flags, self.manner);
        tally.connected += u64::from(client.connected && !before);
        match news {
            News::Nothing => return,
            News::Served(answer) => {
                tally.served += 1;
                *self.outcome.answers.entry(answer).or_default() += 1;
            }
            News::Failed(e) => tally.fail(&e),
        }
        self.open.remove(&n);
    }

    /// Closes the clients whose patience has ended.
    fn leave(&mut self) {
        let now = Instant::now();
        while let Some((_, n)) = self.leaving.pop_front_if(|(end, _)| *end <= now) {
            if let Some(client) = self.open.remove(&n) {
                self.outcome.tally.gave_up += 1;
                self.outcome.tally.unconnected += u64::from(!client.connected);
                client.leave(self.manner);
            }
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// The number of answers with this HTTP status.
    #[must_use]
    pub fn status(&self, status: u16) -> u64 {
        let (status, mut count) = (status.to_string(), 0);
        for (line, n) in &self.answers {
            count += if line.split(' ').nth(1) == Some(&status) { *n } else { 0 };
        }
        count
    }

    /// The number of clients that received an answer.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answers.iter().filter(|(line, _)| !line.is_empty()).map(|(_, n)| n).sum()
    }
}

// === impl Tally ===

impl Tally {
    fn fail(&mut self, e: &io::Error) {
        self.failed += 1;
        match Errno::from_io_error(e) {
            Some(Errno::CONNREFUSED) => self.refused += 1,
            Some(Errno::CONNRESET) => self.reset += 1,
            Some(Errno::AGAIN) => self.again += 1,
            _ => {}
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { started, connected, served, gave_up, failed, skipped, .. } = self;
        let Self { unconnected, refused, reset, again, .. } = self;
        write!(f, "started={started} connected={connected} served={served} ")?;
        write!(f, "gave_up={gave_up} failed={failed} skipped={skipped} ")?;
        write!(f, "unconnected={unconnected} refused={refused} reset={reset} again={again}")
    }
}
