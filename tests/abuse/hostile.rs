//! Hostile clients: they never read, send one byte at a time, or leave requests unfinished.
//! A client that the server disconnects connects again.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Socket, Type};

const HANDSHAKE: Duration = Duration::from_secs(2);
/// The time between two rounds over all clients.
const ROUND: Duration = Duration::from_millis(20);

/// A group of clients that all behave in the same way.
#[derive(Debug, Clone)]
pub(crate) struct Hostile {
    pub(crate) server: SocketAddr,
    pub(crate) from: Ipv4Addr,
    pub(crate) clients: usize,
    /// What each client sends.
    pub(crate) bytes: Arc<Vec<u8>>,
    pub(crate) manner: Manner,
    /// The TLS configuration of the clients; `None` for plain HTTP.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// The least time between two connections of one client.
    pub(crate) pause: Duration,
    pub(crate) lasting: Duration,
}

/// What a client does once it is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Sends all bytes at once and never reads.
    Deaf,
    /// Sends a byte each round and never reads.
    Slow,
    /// Sends all bytes at once and reads the responses.
    Reads,
}

/// One connection.
struct Client {
    stream: TcpStream,
    tls: Option<ClientConnection>,
    sent: usize,
}

// === impl Hostile ===

impl Hostile {
    /// Runs the clients and returns the number of connections that they made.
    pub(crate) fn run(&self) -> usize {
        let (begin, mut made) = (Instant::now(), 0);
        let mut clients: Vec<(Option<Client>, Instant)> =
            (0..self.clients).map(|_| (None, begin)).collect();
        while begin.elapsed() < self.lasting {
            for (client, due) in &mut clients {
                if client.as_ref().is_none_or(Client::is_over) {
                    *client = None;
                    if *due <= Instant::now() && begin.elapsed() < self.lasting {
                        *client = self.connect().ok();
                        *due = Instant::now() + self.pause;
                        made += usize::from(client.is_some());
                    }
                }
                if client.as_mut().is_some_and(|client| self.turn(client).is_err()) {
                    *client = None;
                }
            }
            thread::sleep(ROUND);
        }
        made
    }

    fn turn(&self, client: &mut Client) -> io::Result<()> {
        let end = match self.manner {
            Manner::Slow => self.bytes.len().min(client.sent + 1),
            Manner::Deaf | Manner::Reads => self.bytes.len(),
        };
        client.send(&self.bytes[..end])?;
        match self.manner {
            Manner::Reads => client.read(),
            Manner::Deaf | Manner::Slow => Ok(()),
        }
    }

    fn connect(&self) -> io::Result<Client> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_recv_buffer_size(2048)?;
        socket.bind(&SocketAddr::from((self.from, 0)).into())?;
        socket.connect_timeout(&self.server.into(), HANDSHAKE)?;
        let mut stream = TcpStream::from(socket);
        let tls = self.tls.as_ref().map(|config| handshake(&mut stream, config)).transpose()?;
        stream.set_nonblocking(true)?;
        Ok(Client { stream, tls, sent: 0 })
    }
}

fn handshake(stream: &mut TcpStream, config: &Arc<ClientConfig>) -> io::Result<ClientConnection> {
    stream.set_read_timeout(Some(HANDSHAKE))?;
    let name = "localhost".try_into().expect("a name");
    let mut tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    while tls.is_handshaking() {
        tls.complete_io(stream)?;
    }
    tls.set_buffer_limit(Some(16 << 10));
    Ok(tls)
}

// === impl Client ===

impl Client {
    /// Whether the server has closed the connection, even if the client has not read all bytes.
    fn is_over(&self) -> bool {
        let over = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut polled = [PollFd::new(&self.stream, over)];
        let _ = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        polled[0].revents().intersects(over)
    }

    /// Reads and discards the bytes that have arrived.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends as many bytes as the kernel accepts.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sent = match &mut self.tls {
            None if self.sent == bytes.len() => return Ok(()),
            None => self.stream.write(&bytes[self.sent..]),
            Some(tls) => {
                let taken = tls.writer().write(&bytes[self.sent..])?;
                self.sent += taken;
                if !tls.wants_write() {
                    return Ok(());
                }
                tls.write_tls(&mut self.stream).map(|_| 0)
            }
        };
        match sent {
            Ok(sent) => self.sent += sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
