//! Log lines on standard error, as logfmt or JSON.

use std::io::stderr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, fmt, registry};

use crate::cli::{Log, LogFormat, LogLevel};

/// Logs from now on.
pub fn init(log: Log) -> Result<(), tracing::subscriber::SetGlobalDefaultError> {
    let level = match log.level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    let layer = match log.format {
        LogFormat::Logfmt => {
            tracing_logfmt::builder().with_target(false).layer().with_writer(stderr).boxed()
        }
        LogFormat::Json => {
            fmt::layer().json().flatten_event(true).with_target(false).with_writer(stderr).boxed()
        }
    };
    tracing::subscriber::set_global_default(registry().with(layer.with_filter(level)))
}
