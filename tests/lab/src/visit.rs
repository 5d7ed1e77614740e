//! One client of a load: its target, its request, how it leaves, and its answer.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use socket2::Socket;

use crate::address::ensure_local;
use crate::client;
use crate::unix;

/// The maximum number of bytes kept of an answer.
const MOST_KEPT: usize = 64;

/// The address that clients connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A TCP listener.
    Tcp(SocketAddr),
    /// A Unix stream listener at a path, or at an abstract name when the first byte is 0.
    Unix(Vec<u8>),
}

/// The behaviour of a client once it is connected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manner {
    /// The request, sent at once.
    pub request: Vec<u8>,
    /// Whether the client then shuts down its write side, and reads on.
    pub half_close: bool,
    /// Whether the client leaves with RST, not FIN, when its patience ends.
    pub reset: bool,
}

/// A running client.
pub(crate) struct Visit {
    socket: Socket,
    pub(crate) connected: bool,
    said: bool,
    answer: Vec<u8>,
}

/// The result of an event of a client.
pub(crate) enum News {
    /// The client continues.
    Nothing,
    /// The server closed the connection, after an answer that begins with this line.
    Served(String),
    /// The connection broke.
    Failed(io::Error),
}

// === impl Target ===

impl Target {
    /// Accepts only targets on this machine.
    pub(crate) fn ensure_local(&self) -> Result<()> {
        match self {
            Self::Tcp(address) => ensure_local(*address),
            Self::Unix(_) => Ok(()),
        }
    }

    fn connect(&self, n: usize) -> io::Result<Socket> {
        match self {
            Self::Tcp(address) => client::connect(*address, n),
            Self::Unix(name) => unix::connect(name),
        }
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<&Path> for Target {
    fn from(path: &Path) -> Self {
        Self::Unix(path.as_os_str().as_encoded_bytes().to_vec())
    }
}

impl From<&PathBuf> for Target {
    fn from(path: &PathBuf) -> Self {
        path.as_path().into()
    }
}

// === impl Manner ===

impl Manner {
    /// A GET request over HTTP/1.1; the connection is closed after the answer.
    #[must_use]
    pub fn http_get(path: &str) -> Self {
        let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
        Self { request: request.into_bytes(), ..Self::default() }
    }

    /// Sends this request.
    #[must_use]
    pub fn saying(request: impl AsRef<[u8]>) -> Self {
        Self { request: request.as_ref().to_vec(), ..Self::default() }
    }

    /// Shuts down the write side after the request, and reads on.
    #[must_use]
    pub fn half_closing(self) -> Self {
        Self { half_close: true, ..self }
    }

    /// Leaves with RST when the patience ends.
    #[must_use]
    pub fn resetting(self) -> Self {
        Self { reset: true, ..self }
    }
}

// === impl Visit ===

impl Visit {
    /// Starts the `n`th visit without waiting for it.
    pub(crate) fn begin(target: &Target, n: usize) -> io::Result<Self> {
        let socket = target.connect(n)?;
        Ok(Self { socket, connected: false, said: false, answer: Vec::new() })
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Handles the events that epoll reports.
    pub(crate) fn note(&mut self, flags: EventFlags, manner: &Manner) -> News {
        if flags.contains(EventFlags::ERR) {
            return News::Failed(self.error());
        }
        if flags.contains(EventFlags::OUT) && !self.said {
            self.connected = true;
            self.said = true;
            if let Err(e) = self.say(manner) {
                return News::Failed(e);
            }
        }
        if let Err(e) = self.listen() {
            return News::Failed(e);
        }
        if flags.intersects(EventFlags::RDHUP | EventFlags::HUP) {
            return News::Served(first_line(&self.answer));
        }
        News::Nothing
    }

    /// Sends the request, which is short: it fits into the buffer of a new connection.
    fn say(&self, manner: &Manner) -> io::Result<()> {
        if !manner.request.is_empty() {
            (&self.socket).write_all(&manner.request)?;
        }
        if manner.half_close {
            self.socket.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    /// Reads the received data, and keeps the beginning.
    fn listen(&mut self) -> io::Result<()> {
        let mut part = [0; 4096];
        loop {
            match (&self.socket).read(&mut part) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    let kept = n.min(MOST_KEPT.saturating_sub(self.answer.len()));
                    self.answer.extend_from_slice(&part[..kept]);
                }
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected
                    ) =>
                {
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// The error that broke the connection.
    fn error(&self) -> io::Error {
        match self.socket.take_error() {
            Ok(Some(e)) | Err(e) => e,
            Ok(None) => Errno::CONNRESET.into(),
        }
    }

    /// Leaves before the server closes the connection.
    pub(crate) fn leave(self, manner: &Manner) {
        if manner.reset {
            client::reset(vec![self.socket]);
        }
    }
}

fn first_line(answer: &[u8]) -> String {
    let line = answer.split(|&byte| byte == b'\n').next().unwrap_or_default();
    String::from_utf8_lossy(line).trim_end().to_owned()
}
