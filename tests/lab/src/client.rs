//! Owns client sockets that connect and then keep still.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::address::{ensure_local, source};
use crate::limits::raise_descriptor_limit;

/// Starts `n` connections to `address`, does not wait for them, and keeps them open.
///
/// They belong to the calling thread's namespace. On loopback each handshake is over, or was
/// refused, when its `connect(2)` returns. Those beyond the queue retry as long as they are kept.
///
/// # Panics
///
/// When the address is not local or sockets run out.
#[must_use]
pub fn fill(address: SocketAddr, n: usize) -> Vec<Socket> {
    try_fill(address, n).unwrap_or_else(|e| panic!("{e:#}"))
}

/// As [`fill`].
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

/// Starts `n` connections at once, closes them after `hold`, and says how many had finished their handshake.
///
/// # Panics
///
/// When the address is not local or sockets run out.
pub fn burst(address: SocketAddr, n: usize, hold: Duration) -> usize {
    let clients = fill(address, n);
    thread::sleep(hold);
    clients.iter().filter(|client| is_connected(client)).count()
}

/// Closes connections with RST: they leave the connection table but keep their place in the accept queue.
///
/// # Panics
///
/// When `SO_LINGER` cannot be set.
pub fn reset(clients: Vec<Socket>) {
    for client in &clients {
        client.set_linger(Some(Duration::ZERO)).expect("SO_LINGER of zero");
    }
}

/// Lets clients say something: those who were deferred are accepted only now.
///
/// # Panics
///
/// When one has lost its connection.
pub fn say(clients: &[Socket], text: &[u8]) {
    for client in clients {
        client.send(text).expect("a connected client");
    }
}

/// Whether the client side of the handshake is over (the server may still have refused its last ACK).
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
