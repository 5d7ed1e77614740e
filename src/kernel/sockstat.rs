//! Parses the number of sockets in `/proc/net/sockstat` and `sockstat6` (`net/ipv4/proc.c`).
//!
//! Reading these files costs the kernel a tenth of a dump, and shows whether a dump could find
//! anything new.

/// Number of sockets in one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sockstat {
    /// Sockets of every kind, including listeners, connections and connections that wait for
    /// accept.
    pub used: u64,
    /// TCP sockets over IPv4 that listen or are connected, including connections that wait for
    /// accept.
    pub tcp: u64,
}

/// Parses the number of TCP sockets over IPv6 from `sockstat6`.
pub fn parse_tcp6(text: &str) -> Option<u64> {
    number(text, "TCP6: inuse ")
}

fn number(text: &str, prefix: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
    lines.next()?.split_ascii_whitespace().next()?.parse().ok()
}

// === impl Sockstat ===

impl Sockstat {
    /// Parses the two numbers from the file's text; `None` if they are missing.
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self { used: number(text, "sockets: used ")?, tcp: number(text, "TCP: inuse ")? })
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn now() -> Sockstat {
        Sockstat::parse(&std::fs::read_to_string("/proc/net/sockstat").unwrap()).unwrap()
    }

    #[test]
    fn both_numbers_are_found() {
        let text =
            "sockets: used 119\nTCP: inuse 5 orphan 0 tw 0 alloc 9 mem 1\nUDP: inuse 1 mem 2\n";
        assert_eq!(Sockstat::parse(text), Some(Sockstat { used: 119, tcp: 5 }));
        assert_eq!(Sockstat::parse("sockets: used 119\n"), None);
        assert_eq!(Sockstat::parse("sockets: used many\nTCP: inuse 5\n"), None);
        assert_eq!(parse_tcp6("TCP6: inuse 3\nUDP6: inuse 2\n"), Some(3));
    }

    #[test]
    fn listeners_are_counted() {
        // Other tests open and close fewer sockets than this at the same time.
        let before = now();
        let _listeners: Vec<_> =
            (0..200).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let after = now();
        assert!(after.used > before.used && after.tcp > before.tcp, "{before:?} {after:?}");
    }
}
