//! Crowds: very many idle established connections, held by separate processes.

use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::netns::Netns;
use crate::process::{ServerProcess, tool};
use crate::wait::eventually;

/// Connections that each pair of processes holds: a process may have 20,000 descriptors.
const EACH: u32 = 15_000;
/// Timeout for all handshakes together.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Connections inside a namespace, with both ends in the namespace. Dropping the crowd closes them.
#[derive(Debug)]
pub struct Crowd {
    /// The number of connections: the machine has twice as many sockets.
    pub connections: u32,
    /// The time until all connections were established.
    pub took: Duration,
    servers: Vec<ServerProcess>,
    clients: Vec<Client>,
}

/// A process full of clients.
#[derive(Debug)]
struct Client(Child);

// === impl Crowd ===

impl Crowd {
    /// Opens `n` connections over loopback, at most 200,000, and waits until all are accepted; no
    /// end sends data.
    ///
    /// Each connection takes about 5 KB of kernel memory. Sets `net.core.somaxconn` of the
    /// namespace.
    ///
    /// # Panics
    ///
    /// When `n` is larger, or the connections are not established within two minutes.
    #[must_use]
    pub fn gather(ns: &Netns, n: u32) -> Self {
        assert!(n <= 200_000, "at most 200,000 connections, not {n}");
        // The build of the tool does not count towards the measured time.
        let _ = tool();
        let begin = Instant::now();
        ns.sysctl("net.core.somaxconn", 65_535);
        let before = established(ns);
        let (mut servers, mut clients) = (Vec::new(), Vec::new());
        for first in (0..n).step_by(EACH as usize) {
            let count = EACH.min(n - first);
            let flags = ["--backlog=65535", "--pace=fast", "--hold-ms=600000"];
            let server = ServerProcess::listen(ns, "127.0.0.1:0", &flags);
            clients.push(Client::start(ns, server.address(), count));
            servers.push(server);
        }
        let what = format!("{n} connections");
        let ends = before + 2 * u64::from(n);
        eventually(&what, TIMEOUT, || (established(ns) >= ends && idle(ns)).then_some(()));
        Self { connections: n, took: begin.elapsed(), servers, clients }
    }

    /// The number of established ends inside `ns`, two for each connection.
    #[must_use]
    pub fn ends(ns: &Netns) -> u64 {
        established(ns)
    }

    /// The processes that hold the two ends.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let servers = self.servers.iter().map(ServerProcess::pid);
        servers.chain(self.clients.iter().map(|client| client.0.id())).collect()
    }
}

// === impl Client ===

impl Client {
    fn start(ns: &Netns, address: &str, count: u32) -> Self {
        let mut command = ns.command(tool());
        command.args(["connect", "fill", address, "--for=600", "--count", &count.to_string()]);
        Self(command.spawn().unwrap_or_else(|e| panic!("starting {command:?}: {e}")))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The number of established ends in a namespace.
fn established(ns: &Netns) -> u64 {
    // `nstat` shows only counters.
    let text = ns.run(|| fs::read_to_string("/proc/thread-self/net/snmp")).expect("a table");
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (rows.next().expect("names"), rows.next().expect("values"));
    let mut columns = names.split(' ').zip(values.split(' '));
    let (_, value) = columns.find(|(name, _)| *name == "CurrEstab").expect("the gauge");
    value.parse().expect("a number")
}

/// Whether every queue is empty.
fn idle(ns: &Netns) -> bool {
    ns.ss_listen().iter().all(|row| row.recv_q == 0)
}
