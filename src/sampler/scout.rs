//! The scout thread, off the sampling path. Every `--discovery.interval` it looks for namespaces
//! and checks whether known owners still run. On request it searches the owners of sockets.
//!
//! Each of these tasks never uses more than 1/100 of a core, except the first look: it may use as
//! much as it needs for [`FIRST_LOOK`]. It enters the other namespaces later, within that share.
//! Namespaces of users other than root are also entered no faster than the sampler can read them
//! for the first time.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

use crate::kernel::diag_modules::ModuleWatch;
use crate::snapshot::{NetnsId, Origin};

use super::background::Background;
use super::discovery::{Discovered, Discovery};
use super::waiting::Which;
use super::{Config, thread_cpu};
use crate::owner::lookup::{OwnerLookup, OwnerSearch};

/// Pause after a search, as a multiple of the CPU time of the search.
const REST: u32 = 99;
/// Delay before a search. Sockets appear in groups: a search waits for the rest of its group.
const GATHER: Duration = Duration::from_millis(200);

/// Maximum gap between two looks, whatever they cost: an ended namespace must be released within 10
/// s.
const LONGEST_GAP: Duration = Duration::from_secs(9);

/// Time from the start during which the scout enters namespaces without a pause. The first sample
/// waits for the first look during this time at most.
pub const FIRST_LOOK: Duration = Duration::from_secs(1);
/// CPU time for which namespaces are entered at a time.
const ENTER_AT_ONCE: Duration = Duration::from_millis(5);
/// Share of a core that entering namespaces may always use, whatever other background tasks need.
const ENTER_SHARE: f64 = 0.002_5;
/// Share of a core that first readings of the namespaces of users may use.
const FIRST_SHARE: f64 = 0.005;
/// Assumed CPU time of a first reading: it is a whole dump, which the sampler makes at once.
const FIRST_READING: Duration = Duration::from_millis(1);
/// Share of a core that the search for owners of new sockets may always use, and the share of deep
/// searches.
const SEARCH_SHARE: f64 = 0.003;
const DEEP_SHARE: f64 = 0.002;

/// Returns the gap after a look that cost `cpu`: at least `interval`, and long enough that looks
/// use 1/100 of a core.
fn look_gap(interval: Duration, cpu: Duration) -> Duration {
    interval.max((cpu * REST).min(LONGEST_GAP))
}

/// A result of the scout.
pub enum ScoutEvent {
    /// Namespaces that appeared and ended.
    Namespaces(Discovered),
    /// Owners of sockets.
    Owners(OwnerSearch),
    /// Inodes of sockets whose owner has ended.
    Orphans(Vec<u32>),
}

/// A request to the scout.
enum Request {
    /// Find the owners of these sockets.
    Owners(Vec<Origin>),
    /// Drop all sockets except those with these inodes.
    KeepOnly(FxHashSet<u32>),
}

/// Handle of a running scout. Dropping the handle ends its thread.
pub struct Scouting {
    events: Receiver<ScoutEvent>,
    requests: Sender<Request>,
}

/// Work of the scout. Without a discovery the scout searches only owners.
pub struct Work {
    pub discovery: Option<Discovery>,
    /// Interval between looks for namespaces, and for missing kernel modules.
    pub interval: Duration,
    pub owners: OwnerLookup,
    /// Looks for missing kernel modules.
    pub modules: ModuleWatch,
    pub background: Arc<Background>,
    /// Start of the sampler's clock.
    pub epoch: Instant,
}

/// The state of the scout thread.
struct Scout {
    work: Work,
    wanted: Vec<Origin>,
    look_due: Instant,
    enter_due: Instant,
    /// End of the time for the first look.
    started: Instant,
    search_due: Instant,
    /// Sockets that only a deep search can find.
    deep: Vec<Origin>,
    deep_due: Instant,
}

// === impl Work ===

impl Work {
    /// Creates the work of a sampler whose own namespace is `own`, if that is known.
    pub fn new(config: &Config, own: Option<NetnsId>) -> Self {
        let Config { procfs, rootfs, .. } = config;
        let own = own.filter(|_| config.all_namespaces);
        Self {
            discovery: own.map(|own| Discovery::new(procfs, rootfs, own)),
            interval: config.discovery_interval,
            owners: OwnerLookup::new(procfs, rootfs),
            modules: ModuleWatch::new(procfs),
            background: Arc::default(),
            epoch: Instant::now(),
        }
    }
}

// === impl Scouting ===

impl Scouting {
    /// Starts a scout.
    pub fn start(work: Work) -> io::Result<Self> {
        let (requests, asked) = channel();
        let (sender, events) = channel();
        let now = Instant::now();
        let mut scout = Scout {
            look_due: now,
            enter_due: now,
            started: now + FIRST_LOOK,
            work,
            wanted: Vec::new(),
            search_due: now,
            deep: Vec::new(),
            deep_due: now,
        };
        let run = move || scout.run(&asked, &sender);
        thread::Builder::new().name("scout".into()).spawn(run)?;
        Ok(Self { events, requests })
    }

    /// Requests the owners of sockets.
    pub fn ask(&self, wanted: Vec<Origin>) {
        // If the thread has ended, owners stay unknown. The log already reported the end of the
        // thread.
        let _ = self.requests.send(Request::Owners(wanted));
    }

    /// Makes the scout drop all sockets except those with these inodes.
    pub fn keep_only(&self, inodes: FxHashSet<u32>) {
        let _ = self.requests.send(Request::KeepOnly(inodes));
    }

    /// Returns the next result, and waits for it until `end`.
    pub fn event_until(&self, end: Instant) -> Option<ScoutEvent> {
        self.events.recv_timeout(end.saturating_duration_since(Instant::now())).ok()
    }

    /// Returns the results since the last call, without blocking.
    pub fn events(&self) -> impl Iterator<Item = ScoutEvent> {
        self.events.try_iter()
    }
}

// === impl Scout ===

impl Scout {
    /// Runs until the request or result channel is closed.
    fn run(&mut self, asked: &Receiver<Request>, events: &Sender<ScoutEvent>) {
        loop {
            match asked.recv_timeout(self.rest()) {
                Ok(Request::Owners(wanted)) => self.request_owners(wanted),
                Ok(Request::KeepOnly(inodes)) => self.keep_only(inodes),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let [namespaces, orphans] = self.look();
            let namespaces = namespaces.or_else(|| self.enter());
            let owners = self.search().or_else(|| self.search_deep());
            let found = [namespaces, orphans, owners.map(ScoutEvent::Owners)];
            if found.into_iter().flatten().any(|event| events.send(event).is_err()) {
                return;
            }
        }
    }

    fn request_owners(&mut self, wanted: Vec<Origin>) {
        if self.wanted.is_empty() {
            self.search_due = self.search_due.max(Instant::now() + GATHER);
        }
        self.wanted.extend(wanted);
    }

    /// Drops all other sockets. Each socket that is kept is searched once, however often it was
    /// requested.
    fn keep_only(&mut self, mut inodes: FxHashSet<u32>) {
        self.work.owners.keep_only(&inodes);
        self.deep.retain(|origin| inodes.contains(&origin.inode));
        self.wanted.retain(|origin| inodes.remove(&origin.inode));
        self.wanted.shrink_to(2 * self.wanted.len());
    }

    fn rest(&self) -> Duration {
        let due_if = |wanted: &[Origin], due| if wanted.is_empty() { self.look_due } else { due };
        let search_due = due_if(&self.wanted, self.search_due);
        let deep_due = due_if(&self.deep, self.deep_due);
        let due = self.look_due.min(self.next_entry()).min(search_due).min(deep_due);
        due.saturating_duration_since(Instant::now())
    }

    fn look(&mut self) -> [Option<ScoutEvent>; 2] {
        let now = Instant::now();
        if now < self.look_due {
            return [None, None];
        }
        let (begin, which) = (thread_cpu(), self.which(now));
        self.work.modules.look(now);
        let Work { discovery, owners, .. } = &mut self.work;
        let look = |discovery: &mut Discovery| discovery.look(owners, which, ENTER_AT_ONCE);
        let news = discovery.as_mut().map(look);
        let orphans = owners.orphans();
        let orphans = (!orphans.is_empty()).then_some(ScoutEvent::Orphans(orphans));
        let cpu = thread_cpu().saturating_sub(begin) + self.cpu_inside();
        let delay = self.spend(cpu).min(LONGEST_GAP);
        self.look_due = now + look_gap(self.work.interval, cpu).max(delay);
        [news.map(ScoutEvent::Namespaces), orphans]
    }

    /// Enters some of the namespaces that the last look left.
    fn enter(&mut self) -> Option<ScoutEvent> {
        let now = Instant::now();
        let which = self.which(now);
        if now < self.enter_due || !self.can_enter(which) {
            return None;
        }
        let begin = thread_cpu();
        let Work { discovery, owners, .. } = &mut self.work;
        let news = discovery.as_mut()?.enter_more(owners, which, ENTER_AT_ONCE);
        let cpu = thread_cpu().saturating_sub(begin) + self.cpu_inside();
        if which == Which::Later {
            let delay = self.work.background.spend_of(ENTER_SHARE, self.work.epoch.elapsed(), cpu);
            // First readings of the namespaces of a user are spread in the same way.
            let of_users = news.born.iter().filter(|born| born.made_by.is_some()).count();
            let read = (FIRST_READING * of_users as u32).div_f64(FIRST_SHARE);
            self.enter_due = now + (cpu * REST).max(delay).max(read);
        }
        Some(ScoutEvent::Namespaces(news))
    }

    /// Returns which namespaces may be entered at `now`.
    fn which(&self, now: Instant) -> Which {
        if now < self.started { Which::AtStart } else { Which::Later }
    }

    /// Returns when the next namespaces may be entered, at most the time of the next look.
    fn next_entry(&self) -> Instant {
        let now = Instant::now();
        match self.which(now) {
            which if self.can_enter(which) => self.enter_due,
            Which::AtStart => self.started,
            _ => self.look_due,
        }
    }

    fn can_enter(&self, which: Which) -> bool {
        self.work.discovery.as_ref().is_some_and(|discovery| discovery.can_enter(which))
    }

    /// Returns the CPU time that threads inside namespaces have used since the last call.
    fn cpu_inside(&mut self) -> Duration {
        self.work.discovery.as_mut().map(Discovery::take_cpu).unwrap_or_default()
    }

    fn search(&mut self) -> Option<OwnerSearch> {
        if self.wanted.is_empty() || Instant::now() < self.search_due {
            return None;
        }
        // The CPU time of other processes on a busy machine is not a cost of this thread.
        let begin = thread_cpu();
        let mut search = self.work.owners.search(&std::mem::take(&mut self.wanted), false);
        let cpu = thread_cpu().saturating_sub(begin);
        let delay = self.work.background.spend_of(SEARCH_SHARE, self.work.epoch.elapsed(), cpu);
        self.search_due = Instant::now() + (cpu * REST).max(delay);
        self.deep.append(&mut search.deep);
        self.deep_due = self.deep_due.max(Instant::now() + GATHER);
        Some(search)
    }

    /// Searches all descriptors of every process for the sockets whose holder is still unknown. A
    /// deep search may take long, and does not delay other searches.
    fn search_deep(&mut self) -> Option<OwnerSearch> {
        if self.deep.is_empty() || Instant::now() < self.deep_due {
            return None;
        }
        let begin = thread_cpu();
        let search = self.work.owners.search(&std::mem::take(&mut self.deep), true);
        let cpu = thread_cpu().saturating_sub(begin);
        let delay = self.work.background.spend_of(DEEP_SHARE, self.work.epoch.elapsed(), cpu);
        self.deep_due = Instant::now() + (cpu * REST).max(delay);
        Some(search)
    }

    fn spend(&self, cpu: Duration) -> Duration {
        self.work.background.spend(self.work.epoch.elapsed(), cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costly_looks_come_less_often_but_before_a_namespace_is_kept_too_long() {
        let millis = Duration::from_millis;
        let gap = |interval, cpu| look_gap(millis(interval), millis(cpu)).as_millis();
        assert_eq!([gap(5_000, 5), gap(5_000, 50), gap(5_000, 70)], [5_000, 5_000, 6_930]);
        assert_eq!([gap(5_000, 220), gap(30_000, 220), gap(1_000, 0)], [9_000, 30_000, 1_000]);
    }
}
