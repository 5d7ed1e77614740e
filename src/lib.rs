//! listenq: a Prometheus exporter for Linux listen queues.
//!
//! The crate is internal to the `listenq` program and is not for publication (`publish = false`).
//!
//! Data flows in one direction; `snapshot` and `view` are the types that the stages exchange:
//!
//! ```text
//! kernel ─▶ snapshot ─▶ state ─▶ view ─▶ exposition, report ─▶ http, terminal
//!       └── driven by sampler ──┘
//! ```
//!
//! * [`kernel`] reads netlink and procfs, and [`snapshot`] holds the results;
//! * [`owner`] finds the owner of a listen socket;
//! * [`state`] combines all snapshots so far, and [`view`] holds what is shown of the state;
//! * [`sampler`] reads and combines on a timer and publishes the view;
//! * [`diagnosis`] is the pure function from evidence to diagnoses that the state calls, and
//!   [`onset`] is the pure function that finds how trouble at a listener began;
//! * [`exposition`] writes a view for Prometheus, [`report`] writes it for people and scripts, and
//!   [`terminal`] prints the report of its own view or of a daemon queried by [`remote`];
//! * [`self_stats`] holds the statistics of listenq itself, and [`log`] writes its log lines;
//! * [`http`] serves the view, and [`web_config`] defines which clients are served and how;
//! * [`cli`], [`systemd`] and [`serve`] connect the parts.

pub mod capabilities;
pub mod cause;
pub mod cli;
pub mod control;
pub mod diagnosis;
pub mod exposition;
pub mod http;
pub mod kernel;
pub mod log;
pub mod onset;
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

/// The version of listenq.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The source revision of the build.
pub const REVISION: &str = env!("LISTENQ_REVISION");
/// Version and revision, as printed by `--version`.
pub const LONG_VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (revision ", env!("LISTENQ_REVISION"), ")");
