//! Attribution: finds the listeners that had the overflows, which the kernel counts only for the
//! whole namespace.
//!
//! `ListenOverflows` is the number of overflows. `sk_drops` of each listener is the evidence. An
//! overflow increments the drops of its listener by one (refused at the SYN) or by two (refused at
//! the last ACK), but drops also have harmless causes: deferred accept, lost SYN-ACKs, scans. These
//! facts are exact:
//!
//! - a queue overflows only while it is longer than its limit;
//! - a listener never has more overflows than drops;
//! - a queue grows only by connections that `PassiveOpens` counts: if fewer connections arrived
//!   than the queue had room for, the queue did not overflow;
//! - the counters are read after the dump: an overflow appears in the drops of the same sample or
//!   of the next sample.
//!
//! [`Attribution::settle`] therefore attributes each new overflow in this order ([`Stage`]):
//!
//! 1. to listeners seen near their limit within the last ten samples, in proportion to their drops
//!    without noise;
//! 2. one sample later, to listeners whose drops exceed their noise, first to those that overflowed
//!    within the last minute;
//! 3. to a listener whose socket vanished while it overflowed: the last drops of the socket are
//!    lost;
//! 4. to listeners near their limit up to all their drops, including noise;
//! 5. to the only listener that dropped anything, without a bound;
//! 6. to the other listeners that may have overflowed, up to all their drops;
//! 7. three samples later, to no listener: the overflow is unattributed.
//!
//! Drops that were not matched to an overflow are noise. The noise of deferred accept is known more
//! precisely: `TCPDeferAcceptDrop` counts it for the whole namespace. A listener whose drops moved
//! with this counter, while nothing overflowed, uses deferred accept.

use std::time::Duration;

/// The number of samples for which an overflow waits for its listener.
const MAX_AGE_SAMPLES: usize = 3;
/// The drops of a listener are the first evidence for this number of samples after one of its
/// queues was near its limit.
const NEAR_FULL_SAMPLES: u64 = 10;
/// How long refused clients retry.
const REPEATS: Duration = Duration::from_secs(60);
/// Seconds after which noise that stopped is forgotten.
const NOISE_MEMORY: f64 = 5.0;
/// Noise varies: drops below this multiple of the largest noise are no evidence.
const NOISE_MARGIN: f64 = 1.25;

/// The growth of the namespace's counters in one sample; `None` for a counter that was not read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reading {
    /// The time on the clock of the fold.
    pub(crate) now: Duration,
    /// Growth of `ListenOverflows`.
    pub(crate) overflows: Option<u64>,
    /// Growth of `PassiveOpens`.
    pub(crate) opens: Option<u64>,
    /// Growth of `TCPDeferAcceptDrop`.
    pub(crate) deferred: Option<u64>,
}

/// The evidence for overflows at one listener.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct DropEvidence {
    /// Drops since the last reading of the counters that are not matched to an overflow.
    fresh: u64,
    /// Drops of the previous reading that are not matched to an overflow.
    earlier: u64,
    /// The part of `earlier` that exceeded the noise.
    earlier_excess: u64,
    /// Whether some drops of the last reading were matched to overflows: then the rest need not be
    /// noise.
    earlier_paid: bool,
    noise: Noise,
    /// Whether deferred accept increments the listener's drops.
    defers: bool,
    /// The number of connections that must arrive before the queue can overflow: at the last dump,
    /// and at the dump before.
    room: [u64; 2],
    /// The sample at which a queue was last near its limit.
    near_full_at: Option<u64>,
    overflowed_at: Option<Duration>,
    /// Overflows at the last settlement that attributed any to this listener.
    overflowed: u64,
    vanished: bool,
    attributed: u64,
    certain: bool,
}

/// Drops without overflows, as a rate with its own clock.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Noise {
    drops: f64,
    /// The seconds in which `drops` were counted.
    seconds: f64,
    /// The most drops in one sample.
    peak: f64,
    learned_at: Duration,
}

/// The attribution of one namespace: overflows that wait for their listener, and unattributed
/// overflows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attribution {
    sample: u64,
    /// Overflows that wait, by age in samples.
    pending: [u64; MAX_AGE_SAMPLES],
    read_at: Duration,
    /// Growth of `PassiveOpens` at the last two readings.
    opens: [Option<u64>; 2],
    unattributed: u64,
    yielded: Yield,
    /// Scratch space, kept to reuse its memory.
    bounds: Vec<u64>,
}

/// Overflows per drop without noise at listeners near their limit: 1 if SYNs are refused, down to a
/// half if the last ACK is refused. The ratio keeps these listeners from being matched to the burst
/// of another listener.
#[derive(Clone, Copy, Debug, Default)]
struct Yield {
    overflows: f64,
    drops: f64,
}

/// A step of the order in which overflows are attributed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// Near the limit: drops without noise.
    NearFull,
    /// Overflowed within the last minute: drops above the noise.
    Repeating,
    /// May have overflowed between two samples: drops above the noise.
    Burst,
    /// Near the limit: all drops.
    NearFullNoisy,
    /// Overflowed within the last minute: all drops.
    RepeatingNoisy,
    /// May have overflowed between two samples: all drops.
    BurstNoisy,
}

/// The values of one settlement that apply to every listener.
#[derive(Clone, Copy, Debug)]
struct Moment {
    sample: u64,
    now: Duration,
    /// Seconds since the previous reading.
    seconds: f64,
    /// Connections opened in the last two readings, if known.
    opens: Option<u64>,
    /// Overflows per drop near the limit.
    per_drop: f64,
    /// The part of the drops caused by deferred accept, at listeners that use deferred accept and
    /// are near their limit.
    deferred: f64,
}

// === impl DropEvidence ===

impl DropEvidence {
    /// Adds new drops of this listener's sockets.
    pub(crate) fn dropped(&mut self, drops: u64) {
        self.fresh += drops;
    }

    /// Records a dump: at least `room` connections must arrive before any queue of the listener
    /// overflows.
    pub(crate) fn has_room(&mut self, room: u64) {
        self.room = [room, self.room[0]];
    }

    /// Records a reading between two dumps; the counters are not read with it.
    pub(crate) fn had_room(&mut self, room: u64) {
        self.room[0] = self.room[0].min(room);
    }

    /// Records a dump that showed a queue of the listener near its limit.
    pub(crate) fn near_full(&mut self, attribution: &Attribution) {
        self.near_full_at = Some(attribution.sample);
    }

    /// Records that a socket of the listener is gone for good; `was_near_full` is the state of the
    /// socket when last seen.
    pub(crate) fn vanished(&mut self, attribution: &Attribution, was_near_full: bool) {
        let overflowed = self.overflowed_at.is_some_and(|at| at + REPEATS >= attribution.read_at);
        self.vanished |= was_near_full || overflowed || self.is_near_full(attribution.sample);
    }

    /// The overflows that the last settlement attributed to the listener, and whether no other
    /// listener can have had them.
    pub(crate) fn attributed(&self) -> (u64, bool) {
        (self.attributed, self.certain)
    }

    /// Whether there is any evidence.
    pub(crate) fn is_some(&self) -> bool {
        self.speaks() || self.attributed > 0
    }

    /// Whether no overflow can be attributed to the listener once it is closed.
    pub(crate) fn is_blank(&self) -> bool {
        !self.is_some() && self.near_full_at.is_none()
    }

    /// Whether there is evidence that is not matched to an overflow yet.
    fn speaks(&self) -> bool {
        self.fresh > 0 || self.earlier > 0 || self.vanished
    }

    fn is_near_full(&self, sample: u64) -> bool {
        self.near_full_at.is_some_and(|at| sample - at <= NEAR_FULL_SAMPLES)
    }

    fn is_repeating(&self, now: Duration) -> bool {
        self.overflowed_at.is_some_and(|at| now.saturating_sub(at) <= REPEATS)
    }

    /// Whether enough connections arrived to fill a queue.
    fn may_have_overflowed(&self, opens: Option<u64>) -> bool {
        opens.is_none_or(|opens| self.room.into_iter().min() <= Some(opens))
    }

    /// The most overflows that the listener's drops can match at this stage.
    fn bound(&self, stage: Stage, moment: Moment) -> u64 {
        if !self.belongs_to(stage, moment) {
            return 0;
        }
        match stage {
            Stage::NearFull => (self.without_noise(moment) * moment.per_drop).ceil() as u64,
            Stage::Repeating | Stage::Burst => self.earlier_excess + self.excess(moment.now),
            Stage::NearFullNoisy | Stage::RepeatingNoisy | Stage::BurstNoisy => {
                self.earlier + self.fresh
            }
        }
    }

    /// Fresh drops minus the expected noise.
    fn without_noise(&self, moment: Moment) -> f64 {
        let fresh = self.fresh as f64;
        match self.defers {
            true => fresh * (1.0 - moment.deferred),
            false => (fresh - self.noise.expected(moment.now, moment.seconds)).max(0.0),
        }
    }

    fn belongs_to(&self, stage: Stage, moment: Moment) -> bool {
        let near_full = self.is_near_full(moment.sample);
        match stage {
            Stage::NearFull | Stage::NearFullNoisy => near_full,
            _ if near_full || !self.may_have_overflowed(moment.opens) => false,
            Stage::Repeating | Stage::RepeatingNoisy => self.is_repeating(moment.now),
            Stage::Burst | Stage::BurstNoisy => true,
        }
    }

    /// Fresh drops above the noise.
    fn excess(&self, now: Duration) -> u64 {
        self.fresh.saturating_sub(self.noise.largest(now))
    }

    fn begin_settlement(&mut self) {
        (self.attributed, self.certain) = (0, false);
    }

    /// Attributes overflows and removes the matched drops, the earlier drops first.
    fn pay(&mut self, overflows: u64) {
        let old = overflows.min(self.earlier);
        self.earlier -= old;
        self.earlier_excess = self.earlier_excess.saturating_sub(old);
        self.pay_fresh(overflows - old);
        self.attributed += old;
    }

    fn pay_fresh(&mut self, overflows: u64) {
        self.fresh = self.fresh.saturating_sub(overflows);
        self.attributed += overflows;
    }

    /// Learns whether the listener uses deferred accept.
    ///
    /// `deferred` is the number of drops by deferred accept in the whole namespace, and `all` is
    /// the number of drops at listeners that were not near their limit.
    fn learn_deferral(&mut self, all: u64, deferred: u64) {
        if deferred == 0 {
            self.defers = false;
        } else if self.fresh >= deferred / 4 && all.abs_diff(deferred) * 10 <= deferred {
            self.defers = true;
        }
    }

    /// Ends a settlement with a reading of the counters.
    fn end_reading(&mut self, moment: Moment) {
        if self.attributed == 0 && !self.earlier_paid {
            self.noise.learn(moment.now, moment.seconds, self.earlier);
        }
        (self.earlier, self.earlier_excess) = (self.fresh, self.excess(moment.now));
        self.earlier_paid = self.attributed > 0;
        self.fresh = 0;
    }

    fn end_settlement(&mut self, now: Duration) {
        self.vanished = false;
        if self.attributed > 0 {
            (self.overflowed_at, self.overflowed) = (Some(now), self.attributed);
        }
    }
}

// === impl Noise ===

impl Noise {
    /// Learns from `drops` without an overflow in a sample of `seconds` seconds.
    fn learn(&mut self, now: Duration, seconds: f64, drops: u64) {
        let (kept, drops) = (self.kept(now), drops as f64);
        // Samples in between had no drops, but the silence before the noise began does not count.
        let goes_on = self.drops * kept >= 1.0;
        self.seconds = if goes_on { self.watched(now) } else { seconds };
        self.drops = self.drops * kept + drops;
        self.peak = (self.peak * kept).max(drops);
        self.learned_at = now;
    }

    /// Keeps the noise from being forgotten during this sample: the noise continues.
    fn stay(&mut self, moment: Moment) {
        let later = self.learned_at + Duration::from_secs_f64(moment.seconds);
        self.learned_at = later.min(moment.now);
    }

    fn elapsed(&self, now: Duration) -> f64 {
        now.saturating_sub(self.learned_at).as_secs_f64()
    }

    /// The share of the learned noise that is not forgotten.
    fn kept(&self, now: Duration) -> f64 {
        (1.0 - self.elapsed(now) / NOISE_MEMORY).max(0.0)
    }

    fn watched(&self, now: Duration) -> f64 {
        self.seconds * self.kept(now) + self.elapsed(now)
    }

    /// The drops expected in a sample of `seconds` seconds.
    fn expected(&self, now: Duration, seconds: f64) -> f64 {
        if self.drops == 0.0 {
            return 0.0;
        }
        let per_second = self.drops * self.kept(now) / self.watched(now).max(seconds);
        per_second * seconds
    }

    /// The most drops in one sample that still count as noise.
    fn largest(&self, now: Duration) -> u64 {
        if self.peak == 0.0 {
            return 0;
        }
        (self.peak * self.kept(now) * NOISE_MARGIN).ceil() as u64
    }
}

// === impl Yield ===

impl Yield {
    /// The share of the learned values that each sample keeps.
    const KEPT: f64 = 0.9;

    fn learn(&mut self, overflows: u64, drops: f64) {
        self.overflows = self.overflows * Self::KEPT + overflows as f64;
        self.drops = self.drops * Self::KEPT + drops;
    }

    fn per_drop(self) -> f64 {
        match self.drops >= 1.0 {
            true => (self.overflows / self.drops).clamp(0.25, 1.0),
            false => 1.0,
        }
    }
}

// === impl Stage ===

impl Stage {
    /// The stages after the first stage and before listeners whose socket vanished.
    const ABOVE_NOISE: [Self; 2] = [Self::Repeating, Self::Burst];
    /// The last stages: noise is no evidence while anything else explains the overflow.
    const NOISY: [Self; 2] = [Self::RepeatingNoisy, Self::BurstNoisy];
}

// === impl Attribution ===

impl Attribution {
    /// Overflows that were attributed to no listener.
    pub(crate) fn unattributed(&self) -> u64 {
        self.unattributed
    }

    /// Ends one sample. Without a reading, new drops wait for the next reading. `evidence` contains
    /// every listener that has evidence.
    pub(crate) fn settle(&mut self, reading: Reading, evidence: &mut [&mut DropEvidence]) {
        self.sample += 1;
        self.learn_deferral(reading, evidence);
        let moment = self.take(reading, evidence);
        self.age(reading.overflows.unwrap_or(0));
        for one in evidence.iter_mut() {
            one.begin_settlement();
        }
        if self.outstanding() > 0 {
            self.attribute(moment, evidence);
        }
        for one in evidence.iter_mut() {
            one.end_settlement(reading.now);
            if reading.overflows.is_some() {
                one.end_reading(moment);
            }
        }
    }

    /// Attributes all overflows that still wait: the namespace has ended.
    pub(crate) fn finish(&mut self, now: Duration, evidence: &mut [&mut DropEvidence]) {
        self.settle(Reading { now, ..Reading::default() }, evidence);
        let outstanding = self.outstanding();
        if outstanding == 0 {
            return;
        }
        let sample = self.sample;
        let weigh = |one: &DropEvidence| match one.is_near_full(sample) || one.is_repeating(now) {
            true => one.overflowed.max(1),
            false => 0,
        };
        self.weigh(evidence, weigh);
        if self.bounds.iter().any(|weight| *weight > 0) {
            self.hand_out(0, outstanding, evidence);
        }
        self.unattributed += std::mem::take(&mut self.pending).iter().sum::<u64>();
        for one in evidence.iter_mut() {
            one.end_settlement(now);
        }
    }

    fn take(&mut self, reading: Reading, evidence: &[&mut DropEvidence]) -> Moment {
        let seconds = reading.now.saturating_sub(self.read_at).as_secs_f64();
        if reading.overflows.is_some() {
            self.opens = [reading.opens, self.opens[0]];
            self.read_at = reading.now;
        }
        let opens = self.opens[0].zip(self.opens[1]).map(|(new, old)| new + old);
        Moment {
            sample: self.sample,
            now: reading.now,
            seconds,
            opens,
            per_drop: self.yielded.per_drop(),
            deferred: self.deferred_part(reading.deferred.unwrap_or(0), evidence),
        }
    }

    /// Learns which listeners use deferred accept. Near the limit, overflows and other drops look
    /// the same.
    fn learn_deferral(&self, reading: Reading, evidence: &mut [&mut DropEvidence]) {
        let (Some(_), Some(deferred)) = (reading.overflows, reading.deferred) else { return };
        let is_far = |one: &DropEvidence| one.fresh > 0 && !one.is_near_full(self.sample);
        let all = evidence.iter().filter(|one| is_far(one)).map(|one| one.fresh).sum();
        for one in evidence.iter_mut().filter(|one| is_far(one)) {
            one.learn_deferral(all, deferred);
        }
    }

    /// The part of the drops caused by deferred accept, at listeners that use deferred accept and
    /// are near their limit: the namespace total of deferred accept, minus the drops of the
    /// deferring listeners that are not near their limit.
    fn deferred_part(&self, deferred: u64, evidence: &[&mut DropEvidence]) -> f64 {
        let [mut near, mut far] = [0, 0];
        for one in evidence.iter().filter(|one| one.defers) {
            match one.is_near_full(self.sample) {
                true => near += one.fresh,
                false => far += one.fresh,
            }
        }
        if near == 0 { 0.0 } else { (deferred.saturating_sub(far) as f64 / near as f64).min(1.0) }
    }

    fn age(&mut self, new: u64) {
        let [first, second, third] = self.pending;
        self.unattributed += third;
        self.pending = [new, first, second];
    }

    fn outstanding(&self) -> u64 {
        self.pending.iter().sum()
    }

    /// Overflows that waited before this sample.
    fn waited(&self) -> u64 {
        self.pending[1..].iter().sum()
    }

    fn attribute(&mut self, moment: Moment, evidence: &mut [&mut DropEvidence]) {
        let alone = evidence.iter().filter(|one| one.speaks()).count() == 1;
        let fresh = self.share_near_full(moment, evidence);
        for stage in Stage::ABOVE_NOISE {
            self.share(stage, moment, evidence);
        }
        self.share_among_the_vanished(evidence);
        self.share(Stage::NearFullNoisy, moment, evidence);
        self.pay_late(fresh);
        if alone {
            self.give_to_the_only_one(evidence);
        }
        for stage in Stage::NOISY {
            self.share(stage, moment, evidence);
        }
    }

    /// Attributes overflows to listeners near their limit at once: first the overflows of this
    /// sample, then those that waited. Returns the number attributed from this sample.
    fn share_near_full(&mut self, moment: Moment, evidence: &mut [&mut DropEvidence]) -> u64 {
        self.learn_yield(moment, evidence);
        self.keep_noise(moment, evidence);
        self.weigh(evidence, |one| one.bound(Stage::NearFull, moment));
        let most: u64 = self.bounds.iter().sum();
        let fresh = self.pending[0].min(most);
        self.pending[0] -= fresh;
        let waited = self.draw(1, most - fresh);
        for (one, share) in evidence.iter_mut().zip(proportional(fresh + waited, &self.bounds)) {
            one.pay_fresh(share);
        }
        fresh
    }

    /// Learns only from samples in which no other listener may have overflowed.
    fn learn_yield(&mut self, moment: Moment, evidence: &[&mut DropEvidence]) {
        let (overflows, mut drops) = (self.pending[0], 0.0);
        for one in evidence {
            match one.is_near_full(moment.sample) {
                true => drops += one.without_noise(moment),
                false if one.excess(moment.now) > 0 || one.vanished => return,
                false => {}
            }
        }
        if drops > 0.0 {
            self.yielded.learn(overflows, drops);
        }
    }

    /// Near the limit, noise and overflows look the same. The noise learned before is kept while
    /// there are more drops than overflows.
    fn keep_noise(&self, moment: Moment, evidence: &mut [&mut DropEvidence]) {
        let (mut drops, mut noise) = (0, 0.0);
        for one in evidence.iter().filter(|one| one.is_near_full(moment.sample)) {
            drops += one.fresh;
            noise += one.noise.expected(moment.now, moment.seconds);
        }
        if noise > 0.0 && drops.saturating_sub(self.pending[0]) as f64 >= noise / 2.0 {
            for one in evidence.iter_mut().filter(|one| one.is_near_full(moment.sample)) {
                one.noise.stay(moment);
            }
        }
    }

    /// Overflows that still wait may belong to drops that came one sample late and were matched to
    /// `fresh` overflows of this sample. Then the overflows of this sample wait instead.
    fn pay_late(&mut self, fresh: u64) {
        let late = self.draw(1, fresh);
        self.pending[0] += late;
    }

    /// Attributes overflows that waited, in proportion to the bound of each listener and at most up
    /// to the bound.
    fn share(&mut self, stage: Stage, moment: Moment, evidence: &mut [&mut DropEvidence]) {
        if self.waited() == 0 {
            return;
        }
        self.weigh(evidence, |one| one.bound(stage, moment));
        self.hand_out(1, self.bounds.iter().sum(), evidence);
    }

    fn share_among_the_vanished(&mut self, evidence: &mut [&mut DropEvidence]) {
        if self.waited() > 0 && evidence.iter().any(|one| one.vanished) {
            self.weigh(evidence, |one| u64::from(one.vanished));
            self.hand_out(1, u64::MAX, evidence);
        }
    }

    /// Attributes everything that waited to the only listener with evidence: nothing to split, and
    /// no bound.
    fn give_to_the_only_one(&mut self, evidence: &mut [&mut DropEvidence]) {
        self.weigh(evidence, |one| u64::from(one.speaks() || one.attributed > 0));
        self.hand_out(1, u64::MAX, evidence);
        for one in evidence.iter_mut() {
            one.certain = one.attributed > 0;
        }
    }

    fn weigh(&mut self, evidence: &[&mut DropEvidence], weight: impl Fn(&DropEvidence) -> u64) {
        self.bounds.clear();
        self.bounds.extend(evidence.iter().map(|one| weight(one)));
    }

    /// Attributes up to `most` overflows of `age` and older by the weights in `bounds`.
    fn hand_out(&mut self, age: usize, most: u64, evidence: &mut [&mut DropEvidence]) {
        let total = self.draw(age, most);
        for (one, share) in evidence.iter_mut().zip(proportional(total, &self.bounds)) {
            one.pay(share);
        }
    }

    /// Takes up to `most` overflows of `age` and older from those that wait, the oldest first.
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

/// Splits `total` by weight into integers whose sum is exactly `total`.
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

    const SAMPLE: Duration = Duration::from_millis(100);

    /// The state of one listener in one sample.
    #[derive(Clone, Copy, Debug, Default)]
    struct Seen {
        drops: u64,
        near_full: bool,
        room: u64,
    }

    /// `N` listeners of one namespace, and the overflows attributed to each so far.
    struct Story<const N: usize> {
        now: Duration,
        /// Growth of `TCPDeferAcceptDrop` at each sample.
        deferred: Option<u64>,
        attribution: Attribution,
        evidence: [DropEvidence; N],
        totals: [u64; N],
    }

    const IDLE: Seen = Seen { drops: 0, near_full: false, room: 9 };

    /// A listener that is not near its limit.
    fn drops(drops: u64) -> Seen {
        Seen { drops, ..IDLE }
    }

    /// A listener near its limit.
    fn full(drops: u64) -> Seen {
        Seen { drops, near_full: true, room: 0 }
    }

    // === impl Story ===

    impl<const N: usize> Default for Story<N> {
        fn default() -> Self {
            Self {
                now: Duration::ZERO,
                deferred: None,
                attribution: Attribution::default(),
                evidence: [DropEvidence::default(); N],
                totals: [0; N],
            }
        }
    }

    impl<const N: usize> Story<N> {
        /// Runs one sample. Returns the total attributed to each listener so far.
        fn sample(&mut self, overflows: Option<u64>, seen: [Seen; N]) -> [u64; N] {
            self.sample_with(overflows, None, seen)
        }

        fn sample_with(
            &mut self,
            overflows: Option<u64>,
            opens: Option<u64>,
            seen: [Seen; N],
        ) -> [u64; N] {
            self.now += SAMPLE;
            for (evidence, seen) in self.evidence.iter_mut().zip(seen) {
                evidence.dropped(seen.drops);
                evidence.has_room(seen.room);
                if seen.near_full {
                    evidence.near_full(&self.attribution);
                }
            }
            let reading = Reading { now: self.now, overflows, opens, deferred: self.deferred };
            self.attribution.settle(reading, &mut self.evidence.each_mut());
            self.add_up()
        }

        fn finish(&mut self) -> [u64; N] {
            self.attribution.finish(self.now, &mut self.evidence.each_mut());
            self.add_up()
        }

        fn quiet(&mut self, samples: usize) -> [u64; N] {
            (0..samples).map(|_| self.sample(None, [IDLE; N])).last().unwrap_or(self.totals)
        }

        fn add_up(&mut self) -> [u64; N] {
            for (total, evidence) in self.totals.iter_mut().zip(&self.evidence) {
                *total += evidence.attributed().0;
            }
            self.totals
        }

        fn unaccounted(&self) -> u64 {
            self.attribution.outstanding() + self.attribution.unattributed()
        }
    }

    #[test]
    fn the_only_listener_near_its_limit_gets_all_overflows_at_once() {
        let mut story = Story::default();
        assert_eq!(story.sample(Some(90), [full(180), drops(50)]), [90, 0]);
        assert_eq!(story.unaccounted(), 0);
    }

    #[test]
    fn two_listeners_near_their_limits_share_by_their_drops() {
        let mut story = Story::default();
        assert_eq!(story.sample(Some(10), [full(30), full(10)]), [7, 3]);
    }

    #[test]
    fn a_listener_gets_no_more_overflows_than_it_has_drops() {
        let mut story = Story::default();
        story.sample(Some(10), [full(4), drops(0)]);
        assert_eq!((story.totals, story.attribution.outstanding()), ([4, 0], 6));
        // The drops of the other listener come one sample late.
        story.sample(Some(0), [IDLE, drops(6)]);
        assert_eq!((story.totals, story.unaccounted()), ([4, 6], 0));
    }

    #[test]
    fn drops_that_are_one_sample_late_are_matched_then() {
        let mut story = Story::default();
        assert_eq!(story.sample(Some(5), [full(0)]), [0]);
        assert_eq!(story.sample(Some(0), [full(5)]), [5]);
    }

    #[test]
    fn a_burst_between_two_samples_is_attributed_one_sample_later() {
        let mut story = Story::default();
        assert_eq!(story.sample(Some(5), [drops(10)]), [0]);
        assert_eq!(story.sample(None, [IDLE]), [5]);
        assert_eq!(story.evidence[0].attributed(), (5, true));
    }

    #[test]
    fn each_of_two_bursts_between_samples_is_attributed_one_sample_later() {
        let mut story = Story::default();
        let bursts = [(25, 25), (30, 30), (0, 0)];
        let totals =
            bursts.map(|(overflows, dropped)| story.sample(Some(overflows), [drops(dropped)]));
        assert_eq!(totals, [[0], [25], [55]]);
    }

    #[test]
    fn drops_of_a_burst_are_not_matched_to_the_burst_before_it() {
        let mut story = Story::default();
        assert_eq!(story.sample(Some(25), [drops(25)]), [0]);
        assert_eq!(story.sample(Some(30), [full(30)]), [55]);
        assert_eq!(story.unaccounted(), 0);
    }

    #[test]
    fn the_last_overflows_of_a_vanished_socket_are_attributed_to_it() {
        let mut story = Story::default();
        story.sample(Some(7), [IDLE; 2]);
        story.evidence[1].vanished(&story.attribution, true);
        assert_eq!(story.sample(None, [IDLE; 2]), [0, 7]);
        assert_eq!(story.sample(Some(3), [IDLE; 2]), [0, 7]);
    }

    #[test]
    fn a_vanished_socket_that_was_never_near_its_limit_is_no_evidence() {
        let mut story = Story::default();
        story.sample(Some(7), [IDLE; 2]);
        story.evidence[1].vanished(&story.attribution, false);
        assert_eq!(story.sample(None, [IDLE; 2]), [0, 0]);
    }

    #[test]
    fn drops_of_a_new_socket_are_not_matched_to_a_vanished_one() {
        let mut story = Story::default();
        assert_eq!(story.sample(Some(7), [full(0)]), [0]);
        story.evidence[0].vanished(&story.attribution, true);
        // The new socket of the same listener has as many drops as overflows.
        assert_eq!(story.sample(Some(9), [full(9)]), [16]);
        assert_eq!(story.unaccounted(), 0);
    }

    #[test]
    fn an_overflow_without_evidence_is_unattributed_after_three_samples() {
        let mut story = Story::<0>::default();
        story.sample(Some(4), []);
        let unattributed: Vec<u64> = (0..3)
            .map(|_| {
                story.quiet(1);
                story.attribution.unattributed()
            })
            .collect();
        assert_eq!(unattributed, [0, 0, 4]);
    }

    #[test]
    fn drops_wait_for_counters_that_could_not_be_read() {
        let mut story = Story::default();
        assert_eq!(story.sample(None, [full(6)]), [0]);
        assert_eq!(story.sample(Some(6), [IDLE]), [6]);
    }

    #[test]
    fn no_overflow_is_pending_after_a_namespace_ended() {
        let mut story = Story::default();
        story.sample(Some(100), [full(60), full(20)]);
        assert_eq!(story.totals, [60, 20]);
        // The last drops were lost with the sockets: the listeners share the rest in the same ratio
        // as before.
        assert_eq!((story.finish(), story.unaccounted()), ([75, 25], 0));
        let mut strangers = Story::default();
        strangers.sample(Some(5), [IDLE]);
        assert_eq!((strangers.finish(), strangers.attribution.unattributed()), ([0], 5));
    }

    /// A rule with two stories. In the first story, listener 0 had the overflows. The second story
    /// differs in one fact, and listener 0 did not have the overflows. Listener 1 is the neighbour.
    struct Rule {
        says: &'static str,
        guilty: fn(&mut Story<2>),
        innocent: fn(&mut Story<2>),
    }

    /// Harmless drops at listener 0, while listener 1 is idle.
    fn noise(story: &mut Story<2>, samples: usize, each: u64) {
        for _ in 0..samples {
            story.sample(Some(0), [drops(each), IDLE]);
        }
    }

    const RULES: [Rule; 11] = [
        Rule {
            says: "drops beside a listener near its limit pay only for what that one cannot explain",
            guilty: |story| _ = story.sample(Some(90), [drops(60), full(30)]),
            innocent: |story| _ = story.sample(Some(30), [drops(60), full(30)]),
        },
        Rule {
            says: "deferred accept moves drops once per client, a burst above that overflows",
            guilty: |story| {
                noise(story, 50, 15);
                story.sample(Some(40), [drops(75), drops(0)]);
            },
            innocent: |story| {
                noise(story, 50, 15);
                story.sample(Some(40), [drops(17), drops(40)]);
            },
        },
        Rule {
            says: "a queue with room for more connections than came cannot have overflowed",
            guilty: |story| {
                let far = Seen { drops: 150, near_full: false, room: 150 };
                story.sample_with(Some(0), Some(0), [IDLE; 2]);
                story.sample_with(Some(50), Some(150), [far, drops(50)]);
                story.sample_with(Some(0), Some(0), [far, IDLE]);
            },
            innocent: |story| {
                let far = Seen { drops: 150, near_full: false, room: 511 };
                story.sample_with(Some(0), Some(0), [IDLE; 2]);
                story.sample_with(Some(50), Some(150), [far, drops(50)]);
                story.sample_with(Some(0), Some(0), [far, IDLE]);
            },
        },
        Rule {
            says: "a scan that begins with the overflow of a neighbour is no evidence",
            guilty: |story| {
                for _ in 0..50 {
                    story.sample(Some(20), [full(20), drops(40)]);
                }
            },
            innocent: |story| {
                for _ in 0..50 {
                    story.sample(Some(20), [drops(40), full(20)]);
                }
            },
        },
        Rule {
            says: "noise is forgotten when it stops, though some of it trickles on",
            guilty: |story| {
                noise(story, 10, 300);
                for _ in 0..10 {
                    story.sample(Some(0), [drops(1), IDLE]);
                    story.quiet(19);
                }
                story.sample(Some(40), [drops(40), drops(40)]);
            },
            innocent: |story| {
                noise(story, 10, 300);
                story.sample(Some(40), [drops(40), drops(40)]);
            },
        },
        Rule {
            says: "near the limit, noise is subtracted from the drops",
            guilty: |story| _ = story.sample(Some(40), [full(30), full(10)]),
            innocent: |story| {
                noise(story, 100, 30);
                story.sample(Some(10), [full(30), full(10)]);
            },
        },
        Rule {
            says: "near the limit, deferred accept is subtracted where it was seen",
            guilty: |story| {
                noise(story, 20, 30);
                story.deferred = Some(0);
                story.sample(Some(40), [full(30), full(10)]);
            },
            innocent: |story| {
                story.deferred = Some(30);
                noise(story, 20, 30);
                story.sample(Some(10), [full(30), full(10)]);
            },
        },
        Rule {
            says: "the burst of one is not paid by another with more drops than overflows",
            guilty: |story| {
                for _ in 0..30 {
                    story.sample(Some(40), [full(60), IDLE]);
                }
            },
            innocent: |story| {
                for _ in 0..30 {
                    story.sample(Some(20), [full(40), IDLE]);
                }
                story.totals = [0; 2];
                story.sample(Some(60), [IDLE, drops(60)]);
            },
        },
        Rule {
            says: "clients that were refused come back to where they were refused",
            guilty: |story| {
                story.sample(Some(30), [full(30), IDLE]);
                story.quiet(300);
                story.sample(Some(4), [drops(4), drops(4)]);
            },
            innocent: |story| {
                story.sample(Some(30), [IDLE, full(30)]);
                story.quiet(300);
                story.sample(Some(4), [drops(4), drops(4)]);
            },
        },
        Rule {
            says: "near its limit means within the last ten samples",
            guilty: |story| {
                story.sample(Some(0), [full(0), IDLE]);
                story.quiet(8);
                story.sample(Some(20), [drops(20), drops(20)]);
            },
            innocent: |story| {
                story.sample(Some(0), [IDLE, full(0)]);
                story.quiet(8);
                story.sample(Some(20), [drops(20), drops(20)]);
            },
        },
        Rule {
            says: "the only listener that drops anything has all, noise or not",
            guilty: |story| {
                noise(story, 10, 300);
                story.sample(Some(228), [drops(228), IDLE]);
            },
            innocent: |story| {
                noise(story, 10, 300);
                story.sample(Some(228), [drops(228), drops(228)]);
            },
        },
    ];

    #[test]
    fn listeners_that_did_not_overflow_get_no_overflows() {
        for Rule { says, guilty, innocent } in RULES {
            let told = |play: fn(&mut Story<2>)| {
                let mut story = Story::default();
                play(&mut story);
                story.quiet(3);
                assert_eq!(story.unaccounted(), 0, "{says}");
                story.totals.map(|total| total as f64 / story.totals.iter().sum::<u64>() as f64)
            };
            let ([guilty, _], [innocent, _]) = (told(guilty), told(innocent));
            assert!(guilty >= 0.45, "{says}: the guilty one has {guilty}");
            assert!(innocent <= 0.01, "{says}: its innocent twin has {innocent}");
        }
    }

    #[test]
    fn late_counters_do_not_move_overflows_to_a_scanned_neighbour() {
        let mut story = Story::default();
        for sample in 0..100 {
            // The counters are read after the dump: up to ten overflows appear in the drops one
            // sample late.
            let late = sample % 10;
            story.sample(Some(100), [full(100 - late + (sample + 9) % 10), drops(40)]);
        }
        assert!(story.totals[1] * 100 <= story.totals[0], "{:?}", story.totals);
    }

    #[test]
    fn continuing_noise_near_the_limit_is_not_forgotten() {
        let mut story = Story::default();
        for _ in 0..20 {
            story.sample(Some(0), [drops(10), IDLE]);
        }
        for _ in 0..200 {
            story.sample(Some(34), [full(27), full(17)]);
        }
        let [noisy, other] = story.totals;
        assert!(noisy.abs_diff(other) * 50 <= other, "{noisy} {other}");
    }

    #[test]
    fn drops_of_a_burst_beside_a_full_listener_are_not_matched_later() {
        let mut story = Story::default();
        for _ in 0..20 {
            story.sample(Some(77), [full(17), drops(60)]);
            for _ in 0..9 {
                story.sample(Some(17), [full(17), IDLE]);
            }
        }
        story.quiet(3);
        assert_eq!((story.totals, story.unaccounted()), ([3400, 1200], 0));
    }

    #[test]
    fn two_drops_per_overflow_are_not_matched_to_the_burst_of_another() {
        let mut story = Story::default();
        for _ in 0..20 {
            for _ in 0..9 {
                story.sample(Some(20), [full(40), IDLE]);
            }
            story.sample(Some(50), [full(40), drops(30)]);
        }
        story.quiet(3);
        assert!(story.totals[1].abs_diff(600) <= 30, "{:?}", story.totals);
    }

    #[test]
    fn proportional_shares_add_up_to_the_total() {
        let shares: Vec<u64> = proportional(10, &[1, 1, 1, 0]).collect();
        assert_eq!(shares.iter().sum::<u64>(), 10);
        assert_eq!(shares[3], 0);
        assert_eq!(proportional(0, &[0, 0]).sum::<u64>(), 0);
    }
}
