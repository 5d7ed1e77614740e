//! Tests the owner of a listener: real servers with masters and workers, sockets passed to other
//! processes, and one info series at any time.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::disallowed_types, reason = "owners are programs")]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::metrics::{Labels, Metrics};
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::running::Running;
use listenq_lab::tool::require_tool;
use listenq_lab::wait::{TIMEOUT, eventually};
use rustix::process::{Pid, Signal, kill_process};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const GAP: Duration = Duration::from_millis(100);
const PHP: &str = "php-fpm8.2";
const OWNER: [&str; 6] =
    ["process", "unit", "container_id", "k8s_namespace", "k8s_pod", "k8s_container"];
const NAME: [&str; 4] = ["netns", "protocol", "address", "port"];

/// A program that listens, sets its process name, starts a child with another name that also holds
/// the socket, and waits.
const PREFORK: &str = r#"
import os, signal, socket, sys
port, master, worker = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
def call(name):
    with open("/proc/self/comm", "w") as comm:
        comm.write(name)
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", port))
children = []
for name in worker:
    child = os.fork()
    if child == 0:
        call(name)
        signal.pause()
    children.append(child)
def end(*_):
    for child in children:
        os.kill(child, signal.SIGKILL)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
call(master)
listener.listen(16)
signal.pause()
"#;

fn prefork(ns: &Netns, port: u16, master: &str, workers: &[&str]) -> Running {
    let mut command = ns.command("python3");
    command.args(["-c", PREFORK, &port.to_string(), master]).args(workers);
    Running::start_as(&mut command, master)
}

fn root_and(tools: &[&str]) -> bool {
    Netns::require_root() && tools.iter().all(|tool| require_tool(tool))
}

/// The listener labels of a series.
fn listener(labels: &Labels) -> [String; 4] {
    NAME.map(|name| labels[name].clone())
}

/// Checks that every listener has exactly one info series with all labels, and that no other info
/// series exists.
fn assert_one_info_each(scrape: &Metrics) {
    scrape.assert_unique();
    let infos = scrape.series("listenq_listener_info");
    let expected: BTreeSet<&str> = NAME.into_iter().chain(OWNER).collect();
    for (labels, value) in &infos {
        assert_eq!(labels.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected);
        assert_eq!(*value, 1.0);
    }
    let of = |series: &[(Labels, f64)]| {
        let mut names: Vec<_> = series.iter().map(|(labels, _)| listener(labels)).collect();
        names.sort();
        names
    };
    assert_eq!(of(&infos), of(&scrape.series("listenq_listener_sockets")));
}

/// Scrapes every 100 ms until the listener at `address` and `port` belongs to `process`. Checks
/// each scrape for one owner per listener.
#[track_caller]
fn await_owner(daemon: &Daemon, address: &str, port: &str, process: &str) -> Labels {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let scrape = daemon.scrape();
        assert_one_info_each(&scrape);
        let infos = scrape.series("listenq_listener_info").into_iter();
        let named = |labels: &Labels| labels["address"] == address && labels["port"] == port;
        let info = infos.map(|(labels, _)| labels).find(named);
        match info {
            Some(info) if info["process"] == process => return info,
            info => assert!(Instant::now() < deadline, "not of {process}: {info:?}"),
        }
        std::thread::sleep(GAP);
    }
}

/// Checks that `listenq list` and the daemon report the same owner for every listener.
fn assert_list_agrees(ns: &Netns, daemon: &Daemon) {
    let own_port = daemon.address().port().to_string();
    let output = Launch::new(BIN).args(&["list", "--json"]).inside(ns).run();
    assert!(output.status.success(), "{}", output.stderr);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&output.stdout).unwrap();
    let scrape = daemon.scrape();
    let mut compared = 0;
    for (labels, _) in scrape.series("listenq_listener_info") {
        let is_it = |row: &&serde_json::Value| NAME.iter().all(|n| row[*n] == labels[*n].as_str());
        let row = rows.iter().find(is_it).unwrap_or_else(|| panic!("{labels:?} in {rows:?}"));
        for name in OWNER {
            assert_eq!(row[name], labels[name].as_str(), "{name} of {row}");
        }
        compared += usize::from(labels["port"] != own_port);
    }
    assert!(compared >= 1);
}

#[test]
fn nginx_owns_the_socket_that_its_workers_share() {
    if !root_and(&["nginx"]) {
        return;
    }
    let (ns, root) = (Netns::new("nginx"), Rootfs::new());
    let at = root.path().display();
    let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {at}/{what};"))
        .concat();
    let config = format!(
        "daemon off; user root; worker_processes 2; pid {at}/pid; error_log {at}/error.log;\n\
         events {{ worker_connections 32; }}\n\
         http {{ access_log off; {temp} server {{ listen 127.0.0.1:8081 backlog=33; }} }}"
    );
    let config = root.file("nginx.conf", config).display().to_string();
    let log = root.path().join("error.log").display().to_string();
    let daemon = Launch::new(BIN).inside(&ns).start();
    let mut command = ns.command("nginx");
    let _nginx = Running::start_as(command.args(["-e", &log, "-c", &config]), "nginx");
    await_owner(&daemon, "127.0.0.1", "8081", "nginx");
    let workers = "two workers beside the master";
    eventually(workers, TIMEOUT, || (holders(&ns, "nginx") >= 3).then_some(()));
    assert_eq!(daemon.scrape().listener("127.0.0.1", 8081).limit, Some(33.0));
    assert_list_agrees(&ns, &daemon);
}

/// The number of processes with this name in the namespace.
fn holders(ns: &Netns, comm: &str) -> usize {
    let pids = Command::new("ip").args(["netns", "pids", ns.name()]).output().unwrap();
    let text = String::from_utf8(pids.stdout).unwrap();
    let comms =
        text.lines().filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok());
    comms.filter(|name| name.trim_end() == comm).count()
}

#[test]
fn php_fpm_owns_its_sockets_of_either_kind() {
    if !root_and(&[PHP]) {
        return;
    }
    let (ns, root) = (Netns::new("php"), Rootfs::new());
    let (at, socket) = (root.path().display(), root.path().join("php.sock").display().to_string());
    let pool = "user = nobody\ngroup = nogroup\npm = static\npm.max_children = 2\n";
    let config = format!(
        "[global]\nerror_log = {at}/error.log\npid = {at}/pid\n\
         [tcp]\nlisten = 127.0.0.1:9000\nlisten.backlog = 17\n{pool}\
         [unix]\nlisten = {socket}\nlisten.backlog = 19\n{pool}"
    );
    let config = root.file("fpm.conf", config).display().to_string();
    let daemon = Launch::new(BIN).inside(&ns).start();
    let mut command = ns.command(PHP);
    let _php = Running::start_as(command.args(["--nodaemonize", "-y", &config]), PHP);
    await_owner(&daemon, "127.0.0.1", "9000", PHP);
    await_owner(&daemon, &socket, "", PHP);
    let scrape = daemon.scrape();
    let limit = |address| scrape.value("listenq_accept_queue_limit", &[("address", address)]);
    assert_eq!(scrape.listener("127.0.0.1", 9000).limit, Some(17.0));
    assert_eq!(limit(&socket), Some(19.0));
    assert_list_agrees(&ns, &daemon);
}

#[test]
fn the_owner_is_the_master_and_not_a_worker() {
    if !root_and(&["python3"]) {
        return;
    }
    let ns = Netns::new("prefork");
    let _server = prefork(&ns, 8082, "lq-master", &["lq-worker"; 4]);
    eventually("workers", TIMEOUT, || (holders(&ns, "lq-worker") == 4).then_some(()));
    let daemon = Launch::new(BIN).inside(&ns).start();
    await_owner(&daemon, "127.0.0.1", "8082", "lq-master");
    assert_list_agrees(&ns, &daemon);
}

#[test]
fn the_owner_is_the_service_and_not_systemd() {
    if !root_and(&["python3"]) {
        return;
    }
    let ns = Netns::new("passed");
    let _both = prefork(&ns, 8083, "systemd", &["lq-service"]);
    let _alone = prefork(&ns, 8084, "systemd", &[]);
    eventually("the service", TIMEOUT, || (holders(&ns, "lq-service") == 1).then_some(()));
    let daemon = Launch::new(BIN).inside(&ns).start();
    await_owner(&daemon, "127.0.0.1", "8083", "lq-service");
    await_owner(&daemon, "127.0.0.1", "8084", "systemd");
    assert_list_agrees(&ns, &daemon);
}

#[test]
fn a_changed_owner_has_one_info_series_and_resets_no_counter() {
    if !root_and(&["python3"]) {
        return;
    }
    let ns = Netns::new("restart");
    let daemon = Launch::new(BIN).inside(&ns).start();
    let mut before = daemon.scrape();
    for name in ["lq-one", "lq-two", "lq-three"] {
        let server = prefork(&ns, 8085, name, &[]);
        await_owner(&daemon, "127.0.0.1", "8085", name);
        drop(server);
        eventually("the end of the server", TIMEOUT, || {
            let scrape = daemon.scrape();
            assert_one_info_each(&scrape);
            (scrape.listener("127.0.0.1", 8085).sockets == Some(0.0)).then_some(())
        });
        let after = daemon.scrape();
        assert_eq!(after.fallen_since(&before), [""; 0]);
        before = after;
    }
}

/// The test does not wait for the refresh of all owners, which happens once per minute.
#[test]
fn a_socket_that_is_passed_on_has_a_new_owner_when_the_old_one_ends() {
    if !root_and(&["python3"]) {
        return;
    }
    let ns = Netns::new("heir");
    let server = prefork(&ns, 8087, "lq-first", &["lq-heir"]);
    eventually("the heir", TIMEOUT, || (holders(&ns, "lq-heir") == 1).then_some(()));
    let daemon = Launch::new(BIN).args(&["--discovery.interval=1s"]).inside(&ns).start();
    await_owner(&daemon, "127.0.0.1", "8087", "lq-first");
    let before = daemon.scrape();
    // The parent of the killed process does not wait for it: the process becomes a zombie, which
    // holds no descriptors. Its worker keeps the socket.
    let first = Pid::from_raw(server.pid() as i32).unwrap();
    kill_process(first, Signal::KILL).unwrap();
    await_owner(&daemon, "127.0.0.1", "8087", "lq-heir");
    assert_list_agrees(&ns, &daemon);
    assert_eq!(daemon.scrape().fallen_since(&before), [""; 0]);
}

#[test]
fn unknown_owner_labels_are_empty() {
    if !root_and(&["python3"]) {
        return;
    }
    let (ns, root) = (Netns::new("unknown"), Rootfs::new());
    let _server = prefork(&ns, 8086, "lq-hidden", &[]);
    // The user `nobody` may not read root's descriptors, and the empty root directory has no
    // cgroups.
    let daemon = Launch::new(BIN).args(&[&root.flag()]).as_nobody().inside(&ns).start();
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        let info = await_owner(&daemon, "127.0.0.1", "8086", "");
        assert_eq!(OWNER.map(|name| info[name].as_str()), [""; 6]);
        std::thread::sleep(GAP);
    }
    let features = daemon.scrape();
    assert_eq!(features.value("listenq_feature_available", &[("feature", "owners")]), Some(0.0));
}

/// A program that listens, waits for SIGHUP, and then becomes `sleep`, which keeps the socket.
const EXEC: &str = r#"
import os, signal, socket, sys
listener = socket.socket()
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.set_inheritable(True)
listener.listen(16)
signal.signal(signal.SIGHUP, lambda *_: os.execvp("sleep", ["sleep", "120"]))
while True:
    signal.pause()
"#;

#[test]
fn a_process_that_runs_another_program_is_the_owner_with_the_new_name() {
    if !root_and(&["python3"]) {
        return;
    }
    let ns = Netns::new("exec");
    let mut command = ns.command("python3");
    let server = Running::start(command.args(["-c", EXEC, "8097"]));
    let daemon = Launch::new(BIN).args(&["--discovery.interval=1s"]).inside(&ns).start();
    await_owner(&daemon, "127.0.0.1", "8097", "python3");
    kill_process(Pid::from_raw(server.pid() as i32).unwrap(), Signal::HUP).unwrap();
    let begin = Instant::now();
    await_owner(&daemon, "127.0.0.1", "8097", "sleep");
    // Well before the next search of all owners, which comes after a minute.
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}
