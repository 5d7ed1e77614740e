//! Log lines on standard error, as logfmt or JSON.

mod outlet;

use std::io::stderr;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, fmt, registry};

use crate::cli::{Log, LogFormat, LogLevel};

pub use outlet::Outlet;

/// The log target of incidents.
const INCIDENTS: &str = "listenq::sampler::incidents";
/// Error context of a failed start.
const STARTING: &str = "starting the log";

/// The queue of the daemon's log lines: one per process, like the subscriber.
static OUTLET: OnceLock<Arc<Outlet>> = OnceLock::new();

/// Lines dropped since the start because they were not read in time.
pub fn dropped_lines() -> u64 {
    OUTLET.get().map_or(0, |outlet| outlet.dropped())
}

/// Starts logging for the daemon. A stuck reader of the log lines does not block listenq.
pub fn start(log: Log) -> Result<Arc<Outlet>> {
    let outlet = Outlet::start().context(STARTING)?;
    install(log, true, BoxMakeWriter::new(Arc::clone(&outlet)))?;
    let _ = OUTLET.set(Arc::clone(&outlet));
    Ok(outlet)
}

/// Starts logging for a command, in order with the command's output. Incidents are not logged,
/// because the command prints them.
pub fn start_plainly(log: Log) -> Result<()> {
    install(log, false, BoxMakeWriter::new(stderr))
}

fn install(log: Log, with_incidents: bool, writer: BoxMakeWriter) -> Result<()> {
    let level = match log.level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    let of_incidents = if with_incidents { level } else { LevelFilter::OFF };
    let filter = Targets::new().with_default(level).with_target(INCIDENTS, of_incidents);
    let layer = match log.format {
        LogFormat::Logfmt => {
            tracing_logfmt::builder().with_target(false).layer().with_writer(writer).boxed()
        }
        LogFormat::Json => {
            fmt::layer().json().flatten_event(true).with_target(false).with_writer(writer).boxed()
        }
    };
    let subscriber = registry().with(layer.with_filter(filter));
    tracing::subscriber::set_global_default(subscriber).context(STARTING)
}
