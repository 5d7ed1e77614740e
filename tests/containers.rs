//! Tests the owner labels of containers: real containers in the cgroups of Kubernetes, Docker and
//! systemd, alone and in a pod.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use std::fs;
use std::os::unix::fs::MetadataExt;

use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::metrics::Labels;
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::runc::{Container, Network, Recipe, fresh_id, is_own_id};
use listenq_lab::tool::require_tool;
use listenq_lab::wait::{TIMEOUT, within};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// Only these listeners may have series, so that listeners of other tests take no places.
const OURS: &str = "--listener.include=:1808[1-8]$";
const UID: &str = "36b6d6be-73b1-065a-f369-b3985edafa09";
const SLICE: &str = "36b6d6be_73b1_065a_f369_b3985edafa09";

/// A network namespace for the daemon, which is its host namespace, and a root directory with the
/// logs of a kubelet.
struct Machine {
    daemon: Daemon,
    host: Netns,
    root: Rootfs,
}

/// The expected labels of `listener_info`, without the address of the listener and its process.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    netns: String,
    unit: String,
    container_id: String,
    pod: [String; 3],
}

// === impl Machine ===

impl Machine {
    fn new(hint: &str) -> Option<Self> {
        if !Netns::require_root() || !require_tool("runc") || !require_tool("/usr/bin/python3") {
            return None;
        }
        let (host, root) = (Netns::new(hint), Rootfs::new());
        root.file("var/log/pods/.kubelet", "");
        let flags = ["--netns=all", "--discovery.interval=1s", &root.flag(), OURS];
        let daemon = Launch::new(BIN).args(&flags).inside(&host).start();
        Some(Self { daemon, host, root })
    }

    /// Creates the logs of a container: the pod's directory and the container's link.
    fn log(&self, namespace: &str, pod: &str, container: &str, id: &str) {
        let log = format!("/var/log/pods/{namespace}_{pod}_{UID}/{container}/0.log");
        self.root.file(log.trim_start_matches('/'), "");
        self.root.link(&format!("var/log/containers/{pod}_{namespace}_{container}-{id}.log"), &log);
    }

    /// Waits until the listener at `port` has the expected labels.
    #[track_caller]
    fn await_said(&self, port: u16, expected: &Said) {
        let mut last = Vec::new();
        let is_said = within(TIMEOUT, || {
            let scrape = self.daemon.scrape();
            scrape.assert_unique();
            let infos = scrape.series("listenq_listener_info").into_iter();
            let is_ours =
                |labels: &Labels| labels["port"] == port.to_string() && !is_of_another_run(labels);
            last = infos.map(|(labels, _)| labels).filter(is_ours).collect();
            (last.len() == 1 && said(&last[0]) == *expected).then_some(())
        });
        assert!(is_said.is_some(), "expected {expected:?}, seen {last:?}");
        assert_eq!((&*last[0]["process"], &*last[0]["address"]), ("python3", "0.0.0.0"));
    }

    /// The labels of the namespace.
    fn netns_info(&self, netns: &str) -> [String; 3] {
        let scrape = self.daemon.scrape().of_netns(netns);
        let infos = scrape.series("listenq_netns_info");
        assert_eq!(infos.len(), 1, "{netns}: {infos:?}");
        ["container_id", "k8s_namespace", "k8s_pod"].map(|label| infos[0].0[label].clone())
    }
}

/// Whether the listener belongs to a container of another run of these tests, which the daemon also
/// sees.
fn is_of_another_run(labels: &Labels) -> bool {
    let id = &labels["container_id"];
    !id.is_empty() && !is_own_id(id)
}

fn said(labels: &Labels) -> Said {
    let label = |name: &str| labels[name].clone();
    Said {
        netns: label("netns"),
        unit: label("unit"),
        container_id: label("container_id"),
        pod: ["k8s_namespace", "k8s_pod", "k8s_container"].map(label),
    }
}

fn in_pod(netns: &str, id: &str, pod: [&str; 3]) -> Said {
    Said {
        netns: netns.chars().take(12).collect(),
        unit: String::new(),
        container_id: id.into(),
        pod: pod.map(String::from),
    }
}

fn start(id: &str, cgroup: String, network: Network, port: u16) -> Container {
    Container::start(&Recipe { id: id.to_owned(), cgroup, network, port, user: 0 })
}

fn at(netns: &Container) -> Network {
    Network::At(netns.netns())
}

#[test]
fn two_containers_of_a_pod_share_a_namespace_and_have_their_own_names() {
    let Some(machine) = Machine::new("pod") else { return };
    let [app, sidecar] = [fresh_id(), fresh_id()];
    machine.log("shop", "web-0", "app", &app);
    machine.log("shop", "web-0", "sidecar", &sidecar);
    let cgroup = |id: &str| format!("/kubepods/burstable/pod{UID}/{id}");
    let first = start(&app, cgroup(&app), Network::New, 18_081);
    let _second = start(&sidecar, cgroup(&sidecar), at(&first), 18_082);
    machine.await_said(18_081, &in_pod(&app, &app, ["shop", "web-0", "app"]));
    machine.await_said(18_082, &in_pod(&app, &sidecar, ["shop", "web-0", "sidecar"]));
    let info = machine.netns_info(&app[..12]);
    assert_eq!(info, [app.as_str(), "shop", "web-0"]);
}

#[test]
fn a_pod_under_systemd_is_shown_by_its_uid_until_its_logs_exist() {
    let Some(machine) = Machine::new("slice") else { return };
    let id = fresh_id();
    let slices = "kubepods.slice/kubepods-burstable.slice";
    let cgroup = format!("/{slices}/kubepods-burstable-pod{SLICE}.slice/cri-containerd-{id}.scope");
    let container = start(&id, cgroup.clone(), Network::New, 18_083);
    machine.await_said(18_083, &in_pod(&id, &id, ["", UID, ""]));
    drop(container);
    machine.log("shop", "db-0", "postgres", &id);
    let again = start(&id, cgroup, Network::New, 18_084);
    machine.await_said(18_084, &in_pod(&id, &id, ["shop", "db-0", "postgres"]));
    assert!(again.pid() > 1);
}

#[test]
fn containers_of_docker_have_an_id_and_no_pod_nor_unit() {
    let Some(machine) = Machine::new("docker") else { return };
    let [plain, systemd] = [fresh_id(), fresh_id()];
    let _plain = start(&plain, format!("/docker/{plain}"), Network::New, 18_085);
    let scope = format!("/system.slice/docker-{systemd}.scope");
    let _systemd = start(&systemd, scope, Network::New, 18_086);
    machine.await_said(18_085, &in_pod(&plain, &plain, [""; 3]));
    machine.await_said(18_086, &in_pod(&systemd, &systemd, [""; 3]));
    assert_eq!(machine.netns_info(&plain[..12]), [&plain, "", ""]);
}

#[test]
fn a_pod_with_the_hosts_network_is_in_the_hosts_namespace() {
    let Some(machine) = Machine::new("hostnet") else { return };
    let id = fresh_id();
    machine.log("kube-system", "proxy-x", "proxy", &id);
    let cgroup = format!("/kubepods/besteffort/pod{UID}/{id}");
    let _container = start(&id, cgroup, Network::At(machine.host.path()), 18_087);
    machine.await_said(18_087, &in_pod("host", &id, ["kube-system", "proxy-x", "proxy"]));
    assert_eq!(machine.netns_info("host"), [""; 3]);
}

#[test]
fn a_service_with_a_private_network_has_a_unit_and_its_namespace_an_inode() {
    let Some(machine) = Machine::new("service") else { return };
    let unit = format!("lq-{}.service", std::process::id());
    let service = start(&fresh_id(), format!("/system.slice/{unit}"), Network::New, 18_088);
    let inode = fs::metadata(service.netns()).unwrap().ino();
    let none = [""; 3].map(String::from);
    let netns = format!("netns:{inode}");
    let expected = Said { netns: netns.clone(), unit, container_id: String::new(), pod: none };
    machine.await_said(18_088, &expected);
    assert_eq!(machine.netns_info(&netns), [""; 3]);
}
