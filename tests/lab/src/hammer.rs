//! Owns open-loop load: clients that arrive at a rate whatever the server does, and leave when they lose patience.

use std::collections::{HashMap, VecDeque};
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
use socket2::Socket;

use crate::address::ensure_local;
use crate::client::connect;
use crate::limits::raise_descriptor_limit;

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
}

/// The clients now open, oldest first by their number.
struct Crowd {
    address: SocketAddr,
    load: Load,
    epoll: OwnedFd,
    open: HashMap<u64, Client>,
    leaving: VecDeque<(Instant, u64)>,
    tally: Tally,
}

struct Client {
    socket: Socket,
    connected: bool,
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
    ensure_local(address)?;
    ensure!(
        load.rate > 0.0 && load.rate <= 1e6,
        "a rate is above 0 and at most a million per second"
    );
    ensure!(load.lasting <= LONGEST && load.patience <= LONGEST, "a load lasts at most an hour");
    raise_descriptor_limit();
    let epoll = epoll::create(CreateFlags::CLOEXEC).context("making an epoll descriptor")?;
    let tally = Tally::default();
    let crowd =
        Crowd { address, load, epoll, open: HashMap::new(), leaving: VecDeque::new(), tally };
    crowd.run().context("waiting for clients")
}

// === impl Crowd ===

impl Crowd {
    fn run(mut self) -> io::Result<Tally> {
        let (begin, mut arrived) = (Instant::now(), 0);
        loop {
            let elapsed = begin.elapsed().min(self.load.lasting);
            let due = (elapsed.as_secs_f64() * self.load.rate) as u64;
            for n in arrived..due {
                self.arrive(n);
            }
            arrived = due;
            if elapsed == self.load.lasting && self.open.is_empty() {
                return Ok(self.tally);
            }
            self.serve()?;
            self.leave();
        }
    }

    fn arrive(&mut self, n: u64) {
        if self.open.len() >= self.load.at_once {
            self.tally.skipped += 1;
            return;
        }
        self.tally.started += 1;
        match self.begin(n) {
            Ok(socket) => {
                self.open.insert(n, Client { socket, connected: false });
                self.leaving.push_back((Instant::now() + self.load.patience, n));
            }
            Err(_) => self.tally.failed += 1,
        }
    }

    fn begin(&self, n: u64) -> io::Result<Socket> {
        let socket = connect(self.address, n as usize)?;
        let news = EventFlags::OUT | EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, &socket, EventData::new_u64(n), news)?;
        Ok(socket)
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
        let failed = flags.contains(EventFlags::ERR);
        if flags.contains(EventFlags::OUT) && !failed && !client.connected {
            client.connected = true;
            self.tally.connected += 1;
        }
        if failed {
            self.tally.failed += 1;
        } else if flags.intersects(EventFlags::RDHUP | EventFlags::HUP) {
            self.tally.served += 1;
        } else {
            return;
        }
        self.open.remove(&n);
    }

    /// Lets those go whose patience is over.
    fn leave(&mut self) {
        let now = Instant::now();
        while let Some((_, n)) = self.leaving.pop_front_if(|(end, _)| *end <= now) {
            if let Some(client) = self.open.remove(&n) {
                self.tally.gave_up += 1;
                drop(client.socket);
            }
        }
    }
}

// === impl Tally ===

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { started, connected, served, gave_up, failed, skipped } = self;
        write!(f, "started={started} connected={connected} served={served} ")?;
        write!(f, "gave_up={gave_up} failed={failed} skipped={skipped}")
    }
}
