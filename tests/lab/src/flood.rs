//! SYN floods: handshakes begun from unassigned addresses and never completed.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::address::ensure_local;
use crate::links::VOID_NET;
use crate::netns::Netns;
use crate::scan::{SYN, segment};

/// The maximum number of SYNs of a flood, and the maximum per second.
const MAX_SYNS: u32 = 1_000_000;
const MOST_PER_SECOND: f64 = 100_000.0;
const HEADER: usize = 20;
/// The size of the two headers.
const BYTES: u16 = 40;

/// A running flood. Dropping it stops the flood; the handshakes stay half-open for a minute.
#[derive(Debug)]
pub struct Flood {
    sent: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

// === impl Flood ===

impl Flood {
    /// Sends `count` SYNs to an IPv4 listener inside `ns` at the rate `per_second`, each from a
    /// different address and port.
    ///
    /// The SYN-ACKs are lost in [`Netns::add_void`]: no host sends a reset, and the kernel repeats
    /// the SYN-ACKs for a minute.
    ///
    /// # Panics
    ///
    /// When the address is not a local IPv4 one, or the flood is not bounded.
    #[must_use]
    pub fn start(ns: &Netns, target: SocketAddr, count: u32, per_second: f64) -> Self {
        let to = bounded(target, count, per_second).unwrap_or_else(|e| panic!("{e:#}"));
        ns.add_void();
        let sent = Arc::new(AtomicU32::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (counter, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
        let thread = ns.spawn(move || flood(to, count, per_second, &counter, &stopped));
        Self { sent, stop, thread: Some(thread) }
    }

    /// The number of SYNs sent so far.
    #[must_use]
    pub fn sent(&self) -> u32 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until all SYNs are sent.
    ///
    /// # Panics
    ///
    /// When the kernel refused.
    pub fn finish(mut self) {
        let thread = self.thread.take().expect("only finish and drop take the thread");
        thread.join().expect("the flood's thread panicked").unwrap_or_else(|e| panic!("{e:#}"));
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Like [`Flood::start`], and waits until all SYNs are sent.
///
/// # Panics
///
/// When the address is not a local IPv4 one, the flood is not bounded, or the kernel refused.
pub fn syn_flood(ns: &Netns, target: SocketAddr, count: u32, per_second: f64) {
    Flood::start(ns, target, count, per_second).finish();
}

/// Returns the listener if this flood of the listener is allowed.
fn bounded(target: SocketAddr, count: u32, per_second: f64) -> Result<SocketAddrV4> {
    ensure_local(target)?;
    ensure!(count <= MAX_SYNS, "a flood has at most {MAX_SYNS} SYNs, not {count}");
    ensure!(
        (1.0..=MOST_PER_SECOND).contains(&per_second),
        "give 1 to {MOST_PER_SECOND} SYNs a second, not {per_second}"
    );
    let SocketAddr::V4(to) = target else { bail!("floods go over IPv4 only, not to {target}") };
    Ok(to)
}

fn flood(
    to: SocketAddrV4,
    count: u32,
    per_second: f64,
    sent: &AtomicU32,
    stop: &AtomicBool,
) -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))
        .context("opening a raw socket")?;
    let begin = Instant::now();
    for n in 0..count {
        let due = begin + Duration::from_secs_f64(f64::from(n) / per_second);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let packet = packet(silent_client(n), to);
        let to = SocketAddrV4::new(*to.ip(), 0).into();
        socket.send_to(&packet, &to).context("sending a SYN")?;
        sent.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// The `n`th source: 60,000 unassigned addresses in turn, then other ports.
fn silent_client(n: u32) -> SocketAddrV4 {
    let address = Ipv4Addr::from_bits(VOID_NET.to_bits() + 1024 + n % 60_000);
    SocketAddrV4::new(address, 20_000 + (n / 60_000) as u16)
}

/// A SYN with its IP header; the kernel fills in length, identification and checksum of the IP
/// header.
fn packet(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let mut packet = vec![0; HEADER];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&BYTES.to_be_bytes());
    packet[8] = 64;
    packet[9] = libc::IPPROTO_TCP as u8;
    packet[12..16].copy_from_slice(&from.ip().octets());
    packet[16..20].copy_from_slice(&to.ip().octets());
    packet.extend_from_slice(&segment(from, to, SYN));
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floods_are_bounded_and_local() {
        let fits = |target: &str, count, per_second| {
            bounded(target.parse().unwrap(), count, per_second).is_ok()
        };
        assert!(fits("127.0.0.1:80", MAX_SYNS, MOST_PER_SECOND));
        assert!(!fits("192.0.2.1:80", 1, 1.0));
        assert!(!fits("[::1]:80", 1, 1.0));
        assert!(!fits("127.0.0.1:80", MAX_SYNS + 1, 1.0));
        assert!(!fits("127.0.0.1:80", 1, 0.0));
        assert!(!fits("127.0.0.1:80", 1, f64::NAN));
    }

    #[test]
    fn all_syns_of_a_flood_have_different_sources() {
        let first: std::collections::HashSet<_> = (0..130_000).map(silent_client).collect();
        assert_eq!(first.len(), 130_000);
        assert!(first.iter().all(|source| source.ip().is_link_local()));
    }
}
