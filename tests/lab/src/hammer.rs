//! Owns open-loop load: clients that arrive at a rate whatever the server does, and leave when they lose patience.

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

/// The longest sleep between two looks at the clock.
const TURN: Duration = Duration::from_millis(5);
/// No load lasts longer.
const LONGEST: Duration = Duration::from_secs(3600);

/// Clients to come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Arrivals per second.
    pub rate: f64,
    /// How long clients arrive, at most an hour.
    pub lasting: Duration,
    /// How long a client waits, from its start, to be served: until the server closes the connection.
    pub patience: Duration,
    /// Most clients at once; those who arrive beyond it are skipped, and counted.
    pub at_once: usize,
}

/// What became of the clients: `started` is the sum of `served`, `gave_up` and `failed`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections begun.
    pub started: u64,
    /// Handshakes finished as the client sees it; the server may have refused the last ACK.
    pub connected: u64,
    /// Closed by the server after the handshake.
    pub served: u64,
    /// Left because their patience was over.
    pub gave_up: u64,
    /// Refused, reset or never begun for an error.
    pub failed: u64,
    /// Not begun because too many others were open.
    pub skipped: u64,
    /// Of those that gave up: the handshake was not over.
    pub unconnected: u64,
    /// Of those that failed: nobody listened.
    pub refused: u64,
    /// Of those that failed: reset by the server.
    pub reset: u64,
    /// Of those that failed: a full Unix queue said "try again".
    pub again: u64,
}

/// What became of clients who may have been answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How they fared.
    pub tally: Tally,
    /// How many of those served got an answer that begins with this line; an empty one is no answer.
    pub answers: BTreeMap<String, u64>,
}

/// The clients now open, oldest first by their number.
struct Crowd<'a> {
    target: Target,
    load: Load,
    manner: &'a Manner,
    epoll: OwnedFd,
    open: HashMap<u64, Visit>,
    leaving: VecDeque<(Instant, u64)>,
    outcome: Outcome,
}

/// Sends clients to `address` as `load` says and returns when the last has been served or has left.
///
/// One thread, the calling one; its namespace is that of the clients.
///
/// # Panics
///
/// When the address is not local or the load is not bounded.
#[must_use]
pub fn hammer(address: SocketAddr, load: Load) -> Tally {
    try_hammer(address, load).unwrap_or_else(|e| panic!("{e:#}"))
}

/// As [`hammer`].
///
/// # Errors
///
/// When the address is not local or the load is not bounded.
pub fn try_hammer(address: SocketAddr, load: Load) -> Result<Tally> {
    Ok(try_visit(&address.into(), load, &Manner::default())?.tally)
}

/// As [`hammer`], to a TCP or Unix listener, with clients that say something and are answered.
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

    /// Waits a little for news of the clients and takes note of it.
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

    /// Lets those go whose patience is over.
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
    /// How many answers have this HTTP status.
    #[must_use]
    pub fn status(&self, status: u16) -> u64 {
        let (status, mut count) = (status.to_string(), 0);
        for (line, n) in &self.answers {
            count += if line.split(' ').nth(1) == Some(&status) { *n } else { 0 };
        }
        count
    }

    /// How many were told something.
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
