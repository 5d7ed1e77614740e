//! listenq: a Prometheus exporter for Linux listen queues.
//!
//! The way of the data has one direction; `snapshot` and `view` are the words in which it is handed on:
//!
//! ```text
//! kernel ─▶ snapshot ─▶ state ─▶ view ─▶ exposition, report ─▶ http, terminal
//!       └── sampler turns the handle ──┘
//! ```
//!
//! * [`kernel`] reads netlink and procfs, [`snapshot`] is what it read;
//! * [`owner`] finds who is behind a listen socket;
//! * [`state`] is what became of all snapshots so far, [`view`] what is shown of it;
//! * [`sampler`] does both on a timer and publishes the view;
//! * [`diagnosis`] is the pure function from evidence to the words for trouble, used by the state;
//! * [`exposition`] writes a view down for Prometheus, [`report`] for people and their scripts, [`terminal`] prints that,
//!   its own or that of a daemon asked by [`remote`];
//! * [`own`] is what listenq knows of itself, [`log`] how it says so;
//! * [`http`] serves it, [`web_config`] says to whom and how, [`cli`], [`systemd`] and
//!   [`serve`] put it all together.

pub mod capabilities;
pub mod cause;
pub mod cli;
pub mod control;
pub mod diagnosis;
pub mod exposition;
pub mod http;
pub mod kernel;
pub mod log;
pub mod owner;
pub mod remote;
pub mod report;
pub mod sampler;
pub mod self_stats;
pub mod serve;
pub mod snapshot;
pub mod state;
pub mod systemd;
pub mod terminal;
pub mod view;
pub mod web_config;

/// The version of this listenq.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The revision it was built from.
pub const REVISION: &str = env!("LISTENQ_REVISION");
/// Both, as `--version` says them.
pub const LONG_VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (revision ", env!("LISTENQ_REVISION"), ")");
