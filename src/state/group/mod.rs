//! The listeners of one namespace and protocol, and their sockets.

mod causes;
mod conclude;
mod naming;
mod scan;

use std::hash::BuildHasher;
use std::time::Duration;

use rustc_hash::{FxBuildHasher, FxHashMap};
use slab::Slab;

use crate::snapshot::{Dump, ListenSocket, OwnersByInode};
use crate::view::ListenerView;

use crate::state::Tick;
use crate::state::accepted::Queues;
use crate::state::attribution::{Attribution, DropEvidence, Reading};
use crate::state::exposure::{Admission, Exposure, Level, PROBATION};
use crate::state::listener::{Address, Listener};
use crate::state::netns::Scope;
use crate::state::places::Candidate;
use crate::state::socket::Sockets;
use crate::state::tracking::Tracking;

pub(super) use conclude::Context;

/// The most intervals of a gap whose time is credited: a longer gap is a stall or a suspend.
const CREDITED_INTERVALS: u32 = 10;

/// The listeners that one dump covers.
#[derive(Debug)]
pub(super) struct Group<A> {
    scope: Scope,
    sockets: Sockets,
    listeners: Slab<Listener<A>>,
    by_address: FxHashMap<A, usize>,
    /// The listener that has each alias.
    by_alias: FxHashMap<A, usize>,
    /// New listeners that have no name yet.
    unnamed: Vec<usize>,
    /// The listeners that have series, in ascending order. There may be few of very many.
    exposed: Vec<usize>,
    sampled_at: Option<Duration>,
    /// The number of samples: whole dumps, and readings between them.
    samples: u64,
    /// Whether another identical dump would change nothing.
    at_rest: bool,
    /// The listeners that are not at rest, and their sockets: a reading between two dumps concerns
    /// only these.
    active: Active,
    /// Increases whenever the view may have changed.
    revision: u64,
    drops_missing: bool,
    /// Whether a listener may be closed, and is to be forgotten some time later.
    has_closed: bool,
    /// Named listeners that wait for admission.
    newcomers: Vec<usize>,
    /// Sockets of the last dump that are not tracked because there are too many.
    omitted: usize,
    /// Overflows attributed to any of these listeners.
    attributed: u64,
    /// Listeners without series to which overflows were attributed in this sample.
    hidden_overflows: Vec<usize>,
    /// Whether the group had only one listener at the last dump.
    was_alone: bool,
    /// The sum of the connections that wait at all listeners.
    waiting: u64,
    /// The sum of the connections that waited at sockets when they were closed.
    discarded: u64,
}

/// Listeners that are not at rest.
#[derive(Debug, Default)]
struct Active {
    listeners: Vec<usize>,
    /// The places of their sockets.
    sockets: Vec<usize>,
}

// === impl Group ===

impl<A: Address> Group<A> {
    /// Creates a group without listeners. Sockets in the first `baseline_dumps` dumps were open
    /// before.
    pub(super) fn new(scope: Scope, baseline_dumps: u64) -> Self {
        Self {
            scope,
            sockets: Sockets::new(baseline_dumps),
            listeners: Slab::new(),
            by_address: FxHashMap::default(),
            by_alias: FxHashMap::default(),
            unnamed: Vec::new(),
            exposed: Vec::new(),
            sampled_at: None,
            samples: 0,
            at_rest: false,
            active: Active::default(),
            revision: 0,
            drops_missing: false,
            has_closed: false,
            newcomers: Vec::new(),
            omitted: 0,
            attributed: 0,
            hidden_overflows: Vec::new(),
            was_alone: false,
            waiting: 0,
            discarded: 0,
        }
    }

    /// Starts again with empty sockets: the sockets of the next dumps were open before, but their
    /// cookies are of another kind than the known cookies.
    pub(super) fn restart(&mut self, baseline_dumps: u64, tracking: &mut Tracking) {
        self.untrack(tracking);
        self.sockets = Sockets::new(baseline_dumps);
        (self.at_rest, self.drops_missing) = (false, false);
    }

    /// The number of samples: whole dumps, and readings between them.
    pub(super) fn samples(&self) -> u64 {
        self.samples
    }

    /// The time of the last good dump.
    pub(super) fn sampled_at(&self) -> Option<Duration> {
        self.sampled_at
    }

    /// Whether a row had no drops: then no overflow can be attributed.
    pub(super) fn lacks_drops(&self) -> bool {
        self.drops_missing
    }

    /// The views of the listeners that have series.
    pub(super) fn shown(&self) -> impl Iterator<Item = &ListenerView> {
        self.exposed.iter().map(|key| &self.listeners[*key].shown)
    }

    /// A number that increases whenever the view may have changed.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Applies one dump. Returns the time credited to the previous dump.
    pub(super) fn fold(
        &mut self,
        dump: &Dump<A>,
        tick: Tick,
        attribution: &Attribution,
        tracking: &mut Tracking,
    ) -> Duration {
        let gap = self.credited(dump.interval, tick.now);
        self.samples += 1;
        if let Some(part) = &dump.part {
            if !(self.at_rest && dump.is_same) {
                self.fold_part(dump, part, tick, attribution, gap);
            }
            return gap;
        }
        let may_track_more = self.omitted > 0 && tracking.has_room();
        self.at_rest = self.at_rest && dump.is_same && !may_track_more;
        if self.at_rest {
            self.sockets.pass_over();
        } else {
            self.fold_rows(dump, tick, attribution, gap, tracking);
        }
        gap
    }

    fn fold_rows(
        &mut self,
        dump: &Dump<A>,
        tick: Tick,
        attribution: &Attribution,
        gap: Duration,
        tracking: &mut Tracking,
    ) {
        self.revision += 1;
        for (_, listener) in &mut self.listeners {
            listener.begin_sample(gap);
        }
        self.see_rows(dump, tick, attribution, tracking);
        if self.samples == 1 {
            // Most listeners of a namespace are open at the first dump.
            self.listeners.shrink_to_fit();
            self.sockets.shrink_to_fit();
        }
        self.waiting = 0;
        for socket in self.sockets.living() {
            self.waiting += u64::from(socket.queue.length);
            self.listeners[socket.listener].add(socket);
        }
        self.at_rest = self.sockets.are_all_seen();
        for (_, listener) in &mut self.listeners {
            listener.end_sample(self.samples - 1, tick, true);
            if listener.is_near_full() {
                listener.evidence.near_full(attribution);
            }
            self.at_rest &= listener.is_at_rest();
            self.has_closed |= !listener.is_open();
        }
        self.find_active();
        self.name_newcomers(tick.now);
    }

    /// Applies the rows of a dump, and closes the sockets that have none.
    fn see_rows(
        &mut self,
        dump: &Dump<A>,
        tick: Tick,
        attribution: &Attribution,
        tracking: &mut Tracking,
    ) {
        self.sockets.begin_dump();
        let mut omitted = 0;
        for (nth, row) in dump.sockets.iter().enumerate() {
            let is_tracked = self.see(nth, row, tick, tracking);
            omitted += usize::from(!is_tracked);
        }
        tracking.omit(std::mem::replace(&mut self.omitted, omitted), omitted);
        let (listeners, discarded) = (&mut self.listeners, &mut self.discarded);
        self.sockets.end_dump(tick.now, |socket| {
            tracking.remove(listeners[socket.listener].source);
            *discarded += u64::from(socket.queue.length);
            let evidence = &mut listeners[socket.listener].evidence;
            evidence.vanished(attribution, socket.queue.is_brimming());
        });
    }

    fn find_active(&mut self) {
        let listeners = &self.listeners;
        let active = listeners.iter().filter(|(_, one)| !one.is_at_rest()).map(|(key, _)| key);
        self.active.listeners.clear();
        self.active.listeners.extend(active);
        self.active.sockets.clear();
        if !self.active.listeners.is_empty() {
            let is_active = |key: usize| listeners.get(key).is_some_and(|one| !one.is_at_rest());
            self.active.sockets.extend(self.sockets.places(is_active));
        }
    }

    /// Applies a reading of some sockets between two dumps. The sockets that were not read, and
    /// the listeners at rest, stay as they are.
    fn fold_part(
        &mut self,
        dump: &Dump<A>,
        part: &[usize],
        tick: Tick,
        attribution: &Attribution,
        gap: Duration,
    ) {
        self.revision += 1;
        for key in &self.active.listeners {
            if let Some(listener) = self.listeners.get_mut(*key) {
                listener.begin_sample(gap);
            }
        }
        for nth in part {
            self.see_again(*nth, &dump.sockets[*nth], tick.now);
        }
        for place in &self.active.sockets {
            let Some(socket) = self.sockets.get(*place) else { continue };
            if let Some(listener) = self.listeners.get_mut(socket.listener) {
                listener.add(socket);
            }
        }
        for key in &self.active.listeners {
            let Some(listener) = self.listeners.get_mut(*key) else { continue };
            listener.end_sample(self.samples - 1, tick, false);
            self.has_closed |= !listener.is_open();
            if listener.is_near_full() {
                listener.evidence.near_full(attribution);
            }
        }
    }

    /// Applies a row of a known socket; a socket that is not tracked is skipped.
    fn see_again(&mut self, nth: usize, row: &ListenSocket<A>, now: Duration) {
        let Some(listener) = self.sockets.listener_of(nth, row.cookie) else { return };
        let drops = self.sockets.see(nth, row, listener, now);
        if drops > 0 {
            self.listeners[listener].dropped(drops);
        }
        if drops > 0 || row.queue.length > 0 {
            self.at_rest = false;
        }
    }

    /// The inodes of the tracked sockets.
    pub(super) fn inodes(&self) -> impl Iterator<Item = u32> {
        self.sockets.living().map(|socket| socket.inode)
    }

    /// The sum over all queues of the group.
    pub(super) fn queues(&self) -> Queues {
        let (waiting, discarded) = (self.waiting, self.discarded);
        Queues {
            waiting,
            discarded,
            is_baseline: self.sockets.is_baseline(),
            is_partial: self.omitted > 0,
        }
    }

    /// Whether the group has exactly one listener, counting closed listeners that are remembered.
    pub(super) fn is_alone(&self) -> bool {
        self.listeners.len() == 1
    }

    /// Applies the number of connections accepted in the namespace, if the number `is_known`. If
    /// the namespace has only one listener, that listener accepted them.
    pub(super) fn accepted(&mut self, now: Duration, accepted: u64, is_known: bool) {
        let is_alone = is_known && self.is_alone();
        if !is_alone && !std::mem::take(&mut self.was_alone) {
            return;
        }
        self.was_alone = is_alone;
        for (_, listener) in &mut self.listeners {
            self.revision += u64::from(listener.accepted(now, is_alone.then_some(accepted)));
        }
        if is_alone && accepted > 0 {
            self.sockets.prove_all();
        }
    }

    /// Registers the listeners first seen in this dump; they wait for their series.
    pub(super) fn admit(&mut self, admission: &mut Admission, now: Duration) {
        for key in self.newcomers.drain(..) {
            let listener = &mut self.listeners[key];
            let name = &listener.shown.name;
            listener.exposure = admission.enter(&self.scope.name, name);
            listener.name_hash = FxBuildHasher.hash_one((&*self.scope.name, &**name));
            if listener.due_at <= now {
                admission.hurry_newcomer();
            }
        }
    }

    /// Applies the owners that were found. If several members of a reuseport group have an owner,
    /// the owner of the oldest member is used.
    pub(super) fn set_owners(&mut self, owners: &OwnersByInode) {
        let owned = self.sockets.living().filter(|socket| owners.contains_key(&socket.inode));
        let mut oldest: FxHashMap<usize, u64> =
            owned.map(|socket| (socket.listener, socket.born)).collect();
        if oldest.is_empty() {
            return;
        }
        self.revision += 1;
        for socket in self.sockets.living() {
            if let Some(born) = oldest.get_mut(&socket.listener) {
                *born = socket.born.min(*born);
            }
        }
        for socket in self.sockets.living() {
            let Some(owner) = owners.get(&socket.inode) else { continue };
            let is_oldest = oldest.get(&socket.listener) == Some(&socket.born);
            let shown = &mut self.listeners[socket.listener].shown;
            if is_oldest || shown.owner.is_unknown() {
                shown.owner = owner.clone();
            }
        }
    }

    /// Attributes overflows to the listeners.
    pub(super) fn settle(
        &mut self,
        attribution: &mut Attribution,
        reading: Reading,
        repeated_cookies: f64,
        tick: Tick,
        admission: &mut Admission,
    ) {
        if self.at_rest {
            return attribution.settle(reading, &mut []);
        }
        attribution.settle(reading, &mut self.drop_evidence(DropEvidence::is_some));
        self.take_attributed(repeated_cookies, tick, admission);
    }

    /// Attributes the overflows that still wait: the namespace has ended.
    pub(super) fn finish(
        &mut self,
        attribution: &mut Attribution,
        tick: Tick,
        admission: &mut Admission,
    ) {
        attribution.finish(tick.now, &mut self.drop_evidence(|_| true));
        self.take_attributed(0.0, tick, admission);
    }

    fn drop_evidence(&mut self, filter: impl Fn(&DropEvidence) -> bool) -> Vec<&mut DropEvidence> {
        let all = self.listeners.iter_mut().map(|(_, listener)| &mut listener.evidence);
        all.filter(|evidence| filter(evidence)).collect()
    }

    /// Counts what was attributed. `repeated_cookies` is the share of it that repeats a cookie.
    fn take_attributed(&mut self, repeated_cookies: f64, tick: Tick, admission: &mut Admission) {
        for (key, listener) in &mut self.listeners {
            let overflows = listener.take_attributed(repeated_cookies, tick);
            self.attributed += overflows;
            if overflows > 0 && !listener.exposure.is_exposed() {
                self.hidden_overflows.push(key);
                admission.hurry();
            }
        }
    }

    /// Overflows attributed to any listener of the group.
    pub(super) fn attributed(&self) -> u64 {
        self.attributed
    }

    /// Overflows attributed to listeners that do not show them: listeners that never had series,
    /// lost their series, or were forgotten.
    pub(super) fn unexposed_overflows(&self) -> u64 {
        self.attributed - self.shown().filter_map(|listener| listener.overflows).sum::<u64>()
    }

    /// Clears the overflows of listeners that got no series in this sample. Returns their number,
    /// without the overflows of listeners that a filter excludes.
    pub(super) fn hide_overflows(&mut self) -> u64 {
        let mut hidden = 0;
        for key in self.hidden_overflows.drain(..) {
            let Some(listener) = self.listeners.get_mut(key) else { continue };
            if !listener.exposure.is_exposed() {
                let overflows = listener.hide_overflows();
                hidden += if listener.exposure == Exposure::Hidden { overflows } else { 0 };
            }
        }
        hidden
    }

    /// The listeners that are candidates for places.
    pub(super) fn candidates(&self, now: Duration) -> impl Iterator<Item = Candidate<usize>> {
        let admitted = self
            .listeners
            .iter()
            .filter(|(key, one)| one.exposure != Exposure::Excluded && !self.unnamed.contains(key));
        admitted.map(move |(key, listener)| Candidate {
            key,
            exposure: listener.exposure,
            rank: listener.rank(now),
            due_at: listener.due_at,
            source: listener.source,
            name: listener.name_hash,
        })
    }

    /// Whether any listener of the group queued, dropped or overflowed.
    pub(super) fn has_mattered(&self) -> bool {
        self.listeners.iter().any(|(_, listener)| listener.has_mattered())
    }

    /// Gives a listener series.
    pub(super) fn expose(&mut self, key: usize, exposure: Exposure) {
        self.revision += 1;
        self.listeners[key].exposure = exposure;
        if let Err(place) = self.exposed.binary_search(&key) {
            self.exposed.insert(place, key);
        }
    }

    /// Removes the series of a listener.
    pub(super) fn omit(&mut self, key: usize) {
        self.revision += 1;
        let listener = &mut self.listeners[key];
        listener.exposure = Exposure::Hidden;
        listener.hide_overflows();
        if let Ok(place) = self.exposed.binary_search(&key) {
            self.exposed.remove(place);
        }
    }

    /// Removes closed listeners and gone sockets that were remembered for long enough.
    pub(super) fn forget(&mut self, now: Duration, admission: &mut Admission) {
        self.sockets.forget(now);
        if !self.has_closed {
            return;
        }
        let Self {
            listeners, by_address, by_alias, unnamed, exposed, revision, has_closed, ..
        } = self;
        let before = listeners.len();
        *has_closed = false;
        listeners.retain(|key, listener| {
            let forgotten = listener.is_forgotten(now);
            *has_closed |= !forgotten && !listener.is_open();
            if forgotten {
                // This also runs without a dump: an ended namespace has no dumps.
                *revision += 1;
                by_address.remove(&listener.address);
                match unnamed.iter().position(|unnamed| *unnamed == key) {
                    Some(place) => _ = unnamed.swap_remove(place),
                    None => {
                        by_alias.remove(&listener.alias);
                        listener.leave(admission, now);
                    }
                }
            }
            !forgotten
        });
        if listeners.len() < before {
            exposed.retain(|key| listeners.contains(*key));
        }
    }

    /// Releases the place of every listener: the namespace is forgotten, or another namespace takes
    /// its name.
    pub(super) fn leave(&self, admission: &mut Admission, now: Duration) {
        self.listeners.iter().for_each(|(_, listener)| listener.leave(admission, now));
    }

    /// Stops tracking all sockets: the namespace has ended, or another namespace takes its name.
    pub(super) fn untrack(&mut self, tracking: &mut Tracking) {
        tracking.omit(std::mem::take(&mut self.omitted), 0);
        for socket in self.sockets.living() {
            tracking.remove(self.listeners[socket.listener].source);
        }
        self.sockets = Sockets::new(0);
    }

    /// Drops idle sockets of listeners without series, from sources that hold more than their
    /// share, while too many are tracked.
    pub(super) fn trim(&mut self, tracking: &mut Tracking, now: Duration) {
        let listeners = &self.listeners;
        let gives_up = |listener: usize| {
            let listener = &listeners[listener];
            !listener.exposure.is_exposed() && listener.rank(now).level <= Level::Calm
        };
        self.sockets.give_up(|listener| {
            let source = listeners[listener].source;
            let is_given_up =
                tracking.excess() > 0 && tracking.holds_too_much(source) && gives_up(listener);
            if is_given_up {
                tracking.remove(source);
            }
            is_given_up
        });
        self.at_rest = false;
        self.find_active();
    }

    /// Closes every listener: the namespace has ended.
    pub(super) fn close(&mut self, now: Duration, tracking: &mut Tracking) {
        self.untrack(tracking);
        self.sampled_at = None;
        (self.at_rest, self.has_closed) = (false, true);
        self.revision += 1;
        for (_, listener) in &mut self.listeners {
            listener.close(now);
            listener.end();
        }
    }

    /// The time since the last dump, or zero if the gap is too long to be known.
    fn credited(&mut self, interval: Duration, now: Duration) -> Duration {
        let gap = self.sampled_at.replace(now).map_or(Duration::ZERO, |at| now.saturating_sub(at));
        match gap <= interval * CREDITED_INTERVALS {
            true => gap,
            false => Duration::ZERO,
        }
    }

    /// Applies one row. Returns whether its socket is tracked.
    fn see(
        &mut self,
        nth: usize,
        row: &ListenSocket<A>,
        tick: Tick,
        tracking: &mut Tracking,
    ) -> bool {
        let known = self.sockets.listener_of(nth, row.cookie);
        let is_idle = row.queue.length == 0 && row.drops.unwrap_or(0) == 0;
        if known.is_none() && !tracking.admits(self.scope.source(row.origin), is_idle) {
            self.sockets.pass_over_row(nth);
            return false;
        }
        let listener = match known {
            Some(known) if self.listeners[known].address == row.address => known,
            _ => self.listener_at(row, tick),
        };
        if known != Some(listener) {
            tracking.add(self.listeners[listener].source);
            known.into_iter().for_each(|known| tracking.remove(self.listeners[known].source));
        }
        if self.omitted > 0 {
            self.sockets.begin_at(row);
        }
        let drops = self.sockets.see(nth, row, listener, tick.now);
        if drops > 0 {
            self.listeners[listener].dropped(drops);
        }
        self.drops_missing |= row.drops.is_none();
        true
    }

    fn listener_at(&mut self, row: &ListenSocket<A>, tick: Tick) -> usize {
        let (listeners, unnamed) = (&mut self.listeners, &mut self.unnamed);
        let (scope, is_baseline) = (&self.scope, self.sockets.is_baseline());
        *self.by_address.entry(row.address).or_insert_with(|| {
            let due_at = if is_baseline { tick.now } else { tick.now + PROBATION };
            let source = scope.source(row.origin);
            let key = listeners.insert(Listener::new(row.address, source, due_at, tick));
            unnamed.push(key);
            key
        })
    }
}
