//! The causes that the owner readings of a listener show while the listener has a diagnosis, and
//! the numbers behind them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::cause::{
    Cause, ListenerFacts, Timed, awaited, causes, starved_share, steal_share, throttled_share,
};
use crate::snapshot::owner_reading::{OwnerReading, ProcessReading};
use crate::view::{CauseCase, HeldCause, OwnerNumbers};

use super::GRACE;

/// The most readings that are kept: more than [`crate::cause::WINDOW`] holds at one reading per
/// second, and enough if readings are less frequent.
const MAX_READINGS: usize = 12;
/// A cause holds for this long after its last evidence, so that it does not flicker.
const HOLD: Duration = Duration::from_secs(5);

/// The readings of one owner.
#[derive(Clone, Debug, Default)]
pub(super) struct CauseHistory {
    readings: VecDeque<Timed>,
    held: [HoldingCause; Cause::ALL.len()],
    /// Throttled time of the owner's cgroups, counted while the listener had a diagnosis.
    throttled: Option<Duration>,
    /// Time that runnable threads of the owner waited for a CPU, counted while the listener had a
    /// diagnosis.
    cpu_wait: Option<Duration>,
}

/// The state of one cause.
#[derive(Clone, Copy, Debug, Default)]
struct HoldingCause {
    since: Option<Duration>,
    fresh_at: Duration,
    held_at: Option<Duration>,
}

// === impl CauseHistory ===

impl CauseHistory {
    /// Adds one reading of the owner.
    pub(super) fn read(&mut self, at: Duration, owner: Arc<OwnerReading>, listener: ListenerFacts) {
        if let Some(last) = self.readings.back() {
            grow(&mut self.throttled, throttled_since(&last.owner, &owner));
            grow(&mut self.cpu_wait, waited_since(&last.owner, &owner));
        }
        if self.readings.len() == MAX_READINGS {
            self.readings.pop_front();
        }
        self.readings.push_back(Timed { at, owner, listener });
    }

    /// Updates the causes. Without a diagnosis the owner is not read, so the earlier readings are
    /// dropped.
    pub(super) fn conclude(&mut self, now: Duration, has_diagnosis: bool) -> CauseCase {
        if !has_diagnosis {
            self.readings.clear();
        }
        let readings = self.readings.make_contiguous();
        let found = causes(readings);
        let awaited = awaited(readings);
        for (cause, holding) in Cause::ALL.into_iter().zip(&mut self.held) {
            holding.update(now, found.contains(cause), has_diagnosis);
        }
        let numbers = self.readings.back().map(|last| OwnerNumbers {
            throttled_share: throttled_share(self.readings.as_slices().0),
            starved_share: starved_share(self.readings.as_slices().0),
            steal_share: steal_share(self.readings.as_slices().0),
            ..numbers(last)
        });
        CauseCase {
            causes: self.shown(now),
            numbers,
            awaited,
            throttled: self.throttled,
            cpu_wait: self.cpu_wait,
        }
    }

    /// Whether a process that may watch the socket for connections is stopped or frozen. A port
    /// that is only held has no such process, and a server that is not ready yet runs.
    pub(super) fn holds_up_an_acceptor(&self) -> bool {
        let holds = |cause: Cause| self.held[cause as usize].since.is_some();
        let watches = |last: &Timed| last.owner.processes.iter().any(ProcessReading::may_watch);
        (holds(Cause::Stopped) || holds(Cause::Frozen)) && self.readings.back().is_some_and(watches)
    }

    fn shown(&self, now: Duration) -> Vec<HeldCause> {
        let pairs = Cause::ALL.into_iter().zip(&self.held);
        let shown = pairs.filter(|(_, holding)| holding.is_shown(now));
        shown.map(|(cause, holding)| HeldCause { cause, since: holding.since }).collect()
    }
}

fn numbers(last: &Timed) -> OwnerNumbers {
    let closest = last.owner.closest_to_fd_limit();
    let acceptors = last.owner.acceptors();
    OwnerNumbers {
        process: acceptors.first().map(|process| (process.pid, process.name.clone())),
        processes: last.owner.processes.len(),
        threads: acceptors.iter().map(|process| u64::from(process.thread_count)).sum(),
        states: acceptors
            .iter()
            .flat_map(|process| &process.threads)
            .map(|one| one.state)
            .collect(),
        open_fds: closest.and_then(|process| process.open_fds),
        max_fds: closest.and_then(|process| process.max_fds),
        ..OwnerNumbers::default()
    }
}

/// Adds the growth if it is known; the first known growth makes the counter known.
fn grow(counter: &mut Option<Duration>, growth: Option<Duration>) {
    if let Some(growth) = growth {
        *counter = Some(counter.unwrap_or_default() + growth);
    }
}

fn throttled_since(before: &OwnerReading, after: &OwnerReading) -> Option<Duration> {
    let growth = after.cgroups.iter().filter_map(|after| {
        let before = before.cgroups.iter().find(|before| before.path == after.path)?;
        after.throttled?.checked_sub(before.throttled?)
    });
    // The throttled time of an ancestor contains the throttled time of its children: count it once.
    growth.max()
}

fn waited_since(before: &OwnerReading, after: &OwnerReading) -> Option<Duration> {
    let threads = |reading: &OwnerReading| {
        let threads = reading.processes.iter().flat_map(|process| &process.threads);
        threads.map(|thread| (thread.tid, thread.runnable)).collect::<Vec<_>>()
    };
    let before = threads(before);
    let growth = threads(after).into_iter().filter_map(|(tid, runnable)| {
        let (_, earlier) = before.iter().find(|(known, _)| *known == tid)?;
        runnable.checked_sub(*earlier)
    });
    growth.reduce(|sum, one| sum + one)
}

// === impl HoldingCause ===

impl HoldingCause {
    fn update(&mut self, now: Duration, has_evidence: bool, has_diagnosis: bool) {
        if has_evidence {
            self.fresh_at = now;
            self.since.get_or_insert(now);
        } else if !has_diagnosis || now.saturating_sub(self.fresh_at) >= HOLD {
            self.since = None;
        }
        if self.since.is_some() {
            self.held_at = Some(now);
        }
    }

    fn is_shown(&self, now: Duration) -> bool {
        self.held_at.is_some_and(|at| now.saturating_sub(at) < GRACE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::owner_reading::{CgroupReading, ProcessReading, ThreadReading, Wait};

    const SECOND: Duration = Duration::from_secs(1);

    fn stopped(state: char, second: u32) -> Arc<OwnerReading> {
        let thread = ThreadReading {
            tid: 7,
            state,
            on_cpu: Duration::ZERO,
            runnable: SECOND * second / 10,
            wait: Wait::Other,
        };
        let process = ProcessReading {
            pid: 7,
            name: "web".into(),
            open_fds: Some(9),
            max_fds: Some(64),
            threads: vec![thread],
            thread_count: 1,
            ..ProcessReading::default()
        };
        let cgroup = CgroupReading {
            path: "/a".into(),
            throttled: Some(SECOND * second / 2),
            ..CgroupReading::default()
        };
        Arc::new(OwnerReading {
            processes: vec![process],
            cgroups: vec![cgroup],
            ..OwnerReading::default()
        })
    }

    fn watched(
        history: &mut CauseHistory,
        seconds: std::ops::Range<u32>,
        state: char,
    ) -> CauseCase {
        let mut case = CauseCase::default();
        for second in seconds {
            history.read(SECOND * second, stopped(state, second), ListenerFacts::default());
            case = history.conclude(SECOND * second, true);
        }
        case
    }

    #[test]
    fn a_cause_starts_after_lasting_evidence_and_ends_shortly_after_it() {
        let mut history = CauseHistory::default();
        assert_eq!(watched(&mut history, 100..103, 'T').causes, []);
        let held = watched(&mut history, 103..110, 'T');
        assert_eq!(held.causes, [HeldCause { cause: Cause::Stopped, since: Some(103 * SECOND) }]);
        let over = watched(&mut history, 110..112, 'S');
        assert_eq!(over.causes[0].since, Some(103 * SECOND));
        let over = watched(&mut history, 112..118, 'S');
        assert_eq!(over.causes, [HeldCause { cause: Cause::Stopped, since: None }]);
    }

    #[test]
    fn the_end_of_the_diagnosis_ends_the_cause() {
        let mut history = CauseHistory::default();
        watched(&mut history, 100..110, 'T');
        let calm = history.conclude(110 * SECOND, false);
        assert_eq!(calm.causes, [HeldCause { cause: Cause::Stopped, since: None }]);
        assert_eq!((calm.numbers, calm.awaited), (None, None));
        assert_eq!(history.conclude(110 * SECOND + GRACE, false).causes, []);
    }

    #[test]
    fn owner_numbers_are_shown_and_owner_counters_never_decrease() {
        let mut history = CauseHistory::default();
        let case = watched(&mut history, 100..110, 'S');
        let numbers = case.numbers.unwrap();
        assert_eq!(numbers.process, Some((7, "web".into())));
        assert_eq!((numbers.open_fds, numbers.max_fds, numbers.threads), (Some(9), Some(64), 1));
        assert_eq!([case.throttled, case.cpu_wait], [Some(SECOND * 9 / 2), Some(SECOND * 9 / 10)]);
        // The process and its cgroup were created again, and their counters start at zero.
        let restarted = watched(&mut history, 1..2, 'S');
        assert_eq!([restarted.throttled, restarted.cpu_wait], [case.throttled, case.cpu_wait]);
        let later = watched(&mut history, 2..4, 'S');
        assert_eq!(later.cpu_wait, Some(SECOND * 11 / 10));
    }
}
