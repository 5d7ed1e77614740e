//! Parses `/proc/net/tcp` and `tcp6`, the fallback when `sock_diag` is missing.
//!
//! LISTEN rows come first and contain the queue length. They contain no limit, no drops and no
//! interface (`tcp4_seq_show`, `get_tcp4_sock`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustc_hash::FxHashMap;

use crate::snapshot::{AcceptQueue, Cookie, ListenAddress, ListenSocket, Origin};

const LISTEN: &str = "0A";

/// A line does not match the format that `proc_net_tcp` describes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not a socket row: {text:?}")]
pub struct RowError {
    line: usize,
    text: String,
}

/// Adds the listen sockets of one file to `sockets`. Stops at the first row in another state: any
/// number of connections follows.
pub fn parse(text: &str, sockets: &mut Vec<ListenSocket>) -> Result<(), RowError> {
    for (index, text) in text.lines().enumerate().skip(1) {
        match row(text) {
            Some(Some(socket)) => sockets.push(socket),
            Some(None) => break,
            None => return Err(RowError { line: index + 1, text: text.into() }),
        }
    }
    Ok(())
}

/// Whether the line is a connection: no listener follows a connection.
pub fn is_connection(line: &str) -> bool {
    !line.trim_start().starts_with("sl ") && matches!(row(line), Some(None))
}

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Local end of the connection.
    pub local: SocketAddr,
    /// Remote end of the connection.
    pub remote: SocketAddr,
}

/// Returns the ends of all connections that a process has open, by inode: neither listeners nor
/// closed connections in TIME_WAIT, which have no inode.
pub fn connections(text: &str) -> FxHashMap<u64, Ends> {
    let row = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (local, remote) = (fields.nth(1)?, fields.next()?);
        let is_listener = fields.next()? == LISTEN;
        let inode = fields.nth(5)?.parse().ok().filter(|inode| *inode != 0 && !is_listener)?;
        Some((inode, Ends { local: end(local)?, remote: end(remote)? }))
    };
    text.lines().skip(1).filter_map(row).collect()
}

/// Parses `address:port` in hexadecimal digits; IPv4 addresses mapped into IPv6 become IPv4.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    Some(SocketAddr::new(address_of(address)?.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}

/// Parses a row: `sl local remote state tx:rx timer:when retransmits uid timeout inode …`
fn row(text: &str) -> Option<Option<ListenSocket>> {
    let mut fields = text.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let queues = fields.next()?;
    let uid = fields.nth(2)?;
    let inode = fields.nth(1)?;
    if state != LISTEN {
        return Some(None);
    }
    let (address, port) = local.split_once(':')?;
    let (_, length) = queues.split_once(':')?;
    let inode: u32 = inode.parse().ok()?;
    Some(Some(ListenSocket {
        cookie: Cookie(inode.into()),
        address: ListenAddress {
            ip: address_of(address)?,
            port: u16::from_str_radix(port, 16).ok()?,
            device: None,
        },
        queue: AcceptQueue { length: u32::from_str_radix(length, 16).ok()?, limit: None },
        drops: None,
        origin: Origin { inode, cgroup: None, uid: uid.parse().ok() },
    }))
}

/// Parses native-endian words of eight hex digits: one for IPv4, four for IPv6.
fn address_of(hex: &str) -> Option<IpAddr> {
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(hex)?).into()),
        32 => {
            let mut octets = [0; 16];
            for (chunk, at) in octets.chunks_exact_mut(4).zip((0..).step_by(8)) {
                chunk.copy_from_slice(&word(hex.get(at..at + 8)?)?);
            }
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}

fn word(hex: &str) -> Option<[u8; 4]> {
    u32::from_str_radix(hex, 16).ok().map(u32::to_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn socket(ip: &str, port: u16, length: u32, inode: u32) -> ListenSocket {
        ListenSocket {
            cookie: Cookie(inode.into()),
            address: ListenAddress { ip: ip.parse().unwrap(), port, device: None },
            queue: AcceptQueue { length, limit: None },
            drops: None,
            origin: Origin { inode, cgroup: None, uid: Some(0) },
        }
    }

    fn parsed(text: &str) -> Result<Vec<ListenSocket>, RowError> {
        let mut sockets = Vec::new();
        parse(text, &mut sockets).map(|()| sockets)
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn listen_rows_are_read_until_the_first_connection() {
        let text = format!(
            "{HEADER}\
             \u{20}  0: 0100007F:A32D 00000000:0000 0A 00000000:00000003 00:00000000 00000000     0        0 3947 4 000000003c11faa1 100 0 0 10 0\n\
             \u{20}  1: 0100007F:A32D 0100007F:D646 01 00000000:00000000 00:00000000 00000000     0        0 0 1 0000000061ffa1f1 20 0 0 10 -1\n\
             \u{20}  2: 0100007F:0001 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 4 000000003c11faa1 100 0 0 10 0\n"
        );
        assert_eq!(parsed(&text), Ok(vec![socket("127.0.0.1", 41773, 3, 3947)]));
        let connections = text.lines().map(is_connection);
        assert_eq!(connections.collect::<Vec<_>>(), [false, false, true, false]);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn an_ipv6_row_is_read_word_by_word() {
        let text = format!(
            "{HEADER}   0: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 42 1 0000000000000000 100 0 0 10 0\n"
        );
        assert_eq!(parsed(&text), Ok(vec![socket("2001:db8::1", 80, 0, 42)]));
    }

    #[test]
    fn a_broken_line_is_named() {
        let error = parsed(&format!("{HEADER}   0: nonsense\n")).unwrap_err();
        assert_eq!(error.to_string(), "line 2 is not a socket row: \"   0: nonsense\"");
        let unicode = format!("{HEADER}   0: ääääääääääääääää:0050 0:0 0A 0:0 0:0 0 0 0 42\n");
        assert!(parsed(&unicode).is_err());
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn connections_are_found_by_inode_without_listeners_and_closed_connections() {
        let row = "   1: 0100007F:A1B2 0500000A:0CEA 01 00000000:00000000 00:00000000 00000000     0        0 4711 1\n";
        let mapped = "   2: 0000000000000000FFFF00000100007F:0050 0000000000000000FFFF00000200007F:9000 01 0:0 0:0 0 0 0 4712 1\n";
        let listener = "   0: 0100007F:0050 00000000:0000 0A 0:0 0:0 0 0 0 4713 1\n";
        let closed = "   3: 0100007F:A1B3 0500000A:0CEA 06 0:0 0:0 0 0 0 0 1\n";
        let found = connections(&format!("{HEADER}{listener}{row}{mapped}{closed}"));
        let ends = |local: &str, remote: &str| Ends {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
        };
        let expected = [
            (4711, ends("127.0.0.1:41394", "10.0.0.5:3306")),
            (4712, ends("127.0.0.1:80", "127.0.0.2:36864")),
        ];
        assert_eq!(found, expected.into_iter().collect());
    }
}
