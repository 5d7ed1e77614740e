//! Whether one socket dump delays all others on the machine.
//!
//! Up to Linux 6.8 `sock_diag_mutex` and `inet_diag_table_mutex` are held while a request is
//! answered, and for a filtered walk over all connections that is the whole walk
//! (`net/core/sock_diag.c`, `net/ipv4/inet_diag.c`). Later kernels have no such lock.

/// The first release (major, minor) whose dumps run side by side.
const SIDE_BY_SIDE: (u32, u32) = (6, 9);

/// Whether a dump of the running kernel delays the dumps of all other threads and processes. A
/// kernel whose release cannot be parsed is taken to do so, which only makes scans rarer.
pub fn are_serial() -> bool {
    let name = rustix::system::uname();
    are_serial_in(&name.release().to_string_lossy())
}

fn are_serial_in(release: &str) -> bool {
    let mut numbers = release.split(|one: char| !one.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < SIDE_BY_SIDE,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumps_are_serial_up_to_linux_6_8() {
        let table = [
            ("4.18.0-553.el8.x86_64", true),
            ("6.1.0-49-cloud-amd64", true),
            ("6.8.12", true),
            ("6.9.0", false),
            ("6.18.5+deb14-amd64", false),
            ("7.0-rc1", false),
            ("unknown", true),
        ];
        for (release, expected) in table {
            assert_eq!(are_serial_in(release), expected, "{release}");
        }
    }
}
