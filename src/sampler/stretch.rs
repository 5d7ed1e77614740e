//! Logs when samples or dumps of listeners come less often than configured, and when they no longer
//! do.

use std::time::Duration;

/// An interval that becomes longer again within this time continues the earlier stretch.
const OVER: Duration = Duration::from_secs(60);

use super::schedule::Schedule;

/// The intervals as last logged.
#[derive(Debug, Default)]
pub struct StretchLog {
    samples: Stretch,
    dumps: Stretch,
}

/// Whether the interval is longer than its target, as last logged, and the time since which it is
/// not.
#[derive(Debug, Default)]
struct Stretch {
    is_said: bool,
    normal_since: Option<Duration>,
}

// === impl StretchLog ===

impl StretchLog {
    /// Logs a change. `target` is the configured interval between samples.
    pub fn say(&mut self, schedule: &Schedule, target: Duration, now: Duration) {
        let (interval, dumps) = (schedule.interval(), schedule.dump_interval());
        match self.samples.changed(interval, target, now) {
            Some(true) => tracing::warn!(
                ?interval,
                ?target,
                "samples exceed --sample.cpu-budget: using a longer sample interval"
            ),
            Some(false) => tracing::info!(?interval, "sampling at the configured interval again"),
            None => {}
        }
        match self.dumps.changed(dumps, target, now) {
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
    fn changed(&mut self, interval: Duration, target: Duration, now: Duration) -> Option<bool> {
        if interval > target {
            let begins = !self.is_said && interval > target.mul_f64(1.1);
            (self.is_said, self.normal_since) = (self.is_said || begins, None);
            return begins.then_some(true);
        }
        let since = *self.normal_since.get_or_insert(now);
        let is_over = self.is_said && now.saturating_sub(since) >= OVER;
        self.is_said &= !is_over;
        is_over.then_some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_that_changes_every_second_is_logged_once() {
        let millis = Duration::from_millis;
        let target = millis(100);
        let mut stretch = Stretch::default();
        let mut logged = Vec::new();
        for second in 0..200 {
            let interval = match second {
                10..100 if second % 2 == 0 => millis(130),
                150.. => millis(105),
                _ => millis(100),
            };
            let change = stretch.changed(interval, target, Duration::from_secs(second));
            logged.extend(change.map(|is_stretched| (second, is_stretched)));
        }
        // The interval is normal for 51 s and then slightly longer.
        assert_eq!(logged, [(10, true)]);
        let normal = (200..300).find_map(|second| {
            stretch.changed(target, target, Duration::from_secs(second)).map(|is| (second, is))
        });
        assert_eq!(normal, Some((260, false)));
    }
}
