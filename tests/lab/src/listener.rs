//! Listen sockets: opening them, and accepting from them by hand.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::setsockopt;
use nix::{setsockopt_impl, sockopt_impl};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

use crate::address::{parse, reachable};
use crate::limits::raise_descriptor_limit;
use crate::server::Accept;
use crate::wait::within;

/// How long to retry when another process took a free port first.
const PORT_TRIES: Duration = Duration::from_secs(1);
/// How long to wait for a fixed port.
const REOPENING: Duration = Duration::from_secs(15);

sockopt_impl!(
    /// Wakes the server only when data has arrived, or after this number of seconds.
    DeferAccept,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_DEFER_ACCEPT,
    u32
);

/// A builder of a listen socket: set its options, then [`open`](Listen::open) it.
#[derive(Debug, Clone)]
pub struct Listen {
    address: String,
    backlog: i32,
    protocol: Protocol,
    reuseport: bool,
    v6only: Option<bool>,
    device: Option<String>,
    defer_accept: Option<u32>,
}

/// An open listen socket. It is non-blocking and accepts only on request.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: SocketAddr,
}

// === impl Listen ===

impl Listen {
    /// A TCP listener at `address`, in the syntax of [`parse`]. The default backlog is 128.
    #[must_use]
    pub fn tcp(address: impl ToString) -> Self {
        Self {
            address: address.to_string(),
            backlog: 128,
            protocol: Protocol::TCP,
            reuseport: false,
            v6only: None,
            device: None,
            defer_accept: None,
        }
    }

    /// Sets the argument of `listen(2)`.
    #[must_use]
    pub fn backlog(self, backlog: i32) -> Self {
        Self { backlog, ..self }
    }

    /// Makes the socket a multipath TCP listener.
    #[must_use]
    pub fn mptcp(self) -> Self {
        Self { protocol: Protocol::MPTCP, ..self }
    }

    /// Allows other sockets to listen at the same address (`SO_REUSEPORT`).
    #[must_use]
    pub fn reuseport(self) -> Self {
        Self { reuseport: true, ..self }
    }

    /// Sets whether an IPv6 wildcard leaves IPv4 to other sockets (`IPV6_V6ONLY`).
    #[must_use]
    pub fn v6only(self, v6only: bool) -> Self {
        Self { v6only: Some(v6only), ..self }
    }

    /// Binds the socket to an interface (`SO_BINDTODEVICE`).
    #[must_use]
    pub fn device(self, name: &str) -> Self {
        Self { device: Some(name.to_owned()), ..self }
    }

    /// Completes connections only with their first data (`TCP_DEFER_ACCEPT`).
    #[must_use]
    pub fn defer_accept(self, seconds: u32) -> Self {
        Self { defer_accept: Some(seconds), ..self }
    }

    /// Opens the socket in the calling thread's namespace. Waits for a port that is in use: a
    /// client may have got the port of a server that restarts.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    #[must_use]
    pub fn open(&self) -> Listener {
        let is_in_use = |e: &anyhow::Error| {
            e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::AddrInUse)
        };
        within(REOPENING, || match self.try_open() {
            Err(e) if is_in_use(&e) => None,
            result => Some(result),
        })
        .unwrap_or_else(|| self.try_open())
        .unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// Opens the socket in the calling thread's namespace.
    ///
    /// # Errors
    ///
    /// When the address is invalid or the kernel refuses.
    pub fn try_open(&self) -> Result<Listener> {
        let address = parse(&self.address)?;
        raise_descriptor_limit();
        within(PORT_TRIES, || match self.listen(address) {
            Err(e) if address.port() == 0 && e.kind() == ErrorKind::AddrInUse => None,
            result => Some(result),
        })
        .unwrap_or_else(|| Err(ErrorKind::AddrInUse.into()))
        .with_context(|| format!("listening at {}", self.address))
    }

    fn listen(&self, address: SocketAddr) -> io::Result<Listener> {
        let address = self.with_port(address)?;
        let socket = self.bound(address)?;
        socket.listen(self.backlog)?;
        Ok(Listener { socket, address })
    }

    /// Replaces port 0 with a free port. A port bound by number survives `shutdown`; the kernel
    /// releases a port that it chose itself, and the next `listen` gets another port.
    fn with_port(&self, mut address: SocketAddr) -> io::Result<SocketAddr> {
        if address.port() == 0 {
            address.set_port(local_address(&self.bound(address)?)?.port());
        }
        Ok(address)
    }

    fn bound(&self, address: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(self.protocol))?;
        self.set_options(&socket)?;
        socket.bind(&address.into())?;
        Ok(socket)
    }

    fn set_options(&self, socket: &Socket) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(self.reuseport)?;
        if let Some(v6only) = self.v6only {
            socket.set_only_v6(v6only)?;
        }
        if let Some(device) = &self.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        if let Some(seconds) = self.defer_accept {
            setsockopt(socket, DeferAccept, &seconds)?;
        }
        Ok(())
    }
}

// === impl Listener ===

impl Accept for Listener {
    fn listen_socket(&self) -> &Socket {
        &self.socket
    }
}

impl Listener {
    /// The listen address, with the port chosen by the kernel.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The port chosen by the kernel.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The address that clients connect to: loopback for a wildcard.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        reachable(self.address)
    }

    /// The socket itself.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Accepts one connection, waiting for at most `timeout`.
    #[must_use]
    pub fn accept(&self, timeout: Duration) -> Option<Socket> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.socket.accept() {
                Ok((connection, _)) => return Some(connection),
                Err(_) if Instant::now() < deadline => {
                    self.wait(deadline.saturating_duration_since(Instant::now()));
                }
                Err(_) => return None,
            }
        }
    }

    /// Accepts and closes all waiting connections without waiting for more, and returns their
    /// number.
    pub fn accept_all(&self) -> usize {
        self.drain().count()
    }

    /// Accepts the connections that wait now, one by one.
    pub fn drain(&self) -> impl Iterator<Item = Socket> + '_ {
        accepted(&self.socket)
    }

    /// Waits until a connection waits or `timeout` has passed.
    pub fn wait(&self, timeout: Duration) {
        wait_for(&self.socket, timeout);
    }

    /// Stops listening (`shutdown(2)`) and listens again with another backlog, on the same
    /// descriptor.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn shutdown_then_listen(&self, backlog: i32) {
        self.socket.shutdown(std::net::Shutdown::Both).expect("shutdown of a listen socket");
        self.socket.listen(backlog).expect("listen after shutdown");
    }
}

/// Accepts the connections that wait now, one by one; the accepted connections are non-blocking.
pub(crate) fn accepted(socket: &Socket) -> impl Iterator<Item = Socket> + '_ {
    std::iter::from_fn(|| {
        let (connection, _) = socket.accept().ok()?;
        connection.set_nonblocking(true).ok()?;
        Some(connection)
    })
}

/// Waits until a connection waits or `timeout` has passed.
pub(crate) fn wait_for(socket: &Socket, timeout: Duration) {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    let timeout = Timespec::try_from(timeout).expect("timeouts are short");
    let _ = poll(&mut fds, Some(&timeout));
}

fn local_address(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("the socket has no IP address"))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_port_in_use_is_waited_for() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = other.local_addr().expect("it is bound");
        let closing = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            drop(other);
        });
        assert!(Listen::tcp(address).try_open().is_err());
        assert_eq!(Listen::tcp(address).open().addr(), address);
        closing.join().expect("no panic");
    }
}
