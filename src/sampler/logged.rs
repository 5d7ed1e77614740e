//! A condition of which the log reports the start and the end, once each. Uses no clock.

use std::time::Duration;

/// A condition that holds again within this time never ended.
const OVER: Duration = Duration::from_secs(60);

/// Whether the log has reported the start of the condition, and the time since which it no longer
/// holds.
#[derive(Debug, Default)]
pub struct LoggedCondition {
    is_logged: bool,
    over_since: Option<Duration>,
}

/// A change to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Begins,
    IsOver,
}

// === impl LoggedCondition ===

impl LoggedCondition {
    /// Whether the log has reported the start, and not the end.
    pub fn is_logged(&self) -> bool {
        self.is_logged
    }

    /// Returns the change to log. `holds` is whether the condition holds at `now`.
    pub fn update(&mut self, holds: bool, now: Duration) -> Option<Change> {
        if holds {
            self.over_since = None;
            return (!std::mem::replace(&mut self.is_logged, true)).then_some(Change::Begins);
        }
        let since = *self.over_since.get_or_insert(now);
        let is_over = self.is_logged && now.saturating_sub(since) >= OVER;
        self.is_logged &= !is_over;
        is_over.then_some(Change::IsOver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_logged_once() {
        let mut omission = LoggedCondition::default();
        let at = Duration::from_secs;
        let table = [
            (0, 0, None),
            (1, 5, Some(Change::Begins)),
            (2, 6, None),
            (3, 0, None),
            (50, 1, None),
            (60, 0, None),
            (119, 0, None),
            (120, 0, Some(Change::IsOver)),
            (130, 0, None),
            (140, 2, Some(Change::Begins)),
        ];
        for (second, omitted, change) in table {
            assert_eq!(omission.update(omitted > 0, at(second)), change, "{second}");
        }
    }
}
