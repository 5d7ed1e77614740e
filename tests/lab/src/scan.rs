//! Stray TCP segments: they increase a listener's `sk_drops` without an overflow.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::address::ensure_local;

/// The maximum duration of a scan.
const LONGEST: Duration = Duration::from_secs(3600);

const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
const RST: u8 = 0x04;

/// A kind of segment that every listener drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stray {
    /// No flag.
    Null,
    /// SYN and FIN together.
    SynFin,
    /// RST without a connection.
    Rst,
}

impl Stray {
    fn flags(self) -> u8 {
        match self {
            Self::Null => 0,
            Self::SynFin => SYN | FIN,
            Self::Rst => RST,
        }
    }
}

/// Sends `count` segments to `address` from the same address, `spacing` apart. Needs `CAP_NET_RAW`.
///
/// # Panics
///
/// When the address is not a local IPv4 one or the kernel refuses.
pub fn stray_segments(address: SocketAddr, kind: Stray, count: u32, spacing: Duration) {
    try_stray_segments(address, kind, count, spacing).unwrap_or_else(|e| panic!("{e:#}"));
}

/// Like [`stray_segments`], but returns errors.
///
/// # Errors
///
/// When the address is not a local IPv4 one or the kernel refuses.
pub fn try_stray_segments(
    address: SocketAddr,
    kind: Stray,
    count: u32,
    spacing: Duration,
) -> Result<()> {
    ensure_local(address)?;
    ensure!(
        spacing.saturating_mul(count) <= LONGEST,
        "{count} segments, {spacing:?} apart, take more than an hour"
    );
    let SocketAddr::V4(to) = address else {
        bail!("stray segments are sent over IPv4 only, not to {address}")
    };
    let socket = raw_socket(*to.ip()).context("opening a raw socket")?;
    for n in 0..count {
        let segment = segment(source(to, n), to, kind.flags());
        socket
            .send_to(&segment, &SocketAddrV4::new(*to.ip(), 0).into())
            .context("sending a segment")?;
        thread::sleep(spacing);
    }
    Ok(())
}

fn raw_socket(source: Ipv4Addr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
    socket.bind(&SocketAddrV4::new(source, 0).into())?;
    Ok(socket)
}

/// The source of a segment: a port below the ephemeral range, different for each segment, so that
/// no segment belongs to a connection.
fn source(to: SocketAddrV4, n: u32) -> SocketAddrV4 {
    SocketAddrV4::new(*to.ip(), 20_000 + (n % 10_000) as u16)
}

/// A TCP header without options or data, with its checksum.
pub(crate) fn segment(from: SocketAddrV4, to: SocketAddrV4, flags: u8) -> [u8; 20] {
    let mut header = [0; 20];
    header[0..2].copy_from_slice(&from.port().to_be_bytes());
    header[2..4].copy_from_slice(&to.port().to_be_bytes());
    header[4..8].copy_from_slice(&1_u32.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = flags;
    header[14..16].copy_from_slice(&1024_u16.to_be_bytes());
    let checksum = checksum(*from.ip(), *to.ip(), &header);
    header[16..18].copy_from_slice(&checksum.to_be_bytes());
    header
}

/// The Internet checksum over the pseudo header and the segment.
fn checksum(from: Ipv4Addr, to: Ipv4Addr, segment: &[u8; 20]) -> u16 {
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 6, 0, 20], segment].concat();
    let words =
        pseudo.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
