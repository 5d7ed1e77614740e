//! `/proc/net/netstat` and `/proc/net/snmp`: pairs of lines, names above values, each pair under a
//! protocol's prefix (`net/ipv4/proc.c`).
//!
//! ```
//! use listenq::kernel::netstat::{Netstat, Snmp};
//! use listenq::snapshot::Counter;
//! use procfs::prelude::*;
//!
//! let netstat = Netstat::from_file("/proc/net/netstat")?;
//! let snmp = Snmp::from_file("/proc/net/snmp")?;
//! println!("{:?} overflows", netstat.0.get(Counter::ListenOverflows));
//! println!("{:?} accepted", snmp.counters.get(Counter::PassiveOpens));
//! # Ok::<(), procfs::ProcError>(())
//! ```

use std::io::BufRead;

use procfs::{FromBufRead, ProcError, ProcResult};

use crate::snapshot::{Counter, Counters};

/// The `TcpExt` counters of `/proc/net/netstat`, and the MPTCP join counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Netstat(pub Counters);

/// The `Tcp` counters of `/proc/net/snmp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snmp {
    /// Counters that listenq exports.
    pub counters: Counters,
    /// `InSegs`: while this value is constant, no segment arrived that could have changed
    /// `netstat`.
    pub segments: Option<u64>,
}

/// Reasons why a counter file could not be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The file has no line with the prefix.
    #[error("no {0} lines")]
    Missing(&'static str),
    /// A line of names has no values, or a different number of values.
    #[error("{prefix} has {names} names and {values} values")]
    Uneven {
        /// The protocol's prefix.
        prefix: &'static str,
        /// Number of names.
        names: usize,
        /// Number of values.
        values: usize,
    },
    /// A value is not a whole number.
    #[error("{name} is {value:?}, not a whole number")]
    Value {
        /// The counter.
        name: String,
        /// Text found instead of a number.
        value: String,
    },
}

// === impl Netstat ===

impl Netstat {
    /// Parses the counters from the file's text.
    pub fn parse(text: &str) -> Result<Self, TableError> {
        let mut counters = Counters::default();
        parse(text, "TcpExt:", |name, value| store(&mut counters, name, value))?;
        let joins = Counter::MpJoinAckRx;
        let parsed = parse(text, "MPTcpExt:", |name, value| {
            if name == joins.kernel_name() {
                counters.set(joins, number(name, value)?);
            }
            Ok(())
        });
        match parsed {
            // The kernel has no MPTCP.
            Err(TableError::Missing(_)) => Ok(Self(counters)),
            parsed => parsed.map(|()| Self(counters)),
        }
    }
}

impl FromBufRead for Netstat {
    fn from_buf_read<R: BufRead>(reader: R) -> ProcResult<Self> {
        Self::parse(&whole(reader)?).map_err(proc_error)
    }
}

// === impl Snmp ===

impl Snmp {
    /// Parses the counters from the file's text.
    pub fn parse(text: &str) -> Result<Self, TableError> {
        let mut snmp = Self::default();
        parse(text, "Tcp:", |name, value| {
            if name == "InSegs" {
                snmp.segments = Some(number(name, value)?);
            }
            store(&mut snmp.counters, name, value)
        })?;
        Ok(snmp)
    }
}

impl FromBufRead for Snmp {
    fn from_buf_read<R: BufRead>(reader: R) -> ProcResult<Self> {
        Self::parse(&whole(reader)?).map_err(proc_error)
    }
}

fn whole<R: BufRead>(mut reader: R) -> ProcResult<String> {
    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    Ok(text)
}

fn proc_error(error: TableError) -> ProcError {
    ProcError::Other(error.to_string())
}

/// Pairs the two lines that begin with `prefix` by position.
fn parse<'a>(
    text: &'a str,
    prefix: &'static str,
    mut pair: impl FnMut(&'a str, &'a str) -> Result<(), TableError>,
) -> Result<(), TableError> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
    let names = lines.next().ok_or(TableError::Missing(prefix))?;
    let values = lines.next().unwrap_or_default();
    let (mut name_list, mut value_list) =
        (names.split_ascii_whitespace(), values.split_ascii_whitespace());
    loop {
        match (name_list.next(), value_list.next()) {
            (Some(name), Some(value)) => pair(name, value)?,
            (None, None) => return Ok(()),
            _ => return Err(uneven(prefix, names, values)),
        }
    }
}

/// Stores the counter if listenq knows its name.
fn store(counters: &mut Counters, name: &str, value: &str) -> Result<(), TableError> {
    let Some(counter) = Counter::ALL.into_iter().find(|counter| counter.kernel_name() == name)
    else {
        return Ok(());
    };
    counters.set(counter, number(name, value)?);
    Ok(())
}

fn number(name: &str, value: &str) -> Result<u64, TableError> {
    value.parse().map_err(|_| TableError::Value { name: name.into(), value: value.into() })
}

fn uneven(prefix: &'static str, names: &str, values: &str) -> TableError {
    TableError::Uneven {
        prefix,
        names: names.split_ascii_whitespace().count(),
        values: values.split_ascii_whitespace().count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use procfs::FromRead;

    fn counters(pairs: &[(Counter, u64)]) -> Counters {
        let mut counters = Counters::default();
        for (counter, value) in pairs {
            counters.set(*counter, *value);
        }
        counters
    }

    #[test]
    fn values_are_found_by_name_and_the_rest_is_absent() {
        let text = "TcpExt: Future ListenOverflows SyncookiesSent\nTcpExt: -1 7 18446744073709551615\nIpExt: A\nIpExt: 1\n";
        let expected =
            counters(&[(Counter::ListenOverflows, 7), (Counter::SyncookiesSent, u64::MAX)]);
        assert_eq!(Netstat::parse(text), Ok(Netstat(expected)));
    }

    #[test]
    fn snmp_keeps_to_its_own_prefix() {
        let text = "Ip: PassiveOpens\nIp: 9\nTcp: MaxConn PassiveOpens AttemptFails InSegs\nTcp: -1 5 6 7\nTcpExt: PassiveOpens\n";
        let counters = counters(&[(Counter::PassiveOpens, 5), (Counter::AttemptFails, 6)]);
        assert_eq!(Snmp::parse(text), Ok(Snmp { counters, segments: Some(7) }));
    }

    #[test]
    fn the_error_of_a_broken_file_names_the_place() {
        let error = |text| Netstat::parse(text).unwrap_err().to_string();
        assert_eq!(error("Tcp: A\nTcp: 1\n"), "no TcpExt: lines");
        assert_eq!(error("TcpExt: A B\nTcpExt: 1\n"), "TcpExt: has 2 names and 1 values");
        assert_eq!(error("TcpExt: A\n"), "TcpExt: has 1 names and 0 values");
        assert_eq!(
            error("TcpExt: ListenDrops\nTcpExt: many\n"),
            "ListenDrops is \"many\", not a whole number"
        );
    }

    #[test]
    fn joins_are_read_where_the_kernel_has_mptcp() {
        let joins = |text| Netstat::parse(text).map(|netstat| netstat.0.get(Counter::MpJoinAckRx));
        assert_eq!(joins("TcpExt: A\nTcpExt: 1\n"), Ok(None));
        let both = "TcpExt: A\nTcpExt: 1\nMPTcpExt: B MPJoinAckRx\nMPTcpExt: 2 3\n";
        assert_eq!(joins(both), Ok(Some(3)));
        assert!(joins("TcpExt: A\nTcpExt: 1\nMPTcpExt: B\nMPTcpExt: 2 3\n").is_err());
    }

    #[test]
    fn this_kernel_has_the_counters_that_matter() {
        let netstat = Netstat::from_file("/proc/net/netstat").unwrap();
        assert!(netstat.0.get(Counter::ListenOverflows).is_some());
        assert!(netstat.0.get(Counter::ListenDrops).is_some());
        let snmp = Snmp::from_file("/proc/net/snmp").unwrap();
        assert!(snmp.counters.get(Counter::PassiveOpens).is_some());
        assert!(snmp.segments.is_some());
    }
}
