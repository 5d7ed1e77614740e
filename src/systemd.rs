//! What systemd and listenq tell each other: sockets that are handed over, that listenq is ready, and that it is
//! alive, which it is while its samples go on.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::view::publish::Reader;

/// The watchdog is told of life so often in its time.
const BEATS: u32 = 3;

/// Whether samples go on.
#[derive(Debug, Default)]
struct Pulse {
    samples: u64,
}

/// The sockets that systemd listens on for listenq.
pub fn listeners() -> Result<Vec<TcpListener>> {
    let mut handed = ListenFd::from_env();
    let mut listeners = Vec::new();
    for place in 0..handed.len() {
        let listener = handed.take_tcp_listener(place);
        let listener = listener.with_context(|| format!("socket {place} of systemd"))?;
        listeners.extend(listener);
    }
    if listeners.is_empty() {
        bail!("--web.systemd-socket, but systemd handed no socket over (LISTEN_FDS, LISTEN_PID)");
    }
    Ok(listeners)
}

/// Says that listenq serves.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Says that it was told to stop.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells the watchdog, where there is one, of life as long as samples go on. Never ends.
pub async fn beat(reader: Reader) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let (mut pulse, mut is_stuck) = (Pulse::default(), false);
    let mut beats = tokio::time::interval((limit / BEATS).max(Duration::from_millis(1)));
    // The first is at once, and the first sample not yet.
    beats.tick().await;
    loop {
        beats.tick().await;
        let samples = reader.read().map_or(0, |published| published.view.stats.samples);
        if pulse.is_felt(samples) {
            is_stuck = false;
            tell(&[NotifyState::Watchdog]);
        } else if !is_stuck {
            is_stuck = true;
            tracing::error!(?limit, "no new sample: the watchdog is not told of life");
        }
    }
}

/// Whoever started listenq may not listen any more.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

// === impl Pulse ===

impl Pulse {
    /// Whether there are more samples than the last time.
    fn is_felt(&mut self, samples: u64) -> bool {
        let before = std::mem::replace(&mut self.samples, samples);
        samples > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn life_is_told_only_while_samples_go_on() {
        let mut pulse = Pulse::default();
        let felt = [0, 3, 40, 40, 40, 41].map(|samples| pulse.is_felt(samples));
        assert_eq!(felt, [false, true, true, false, false, true]);
    }
}
