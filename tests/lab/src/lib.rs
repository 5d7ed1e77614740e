//! Trouble for listen queues, made on purpose and cleared away afterwards.
//!
//! Tests, benchmarks and scenarios of listenq share these pieces:
//!
//! - [`netns`]: a private network namespace that is gone after the test, also when it panics;
//! - [`listener`], [`server`]: listeners of every kind and the pace at which they accept;
//! - [`process`]: servers that are processes, and can be stopped;
//! - [`client`], [`hammer`], [`scan`]: connections that pile up, and segments that only look like trouble;
//! - [`capture`]: refusals of each port, counted from packets;
//! - [`flood`], [`crowd`]: handshakes that are never finished, and very many that are;
//! - [`listenq`], [`http`], [`metrics`], [`exposed`]: the daemon under test, its pages and its metrics;
//! - [`tool`]: foreign programs that judge what it printed;
//! - [`browser`]: a headless browser that reads its pages;
//! - [`seccomp`]: a machine without netlink; [`fault`]: system calls that fail; [`pipe`]: a log that nobody reads;
//! - [`web`]: nginx before a PHP pool;
//! - [`runc`], [`pod`], [`manager`]: real containers, the daemon in one as a pod's specification has it, and a real systemd;
//! - [`unix`]: Unix listeners and their clients; [`running`]: programs in the background; [`rootfs`]: a made-up root;
//! - [`wait`]: polling until something holds;
//! - [`certificate`]: certificate authorities and what they sign;
//! - [`address`], [`limits`]: what the others need of addresses and descriptors.
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
