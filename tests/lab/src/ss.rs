//! The rows that `ss -HOltnm` prints for TCP listen sockets.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context, Result};

/// One TCP listen socket as `ss` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SsRow {
    /// The local address; both `*` and `[::]` of `ss` are `::`.
    pub address: IpAddr,
    /// The local port.
    pub port: u16,
    /// The interface to which the socket is bound.
    pub device: Option<String>,
    /// Whether `ss` printed `*`: the IPv6 wildcard that also accepts IPv4 connections.
    pub dual_stack: bool,
    /// Connections waiting to be accepted.
    pub recv_q: u32,
    /// The limit of the accept queue.
    pub send_q: u32,
    /// `sk_drops`, from `skmem:(...,dN)`.
    pub drops: u32,
}

/// Parses all rows; each is one line.
pub(crate) fn parse_rows(text: &str) -> Result<Vec<SsRow>> {
    let rows = text.lines().filter(|line| !line.trim().is_empty());
    rows.map(|line| parse_row(line).with_context(|| format!("reading the ss row {line:?}")))
        .collect()
}

fn parse_row(line: &str) -> Result<SsRow> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let column = |n: usize| columns.get(n).copied().context("too few columns");
    let (host, port) = column(3)?.rsplit_once(':').context("no port")?;
    let (host, device) = match host.split_once('%') {
        Some((host, device)) => (host, Some(device.trim_end_matches(']').to_owned())),
        None => (host, None),
    };
    Ok(SsRow {
        address: parse_host(host)?,
        port: port.parse()?,
        device,
        dual_stack: host == "*",
        recv_q: column(1)?.parse()?,
        send_q: column(2)?.parse()?,
        drops: parse_drops(line)?,
    })
}

fn parse_host(host: &str) -> Result<IpAddr> {
    if host == "*" {
        return Ok(Ipv6Addr::UNSPECIFIED.into());
    }
    Ok(host.trim_matches(['[', ']']).parse()?)
}

fn parse_drops(line: &str) -> Result<u32> {
    let (_, memory) = line.split_once("skmem:(").context("no skmem")?;
    let (memory, _) = memory.split_once(')').context("skmem is not closed")?;
    let drops =
        memory.split(',').find_map(|word| word.strip_prefix('d')).context("skmem without drops")?;
    Ok(drops.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The output of iproute2 6.1.
    const ROWS: &str = "\
LISTEN 5      4         127.0.0.1:81 0.0.0.0:* skmem:(r0,rb131072,t0,tb16384,f0,w0,o0,bl0,d15)
LISTEN 0      5        0.0.0.0%lo:83 0.0.0.0:* skmem:(r0,rb131072,t0,tb16384,f0,w0,o0,bl0,d0)
LISTEN 0      5             [::1]:86    [::]:* skmem:(r0,rb131072,t0,tb16384,f0,w0,o0,bl0,d0)
LISTEN 0      5           [::]%lo:88    [::]:* skmem:(r0,rb131072,t0,tb16384,f0,w0,o0,bl0,d0)
LISTEN 0      5              *%lo:87       *:* skmem:(r0,rb131072,t0,tb16384,f0,w0,o0,bl0,d0)
LISTEN 0      5                 *:84       *:* skmem:(r0,rb131072,t0,tb16384,f0,w0,o0,bl0,d0)
";

    #[test]
    fn every_spelling_of_a_local_address_is_understood() {
        let rows = parse_rows(ROWS).unwrap();
        let seen: Vec<_> = rows
            .iter()
            .map(|r| (r.address.to_string(), r.port, r.device.as_deref(), r.dual_stack))
            .collect();
        let expected = [
            ("127.0.0.1", 81, None, false),
            ("0.0.0.0", 83, Some("lo"), false),
            ("::1", 86, None, false),
            ("::", 88, Some("lo"), false),
            ("::", 87, Some("lo"), true),
            ("::", 84, None, true),
        ];
        assert_eq!(
            seen,
            expected.map(|(address, port, device, dual)| (address.to_owned(), port, device, dual))
        );
    }

    #[test]
    fn queue_and_drops_are_read() {
        let row = parse_rows(ROWS).unwrap().remove(0);
        assert_eq!((row.recv_q, row.send_q, row.drops), (5, 4, 15));
    }
}
