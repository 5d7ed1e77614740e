//! Reads the state of a listen socket's owner: the processes that hold the socket, their threads,
//! descriptors and cgroups. The reader decides nothing; [`crate::cause`] interprets the readings.
//!
//! The search for holders covers the process that is known to hold the socket and its descendants,
//! at most every `HOLDERS_TTL`: a master creates the socket, and its workers inherit the socket.
//! Of a process with many threads, the reader reads the main thread and a few other threads at a
//! time, in turn.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};

use crate::kernel::cgroup_stat::CgroupMounts;
use crate::kernel::proc_tcp::Ends;
use crate::kernel::thread_stat::{self, Call};
use crate::snapshot::owner_reading::{
    LocalEnd, MachineReading, OwnerReading, ProcessReading, Syscall, ThreadReading, Wait,
    WatchedSocket,
};

use super::cgroup_id::CgroupTree;
use super::connections::ConnectionTables;
use super::process::Process;

/// Maximum age of the list of holders of a socket.
const HOLDERS_TTL: Duration = Duration::from_secs(10);
/// Maximum number of holders read per socket.
const MAX_HOLDERS: usize = 64;
/// Maximum number of processes searched for holders of one socket.
const MAX_CANDIDATES: usize = 256;
/// Maximum number of descriptors searched per process.
const MAX_DESCRIPTORS: usize = 4096;
/// `EPOLLIN` in an epoll mask.
const EPOLLIN: u32 = 1;
/// Number of threads of one process read at a time.
const THREADS_AT_ONCE: usize = 16;

/// Reads owners, and caches the holders of each socket.
pub struct OwnerReader {
    procfs: PathBuf,
    cgroups: CgroupMounts,
    tree: Option<KnownTree>,
    known: FxHashMap<u32, KnownHolders>,
    tables: ConnectionTables,
    threads_read: usize,
}

/// The version 2 cgroups, and when they were last read.
struct KnownTree {
    tree: CgroupTree,
    read_at: Option<Instant>,
}

/// The holders of one socket.
struct KnownHolders {
    holders: Vec<HolderFds>,
    found_at: Instant,
    /// Number of readings so far: selects the threads to read next when a process has many threads.
    turn: usize,
}

/// One process that holds the socket, and its descriptors of the socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct HolderFds {
    pid: u32,
    start_time: u64,
    listen: Vec<u32>,
    epoll: Vec<u32>,
    has_io_uring: bool,
    descriptors: u64,
}

/// Data that distinguishes the peers of one process.
struct Peers<'a> {
    process: &'a Process,
    holder: &'a HolderFds,
    /// The epoll descriptors that watch the socket.
    watching: &'a [u32],
    local: Option<LocalEnd>,
    /// Whether the process has one thread.
    is_single: bool,
    tables: &'a mut ConnectionTables,
}

// === impl KnownTree ===

impl KnownTree {
    /// Returns the path of the cgroup with this id. For an unknown id, reads the tree again, but at
    /// most every `HOLDERS_TTL`.
    fn path(&mut self, id: u64) -> Option<Arc<str>> {
        let is_old = self.read_at.is_none_or(|at| at.elapsed() >= HOLDERS_TTL);
        if self.tree.path(id).is_none() && is_old {
            self.read_at = Some(Instant::now());
            // An unreadable tree has no paths.
            let _ = self.tree.refresh();
        }
        self.tree.path(id).cloned()
    }
}

// === impl OwnerReader ===

impl OwnerReader {
    /// Creates a reader of the processes below `procfs` and the cgroups below `rootfs`.
    pub fn new(procfs: &Path, rootfs: &Path) -> Self {
        Self {
            procfs: procfs.to_owned(),
            cgroups: CgroupMounts::new(rootfs),
            tree: CgroupTree::find(rootfs).map(|tree| KnownTree { tree, read_at: None }),
            known: FxHashMap::default(),
            tables: ConnectionTables::default(),
            threads_read: 0,
        }
    }

    /// Drops the holders of all other sockets.
    pub fn keep_only(&mut self, inodes: &FxHashSet<u32>) {
        self.known.retain(|inode, _| inodes.contains(inode));
    }

    /// Returns the number of threads read since the last call.
    pub fn take_threads_read(&mut self) -> usize {
        std::mem::take(&mut self.threads_read)
    }

    /// Returns how long it took to read the costliest table of connections that was used since the
    /// last call, even if an earlier reading read it.
    pub fn take_table_cost(&mut self) -> Duration {
        self.tables.take_cost()
    }

    /// Reads the state of an owner once.
    pub fn read(&mut self, socket: WatchedSocket) -> OwnerReading {
        let (holders, turn) = self.holders(socket);
        let mut reading =
            OwnerReading { machine: machine(&self.procfs), ..OwnerReading::default() };
        let mut cgroup_texts: Vec<String> = Vec::new();
        for holder in &holders {
            let Some(process) = self.open(holder) else { continue };
            let text = process.text("cgroup");
            if !cgroup_texts.contains(&text) {
                cgroup_texts.push(text);
            }
            let read = read_process(&process, holder, socket, turn, &mut self.tables);
            self.threads_read += read.threads.len();
            reading.processes.push(read);
        }
        if holders.is_empty() {
            cgroup_texts.extend(socket.cgroup.and_then(|id| self.cgroup_text(id)));
        }
        // Workers usually share a cgroup: each text is read once.
        for text in &cgroup_texts {
            let new = self.cgroups.read(text).into_iter();
            let known = &mut reading.cgroups;
            known.extend(
                new.filter(|one| !known.iter().any(|known| known.path == one.path))
                    .collect::<Vec<_>>(),
            );
        }
        reading
    }

    /// Returns the text of `/proc/PID/cgroup` of the processes in the version 2 cgroup with this
    /// id, for an owner whose descriptors cannot be read. If the processes have different texts,
    /// only the version 2 line is certain. Returns `None` for the root cgroup, which any process
    /// may be in.
    fn cgroup_text(&mut self, id: u64) -> Option<String> {
        let path = self.tree.as_mut()?.path(id)?;
        let only = format!("0::{path}\n");
        if &*path == "/" {
            return None;
        }
        let directory = self.tree.as_ref()?.tree.directory(&path);
        let pids = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        let pids = pids.lines().filter_map(|pid| pid.parse().ok()).take(MAX_HOLDERS);
        let texts: FxHashSet<String> = pids
            .filter_map(|pid| Some(open_process(&self.procfs, pid)?.text("cgroup")))
            .filter(|text| !text.is_empty())
            .collect();
        let mut texts = texts.into_iter();
        match (texts.next(), texts.next()) {
            (Some(text), None) => Some(text),
            _ => Some(only),
        }
    }

    fn open(&self, holder: &HolderFds) -> Option<Process> {
        let process = open_process(&self.procfs, holder.pid)?;
        let start_time = thread_stat::start_time(&process.text("stat"))?;
        (start_time == holder.start_time).then_some(process)
    }

    /// Returns the holders of the socket, and the number of times they were requested.
    fn holders(&mut self, socket: WatchedSocket) -> (Vec<HolderFds>, usize) {
        let is_young = |known: &KnownHolders| known.found_at.elapsed() < HOLDERS_TTL;
        let turn = self.known.get(&socket.inode).map_or(0, |known| known.turn + 1);
        if !self.known.get(&socket.inode).is_some_and(is_young) {
            let known =
                KnownHolders { holders: self.find_holders(socket), found_at: Instant::now(), turn };
            self.known.insert(socket.inode, known);
        }
        let Some(known) = self.known.get_mut(&socket.inode) else { return (Vec::new(), turn) };
        known.turn = turn;
        (known.holders.clone(), turn)
    }

    fn find_holders(&self, socket: WatchedSocket) -> Vec<HolderFds> {
        let wanted = format!("socket:[{}]", socket.inode);
        let Some(pid) = socket.pid else { return Vec::new() };
        let family = descendants(&self.procfs, pid);
        let holders = family.into_iter().filter_map(|pid| {
            let process = open_process(&self.procfs, pid)?;
            holder_of(&process, &wanted)
        });
        holders.take(MAX_HOLDERS).collect()
    }
}

fn open_process(procfs: &Path, pid: u32) -> Option<Process> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Process::open(openat(CWD, procfs, flags, Mode::empty()).ok()?, pid).ok()
}

/// Returns the process and its descendants, parents first (`/proc/PID/task/TID/children`).
fn descendants(procfs: &Path, pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while next < family.len() && family.len() < MAX_CANDIDATES {
        let pid = family[next];
        next += 1;
        let Some(process) = open_process(procfs, pid) else { continue };
        for tid in numbers(process.directory("task").ok()) {
            let children = process.text(&format!("task/{tid}/children"));
            family.extend(
                children.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
    }
    family.truncate(MAX_CANDIDATES);
    family
}

/// Returns the descriptors of a process if it holds the wanted socket.
fn holder_of(process: &Process, wanted: &str) -> Option<HolderFds> {
    let start_time = thread_stat::start_time(&process.text("stat"))?;
    let mut holder = HolderFds { pid: process.pid, start_time, ..HolderFds::default() };
    for fd in numbers(process.descriptors().ok()).into_iter().take(MAX_DESCRIPTORS) {
        holder.descriptors += 1;
        match process.link(fd).as_deref() {
            Some(link) if link == wanted => holder.listen.push(fd),
            Some("anon_inode:[eventpoll]") => holder.epoll.push(fd),
            Some("anon_inode:[io_uring]") => holder.has_io_uring = true,
            _ => {}
        }
    }
    (!holder.listen.is_empty()).then_some(holder)
}

fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Returns the sorted numeric entries of a directory.
fn numbers(directory: Option<OwnedFd>) -> Vec<u32> {
    let Some(directory) = directory else { return Vec::new() };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&directory, &mut buffer);
    let mut numbers = Vec::new();
    while let Some(Ok(entry)) = entries.next() {
        numbers.extend(entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()));
    }
    numbers.sort_unstable();
    numbers
}

fn read_process(
    process: &Process,
    holder: &HolderFds,
    socket: WatchedSocket,
    turn: usize,
    tables: &mut ConnectionTables,
) -> ProcessReading {
    let stat = process.text("stat");
    let all = numbers(process.directory("task").ok());
    let is_single = all.len() == 1;
    let watching = &*watching(process, holder, socket.inode);
    let local = socket.local;
    let mut peers = Peers { process, holder, watching, local, is_single, tables };
    let threads: Vec<ThreadReading> = in_turn(&all, turn)
        .into_iter()
        .filter_map(|tid| read_thread(process, tid, &mut peers))
        .collect();
    ProcessReading {
        pid: process.pid,
        parent: thread_stat::parent(&stat).unwrap_or(0),
        name: process.text("comm").trim_end_matches('\n').to_owned(),
        open_fds: process.open_fds().filter(|count| *count > 0).or(Some(holder.descriptors)),
        max_fds: max_fds(&process.text("limits")),
        polls: polls(holder, watching, &threads),
        thread_count: all.len().try_into().unwrap_or(u32::MAX),
        threads,
    }
}

/// Returns the main thread and the other threads to read in this turn; the next turn returns the
/// next threads.
fn in_turn(all: &[u32], turn: usize) -> Vec<u32> {
    let Some((main, others)) = all.split_first() else { return Vec::new() };
    let size = THREADS_AT_ONCE - 1;
    let turns = others.len().div_ceil(size).max(1);
    let from = (turn % turns) * size;
    let to = others.len().min(from + size);
    std::iter::once(*main).chain(others[from..to].iter().copied()).collect()
}

/// Reads a thread. What a stopped thread waits for is not read: it explains nothing.
fn read_thread(process: &Process, tid: u32, peers: &mut Peers<'_>) -> Option<ThreadReading> {
    let text = |name: &str| process.text(&format!("task/{tid}/{name}"));
    let state = thread_stat::state(&text("stat"))?;
    let (on_cpu, runnable) = thread_stat::schedstat(&text("schedstat")).unwrap_or_default();
    let syscall = if matches!(state, 'T' | 't') { String::new() } else { text("syscall") };
    let call = if syscall.is_empty() { Call::Unknown } else { thread_stat::call(&syscall) };
    Some(ThreadReading { tid, state, on_cpu, runnable, wait: peers.wait(call) })
}

/// Parses `Max open files`, the soft limit; `None` for `unlimited`.
fn max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Whether the process polls the socket. A process without epoll and io_uring does not poll the
/// socket if all its threads wait elsewhere.
fn polls(holder: &HolderFds, watching: &[u32], threads: &[ThreadReading]) -> Option<bool> {
    if holder.has_io_uring {
        return None;
    }
    if holder.epoll.is_empty() {
        let may_wait = |thread: &ThreadReading| {
            matches!(thread.wait, Wait::Unknown | Wait::Events | Wait::Accept)
        };
        return (!threads.iter().any(may_wait)).then_some(false);
    }
    Some(!watching.is_empty())
}

/// Returns the epoll descriptors that watch the socket.
fn watching(process: &Process, holder: &HolderFds, inode: u32) -> Vec<u32> {
    let watches = |fd: &u32| watched_by(&process.text(&format!("fdinfo/{fd}")), holder, inode);
    holder.epoll.iter().copied().filter(watches).collect()
}

/// Whether the `fdinfo` of an epoll descriptor contains the socket and asks for `EPOLLIN`: `tfd: 6
/// events: 19 data: 6 pos:0 ino:1a2b sdev:8`. A server may keep a socket without asking for events.
fn watched_by(fdinfo: &str, holder: &HolderFds, inode: u32) -> bool {
    let hex = format!("{inode:x}");
    fdinfo.lines().filter_map(|line| line.strip_prefix("tfd:")).any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let fd = fields.next().and_then(|fd| fd.parse().ok());
        let events = fields.nth(1).and_then(|events| u32::from_str_radix(events, 16).ok());
        let is_socket = match fields.find_map(|field| field.strip_prefix("ino:")) {
            Some(ino) => ino == hex,
            None => fd.is_some_and(|fd| holder.listen.contains(&fd)),
        };
        is_socket && events.is_none_or(|events| events & EPOLLIN != 0)
    })
}

fn machine(procfs: &Path) -> MachineReading {
    let text = std::fs::read_to_string(procfs.join("stat")).unwrap_or_default();
    let line = text.lines().next().and_then(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    // user nice system idle iowait irq softirq steal; guest times are part of user and nice.
    let ticks: Vec<u64> =
        line.split_ascii_whitespace().filter_map(|ticks| ticks.parse().ok()).collect();
    MachineReading { steal: ticks.get(7).copied().unwrap_or(0), all: ticks.iter().take(8).sum() }
}

// === impl Peers ===

impl Peers<'_> {
    fn wait(&mut self, call: Call) -> Wait {
        match call {
            Call::Unknown => Wait::Unknown,
            Call::Accept(fd) if self.holder.listen.contains(&fd) => Wait::Accept,
            Call::Read(fd) => self.on(fd, Syscall::Read),
            Call::Receive(fd) => self.on(fd, Syscall::Receive),
            Call::Send(fd) => self.on(fd, Syscall::Send),
            Call::Connect(fd) => self.on(fd, Syscall::Connect),
            Call::Poll(1) => self.only_connection().unwrap_or(Wait::Events),
            Call::Epoll(fd) if self.is_elsewhere(fd) => Wait::Other,
            Call::Poll(_) | Call::Epoll(_) | Call::Events => Wait::Events,
            Call::Futex => Wait::Futex,
            Call::Running | Call::Accept(_) | Call::Other => Wait::Other,
        }
    }

    /// Returns the wait of a call on a descriptor.
    fn on(&mut self, fd: u32, syscall: Syscall) -> Wait {
        let inode = self.process.link(fd).and_then(|link| socket_inode(&link));
        match inode.and_then(|inode| self.tables.ends_of(self.process, &[inode]).pop()) {
            // A client that does not read is no idle client.
            Some(ends) if self.is_client(ends) && syscall == Syscall::Send => Wait::Other,
            Some(ends) if self.is_client(ends) => Wait::Client,
            Some(ends) if self.is_server(ends) => Wait::Other,
            Some(ends) => Wait::Peer(ends.remote, syscall),
            None => Wait::Other,
        }
    }

    /// Returns what a `poll` with one descriptor waits for.
    ///
    /// The descriptor of such a call cannot be read. If the process has connections to one peer
    /// other than its clients, the thread waits for that peer. If a process with one thread has
    /// connections to clients only, the thread waits for one of these clients: it would not wait
    /// for the listen socket, whose queue holds connections.
    fn only_connection(&mut self) -> Option<Wait> {
        let ends = self.connections();
        let is_peer = |ends: &&Ends| !self.is_client(**ends) && !self.is_server(**ends);
        let mut peers = ends.iter().filter(is_peer);
        match peers.next() {
            Some(one) if peers.all(|other| other.remote == one.remote) => {
                Some(Wait::Peer(one.remote, Syscall::Poll))
            }
            None if self.is_single && !ends.is_empty() => Some(Wait::Client),
            _ => None,
        }
    }

    /// Whether this epoll descriptor does not watch the socket and another one does: Node.js has a
    /// thread that only waits for its timers.
    fn is_elsewhere(&self, fd: u32) -> bool {
        let Self { holder, watching, .. } = self;
        !watching.is_empty() && holder.epoll.contains(&fd) && !watching.contains(&fd)
    }

    fn is_client(&self, ends: Ends) -> bool {
        self.local.is_some_and(|local| local.port == ends.local.port())
    }

    /// Whether the connection leads to the server itself, which is no other server to wait for.
    fn is_server(&self, ends: Ends) -> bool {
        let is_own = |local: LocalEnd| {
            let (ip, remote) = (local.ip.to_canonical(), ends.remote.ip());
            let is_any = ip.is_unspecified() && remote == ends.local.ip();
            local.port == ends.remote.port() && (is_any || ip == remote)
        };
        self.local.is_some_and(is_own)
    }

    /// Returns the ends of the process's TCP connections.
    fn connections(&mut self) -> Vec<Ends> {
        self.tables.ends_of(self.process, &sockets_of(self.process))
    }
}

fn sockets_of(process: &Process) -> Vec<u64> {
    let fds = numbers(process.descriptors().ok()).into_iter().take(MAX_DESCRIPTORS);
    fds.filter_map(|fd| socket_inode(&process.link(fd)?)).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::os::linux::fs::MetadataExt;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::channel;
    use std::thread;

    use rustix::buffer::spare_capacity;
    use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
    use rustix::thread::gettid;

    use super::*;

    fn own(listener: &TcpListener) -> WatchedSocket {
        let link = format!("/proc/self/fd/{}", listener.as_raw_fd());
        let inode = u32::try_from(std::fs::metadata(link).unwrap().st_ino()).unwrap();
        let start_time =
            thread_stat::start_time(&std::fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        let at = listener.local_addr().unwrap();
        let local = Some(LocalEnd { ip: at.ip(), port: at.port() });
        WatchedSocket {
            inode,
            pid: Some(std::process::id()),
            start_time,
            cgroup: None,
            local,
            source: 0,
        }
    }

    fn read(socket: WatchedSocket) -> OwnerReading {
        OwnerReader::new(Path::new("/proc"), Path::new("/")).read(socket)
    }

    /// Reads until a thread waits as expected, because the thread may not have entered its call
    /// yet.
    fn await_wait(socket: WatchedSocket, expected: Wait) -> Option<OwnerReading> {
        // The test process has more threads than one reading covers.
        let mut reader = OwnerReader::new(Path::new("/proc"), Path::new("/"));
        (0..500).find_map(|_| {
            thread::sleep(Duration::from_millis(10));
            let reading = reader.read(socket);
            let mut threads = reading.processes.iter().flat_map(|process| &process.threads);
            threads.any(|thread| thread.wait == expected).then_some(reading)
        })
    }

    #[test]
    fn this_process_holds_its_own_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let reading = read(own(&listener));
        let process = &reading.processes[0];
        assert_eq!(process.pid, std::process::id());
        assert!(
            process.open_fds.zip(process.max_fds).is_some_and(|(open, max)| 3 < open && open < max)
        );
        assert!(reading.machine.all > 0);
    }

    #[test]
    fn the_cgroup_of_an_owner_without_readable_processes_is_read() {
        let root = crate::owner::fixture::Dir::new("reader-cgroup");
        let cgroups = root.path().join("sys/fs/cgroup");
        let app = cgroups.join("app.slice/app.service");
        std::fs::create_dir_all(&app).unwrap();
        std::fs::write(cgroups.join("cgroup.controllers"), "").unwrap();
        std::fs::write(app.join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut reader = OwnerReader::new(Path::new("/proc"), root.path());
        let mut read = |directory: &Path| {
            let cgroup = Some(std::fs::metadata(directory).unwrap().st_ino());
            reader.read(WatchedSocket { pid: None, cgroup, ..own(&listener) })
        };
        let reading = read(&app);
        assert_eq!((reading.processes.len(), reading.cgroups.len()), (0, 1));
        assert_eq!(reading.cgroups[0].path, "/app.slice/app.service");
        assert_eq!(reading.cgroups[0].frozen, Some(true));
        // Any process may be in the root cgroup.
        assert_eq!(read(&cgroups).cgroups, []);
    }

    #[test]
    fn a_pid_with_another_start_time_is_another_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gone = WatchedSocket { pid: Some(u32::MAX), ..own(&listener) };
        assert_eq!(read(gone).processes, []);
    }

    #[test]
    fn a_thread_in_accept_waits_for_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = own(&listener);
        let at = listener.local_addr().unwrap();
        let waiting = thread::spawn(move || listener.accept().unwrap());
        assert!(await_wait(socket, Wait::Accept).is_some());
        let _client = TcpStream::connect(at).unwrap();
        waiting.join().unwrap();
    }

    #[test]
    fn a_thread_that_sends_to_a_client_or_asks_its_own_server_waits_for_no_one_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (socket, at) = (own(&listener), listener.local_addr().unwrap());
        let connect = || (TcpStream::connect(at).unwrap(), listener.accept().unwrap().0);
        let ((mut asks, asked), (client, mut server)) = (connect(), connect());
        let sends = thread::spawn(move || while server.write(&[0; 1 << 16]).is_ok() {});
        let receives = thread::spawn(move || _ = asks.read(&mut [0]));
        thread::sleep(Duration::from_millis(300));
        let mut reader = OwnerReader::new(Path::new("/proc"), Path::new("/"));
        // The test process has more threads than one reading covers.
        for _ in 0..50 {
            let reading = reader.read(socket);
            for thread in reading.processes.iter().flat_map(|process| &process.threads) {
                let is_other = !matches!(thread.wait, Wait::Peer(peer, _) if peer == at);
                assert!(is_other, "{thread:?}");
            }
        }
        drop((client, asked));
        sends.join().unwrap();
        receives.join().unwrap();
    }

    #[test]
    fn a_thread_that_receives_waits_for_its_peer_or_for_a_client() {
        let [listener, database] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let (at, peer) = (listener.local_addr().unwrap(), database.local_addr().unwrap());
        let mut connection = TcpStream::connect(peer).unwrap();
        let (done, wait) = channel::<()>();
        let reader = thread::spawn(move || _ = connection.read(&mut [0]));
        assert!(await_wait(own(&listener), Wait::Peer(peer, Syscall::Receive)).is_some());
        let client = TcpStream::connect(at).unwrap();
        let socket = own(&listener);
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            _ = stream.read(&mut [0]);
            _ = wait.recv();
        });
        assert!(await_wait(socket, Wait::Client).is_some());
        drop((client, database, done));
        server.join().unwrap();
        reader.join().unwrap();
    }

    /// Returns the wait of a thread in `epoll_wait`.
    fn wait_at(epoll: &OwnedFd, socket: WatchedSocket) -> Wait {
        let (sender, receiver) = UnixStream::pair().unwrap();
        epoll::add(epoll, &receiver, EventData::new_u64(0), EventFlags::IN).unwrap();
        let (sent, tid) = channel();
        let wait = |epoll: &OwnedFd| {
            sent.send(gettid().as_raw_nonzero().get().cast_unsigned()).unwrap();
            let mut events = Vec::with_capacity(1);
            while epoll::wait(epoll, spare_capacity(&mut events), None).is_err() {}
        };
        thread::scope(|scope| {
            scope.spawn(|| wait(epoll));
            let tid = tid.recv().unwrap();
            let syscall = || std::fs::read_to_string(format!("/proc/self/task/{tid}/syscall"));
            while !matches!(thread_stat::call(&syscall().unwrap()), Call::Epoll(_)) {
                thread::sleep(Duration::from_millis(1));
            }
            // The test process has more threads than one reading covers.
            let mut reader = OwnerReader::new(Path::new("/proc"), Path::new("/"));
            let found = (0..500).find_map(|_| {
                let reading = reader.read(socket);
                let mut threads = reading.processes.iter().flat_map(|process| &process.threads);
                threads.find(|thread| thread.tid == tid).map(|thread| thread.wait)
            });
            drop(sender);
            found.expect("the thread is read in one of the turns")
        })
    }

    #[test]
    fn only_the_epoll_instance_that_watches_the_socket_waits_for_its_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = own(&listener);
        let [timers, events] = [(); 2].map(|()| epoll::create(CreateFlags::CLOEXEC).unwrap());
        // No instance watches the socket: the server may have stopped watching it on purpose.
        assert_eq!(wait_at(&timers, socket), Wait::Events);
        epoll::add(&events, &listener, EventData::new_u64(0), EventFlags::IN).unwrap();
        assert_eq!(wait_at(&events, socket), Wait::Events);
        assert_eq!(wait_at(&timers, socket), Wait::Other);
    }

    #[test]
    fn threads_are_read_in_turn_and_the_main_thread_always() {
        let all: Vec<u32> = (100..140).collect();
        let turns: Vec<Vec<u32>> = (0..4).map(|turn| in_turn(&all, turn)).collect();
        assert_eq!(turns[0], turns[3]);
        assert!(turns.iter().all(|turn| turn[0] == 100 && turn.len() <= THREADS_AT_ONCE));
        let mut seen: Vec<u32> = turns.concat();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, all);
    }

    #[test]
    fn the_fdinfo_of_an_epoll_descriptor_lists_the_watched_sockets() {
        let fdinfo = "pos:\t0\nflags:\t02\ntfd:        6 events:       19 data:                6  pos:0 ino:1a2b sdev:8\n";
        let holder = HolderFds { listen: vec![6], ..HolderFds::default() };
        assert!(watched_by(fdinfo, &holder, 0x1a2b));
        assert!(!watched_by(fdinfo, &holder, 0x1a2c));
        assert!(watched_by("tfd: 6 events: 19 data: 6\n", &holder, 0x1a2c));
        // lighttpd at its connection limit.
        assert!(!watched_by("tfd: 6 events: 18 data: 6 pos:0 ino:1a2b sdev:8\n", &holder, 0x1a2b));
    }

    #[test]
    fn limits_and_ticks_are_parsed() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            40                   524288               files     \n";
        assert_eq!(max_fds(limits), Some(40));
        assert_eq!(
            max_fds("Max open files            unlimited            unlimited            files\n"),
            None
        );
    }
}
