//! Unix listeners (`SOCK_STREAM` and `SOCK_SEQPACKET`, at paths and abstract names), and clients
//! that stay idle or wait for a place in the queue.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::listener::accepted;
use crate::netns::{Netns, output};
use crate::server::Accept;

/// The socket type of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `SOCK_STREAM`
    Stream,
    /// `SOCK_SEQPACKET`
    Packet,
}

/// A Unix listen socket. It is non-blocking and accepts only on request.
#[derive(Debug)]
pub struct UnixListener {
    socket: Socket,
    kind: Kind,
    name: Vec<u8>,
}

/// The queue of one Unix listen socket as `ss` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnixRow {
    /// Connections waiting to be accepted.
    pub recv_q: u32,
    /// The limit of the accept queue.
    pub send_q: u32,
}

// === impl UnixListener ===

impl UnixListener {
    /// Listens at `name`, a path, or an abstract name when its first byte is 0, in the calling
    /// thread's namespace.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    #[must_use]
    pub fn open(kind: Kind, name: impl AsRef<[u8]>, backlog: i32) -> Self {
        Self::try_open(kind, name, backlog).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// Like [`UnixListener::open`], but returns errors.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn try_open(kind: Kind, name: impl AsRef<[u8]>, backlog: i32) -> Result<Self> {
        let name = name.as_ref().to_vec();
        let open = || -> io::Result<Socket> {
            let socket = new_socket(kind)?;
            socket.bind(&address(&name)?)?;
            socket.listen(backlog)?;
            Ok(socket)
        };
        let told = || format!("listening at {:?}", String::from_utf8_lossy(&name));
        let socket = open().with_context(told)?;
        Ok(Self { socket, kind, name })
    }

    /// Connects until `n` clients wait or the queue is full, and returns the waiting clients.
    ///
    /// # Panics
    ///
    /// When the kernel refuses for another reason than a full queue.
    #[must_use]
    pub fn fill(&self, n: usize) -> Vec<Socket> {
        let mut clients = Vec::new();
        while clients.len() < n {
            let client = new_socket(self.kind).expect("a client socket");
            match client.connect(&address(&self.name).expect("it was bound")) {
                Ok(()) => clients.push(client),
                Err(e) if Errno::from_io_error(&e) == Some(Errno::AGAIN) => break,
                Err(e) => panic!("connecting to {:?}: {e}", self.name),
            }
        }
        clients
    }

    /// Accepts and closes all waiting connections, and returns their number.
    pub fn accept_all(&self) -> usize {
        accepted(&self.socket).count()
    }
}

impl Accept for UnixListener {
    fn listen_socket(&self) -> &Socket {
        &self.socket
    }
}

// === impl Netns ===

impl Netns {
    /// The listen socket with the name `name` in `ss`, if there is exactly one.
    ///
    /// # Panics
    ///
    /// When `ss` fails or its output cannot be parsed.
    #[must_use]
    pub fn ss_unix(&self, name: &str) -> Option<UnixRow> {
        let text = output(self.command("ss").arg("-xlH")).unwrap();
        let mut rows =
            text.lines().filter(|line| line.split_whitespace().nth(4) == Some(name)).map(parse_row);
        let row = rows.next()?.unwrap();
        rows.next().is_none().then_some(row)
    }
}

/// The outcome of clients that waited for a place in a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waited {
    /// Connected in time.
    pub connected: usize,
    /// No place in the queue within their patience.
    pub gave_up: usize,
    /// Failed for another reason.
    pub failed: usize,
}

/// Starts `n` clients that block in `connect(2)` at the same time, each for at most `patience`, and
/// then leave.
///
/// A full queue makes them wait inside the kernel, where no counter and no queue shows them.
///
/// # Panics
///
/// When `n` is larger than 500, because each client is a thread, or a client panicked.
#[must_use]
pub fn wait_in_line(name: impl AsRef<[u8]>, n: usize, patience: Duration) -> Waited {
    assert!(n <= 500, "each client is a thread");
    let name = name.as_ref();
    let results: Vec<io::Result<()>> = thread::scope(|scope| {
        let client = || scope.spawn(|| connect_within(name, patience));
        let clients: Vec<_> = (0..n).map(|_| client()).collect();
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    });
    let again = |e: &io::Error| Errno::from_io_error(e) == Some(Errno::AGAIN);
    results.iter().fold(Waited::default(), |waited, result| match result {
        Ok(()) => Waited { connected: waited.connected + 1, ..waited },
        Err(e) if again(e) => Waited { gave_up: waited.gave_up + 1, ..waited },
        Err(_) => Waited { failed: waited.failed + 1, ..waited },
    })
}

fn connect_within(name: &[u8], patience: Duration) -> io::Result<()> {
    let client = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    client.set_write_timeout(Some(patience))?;
    client.connect(&address(name)?)
}

/// Connects a non-blocking stream to a path or name: immediately or not at all.
pub(crate) fn connect(name: &[u8]) -> io::Result<Socket> {
    let client = new_socket(Kind::Stream)?;
    client.connect(&address(name)?)?;
    Ok(client)
}

fn new_socket(kind: Kind) -> io::Result<Socket> {
    let kind = match kind {
        Kind::Stream => Type::STREAM,
        Kind::Packet => Type::SEQPACKET,
    };
    let socket = Socket::new(Domain::UNIX, kind, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn address(name: &[u8]) -> io::Result<SockAddr> {
    SockAddr::unix(OsStr::from_bytes(name))
}

fn parse_row(line: &str) -> Result<UnixRow> {
    let column = |n| line.split_whitespace().nth(n).context("too few columns");
    Ok(UnixRow { recv_q: column(2)?.parse()?, send_q: column(3)?.parse()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_takes_one_more_than_its_limit() {
        for kind in [Kind::Stream, Kind::Packet] {
            let name = format!("\0lq-lab-{}-{kind:?}", std::process::id());
            let listener = UnixListener::open(kind, name, 2);
            let clients = listener.fill(10);
            assert_eq!((clients.len(), listener.accept_all()), (3, 3));
        }
    }

    #[test]
    fn a_row_of_ss_is_read() {
        let row = "u_seq LISTEN 3      2      @lq-lab 5042 * 0";
        assert_eq!(parse_row(row).unwrap(), UnixRow { recv_q: 3, send_q: 2 });
    }
}
