//! The whole fold with any sequence of snapshots that a kernel could produce: two namespaces that come, end, return and are
//! replaced; sockets that come and go, move, drop and wrap; readings that fail; gaps; scans; a cap on series. Every view
//! keeps the laws, and the last one can be written down.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use listenq::exposition;
use listenq::report::Report;
use listenq::self_stats::SelfStats;
use listenq::snapshot::owner::Owner;
use listenq::snapshot::scan::{HalfOpen, Local, Scan, ScannedSocket, TcpScan, UnixQueue, Waiting};
use listenq::snapshot::{
    AcceptQueue, Cookie, Counter, Counters, Dump, ListenAddress, ListenSocket, NetnsId,
    NetnsSample, Origin, Setting, Settings, Snapshot, UnixAddress,
};
use listenq::state::{Config, GRACE, State};
use listenq::view::{ListenerName, ListenerView, NetnsView, View};

const INTERVAL: Duration = Duration::from_millis(100);
/// The largest number of ticks. Longer stories find nothing new.
const MOST_TICKS: usize = 150;
const SOCKETS: usize = 8;
/// Law 11.
const MOST_CREDITED: u32 = 10;
/// The number of samples that an overflow waits for its listener.
const BEHIND: usize = 4;

#[derive(Arbitrary, Debug)]
struct Story {
    max: u8,
    peak_window: u8,
    /// Namespaces whose source reports neither limits nor drops (`/proc/net/tcp`).
    bare: [bool; 2],
    ticks: Vec<Tick>,
}

#[derive(Arbitrary, Debug)]
struct Tick {
    gap: Gap,
    spaces: [Option<Reading>; 2],
    owner: Option<(u8, u8)>,
}

#[derive(Arbitrary, Debug)]
enum Gap {
    Interval,
    Jittered(u8),
    Seconds(u8),
    Grace,
}

/// What one tick reads of one namespace; `None` means that no process holds the namespace.
#[derive(Arbitrary, Debug)]
struct Reading {
    becomes_another: bool,
    is_newborn: bool,
    tcp: Option<Vec<Row>>,
    unix: Option<Vec<(u8, u8)>>,
    /// How much the overflows grew, if they were read.
    overflows: Option<u8>,
    somaxconn: Option<u16>,
    scan: Option<Vec<(u8, u8, u8)>>,
    says_changed: bool,
}

#[derive(Arbitrary, Debug)]
struct Row {
    socket: u8,
    length: u8,
    drops: u8,
    moved: bool,
}

/// One namespace as the kernel has it, and what was read of it.
#[derive(Default)]
struct Space {
    /// Which life this is: a new one may begin with smaller counters.
    life: u64,
    id: u64,
    is_bare: bool,
    is_there: bool,
    is_newborn: bool,
    /// Whether the first reading may as well be of the life before it, under the same number: then it is a baseline.
    may_be_back: bool,
    drops: [u32; SOCKETS],
    overflows: u64,
    last: Vec<ListenSocket>,
    /// What the overflows were when they were read. The first is the baseline: that of a newborn is nothing.
    read: Vec<u64>,
}

/// What an ended life of a namespace leaves.
enum History {
    /// There was none, or it was seen to be another's.
    None,
    /// Its counters were never read.
    Unread,
    /// All of them were 0.
    Empty,
    /// Its overflows.
    Counted(u64),
}

/// What must not fall while a series lives: drops, overflows, connection and full seconds.
type Totals = (Option<u64>, Option<u64>, f64, Option<f64>);

/// The counters of a namespace's listeners, and which life they belong to.
type Shown = (u64, f64, BTreeMap<ListenerName, Totals>);

/// Bytes as a story.
pub fn run(bytes: &[u8]) {
    let Ok(story) = Story::arbitrary(&mut Unstructured::new(bytes)) else { return };
    let max_listeners = usize::from(story.max % 12) + 1;
    let peak_window = Duration::from_secs(u64::from(story.peak_window) + 1);
    let mut state = State::new(Config { max_listeners, peak_window, ..Config::default() });
    let mut spaces = story.bare.map(|is_bare| Space { is_bare, ..Space::default() });
    let (mut view, mut before) = (View::default(), BTreeMap::new());
    for tick in story.ticks.iter().take(MOST_TICKS) {
        let elapsed = tick.gap.duration();
        state.fold(&snapshot(&mut spaces, tick), elapsed);
        state.take_incidents().for_each(drop);
        state.show(&SelfStats::default(), &mut view);
        before = check(&view, &spaces, &before, elapsed, max_listeners);
    }
    check_written(&view);
}

fn snapshot(spaces: &mut [Space; 2], tick: &Tick) -> Snapshot {
    let mut snapshot = Snapshot { unix_time: 1.7e9, ..Snapshot::default() };
    for (place, (space, reading)) in spaces.iter_mut().zip(&tick.spaces).enumerate() {
        match reading {
            Some(reading) => snapshot.namespaces.push(space.read(place, reading)),
            None => space.is_there = false,
        }
    }
    if let Some((inode, name)) = tick.owner {
        let owner = Owner { process: format!("p{name}").into(), ..Owner::default() };
        snapshot.owners.insert(inode.into(), Arc::new(owner));
    }
    snapshot
}

fn name(place: usize) -> Arc<str> {
    format!("netns{place}").into()
}

fn check(
    view: &View,
    spaces: &[Space; 2],
    before: &BTreeMap<Arc<str>, Shown>,
    elapsed: Duration,
    max: usize,
) -> BTreeMap<Arc<str>, Shown> {
    let shown: usize = view.namespaces.iter().map(|netns| netns.listeners.len()).sum();
    assert!(shown <= max, "{shown} of {max} are shown");
    let mut after = BTreeMap::new();
    for netns in &view.namespaces {
        let place = (0..2).find(|place| name(*place) == netns.name).expect("one of the two");
        let now = totals(netns, spaces[place].life);
        if let Some(before) = before.get(&netns.name).filter(|before| before.0 == now.0) {
            check_counters(before, &now, elapsed);
        }
        netns.listeners.iter().for_each(check_listener);
        check_sum(netns, &spaces[place]);
        assert!(after.insert(netns.name.clone(), now).is_none(), "a namespace twice");
    }
    after
}

fn totals(netns: &NetnsView, life: u64) -> Shown {
    let entry = |listener: &ListenerView| {
        let ListenerView { drops, overflows, connection_seconds, full_seconds, .. } = *listener;
        (ListenerName::clone(&listener.name), (drops, overflows, connection_seconds, full_seconds))
    };
    let counters: BTreeMap<_, _> = netns.listeners.iter().map(entry).collect();
    assert_eq!(counters.len(), netns.listeners.len(), "a name is shown twice");
    (life, netns.sampled_seconds, counters)
}

fn check_counters((_, sampled, was): &Shown, (_, now, is): &Shown, elapsed: Duration) {
    let credited = now - sampled;
    let most = if elapsed > INTERVAL * MOST_CREDITED { 0.0 } else { elapsed.as_secs_f64() };
    // A gap since a sample that failed may be longer than the last tick.
    assert!(credited >= 0.0 && credited <= most.max(1.0) + 1e-9, "{credited} of {elapsed:?}");
    for (name, was) in was {
        let Some(is) = is.get(name) else { continue };
        let is_more = is.0 >= was.0 && is.1 >= was.1 && is.2 >= was.2 && is.3 >= was.3;
        assert!(is_more, "{name:?} fell from {was:?} to {is:?}");
    }
}

fn check_listener(listener: &ListenerView) {
    assert_eq!(listener.sockets == 0, listener.queue.is_none(), "{listener:?}");
    if let Some(queue) = listener.queue {
        assert!(queue.peak_length >= queue.length, "{listener:?}");
        assert!(queue.limit.is_some() == queue.fullest_ratio.is_some(), "{listener:?}");
    }
    for held in listener.diagnoses() {
        assert!(held.since.is_some());
    }
}

/// Since first sight, all attributed overflows together are the kernel's growth, at most some samples behind and never ahead.
fn check_sum(netns: &NetnsView, space: &Space) {
    let parts = (netns.unattributed_overflows, netns.unexposed_overflows);
    let (Some(unattributed), Some(unexposed)) = parts else { return };
    let attributed: u64 = netns.listeners.iter().filter_map(|listener| listener.overflows).sum();
    let sum = attributed + unattributed + unexposed;
    let Some((first, last)) = space.read.first().zip(space.read.last()) else { return };
    assert!(sum <= last - first, "{sum} attributed of {}", last - first);
    let due = space.read[space.read.len().saturating_sub(BEHIND)];
    let baseline = match space.may_be_back && space.is_newborn {
        true => space.read.get(1).unwrap_or(last),
        false => first,
    };
    assert!(
        !space.is_there || due.saturating_sub(*baseline) <= sum,
        "{sum} attributed of {due} - {baseline}"
    );
}

/// The exposition has every series once; neither it nor the report panics.
fn check_written(view: &View) {
    let text = exposition::render(view, INTERVAL).expect("a view can be written down");
    let mut seen = HashSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').map(|(series, _)| series);
        assert!(seen.insert(series), "twice: {line}");
    }
    let listeners: usize = view.namespaces.iter().map(|netns| netns.listeners.len()).sum();
    assert!(Report::new(view, INTERVAL).listeners.len() <= listeners);
}

// === impl Gap ===

impl Gap {
    fn duration(&self) -> Duration {
        match self {
            Self::Interval => INTERVAL,
            Self::Jittered(by) => INTERVAL / 2 + Duration::from_millis(u64::from(*by) % 100),
            Self::Seconds(seconds) => Duration::from_secs((*seconds).into()),
            Self::Grace => GRACE,
        }
    }
}

// === impl Space ===

impl Space {
    fn read(&mut self, place: usize, reading: &Reading) -> NetnsSample {
        let begins = reading.becomes_another || !self.is_there;
        let history = self.history();
        if begins {
            self.begin(place, reading);
        }
        let mut sample = NetnsSample::new(NetnsId(self.id), name(place), self.is_newborn);
        self.read_tcp(reading, &mut sample);
        if begins {
            let first = sample.netstat.and_then(|read| read.get(Counter::ListenOverflows));
            self.may_be_back = match history {
                History::None | History::Empty => false,
                History::Unread => true,
                History::Counted(last) => first.is_none_or(|first| first >= last),
            };
        }
        sample.unix = reading.unix.as_ref().map(|rows| {
            let mut rows: Vec<_> = rows.iter().filter_map(unix_row).collect();
            rows.sort_by_key(|row| row.cookie);
            rows.dedup_by_key(|row| row.cookie);
            Dump { interval: INTERVAL, is_same: false, part: None, sockets: rows }
        });
        sample.settings = reading.somaxconn.map(|value| {
            let mut settings = Settings::default();
            settings.set(Setting::Somaxconn, value.into());
            settings
        });
        sample.scan = reading.scan.as_ref().map(|rows| self.scan(rows));
        sample
    }

    /// What listenq may remember of this number when another life begins.
    fn history(&self) -> History {
        let was_read = self.read.len() > usize::from(self.is_newborn);
        match self.read.last() {
            _ if self.is_there || self.life == 0 => History::None,
            Some(0) if was_read => History::Empty,
            Some(last) if was_read => History::Counted(*last),
            _ => History::Unread,
        }
    }

    fn begin(&mut self, place: usize, reading: &Reading) {
        // Twice the same number is an inode that stands for another namespace by now, after the first was seen to end.
        let id = if self.is_there { self.id + 2 } else { self.id.max(place as u64 + 1) };
        let overflows = if reading.is_newborn { 0 } else { 1000 };
        *self = Self {
            life: self.life + 1,
            id,
            is_there: true,
            is_newborn: reading.is_newborn,
            is_bare: self.is_bare,
            overflows,
            read: Vec::from_iter(reading.is_newborn.then_some(0)),
            // They may wrap soon, which those of a newborn cannot.
            drops: [if reading.is_newborn { 0 } else { u32::MAX - 20 }; SOCKETS],
            ..Self::default()
        };
    }

    fn read_tcp(&mut self, reading: &Reading, sample: &mut NetnsSample) {
        let Some(rows) = &reading.tcp else { return };
        let sockets: Vec<ListenSocket> =
            rows.iter().take(2 * SOCKETS).map(|row| self.row(row)).collect();
        let is_same = self.last == sockets && !reading.says_changed;
        self.last.clone_from(&sockets);
        sample.tcp = Some(Dump { interval: INTERVAL, is_same, part: None, sockets });
        if let Some(more) = reading.overflows {
            self.overflows += u64::from(more);
            let mut counters = Counters::default();
            counters.set(Counter::ListenOverflows, self.overflows);
            sample.netstat = Some(counters);
            self.read.push(self.overflows);
        }
    }

    fn row(&mut self, row: &Row) -> ListenSocket {
        let nth = usize::from(row.socket) % SOCKETS;
        self.drops[nth] = self.drops[nth].wrapping_add(u32::from(row.drops) % 8);
        let known = !self.is_bare;
        ListenSocket {
            // Of another life of the namespace they are others.
            cookie: Cookie(self.life * 100 + nth as u64),
            address: address(nth, row.moved),
            queue: AcceptQueue { length: u32::from(row.length) % 8, limit: known.then_some(4) },
            drops: known.then_some(self.drops[nth]),
            origin: Origin { inode: nth as u32, ..Origin::default() },
        }
    }

    fn scan(&self, rows: &[(u8, u8, u8)]) -> Scan {
        let sockets = self.last.iter().map(|socket| {
            let (address, length) = (socket.address, socket.queue.length);
            ScannedSocket {
                cookie: socket.cookie,
                address,
                local: local(address),
                is_v6_only: false,
                length,
                longest: length,
                is_read: length > 0,
                accepted_ago: (length % 2 == 1).then_some(Duration::from_secs(u64::from(length))),
            }
        });
        let mut tcp = TcpScan { sockets: sockets.collect(), ..TcpScan::default() };
        let mut unix = Vec::new();
        for (socket, cookie, bits) in rows {
            let local = local(address(usize::from(*socket) % SOCKETS, bits & 8 > 0));
            let client = [10, 0, *socket, *bits].into();
            match bits & 3 {
                0 => tcp.half_open.push(HalfOpen { local, client, repeats: *cookie }),
                1 => unix.extend(unix_queue(*socket, *cookie)),
                _ => tcp.waiting.push(Waiting {
                    cookie: Cookie((*cookie).into()),
                    local,
                    client,
                    age: (bits & 16 > 0).then(|| Duration::from_secs((*bits).into())),
                    is_closed: bits & 4 > 0,
                    patience: (bits & 36 == 36).then(|| Duration::from_millis((*bits).into())),
                }),
            }
        }
        Scan { age: INTERVAL, tcp: Some(tcp), unix: Some(unix) }
    }
}

/// Two sockets share each port; one that moved is at another.
fn address(nth: usize, moved: bool) -> ListenAddress {
    let port = 80 + (nth / 2) as u16 + 100 * u16::from(moved);
    ListenAddress { ip: [127, 0, 0, 1].into(), port, device: None }
}

fn local(address: ListenAddress) -> Local {
    Local { ip: address.ip, port: address.port, interface: 0 }
}

fn unix_name(nth: u8) -> Option<UnixAddress> {
    UnixAddress::new(format!("/run/{}", nth % 3).as_bytes())
}

fn unix_row((nth, length): &(u8, u8)) -> Option<ListenSocket<UnixAddress>> {
    Some(ListenSocket {
        cookie: Cookie(u64::from(nth % 6) + 1),
        address: unix_name(*nth)?,
        queue: AcceptQueue { length: u32::from(*length) % 8, limit: Some(4) },
        drops: None,
        origin: Origin { inode: 100 + u32::from(nth % 6), ..Origin::default() },
    })
}

fn unix_queue(nth: u8, clients: u8) -> Option<UnixQueue> {
    let clients = (0..u32::from(clients % 5)).collect();
    Some(UnixQueue {
        cookie: Cookie(u64::from(nth % 6) + 1),
        address: unix_name(nth)?,
        clients,
        open: nth.into(),
    })
}
