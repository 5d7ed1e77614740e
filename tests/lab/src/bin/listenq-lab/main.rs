//! The command line of the lab, for shell scripts.
//!
//! Run it inside a namespace: `ip netns exec NAME listenq-lab listen 127.0.0.1:0 --backlog 4`.
#![allow(
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool answers on stdout and stderr, and one subcommand becomes another program"
)]

mod connect;
mod listen;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use listenq_lab::netns::Netns;
use listenq_lab::scan::{Stray, try_stray_segments};
use listenq_lab::{address, seccomp};

/// Creates trouble for listen queues, on loopback only.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Opens listeners, prints their addresses, and accepts at a pace.
    Listen(listen::Args),
    /// Connects: fills a queue, sends a burst or a steady load.
    #[command(subcommand)]
    Connect(connect::Action),
    /// Sends stray TCP segments to a listener (needs root).
    Scan {
        /// The listener, for example 127.0.0.1:8080.
        #[arg(value_parser = loopback)]
        address: SocketAddr,
        #[arg(long, value_enum, default_value_t = Kind::Null)]
        kind: Kind,
        /// Number of segments.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        count: u32,
        /// Milliseconds between two segments.
        #[arg(long, default_value_t = 0)]
        spacing_ms: u64,
    },
    /// Execs another program that cannot create netlink sockets.
    WithoutNetlink {
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Creates or deletes a network namespace with loopback up; its name begins with "lq-".
    #[command(subcommand)]
    Netns(NetnsAction),
}

#[derive(Subcommand)]
enum NetnsAction {
    /// Creates the namespace, which stays until it is deleted.
    Add { name: String },
    /// Kills the processes in the namespace and deletes the namespace.
    Del { name: String },
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Null,
    SynFin,
    Rst,
}

fn main() -> ExitCode {
    match Cli::parse().action.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("listenq-lab: {e:#}");
            ExitCode::FAILURE
        }
    }
}

// === impl Action ===

impl Action {
    fn run(self) -> Result<()> {
        match self {
            Self::Listen(args) => args.run(),
            Self::Connect(action) => action.run(),
            Self::Scan { address, kind, count, spacing_ms } => {
                try_stray_segments(address, kind.stray(), count, Duration::from_millis(spacing_ms))
            }
            Self::WithoutNetlink { command } => {
                Err(seccomp::exec_without_netlink(Command::new(&command[0]).args(&command[1..])))
            }
            Self::Netns(action) => action.run(),
        }
    }
}

// === impl NetnsAction ===

impl NetnsAction {
    fn run(self) -> Result<()> {
        match self {
            Self::Add { name } => Netns::create(&name).map(Netns::keep),
            Self::Del { name } => Netns::adopt(&name).map(drop),
        }
    }
}

// === impl Kind ===

impl Kind {
    fn stray(self) -> Stray {
        match self {
            Self::Null => Stray::Null,
            Self::SynFin => Stray::SynFin,
            Self::Rst => Stray::Rst,
        }
    }
}

/// Parses an address clients may be sent to.
fn loopback(text: &str) -> Result<SocketAddr> {
    let address = address::parse(text)?;
    address::ensure_loopback(address)?;
    Ok(address)
}

/// Parses a bounded time in seconds.
fn seconds(text: &str) -> Result<Duration> {
    let seconds: f64 = text.parse()?;
    ensure!((0.0..=3600.0).contains(&seconds), "give 0 to 3600 seconds");
    Ok(Duration::from_secs_f64(seconds))
}
