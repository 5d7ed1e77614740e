//! Owns Unix listeners: streams and packets, at paths and at abstract names, and clients that keep still.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::netns::{Netns, output};

/// Whether a connection is a stream or a row of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `SOCK_STREAM`
    Stream,
    /// `SOCK_SEQPACKET`
    Packet,
}

/// A Unix listen socket. It is non-blocking and accepts only when told to.
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
    /// Listens at `name`, a path, or an abstract name when its first byte is 0, in the calling thread's namespace.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    #[must_use]
    pub fn open(kind: Kind, name: impl AsRef<[u8]>, backlog: i32) -> Self {
        let name = name.as_ref().to_vec();
        let open = || -> io::Result<Socket> {
            let socket = new_socket(kind)?;
            socket.bind(&address(&name)?)?;
            socket.listen(backlog)?;
            Ok(socket)
        };
        let socket = open().unwrap_or_else(|e| panic!("listening at {name:?}: {e}"));
        Self { socket, kind, name }
    }

    /// Connects until `n` clients wait or the queue takes no more, and gives those that wait.
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

    /// Accepts all that wait, closes them, and says how many they were.
    pub fn accept_all(&self) -> usize {
        std::iter::from_fn(|| self.socket.accept().ok()).count()
    }
}

// === impl Netns ===

impl Netns {
    /// The listen socket that `ss` calls `name`, if there is exactly one.
    ///
    /// # Panics
    ///
    /// When `ss` fails or prints something unknown.
    #[must_use]
    pub fn ss_unix(&self, name: &str) -> Option<UnixRow> {
        let text = output(self.command("ss").arg("-xlH")).unwrap();
        let mut rows =
            text.lines().filter(|line| line.split_whitespace().nth(4) == Some(name)).map(parse_row);
        let row = rows.next()?.unwrap();
        rows.next().is_none().then_some(row)
    }
}

/// Connects a non-blocking stream to a path or name: at once, or not at all.
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
