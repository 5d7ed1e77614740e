//! Logs incidents: one line when a listener gets into trouble, one line when its cause is found
//! later, one line when the trouble ends.
//!
//! The lines of each user, service and namespace are limited. Lines beyond the limit are summed up,
//! so that the trouble of one source does not drop the lines of another source.

use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::cause::{Cause, Causes};
use crate::diagnosis::Diagnoses;
use crate::state::{IncidentEvent, IncidentNotice, IncidentSummary, Source};

/// Maximum number of lines per source in a burst.
const BURST: f64 = 16.0;
/// Time after which a source may log one more line.
const REFILL: Duration = Duration::from_secs(2);
/// Minimum time between two summaries of a source.
const SUMMARY: Duration = Duration::from_secs(10);

/// Log budget of each source.
#[derive(Debug, Default)]
pub struct IncidentLog {
    sources: FxHashMap<Source, Budget>,
}

/// Logged and suppressed lines of one source.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Budget {
    /// Number of logged lines, minus the lines refilled since.
    lines: f64,
    at: Duration,
    started: u64,
    ended: u64,
    summed_up_at: Duration,
}

// === impl IncidentLog ===

impl IncidentLog {
    /// Logs an incident, or counts it if its source has used up its lines.
    pub fn say(&mut self, incident: &IncidentNotice, now: Duration) {
        let budget = self.sources.entry(incident.source).or_default();
        match (budget.may_log(now), &incident.event) {
            (true, _) => say(incident),
            (false, IncidentEvent::Started(_)) => budget.started += 1,
            // The summary counts the start of this incident.
            (false, IncidentEvent::Explained(_)) => {}
            (false, IncidentEvent::Ended(_)) => budget.ended += 1,
        }
    }

    /// Logs a summary of the suppressed lines, and drops sources without trouble.
    pub fn sum_up(&mut self, now: Duration) {
        self.sources.retain(|source, budget| {
            if let Some((started, ended)) = budget.sum_up(now) {
                tracing::warn!(%source, started, ended, "more listeners of this user, service or namespace are in trouble; their incidents are not logged");
            }
            budget.lines_at(now) > 0.0 || budget.started + budget.ended > 0
        });
    }
}

// === impl Budget ===

impl Budget {
    fn lines_at(&self, now: Duration) -> f64 {
        let since = now.saturating_sub(self.at).as_secs_f64();
        (self.lines - since / REFILL.as_secs_f64()).max(0.0)
    }

    fn may_log(&mut self, now: Duration) -> bool {
        let lines = self.lines_at(now);
        let may_log = lines + 1.0 <= BURST;
        if may_log {
            (self.lines, self.at) = (lines + 1.0, now);
        }
        may_log
    }

    /// Returns the number of incidents that started and ended without a line, if a summary is due.
    fn sum_up(&mut self, now: Duration) -> Option<(u64, u64)> {
        if self.started + self.ended == 0 || now < self.summed_up_at + SUMMARY {
            return None;
        }
        self.summed_up_at = now;
        Some((std::mem::take(&mut self.started), std::mem::take(&mut self.ended)))
    }
}

/// Logs one incident.
fn say(incident: &IncidentNotice) {
    let IncidentNotice { netns, source: _, name, owner, event, at } = incident;
    let protocol = name.protocol.label();
    let listener = name.endpoint();
    let (IncidentEvent::Started(span)
    | IncidentEvent::Explained(span)
    | IncidentEvent::Ended(span)) = event;
    let IncidentSummary { diagnosis, all, began, peak, overflows, abandoned, causes, .. } = *span;
    let pid = span.accepting_pid.or(owner.pid);
    let (process, place, cause) = (&*owner.process, owner.place(), cause_words(causes));
    let waits_for = span.awaited.filter(|_| causes.contains(Cause::WaitsFor));
    let waits_for = waits_for.map(|awaited| awaited.peer.to_string());
    match event {
        IncidentEvent::Started(_) => tracing::warn!(
            %netns, protocol, listener, process, pid, owner = place, diagnosis = diagnosis.label(), cause, waits_for, peak,
            overflows, abandoned,
            "trouble at a listener"
        ),
        IncidentEvent::Explained(_) => tracing::warn!(
            %netns, protocol, listener, process, pid, owner = place, diagnosis = diagnosis.label(), cause, waits_for,
            "found why a listener is in trouble"
        ),
        IncidentEvent::Ended(_) => {
            let lasted = Duration::from_secs(at.saturating_sub(began).as_secs());
            let (lasted, diagnoses) = (humantime::format_duration(lasted), words(all));
            tracing::info!(
                %netns, protocol, listener, process, pid, owner = place, diagnoses, cause, %lasted, peak, overflows, abandoned,
                "the trouble at a listener is over"
            );
        }
    }
}

/// The causes; `None` if there is none, so that the line has no empty field.
fn cause_words(causes: Causes) -> Option<String> {
    let labels: Vec<&str> = causes.iter().map(Cause::label).collect();
    (!labels.is_empty()).then(|| labels.join(","))
}

fn words(diagnoses: Diagnoses) -> String {
    diagnoses.iter().map(|diagnosis| diagnosis.label()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_logs_16_lines_at_once_and_then_one_every_2_seconds() {
        let mut budget = Budget::default();
        let at = Duration::from_secs(100);
        let logged = (0..2000).filter(|_| budget.may_log(at)).count();
        assert_eq!(logged, BURST as usize);
        assert!(budget.may_log(at + REFILL) && !budget.may_log(at + REFILL));
        assert_eq!(budget.lines_at(at + 2 * REFILL * BURST as u32), 0.0);
    }

    #[test]
    fn suppressed_lines_are_summed_up_at_most_every_10_seconds() {
        let mut budget = Budget { started: 412, ended: 3, ..Budget::default() };
        let at = Duration::from_secs(100);
        assert_eq!(budget.sum_up(at), Some((412, 3)));
        assert_eq!(budget.sum_up(at + SUMMARY), None);
        budget.started = 1;
        assert_eq!(budget.sum_up(at + SUMMARY / 2), None);
        assert_eq!(budget.sum_up(at + SUMMARY), Some((1, 0)));
    }
}
