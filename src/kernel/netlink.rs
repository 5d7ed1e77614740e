//! A `NETLINK_SOCK_DIAG` socket: sends a dump request and receives its datagrams until the kernel closes it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::RecvFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::diag_stream::{self, DumpError, Progress};

/// The kernel fills datagrams up to the largest buffer it has seen, up to 32 KiB: never offer less.
const BUFFER: usize = 32 * 1024;
/// A dump runs inside the system call; waiting at all means that something is wrong.
const PATIENCE: Duration = Duration::from_secs(1);
/// Where `nlmsg_seq` stands in a netlink header.
const SEQUENCE_AT: std::ops::Range<usize> = 8..12;

/// One netlink socket with its receive buffer. It belongs to the namespace it was made in for good.
pub struct Channel {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

// === impl Channel ===

impl Channel {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, DumpError> {
        let socket = Socket::new(NETLINK_SOCK_DIAG).map_err(DumpError::Socket)?;
        // Connected to the kernel (port 0), nobody else's messages are let in.
        socket.connect(&SocketAddr::new(0, 0)).map_err(DumpError::Socket)?;
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, direction, Some(PATIENCE))
                .map_err(|errno| DumpError::Socket(errno.into()))?;
        }
        Ok(Self { socket, buffer: vec![0; BUFFER], sequence: 0 })
    }

    /// Sends `request` (a whole message; its sequence number is written here) and hands over each row's payload.
    pub fn dump(
        &mut self,
        request: &mut [u8],
        mut row: impl FnMut(&[u8]) -> Result<(), DumpError>,
    ) -> Result<(), DumpError> {
        self.sequence = self.sequence.wrapping_add(1);
        request[SEQUENCE_AT].copy_from_slice(&self.sequence.to_ne_bytes());
        self.send(request)?;
        loop {
            let length = self.receive()?;
            let datagram = &self.buffer[..length];
            if diag_stream::decode(datagram, self.sequence, &mut row)? == Progress::Done {
                return Ok(());
            }
        }
    }

    fn send(&self, request: &[u8]) -> Result<(), DumpError> {
        retried(|| self.socket.send(request, 0)).map(drop)
    }

    fn receive(&mut self) -> Result<usize, DumpError> {
        // With MSG_TRUNC the length is the datagram's own, also when it did not fit.
        let flags = RecvFlags::TRUNC.bits() as i32;
        let room = self.buffer.len();
        let length = retried(|| self.socket.recv(&mut self.buffer.as_mut_slice(), flags))?;
        match length {
            0 => Err(DumpError::Malformed("an empty datagram".into())),
            length if length > room => Err(DumpError::Truncated { length, room }),
            length => Ok(length),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A signal may interrupt a call; that alone is no failure.
fn retried(mut call: impl FnMut() -> io::Result<usize>) -> Result<usize, DumpError> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(DumpError::TimedOut(PATIENCE));
            }
            result => return result.map_err(DumpError::Socket),
        }
    }
}
