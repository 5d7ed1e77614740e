//! Owns the subcommand `connect`.

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
        /// How many connections.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=MAX_CONNECTIONS))]
        count: u32,
        /// Seconds to keep them.
        #[arg(long = "for", default_value = "60", value_parser = seconds)]
        lasting: Duration,
        /// Ends them with RST, not FIN.
        #[arg(long)]
        reset: bool,
    },
    /// Clients who arrive at a rate, and leave when they lose patience.
    Hammer {
        /// The listener.
        #[arg(value_parser = loopback)]
        address: SocketAddr,
        /// Arrivals per second.
        #[arg(long, default_value_t = 100.0)]
        rate: f64,
        /// Seconds during which they arrive.
        #[arg(long = "for", default_value = "10", value_parser = seconds)]
        lasting: Duration,
        /// Seconds each waits for the server to close the connection.
        #[arg(long, default_value = "1", value_parser = seconds)]
        patience: Duration,
        /// Most clients at once.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=MAX_CONNECTIONS))]
        at_once: u32,
    },
    /// Bursts of connections, each closed after a moment.
    Burst {
        /// The listener.
        #[arg(value_parser = loopback)]
        address: SocketAddr,
        /// How many connections in a burst.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=MAX_CONNECTIONS))]
        count: u32,
        /// How long they are kept open.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(..=60_000))]
        hold_ms: u64,
        /// How many bursts.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        bursts: u32,
        /// The pause between two.
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
