//! Formats ratios and times for the page; other numbers are formatted as in `listenq explain`.

use std::time::{Duration, UNIX_EPOCH};

/// `78 %`; `100 %` only for a full queue.
pub(super) fn percent(ratio: f64) -> String {
    match ratio {
        ratio if ratio < 1.0 => format!("{:.0} %", (ratio * 100.0).min(99.0)),
        _ => "full".into(),
    }
}

/// `104 ms`.
pub(super) fn milliseconds(seconds: f64) -> String {
    format!("{:.0} ms", seconds * 1_000.0)
}

/// Seconds since 1970 as `2026-11-22T19:54:22Z`.
pub(super) fn time(unix: f64) -> Option<String> {
    let since = Duration::try_from_secs_f64(unix).ok()?;
    Some(humantime::format_rfc3339_seconds(UNIX_EPOCH.checked_add(since)?).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_full_queue_is_shown_as_100_percent() {
        let shares = [0.0, 0.5, 0.999, 1.0, 2.0].map(percent);
        assert_eq!(shares, ["0 %", "50 %", "99 %", "full", "full"]);
    }

    #[test]
    fn a_point_in_time_has_a_date() {
        assert_eq!(time(1_000_000_000.9).as_deref(), Some("2001-09-09T01:46:40Z"));
        assert_eq!(time(f64::NAN), None);
    }
}
