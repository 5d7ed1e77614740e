//! Parses any text as `/proc/net/netstat` and as `/proc/net/snmp`. The values must not depend on the
//! order of the columns, and a missing name must have no value.

use listenq::kernel::netstat::{Netstat, Snmp};
use listenq::snapshot::{Counter, Counters};

/// The tables of each file.
const NETSTAT: [&str; 2] = ["TcpExt:", "MPTcpExt:"];
const SNMP: [&str; 1] = ["Tcp:"];

/// Checks the text as a file, and its first two lines with valid prefixes.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    check(&NETSTAT, text, |text| Netstat::parse(text).ok().map(|netstat| netstat.0));
    check(&SNMP, text, |text| Snmp::parse(text).ok().map(|snmp| snmp.counters));
    // A fuzzer would rarely find a valid prefix.
    if let Some((names, values)) = text.split_once('\n') {
        let table = format!("TcpExt:{names}\nTcpExt:{values}\nTcp:{names}\nTcp:{values}\n");
        check(&NETSTAT, &table, |text| Netstat::parse(text).ok().map(|netstat| netstat.0));
        check(&SNMP, &table, |text| Snmp::parse(text).ok().map(|snmp| snmp.counters));
    }
}

fn check(prefixes: &[&str], text: &str, parse: impl Fn(&str) -> Option<Counters>) {
    let Some(counters) = parse(text) else { return };
    let tables: Vec<_> = prefixes.iter().map(|prefix| (*prefix, columns(prefix, text))).collect();
    for counter in Counter::ALL {
        let is_its_table = |prefix: &str| match counter {
            Counter::MpJoinAckRx => prefix == "MPTcpExt:",
            _ => prefix != "MPTcpExt:",
        };
        let of_table = tables.iter().filter(|(prefix, _)| is_its_table(prefix));
        let mut values = of_table
            .flat_map(|(_, columns)| columns)
            .filter(|(name, _)| *name == counter.kernel_name());
        // The last column of a name counts.
        let value =
            values.next_back().map(|(_, value)| value.parse().expect("it was read as a number"));
        assert_eq!(counters.get(counter), value, "{}", counter.kernel_name());
    }
    if !tables.iter().any(|(_, columns)| has_a_name_twice(columns)) {
        // Only kernels with MPTCP have this table.
        let is_there = |prefix: &str, columns: &[_]| prefix != "MPTcpExt:" || !columns.is_empty();
        let present = tables.iter().filter(|(prefix, columns)| is_there(prefix, columns));
        let again: String = present.map(|(prefix, columns)| reversed(prefix, columns)).collect();
        assert_eq!(parse(&again), Some(counters));
    }
}

/// The names with their values, found in another way than by the parser.
fn columns<'a>(prefix: &str, text: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut lines = text.lines().filter(|line| line.starts_with(prefix));
    let [names, values] = [lines.next(), lines.next()]
        .map(|line| line.map_or(Vec::new(), |line| words(&line[prefix.len()..])));
    assert_eq!(names.len(), values.len());
    names.into_iter().zip(values).collect()
}

fn words(line: &str) -> Vec<&str> {
    line.split(|c: char| c.is_ascii_whitespace()).filter(|word| !word.is_empty()).collect()
}

fn has_a_name_twice(columns: &[(&str, &str)]) -> bool {
    let mut names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0] == pair[1])
}

fn reversed(prefix: &str, columns: &[(&str, &str)]) -> String {
    let (names, values): (Vec<&str>, Vec<&str>) = columns.iter().rev().copied().unzip();
    format!("{prefix} {}\n{prefix} {}\n", names.join(" "), values.join(" "))
}
