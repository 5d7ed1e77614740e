//! Tests `OwnerLookup` on the real kernel: sockets that processes inherit, and a cgroup version 2
//! hierarchy.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops at the first surprise")]
#![allow(clippy::print_stderr, reason = "who reads the output must see what did not run")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]
#![allow(clippy::disallowed_types, reason = "a socket is held by a child only if one is started")]

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use listenq::owner::cgroup::owner_path;
use listenq::owner::cgroup_id::CgroupTree;
use listenq::owner::holders::{HolderMatch, Step, Walk};
use listenq_lab::client::fill;
use listenq_lab::listener::Listen;
use listenq_lab::listenq::Launch;
use listenq_lab::netns::Netns;
use listenq_lab::script::Script;
use listenq_lab::tool::require_tool;
use listenq_lab::wait::eventually;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// The descriptors of a user who hoards them, unless `OWNER_DESCRIPTORS` says otherwise. 1,000 in
/// each process.
const HOARDED: usize = 100_000;
/// The time in which the owner of a new listener is known. Code without optimization takes ten
/// times as long.
const KNOWN_WITHIN: Duration = Duration::from_secs(if cfg!(debug_assertions) { 20 } else { 5 });
/// Opens descriptors in processes of user 4243, and prints a byte for each process.
const HOARD: &str = "
import os, sys
for _ in range(int(sys.argv[1]) // 1000):
    if os.fork() == 0:
        os.setuid(4243)
        null = os.open('/dev/null', os.O_RDONLY)
        for _ in range(1000 - 4): os.dup(null)
        os.write(1, b'x')
        sys.stdin.read()
        os._exit(0)
sys.stdin.read()
";

/// A child that holds `socket` as its standard input. Killed when dropped.
struct Heir(Child);

/// A root directory that contains only a mounted cgroup version 2 hierarchy.
struct Cgroup2 {
    rootfs: PathBuf,
    made: Vec<PathBuf>,
}

#[test]
fn the_creator_of_a_socket_is_its_owner_before_its_children() {
    let (socket, inode) = listen();
    let heir = Heir::of(&socket);
    let found = walk(inode);
    let holder = &found.holders[&inode];
    assert_eq!(holder.pid, std::process::id());
    assert_eq!(holder.comm, fs::read_to_string("/proc/self/comm").unwrap().trim_end());
    assert_eq!(holder.cgroup, fs::read_to_string("/proc/self/cgroup").unwrap());
    drop(socket);
    let found = walk(inode);
    let holder = &found.holders[&inode];
    assert_eq!((holder.pid, &*holder.comm), (heir.0.id(), "sleep"));
    drop(heir);
    assert!(walk(inode).holders.is_empty());
}

#[test]
fn a_process_is_in_the_cgroup_of_its_sockets() {
    let Some(mut cgroup2) = Cgroup2::mounted() else { return };
    let name = format!("listenq-test-{}.service", std::process::id());
    let cgroup = cgroup2.make(&name);
    let heir = Heir::of(&listen().0);
    fs::write(cgroup.join("cgroup.procs"), heir.0.id().to_string()).unwrap();

    let mut tree = CgroupTree::find(&cgroup2.rootfs).unwrap();
    assert!(tree.refresh().unwrap() >= 2);
    let path = tree.path(fs::metadata(&cgroup).unwrap().ino()).unwrap();
    assert!(path.ends_with(&name), "{path}");
    let text = fs::read_to_string(format!("/proc/{}/cgroup", heir.0.id())).unwrap();
    assert!(owner_path(&text).unwrap().ends_with(&**path), "{path} is not in {text}");
    let members = fs::read_to_string(tree.directory(path).join("cgroup.procs")).unwrap();
    assert_eq!(members, format!("{}\n", heir.0.id()));
}

#[test]
fn the_owner_of_a_new_listener_is_found_beside_very_many_descriptors_of_another_user() {
    if !Netns::require_root() || !require_tool("python3") {
        return;
    }
    let count = std::env::var("OWNER_DESCRIPTORS").map_or(HOARDED, |text| text.parse().unwrap());
    let hoarder = Script::start(None, HOARD, &[count.to_string()], count / 1000);
    let ns = Netns::new("hoard");
    let daemon = Launch::new(BIN).args(&["--netns=own"]).inside(&ns).start();
    let times = [18_001, 18_002, 18_003].map(|port| {
        std::thread::sleep(Duration::from_secs(4));
        let came = Instant::now();
        let listener = ns.run(|| Listen::tcp(format!("127.0.0.1:{port}")).backlog(4).open());
        // A listener with a queue is exposed at once.
        let _clients = ns.run(|| fill(listener.target(), 2));
        eventually("the owner", 6 * KNOWN_WITHIN, || {
            let scrape = daemon.scrape();
            let infos = scrape.series("listenq_listener_info").into_iter();
            let mut infos = infos.filter(|(labels, _)| labels["port"] == port.to_string());
            infos.any(|(labels, _)| !labels["process"].is_empty()).then_some(())
        });
        came.elapsed()
    });
    println!("{count} descriptors of another user: owners known after {times:.1?}");
    drop(hoarder);
    assert!(times.iter().all(|time| *time < KNOWN_WITHIN), "{times:?}");
}

fn listen() -> (TcpListener, u64) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let inode = rustix::fs::fstat(&socket).unwrap().st_ino;
    (socket, inode)
}

fn walk(inode: u64) -> HolderMatch {
    let mut walk = Walk::new(Path::new("/proc"), [inode]).unwrap();
    while walk.step(Duration::from_millis(1)).unwrap() == Step::More {}
    walk.finish()
}

// === impl Heir ===

impl Heir {
    fn of(socket: &TcpListener) -> Self {
        let inherited = Stdio::from(OwnedFd::from(socket.try_clone().unwrap()));
        Self(Command::new("sleep").arg("30").stdin(inherited).spawn().unwrap())
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// === impl Cgroup2 ===

impl Cgroup2 {
    /// Mounts the hierarchy if possible. In CI the test must not pass by being skipped.
    fn mounted() -> Option<Self> {
        let rootfs = std::env::temp_dir().join(format!("lq-cgroup2-{}", std::process::id()));
        let target = rootfs.join("sys/fs/cgroup");
        fs::create_dir_all(&target).unwrap();
        let cgroup2 = Self { rootfs, made: Vec::new() };
        match mount("none", &target, "cgroup2", MountFlags::empty(), None) {
            Ok(()) => Some(cgroup2),
            Err(error) => {
                let ci = std::env::var("CI").is_ok_and(|value| value == "true");
                assert!(!ci, "cannot mount cgroup2, and CI must not skip this test: {error}");
                eprintln!("SKIPPED: cannot mount cgroup2: {error}");
                None
            }
        }
    }

    /// Creates a cgroup below the root.
    fn make(&mut self, name: &str) -> PathBuf {
        let path = self.rootfs.join("sys/fs/cgroup").join(name);
        fs::create_dir(&path).unwrap();
        self.made.push(path.clone());
        path
    }
}

impl Drop for Cgroup2 {
    fn drop(&mut self) {
        for cgroup in &self.made {
            // Its last process was killed but may still be in the cgroup.
            let gone = || fs::remove_dir(cgroup).ok();
            let _ = listenq_lab::wait::within(Duration::from_secs(5), gone);
        }
        let _ = unmount(self.rootfs.join("sys/fs/cgroup"), UnmountFlags::DETACH);
        let mut directory = self.rootfs.join("sys/fs/cgroup");
        // Never removes recursively: the mounted hierarchy is the real one.
        while directory.starts_with(&self.rootfs) && fs::remove_dir(&directory).is_ok() {
            directory.pop();
        }
    }
}
