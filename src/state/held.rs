//! Decides how long a diagnosis holds. A diagnosis starts with the first evidence for it, and ends
//! after evidence against it for [`HOLD`]. A late sample or a missing scan is no evidence: it
//! delays the end of the diagnosis and never causes the end.
//!
//! A look is one evaluation of the evidence, once per second for each listener with a record.

use std::time::Duration;

use crate::diagnosis::{Diagnoses, Diagnosis, HOLD};
use crate::view::HeldDiagnosis;

use super::GRACE;

/// The longest time that one look counts for: after a long pause there is still only one look.
const LONGEST_LOOK: Duration = Duration::from_secs(2);
/// A diagnosis that recurs holds for up to `HOLD << MAX_RELAPSES`.
const MAX_RELAPSES: u32 = 3;

/// The diagnoses of one listener.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    each: [Holding; Diagnosis::ALL.len()],
    looked_at: Option<Duration>,
}

/// The state of one diagnosis.
#[derive(Clone, Copy, Debug, Default)]
struct Holding {
    since: Option<Duration>,
    /// The time of the last evidence for the diagnosis.
    found_at: Duration,
    /// The duration of evidence against the diagnosis since `found_at`.
    absent: Duration,
    /// The time at which the diagnosis last held.
    held_at: Option<Duration>,
    /// The number of times that the diagnosis started again within the grace time.
    relapses: u32,
}

// === impl Held ===

impl Held {
    /// Applies the result of a look at `now`: the diagnoses that were `found`, and the diagnoses
    /// that the look could not decide.
    pub(super) fn look(&mut self, now: Duration, found: Diagnoses, undecided: Diagnoses) {
        let looked_at = self.looked_at.replace(now).unwrap_or(now);
        let elapsed = now.saturating_sub(looked_at).min(LONGEST_LOOK);
        for (diagnosis, holding) in Diagnosis::ALL.into_iter().zip(&mut self.each) {
            let is_undecided = undecided.contains(diagnosis);
            holding.look(now, elapsed, found.contains(diagnosis), is_undecided);
        }
    }

    /// Closes the listener: diagnoses about its sockets end. Diagnoses about the last half minute
    /// stay, because the server may restart.
    pub(super) fn close(&mut self) {
        for (diagnosis, holding) in Diagnosis::ALL.into_iter().zip(&mut self.each) {
            if !diagnosis.outlasts_a_restart() {
                holding.since = None;
            }
        }
    }

    /// The diagnoses that hold.
    pub(super) fn now(&self) -> Diagnoses {
        self.zipped().filter(|(_, holding)| holding.since.is_some()).map(|(word, _)| word).collect()
    }

    /// The diagnoses that hold or have held within the grace time, in order of precedence.
    pub(super) fn shown(&self, now: Duration) -> Vec<HeldDiagnosis> {
        let shown = self.zipped().filter(|(_, holding)| holding.is_shown(now));
        shown
            .map(|(diagnosis, holding)| HeldDiagnosis { diagnosis, since: holding.since })
            .collect()
    }

    /// The time at which any diagnosis last held.
    pub(super) fn held_at(&self) -> Option<Duration> {
        self.each.iter().filter_map(|holding| holding.held_at).max()
    }

    fn zipped(&self) -> impl Iterator<Item = (Diagnosis, &Holding)> {
        Diagnosis::ALL.into_iter().zip(&self.each)
    }
}

// === impl Holding ===

impl Holding {
    fn look(&mut self, now: Duration, elapsed: Duration, is_found: bool, is_undecided: bool) {
        if is_found {
            self.start(now);
        } else if !is_undecided || now.saturating_sub(self.found_at) >= GRACE {
            self.absent += elapsed;
            if self.absent >= HOLD * 2u32.pow(self.relapses) {
                self.since = None;
            }
        }
        if self.since.is_some() {
            self.held_at = Some(now);
        }
    }

    fn start(&mut self, now: Duration) {
        if self.since.is_none() {
            self.relapses = match self.is_shown(now) {
                true => (self.relapses + 1).min(MAX_RELAPSES),
                false => 0,
            };
            self.since = Some(now);
        }
        (self.found_at, self.absent) = (now, Duration::ZERO);
    }

    fn is_shown(&self, now: Duration) -> bool {
        self.held_at.is_some_and(|at| now.saturating_sub(at) < GRACE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of a look.
    #[derive(Clone, Copy)]
    enum Look {
        Found,
        Undecided,
        Absent,
    }

    fn look(held: &mut Held, second: u64, look: Look) -> bool {
        let stalled = Diagnoses::from_iter([Diagnosis::Stalled]);
        let none = Diagnoses::default();
        let (found, undecided) = match look {
            Look::Found => (stalled, none),
            Look::Undecided => (none, stalled),
            Look::Absent => (none, none),
        };
        held.look(Duration::from_secs(second), found, undecided);
        held.now().contains(Diagnosis::Stalled)
    }

    /// The number of looks with this result, `every` seconds apart, until a diagnosis found at
    /// second 100 ends.
    fn looks_to_end(every: u64, kind: Look) -> Option<u64> {
        let mut held = Held::default();
        assert!(look(&mut held, 100, Look::Found));
        (1..1_000).find(|nth| !look(&mut held, 100 + nth * every, kind))
    }

    #[test]
    fn a_diagnosis_ends_after_ten_seconds_of_evidence_against_it() {
        assert_eq!(looks_to_end(1, Look::Absent), Some(10));
        let mut held = Held::default();
        look(&mut held, 100, Look::Found);
        for second in 101..110 {
            assert!(look(&mut held, second, Look::Absent));
        }
        assert!(look(&mut held, 110, Look::Found));
        assert!(look(&mut held, 119, Look::Absent));
    }

    #[test]
    fn late_looks_delay_the_end() {
        // One look after 18 s is no evidence for 18 s.
        assert_eq!(looks_to_end(18, Look::Absent), Some(5));
    }

    #[test]
    fn an_undecided_diagnosis_holds_for_the_grace_time() {
        assert_eq!(looks_to_end(1, Look::Undecided), Some(GRACE.as_secs() + 9));
        assert_eq!(looks_to_end(18, Look::Undecided), Some(GRACE.as_secs().div_ceil(18) + 4));
    }

    #[test]
    fn a_recurring_diagnosis_holds_longer_each_time() {
        let mut held = Held::default();
        let mut second = 100;
        let mut lasted = Vec::new();
        for _ in 0..5 {
            look(&mut held, second, Look::Found);
            let began = second;
            while held.now().contains(Diagnosis::Stalled) {
                second += 1;
                look(&mut held, second, Look::Absent);
            }
            lasted.push(second - began);
            second += 1;
        }
        assert_eq!(lasted, [10, 20, 40, 80, 80]);
        // After the grace time the diagnosis is a new one.
        second += GRACE.as_secs();
        look(&mut held, second, Look::Found);
        assert!(look(&mut held, second + 9, Look::Absent));
        assert!((1..10).any(|later| !look(&mut held, second + 9 + later, Look::Absent)));
    }

    #[test]
    fn a_diagnosis_is_shown_for_the_grace_time_after_it_held() {
        let mut held = Held::default();
        look(&mut held, 100, Look::Found);
        let mut shown = Vec::new();
        for second in 101..500 {
            look(&mut held, second, Look::Absent);
            shown.push(held.shown(Duration::from_secs(second)));
        }
        let stalled = |since| vec![HeldDiagnosis { diagnosis: Diagnosis::Stalled, since }];
        assert_eq!(shown[8], stalled(Some(Duration::from_secs(100))));
        assert_eq!(shown[9], stalled(None));
        assert_eq!((&shown[307], &shown[308]), (&stalled(None), &vec![]));
    }
}
