//! The ground truth about overflows: refusals of each port, counted from the packets on a
//! namespace's loopback.
//!
//! The kernel counts overflows for a whole namespace. On the wire each refusal belongs to a port: a
//! SYN without a SYN-ACK, or a packet of a client that does not complete the handshake.
//! [`Capture::stop`] returns both kinds for each port, without using `sk_drops`.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::setsockopt;
use nix::{setsockopt_impl, sockopt_impl};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

const BUFFER: usize = 64 << 20;
/// Bytes read of each packet: both headers with all options, and some data.
const MOST_READ: usize = 128;
const TURN: Duration = Duration::from_millis(50);

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

sockopt_impl!(
    /// Ignores outgoing packets: on loopback each packet leaves and arrives, and only the arrival
    /// counts.
    IgnoreOutgoing,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_IGNORE_OUTGOING,
    u32
);

/// A listener whose refusals are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    pub port: u16,
    /// Whether the listener defers accepting: a bare ACK then does not complete the handshake.
    pub deferred: bool,
}

/// The packets that one port refused because its queue was full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refusals {
    /// SYNs without a SYN-ACK.
    pub at_syn: u64,
    /// Packets that would have completed a handshake and did not.
    pub at_ack: u64,
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<HashMap<u16, Refusals>>>>,
}

/// The fields of a TCP segment that the capture needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    flags: u8,
    seq: u32,
    payload: usize,
}

/// The state of a connection as seen on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handshake {
    /// The last SYN has no SYN-ACK yet.
    Begun,
    /// A SYN-ACK was sent. `tries` packets could have completed the handshake since the last
    /// SYN-ACK; `bare` means that the first of them was only an ACK. Each SYN repeated in this
    /// state will cause one more SYN-ACK, counted in `owed`.
    HalfOpen { tries: u64, owed: u64, bare: bool },
    /// The server has put the connection into its accept queue.
    Open,
}

/// All packets captured so far.
#[derive(Debug, Default)]
struct Wire {
    watched: HashMap<u16, Watched>,
    handshakes: HashMap<((Ipv4Addr, u16), u16), (u32, Handshake)>,
    refusals: HashMap<u16, Refusals>,
}

// === impl Refusals ===

impl Refusals {
    /// The sum of both kinds.
    #[must_use]
    pub fn all(self) -> u64 {
        self.at_syn + self.at_ack
    }
}

// === impl Capture ===

impl Capture {
    /// Captures the packets to these ports of `ns` over IPv4. Needs `CAP_NET_RAW`.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    #[must_use]
    pub fn start(ns: &Netns, watched: &[Watched]) -> Self {
        let socket = ns.run(open).unwrap_or_else(|e| panic!("{e:#}"));
        let watched = watched.iter().map(|one| (one.port, *one)).collect();
        let wire = Wire { watched, ..Wire::default() };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || wire.read(socket, &stopped));
        Self { stop, thread: Some(thread) }
    }

    /// Reads the packets captured so far and stops. Handshakes that are not complete at that time
    /// count as refused.
    ///
    /// # Panics
    ///
    /// When the capture failed.
    #[must_use]
    pub fn stop(mut self) -> HashMap<u16, Refusals> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("only stop and drop take the thread");
        thread.join().expect("the capture's thread panicked").unwrap_or_else(|e| panic!("{e:#}"))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn open() -> Result<Socket> {
    let protocol = Protocol::from(i32::from((libc::ETH_P_IP as u16).to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))
        .context("opening a packet socket")?;
    setsockopt(&socket, IgnoreOutgoing, &1).context("ignoring outgoing packets")?;
    set_socket_recv_buffer_size_force(&socket, BUFFER).context("making room for packets")?;
    socket.set_read_timeout(Some(TURN)).context("setting a read timeout")?;
    Ok(socket)
}

// === impl Handshake ===

impl Handshake {
    fn half_open() -> Self {
        Self::HalfOpen { tries: 0, owed: 0, bare: false }
    }

    fn owing(self) -> Self {
        match self {
            Self::HalfOpen { tries, owed, bare } => Self::HalfOpen { tries, owed: owed + 1, bare },
            state => state,
        }
    }

    fn try_to_finish(&mut self, is_bare: bool) {
        if let Self::HalfOpen { tries, bare, .. } = self {
            *bare = if *tries == 0 { is_bare } else { *bare };
            *tries += 1;
        }
    }
}

// === impl Wire ===

impl Wire {
    fn read(mut self, mut socket: Socket, stop: &AtomicBool) -> Result<HashMap<u16, Refusals>> {
        let mut packet = [0; MOST_READ];
        loop {
            match socket.read(&mut packet) {
                Ok(length) => {
                    if let Some(segment) = Segment::parse(&packet[..length]) {
                        self.see(segment);
                    }
                }
                Err(e) if is_timeout(&e) && stop.load(Ordering::Relaxed) => break,
                Err(e) if is_timeout(&e) => {}
                Err(e) => return Err(e).context("reading packets"),
            }
        }
        Ok(self.finish())
    }

    fn see(&mut self, segment: Segment) {
        if let Some(watched) = self.watched.get(&segment.to.1).copied() {
            self.see_client(watched, segment);
        } else if self.watched.contains_key(&segment.from.1) {
            self.see_server(segment);
        }
    }

    fn see_client(&mut self, watched: Watched, segment: Segment) {
        let key = (segment.from, watched.port);
        match segment.flags & (SYN | ACK | RST | FIN) {
            SYN => self.syn(key, segment.seq),
            flags if flags & ACK != 0 && flags & RST == 0 => {
                let bare = segment.payload == 0 && flags & FIN == 0;
                if let Some((_, state)) = self.handshakes.get_mut(&key)
                    && !(watched.deferred && bare)
                {
                    state.try_to_finish(bare);
                }
            }
            _ => {}
        }
    }

    fn syn(&mut self, key: ((Ipv4Addr, u16), u16), seq: u32) {
        let refusals = self.refusals.entry(key.1).or_default();
        match self.handshakes.insert(key, (seq, Handshake::Begun)) {
            Some((_, Handshake::Begun)) => refusals.at_syn += 1,
            // The client has not seen the answer yet.
            Some((before, state)) if before == seq => {
                self.handshakes.insert(key, (seq, state.owing()));
            }
            Some((_, Handshake::HalfOpen { tries, .. })) => refusals.at_ack += tries,
            Some((_, Handshake::Open)) | None => {}
        }
    }

    fn see_server(&mut self, segment: Segment) {
        let (port, flags) = (segment.from.1, segment.flags);
        let Some((_, state)) = self.handshakes.get_mut(&(segment.to, port)) else { return };
        let refusals = self.refusals.entry(port).or_default();
        *state = match *state {
            Handshake::Begun if flags & SYN != 0 => Handshake::half_open(),
            // No socket listens.
            Handshake::Begun => Handshake::Open,
            Handshake::HalfOpen { tries, owed: owed @ 1.., bare } if flags & SYN != 0 => {
                Handshake::HalfOpen { tries, owed: owed - 1, bare }
            }
            // The kernel repeats the SYN-ACK because no packet has completed the handshake.
            Handshake::HalfOpen { tries, .. } if flags & SYN != 0 => {
                refusals.at_ack += tries;
                Handshake::half_open()
            }
            // The kernel does not answer an ACK that completes the handshake; it answers a FIN or
            // data after the ACK.
            Handshake::HalfOpen { bare: true, tries: ..=2, .. } => Handshake::Open,
            // Any other packet is answered at once: the last packet has completed the handshake.
            Handshake::HalfOpen { tries, .. } => {
                refusals.at_ack += tries.saturating_sub(1);
                Handshake::Open
            }
            Handshake::Open => Handshake::Open,
        };
    }

    fn finish(mut self) -> HashMap<u16, Refusals> {
        for ((_, port), (_, state)) in self.handshakes {
            let refusals = self.refusals.entry(port).or_default();
            match state {
                Handshake::Begun => refusals.at_syn += 1,
                Handshake::HalfOpen { tries, .. } => refusals.at_ack += tries,
                Handshake::Open => {}
            }
        }
        self.refusals
    }
}

// === impl Segment ===

impl Segment {
    /// Parses an IPv4 packet.
    fn parse(packet: &[u8]) -> Option<Self> {
        let header = usize::from(*packet.first()? & 0x0f) * 4;
        let (ip, tcp) = (packet.get(..header)?, packet.get(header..)?);
        if ip.first()? >> 4 != 4 || *ip.get(9)? != libc::IPPROTO_TCP as u8 {
            return None;
        }
        let address = |at: usize| -> Option<Ipv4Addr> {
            Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?))
        };
        let short = |bytes: &[u8], at: usize| -> Option<u16> {
            Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
        };
        let offset = usize::from(tcp.get(12)? >> 4) * 4;
        Some(Self {
            from: (address(12)?, short(tcp, 0)?),
            to: (address(16)?, short(tcp, 2)?),
            flags: *tcp.get(13)?,
            seq: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
            payload: usize::from(short(ip, 2)?).saturating_sub(header + offset),
        })
    }
}

fn is_timeout(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
