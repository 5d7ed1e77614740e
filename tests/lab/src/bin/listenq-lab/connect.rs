//! The subcommand `connect`.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use listenq_lab::client::{is_connected, reset, try_fill};
use listenq_lab::hammer::{Load, try_hammer};

use crate::{loopback, seconds};

/// The most connections at once.
const MAX_CONNECTIONS: i64 = 200_000;

/// How to connect.
#[derive(Subcommand)]
pub(crate) enum Action {
    /// Starts connections at once and keeps them open for a time.
    Fill {
        /// The listener.
        #[arg(value_parser = loopback)]
        address: SocketAddr,
        /// Number of connections.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=MAX_CONNECTIONS))]
        count: u32,
        /// Seconds to keep them open.
        #[arg(long = "for", default_value = "60", value_parser = seconds)]
        lasting: Duration,
        /// Close them with RST instead of FIN.
        #[arg(long)]
        reset: bool,
    },
    /// Clients that arrive at a rate and leave when their patience ends.
    Hammer {
        /// The listener.
        #[arg(value_parser = loopback)]
        address: SocketAddr,
        /// Arrivals per second.
        #[arg(long, default_value_t = 100.0)]
        rate: f64,
        /// Seconds for which clients arrive.
        #[arg(long = "for", default_value = "10", value_parser = seconds)]
        lasting: Duration,
        /// Seconds for which each client waits until the server closes the connection.
        #[arg(long, default_value = "1", value_parser = seconds)]
        patience: Duration,
        /// Maximum number of clients at once.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=MAX_CONNECTIONS))]
        at_once: u32,
    },
    /// Bursts of connections that are closed after a short time.
    Burst {
        /// The listener.
        #[arg(value_parser = loopback)]
        address: SocketAddr,
        /// Number of connections in a burst.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=MAX_CONNECTIONS))]
        count: u32,
        /// Milliseconds for which the connections stay open.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(..=60_000))]
        hold_ms: u64,
        /// Number of bursts.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        bursts: u32,
        /// Milliseconds between two bursts.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(..=60_000))]
        pause_ms: u64,
    },
}

impl Action {
    /// Connects, and prints one line of key=value pairs.
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Fill { address, count, lasting, reset } => fill(address, count, lasting, reset),
            Self::Hammer { address, rate, lasting, patience, at_once } => {
                let load = Load { rate, lasting, patience, at_once: at_once as usize };
                println!("{}", try_hammer(address, load)?);
                Ok(())
            }
            Self::Burst { address, count, hold_ms, bursts, pause_ms } => {
                let pause = Duration::from_millis(pause_ms);
                (0..bursts).try_for_each(|n| {
                    thread::sleep(if n == 0 { Duration::ZERO } else { pause });
                    fill(address, count, Duration::from_millis(hold_ms), false)
                })
            }
        }
    }
}

fn fill(address: SocketAddr, count: u32, lasting: Duration, with_reset: bool) -> Result<()> {
    let clients = try_fill(address, count as usize)?;
    thread::sleep(lasting);
    let connected = clients.iter().filter(|client| is_connected(client)).count();
    println!("started={} connected={connected}", clients.len());
    if with_reset {
        reset(clients);
    }
    Ok(())
}
