//! Shared helpers of the tests of the lab: one namespace with one listener.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::net::SocketAddr;
use std::time::Duration;

use listenq_lab::listener::{Listen, Listener};
use listenq_lab::netns::{Netns, SsRow};
use listenq_lab::wait::{TIMEOUT, eventually};

pub const SECOND: Duration = Duration::from_secs(1);

/// The only listener of a namespace. A child that another test starts holds a copy of a closed
/// socket until it runs its program.
pub fn only(ns: &Netns) -> SsRow {
    eventually("one listener", TIMEOUT, || {
        let mut rows = ns.ss_listen();
        (rows.len() == 1).then(|| rows.remove(0))
    })
}

/// The address of the only listener.
pub fn target_in(ns: &Netns) -> SocketAddr {
    let row = only(ns);
    SocketAddr::new(row.address, row.port)
}

/// Opens a listener in the namespace.
pub fn listen(ns: &Netns, listen: &Listen) -> Listener {
    ns.run(|| listen.open())
}
