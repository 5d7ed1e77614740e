//! Counts failed readings. The log reports the start and the end of a failure once each.

use std::fmt::Display;
use std::time::Duration;

use crate::self_stats::{SelfStats, Source};

/// A source has recovered after this time without a failure.
const CALM: Duration = Duration::from_secs(10);

/// Time of the last failure of each source that has not recovered.
#[derive(Debug, Default)]
pub struct Health {
    failed_at: [Option<Duration>; Source::ALL.len()],
}

// === impl Health ===

impl Health {
    /// Returns the value of a reading. Counts a failure in `stats` and returns `None` for it.
    pub fn check<T, E: Display>(
        &mut self,
        stats: &mut SelfStats,
        source: Source,
        now: Duration,
        reading: Result<T, E>,
    ) -> Option<T> {
        match reading {
            Ok(value) => {
                self.went_well(source, now);
                Some(value)
            }
            Err(error) => {
                stats.errors[source as usize] += 1;
                self.failed(source, now, &error);
                None
            }
        }
    }

    fn went_well(&mut self, source: Source, now: Duration) {
        let failed_at = &mut self.failed_at[source as usize];
        if failed_at.is_some_and(|at| now.saturating_sub(at) >= CALM) {
            *failed_at = None;
            tracing::info!(source = source.label(), "readings succeed again");
        }
    }

    fn failed(&mut self, source: Source, now: Duration, error: &dyn Display) {
        if self.failed_at[source as usize].replace(now).is_none() {
            tracing::warn!(source = source.label(), %error, "a reading failed; further failures are only counted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_is_counted_under_its_source() {
        let (mut stats, mut health) = (SelfStats::default(), Health::default());
        let mut check = |second, reading: Result<u8, &str>| {
            health.check(&mut stats, Source::Snmp, Duration::from_secs(second), reading)
        };
        let readings =
            [check(1, Ok(7)), check(2, Err("gone")), check(3, Err("gone")), check(20, Ok(8))];
        assert_eq!(readings, [Some(7), None, None, Some(8)]);
        assert_eq!(health.failed_at, [None; Source::ALL.len()]);
        assert_eq!(stats.errors[Source::Snmp as usize], 2);
        assert_eq!(stats.errors.iter().sum::<u64>(), 2);
    }
}
