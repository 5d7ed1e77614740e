//! Decodes the framing of a netlink dump: messages in a datagram, and the kernel's end and error
//! reports (`include/uapi/linux/netlink.h`).

use std::io;

use netlink_packet_core::NetlinkBuffer;
use rustix::io::Errno;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// Reasons why a dump is unusable. Each error fails one dump only.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The kernel answered with `NLMSG_ERROR`, or with an error inside `NLMSG_DONE`.
    #[error("the kernel refused the socket dump: {0}")]
    Kernel(io::Error),
    /// Socket changes interrupted the dump (`NLM_F_DUMP_INTR`).
    #[error("changes interrupted the socket dump; the next sample repeats it")]
    Interrupted,
    /// A datagram was longer than the buffer: rows are lost.
    #[error("a datagram of {length} bytes did not fit into {room}")]
    Truncated {
        /// Size of the datagram.
        length: usize,
        /// Size of the buffer.
        room: usize,
    },
    /// The kernel did not answer before the timeout.
    #[error("the kernel did not answer the socket dump within {0:?}")]
    TimedOut(std::time::Duration),
    /// The bytes do not match the format in `sock_diag(7)`.
    #[error("the socket dump could not be understood: {0}")]
    Malformed(String),
    /// The kernel module is missing; listenq does not ask for it again for some time.
    #[error("the kernel module {0} is missing")]
    ModuleMissing(&'static str),
    /// Creating, sending to or reading from the netlink socket failed.
    #[error("netlink socket: {0}")]
    Socket(io::Error),
}

/// Whether a dump continues after a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More datagrams follow.
    More,
    /// The kernel ended the dump.
    Done,
}

/// Passes the payload of every row in `datagram` to `row`. Skips messages with another `sequence`,
/// which are left over from an abandoned dump.
pub fn decode(
    datagram: &[u8],
    sequence: u32,
    mut row: impl FnMut(&[u8]) -> Result<(), DumpError>,
) -> Result<Progress, DumpError> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(malformed)?;
        let length = message.length() as usize;
        if message.sequence_number() == sequence {
            if message.flags() & NLM_F_DUMP_INTR != 0 {
                return Err(DumpError::Interrupted);
            }
            match message.message_type() {
                NLMSG_NOOP => {}
                NLMSG_DONE => return done(message.payload()),
                NLMSG_ERROR => return Err(error(message.payload())),
                _ => row(message.payload())?,
            }
        }
        // Messages are padded to four bytes; the last message may lack the padding.
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Progress::More)
}

fn done(payload: &[u8]) -> Result<Progress, DumpError> {
    match errno(payload) {
        Some(code) if code < 0 => Err(DumpError::Kernel(os_error(code))),
        _ => Ok(Progress::Done),
    }
}

fn error(payload: &[u8]) -> DumpError {
    match errno(payload) {
        Some(code) if code < 0 => DumpError::Kernel(os_error(code)),
        Some(_) => DumpError::Malformed("an acknowledgement in place of rows".into()),
        None => DumpError::Malformed("an error message without a code".into()),
    }
}

fn errno(payload: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(*payload.first_chunk()?))
}

fn os_error(negative: i32) -> io::Error {
    io::Error::from_raw_os_error(negative.saturating_neg())
}

pub(crate) fn malformed(error: impl std::fmt::Display) -> DumpError {
    DumpError::Malformed(error.to_string())
}

// === impl DumpError ===

impl DumpError {
    /// Whether the kernel or the sandbox has no `sock_diag` for the requested family.
    pub fn means_unavailable(&self) -> bool {
        let is_forbidden = |error| {
            let errno = Errno::from_io_error(error);
            matches!(
                errno,
                Some(Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT | Errno::ACCESS | Errno::PERM)
            )
        };
        match self {
            Self::ModuleMissing(_) => true,
            Self::Socket(error) => is_forbidden(error) || self.means_missing_module(),
            _ => self.means_missing_module(),
        }
    }

    /// Whether no kernel module answers the dump.
    pub(super) fn means_missing_module(&self) -> bool {
        let (Self::Kernel(error) | Self::Socket(error)) = self else { return false };
        matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::OPNOTSUPP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEQUENCE: u32 = 7;

    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((16 + payload.len() as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn rows(datagram: &[u8]) -> (Vec<Vec<u8>>, Result<Progress, DumpError>) {
        let mut rows = Vec::new();
        let end = decode(datagram, SEQUENCE, |row| {
            rows.push(row.to_vec());
            Ok(())
        });
        (rows, end)
    }

    #[test]
    fn rows_come_out_until_done() {
        let mut datagram = message(20, 2, SEQUENCE, b"abcde");
        datagram.extend(message(20, 2, SEQUENCE, b"xyz"));
        datagram.extend(message(NLMSG_DONE, 2, SEQUENCE, &0i32.to_ne_bytes()));
        let (rows, end) = rows(&datagram);
        assert_eq!(rows, [b"abcde".to_vec(), b"xyz".to_vec()]);
        assert_eq!(end.unwrap(), Progress::Done);
    }

    #[test]
    fn a_datagram_without_done_asks_for_more() {
        let (_, end) = rows(&message(20, 2, SEQUENCE, b"abcd"));
        assert_eq!(end.unwrap(), Progress::More);
    }

    #[test]
    fn leftovers_of_another_dump_are_skipped() {
        let mut datagram = message(20, NLM_F_DUMP_INTR, SEQUENCE - 1, b"old!");
        datagram.extend(message(20, 0, SEQUENCE, b"new!"));
        assert_eq!(rows(&datagram).0, [b"new!".to_vec()]);
    }

    #[test]
    fn an_error_inside_done_fails_the_dump() {
        let datagram = message(NLMSG_DONE, 2, SEQUENCE, &(-2i32).to_ne_bytes());
        let error = rows(&datagram).1.unwrap_err();
        assert!(error.means_unavailable(), "{error}");
    }

    #[test]
    fn an_error_message_fails_the_dump() {
        let datagram = message(NLMSG_ERROR, 0, SEQUENCE, &(-12i32).to_ne_bytes());
        let error = rows(&datagram).1.unwrap_err();
        assert!(matches!(&error, DumpError::Kernel(e) if e.raw_os_error() == Some(12)), "{error}");
        assert!(!error.means_unavailable());
    }

    #[test]
    fn an_interrupted_dump_fails() {
        let datagram = message(20, NLM_F_DUMP_INTR, SEQUENCE, b"abcd");
        assert!(matches!(rows(&datagram).1, Err(DumpError::Interrupted)));
    }

    #[test]
    fn a_message_longer_than_its_datagram_is_malformed() {
        let datagram = message(20, 0, SEQUENCE, b"abcdefgh");
        let cut = &datagram[..datagram.len() - 4];
        assert!(matches!(rows(cut).1, Err(DumpError::Malformed(_))));
        assert!(matches!(rows(&cut[..9]).1, Err(DumpError::Malformed(_))));
    }

    #[test]
    fn an_error_code_without_a_positive_twin_does_not_panic() {
        let datagram = message(NLMSG_DONE, 0, SEQUENCE, &i32::MIN.to_ne_bytes());
        assert!(rows(&datagram).1.is_err());
    }
}
