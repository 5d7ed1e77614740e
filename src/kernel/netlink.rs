//! A `NETLINK_SOCK_DIAG` socket. It sends a dump request and receives datagrams until the kernel
//! ends the dump, or sends requests that each return one datagram.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::diag_modules::{DiagModule, DiagModules};
use super::diag_stream::{self, DumpError, Progress};

/// Buffer size in bytes. The kernel fills datagrams up to the largest buffer it has seen, at most
/// 32 KiB: never offer a smaller buffer.
const BUFFER: usize = 32 * 1024;
/// Timeout of a receive. A dump runs inside the system call, so any wait means that something is
/// wrong.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum number of consecutive losses that are ignored: the kernel reports each loss once.
const MOST_LOSSES: u32 = 16;
/// Maximum number of requests in one `send`: all answers must fit into the receive buffer.
const BATCH: usize = 32;
/// Maximum size of a dump that is kept for comparison, in bytes: about 6,000 listeners. Decoding a
/// longer dump costs little compared with the dump itself, and the memory is needed elsewhere.
const MAX_KEPT: usize = 1 << 20;
/// Fixed sequence number of dumps that are compared, because every message contains the number.
pub(super) const SAME: u32 = 1;
/// Offset of `nlmsg_seq` in a netlink header.
const SEQUENCE_AT: std::ops::Range<usize> = 8..12;

/// One netlink socket. It belongs permanently to the namespace in which it was created.
pub struct Channel {
    socket: Socket,
    modules: &'static DiagModules,
    sequence: u32,
    /// Whether the last dump was not read to its end.
    has_leftovers: bool,
    /// Total time for which walks may have delayed other dumps.
    walked: Duration,
}

/// Receive buffer for datagrams, shared by all channels.
pub struct Datagram(Box<[u8]>);

/// The datagrams of a complete dump, or of all answers. Used to detect whether the next datagrams
/// are identical.
#[derive(Default)]
pub struct LastDump {
    bytes: Vec<u8>,
    /// End offset of each datagram.
    ends: Vec<usize>,
    /// Size of the dump so far, kept or not.
    length: usize,
    /// Whether the last complete dump was too long to keep.
    is_too_long: bool,
}

// === impl LastDump ===

impl LastDump {
    /// Passes each kept row's payload to `row` again.
    fn each_row(
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

    /// Passes each kept answer to `answer` again.
    fn each_answer(&self, answer: &mut impl FnMut(usize, Result<&[u8], DumpError>)) {
        for nth in 0..self.ends.len() {
            decode_answer(nth, self.datagram(nth).unwrap_or_default(), answer);
        }
    }

    /// Makes the next dump count as different.
    pub fn forget(&mut self) {
        self.truncate(0);
    }

    /// Keeps the first `count` datagrams.
    fn truncate(&mut self, count: usize) {
        self.ends.truncate(count);
        self.length = self.ends.last().copied().unwrap_or(0);
        self.bytes.truncate(self.length);
    }

    fn push(&mut self, datagram: &[u8]) {
        self.length += datagram.len();
        if self.length > MAX_KEPT {
            self.is_too_long = true;
            (self.bytes, self.ends) = (Vec::new(), Vec::new());
        }
        if !self.is_too_long {
            self.bytes.extend_from_slice(datagram);
            self.ends.push(self.bytes.len());
        }
    }

    /// Ends a dump that differs from the kept dump.
    fn finish(&mut self) {
        self.is_too_long = self.length > MAX_KEPT;
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

    /// Like [`open`](Self::open), with the given module state instead of the state of the process.
    pub fn open_with(modules: &'static DiagModules) -> Result<Self, DumpError> {
        let socket = Socket::new(NETLINK_SOCK_DIAG).map_err(DumpError::Socket)?;
        // A socket connected to the kernel (port 0) receives no messages from other senders.
        socket.connect(&SocketAddr::new(0, 0)).map_err(DumpError::Socket)?;
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, direction, Some(RECEIVE_TIMEOUT))
                .map_err(|errno| DumpError::Socket(errno.into()))?;
        }
        let walked = Duration::ZERO;
        Ok(Self { socket, modules, sequence: 0, has_leftovers: false, walked })
    }

    /// Returns the total time of the kernel's first answers to [`dump`](Self::dump).
    pub(super) fn walked(&self) -> Duration {
        self.walked
    }

    /// Sends `request` and passes each row's payload to `row`. `request` is a whole message; this
    /// function writes its sequence number. For long walks of one thread.
    pub fn dump(
        &mut self,
        request: &mut [u8],
        datagram: &mut Datagram,
        mut row: impl FnMut(&[u8]) -> Result<(), DumpError>,
    ) -> Result<(), DumpError> {
        self.modules.ask(DiagModule::answering(request), || {
            self.sequence = self.sequence.wrapping_add(1).max(SAME + 1);
            let begin = Instant::now();
            let sent = self.request(request, self.sequence, datagram);
            self.walked += begin.elapsed();
            sent?;
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

    /// Returns the state of the kernel's modules.
    pub(super) fn modules(&self) -> &'static DiagModules {
        self.modules
    }

    /// Like [`dump`](Self::dump), but decodes no row while the datagrams are byte-identical to
    /// `last`. Returns whether all datagrams were identical; in that case `row` is never called.
    pub fn dump_unless_same(
        &mut self,
        request: &mut [u8],
        datagram: &mut Datagram,
        last: &mut LastDump,
        mut row: impl FnMut(&[u8]) -> Result<(), DumpError>,
    ) -> Result<bool, DumpError> {
        let result = self.modules.ask(DiagModule::answering(request), || {
            self.request(request, SAME, datagram)?;
            self.compare(datagram, last, &mut row)
        });
        if result.is_err() {
            last.forget();
        }
        result
    }

    /// Sends requests of `size` bytes each and passes each answer with its number to `answer`,
    /// unless the answers are byte-identical to `last`. Returns whether they were identical.
    ///
    /// Requests are whole messages with the sequence number [`SAME`]; the kernel answers each one
    /// with one datagram, which contains a row or an error.
    pub(super) fn ask(
        &mut self,
        requests: &[u8],
        size: usize,
        datagram: &mut Datagram,
        last: &mut LastDump,
        mut answer: impl FnMut(usize, Result<&[u8], DumpError>),
    ) -> Result<bool, DumpError> {
        let (mut nth, mut is_same) = (0, true);
        for batch in requests.chunks(BATCH * size) {
            let end = nth + batch.len() / size;
            let asked = self.send(batch, datagram).and_then(|()| {
                (nth..end).try_for_each(|nth| {
                    is_same = self.compare_answer(nth, is_same, datagram, last, &mut answer)?;
                    Ok(())
                })
            });
            if let Err(error) = asked {
                last.forget();
                return Err(error);
            }
            self.has_leftovers = false;
            nth = end;
        }
        Ok(is_same)
    }

    /// Receives the `nth` answer. Returns whether all answers so far are identical to `last`.
    fn compare_answer(
        &self,
        nth: usize,
        is_same: bool,
        datagram: &mut Datagram,
        last: &mut LastDump,
        answer: &mut impl FnMut(usize, Result<&[u8], DumpError>),
    ) -> Result<bool, DumpError> {
        // The kernel has answered before `send` returns.
        let length = self.receive(datagram, RecvFlags::DONTWAIT)?;
        let datagram = &datagram.0[..length];
        if is_same && last.datagram(nth) == Some(datagram) {
            return Ok(true);
        }
        if is_same {
            last.truncate(nth);
            last.each_answer(answer);
        }
        last.push(datagram);
        decode_answer(nth, datagram, answer);
        Ok(false)
    }

    fn compare(
        &mut self,
        datagram: &mut Datagram,
        last: &mut LastDump,
        row: &mut impl FnMut(&[u8]) -> Result<(), DumpError>,
    ) -> Result<bool, DumpError> {
        let (mut nth, mut is_same) = (0, true);
        loop {
            let length = self.receive(datagram, RecvFlags::empty())?;
            let datagram = &datagram.0[..length];
            let progress = if is_same && last.datagram(nth) == Some(datagram) {
                // The kept dump ended with its last datagram.
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
            if progress == Progress::Done {
                self.has_leftovers = false;
                if !is_same {
                    last.finish();
                }
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

    /// Discards the rest of the last dump: the kernel starts no dump before the last dump is read
    /// to its end.
    fn drop_leftovers(&mut self, datagram: &mut Datagram) -> Result<(), DumpError> {
        let flags = RecvFlags::DONTWAIT.bits() as i32;
        let mut losses = 0;
        while self.has_leftovers {
            match retried(|| self.socket.recv(&mut &mut *datagram.0, flags)) {
                Ok(_) => {}
                Err(DumpError::TimedOut(_)) => self.has_leftovers = false,
                // Datagrams were lost because memory was short: the datagrams that follow are still
                // leftovers.
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
        // With MSG_TRUNC the length is the size of the datagram, even if it did not fit into the
        // buffer.
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

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Passes the row or the error of one answer to `answer`.
fn decode_answer(
    nth: usize,
    datagram: &[u8],
    answer: &mut impl FnMut(usize, Result<&[u8], DumpError>),
) {
    let row = |payload: &[u8]| {
        answer(nth, Ok(payload));
        Ok(())
    };
    if let Err(error) = diag_stream::decode(datagram, SAME, row) {
        answer(nth, Err(error));
    }
}

/// Retries a call that a signal interrupts; an interrupted call is no failure.
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
