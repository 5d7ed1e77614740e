//! What to read of one namespace, and when.
//!
//! Every sample reads the TCP listeners: they are dumped or, where they are few, asked for one by one, which is cheaper
//! but finds no new ones. Where there is no TCP socket but those that listen, their number is enough.
//!
//! At least once a second there is a look whether anything came: segments (`snmp`) or sockets (`sockstat`). If so, the
//! listeners are dumped and then the counters read, and the Unix listeners too. If not, nothing of that can tell anything
//! new, and that look was all: a sixth of the cost. Counters move with segments alone, but a socket may come just as another
//! goes, so listeners and settings are read every four seconds whatever a look says. Only where listeners are all the TCP
//! sockets there are, asking for each is enough then, too: a dump walks the table of the whole machine. The counters are read
//! at once when a drop or a socket moved, Unix listeners as long as a queue holds something.
//!
//! Listeners are dumped before the counters are read, at once when an answer is not what it should be, and for some
//! samples after anything moved: who is to be charged with an overflow must not be a socket that nobody has seen. So a
//! new listener may be seen a second late, or four where another socket went just then, and is charged in full all the same.
//!
//! Where samples are stretched, because they cost more than they may, a second becomes as long as ten of them, and two
//! seconds at most.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::kernel::connections::ConnectionReader;
use crate::kernel::listen::{ListenError, ListenReader, Scratch};
use crate::kernel::netstat::{Netstat, Snmp};
use crate::kernel::procfs_file::{ProcfsFile, ReadError, Text};
use crate::kernel::sockstat::{self, Sockstat};
use crate::kernel::sysctl::Sysctls;
use crate::self_stats::{Feature, SelfStats, Source};
use crate::snapshot::{Counter, Dump, ListenSocket, NetnsSample, UnixName};

use super::health::Health;
use super::scanning::ScanSlot;

/// What moves rarely is read at least so often, when samples come as often as they are meant to.
const SLOW: Duration = Duration::from_secs(1);
/// Where they do not, because they cost more than they may, every so many samples, and at least so often: these
/// readings are most of the cost.
const SLOW_SAMPLES: u32 = 10;
const SLOWEST: Duration = Duration::from_secs(2);
/// Everything is read at least so often, the settings no oftener: five files, and nobody sets them every day.
const EVERYTHING: Duration = Duration::from_secs(4);
/// So many samples after something moved are dumps: as long as an overflow waits for whom to charge, and a socket
/// that one dump missed for the dump that misses it again.
const WATCHFUL: u8 = 3;

/// The readers of one namespace. They stay in it, whatever thread uses them.
pub struct NetnsReader {
    net: PathBuf,
    /// Opened at the first sample in the own namespace, where that is possible at any time.
    listen: Option<ListenReader>,
    netstat: ProcfsFile,
    snmp: ProcfsFile,
    /// Where it is not there, every look finds that something may have come.
    sockstat: Option<ProcfsFile>,
    sockstat6: Option<ProcfsFile>,
    sysctls: Sysctls,
    /// Where it stands with connection scans; set up at the first sample in the own namespace.
    scans: Option<ScanSlot>,
    health: Health,
    spare_tcp: Vec<ListenSocket>,
    spare_unix: Vec<ListenSocket<UnixName>>,
    /// Whether `spare_tcp` may hold what was never passed on.
    failed: bool,
    fingerprint: u64,
    overflows: Option<u64>,
    /// So many samples to come are dumps.
    watchful: u8,
    unix_waits: bool,
    /// What the last look saw; `None` when it could not see.
    seen: Option<Seen>,
    /// What a look of this very sample counted.
    counted: Option<Sockstat>,
    calm: Option<Calm>,
    look_due: Duration,
    everything_due: Duration,
}

/// What moves when anything comes to a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    segments: u64,
    sockets: Sockstat,
}

/// What there was when nobody waited and there was no TCP socket but those that listen. As long as that is so, nobody
/// can wait: a connection in a queue is a socket, also one whose client has reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Calm {
    used: u64,
    listeners: u64,
    listeners6: u64,
}

/// What need not be read of the TCP listeners anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// Something came: they are dumped.
    Nothing,
    /// Nothing is known to have come: while their number is that of all TCP sockets, each known one is asked for.
    Numbers,
    /// They were read lately: while their number is that of all TCP sockets, nothing is read.
    Sockets,
}

/// When and how a namespace is read.
#[derive(Clone, Copy, Debug)]
pub struct SampleTime {
    /// On the sampler's own clock.
    pub now: Duration,
    /// The interval at which samples are meant to come just now.
    pub interval: Duration,
}

// === impl SampleTime ===

impl SampleTime {
    /// The pace of what moves rarely.
    fn slow(self) -> Duration {
        SLOW.max((self.interval * SLOW_SAMPLES).min(SLOWEST))
    }
}

// === impl NetnsReader ===

impl NetnsReader {
    /// The readers of the own namespace: its counter files must be there, or there is nothing to say at all.
    pub fn open_own(procfs: &Path) -> Result<Self, ReadError> {
        Self::open(procfs, procfs.join("net"))
    }

    /// The readers of the namespace that the calling thread has entered.
    pub fn open_here(procfs: &Path, scratch: &mut Scratch) -> Result<Self, ListenError> {
        let mut reader = Self::open(procfs, procfs.join("thread-self/net"))?;
        reader.listen = Some(ListenReader::open(&reader.net, scratch)?);
        reader.scans = Some(ScanSlot::new(ConnectionReader::open()?, false));
        Ok(reader)
    }

    fn open(procfs: &Path, net: PathBuf) -> Result<Self, ReadError> {
        Ok(Self {
            netstat: ProcfsFile::open(net.join("netstat"))?,
            snmp: ProcfsFile::open(net.join("snmp"))?,
            sockstat: ProcfsFile::open(net.join("sockstat")).ok(),
            sockstat6: ProcfsFile::open(net.join("sockstat6")).ok(),
            sysctls: Sysctls::open(procfs),
            net,
            listen: None,
            scans: None,
            health: Health::default(),
            spare_tcp: Vec::new(),
            spare_unix: Vec::new(),
            failed: false,
            fingerprint: 0,
            overflows: None,
            watchful: 0,
            unix_waits: false,
            seen: None,
            counted: None,
            calm: None,
            look_due: Duration::ZERO,
            everything_due: Duration::ZERO,
        })
    }

    /// Reads what is due.
    pub fn read(
        &mut self,
        tick: SampleTime,
        sample: &mut NetnsSample,
        stats: &mut SelfStats,
        scratch: &mut Scratch,
    ) -> bool {
        (sample.netstat, sample.snmp, sample.settings, self.counted) = (None, None, None, None);
        let everything = tick.now >= self.everything_due;
        if everything {
            self.everything_due = tick.now + jittered(EVERYTHING);
            let reading = self.sysctls.read(&mut scratch.text);
            sample.settings = self.health.check(stats, Source::Sysctl, tick.now, reading);
        }
        let looks = everything || tick.now >= self.look_due;
        let came = looks && self.look(tick, sample, stats, scratch);
        let whole = came || everything;
        if let (true, Some(listen)) = (whole, &mut self.listen) {
            listen.forget_devices();
        }
        let trust = match (came, everything) {
            (true, _) => Trust::Nothing,
            (false, true) => Trust::Numbers,
            (false, false) => Trust::Sockets,
        };
        let moved = self.read_tcp(tick, trust, sample, stats, scratch);
        if whole || self.unix_waits {
            self.read_unix(tick, sample, stats, scratch);
        } else {
            self.put_unix_by(sample);
        }
        if moved && !looks {
            self.read_snmp(tick, sample, stats, scratch);
        }
        let counts = came || moved;
        if sample.tcp.is_some() && counts {
            self.read_netstat(tick, sample, stats, scratch);
        }
        let misses_counts = counts && sample.netstat.is_none();
        if whole && (sample.tcp.is_none() || misses_counts || sample.unix.is_none()) {
            // What came was not read.
            self.seen = None;
        }
        if looks {
            let seen = self.seen.map(|seen| seen.sockets);
            self.calm = seen.zip(sample.tcp.as_ref()).and_then(Calm::of);
        } else if moved || sample.tcp.as_ref().is_none_or(|dump| !dump.is_same) {
            // What is the same from then on is not what the last look saw.
            self.calm = None;
        }
        if self.scans.is_none() {
            self.scans = Some(ScanSlot::new(self.open_connections(tick, stats), true));
        }
        if let Some(scans) = &mut self.scans {
            scans.look(tick.now, sample);
        }
        moved || sample.unix.is_some()
    }

    fn open_connections(
        &mut self,
        tick: SampleTime,
        stats: &mut SelfStats,
    ) -> Option<ConnectionReader> {
        let opened = self.health.check(stats, Source::Scan, tick.now, ConnectionReader::open())?;
        if opened.is_none() {
            stats.set_feature(Feature::Scan, false);
        }
        opened
    }

    /// Where it stands with connection scans; `None` before the first sample.
    pub fn scans(&mut self) -> Option<&mut ScanSlot> {
        self.scans.as_mut()
    }

    /// Whether anything may have come since the last look.
    fn look(
        &mut self,
        tick: SampleTime,
        sample: &mut NetnsSample,
        stats: &mut SelfStats,
        scratch: &mut Scratch,
    ) -> bool {
        self.look_due = tick.now + jittered(tick.slow());
        let segments = self.read_snmp(tick, sample, stats, scratch);
        let sockets = read(&self.sockstat, &mut scratch.text).and_then(Sockstat::parse);
        let seen = segments.zip(sockets);
        let seen = seen.map(|(segments, sockets)| Seen { segments, sockets });
        self.counted = sockets;
        let before = std::mem::replace(&mut self.seen, seen);
        seen.is_none() || before != seen
    }

    /// The segments that came so far.
    fn read_snmp(
        &mut self,
        tick: SampleTime,
        sample: &mut NetnsSample,
        stats: &mut SelfStats,
        scratch: &mut Scratch,
    ) -> Option<u64> {
        let snmp = parsed(&self.snmp, &mut scratch.text, Snmp::parse);
        let snmp = self.health.check(stats, Source::Snmp, tick.now, snmp);
        sample.snmp = snmp.map(|snmp| snmp.counters);
        snmp?.segments
    }

    fn read_netstat(
        &mut self,
        tick: SampleTime,
        sample: &mut NetnsSample,
        stats: &mut SelfStats,
        scratch: &mut Scratch,
    ) {
        let netstat = parsed(&self.netstat, &mut scratch.text, Netstat::parse);
        let netstat = self.health.check(stats, Source::Netstat, tick.now, netstat);
        sample.netstat = netstat.map(|netstat| netstat.0);
        let overflows = sample.netstat.and_then(|netstat| netstat.get(Counter::ListenOverflows));
        if overflows != self.overflows {
            self.overflows = overflows;
            self.watchful = WATCHFUL;
        }
    }

    /// Whether any drop or socket moved since the last good reading.
    fn read_tcp(
        &mut self,
        tick: SampleTime,
        trust: Trust,
        sample: &mut NetnsSample,
        stats: &mut SelfStats,
        scratch: &mut Scratch,
    ) -> bool {
        let last = sample.tcp.take().map(|dump| dump.sockets);
        let mut sockets = last.unwrap_or_else(|| std::mem::take(&mut self.spare_tcp));
        let reading = self.listeners(trust, scratch, &mut sockets);
        let reading = self.health.check(stats, Source::InetDiag, tick.now, reading);
        if let Some(listen) = &self.listen {
            stats.set_feature(Feature::SockDiag, listen.has_sock_diag());
        }
        let Some(is_same) = reading else {
            (self.spare_tcp, self.failed) = (sockets, true);
            return false;
        };
        let is_same = !std::mem::take(&mut self.failed) && is_same;
        let before = self.fingerprint;
        if !is_same {
            self.fingerprint = fingerprint(&sockets);
        }
        let moved = before != self.fingerprint;
        self.watchful = if moved { WATCHFUL } else { self.watchful.saturating_sub(1) };
        sample.tcp = Some(Dump { interval: tick.interval, is_same, sockets });
        moved
    }

    /// Asks for the listeners where that is enough, and else dumps them. Gives whether nothing changed.
    fn listeners(
        &mut self,
        trust: Trust,
        scratch: &mut Scratch,
        sockets: &mut Vec<ListenSocket>,
    ) -> Result<bool, ListenError> {
        let trust = if self.watchful == 0 { trust } else { Trust::Nothing };
        let (is_calm, before) =
            (trust != Trust::Nothing && self.is_calm(scratch), self.fingerprint);
        if is_calm && trust == Trust::Sockets {
            return Ok(true);
        }
        // When there are no others, those that are known and asked for are all.
        let may_ask = is_calm || trust == Trust::Sockets;
        let listen = self.listen(scratch)?;
        let asked = if may_ask { listen.ask_tcp(scratch, sockets) } else { None };
        match asked {
            Some(true) => Ok(true),
            // Queues alone need no dump.
            Some(false) if fingerprint(sockets) == before => Ok(false),
            asked => Ok(listen.read_tcp(scratch, sockets)? && asked.is_none()),
        }
    }

    /// Whether there still is nothing that could wait.
    fn is_calm(&self, scratch: &mut Scratch) -> bool {
        let (Some(calm), false) = (self.calm, self.failed) else { return false };
        let text = &mut scratch.text;
        let sockets = self.counted.or_else(|| read(&self.sockstat, text).and_then(Sockstat::parse));
        sockets == Some(Sockstat { used: calm.used, tcp: calm.listeners })
            && (calm.listeners6 == 0
                || read(&self.sockstat6, text).and_then(sockstat::parse_tcp6)
                    == Some(calm.listeners6))
    }

    /// Nothing was read, and the memory is kept.
    fn put_unix_by(&mut self, sample: &mut NetnsSample) {
        if let Some(dump) = sample.unix.take() {
            self.spare_unix = dump.sockets;
        }
    }

    fn read_unix(
        &mut self,
        tick: SampleTime,
        sample: &mut NetnsSample,
        stats: &mut SelfStats,
        scratch: &mut Scratch,
    ) {
        self.put_unix_by(sample);
        let mut sockets = std::mem::take(&mut self.spare_unix);
        let reading =
            self.listen(scratch).and_then(|listen| listen.read_unix(scratch, &mut sockets));
        match self.health.check(stats, Source::UnixDiag, tick.now, reading) {
            Some(Some(is_same)) => {
                self.unix_waits = sockets.iter().any(|socket| socket.queue.length > 0);
                stats.set_feature(Feature::UnixDiag, true);
                // After a queue that held something no dump is left out: a longer gap is a stall.
                sample.unix = Some(Dump { interval: tick.interval, is_same, sockets });
            }
            Some(None) => stats.set_feature(Feature::UnixDiag, false),
            None => self.spare_unix = sockets,
        }
    }

    fn listen(&mut self, scratch: &mut Scratch) -> Result<&mut ListenReader, ListenError> {
        match &mut self.listen {
            Some(listen) => Ok(listen),
            none => Ok(none.insert(ListenReader::open(&self.net, scratch)?)),
        }
    }
}

/// The text of a file that may not be there.
fn read<'text>(file: &Option<ProcfsFile>, text: &'text mut Text) -> Option<&'text str> {
    file.as_ref()?.read_piece(text).ok()
}

fn parsed<T, E: std::fmt::Display>(
    file: &ProcfsFile,
    text: &mut Text,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, ReadError> {
    let parsed = parse(file.read_piece(text)?).map_err(|error| error.to_string());
    parsed.map_err(|error| ReadError::invalid(file.path(), error))
}

// === impl Calm ===

impl Calm {
    /// The calm of a namespace that had these sockets just before this dump.
    fn of((seen, dump): (Sockstat, &Dump)) -> Option<Self> {
        let sockets = &dump.sockets;
        let waits = sockets.iter().any(|socket| socket.queue.length > 0);
        let listeners6 = sockets.iter().filter(|socket| socket.address.ip.is_ipv6()).count() as u64;
        let listeners = sockets.len() as u64 - listeners6;
        // Without a listener there is nothing to ask for anyway.
        let is_calm = !sockets.is_empty() && !waits && seen.tcp == listeners;
        is_calm.then_some(Self { used: seen.used, listeners, listeners6 })
    }
}

/// Somewhat less than `pace`, and not in step with anything else.
fn jittered(pace: Duration) -> Duration {
    pace.mul_f64(0.75 + 0.2 * fastrand::f64())
}

/// Differs, but for chance, when any socket came, went or dropped something; the order does not matter.
fn fingerprint(sockets: &[ListenSocket]) -> u64 {
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |socket: &ListenSocket| {
        let drops = u64::from(socket.drops.unwrap_or(0));
        let mixed = (socket.cookie.0.wrapping_mul(SPREAD) ^ drops).wrapping_mul(SPREAD);
        mixed ^ mixed >> 32
    };
    sockets.iter().map(mix).fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};

    use super::*;
    use crate::snapshot::{AcceptQueue, Cookie, ListenAddress, NetnsId, Origin};

    fn socket(cookie: u64, drops: u32) -> ListenSocket {
        ListenSocket {
            cookie: Cookie(cookie),
            address: ListenAddress { ip: "::".parse().unwrap(), port: 80, device: None },
            queue: AcceptQueue { length: 0, limit: Some(5) },
            drops: Some(drops),
            origin: Origin::default(),
        }
    }

    #[test]
    fn a_fingerprint_tells_moves_and_not_order() {
        let before = fingerprint(&[socket(1, 5), socket(2, 0)]);
        assert_eq!(before, fingerprint(&[socket(2, 0), socket(1, 5)]));
        assert_ne!(before, fingerprint(&[socket(1, 5), socket(2, 1)]));
        assert_ne!(before, fingerprint(&[socket(1, 5)]));
        assert_ne!(before, fingerprint(&[socket(1, 5), socket(3, 0)]));
    }

    #[test]
    fn this_namespace_can_be_read() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        let name = format!("listenq-test-{port}");
        let unix = SocketAddr::from_abstract_name(&name).unwrap();
        let _unix = UnixListener::bind_addr(&unix).unwrap();

        let mut reader = NetnsReader::open_own(Path::new("/proc")).unwrap();
        let mut sample = NetnsSample::new(NetnsId(1), "host".into(), false);
        let (mut stats, mut scratch) = (SelfStats::default(), Scratch::default());
        let tick = SampleTime { now: Duration::ZERO, interval: SLOW / 10 };
        reader.read(tick, &mut sample, &mut stats, &mut scratch);

        let tcp = sample.tcp.as_ref().unwrap();
        assert!(tcp.sockets.iter().any(|socket| socket.address.port == port));
        let unix = sample.unix.as_ref().unwrap();
        assert!(unix.sockets.iter().any(|socket| socket.address.label() == format!("@{name}")));
        assert_eq!(unix.interval, tick.interval);
        assert!(sample.netstat.is_some() && sample.snmp.is_some() && sample.settings.is_some());
        assert_eq!(stats.errors, [0; Source::ALL.len()]);
    }
}
