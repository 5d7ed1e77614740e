//! Runs the sampling loop: on a separate thread and timer, it reads a snapshot, folds the snapshot
//! into the state and publishes the result. Only this thread samples the kernel.

pub mod background;
pub mod cause_watch;
pub mod discovery;
pub mod dumps;
pub mod features;
pub mod health;
pub mod incidents;
pub mod logged;
pub mod netns;
pub mod omissions;
pub mod owner_requests;
pub mod plan;
pub mod scanning;
pub mod schedule;
pub mod scout;
pub mod stretch;
pub mod turns;
pub mod waiting;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustc_hash::FxHashSet;

use crate::kernel::listen::Scratch;
use crate::kernel::namespaces;
use crate::kernel::own_process::{OwnProcess, thread_cpu};
use crate::kernel::procfs_file::ReadError;
use crate::log;
use crate::self_stats::{Feature, Reloaded, SelfStats, Source};
use crate::snapshot::owner::user_of;
use crate::snapshot::scan::Scan;
use crate::snapshot::{NetnsId, NetnsSample, OWN_NETNS, Snapshot};
use crate::state::{self, State};

use crate::owner::lookup::OwnerSearch;
use crate::view::publish::{Publisher, Reader};
use background::Background;
use cause_watch::CauseWatch;
use discovery::{Discovered, Newcomer};
use features::NetnsFeatures;
use health::Health;
use incidents::IncidentLog;
use netns::{NetnsReader, SampleTime};
use omissions::OmissionLog;
use owner_requests::{OwnerRequests, origins};
use scanning::{ScanSlot, Scanning};
use schedule::Schedule;
use scout::{FIRST_LOOK, ScoutEvent, Scouting, Work};
use stretch::StretchLog;
use turns::{Turn, Turns};
use waiting::Which;

/// Interval between reads of the `process_*` metrics.
const PROCESS_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum time that one sample spends on namespaces that take turns.
const LONG_SAMPLE: Duration = Duration::from_millis(4);

/// Configuration of the sampler.
#[derive(Clone, Debug)]
pub struct Config {
    /// Mount point of procfs.
    pub procfs: PathBuf,
    /// Root of the machine's file system, which contains the mounts of namespaces.
    pub rootfs: PathBuf,
    /// Whether to sample every network namespace, or only the own namespace.
    pub all_namespaces: bool,
    /// Mean gap between samples.
    pub interval: Duration,
    /// Interval between looks for new namespaces.
    pub discovery_interval: Duration,
    /// Share of a core that samples may use before the interval is stretched.
    pub cpu_budget: f64,
    /// Gap between connection scans.
    pub scan_interval: Duration,
    /// Configuration of the state.
    pub state: state::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            procfs: "/proc".into(),
            rootfs: "/".into(),
            all_namespaces: true,
            interval: Duration::from_millis(100),
            discovery_interval: Duration::from_secs(5),
            cpu_budget: 0.02,
            scan_interval: Duration::from_secs(5),
            state: state::Config::default(),
        }
    }
}

/// The readers, the state and the publisher, owned by one thread.
pub struct Sampler {
    /// Readers of the snapshot's namespaces, in the same order; the own namespace is first.
    readers: Vec<NetnsReader>,
    /// Reading times of the namespaces, in the same order.
    turns: Vec<Turn>,
    all_turns: Turns,
    /// Position of the namespace with which the next sample begins.
    first_turn: usize,
    /// Cost of all namespaces except the own namespace in this sample.
    others_cost: Duration,
    snapshot: Snapshot,
    work: Option<Work>,
    scouting: Option<Scouting>,
    background: Arc<Background>,
    scan_interval: Duration,
    scanning: Option<Scanning>,
    asked: OwnerRequests,
    /// Paths of procfs and of the root of the machine.
    roots: [PathBuf; 2],
    causes: Option<CauseWatch>,
    /// Whether cgroup v2 is mounted.
    has_cgroups: bool,
    health: Health,
    process: OwnProcess,
    process_at: Option<Duration>,
    web_config: Option<Reloaded>,
    state: State,
    stats: SelfStats,
    publisher: Publisher,
    schedule: Schedule,
    sockets_moved: bool,
    stretches: StretchLog,
    incidents: IncidentLog,
    omissions: OmissionLog,
    scratch: Scratch,
    epoch: Instant,
    last: Option<Duration>,
    /// CPU time of this thread at the end of the last sample. The cost of a wake-up is included.
    cpu: Duration,
}

// === impl Sampler ===

impl Sampler {
    /// Opens the files that every sample reads.
    pub fn new(config: &Config) -> Result<Self, ReadError> {
        let reader = NetnsReader::open_own(&config.procfs)?;
        // Without an inode the own namespace still works, but cannot be distinguished from others.
        let id = namespaces::own(&config.procfs).ok();
        let work = Work::new(config, id);
        let own_sample = NetnsSample::new(id.unwrap_or(NetnsId(0)), OWN_NETNS.into(), false);
        Ok(Self {
            readers: vec![reader],
            turns: vec![Turn::new(0)],
            all_turns: Turns::default(),
            first_turn: 0,
            others_cost: Duration::ZERO,
            snapshot: Snapshot { namespaces: vec![own_sample], ..Snapshot::default() },
            scouting: None,
            background: work.background.clone(),
            scan_interval: config.scan_interval,
            scanning: None,
            asked: OwnerRequests::default(),
            roots: [config.procfs.clone(), config.rootfs.clone()],
            causes: None,
            has_cgroups: work.owners.has_cgroups(),
            health: Health::default(),
            process: OwnProcess::new(&config.procfs),
            process_at: None,
            web_config: None,
            state: State::new(config.state.clone()),
            stats: first_stats(config.interval, work.discovery.is_some()),
            publisher: Publisher::default(),
            schedule: Schedule::new(config.interval, config.cpu_budget, fastrand::u64(..)),
            sockets_moved: false,
            stretches: StretchLog::default(),
            incidents: IncidentLog::default(),
            omissions: OmissionLog::default(),
            scratch: Scratch::default(),
            epoch: work.epoch,
            last: None,
            cpu: Duration::ZERO,
            work: Some(work),
        })
    }

    /// Finds and enters all namespaces, however long that takes.
    pub fn find_namespaces(&mut self) {
        let Some(Work { discovery: Some(discovery), owners, .. }) = &mut self.work else { return };
        let news = discovery.look(owners, Which::All, Duration::MAX);
        self.apply_namespaces(news);
    }

    /// Takes one sample, finds the owners and waiting connections at once, and publishes the
    /// result: for commands that take only one sample.
    pub fn sample_all(&mut self) {
        self.find_namespaces();
        self.sample();
        self.scan_queues();
        let now = self.epoch.elapsed();
        let wanted = self.asked.wanted(&self.snapshot, now);
        if let Some(search) = self.work.as_mut().map(|work| work.owners.search(&wanted, true)) {
            self.apply_owners(search);
        }
        self.sample();
    }

    /// Publishes the results of web configuration reloads from now on.
    pub fn set_web_config(&mut self, reloaded: Reloaded) {
        self.web_config = Some(reloaded);
    }

    /// Returns a reader of the published data.
    pub fn reader(&self) -> Reader {
        self.publisher.reader()
    }

    /// Takes one sample and publishes it.
    pub fn sample(&mut self) {
        let start = self.epoch.elapsed();
        self.read(start);
        let elapsed =
            self.last.replace(start).map_or(Duration::ZERO, |last| start.saturating_sub(last));
        self.state.fold(&self.snapshot, elapsed);
        self.snapshot.owners.clear();
        self.snapshot.owner_readings.clear();
        self.snapshot.namespaces.iter_mut().for_each(|netns| netns.scan = None);
        self.log_incidents(start);
        self.count_omitted(start);
        let end = self.epoch.elapsed();
        self.stats.samples += 1;
        self.stats.durations.observe(end - start);
        self.read_process(start);
        self.stats.web_config_reloaded = self.web_config.as_ref().map(Reloaded::get);
        self.publish();
        let end = self.epoch.elapsed();
        let cpu = thread_cpu();
        let used = cpu.saturating_sub(std::mem::replace(&mut self.cpu, cpu));
        let costs = [used.saturating_sub(self.others_cost), self.others_cost];
        let dump = self.readers[0].dump_outcome();
        self.stats.missed += self.schedule.sampled(start, end, costs, dump);
        self.stats.interval = self.schedule.achieved();
        self.schedule.balance(&self.background, end);
        self.stretches.say(&self.schedule, self.stats.target_interval, end);
    }

    /// Samples on the timer until `stop` receives a message or is disconnected. This timer wakes up
    /// once per sample; the timer of an asynchronous runtime wakes up twice.
    pub fn run(mut self, stop: &Receiver<()>) {
        self.start_scouting();
        self.await_namespaces();
        self.start_scanning();
        self.start_cause_watch();
        loop {
            let wait = self.schedule.due().saturating_sub(self.epoch.elapsed());
            let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(wait) else { return };
            self.apply_scout_events();
            self.apply_scans();
            self.request_scans();
            self.apply_owner_readings();
            self.sample();
            self.request_owners();
            self.request_owner_readings();
        }
    }

    /// Scans every namespace with a queue on this thread.
    fn scan_queues(&mut self) {
        let (stats, health, now) = (&mut self.stats, &mut self.health, self.epoch.elapsed());
        for (reader, sample) in self.readers.iter_mut().zip(&mut self.snapshot.namespaces) {
            let place = reader.scans().filter(|place| place.holds_a_queue());
            if let Some(reader) = place.and_then(ScanSlot::reader) {
                let scan = reader.scan(&mut self.scratch.datagram);
                sample.scan = health.check(stats, Source::Scan, now, scan);
            }
        }
    }

    /// Applies the result of a finished scan.
    fn apply_scans(&mut self) {
        let now = self.epoch.elapsed();
        let Some(report) = self.scanning.as_mut().and_then(|scanning| scanning.report(now)) else {
            return;
        };
        let age = report.age();
        self.stats.scans.observe(report.took);
        self.stats.scan_rows += report.rows;
        let works = !report.result.as_ref().is_err_and(|error| error.means_unavailable());
        let scan = self.health.check(&mut self.stats, Source::Scan, now, report.result);
        let mut known = self.readers.iter_mut().zip(&mut self.snapshot.namespaces);
        // If the namespace ended in the meantime, this drops the reader and releases the namespace.
        if let Some((reader, sample)) = known.find(|(_, sample)| sample.id == report.id) {
            reader.set_scan(works);
            if let Some(place) = reader.scans() {
                place.give_back(report.reader, now);
            }
            sample.scan = scan.map(|scan| Scan { age, ..scan });
        }
    }

    /// Passes the next namespace to the scanner.
    fn request_scans(&mut self) {
        let Some(scanning) = &mut self.scanning else { return };
        let places = self.readers.iter_mut().zip(&self.snapshot.namespaces);
        let places = places.filter_map(|(reader, sample)| Some((sample.id, reader.scans()?)));
        scanning.give(self.epoch.elapsed(), places);
    }

    fn start_scouting(&mut self) {
        if let Some(work) = self.work.take() {
            let now = self.epoch.elapsed();
            let scouting = Scouting::start(work);
            self.scouting = self.health.check(&mut self.stats, Source::Namespaces, now, scouting);
        }
    }

    /// Waits until all namespaces that the first look finds are entered, for at most
    /// [`FIRST_LOOK`]: the first sample must not be delayed by a very large number of namespaces.
    fn await_namespaces(&mut self) {
        let end = Instant::now() + FIRST_LOOK;
        while self.stats.waiting_namespaces.is_none_or(|waiting| waiting > 0)
            && let Some(event) = self.scouting.as_ref().and_then(|scout| scout.event_until(end))
        {
            let has_failed =
                matches!(&event, ScoutEvent::Namespaces(news) if news.failure.is_some());
            self.apply_scout_event(event);
            if has_failed {
                break;
            }
        }
        if let Some(waiting @ 1..) = self.stats.waiting_namespaces {
            tracing::info!(
                waiting,
                "very many network namespaces: sampling begins before all are entered"
            );
        }
    }

    fn start_scanning(&mut self) {
        let (now, scanning) =
            (self.epoch.elapsed(), Scanning::start(self.scan_interval, self.background.clone()));
        self.scanning = self.health.check(&mut self.stats, Source::Scan, now, scanning);
    }

    fn start_cause_watch(&mut self) {
        let [procfs, rootfs] = self.roots.clone();
        let (now, started) =
            (self.epoch.elapsed(), CauseWatch::start(procfs, rootfs, self.background.clone()));
        self.causes = self.health.check(&mut self.stats, Source::Owners, now, started);
    }

    /// Applies the readings of owners of listeners in trouble.
    fn apply_owner_readings(&mut self) {
        let now = self.epoch.elapsed();
        if let Some(causes) = &mut self.causes {
            self.snapshot.owner_readings = causes.readings(now);
        }
    }

    /// Requests readings of the owners of listeners in trouble.
    fn request_owner_readings(&mut self) {
        let now = self.epoch.elapsed();
        if let Some(causes) = self.causes.as_mut().filter(|causes| causes.is_due(now)) {
            causes.ask(now, self.state.watched());
        }
    }

    fn apply_scout_events(&mut self) {
        let events: Vec<ScoutEvent> = self.scouting.iter().flat_map(Scouting::events).collect();
        events.into_iter().for_each(|event| self.apply_scout_event(event));
    }

    fn apply_scout_event(&mut self, event: ScoutEvent) {
        match event {
            ScoutEvent::Namespaces(news) => self.apply_namespaces(news),
            ScoutEvent::Owners(search) => self.apply_owners(search),
            ScoutEvent::Orphans(inodes) => self.asked.forget(&inodes),
        }
    }

    /// Requests the owners of sockets that appeared in this sample.
    fn request_owners(&mut self) {
        let now = self.epoch.elapsed();
        if !self.sockets_moved && !self.asked.is_due(now) {
            return;
        }
        let mut wanted = self.asked.wanted(&self.snapshot, now);
        if self.stats.omissions.sockets > 0 && !wanted.is_empty() {
            // Owners of sockets that are not tracked are never shown.
            let tracked: FxHashSet<u32> = self.state.inodes().collect();
            wanted.retain(|origin| tracked.contains(&origin.inode));
        }
        // The snapshot lacks namespaces that were not read, and the state lacks namespaces that are
        // not tracked.
        let in_snapshot = origins(&self.snapshot).map(|origin| origin.inode);
        let living = || self.state.inodes().chain(in_snapshot).collect();
        let living = self.asked.keep_only_living(living);
        let Some(scouting) = &self.scouting else { return };
        living.into_iter().for_each(|living| scouting.keep_only(living));
        if !wanted.is_empty() {
            scouting.ask(wanted);
        }
    }

    /// Applies the owners that were found.
    fn apply_owners(&mut self, search: OwnerSearch) {
        features::note(&mut self.stats, Feature::Owners, search.sees_holders);
        if let Some(has_kubelet) = search.has_kubelet {
            features::note(&mut self.stats, Feature::Kubelet, has_kubelet);
        }
        let searched = search.failure.map_or(Ok(()), Err);
        let now = self.epoch.elapsed();
        self.health.check(&mut self.stats, Source::Owners, now, searched);
        self.snapshot.owners.extend(search.owners);
    }

    /// Adds new namespaces and releases ended namespaces: listenq must no longer hold an ended
    /// namespace.
    fn apply_namespaces(&mut self, news: Discovered) {
        let now = self.epoch.elapsed();
        if news.failure.is_none() {
            self.stats.inaccessible_namespaces = Some(news.inaccessible);
            self.stats.waiting_namespaces = Some(news.waiting);
        }
        let looked = news.failure.map_or(Ok(()), Err);
        self.health.check(&mut self.stats, Source::Namespaces, now, looked);
        news.ended.into_iter().for_each(|id| self.release(id));
        for (id, owner) in news.owners {
            let known = self.snapshot.namespaces.iter_mut().find(|netns| netns.id == id);
            if let Some(netns) = known {
                netns.owner = owner;
            }
        }
        news.born.into_iter().for_each(|born| self.add(born));
        self.all_turns.forget();
        self.stats.sampled_namespaces = self.readers.len();
        if let Some(is_available) = news.is_available {
            features::note(&mut self.stats, Feature::Namespaces, is_available);
        }
    }

    fn release(&mut self, ended: NetnsId) {
        let namespaces = &mut self.snapshot.namespaces;
        let Some(place) = namespaces.iter().position(|netns| netns.id == ended) else { return };
        self.readers.swap_remove(place);
        self.turns.swap_remove(place);
        let ended = namespaces.swap_remove(place);
        tracing::debug!(netns = %ended.name, "a namespace ended");
    }

    fn add(&mut self, born: Newcomer) {
        tracing::debug!(netns = %born.name, "sampling a namespace");
        self.readers.push(born.reader);
        let maker = born.made_by.map_or(0, user_of);
        self.turns.push(Turn::among(&self.turns, maker));
        let sample = NetnsSample::new(born.id, born.name, born.is_newborn);
        self.snapshot.namespaces.push(NetnsSample {
            owner: born.owner,
            made_by: born.made_by,
            ..sample
        });
    }

    fn read(&mut self, now: Duration) {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.snapshot.unix_time = since_1970.as_secs_f64();
        self.stats.sampled_namespaces = self.readers.len();
        self.sockets_moved = false;
        let tick = SampleTime {
            now,
            interval: self.schedule.interval(),
            dump_interval: self.schedule.dump_interval(),
            dumps: self.schedule.dumps(now),
            unix_share: self.schedule.unix_share(1),
        };
        self.read_one(0, tick);
        self.read_others(tick);
        self.note_features();
    }

    /// Reads the namespaces that are due. Once this sample has become long, namespaces that take
    /// turns wait for the next sample.
    fn read_others(&mut self, tick: SampleTime) {
        let (interval, budget) = (tick.interval, self.schedule.others_budget());
        let others = self.turns.iter_mut().skip(1);
        self.all_turns.divide(tick.now, interval, budget, others);
        let others = self.readers.len() - 1;
        let unix_share = self.schedule.unix_share(others);
        let (begin, first) = (thread_cpu(), self.first_turn);
        self.others_cost = Duration::ZERO;
        for nth in 0..others {
            let place = 1 + (first + nth) % others;
            let turn = &self.turns[place];
            let takes_turns = turn.interval().is_some();
            if !turn.is_due(tick.now) || takes_turns && self.others_cost >= LONG_SAMPLE {
                self.readers[place].pass_over(&mut self.snapshot.namespaces[place]);
                continue;
            }
            let interval = turn.interval().unwrap_or_default().max(interval);
            let (dumps, dump_interval) = (turn.dumps(tick.now), turn.dump_interval());
            let now = tick.now;
            self.read_one(place, SampleTime { now, interval, dump_interval, dumps, unix_share });
            let cost = thread_cpu().saturating_sub(begin);
            let (dump, unix) =
                (self.readers[place].dump_outcome(), self.readers[place].unix_cost());
            self.turns[place].read(now, cost.saturating_sub(self.others_cost), unix, dump);
            self.others_cost = cost;
            if takes_turns {
                self.first_turn = place % others;
            }
        }
    }

    fn read_one(&mut self, place: usize, tick: SampleTime) {
        let (reader, sample) = (&mut self.readers[place], &mut self.snapshot.namespaces[place]);
        self.sockets_moved |= reader.read(tick, sample, &mut self.stats, &mut self.scratch);
    }

    /// Records which features work. The cgroup of a socket is known if the hierarchy is mounted and
    /// the kernel sends the attribute.
    fn note_features(&mut self) {
        let mut mounted = NetnsFeatures::default();
        mounted.set(Feature::Cgroup, self.has_cgroups);
        let of_namespaces = self.readers.iter().map(NetnsReader::features);
        features::note_all(&mut self.stats, std::iter::once(mounted).chain(of_namespaces));
    }

    fn log_incidents(&mut self, now: Duration) {
        for incident in self.state.take_incidents() {
            self.incidents.say(&incident, now);
        }
        self.incidents.sum_up(now);
    }

    fn count_omitted(&mut self, now: Duration) {
        let omissions = self.state.omissions();
        self.omissions.say(&omissions, now);
        self.stats.omissions = omissions;
        self.stats.dropped_log_lines = log::dropped_lines();
    }

    fn read_process(&mut self, now: Duration) {
        if self.process_at.is_none_or(|at| now.saturating_sub(at) >= PROCESS_INTERVAL) {
            self.process_at = Some(now);
            self.stats.process = self.process.read(&mut self.scratch.text);
        }
    }

    fn publish(&mut self) {
        let (state, own) = (&self.state, &self.stats);
        self.publisher.publish(|view| state.show(own, view));
    }
}

/// Returns the statistics before the first sample. Without discovery, listenq samples no other
/// namespace, so none is inaccessible or waits.
fn first_stats(target_interval: Duration, discovers: bool) -> SelfStats {
    let others = (!discovers).then_some(0);
    SelfStats {
        target_interval,
        inaccessible_namespaces: others,
        waiting_namespaces: others,
        ..SelfStats::default()
    }
}
