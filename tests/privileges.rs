//! Tests the purpose of each capability: which feature is lost without it, that one log line
//! reports the loss, and that listenq always starts.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::disallowed_types, reason = "a namespace without a mount is held by a program")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use listenq_lab::client::fill;
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::runc::{Container, Network, Recipe, fresh_id};
use listenq_lab::running::Running;
use listenq_lab::tool::require_tool;
use listenq_lab::wait::{TIMEOUT, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const FEATURE: &str = "listenq_feature_available";
/// Only listeners of the host namespace may have series, so that listeners of other tests take no
/// places.
const OURS: &str = "--listener.include=^host/";
const ALL: &str = "sys_admin,sys_ptrace,dac_read_search";

/// The features that a daemon with some capabilities has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Powers {
    /// Samples a namespace that has a mount.
    mounted: bool,
    /// Samples a namespace that only a process of another user holds.
    held: bool,
    /// Names the process behind a socket of another user.
    owner: bool,
}

/// The features by capabilities: the table of the README.
const TABLE: [(&str, Powers); 8] = [
    ("", Powers { mounted: false, held: false, owner: false }),
    ("sys_ptrace", Powers { mounted: false, held: false, owner: false }),
    ("dac_read_search", Powers { mounted: false, held: false, owner: false }),
    ("sys_ptrace,dac_read_search", Powers { mounted: false, held: false, owner: true }),
    ("sys_admin", Powers { mounted: true, held: false, owner: false }),
    ("sys_admin,dac_read_search", Powers { mounted: true, held: false, owner: false }),
    ("sys_admin,sys_ptrace", Powers { mounted: true, held: true, owner: false }),
    (ALL, Powers { mounted: true, held: true, owner: true }),
];

/// Two namespaces besides the daemon's own, and a socket of root.
struct Scene {
    held_name: String,
    listener: Listener,
    _holder: Running,
    mounted: Netns,
    own: Netns,
}

// === impl Scene ===

impl Scene {
    fn new(hint: &str) -> Self {
        let (own, mounted) = (Netns::new(hint), Netns::new("mounted"));
        let listener = own.run(|| Listen::tcp("127.0.0.1:8080").backlog(4).open());
        let mut command = Command::new("unshare");
        let holder = Running::start_as(command.args(["-n", "sleep", "120"]), "sleep");
        let link = format!("/proc/{}/ns/net", holder.pid());
        let held_name = format!("netns:{}", fs::metadata(link).unwrap().ino());
        Self { held_name, listener, _holder: holder, mounted, own }
    }

    /// Starts a daemon as user 65534 with these capabilities and no others.
    fn start(&self, capabilities: &str) -> Daemon {
        let flags = ["--netns=all", "--discovery.interval=1s", OURS];
        start(&self.own, capabilities, &flags)
    }

    fn powers(&self, scrape: &Metrics) -> Powers {
        let is_sampled =
            |netns: &str| scrape.value("listenq_netns_somaxconn", &[("netns", netns)]).is_some();
        let comm = fs::read_to_string("/proc/self/comm").unwrap();
        let owner = [("netns", "host"), ("port", "8080"), ("process", comm.trim_end())];
        Powers {
            mounted: is_sampled(self.mounted.name()),
            held: is_sampled(&self.held_name),
            owner: scrape.value("listenq_listener_info", &owner).is_some(),
        }
    }
}

/// Starts a daemon inside `own` as user 65534 with these capabilities and no others.
fn start(own: &Netns, capabilities: &str, flags: &[&str]) -> Daemon {
    let set = exactly(capabilities);
    let [inherited, ambient, bounding] =
        ["inh-caps", "ambient-caps", "bounding-set"].map(|what| format!("--{what}={set}"));
    let ids = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"];
    let words = [&ids[..], &[&inherited, &ambient, &bounding]].concat();
    Launch::new(BIN).args(flags).through(&words).inside(own).start()
}

/// These capabilities and no others, in the syntax of setpriv.
fn exactly(capabilities: &str) -> String {
    let names = capabilities.split(',').filter(|name| !name.is_empty());
    names.fold("-all".into(), |set, name| format!("{set},+{name}"))
}

/// A scrape after enough time to find everything twice.
fn settled(daemon: &Daemon) -> Metrics {
    eventually("three seconds of samples", TIMEOUT, || {
        let scrape = daemon.scrape();
        let own = [("netns", "host")];
        let sampled = scrape.value("listenq_netns_sampled_seconds_total", &own)?;
        let owners = scrape.value(FEATURE, &[("feature", "owners")]);
        (sampled > 3.0 && owners.is_some()).then_some(scrape)
    })
}

/// Missing features, each with the number of log lines that report it.
fn missing(daemon: &Daemon, scrape: &Metrics) -> Vec<(String, usize)> {
    let log = daemon.log();
    let lines = |feature: &str| {
        let word = format!("feature={feature}");
        let said = |line: &&String| {
            line.contains("level=warn") && line.split_whitespace().any(|part| part == word)
        };
        log.iter().filter(said).count()
    };
    let missing = scrape.series(FEATURE).into_iter().filter(|(_, value)| *value == 0.0);
    missing.map(|(labels, _)| (labels["feature"].clone(), lines(&labels["feature"]))).collect()
}

fn feature(scrape: &Metrics, name: &str) -> bool {
    scrape.value(FEATURE, &[("feature", name)]).unwrap() == 1.0
}

#[test]
fn each_capability_enables_the_features_of_the_table() {
    if !Netns::require_root() {
        return;
    }
    let scene = Scene::new("table");
    let daemons = TABLE.map(|(capabilities, _)| scene.start(capabilities));
    for (daemon, (capabilities, powers)) in daemons.iter().zip(TABLE) {
        let scrape = settled(daemon);
        assert_eq!(scene.powers(&scrape), powers, "with {capabilities:?}");
        // All namespaces are found only if those held by processes are found.
        assert_eq!(feature(&scrape, "namespaces"), powers.held, "with {capabilities:?}");
        assert_eq!(feature(&scrape, "owners"), powers.owner, "with {capabilities:?}");
        let missing = missing(daemon, &scrape);
        // A missing cgroup v2 mount is not a missing privilege: it is logged only on request.
        let said_once = |(name, lines): &(String, usize)| *lines == usize::from(name != "cgroup");
        assert!(missing.iter().all(said_once), "{missing:?}, {capabilities:?}");
        let lost = missing.iter().filter(|(name, _)| name == "namespaces" || name == "owners");
        let expected = usize::from(!powers.held) + usize::from(!powers.owner);
        assert_eq!(lost.count(), expected, "{missing:?} with {capabilities:?}");
    }
}

/// As in the image: the program file permits capabilities, the container limits them, and listenq
/// raises the remaining ones.
#[test]
fn file_capabilities_are_effective_within_the_bounding_set() {
    if !Netns::require_root() || !require_tool("setcap") {
        return;
    }
    let (scene, root) = (Scene::new("file"), Rootfs::new());
    let program = root.place("listenq");
    fs::copy(BIN, &program).unwrap();
    let permit = "cap_sys_admin,cap_sys_ptrace,cap_dac_read_search+p";
    assert!(Command::new("setcap").arg(permit).arg(&program).status().unwrap().success());
    let bounded = TABLE.iter().filter(|(bounds, _)| ["", ALL].contains(bounds));
    let started = bounded.map(|(bounds, powers)| {
        let bounding = format!("--bounding-set={}", exactly(bounds));
        let words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", &bounding];
        let flags = ["--netns=all", "--discovery.interval=1s", OURS];
        let launch = Launch::new(&program).args(&flags).through(&words).inside(&scene.own);
        (launch.start(), bounds, *powers)
    });
    for (daemon, bounds, powers) in started.collect::<Vec<_>>() {
        assert_eq!(scene.powers(&settled(&daemon)), powers, "within {bounds:?}");
    }
}

#[test]
fn an_unprivileged_user_sees_its_own_namespace_like_root() {
    if !Netns::require_root() {
        return;
    }
    let scene = Scene::new("unprivileged");
    let flags = ["--netns=all", "--discovery.interval=1s", OURS];
    let daemon = Launch::new(BIN).args(&flags).as_nobody().inside(&scene.own).start();
    drop(scene.own.run(|| fill(scene.listener.target(), 25)));
    let seen = eventually("the overflows that nstat shows", TIMEOUT, || {
        let refused = scene.own.nstat()["TcpExtListenOverflows"] as f64;
        let seen = daemon.scrape().of_netns("host").listener("127.0.0.1", 8080);
        (refused >= 20.0 && seen.overflows == Some(refused)).then_some(seen)
    });
    let rows = scene.own.ss_listen();
    let row = rows.iter().find(|row| row.port == 8080).unwrap();
    let drops = f64::from(row.drops);
    assert_eq!((row.recv_q, row.send_q), (5, 4));
    assert_eq!((seen.length, seen.limit, seen.drops), (Some(5.0), Some(4.0), Some(drops)));
    let scrape = settled(&daemon);
    for name in ["sock_diag", "unix_diag"] {
        assert!(feature(&scrape, name), "{name}");
    }
    assert!(!feature(&scrape, "namespaces") && !feature(&scrape, "owners"));
}

/// The kubelet creates its directory so that only root may list it.
#[test]
fn pod_names_need_the_capability_to_list_the_kubelets_directory() {
    if !Netns::require_root() || !require_tool("runc") || !require_tool("/usr/bin/python3") {
        return;
    }
    let (own, root, id) = (Netns::new("kubelet"), Rootfs::new(), fresh_id());
    let uid = "36b6d6be-73b1-065a-f369-b3985edafa09";
    root.file(&format!("var/log/pods/shop_web-0_{uid}/app/0.log"), "");
    fs::set_permissions(root.path().join("var/log/pods"), Permissions::from_mode(0o700)).unwrap();
    let cgroup = format!("/kubepods/pod{uid}/{id}");
    let network = Network::At(own.path());
    let _pod = Container::start(&Recipe { id, cgroup, network, port: 18_089, user: 0 });
    let flags = ["--discovery.interval=1s", OURS, &root.flag()];
    let pod = [("port", "18089"), ("k8s_namespace", "shop"), ("k8s_pod", "web-0")];
    for (capabilities, is_named) in [("sys_admin,sys_ptrace", false), (ALL, true)] {
        let daemon = start(&own, capabilities, &flags);
        let scrape = settled(&daemon);
        let named = scrape.value("listenq_listener_info", &pod).is_some();
        assert_eq!((named, feature(&scrape, "kubelet")), (is_named, is_named), "{capabilities}");
        let missing = missing(&daemon, &scrape);
        let lines = missing.iter().find(|(name, _)| name == "kubelet").map(|(_, lines)| *lines);
        assert_eq!(lines, (!is_named).then_some(1), "{capabilities}");
    }
}
