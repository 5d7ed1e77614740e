//! Client sockets that connect and then stay idle.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::address::{ensure_local, source};
use crate::limits::raise_descriptor_limit;

/// Starts `n` connections to `address` without waiting for them, and keeps them open.
///
/// The sockets belong to the calling thread's namespace. On loopback each handshake is complete or
/// refused when its `connect(2)` returns. Connections beyond the queue retry as long as they are
/// kept.
///
/// # Panics
///
/// When the address is not local or sockets run out.
#[must_use]
pub fn fill(address: SocketAddr, n: usize) -> Vec<Socket> {
    try_fill(address, n).unwrap_or_else(|e| panic!("{e:#}"))
}

/// Like [`fill`], but returns errors.
///
/// # Errors
///
/// When the address is not local or sockets run out.
pub fn try_fill(address: SocketAddr, n: usize) -> Result<Vec<Socket>> {
    ensure_local(address)?;
    raise_descriptor_limit();
    (0..n)
        .map(|i| connect(address, i).with_context(|| format!("connecting to {address}")))
        .collect()
}

/// Starts `n` connections at once, closes them after `hold`, and returns how many handshakes were
/// complete.
///
/// # Panics
///
/// When the address is not local or sockets run out.
pub fn burst(address: SocketAddr, n: usize, hold: Duration) -> usize {
    let clients = fill(address, n);
    thread::sleep(hold);
    clients.iter().filter(|client| is_connected(client)).count()
}

/// Closes connections with RST: the connections leave the connection table but keep their place in
/// the accept queue.
///
/// # Panics
///
/// When `SO_LINGER` cannot be set.
pub fn reset(clients: Vec<Socket>) {
    for client in &clients {
        client.set_linger(Some(Duration::ZERO)).expect("SO_LINGER of zero");
    }
}

/// Sends text over each connection: deferred connections are accepted only now.
///
/// # Panics
///
/// When a client has lost its connection.
pub fn say(clients: &[Socket], text: &[u8]) {
    for client in clients {
        client.send(text).expect("a connected client");
    }
}

/// Whether the client side of the handshake is complete (the server may still have refused the last
/// ACK).
#[must_use]
pub fn is_connected(client: &Socket) -> bool {
    SockRef::from(client).peer_addr().is_ok()
}

/// Starts the `n`th connection to `address` without waiting for it.
pub(crate) fn connect(address: SocketAddr, n: usize) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Some(source) = source(address, n) {
        socket.bind(&source.into())?;
    }
    match socket.connect(&address.into()) {
        Err(e) if Errno::from_io_error(&e) != Some(Errno::INPROGRESS) => Err(e),
        _ => Ok(socket),
    }
}
