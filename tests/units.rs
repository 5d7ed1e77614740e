//! Tests the shipped units under a real systemd with all their restrictions: what listenq still
//! sees, and what happens when its sampler hangs.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use listenq_lab::http;
use listenq_lab::manager::{Manager, SYSTEMD};
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::process::{Frozen, tool};
use listenq_lab::tool::require_tool;
use listenq_lab::wait::eventually;
use socket2::{Domain, Socket, Type};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const TIMEOUT: Duration = Duration::from_secs(20);
const ADDRESS: &str = "127.0.0.1:19511";
const SERVICE: &str = include_str!("../deploy/systemd/listenq.service");
const UNPRIVILEGED: (&str, &str) =
    ("listenq.service.d/unprivileged.conf", include_str!("../deploy/systemd/unprivileged.conf"));
const SOCKET: (&str, &str) = ("listenq.socket", include_str!("../deploy/systemd/listenq.socket"));
const WITHOUT_SOCKET: (&str, &str) = (
    "listenq.service.d/without-socket.conf",
    include_str!("../deploy/systemd/without-socket.conf"),
);
/// A server of root in a namespace that only its process holds.
const HELD: (&str, &str) = (
    "held.service",
    "[Service]\nPrivateNetwork=yes\nExecStart=/run/bin/listenq-lab listen 127.0.0.1:8080 --for=600\n",
);
/// Mounts two namespaces like `ip netns`; one of them contains no process.
const MOUNTED: (&str, &str) = (
    "mounted.service",
    "[Service]\nExecStartPre=ip netns add empty\nExecStartPre=ip netns add mounted\n\
     ExecStartPre=ip -n mounted link set lo up\n\
     ExecStart=ip netns exec mounted /run/bin/listenq-lab listen 127.0.0.1:9090 --for=600\n",
);
/// Creates the kubelet's directory like the kubelet: only root may list it.
const PODS: (&str, &str) =
    ("pods.service", "[Service]\nType=oneshot\nExecStart=mkdir -m 700 /var/log/pods\n");

/// A systemd instance with the shipped units and some others.
struct Scene {
    manager: Manager,
    ns: Netns,
}

// === impl Scene ===

impl Scene {
    fn new(hint: &str, units: &[(&str, &str)]) -> Self {
        let ns = Netns::new(hint);
        // Only the path of the program is changed.
        let service = SERVICE.replace("ExecStart=/usr/bin/", "ExecStart=/run/bin/");
        let shipped = [("listenq.service", &*service), SOCKET, HELD, MOUNTED, PODS];
        let units = [&shipped, units].concat();
        let manager = Manager::boot(&ns, &units, &[Path::new(BIN), tool()]);
        Self { manager, ns }
    }

    fn get(&self, path: &str) -> Option<String> {
        let answer = http::get(Some(&self.ns.path()), ADDRESS.parse().unwrap(), path, &[]).ok()?;
        (answer.status == 200).then(|| answer.text().to_owned())
    }

    fn scrape(&self) -> Option<Metrics> {
        Metrics::parse(&self.get("/metrics")?).ok()
    }

    fn listenq(&self, property: &str) -> String {
        self.manager.property("listenq.service", property)
    }
}

fn is_possible() -> bool {
    Netns::require_root() && require_tool(SYSTEMD)
}

/// The sampled namespaces; all namespaces without a name are shown as `netns:`.
fn namespaces(scrape: &Metrics) -> Vec<String> {
    let all = scrape.series("listenq_netns_somaxconn").into_iter();
    let mut names: Vec<_> = all.map(|(mut labels, _)| labels.remove("netns").unwrap()).collect();
    for name in names.iter_mut().filter(|name| name.starts_with("netns:")) {
        *name = "netns:".into();
    }
    names.sort();
    names
}

/// The process and the unit of the listener at this port.
fn owner(scrape: &Metrics, port: &str) -> Option<(String, String)> {
    let all = scrape.series("listenq_listener_info").into_iter();
    let mut found = all.filter(|(labels, _)| labels["port"] == port);
    let (labels, _) = found.next()?;
    Some((labels["process"].clone(), labels["unit"].clone()))
}

/// The missing features.
fn missing(scrape: &Metrics) -> BTreeSet<String> {
    let all = scrape.series("listenq_feature_available").into_iter();
    all.filter(|(_, value)| *value == 0.0).map(|(labels, _)| labels["feature"].clone()).collect()
}

fn words<const N: usize>(words: [&str; N]) -> BTreeSet<String> {
    words.map(str::to_owned).into()
}

#[test]
fn the_shipped_unit_sees_every_namespace_and_owner() {
    if !is_possible() {
        return;
    }
    let scene = Scene::new("unit", &[]);
    for unit in ["pods", "held", "listenq"] {
        scene.manager.start(&format!("{unit}.service"));
    }
    // Mounted after listenq got its own mount namespace.
    scene.manager.start("mounted.service");
    let owned = |process: &str, unit: &str| Some((process.to_owned(), unit.to_owned()));
    // A namespace is found within 5 s, and a new listener has series after 15 s.
    let scrape = eventually("both servers' owners", 3 * TIMEOUT, || {
        let scrape = scene.scrape()?;
        let held = owner(&scrape, "8080") == owned("listenq-lab", "held.service");
        let mounted = owner(&scrape, "9090") == owned("listenq-lab", "mounted.service");
        (held && mounted).then_some(scrape)
    });
    assert_eq!(namespaces(&scrape), ["empty", "host", "mounted", "netns:"]);
    // The scene is a separate pid namespace, in which listenq cannot know whether it found
    // everything.
    assert_eq!(missing(&scrape), words(["namespaces", "owners"]));
    let inaccessible = scrape.value("listenq_namespaces", &[("state", "inaccessible")]);
    assert_eq!(inaccessible, Some(0.0));
    let errors = scrape.series("listenq_sample_errors_total").into_iter();
    assert_eq!(errors.filter(|(_, count)| *count > 0.0).collect::<Vec<_>>(), []);
}

#[test]
fn the_unprivileged_unit_sees_its_namespace_and_logs_missing_features() {
    if !is_possible() {
        return;
    }
    let scene = Scene::new("drop-in", &[UNPRIVILEGED]);
    for unit in ["pods", "held", "mounted", "listenq"] {
        scene.manager.start(&format!("{unit}.service"));
    }
    let scrape = eventually("a look for owners", TIMEOUT, || {
        scene.scrape().filter(|scrape| missing(scrape).contains("owners"))
    });
    assert_eq!(missing(&scrape), words(["kubelet", "owners"]));
    assert_eq!(namespaces(&scrape), ["host"]);
    let inaccessible = scrape.value("listenq_namespaces", &[("state", "inaccessible")]);
    assert_eq!(inaccessible.unwrap_or(0.0), 0.0);
    assert!(scrape.of_netns("host").listener("::", 19_511).limit.is_some());
}

#[test]
fn the_watchdog_restarts_a_daemon_with_a_stuck_sampler() {
    if !is_possible() {
        return;
    }
    let sooner = "[Service]\nWatchdogSec=2s\nRestartSec=100ms\n";
    let scene = Scene::new("watchdog", &[("listenq.service.d/sooner.conf", sooner)]);
    scene.manager.start("listenq.service");
    assert_eq!(scene.listenq("NRestarts"), "0");
    let is_sampler = |thread: &u32| {
        fs::read_to_string(format!("/proc/{thread}/comm")).is_ok_and(|comm| comm == "sampler\n")
    };
    let threads = scene.manager.threads("listenq.service");
    let sampler = threads.into_iter().find(is_sampler).expect("a thread that samples");
    let before = scene.listenq("MainPID");
    let _frozen = Frozen::new(sampler);
    // listenq still serves, and systemd restarts it nevertheless.
    assert!(scene.get("/-/healthy").is_some());
    eventually("a restart", TIMEOUT, || (scene.listenq("NRestarts") == "1").then_some(()));
    eventually("samples again", TIMEOUT, || scene.get("/-/ready"));
    assert_ne!(scene.listenq("MainPID"), before);
}

#[test]
fn systemd_listens_for_listenq_and_the_first_scrape_starts_it() {
    if !is_possible() {
        return;
    }
    let scene = Scene::new("socket", &[]);
    scene.manager.start("listenq.socket");
    assert_eq!(scene.listenq("ActiveState"), "inactive");
    // systemd opened the socket, with the backlog of the unit.
    let limit = || scene.scrape()?.of_netns("host").listener("::", 19_511).limit;
    assert_eq!(eventually("a sample", TIMEOUT, limit), 1024.0);
    assert_eq!(scene.listenq("ActiveState"), "active");
}

#[test]
fn nobody_can_open_the_port_while_listenq_is_down() {
    if !is_possible() {
        return;
    }
    let scene = Scene::new("killed", &[]);
    // Starting the service also starts the socket.
    scene.manager.start("listenq.service");
    assert_eq!(scene.manager.property("listenq.socket", "ActiveState"), "active");
    let killed =
        scene.manager.command("systemctl").args(["kill", "-s", "KILL", "listenq"]).status();
    assert!(killed.unwrap().success());
    eventually("its end", TIMEOUT, || (scene.listenq("ActiveState") == "activating").then_some(()));
    let port: u16 = 19_511;
    for address in
        [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), (Ipv6Addr::LOCALHOST, port).into()]
    {
        let error = scene.ns.run(|| opened(address)).expect_err("the port is taken");
        assert_eq!(error.kind(), ErrorKind::AddrInUse, "{address}: {error}");
    }
    // A scrape during the restart waits, and gets its response.
    eventually("an answer", TIMEOUT, || scene.get("/-/healthy"));
    assert_eq!(scene.listenq("NRestarts"), "1");
}

/// Opens a listener as an attacker would.
fn opened(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)?;
    Ok(socket)
}

#[test]
fn without_the_socket_listenq_opens_the_port_itself() {
    if !is_possible() {
        return;
    }
    let masked = ("listenq.socket", "");
    let scene = Scene::new("no-socket", &[WITHOUT_SOCKET, masked]);
    scene.manager.start("listenq.service");
    assert_eq!(scene.listenq("ActiveState"), "active");
    assert!(scene.get("/-/healthy").is_some());
}
