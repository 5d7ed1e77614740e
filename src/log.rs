//! Log lines on standard error, as logfmt or JSON.

use std::io::stderr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, fmt, registry};

use crate::cli::{Log, LogFormat, LogLevel};

/// Tells of listeners in trouble.
const INCIDENTS: &str = "listenq::sampler::incidents";

/// Logs from now on; of incidents only where nobody prints them.
pub fn init(
    log: Log,
    with_incidents: bool,
) -> Result<(), tracing::subscriber::SetGlobalDefaultError> {
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
            tracing_logfmt::builder().with_target(false).layer().with_writer(stderr).boxed()
        }
        LogFormat::Json => {
            fmt::layer().json().flatten_event(true).with_target(false).with_writer(stderr).boxed()
        }
    };
    tracing::subscriber::set_global_default(registry().with(layer.with_filter(filter)))
}
