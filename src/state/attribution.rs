//! Who is charged with the overflows that the kernel counts only for the whole namespace.
//!
//! `ListenOverflows` says how many, `sk_drops` of each listener says who may have been it: every overflow
//! moves its listener's drops by one or two, but drops have harmless causes too. The counters are read
//! after the dump, so an overflow shows in its listener's drops at the same tick or at the next one, never
//! before. Every new overflow is therefore charged, in this order:
//!
//! 1. to listeners seen with a queue lately, each up to its own new drops;
//! 2. one tick later, to the others up to their drops above the noise they show without any overflow;
//! 3. with them, to a listener whose socket vanished while it was overflowing: its last drops went with it;
//! 4. three ticks later, to nobody: it is unattributed.
//!
//! The oldest overflow is charged first, and the oldest drops answer for it: bursts in ticks running that no sample
//! saw each have their own.

/// For how many ticks an overflow waits for somebody to be charged with it.
const MAX_AGE_TICKS: usize = 3;
/// For how many ticks a queue, or a charge, counts as "lately".
const LATELY: u64 = 10;
/// After so many ticks without an overflow, half of a listener's noise is forgotten.
const NOISE_HALF_LIFE: u64 = 64;

/// What speaks for and against one listener.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Suspect {
    fresh: u64,
    leftover: u64,
    noise: u64,
    noise_learned: u64,
    queued_at: Option<u64>,
    charged_at: Option<u64>,
    vanished: bool,
    charge: u64,
    /// New drops that a charge of this tick rests on.
    spent: u64,
    certain: bool,
}

/// Overflows that wait to be charged, and those that nobody took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Ledger {
    tick: u64,
    /// By age in ticks.
    pending: [u64; MAX_AGE_TICKS],
    /// Ticks without any overflow so far: the clock of the noise.
    clean: u64,
    unattributed: u64,
}

// === impl Suspect ===

impl Suspect {
    /// New drops at this listener's sockets.
    pub(crate) fn dropped(&mut self, drops: u64) {
        self.fresh += drops;
    }

    /// It was seen with a queue at this tick of the ledger.
    pub(crate) fn queued(&mut self, ledger: &Ledger) {
        self.queued_at = Some(ledger.tick);
    }

    /// One of its sockets is gone for good, and `was_full` when last seen.
    pub(crate) fn vanished(&mut self, ledger: &Ledger, was_full: bool) {
        self.vanished |= was_full || within(self.charged_at, ledger.tick);
    }

    /// What the last settlement charged it with, and whether nobody else could have been it.
    pub(crate) fn charge(&self) -> (u64, bool) {
        (self.charge, self.certain)
    }

    /// Whether any evidence points at it.
    pub(crate) fn is_suspected(&self) -> bool {
        self.fresh > 0 || self.leftover > 0 || self.vanished || self.charge > 0
    }

    fn take(&mut self, tick: u64, charge: u64) {
        self.charge += charge;
        if charge > 0 {
            self.charged_at = Some(tick);
        }
    }

    /// Takes a charge for which its drops answer: those left of the tick before for the `late` part of it, since the new
    /// ones may belong to overflows that still wait.
    fn pay(&mut self, tick: u64, charge: u64, late: u64) {
        let old = late.min(charge).min(self.leftover);
        self.leftover -= old;
        self.spent += charge - old;
        self.take(tick, charge);
    }

    fn noise(&self, clean: u64) -> u64 {
        let halvings = (clean - self.noise_learned) / NOISE_HALF_LIFE;
        self.noise.checked_shr(halvings.try_into().unwrap_or(u32::MAX)).unwrap_or(0)
    }

    fn learn_noise(&mut self, clean: u64) {
        self.noise = self.noise(clean).max(self.fresh);
        self.noise_learned = clean;
    }

    /// Drops of this tick that are neither charged nor noise.
    fn excess(&self, clean: u64) -> u64 {
        self.fresh.saturating_sub(self.spent.max(self.noise(clean)))
    }
}

// === impl Ledger ===

impl Ledger {
    /// Overflows that nobody could be charged with.
    pub(crate) fn unattributed(&self) -> u64 {
        self.unattributed
    }

    /// Closes one tick. `overflows` is the growth of `ListenOverflows`, or `None` when it was not read: then
    /// new drops wait for the reading. `suspects` are all listeners to which any evidence points.
    pub(crate) fn settle(&mut self, overflows: Option<u64>, suspects: &mut [&mut Suspect]) {
        self.tick += 1;
        self.age(overflows.unwrap_or(0));
        for suspect in suspects.iter_mut() {
            (suspect.charge, suspect.spent) = (0, 0);
            suspect.certain = false;
        }
        let evidence = self.outstanding() > 0;
        if evidence {
            self.charge(suspects);
        } else {
            self.clean += 1;
        }
        for suspect in suspects.iter_mut() {
            if overflows.is_some() && !evidence && suspect.fresh > 0 {
                suspect.learn_noise(self.clean);
            }
            suspect.vanished = false;
            suspect.leftover = 0;
            if overflows.is_some() {
                suspect.leftover = suspect.excess(self.clean);
                suspect.fresh = 0;
            }
        }
    }

    fn age(&mut self, new: u64) {
        let [first, second, third] = self.pending;
        self.unattributed += third;
        self.pending = [new, first, second];
    }

    fn outstanding(&self) -> u64 {
        self.pending.iter().sum()
    }

    /// What was there before this tick.
    fn waited(&self) -> u64 {
        self.pending[1..].iter().sum()
    }

    fn charge(&mut self, suspects: &mut [&mut Suspect]) {
        let alone = suspects.iter().filter(|suspect| suspect.is_suspected()).count() == 1;
        let (tick, clean, waited) = (self.tick, self.clean, self.waited());
        self.share(0, suspects, |suspect| match within(suspect.queued_at, tick) {
            true => suspect.fresh,
            false => 0,
        });
        self.share(1, suspects, |suspect| suspect.leftover + suspect.excess(clean));
        self.share_out_among_the_vanished(waited, suspects);
        for suspect in suspects.iter_mut() {
            suspect.certain = alone && suspect.charge > 0;
        }
    }

    /// Charges overflows of `age` and older, each suspect in proportion to its `cap` and at most that.
    fn share(&mut self, age: usize, suspects: &mut [&mut Suspect], cap: impl Fn(&Suspect) -> u64) {
        let caps: Vec<u64> = suspects.iter().map(|suspect| cap(suspect)).collect();
        let waited = self.waited();
        let charged = self.draw(age, caps.iter().sum());
        let late = proportional(charged.min(waited), &caps);
        let charges = proportional(charged, &caps).zip(late);
        for (suspect, (charge, late)) in suspects.iter_mut().zip(charges) {
            suspect.pay(self.tick, charge, late);
        }
    }

    /// As many as had `waited` when this tick began. Those may be paid by now with drops of the socket that
    /// came after, and what is left of this tick's stand for them.
    fn share_out_among_the_vanished(&mut self, waited: u64, suspects: &mut [&mut Suspect]) {
        let weights: Vec<u64> =
            suspects.iter().map(|suspect| u64::from(suspect.vanished)).collect();
        if weights.contains(&1) {
            let charged = self.draw(0, waited);
            for (suspect, charge) in suspects.iter_mut().zip(proportional(charged, &weights)) {
                suspect.take(self.tick, charge);
            }
        }
    }

    /// Takes up to `most` from what waits, the oldest first, nothing younger than `age`.
    fn draw(&mut self, age: usize, most: u64) -> u64 {
        let mut drawn = 0;
        for pending in self.pending[age..].iter_mut().rev() {
            let part = (*pending).min(most - drawn);
            *pending -= part;
            drawn += part;
        }
        drawn
    }
}

fn within(at: Option<u64>, tick: u64) -> bool {
    at.is_some_and(|at| tick - at <= LATELY)
}

/// Splits `total` by weight into whole numbers that add up to it exactly.
fn proportional(total: u64, weights: &[u64]) -> impl Iterator<Item = u64> {
    let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    let (mut seen, mut given) = (0u128, 0u64);
    weights.iter().map(move |weight| {
        seen += u128::from(*weight);
        let due = (u128::from(total) * seen).checked_div(sum).unwrap_or(0) as u64;
        let share = due - given;
        given = due;
        share
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settles one tick in which each suspect had so many new drops, and gives the charges.
    fn settle<const N: usize>(
        ledger: &mut Ledger,
        suspects: &mut [Suspect; N],
        overflows: Option<u64>,
        drops: [u64; N],
    ) -> [u64; N] {
        for (suspect, drops) in suspects.iter_mut().zip(drops) {
            suspect.dropped(drops);
        }
        ledger.settle(overflows, &mut suspects.each_mut());
        suspects.map(|suspect| suspect.charge().0)
    }

    fn queued(ledger: &Ledger) -> Suspect {
        let mut suspect = Suspect::default();
        suspect.queued(ledger);
        suspect
    }

    #[test]
    fn the_only_listener_with_a_queue_takes_all_at_once() {
        let mut ledger = Ledger::default();
        let mut suspects = [queued(&ledger), Suspect::default()];
        assert_eq!(settle(&mut ledger, &mut suspects, Some(90), [180, 50]), [90, 0]);
        assert_eq!(ledger.outstanding(), 0);
    }

    #[test]
    fn two_with_a_queue_share_by_their_drops() {
        let mut ledger = Ledger::default();
        let mut suspects = [queued(&ledger), queued(&ledger)];
        assert_eq!(settle(&mut ledger, &mut suspects, Some(10), [30, 10]), [7, 3]);
    }

    #[test]
    fn nobody_takes_more_than_its_drops() {
        let mut ledger = Ledger::default();
        let mut suspects = [queued(&ledger)];
        assert_eq!(settle(&mut ledger, &mut suspects, Some(10), [4]), [4]);
        assert_eq!(ledger.outstanding(), 6);
    }

    #[test]
    fn drops_seen_one_tick_late_are_charged_then() {
        let mut ledger = Ledger::default();
        let mut suspects = [queued(&ledger)];
        assert_eq!(settle(&mut ledger, &mut suspects, Some(5), [0]), [0]);
        assert_eq!(settle(&mut ledger, &mut suspects, Some(0), [5]), [5]);
    }

    #[test]
    fn a_burst_between_two_samples_is_charged_one_tick_later() {
        let mut ledger = Ledger::default();
        let mut suspects = [Suspect::default()];
        assert_eq!(settle(&mut ledger, &mut suspects, Some(5), [10]), [0]);
        assert_eq!(settle(&mut ledger, &mut suspects, None, [0]), [5]);
        assert_eq!(suspects[0].charge(), (5, true));
    }

    #[test]
    fn each_of_two_bursts_between_samples_is_charged_one_tick_later() {
        let mut ledger = Ledger::default();
        let mut suspects = [Suspect::default()];
        let bursts = [(25, 25), (30, 30), (0, 0)];
        let charges = bursts
            .map(|(overflows, drops)| settle(&mut ledger, &mut suspects, Some(overflows), [drops]));
        assert_eq!(charges, [[0], [25], [30]]);
    }

    #[test]
    fn drops_of_a_burst_that_a_queue_shows_do_not_pay_for_the_burst_before_it() {
        let mut ledger = Ledger::default();
        let mut suspects = [Suspect::default()];
        assert_eq!(settle(&mut ledger, &mut suspects, Some(25), [25]), [0]);
        suspects[0].queued(&ledger);
        assert_eq!(settle(&mut ledger, &mut suspects, Some(30), [30]), [30]);
        assert_eq!(settle(&mut ledger, &mut suspects, None, [0]), [25]);
        assert_eq!((ledger.outstanding(), ledger.unattributed()), (0, 0));
    }

    #[test]
    fn noise_that_was_there_before_is_not_evidence() {
        let mut ledger = Ledger::default();
        let mut suspects = [Suspect::default(), Suspect::default()];
        for _ in 0..5 {
            settle(&mut ledger, &mut suspects, Some(0), [20, 0]);
        }
        settle(&mut ledger, &mut suspects, Some(8), [20, 16]);
        assert_eq!(settle(&mut ledger, &mut suspects, Some(0), [20, 0]), [0, 8]);
    }

    #[test]
    fn noise_is_forgotten_in_quiet_times() {
        let mut ledger = Ledger::default();
        let mut suspects = [Suspect::default()];
        settle(&mut ledger, &mut suspects, Some(0), [1000]);
        for _ in 0..11 * NOISE_HALF_LIFE {
            settle(&mut ledger, &mut suspects, Some(0), [0]);
        }
        settle(&mut ledger, &mut suspects, Some(5), [5]);
        assert_eq!(settle(&mut ledger, &mut suspects, Some(0), [0]), [5]);
    }

    #[test]
    fn a_scanned_neighbour_stays_clear_of_a_long_overflow() {
        let mut ledger = Ledger::default();
        let mut suspects = [queued(&ledger), Suspect::default()];
        let mut charged = [0, 0];
        for tick in 0..100 {
            suspects[0].queued(&ledger);
            // The counters are read after the dump: up to ten overflows show in the drops one tick late.
            let late = tick % 10;
            let charges =
                settle(&mut ledger, &mut suspects, Some(100), [100 - late + (tick + 9) % 10, 40]);
            charged = [charged[0] + charges[0], charged[1] + charges[1]];
        }
        assert!(charged[1] * 50 <= charged[0], "{charged:?}");
    }

    #[test]
    fn the_last_overflows_of_a_vanished_socket_are_its_own() {
        let mut ledger = Ledger::default();
        let mut suspects = [Suspect::default(), Suspect::default()];
        settle(&mut ledger, &mut suspects, Some(7), [0, 0]);
        suspects[1].vanished(&ledger, true);
        assert_eq!(settle(&mut ledger, &mut suspects, None, [0, 0]), [0, 7]);
        assert_eq!(settle(&mut ledger, &mut suspects, Some(3), [0, 0]), [0, 0]);
    }

    #[test]
    fn a_successor_does_not_pay_for_a_vanished_socket() {
        let mut ledger = Ledger::default();
        let mut suspects = [queued(&ledger)];
        assert_eq!(settle(&mut ledger, &mut suspects, Some(7), [0]), [0]);
        suspects[0].vanished(&ledger, true);
        // The new socket of the same listener drops as much as it overflows.
        assert_eq!(settle(&mut ledger, &mut suspects, Some(9), [9]), [16]);
        assert_eq!(ledger.outstanding(), 0);
    }

    #[test]
    fn what_nobody_took_is_unattributed_after_three_ticks() {
        let mut ledger = Ledger::default();
        settle(&mut ledger, &mut [], Some(4), []);
        let waiting: Vec<u64> = (0..3)
            .map(|_| {
                settle(&mut ledger, &mut [], None, []);
                ledger.unattributed()
            })
            .collect();
        assert_eq!(waiting, [0, 0, 4]);
    }

    #[test]
    fn drops_wait_for_counters_that_could_not_be_read() {
        let mut ledger = Ledger::default();
        let mut suspects = [queued(&ledger)];
        assert_eq!(settle(&mut ledger, &mut suspects, None, [6]), [0]);
        assert_eq!(settle(&mut ledger, &mut suspects, Some(6), [0]), [6]);
    }

    #[test]
    fn shares_add_up() {
        let shares: Vec<u64> = proportional(10, &[1, 1, 1, 0]).collect();
        assert_eq!(shares.iter().sum::<u64>(), 10);
        assert_eq!(shares[3], 0);
        assert_eq!(proportional(0, &[0, 0]).sum::<u64>(), 0);
    }
}
