//! Logs when samples or dumps of listeners come less often than configured, and when they no longer
//! do.

use std::time::Duration;

use super::logged::{Change, LoggedCondition};
use super::schedule::Schedule;

/// The intervals as last logged.
#[derive(Debug, Default)]
pub struct StretchLog {
    samples: LoggedCondition,
    dumps: LoggedCondition,
}

// === impl StretchLog ===

impl StretchLog {
    /// Logs a change. `target` is the configured interval between samples.
    pub fn say(&mut self, schedule: &Schedule, target: Duration, now: Duration) {
        let (interval, dumps) = (schedule.interval(), schedule.dump_interval());
        match change(&mut self.samples, interval, target, now) {
            Some(Change::Begins) => tracing::warn!(
                ?interval,
                ?target,
                "samples exceed --sample.cpu-budget: using a longer sample interval"
            ),
            Some(Change::IsOver) => {
                tracing::info!(?interval, "sampling at the configured interval again")
            }
            None => {}
        }
        match change(&mut self.dumps, dumps, target, now) {
            Some(Change::Begins) => tracing::warn!(
                interval = ?dumps,
                "dumps of listeners exceed --sample.cpu-budget: dumping less often; listeners with a queue are still read in every sample"
            ),
            Some(Change::IsOver) => {
                tracing::info!("the listeners are dumped in every sample again")
            }
            None => {}
        }
    }
}

/// Returns whether the interval became longer than the target or returned to it. An interval that
/// is only slightly longer begins no stretch, and ends none.
fn change(
    stretch: &mut LoggedCondition,
    interval: Duration,
    target: Duration,
    now: Duration,
) -> Option<Change> {
    let longest = if stretch.is_logged() { target } else { target.mul_f64(1.1) };
    stretch.update(interval > longest, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_that_changes_every_second_is_logged_once() {
        let millis = Duration::from_millis;
        let target = millis(100);
        let mut stretch = LoggedCondition::default();
        let mut logged = Vec::new();
        for second in 0..200 {
            let interval = match second {
                10..100 if second % 2 == 0 => millis(130),
                150.. => millis(105),
                _ => millis(100),
            };
            let change = change(&mut stretch, interval, target, Duration::from_secs(second));
            logged.extend(change.map(|change| (second, change)));
        }
        // The interval is normal for 51 s and then slightly longer.
        assert_eq!(logged, [(10, Change::Begins)]);
        let normal = (200..300).find_map(|second| {
            change(&mut stretch, target, target, Duration::from_secs(second))
                .map(|change| (second, change))
        });
        assert_eq!(normal, Some((260, Change::IsOver)));
    }
}
