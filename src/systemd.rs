//! The interface to systemd: the sockets that it passes, readiness, and the watchdog, which is
//! notified while samples are taken.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::view::publish::Reader;

/// Notifications of the watchdog per timeout.
const BEATS: u32 = 3;

/// Detects new samples.
#[derive(Debug, Default)]
struct Pulse {
    samples: u64,
}

/// The listening sockets that systemd passed.
pub fn listeners() -> Result<Vec<TcpListener>> {
    let mut handed = ListenFd::from_env();
    let mut listeners = Vec::new();
    for place in 0..handed.len() {
        let listener = handed.take_tcp_listener(place);
        let listener = listener.with_context(|| format!("socket {place} of systemd"))?;
        listeners.extend(listener);
    }
    if listeners.is_empty() {
        bail!("--web.systemd-socket is set, but systemd passed no socket (LISTEN_FDS, LISTEN_PID)");
    }
    Ok(listeners)
}

/// Reports that listenq serves.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Reports that listenq stops.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Notifies the watchdog, if there is one, while samples are taken. Never ends.
pub async fn beat(reader: Reader) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let (mut pulse, mut is_stuck) = (Pulse::default(), false);
    let mut beats = tokio::time::interval((limit / BEATS).max(Duration::from_millis(1)));
    // The first tick comes at once, before the first sample.
    beats.tick().await;
    loop {
        beats.tick().await;
        let samples = reader.read().map_or(0, |published| published.view.stats.samples);
        if pulse.has_new(samples) {
            is_stuck = false;
            notify(&[NotifyState::Watchdog]);
        } else if !is_stuck {
            is_stuck = true;
            tracing::error!(?limit, "no new sample; not notifying the watchdog");
        }
    }
}

/// Sends a notification. A failure is not an error: the manager may be gone.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "cannot notify systemd");
    }
}

// === impl Pulse ===

impl Pulse {
    /// Whether there are more samples than at the last call.
    fn has_new(&mut self, samples: u64) -> bool {
        let before = std::mem::replace(&mut self.samples, samples);
        samples > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_notified_only_while_samples_are_taken() {
        let mut pulse = Pulse::default();
        let new = [0, 3, 40, 40, 40, 41].map(|samples| pulse.has_new(samples));
        assert_eq!(new, [false, true, true, false, false, true]);
    }
}
