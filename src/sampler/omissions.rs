//! Logs that items are omitted because a limit is exceeded: once at the start of the omission, once
//! at its end.

use std::time::Duration;

use crate::state::Omissions;

/// An omission that starts again within this time continues the earlier omission.
const OVER: Duration = Duration::from_secs(60);

/// Omissions that the log has reported.
#[derive(Debug, Default)]
pub struct OmissionLog {
    listeners: Omission,
    namespaces: Omission,
    sockets: Omission,
}

/// Whether the log has reported an omission, and the time since which nothing is omitted.
#[derive(Debug, Default)]
struct Omission {
    is_said: bool,
    none_since: Option<Duration>,
}

/// A change to log.
#[derive(Debug, PartialEq)]
enum News {
    Begins,
    IsOver,
}

// === impl OmissionLog ===

impl OmissionLog {
    /// Logs the changes.
    pub fn say(&mut self, omissions: &Omissions, now: Duration) {
        let Omissions { listeners, namespaces, sockets, .. } = *omissions;
        let rows = [
            (&mut self.listeners, listeners, "listeners", "--listener.max"),
            (&mut self.namespaces, namespaces, "namespaces", "--netns.max"),
            (&mut self.sockets, sockets, "sockets", "--sockets.max"),
        ];
        for (omission, omitted, what, flag) in rows {
            match omission.update(omitted, now) {
                Some(News::Begins) => tracing::warn!(
                    omitted,
                    what,
                    "more {what} than {flag} or than the quota of one user, service or namespace; omitting {what} without trouble"
                ),
                Some(News::IsOver) => tracing::info!(what, "all {what} are included again"),
                None => {}
            }
        }
    }
}

// === impl Omission ===

impl Omission {
    fn update(&mut self, omitted: usize, now: Duration) -> Option<News> {
        if omitted > 0 {
            self.none_since = None;
            return (!std::mem::replace(&mut self.is_said, true)).then_some(News::Begins);
        }
        let since = *self.none_since.get_or_insert(now);
        let is_over = self.is_said && now.saturating_sub(since) >= OVER;
        self.is_said &= !is_over;
        is_over.then_some(News::IsOver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_logged_once() {
        let mut omission = Omission::default();
        let at = Duration::from_secs;
        let table = [
            (0, 0, None),
            (1, 5, Some(News::Begins)),
            (2, 6, None),
            (3, 0, None),
            (50, 1, None),
            (60, 0, None),
            (119, 0, None),
            (120, 0, Some(News::IsOver)),
            (130, 0, None),
            (140, 2, Some(News::Begins)),
        ];
        for (second, omitted, news) in table {
            assert_eq!(omission.update(omitted, at(second)), news, "{second}");
        }
    }
}
