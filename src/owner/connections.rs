//! The TCP connections of network namespaces, from `/proc/PID/net/tcp` and `tcp6`.
//!
//! The kernel walks the connections of all namespaces to print one table, which takes milliseconds
//! on a machine with much memory or many connections. Processes of one namespace share a table, and
//! a table is used for longer while it contains the connections that are asked for.

use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::kernel::own_process::thread_cpu;
use crate::kernel::proc_tcp::{self, Ends};

use super::process::Process;

/// Maximum size in bytes of a table. Longer tables cost too much CPU time and are not read.
const MAX_TABLE_BYTES: usize = 4 << 20;
/// Maximum number of connections in all stored tables: about 2 MiB. A larger table is stored alone.
const MAX_STORED: usize = 16_384;
/// Minimum time for which a table is used: one round of readings.
const MIN_AGE: Duration = Duration::from_millis(900);
/// Maximum time for which a table is used.
const MAX_AGE: Duration = Duration::from_secs(10);
/// A table is used for this many times as long as it took to read.
const AGE_PER_COST: u32 = 400;

/// The tables by inode of the namespace.
#[derive(Debug, Default)]
pub(super) struct ConnectionTables {
    tables: FxHashMap<u64, Table>,
    /// How long it took to read the costliest table that was used since the last `take_cost`.
    cost: Duration,
}

/// The connections of one namespace by inode.
#[derive(Debug)]
struct Table {
    connections: FxHashMap<u64, Ends>,
    /// Inodes that were asked for and are no connections.
    absent: FxHashSet<u64>,
    read_at: Instant,
    /// CPU time.
    cost: Duration,
}

// === impl ConnectionTables ===

impl ConnectionTables {
    /// Returns the ends of those of the process's sockets that are connections. Reads the table
    /// again if a socket is unknown and the table is of an earlier round. Connections that were
    /// opened after the table was read are missing.
    pub(super) fn ends_of(&mut self, process: &Process, sockets: &[u64]) -> Vec<Ends> {
        // If the namespace cannot be read, the table is of one process only. A process id is
        // smaller than the inode of a namespace.
        let namespace = process.net_namespace().unwrap_or(process.pid.into());
        let known = self.tables.get(&namespace).filter(|table| table.is_young());
        if known.is_none_or(|table| table.is_of_an_earlier_round() && !table.knows(sockets)) {
            let absent = self.tables.remove(&namespace).map(|table| table.absent);
            self.store(namespace, Table::read(process, absent.unwrap_or_default(), sockets));
        }
        let table = &self.tables[&namespace];
        self.cost = self.cost.max(table.cost);
        sockets.iter().filter_map(|socket| table.connections.get(socket).copied()).collect()
    }

    /// Returns how long it took to read the costliest table that was used since the last call.
    pub(super) fn take_cost(&mut self) -> Duration {
        std::mem::take(&mut self.cost)
    }

    /// Stores a table. If the tables become too large together, only this table stays.
    fn store(&mut self, namespace: u64, table: Table) {
        self.tables.retain(|_, table| table.is_young());
        let stored: usize = self.tables.values().map(|table| table.connections.len()).sum();
        if stored + table.connections.len() > MAX_STORED {
            self.tables.clear();
        }
        self.tables.insert(namespace, table);
    }
}

// === impl Table ===

impl Table {
    /// Reads the table for these `sockets`; `absent` are those of the last table.
    fn read(process: &Process, mut absent: FxHashSet<u64>, sockets: &[u64]) -> Self {
        let begin = thread_cpu();
        let texts = ["net/tcp", "net/tcp6"].map(|name| process.text_up_to(name, MAX_TABLE_BYTES));
        let connections: FxHashMap<u64, Ends> =
            texts.iter().flat_map(|text| proc_tcp::connections(text)).collect();
        if absent.len() + sockets.len() > MAX_STORED {
            absent.clear();
        }
        absent.extend(sockets.iter().filter(|socket| !connections.contains_key(socket)));
        let cost = thread_cpu().saturating_sub(begin);
        Self { connections, absent, read_at: Instant::now(), cost }
    }

    fn knows(&self, sockets: &[u64]) -> bool {
        let is_known =
            |socket: &u64| self.connections.contains_key(socket) || self.absent.contains(socket);
        sockets.iter().all(is_known)
    }

    fn is_of_an_earlier_round(&self) -> bool {
        self.read_at.elapsed() >= MIN_AGE
    }

    fn is_young(&self) -> bool {
        self.read_at.elapsed() < (self.cost * AGE_PER_COST).clamp(MIN_AGE, MAX_AGE)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use rustix::fs::{CWD, Mode, OFlags, openat};

    use super::*;

    fn table(connections: u64, cost: Duration, age: Duration) -> Table {
        let end = ([127, 0, 0, 1], 80).into();
        let connections = (0..connections).map(|n| (n, Ends { local: end, remote: end })).collect();
        let read_at = Instant::now().checked_sub(age).unwrap();
        Table { connections, absent: FxHashSet::default(), read_at, cost }
    }

    #[test]
    fn a_table_is_used_for_longer_when_it_took_longer() {
        let is_young = |cost, age| {
            table(0, Duration::from_millis(cost), Duration::from_millis(age)).is_young()
        };
        assert!(is_young(0, 500) && !is_young(0, 1000));
        assert!(is_young(10, 3500) && !is_young(10, 4500));
        assert!(is_young(1000, 9000) && !is_young(1000, 11_000));
    }

    /// The inode of a socket of this process.
    fn inode(socket: &impl AsRawFd) -> u64 {
        fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap().ino()
    }

    #[test]
    fn a_table_is_shared_within_a_round_and_read_again_for_an_unknown_socket() {
        let procfs = openat(CWD, "/proc", OFlags::RDONLY, Mode::empty()).unwrap();
        let process = Process::open(procfs, std::process::id()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut tables = ConnectionTables::default();
        let first = connect();
        let known = [inode(&listener), inode(&first)];
        assert_eq!(tables.ends_of(&process, &known).len(), 1);
        assert!(tables.take_cost() > Duration::ZERO);
        let second = connect();
        let all = [known[0], known[1], inode(&second)];
        assert_eq!(tables.ends_of(&process, &all).len(), 1);
        assert!(tables.take_cost() > Duration::ZERO);
        assert_eq!(tables.take_cost(), Duration::ZERO);
        let table = tables.tables.values_mut().next().unwrap();
        (table.read_at, table.cost) = (table.read_at.checked_sub(MIN_AGE).unwrap(), MAX_AGE);
        // The listener is known to be no connection.
        let read_at = |tables: &ConnectionTables| tables.tables.values().next().unwrap().read_at;
        let before = read_at(&tables);
        assert_eq!(tables.ends_of(&process, &known).len(), 1);
        assert_eq!(read_at(&tables), before);
        assert_eq!(tables.ends_of(&process, &all).len(), 2);
        assert!(read_at(&tables) > before);
        drop((first, second));
    }

    #[test]
    fn old_tables_are_dropped_and_large_ones_drop_the_others() {
        let mut tables = ConnectionTables::default();
        let now = |connections| table(connections, MAX_AGE, Duration::ZERO);
        let mut stored = |namespace, table| {
            tables.store(namespace, table);
            let mut stored: Vec<u64> = tables.tables.keys().copied().collect();
            stored.sort_unstable();
            stored
        };
        assert_eq!(stored(1, table(10, Duration::ZERO, MAX_AGE)), [1]);
        assert_eq!(stored(2, now(10)), [2]);
        assert_eq!(stored(3, now(10)), [2, 3]);
        assert_eq!(stored(4, now(MAX_STORED as u64)), [4]);
        assert_eq!(stored(5, now(2 * MAX_STORED as u64)), [5]);
    }
}
