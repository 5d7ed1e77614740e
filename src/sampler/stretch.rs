//! Logs when samples or dumps of listeners come less often than configured, and when they no longer
//! do.

use std::time::Duration;

use super::schedule::Schedule;

/// The intervals as last logged.
#[derive(Debug, Default)]
pub struct StretchLog {
    samples: Stretch,
    dumps: Stretch,
}

/// Whether the interval is longer than its target, as last logged.
#[derive(Debug, Default)]
struct Stretch(bool);

// === impl StretchLog ===

impl StretchLog {
    /// Logs a change. `target` is the configured interval between samples.
    pub fn say(&mut self, schedule: &Schedule, target: Duration) {
        let (interval, dumps) = (schedule.interval(), schedule.dump_interval());
        match self.samples.changed(interval, target) {
            Some(true) => tracing::warn!(
                ?interval,
                ?target,
                "samples exceed --sample.cpu-budget: using a longer sample interval"
            ),
            Some(false) => tracing::info!(?interval, "sampling at the configured interval again"),
            None => {}
        }
        match self.dumps.changed(dumps, target) {
            Some(true) => tracing::warn!(
                interval = ?dumps,
                "dumps of listeners exceed --sample.cpu-budget: dumping less often; listeners with a queue are still read in every sample"
            ),
            Some(false) => tracing::info!("the listeners are dumped in every sample again"),
            None => {}
        }
    }
}

// === impl Stretch ===

impl Stretch {
    /// Returns whether the interval became longer than the target (`true`) or returned to it
    /// (`false`).
    fn changed(&mut self, interval: Duration, target: Duration) -> Option<bool> {
        let is_stretched = match self.0 {
            true => interval > target,
            false => interval > target.mul_f64(1.1),
        };
        (std::mem::replace(&mut self.0, is_stretched) != is_stretched).then_some(is_stretched)
    }
}
