//! Reproducible trouble for listen queues, cleaned up after each test.
//!
//! Tests, benchmarks and scenarios of listenq share these pieces:
//!
//! - [`netns`]: a private network namespace deleted after the test, even if the test panics;
//! - [`listener`], [`server`]: listeners of every kind, and servers that accept at a chosen pace;
//! - [`process`]: servers in separate processes that can be stopped;
//! - [`client`], [`hammer`], [`scan`]: connections that fill queues, and stray segments
//!   that only look like trouble;
//! - [`capture`]: refusals of each port, counted from packets;
//! - [`flood`], [`crowd`]: handshakes that are never completed, and very many that are;
//! - [`listenq`], [`http`], [`metrics`], [`exposed`]: the daemon under test, its pages and its
//!   metrics;
//! - [`tool`]: external programs that check the daemon's output;
//! - [`browser`]: a headless browser that reads the daemon's pages;
//! - [`seccomp`]: a machine without netlink; [`fault`]: system calls that fail; [`pipe`]: a log
//!   without a reader;
//! - [`web`]: nginx in front of a PHP pool;
//! - [`runc`], [`pod`], [`manager`]: real containers, the daemon in a container according
//!   to a pod's specification, and a real systemd;
//! - [`unix`]: Unix listeners and their clients; [`running`], [`script`]: programs in the
//!   background;
//!   [`rootfs`]: a temporary root directory;
//! - [`wait`]: polling until a condition holds;
//! - [`certificate`]: certificate authorities and their certificates;
//! - [`address`], [`limits`]: addresses and descriptor limits for the other modules.
//!
//! Traffic goes to loopback and link-local addresses only, and is bounded in count and time.
//!
//! ```no_run
//! use listenq_lab::{client::fill, listener::Listen, netns::Netns};
//!
//! let ns = Netns::new("full");
//! let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
//! let waiting = ns.run(|| fill(listener.target(), 20));
//! assert_eq!(ns.ss_listen()[0].recv_q, 5);
//! drop(waiting);
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_types,
    reason = "test code: a panic is its report, and starting programs is its job"
)]

pub mod address;
pub mod browser;
pub mod capture;
pub mod certificate;
pub mod client;
pub mod crowd;
mod devtools;
mod enter;
pub mod exposed;
pub mod fault;
pub mod flood;
pub mod hammer;
pub mod http;
mod launch;
pub mod limits;
mod links;
pub mod listener;
pub mod listenq;
pub mod manager;
pub mod metrics;
pub mod netns;
pub mod pipe;
pub mod pod;
pub mod process;
pub mod rootfs;
pub mod runc;
pub mod running;
pub mod scan;
pub mod script;
pub mod seccomp;
pub mod server;
mod ss;
pub mod tool;
pub mod unix;
mod view;
mod visit;
pub mod wait;
pub mod web;

pub use rustix::process::Signal;
