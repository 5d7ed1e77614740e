//! The owner that the alerts about a listener name. The owner stays the same for the length of an
//! incident, because a label that changes would end one alert and start another.

use std::sync::Arc;
use std::time::Duration;

use crate::snapshot::owner::Owner;

/// How long an incident waits for an owner that is not known yet.
const WAIT: Duration = Duration::from_secs(10);
/// How long an incident lasts after the last trouble: longer than the windows of the alert rules,
/// which are five minutes, and one scrape.
const LASTING: Duration = Duration::from_secs(6 * 60);

/// The owner of one listener for the length of an incident.
#[derive(Clone, Debug, Default)]
pub(super) struct AlertOwner {
    /// The start of the incident; `None` outside of an incident.
    began: Option<Duration>,
    troubled_at: Duration,
    fixed: Option<Arc<Owner>>,
}

// === impl AlertOwner ===

impl AlertOwner {
    /// Starts or extends the incident: the listener has a diagnosis, overflowed, or came near its
    /// limit.
    pub(super) fn troubled(&mut self, now: Duration) {
        self.began.get_or_insert(now);
        self.troubled_at = now;
    }

    /// Whether an incident lasts.
    pub(super) fn is_in_incident(&self) -> bool {
        self.began.is_some()
    }

    /// The fixed owner; `None` outside of an incident and while the incident waits for its owner.
    pub(super) fn update(&mut self, now: Duration, known: &Arc<Owner>) -> Option<&Arc<Owner>> {
        let began = self.began?;
        if now.saturating_sub(self.troubled_at) >= LASTING {
            *self = Self::default();
            return None;
        }
        let waits = known.process.is_empty() && now.saturating_sub(began) < WAIT;
        if self.fixed.is_none() && !waits {
            self.fixed = Some(known.clone());
        }
        self.fixed.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn owner(process: &str) -> Arc<Owner> {
        Arc::new(Owner { process: process.into(), ..Owner::default() })
    }

    fn named(owner: &mut AlertOwner, at: u64, known: &str) -> Option<String> {
        let known = self::owner(known);
        owner.update(seconds(at), &known).map(|owner| owner.process.to_string())
    }

    #[test]
    fn the_first_known_owner_stays_until_six_minutes_after_the_last_trouble() {
        let mut owner = AlertOwner::default();
        assert_eq!(named(&mut owner, 0, "nginx"), None);
        owner.troubled(seconds(1));
        assert_eq!(named(&mut owner, 1, "nginx").as_deref(), Some("nginx"));
        owner.troubled(seconds(200));
        assert_eq!(named(&mut owner, 200, "haproxy").as_deref(), Some("nginx"));
        assert_eq!(named(&mut owner, 559, "haproxy").as_deref(), Some("nginx"));
        assert_eq!(named(&mut owner, 560, "haproxy"), None);
        assert!(!owner.is_in_incident());
        owner.troubled(seconds(600));
        assert_eq!(named(&mut owner, 600, "haproxy").as_deref(), Some("haproxy"));
    }

    #[test]
    fn an_owner_that_is_found_late_is_awaited_for_ten_seconds() {
        let mut owner = AlertOwner::default();
        owner.troubled(seconds(1));
        assert_eq!(named(&mut owner, 1, ""), None);
        assert_eq!(named(&mut owner, 10, ""), None);
        assert_eq!(named(&mut owner.clone(), 10, "nginx").as_deref(), Some("nginx"));
        assert_eq!(named(&mut owner, 11, "").as_deref(), Some(""));
        // Found later still: the labels of the alert do not change.
        assert_eq!(named(&mut owner, 12, "nginx").as_deref(), Some(""));
    }
}
