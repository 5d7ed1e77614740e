//! Logs that items are omitted because a limit is exceeded: once at the start of the omission, once
//! at its end.

use std::time::Duration;

use super::logged::{Change, LoggedCondition};
use crate::state::Omissions;

/// Omissions that the log has reported.
#[derive(Debug, Default)]
pub struct OmissionLog {
    listeners: LoggedCondition,
    namespaces: LoggedCondition,
    sockets: LoggedCondition,
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
            match omission.update(omitted > 0, now) {
                Some(Change::Begins) => tracing::warn!(
                    omitted,
                    what,
                    "more {what} than {flag} or than the quota of one user, service or namespace; omitting {what} without trouble"
                ),
                Some(Change::IsOver) => tracing::info!(what, "all {what} are included again"),
                None => {}
            }
        }
    }
}
