//! `/proc/net/netstat` and `/proc/net/snmp` with any text. What can be read is the same whatever the order of the
//! columns, and a name that is not there has no value.

use listenq::kernel::netstat::{Netstat, Snmp};
use listenq::snapshot::{Counter, Counters};

/// Text as it is, and under a valid prefix.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    check("TcpExt:", text, |text| Netstat::parse(text).ok().map(|netstat| netstat.0));
    check("Tcp:", text, |text| Snmp::parse(text).ok().map(|snmp| snmp.counters));
    // The same text under a valid prefix: the fuzzer need not find it.
    if let Some((names, values)) = text.split_once('\n') {
        let table = format!("TcpExt:{names}\nTcpExt:{values}\nTcp:{names}\nTcp:{values}\n");
        check("TcpExt:", &table, |text| Netstat::parse(text).ok().map(|netstat| netstat.0));
        check("Tcp:", &table, |text| Snmp::parse(text).ok().map(|snmp| snmp.counters));
    }
}

fn check(prefix: &str, text: &str, parse: impl Fn(&str) -> Option<Counters>) {
    let Some(counters) = parse(text) else { return };
    let columns = columns(prefix, text);
    for counter in Counter::ALL {
        let mut values = columns.iter().filter(|(name, _)| *name == counter.kernel_name());
        // Of a name that stands there twice the last one counts.
        let value =
            values.next_back().map(|(_, value)| value.parse().expect("it was read as a number"));
        assert_eq!(counters.get(counter), value, "{}", counter.kernel_name());
    }
    if !has_a_name_twice(&columns) {
        assert_eq!(parse(&reversed(prefix, &columns)), Some(counters));
    }
}

/// The names with their values, found another way than the parser does.
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
