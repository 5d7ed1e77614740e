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
/// Datagrams were lost (`netlink(7)`).
const ENOBUFS: i32 = 105;
/// Where `nlmsg_seq` stands in a netlink header.
const SEQUENCE_AT: std::ops::Range<usize> = 8..12;

/// One netlink socket. It belongs to the namespace it was made in for good.
pub struct Channel {
    socket: Socket,
    sequence: u32,
    /// Whether a dump was left in the middle.
    has_leftovers: bool,
}

/// The memory that datagrams are received into: one for all channels.
pub struct Datagram(Box<[u8]>);

// === impl Datagram ===

impl Default for Datagram {
    fn default() -> Self {
        Self(vec![0; BUFFER].into())
    }
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
        Ok(Self { socket, sequence: 0, has_leftovers: false })
    }

    /// Sends `request` (a whole message; its sequence number is written here) and hands over each row's payload.
    pub fn dump(
        &mut self,
        request: &mut [u8],
        datagram: &mut Datagram,
        mut row: impl FnMut(&[u8]) -> Result<(), DumpError>,
    ) -> Result<(), DumpError> {
        self.drop_leftovers(datagram)?;
        self.sequence = self.sequence.wrapping_add(1);
        request[SEQUENCE_AT].copy_from_slice(&self.sequence.to_ne_bytes());
        self.has_leftovers = true;
        retried(|| self.socket.send(request, 0))?;
        loop {
            let length = self.receive(datagram)?;
            let datagram = &datagram.0[..length];
            if diag_stream::decode(datagram, self.sequence, &mut row)? == Progress::Done {
                self.has_leftovers = false;
                return Ok(());
            }
        }
    }

    /// The kernel starts no dump before the last one was read to its end.
    fn drop_leftovers(&mut self, datagram: &mut Datagram) -> Result<(), DumpError> {
        let flags = RecvFlags::DONTWAIT.bits() as i32;
        while self.has_leftovers {
            match retried(|| self.socket.recv(&mut &mut *datagram.0, flags)) {
                Ok(_) => {}
                Err(DumpError::TimedOut(_)) => self.has_leftovers = false,
                // Datagrams were lost for want of memory: what follows is left over all the same.
                Err(DumpError::Socket(error)) if error.raw_os_error() == Some(ENOBUFS) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn receive(&self, datagram: &mut Datagram) -> Result<usize, DumpError> {
        // With MSG_TRUNC the length is the datagram's own, also when it did not fit.
        let flags = RecvFlags::TRUNC.bits() as i32;
        let room = datagram.0.len();
        let length = retried(|| self.socket.recv(&mut &mut *datagram.0, flags))?;
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
