//! TCP LISTEN dumps of `inet_diag`: builds the requests and decodes the rows
//! (`include/uapi/linux/inet_diag.h`: `inet_diag_msg` and its attributes).

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NlasIterator, Parseable};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags,
};

use super::diag_stream::{DumpError, malformed};
use crate::snapshot::{AcceptQueue, Cookie, ListenAddress, ListenSocket, Origin};

/// Size of `struct inet_diag_msg` without its attributes.
pub(super) const MESSAGE: usize = 72;
/// `INET_DIAG_SKMEMINFO`.
pub(super) const SKMEMINFO: u16 = 7;
/// `INET_DIAG_CGROUP_ID`, since Linux 5.9; the kernel sends it before SKMEMINFO.
const CGROUP_ID: u16 = 21;
/// `SK_MEMINFO_DROPS`: the ninth u32 of SKMEMINFO.
const DROPS: std::ops::Range<usize> = 32..36;
/// `INET_DIAG_REQ_BYTECODE`.
const REQ_BYTECODE: u16 = 1;
/// `TCPDIAG_GETSOCK`: the predecessor of `SOCK_DIAG_BY_FAMILY`.
const TCPDIAG_GETSOCK: u16 = 18;
/// `TCP_LISTEN`.
pub(super) const LISTEN: u8 = 10;

/// A row as the kernel sends it, with the interface as an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// All fields except the interface.
    pub socket: ListenSocket,
    /// `idiag_if`: 0 if the socket is not bound to an interface.
    pub interface: u32,
}

/// Builder of a dump of both families in one walk of the table.
///
/// It uses the older request with `struct inet_diag_req`, for which the kernel leaves the family
/// open.
#[derive(Clone, Debug, Default)]
pub struct Request {
    states: u32,
    extensions: u8,
    filter: Option<Vec<u8>>,
}

/// Builds one request for the listeners of both families.
pub fn both_families() -> Vec<u8> {
    Request::states(&[LISTEN]).with(SKMEMINFO).build()
}

/// Builds one request for IPv4 and one for IPv6 listeners: two walks, for kernels that refuse the
/// older request.
pub fn one_per_family() -> [Vec<u8>; 2] {
    [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())].map(|(family, socket_id)| {
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::SKMEMINFO,
            states: StateFlags::LISTEN,
            socket_id,
        };
        let mut message = NetlinkMessage::from(SockDiagMessage::InetRequest(request));
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    })
}

/// Decodes one row; `None` if the socket does not listen.
pub fn decode_row(payload: &[u8]) -> Result<Option<Row>, DumpError> {
    let header = InetResponseHeader::parse(payload).map_err(malformed)?;
    if header.state != LISTEN {
        return Ok(None);
    }
    let Attributes { drops, cgroup } = attributes(payload.get(MESSAGE..).unwrap_or_default())?;
    let id = header.socket_id;
    let socket = ListenSocket {
        cookie: Cookie::from_halves(id.cookie),
        address: ListenAddress { ip: id.source_address, port: id.source_port, device: None },
        queue: AcceptQueue { length: header.recv_queue, limit: Some(header.send_queue) },
        drops,
        origin: Origin { inode: header.inode, cgroup, uid: Some(header.uid) },
    };
    Ok(Some(Row { socket, interface: id.interface_id }))
}

// === impl Request ===

impl Request {
    /// Requests the sockets in these states.
    pub fn states(states: &[u8]) -> Self {
        let states = states.iter().fold(0, |mask, state| mask | 1u32 << state);
        Self { states, ..Self::default() }
    }

    /// Requests this attribute as well.
    pub fn with(mut self, attribute: u16) -> Self {
        self.extensions |= 1 << (attribute - 1);
        self
    }

    /// Limits the dump to sockets that the byte-code accepts; `None` means no limit.
    pub fn filtered(self, filter: Option<Vec<u8>>) -> Self {
        Self { filter, ..self }
    }

    /// Builds the whole message.
    pub fn build(&self) -> Vec<u8> {
        const HEADER: usize = 16;
        const EXTENSIONS_AT: usize = HEADER + 3;
        const STATES_AT: usize = HEADER + 4 + 48;
        const FIXED: usize = HEADER + 60;
        let mut request = vec![0; FIXED];
        request[4..6].copy_from_slice(&TCPDIAG_GETSOCK.to_ne_bytes());
        request[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
        request[EXTENSIONS_AT] = self.extensions;
        request[STATES_AT..STATES_AT + 4].copy_from_slice(&self.states.to_ne_bytes());
        if let Some(filter) = &self.filter {
            request.extend((4 + filter.len() as u16).to_ne_bytes());
            request.extend(REQ_BYTECODE.to_ne_bytes());
            request.extend(filter);
        }
        let length = request.len() as u32;
        request[0..4].copy_from_slice(&length.to_ne_bytes());
        request
    }
}

#[derive(Default)]
struct Attributes {
    drops: Option<u32>,
    cgroup: Option<u64>,
}

/// Decodes the attributes. Drops are the last attribute needed; kernels before 4.7 send a shorter
/// SKMEMINFO without drops.
fn attributes(bytes: &[u8]) -> Result<Attributes, DumpError> {
    let mut attributes = Attributes::default();
    for attribute in NlasIterator::new(bytes) {
        let attribute = attribute.map_err(malformed)?;
        match attribute.kind() {
            CGROUP_ID => {
                attributes.cgroup =
                    attribute.value().first_chunk().copied().map(u64::from_ne_bytes);
            }
            SKMEMINFO => {
                let value = attribute.value().get(DROPS);
                attributes.drops =
                    value.and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
                break;
            }
            _ => {}
        }
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row that Linux 6.18 sent for `[::1]:8080`: backlog 511, two waiting, three drops,
    /// attribute SKMEMINFO.
    fn recorded(family: u8, state: u8) -> Vec<u8> {
        let mut row = vec![family, state, 0, 0];
        row.extend(8080u16.to_be_bytes());
        row.extend([0; 2]);
        row.extend([0; 15]);
        row.push(1);
        row.extend([0; 16]);
        row.extend(3u32.to_ne_bytes());
        row.extend(0x2au32.to_ne_bytes());
        row.extend(1u32.to_ne_bytes());
        row.extend(0u32.to_ne_bytes());
        row.extend(2u32.to_ne_bytes());
        row.extend(511u32.to_ne_bytes());
        row.extend(0u32.to_ne_bytes());
        row.extend(4711u32.to_ne_bytes());
        assert_eq!(row.len(), MESSAGE);
        row
    }

    fn with_meminfo(mut row: Vec<u8>, words: &[u32]) -> Vec<u8> {
        row.extend((4 + 4 * words.len() as u16).to_ne_bytes());
        row.extend(SKMEMINFO.to_ne_bytes());
        row.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        row
    }

    #[test]
    fn a_listening_row_becomes_a_socket() {
        let row = with_meminfo(recorded(AF_INET6, LISTEN), &[0, 0, 0, 0, 0, 0, 0, 0, 3]);
        let expected = Row {
            socket: ListenSocket {
                cookie: Cookie(1 << 32 | 0x2a),
                address: ListenAddress { ip: "::1".parse().unwrap(), port: 8080, device: None },
                queue: AcceptQueue { length: 2, limit: Some(511) },
                drops: Some(3),
                origin: Origin { inode: 4711, cgroup: None, uid: Some(0) },
            },
            interface: 3,
        };
        assert_eq!(decode_row(&row).unwrap(), Some(expected));
    }

    #[test]
    fn the_creators_cgroup_is_read_where_it_is_sent() {
        let mut row = recorded(AF_INET6, LISTEN);
        row.extend(12u16.to_ne_bytes());
        row.extend(CGROUP_ID.to_ne_bytes());
        row.extend(0x0001_0000_0007u64.to_ne_bytes());
        let socket = decode_row(&with_meminfo(row, &[9; 9])).unwrap().unwrap().socket;
        assert_eq!((socket.origin.cgroup, socket.drops), (Some(0x0001_0000_0007), Some(9)));
    }

    #[test]
    fn a_short_meminfo_leaves_the_drops_unknown() {
        let row = with_meminfo(recorded(AF_INET6, LISTEN), &[0; 8]);
        assert_eq!(decode_row(&row).unwrap().unwrap().socket.drops, None);
        let bare = recorded(AF_INET6, LISTEN);
        assert_eq!(decode_row(&bare).unwrap().unwrap().socket.drops, None);
    }

    #[test]
    fn another_state_is_no_listener() {
        assert_eq!(decode_row(&recorded(AF_INET6, 1)).unwrap(), None);
    }

    #[test]
    fn rubbish_fails_the_dump() {
        assert!(decode_row(&[0; 10]).is_err());
        assert!(decode_row(&recorded(77, LISTEN)).is_err());
        let mut row = recorded(AF_INET6, LISTEN);
        row.extend([99, 0, 7, 0]);
        assert!(decode_row(&row).is_err());
    }

    #[test]
    fn requests_carry_their_own_length() {
        let [v4, v6] = one_per_family();
        for request in [both_families(), v4, v6] {
            let length = u32::from_ne_bytes(*request.first_chunk().unwrap());
            assert_eq!(length as usize, request.len());
        }
    }
}
