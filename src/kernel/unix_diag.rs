//! Unix LISTEN dumps: builds the request and decodes the rows (`include/uapi/linux/unix_diag.h`:
//! `unix_diag_msg` and its attributes). The kernel has no drop counter for Unix sockets.

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NlasIterator, Parseable};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{
    UNIX_DIAG_ICONS, UNIX_DIAG_NAME, UNIX_DIAG_RQLEN, UNIX_DIAG_VFS,
};
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest, UnixResponseHeader};

use super::diag_stream::{DumpError, malformed};
use crate::snapshot::scan::UnixQueue;
use crate::snapshot::{AcceptQueue, Cookie, ListenSocket, Origin, UnixAddress, UnixFile, UnixName};

/// Size of `struct unix_diag_msg` without its attributes.
const MESSAGE: usize = 16;
/// `TCP_LISTEN`, also used for Unix sockets.
const LISTEN: u8 = 10;
/// `TCP_ESTABLISHED`, also used for Unix sockets.
const ESTABLISHED: u8 = 1;

/// `UDIAG_SHOW_UID` and its answer `UNIX_DIAG_UID`, since Linux 5.3.
const SHOW_UID: u32 = 0x40;
const UNIX_DIAG_UID: u16 = 7;

/// Longest queue whose clients the kernel can list: a datagram has 32 KiB, and each client takes
/// four bytes.
pub const LONGEST_QUEUE: u32 = 7_500;

/// Requests the listening sockets with their names and queues.
pub fn request() -> Vec<u8> {
    let uid = ShowFlags::from_bits_retain(SHOW_UID);
    dump(StateFlags::LISTEN, ShowFlags::NAME | ShowFlags::VFS | ShowFlags::RQLEN | uid)
}

/// Requests connections with their names. The name of an accepted or waiting connection is the name
/// of its listener.
pub fn connection_request() -> Vec<u8> {
    dump(StateFlags::ESTABLISHED, ShowFlags::NAME | ShowFlags::VFS)
}

/// Requests the listening sockets with their names and the clients in their queues.
pub fn queue_request() -> Vec<u8> {
    dump(StateFlags::LISTEN, ShowFlags::NAME | ShowFlags::VFS | ShowFlags::ICONS)
}

fn dump(state_flags: StateFlags, show_flags: ShowFlags) -> Vec<u8> {
    let request = UnixRequest { state_flags, inode: 0, show_flags, cookie: [0xff; 8] };
    let mut message = NetlinkMessage::from(SockDiagMessage::UnixRequest(request));
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Decodes one row; `None` if it is not a listening socket with a name.
pub fn decode_row(payload: &[u8]) -> Result<Option<ListenSocket<UnixAddress>>, DumpError> {
    let header = UnixResponseHeader::parse(payload).map_err(malformed)?;
    if header.state != LISTEN {
        return Ok(None);
    }
    let (mut name, mut file, mut queue, mut uid) = (None, None, None, None);
    for attribute in NlasIterator::new(payload.get(MESSAGE..).unwrap_or_default()) {
        let attribute = attribute.map_err(malformed)?;
        match attribute.kind() {
            UNIX_DIAG_NAME => name = UnixName::new(attribute.value()),
            UNIX_DIAG_VFS => file = unix_file(attribute.value()),
            UNIX_DIAG_RQLEN => queue = accept_queue(attribute.value()),
            UNIX_DIAG_UID => {
                uid = attribute.value().first_chunk().copied().map(u32::from_ne_bytes);
            }
            _ => {}
        }
    }
    let queue = queue.ok_or_else(|| malformed("a Unix listener without its queue"))?;
    Ok(name.map(|name| ListenSocket {
        cookie: Cookie::from_halves(header.cookie),
        address: UnixAddress { name, file },
        queue,
        drops: None,
        origin: Origin { inode: header.inode, cgroup: None, uid },
    }))
}

/// Decodes one row of a queue request; `None` if it is not a listening socket with a name and a
/// queue.
pub fn decode_queue(payload: &[u8]) -> Result<Option<UnixQueue>, DumpError> {
    let header = UnixResponseHeader::parse(payload).map_err(malformed)?;
    if header.state != LISTEN {
        return Ok(None);
    }
    let (mut name, mut file, mut clients) = (None, None, Vec::new());
    for attribute in NlasIterator::new(payload.get(MESSAGE..).unwrap_or_default()) {
        let attribute = attribute.map_err(malformed)?;
        match attribute.kind() {
            UNIX_DIAG_NAME => name = UnixName::new(attribute.value()),
            UNIX_DIAG_VFS => file = unix_file(attribute.value()),
            UNIX_DIAG_ICONS => {
                let inodes = attribute.value().as_chunks().0;
                clients = inodes.iter().map(|inode| u32::from_ne_bytes(*inode)).collect();
            }
            _ => {}
        }
    }
    let cookie = Cookie::from_halves(header.cookie);
    let queue = name.map(|name| UnixQueue {
        cookie,
        address: UnixAddress { name, file },
        clients,
        open: 0,
    });
    Ok(queue.filter(|queue| !queue.clients.is_empty()))
}

/// Returns the listener address of a connection that a process holds; `None` for a connection
/// without a name or one that still waits.
pub fn decode_accepted(payload: &[u8]) -> Result<Option<UnixAddress>, DumpError> {
    let header = UnixResponseHeader::parse(payload).map_err(malformed)?;
    if header.state != ESTABLISHED || header.inode == 0 {
        return Ok(None);
    }
    let (mut name, mut file) = (None, None);
    for attribute in NlasIterator::new(payload.get(MESSAGE..).unwrap_or_default()) {
        let attribute = attribute.map_err(malformed)?;
        match attribute.kind() {
            UNIX_DIAG_NAME => name = UnixName::new(attribute.value()),
            UNIX_DIAG_VFS => file = unix_file(attribute.value()),
            _ => {}
        }
    }
    Ok(name.map(|name| UnixAddress { name, file }))
}

/// Parses `struct unix_diag_vfs`: inode, then device.
fn unix_file(value: &[u8]) -> Option<UnixFile> {
    let (inode, rest) = value.split_first_chunk()?;
    let device = rest.first_chunk()?;
    Some(UnixFile { device: u32::from_ne_bytes(*device), inode: u32::from_ne_bytes(*inode) })
}

/// Parses `struct unix_diag_rqlen`: length, then limit.
fn accept_queue(value: &[u8]) -> Option<AcceptQueue> {
    let (length, rest) = value.split_first_chunk()?;
    let limit = rest.first_chunk()?;
    Some(AcceptQueue {
        length: u32::from_ne_bytes(*length),
        limit: Some(u32::from_ne_bytes(*limit)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(state: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut row = vec![1, 1, state, 0];
        row.extend(4711u32.to_ne_bytes());
        row.extend(7u32.to_ne_bytes());
        row.extend(0u32.to_ne_bytes());
        for (kind, value) in attributes {
            row.extend((4 + value.len() as u16).to_ne_bytes());
            row.extend(kind.to_ne_bytes());
            row.extend(*value);
            row.resize(row.len().next_multiple_of(4), 0);
        }
        row
    }

    fn rqlen(length: u32, limit: u32) -> Vec<u8> {
        [length.to_ne_bytes(), limit.to_ne_bytes()].concat()
    }

    #[test]
    fn a_listening_row_becomes_a_socket() {
        let vfs = [4_712u32.to_ne_bytes(), 26u32.to_ne_bytes()].concat();
        let attributes: [(u16, &[u8]); 4] = [
            (UNIX_DIAG_NAME, b"/run/a.sock\0"),
            (UNIX_DIAG_VFS, &vfs),
            (UNIX_DIAG_RQLEN, &rqlen(2, 511)),
            (UNIX_DIAG_UID, &1000u32.to_ne_bytes()),
        ];
        let row = row(LISTEN, &attributes);
        let expected = ListenSocket {
            cookie: Cookie(7),
            address: UnixAddress {
                name: UnixName::new(b"/run/a.sock").unwrap(),
                file: Some(UnixFile { device: 26, inode: 4_712 }),
            },
            queue: AcceptQueue { length: 2, limit: Some(511) },
            drops: None,
            origin: Origin { inode: 4711, cgroup: None, uid: Some(1000) },
        };
        assert_eq!(decode_row(&row).unwrap(), Some(expected));
    }

    #[test]
    fn rows_that_do_not_listen_or_have_no_name_are_skipped() {
        assert_eq!(decode_row(&row(1, &[])).unwrap(), None);
        assert_eq!(decode_row(&row(LISTEN, &[(UNIX_DIAG_RQLEN, &rqlen(0, 1))])).unwrap(), None);
    }

    #[test]
    fn rubbish_fails_the_dump() {
        assert!(decode_row(&[0; 9]).is_err());
        assert!(decode_row(&row(LISTEN, &[(UNIX_DIAG_NAME, b"/a\0")])).is_err());
        assert!(decode_row(&row(LISTEN, &[(UNIX_DIAG_RQLEN, &[1, 2, 3])])).is_err());
    }
}
