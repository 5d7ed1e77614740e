//! A `NETLINK_SOCK_DIAG` socket: sends a dump request and receives its datagrams until the kernel closes it, or sends
//! requests that are answered with a datagram each.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::diag_modules::{DiagModule, DiagModules};
use super::diag_stream::{self, DumpError, Progress};

/// The kernel fills datagrams up to the largest buffer it has seen, up to 32 KiB: never offer less.
const BUFFER: usize = 32 * 1024;
/// A dump runs inside the system call; waiting at all means that something is wrong.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// The number of losses in a row that are passed over: the kernel reports each loss once.
const MOST_LOSSES: u32 = 16;
/// The sequence number of what is compared: it stands in every message.
pub(super) const SAME: u32 = 1;
/// Where `nlmsg_seq` stands in a netlink header.
const SEQUENCE_AT: std::ops::Range<usize> = 8..12;

/// One netlink socket. It belongs to the namespace it was made in for good.
pub struct Channel {
    socket: Socket,
    modules: &'static DiagModules,
    sequence: u32,
    /// Whether a dump was left in the middle.
    has_leftovers: bool,
}

/// The memory that datagrams are received into: one for all channels.
pub struct Datagram(Box<[u8]>);

/// The datagrams of a whole dump, or of all answers, to tell whether the next ones are the same.
#[derive(Default)]
pub struct LastDump {
    bytes: Vec<u8>,
    /// Where each datagram ends.
    ends: Vec<usize>,
}

/// What ends the datagrams that are received.
#[derive(Clone, Copy)]
enum End {
    /// The kernel says so.
    Said,
    /// There are so many, and all are there when the requests are sent.
    Count(usize),
}

// === impl LastDump ===

impl LastDump {
    /// Whether none is kept: of one without rows there is its end.
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Hands over each row's payload once more.
    pub(super) fn each_row(
        &self,
        mut row: impl FnMut(&[u8]) -> Result<(), DumpError>,
    ) -> Result<(), DumpError> {
        (0..self.ends.len()).try_for_each(|nth| {
            let datagram = self.datagram(nth).unwrap_or_default();
            diag_stream::decode(datagram, SAME, &mut row).map(drop)
        })
    }

    fn datagram(&self, nth: usize) -> Option<&[u8]> {
        let start = nth.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        self.bytes.get(start..*self.ends.get(nth)?)
    }

    /// The next dump counts as another.
    pub fn forget(&mut self) {
        self.truncate(0);
    }

    /// Keeps the first `count` datagrams.
    fn truncate(&mut self, count: usize) {
        self.ends.truncate(count);
        self.bytes.truncate(self.ends.last().copied().unwrap_or(0));
    }

    fn push(&mut self, datagram: &[u8]) {
        self.bytes.extend_from_slice(datagram);
        self.ends.push(self.bytes.len());
    }
}

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
        Self::open_with(DiagModules::of_process())
    }

    /// The same, with other knowledge of the kernel's modules than the process has.
    pub fn open_with(modules: &'static DiagModules) -> Result<Self, DumpError> {
        let socket = Socket::new(NETLINK_SOCK_DIAG).map_err(DumpError::Socket)?;
        // Connected to the kernel (port 0), nobody else's messages are let in.
        socket.connect(&SocketAddr::new(0, 0)).map_err(DumpError::Socket)?;
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, direction, Some(RECEIVE_TIMEOUT))
                .map_err(|errno| DumpError::Socket(errno.into()))?;
        }
        Ok(Self { socket, modules, sequence: 0, has_leftovers: false })
    }

    /// Sends `request` (a whole message; its sequence number is written here) and hands over each row's payload.
    pub fn dump(
        &mut self,
        request: &mut [u8],
        datagram: &mut Datagram,
        mut row: impl FnMut(&[u8]) -> Result<(), DumpError>,
    ) -> Result<(), DumpError> {
        self.modules.ask(DiagModule::answering(request), || {
            self.sequence = self.sequence.wrapping_add(1).max(SAME + 1);
            self.request(request, self.sequence, datagram)?;
            loop {
                let length = self.receive(datagram, RecvFlags::empty())?;
                let datagram = &datagram.0[..length];
                if diag_stream::decode(datagram, self.sequence, &mut row)? == Progress::Done {
                    self.has_leftovers = false;
                    return Ok(());
                }
            }
        })
    }

    /// What is known of the kernel's modules.
    pub(super) fn modules(&self) -> &'static DiagModules {
        self.modules
    }

    /// The same, but looks into no row while the datagrams are those of `last`, to the byte. Gives whether all were:
    /// then no row is handed over.
    pub fn dump_unless_same(
        &mut self,
        request: &mut [u8],
        datagram: &mut Datagram,
        last: &mut LastDump,
        mut row: impl FnMut(&[u8]) -> Result<(), DumpError>,
    ) -> Result<bool, DumpError> {
        let result = self.modules.ask(DiagModule::answering(request), || {
            self.request(request, SAME, datagram)?;
            self.compare(End::Said, datagram, last, &mut row)
        });
        if result.is_err() {
            last.forget();
        }
        result
    }

    /// Sends `requests` (whole messages with the sequence number [`SAME`]), each of which is answered with one row in
    /// a datagram of its own, and does the same with the answers.
    pub(super) fn ask(
        &mut self,
        requests: &[u8],
        count: usize,
        datagram: &mut Datagram,
        last: &mut LastDump,
        mut row: impl FnMut(&[u8]) -> Result<(), DumpError>,
    ) -> Result<bool, DumpError> {
        if count == 0 {
            return Ok(true);
        }
        let sent = self.send(requests, datagram);
        let result = sent.and_then(|()| self.compare(End::Count(count), datagram, last, &mut row));
        if result.is_err() {
            last.forget();
        }
        result
    }

    fn compare(
        &mut self,
        end: End,
        datagram: &mut Datagram,
        last: &mut LastDump,
        row: &mut impl FnMut(&[u8]) -> Result<(), DumpError>,
    ) -> Result<bool, DumpError> {
        let (mut nth, mut is_same) = (0, true);
        loop {
            let length = self.receive(datagram, end.flags())?;
            let datagram = &datagram.0[..length];
            let progress = if is_same && last.datagram(nth) == Some(datagram) {
                // A dump that was kept ended with its last datagram.
                if nth + 1 == last.ends.len() { Progress::Done } else { Progress::More }
            } else {
                if std::mem::take(&mut is_same) {
                    last.truncate(nth);
                    last.each_row(&mut *row)?;
                }
                last.push(datagram);
                diag_stream::decode(datagram, SAME, &mut *row)?
            };
            nth += 1;
            if end.is_reached(nth, progress) {
                self.has_leftovers = false;
                return Ok(is_same);
            }
        }
    }

    fn request(
        &mut self,
        request: &mut [u8],
        sequence: u32,
        datagram: &mut Datagram,
    ) -> Result<(), DumpError> {
        request[SEQUENCE_AT].copy_from_slice(&sequence.to_ne_bytes());
        self.send(request, datagram)
    }

    fn send(&mut self, requests: &[u8], datagram: &mut Datagram) -> Result<(), DumpError> {
        self.drop_leftovers(datagram)?;
        self.has_leftovers = true;
        retried(|| self.socket.send(requests, 0)).map(drop)
    }

    /// The kernel starts no dump before the last one was read to its end.
    fn drop_leftovers(&mut self, datagram: &mut Datagram) -> Result<(), DumpError> {
        let flags = RecvFlags::DONTWAIT.bits() as i32;
        let mut losses = 0;
        while self.has_leftovers {
            match retried(|| self.socket.recv(&mut &mut *datagram.0, flags)) {
                Ok(_) => {}
                Err(DumpError::TimedOut(_)) => self.has_leftovers = false,
                // Datagrams were lost for want of memory: what follows is left over all the same.
                Err(DumpError::Socket(error))
                    if Errno::from_io_error(&error) == Some(Errno::NOBUFS)
                        && losses < MOST_LOSSES =>
                {
                    losses += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn receive(&self, datagram: &mut Datagram, flags: RecvFlags) -> Result<usize, DumpError> {
        // With MSG_TRUNC the length is the datagram's own, also when it did not fit.
        let flags = (flags | RecvFlags::TRUNC).bits() as i32;
        let room = datagram.0.len();
        let length = retried(|| self.socket.recv(&mut &mut *datagram.0, flags))?;
        match length {
            0 => Err(DumpError::Malformed("an empty datagram".into())),
            length if length > room => Err(DumpError::Truncated { length, room }),
            length => Ok(length),
        }
    }
}

// === impl End ===

impl End {
    /// What is there already need not be waited for.
    fn flags(self) -> RecvFlags {
        match self {
            Self::Said => RecvFlags::empty(),
            Self::Count(_) => RecvFlags::DONTWAIT,
        }
    }

    fn is_reached(self, datagrams: usize, progress: Progress) -> bool {
        match self {
            Self::Said => progress == Progress::Done,
            Self::Count(count) => datagrams == count,
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
                return Err(DumpError::TimedOut(RECEIVE_TIMEOUT));
            }
            result => return result.map_err(DumpError::Socket),
        }
    }
}
