//! Folds any sequence of snapshots that a kernel could produce: two namespaces that start, end,
//! return and are replaced; sockets that open, close, move to another address, and whose drop
//! counters grow and wrap; readings that fail; gaps between samples; scans; and a maximum number of
//! listeners. Every view must keep the laws, and the last view must render.

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
/// Maximum number of samples. Longer sequences find nothing new.
const MAX_SAMPLES: usize = 150;
const SOCKETS: usize = 8;
/// Maximum time credited after a gap, in intervals (law 11).
const MAX_CREDITED: u32 = 10;
/// Number of samples after which an overflow must be attributed.
const BEHIND: usize = 4;

#[derive(Arbitrary, Debug)]
struct Sequence {
    max: u8,
    peak_window: u8,
    /// Namespaces whose source reports neither limits nor drops (`/proc/net/tcp`).
    bare: [bool; 2],
    samples: Vec<Sample>,
}

#[derive(Arbitrary, Debug)]
struct Sample {
    gap: Gap,
    namespaces: [Option<Reading>; 2],
    owner: Option<(u8, u8)>,
}

#[derive(Arbitrary, Debug)]
enum Gap {
    Interval,
    Jittered(u8),
    Seconds(u8),
    Grace,
}

/// What one sample reads of one namespace; without it, no process is in the namespace.
#[derive(Arbitrary, Debug)]
struct Reading {
    becomes_another: bool,
    is_newborn: bool,
    tcp: Option<Vec<Row>>,
    unix: Option<Vec<(u8, u8)>>,
    /// Growth of the overflows, if the counters were read.
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

/// The state of a namespace in the kernel, and what was read of it.
#[derive(Default)]
struct Netns {
    /// Number of namespaces that have had this name. Each may start with smaller counters.
    generation: u64,
    id: u64,
    is_bare: bool,
    is_there: bool,
    is_newborn: bool,
    /// Whether the first reading could also be one of the predecessor with the same inode. listenq
    /// then takes the reading as a baseline.
    may_be_back: bool,
    drops: [u32; SOCKETS],
    overflows: u64,
    last: Vec<ListenSocket>,
    /// The overflows in each reading. The first is the baseline, which is 0 for a namespace that
    /// started while listenq ran.
    read: Vec<u64>,
}

/// What listenq may know of an earlier namespace with the same inode.
enum Predecessor {
    /// There was none, or listenq saw that the namespace is another one.
    None,
    /// Its counters were never read.
    Unread,
    /// All its counters were 0.
    Empty,
    /// Its overflows.
    Counted(u64),
}

/// Values that must not decrease while a series exists: drops, overflows, connection and full
/// seconds.
type Totals = (Option<u64>, Option<u64>, f64, Option<f64>);

/// The generation and the sampled seconds of a namespace, and the counters of its listeners.
type Shown = (u64, f64, BTreeMap<ListenerName, Totals>);

/// Runs the sequence of samples that the bytes encode.
pub fn run(bytes: &[u8]) {
    let Ok(sequence) = Sequence::arbitrary(&mut Unstructured::new(bytes)) else { return };
    let max_listeners = usize::from(sequence.max % 12) + 1;
    let peak_window = Duration::from_secs(u64::from(sequence.peak_window) + 1);
    let mut state = State::new(Config { max_listeners, peak_window, ..Config::default() });
    let mut namespaces = sequence.bare.map(|is_bare| Netns { is_bare, ..Netns::default() });
    let (mut view, mut before) = (View::default(), BTreeMap::new());
    for sample in sequence.samples.iter().take(MAX_SAMPLES) {
        let elapsed = sample.gap.duration();
        state.fold(&snapshot(&mut namespaces, sample), elapsed);
        state.take_incidents().for_each(drop);
        state.show(&SelfStats::default(), &mut view);
        before = check(&view, &namespaces, &before, elapsed, max_listeners);
    }
    check_rendered(&view);
}

fn snapshot(namespaces: &mut [Netns; 2], sample: &Sample) -> Snapshot {
    let mut snapshot = Snapshot { unix_time: 1.7e9, ..Snapshot::default() };
    for (place, (netns, reading)) in namespaces.iter_mut().zip(&sample.namespaces).enumerate() {
        match reading {
            Some(reading) => snapshot.namespaces.push(netns.read(place, reading)),
            None => netns.is_there = false,
        }
    }
    if let Some((inode, name)) = sample.owner {
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
    namespaces: &[Netns; 2],
    before: &BTreeMap<Arc<str>, Shown>,
    elapsed: Duration,
    max: usize,
) -> BTreeMap<Arc<str>, Shown> {
    let shown: usize = view.namespaces.iter().map(|netns| netns.listeners.len()).sum();
    assert!(shown <= max, "{shown} of {max} are shown");
    let mut after = BTreeMap::new();
    for netns in &view.namespaces {
        let place = (0..2).find(|place| name(*place) == netns.name).expect("one of the two");
        let now = totals(netns, namespaces[place].generation);
        if let Some(before) = before.get(&netns.name).filter(|before| before.0 == now.0) {
            check_counters(before, &now, elapsed);
        }
        netns.listeners.iter().for_each(check_listener);
        check_sum(netns, &namespaces[place]);
        assert!(after.insert(netns.name.clone(), now).is_none(), "a namespace twice");
    }
    after
}

fn totals(netns: &NetnsView, generation: u64) -> Shown {
    let entry = |listener: &ListenerView| {
        let ListenerView { drops, overflows, connection_seconds, full_seconds, .. } = *listener;
        (ListenerName::clone(&listener.name), (drops, overflows, connection_seconds, full_seconds))
    };
    let counters: BTreeMap<_, _> = netns.listeners.iter().map(entry).collect();
    assert_eq!(counters.len(), netns.listeners.len(), "a name is shown twice");
    (generation, netns.sampled_seconds, counters)
}

fn check_counters((_, sampled, was): &Shown, (_, now, is): &Shown, elapsed: Duration) {
    let credited = now - sampled;
    let most = if elapsed > INTERVAL * MAX_CREDITED { 0.0 } else { elapsed.as_secs_f64() };
    // The gap since a failed sample may be longer than the last one.
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

/// Checks that the overflows accounted for equal the growth of the kernel's counter since the first
/// reading: never more, and at most [`BEHIND`] samples late.
fn check_sum(view: &NetnsView, netns: &Netns) {
    let parts = (view.unattributed_overflows, view.unexposed_overflows);
    let (Some(unattributed), Some(unexposed)) = parts else { return };
    let attributed: u64 = view.listeners.iter().filter_map(|listener| listener.overflows).sum();
    let sum = attributed + unattributed + unexposed;
    let Some((first, last)) = netns.read.first().zip(netns.read.last()) else { return };
    assert!(sum <= last - first, "{sum} attributed of {}", last - first);
    let due = netns.read[netns.read.len().saturating_sub(BEHIND)];
    let baseline = match netns.may_be_back && netns.is_newborn {
        true => netns.read.get(1).unwrap_or(last),
        false => first,
    };
    assert!(
        !netns.is_there || due.saturating_sub(*baseline) <= sum,
        "{sum} attributed of {due} - {baseline}"
    );
}

/// Checks that the exposition contains every series once, and that neither it nor the report
/// panics.
fn check_rendered(view: &View) {
    let text = exposition::render(view, INTERVAL).expect("a view can be rendered");
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

// === impl Netns ===

impl Netns {
    fn read(&mut self, place: usize, reading: &Reading) -> NetnsSample {
        let begins = reading.becomes_another || !self.is_there;
        let predecessor = self.predecessor();
        if begins {
            self.begin(place, reading);
        }
        let mut sample = NetnsSample::new(NetnsId(self.id), name(place), self.is_newborn);
        self.read_tcp(reading, &mut sample);
        if begins {
            let first = sample.netstat.and_then(|read| read.get(Counter::ListenOverflows));
            self.may_be_back = match predecessor {
                Predecessor::None | Predecessor::Empty => false,
                Predecessor::Unread => true,
                Predecessor::Counted(last) => first.is_none_or(|first| first >= last),
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

    /// What listenq may know of this inode when the next namespace starts.
    fn predecessor(&self) -> Predecessor {
        let was_read = self.read.len() > usize::from(self.is_newborn);
        match self.read.last() {
            _ if self.is_there || self.generation == 0 => Predecessor::None,
            Some(0) if was_read => Predecessor::Empty,
            Some(last) if was_read => Predecessor::Counted(*last),
            _ => Predecessor::Unread,
        }
    }

    fn begin(&mut self, place: usize, reading: &Reading) {
        // A namespace that listenq saw end may have its inode reused by the next one.
        let id = if self.is_there { self.id + 2 } else { self.id.max(place as u64 + 1) };
        let overflows = if reading.is_newborn { 0 } else { 1000 };
        *self = Self {
            generation: self.generation + 1,
            id,
            is_there: true,
            is_newborn: reading.is_newborn,
            is_bare: self.is_bare,
            overflows,
            read: Vec::from_iter(reading.is_newborn.then_some(0)),
            // The drop counters of an old socket may wrap soon.
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
            // The next namespace with this name has other sockets.
            cookie: Cookie(self.generation * 100 + nth as u64),
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

/// Two sockets share each port; a socket that moved has another port.
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
