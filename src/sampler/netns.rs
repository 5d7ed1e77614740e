//! The readers of one namespace. They execute the [`plan`] and contain no policy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kernel::connections::ConnectionReader;
use crate::kernel::listen::{ListenError, ListenReader, Scratch};
use crate::kernel::netstat::{Netstat, Snmp};
use crate::kernel::procfs_file::{ProcfsFile, ReadError, Text};
use crate::kernel::sockstat::{self, Sockstat};
use crate::kernel::sysctl::Sysctls;
use crate::self_stats::{Feature, SelfStats, Source};
use crate::snapshot::{Counter, Dump, ListenSocket, NetnsSample, UnixAddress};

use super::features::NetnsFeatures;
use super::health::Health;
use super::plan::{self, Look, Outcome, Plan, Planner, TcpMethod, TcpOutcome};
use super::scanning::ScanSlot;
use super::thread_cpu;
use super::turns::DumpOutcome;

pub use super::plan::SampleTime;

/// The readers of one namespace. They stay in that namespace, whichever thread uses them.
pub struct NetnsReader {
    net: PathBuf,
    /// For the own namespace, opened at the first sample, because opening is possible there at any
    /// time.
    listen: Option<ListenReader>,
    netstat: ProcfsFile,
    snmp: ProcfsFile,
    /// If this file is missing, every look assumes that sockets may have appeared.
    sockstat: Option<ProcfsFile>,
    sockstat6: Option<ProcfsFile>,
    sysctls: Sysctls,
    /// State of connection scans; for the own namespace, created at the first sample.
    scans: Option<ScanSlot>,
    health: Health,
    features: NetnsFeatures,
    planner: Planner,
    spare_tcp: Vec<ListenSocket>,
    spare_unix: Vec<ListenSocket<UnixAddress>>,
    /// Whether `spare_tcp` may contain sockets that were never passed on.
    failed: bool,
    /// Positions of the listeners that are queried between dumps.
    selected: Arc<[usize]>,
    /// Whether `selected` was made from the last dump.
    is_selected: bool,
    dump: DumpOutcome,
    /// CPU time of the dump of the Unix listeners in the last sample.
    unix_cost: Duration,
}

/// A reading of the TCP listeners.
struct TcpReading {
    is_same: bool,
    /// Positions of the listeners that were read; `None` if no dump is necessary.
    part: Option<Arc<[usize]>>,
    owes_dump: bool,
}

/// Context of one reading: its time, the sample to fill, the counters, and the buffers.
struct Reading<'a> {
    time: SampleTime,
    sample: &'a mut NetnsSample,
    stats: &'a mut SelfStats,
    scratch: &'a mut Scratch,
}

// === impl NetnsReader ===

impl NetnsReader {
    /// Opens the readers of the own namespace. Fails if the counter files are missing.
    pub fn open_own(procfs: &Path) -> Result<Self, ReadError> {
        Self::open(procfs, procfs.join("net"))
    }

    /// Opens the readers of the namespace that the calling thread has entered.
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
            features: NetnsFeatures::default(),
            planner: Planner::default(),
            spare_tcp: Vec::new(),
            spare_unix: Vec::new(),
            failed: false,
            selected: Arc::default(),
            is_selected: false,
            dump: DumpOutcome::NotDue,
            unix_cost: Duration::ZERO,
        })
    }

    /// Reads the data that is due. Returns whether sockets may have appeared or closed.
    pub fn read(
        &mut self,
        time: SampleTime,
        sample: &mut NetnsSample,
        stats: &mut SelfStats,
        scratch: &mut Scratch,
    ) -> bool {
        let mut reading = Reading { time, sample, stats, scratch };
        let moved = self.carry_out(&mut reading);
        if self.scans.is_none() {
            self.scans = Some(ScanSlot::new(self.open_connections(&mut reading), true));
        }
        if let Some(scans) = &mut self.scans {
            scans.look(time.now, reading.sample);
        }
        moved || reading.sample.unix.is_some()
    }

    /// Skips the namespace in this sample.
    pub fn pass_over(&mut self, sample: &mut NetnsSample) {
        (sample.netstat, sample.snmp, sample.settings) = (None, None, None);
        if let Some(dump) = sample.tcp.take() {
            self.spare_tcp = dump.sockets;
        }
        self.put_unix_by(sample);
    }

    /// Executes the plan of one sample. Returns whether anything except queues changed.
    fn carry_out(&mut self, reading: &mut Reading<'_>) -> bool {
        let sample = &mut *reading.sample;
        (sample.netstat, sample.snmp, sample.settings) = (None, None, None);
        let opening = self.planner.open(reading.time, jittered);
        if opening.everything {
            self.read_settings(reading);
        }
        let counted = opening.look.then(|| self.count_sockets(reading)).flatten();
        let look = if opening.look { self.look(counted, reading) } else { None };
        let plan = self.planner.plan(opening, look, reading.time.dumps);
        if let (true, Some(listen)) = (plan.is_whole(), &mut self.listen) {
            listen.forget_devices();
        }
        let read = self.read_tcp(&plan, counted, reading);
        self.unix_cost = Duration::ZERO;
        match plan.unix {
            true => self.read_unix(reading),
            false => self.put_unix_by(reading.sample),
        }
        self.read_counters(&plan, read, reading);
        let (moved, sample) = (read == Some(true), &*reading.sample);
        let outcome = Outcome {
            tcp: sample.tcp.as_ref().map(|dump| (&dump.sockets[..], dump.is_same)),
            unix: sample.unix.is_some(),
            netstat: sample.netstat.is_some(),
        };
        self.planner.close(&plan, moved, &outcome);
        moved
    }

    /// Returns whether the last reading was a dump, or postponed a dump.
    pub fn dump_outcome(&self) -> DumpOutcome {
        self.dump
    }

    /// Returns the CPU time of the dump of the Unix listeners in the last sample.
    pub fn unix_cost(&self) -> Duration {
        self.unix_cost
    }

    fn open_connections(&mut self, reading: &mut Reading<'_>) -> Option<ConnectionReader> {
        let opened = reading.check(&mut self.health, Source::Scan, ConnectionReader::open())?;
        if opened.is_none() {
            self.features.set(Feature::Scan, false);
        }
        opened
    }

    /// Returns the features that work in this namespace.
    pub fn features(&self) -> NetnsFeatures {
        self.features
    }

    /// Records whether scans work in this namespace.
    pub fn set_scan(&mut self, works: bool) {
        self.features.set(Feature::Scan, works);
    }

    /// Returns the state of connection scans; `None` before the first sample.
    pub fn scans(&mut self) -> Option<&mut ScanSlot> {
        self.scans.as_mut()
    }

    fn read_settings(&mut self, reading: &mut Reading<'_>) {
        let settings = self.sysctls.read(&mut reading.scratch.text);
        reading.sample.settings = reading.check(&mut self.health, Source::Sysctl, settings);
    }

    fn count_sockets(&self, reading: &mut Reading<'_>) -> Option<Sockstat> {
        read(&self.sockstat, &mut reading.scratch.text).and_then(Sockstat::parse)
    }

    fn look(&mut self, sockets: Option<Sockstat>, reading: &mut Reading<'_>) -> Option<Look> {
        let segments = self.read_snmp(reading)?;
        Some(Look { segments, sockets: sockets? })
    }

    /// Reads the counters of `snmp`. Returns the number of received segments.
    fn read_snmp(&mut self, reading: &mut Reading<'_>) -> Option<u64> {
        let snmp = parsed(&self.snmp, &mut reading.scratch.text, Snmp::parse);
        let snmp = reading.check(&mut self.health, Source::Snmp, snmp);
        reading.sample.snmp = snmp.map(|snmp| snmp.counters);
        snmp?.segments
    }

    /// Reads the counters that are due. `read` is the result of [`Self::read_tcp`].
    fn read_counters(&mut self, plan: &Plan, read: Option<bool>, reading: &mut Reading<'_>) {
        let counters = self.planner.counters(plan, read);
        if counters.snmp {
            self.read_snmp(reading);
        }
        if counters.netstat {
            self.read_netstat(reading);
        }
        if self.planner.owes_dump() {
            // Attribution needs the dump, so the counters wait for it.
            (reading.sample.netstat, reading.sample.snmp) = (None, None);
        }
    }

    fn read_netstat(&mut self, reading: &mut Reading<'_>) {
        let netstat = parsed(&self.netstat, &mut reading.scratch.text, Netstat::parse);
        let netstat = reading.check(&mut self.health, Source::Netstat, netstat);
        let netstat = netstat.map(|netstat| netstat.0);
        let overflows = netstat.and_then(|netstat| netstat.get(Counter::ListenOverflows));
        self.planner.take_overflows(overflows);
        reading.sample.netstat = netstat;
    }

    /// Reads the TCP listeners. Returns whether a drop counter or the set of sockets changed since
    /// the last good reading; `None` if the listeners could not be read.
    fn read_tcp(
        &mut self,
        plan: &Plan,
        counted: Option<Sockstat>,
        reading: &mut Reading<'_>,
    ) -> Option<bool> {
        let last = reading.sample.tcp.take().map(|dump| dump.sockets);
        let mut sockets = last.unwrap_or_else(|| std::mem::take(&mut self.spare_tcp));
        let method = self.method(plan, counted, reading);
        let read = self.listeners(method, plan, reading.scratch, &mut sockets);
        let read = reading.check(&mut self.health, Source::InetDiag, read);
        if let Some(listen) = &self.listen {
            self.features.set(Feature::SockDiag, listen.has_sock_diag());
            reading.sample.identity = listen.identity();
        }
        let Some(read) = read else {
            (self.spare_tcp, self.failed) = (sockets, true);
            return None;
        };
        let Some(TcpReading { is_same, part, owes_dump }) = read else {
            // Nothing could be queried in place of a dump.
            self.spare_tcp = sockets;
            self.planner.postpone();
            return None;
        };
        let is_same = !std::mem::take(&mut self.failed) && is_same;
        if let (false, Some(first)) = (is_same, sockets.first()) {
            self.features.set(Feature::Cgroup, first.origin.cgroup.is_some());
        }
        let moved = self.planner.take_tcp(&sockets, TcpOutcome { is_same, owes_dump });
        let interval = reading.time.interval.max(reading.time.dump_interval);
        reading.sample.tcp = Some(Dump { interval, is_same, part, sockets });
        Some(moved)
    }

    /// Returns the method to use for the current number of sockets.
    fn method(
        &self,
        plan: &Plan,
        counted: Option<Sockstat>,
        reading: &mut Reading<'_>,
    ) -> TcpMethod {
        let plan = &plan.tcp;
        let Some(calm) = plan.calm else { return plan.otherwise };
        let counted = counted.or_else(|| self.count_sockets(reading));
        let text = &mut reading.scratch.text;
        match calm.holds(counted, || read(&self.sockstat6, text).and_then(sockstat::parse_tcp6)) {
            true => plan.when_calm,
            false => plan.otherwise,
        }
    }

    /// Updates `sockets`. Returns `None` if a dump is due and not allowed, and nothing can be
    /// queried.
    fn listeners(
        &mut self,
        method: TcpMethod,
        plan: &Plan,
        scratch: &mut Scratch,
        sockets: &mut Vec<ListenSocket>,
    ) -> Result<Option<TcpReading>, ListenError> {
        self.dump = DumpOutcome::NotDue;
        let is_same = match method {
            TcpMethod::Keep => true,
            TcpMethod::Dump => self.dump_tcp(scratch, sockets)?,
            TcpMethod::Ask => self.ask_or_dump(plan, scratch, sockets)?,
            TcpMethod::AskOnly => return self.only_ask(plan, scratch, sockets),
        };
        Ok(Some(TcpReading { is_same, part: None, owes_dump: false }))
    }

    /// Queries the listeners, and dumps them if an answer shows a change.
    fn ask_or_dump(
        &mut self,
        plan: &Plan,
        scratch: &mut Scratch,
        sockets: &mut Vec<ListenSocket>,
    ) -> Result<bool, ListenError> {
        let asked = self.ask_tcp(scratch, sockets)?;
        match asked {
            // If only queues changed, no dump is necessary.
            Some((is_same, is_complete))
                if self.planner.is_sufficient(plan, is_complete, sockets) =>
            {
                Ok(is_same)
            }
            asked => {
                let is_dump_same = self.dump_tcp(scratch, sockets)?;
                Ok(is_dump_same && asked.is_none_or(|(is_same, _)| is_same))
            }
        }
    }

    /// Queries the selected listeners in place of a dump that the budget does not allow.
    fn only_ask(
        &mut self,
        plan: &Plan,
        scratch: &mut Scratch,
        sockets: &mut [ListenSocket],
    ) -> Result<Option<TcpReading>, ListenError> {
        let asked = self.ask_tcp(scratch, sockets)?;
        let is_sufficient = asked
            .is_some_and(|(_, is_complete)| self.planner.is_sufficient(plan, is_complete, sockets));
        if !is_sufficient {
            self.dump = DumpOutcome::Postponed;
        }
        Ok(asked.map(|(is_same, _)| TcpReading {
            is_same,
            part: (!is_sufficient).then(|| self.selected.clone()),
            owes_dump: !is_sufficient,
        }))
    }

    /// Queries the selected listeners. Returns whether nothing changed, and whether all of them
    /// were answered; `None` if nothing can be queried.
    fn ask_tcp(
        &mut self,
        scratch: &mut Scratch,
        sockets: &mut [ListenSocket],
    ) -> Result<Option<(bool, bool)>, ListenError> {
        let listen = opened(&mut self.listen, &self.net, scratch)?;
        if !std::mem::replace(&mut self.is_selected, true) {
            let (places, are_all) = plan::selected(sockets);
            listen.select(sockets, places.iter().copied());
            self.planner.select(places.len(), are_all);
            if *self.selected != *places {
                self.selected = places.into();
            }
        }
        let begin = Instant::now();
        let answers = listen.ask_tcp(scratch, sockets);
        if let Some(answers) = answers {
            self.planner.asked(begin.elapsed(), answers.is_complete);
        }
        Ok(answers.map(|answers| (answers.is_same, answers.is_complete)))
    }

    /// Dumps the listeners. Returns whether nothing changed.
    fn dump_tcp(
        &mut self,
        scratch: &mut Scratch,
        sockets: &mut Vec<ListenSocket>,
    ) -> Result<bool, ListenError> {
        let begin = Instant::now();
        let listen = opened(&mut self.listen, &self.net, scratch)?;
        let is_same = listen.read_tcp(scratch, sockets)?;
        self.dump = DumpOutcome::Made;
        self.planner.dumped(begin.elapsed());
        if !is_same && self.planner.listeners_differ(sockets) {
            self.is_selected = false;
        }
        Ok(is_same)
    }

    /// Moves the buffer of the last Unix dump out of `sample`, for reuse by the next dump.
    fn put_unix_by(&mut self, sample: &mut NetnsSample) {
        if let Some(dump) = sample.unix.take() {
            self.spare_unix = dump.sockets;
        }
    }

    fn read_unix(&mut self, reading: &mut Reading<'_>) {
        self.put_unix_by(reading.sample);
        let mut sockets = std::mem::take(&mut self.spare_unix);
        let scratch = &mut *reading.scratch;
        let begin = thread_cpu();
        let read = opened(&mut self.listen, &self.net, scratch)
            .and_then(|listen| listen.read_unix(scratch, &mut sockets));
        self.unix_cost = thread_cpu().saturating_sub(begin);
        match reading.check(&mut self.health, Source::UnixDiag, read) {
            Some(Some(is_same)) => {
                self.planner.take_unix(sockets.iter().any(|socket| socket.queue.length > 0));
                self.features.set(Feature::UnixDiag, true);
                // While a queue holds a connection, every dump that the share allows is made, so a
                // longer gap is a stall.
                let interval = self.planner.unix_dumped(reading.time, self.unix_cost);
                reading.sample.unix = Some(Dump { interval, is_same, part: None, sockets });
            }
            Some(None) => self.features.set(Feature::UnixDiag, false),
            None => self.spare_unix = sockets,
        }
    }
}

// === impl Reading ===

impl Reading<'_> {
    /// Returns the value of a reading. Counts a failure and returns `None` for it.
    fn check<T, E: std::fmt::Display>(
        &mut self,
        health: &mut Health,
        source: Source,
        reading: Result<T, E>,
    ) -> Option<T> {
        health.check(self.stats, source, self.time.now, reading)
    }
}

/// Returns the reader of listeners and opens it at the first use.
fn opened<'a>(
    listen: &'a mut Option<ListenReader>,
    net: &Path,
    scratch: &mut Scratch,
) -> Result<&'a mut ListenReader, ListenError> {
    match listen {
        Some(listen) => Ok(listen),
        none => Ok(none.insert(ListenReader::open(net, scratch)?)),
    }
}

/// Reads the text of a file that may not exist.
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

/// Returns slightly less than `pace`, so that readings do not run in phase with other work.
fn jittered(pace: Duration) -> Duration {
    pace.mul_f64(0.75 + 0.2 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};

    use super::*;
    use crate::snapshot::NetnsId;

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
        let tick = SampleTime::every(Duration::from_millis(100));
        reader.read(tick, &mut sample, &mut stats, &mut scratch);

        let tcp = sample.tcp.as_ref().unwrap();
        assert!(tcp.sockets.iter().any(|socket| socket.address.port == port));
        let unix = sample.unix.as_ref().unwrap();
        assert!(
            unix.sockets.iter().any(|socket| socket.address.name.label() == format!("@{name}"))
        );
        assert_eq!(unix.interval, tick.interval);
        assert!(sample.netstat.is_some() && sample.snmp.is_some() && sample.settings.is_some());
        assert_eq!(stats.errors, [0; Source::ALL.len()]);
    }
}
