//! Tests the privileges in the Helm chart. The daemon runs with the privileges of the rendered pod,
//! under `runc` and the seccomp filter of container runtimes; then without each of the privileges;
//! and from an image whose program has file capabilities and from one whose program has none.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::disallowed_types, reason = "Helm is a library for Python")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use listenq_lab::client::fill;
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::threads_of;
use listenq_lab::metrics::{Labels, Metrics};
use listenq_lab::netns::Netns;
use listenq_lab::pod::{Node, Pod};
use listenq_lab::rootfs::Rootfs;
use listenq_lab::runc::{Container, Network, Recipe, fresh_id};
use listenq_lab::tool::require_tool;
use listenq_lab::wait::{eventually, within};
use serde_json::{Value, json};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// The Python interpreter that tests/chart.sh installs.
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/chart/venv/bin/python");
const TIMEOUT: Duration = Duration::from_secs(60);
const UID: &str = "5d0ad1f5-6c59-4b63-9a0f-9b1d9df3c8b2";
/// The ports of the listener on the node and of the listener in the pod.
const OWN: u16 = 18_091;
const SERVER: u16 = 18_092;
const OURS: &str = "--listener.include=:1809[12]$";
/// bcrypt of "right", made by crypt(3).
const RIGHT: &str = "$2y$08$abcdefghijklmnopqrstuuM7WmALSPQG/ubL8NksTdR4H7Y2WXZ..";
/// The header of user "u" with password "right".
const AS_U: [(&str, &str); 1] = [("authorization", "Basic dTpyaWdodA==")];

/// A node's network namespace, and a listener of root in it.
struct Host {
    netns: Netns,
    listener: Listener,
}

/// A node's files, and a pod on it with a server of a user other than root.
struct Scene {
    root: Rootfs,
    /// The id of the container, from which the name of its namespace is derived.
    id: String,
    _server: Container,
}

/// What a scrape of a daemon shows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    /// Whether the listener of root in the node's network namespace has the name of its process.
    own_is_named: bool,
    /// The names of process, pod and container of the server in the pod; `None` when its namespace
    /// is not sampled.
    server: Option<[String; 3]>,
    /// Features that do not work.
    missing: Vec<String>,
}

/// A change of the pod, and what the daemon must show after it.
struct Case {
    what: &'static str,
    change: fn(&mut Value),
    program: Program,
    seen: Seen,
}

/// The program in the image.
#[derive(Debug, Clone, Copy)]
enum Program {
    /// The program file permits the capabilities of the pod, as far as the container has them.
    Permitted,
    /// The program file has no capabilities.
    Plain,
}

/// The file of a program. A copy is removed when this is dropped.
struct ProgramFile {
    path: PathBuf,
    is_copy: bool,
}

// === impl Host ===

impl Host {
    fn new() -> Self {
        let netns = Netns::new("node");
        let at = format!("127.0.0.1:{OWN}");
        let listener = netns.run(|| Listen::tcp(&at).backlog(4).open());
        Self { netns, listener }
    }
}

// === impl Scene ===

impl Scene {
    fn new() -> Self {
        let (root, id) = (Rootfs::new(), fresh_id());
        let log = format!("var/log/pods/shop_web-0_{UID}/app/0.log");
        root.file(&log, "");
        root.link(&format!("var/log/containers/web-0_shop_app-{id}.log"), &format!("/{log}"));
        // The kubelet creates the directory with this mode.
        fs::set_permissions(root.path().join("var/log/pods"), PermissionsExt::from_mode(0o750))
            .unwrap();
        let cgroup = format!("/kubepods/burstable/pod{UID}/{id}");
        let server =
            Recipe { id: id.clone(), cgroup, network: Network::New, port: SERVER, user: 1000 };
        Self { root, id, _server: Container::start(&server) }
    }

    /// Starts the daemon where the node's network is `host`.
    fn start(&self, host: &Host, pod: &Value, program: &Path) -> Pod {
        Pod::start(Node { host: &host.netns, root: &self.root }, pod, program, true)
    }
}

// === impl Seen ===

impl Seen {
    /// What a daemon with all privileges shows.
    fn all() -> Self {
        Self { own_is_named: true, server: server("python3", "web-0", "app"), missing: Vec::new() }
    }

    fn in_scrape(scrape: &Metrics, scene: &Scene) -> Self {
        let own = info(scrape, "host", OWN).expect("the own listener is always seen");
        let labels = ["process", "k8s_pod", "k8s_container"];
        let named = |info: &Labels| labels.map(|label| info[label].clone());
        let features = scrape.series("listenq_feature_available").into_iter();
        let missing = features.filter(|(_, value)| *value == 0.0);
        Self {
            own_is_named: own["process"] == comm(),
            server: info(scrape, &scene.id[..12], SERVER).as_ref().map(named),
            missing: missing.map(|(labels, _)| labels["feature"].clone()).collect(),
        }
    }
}

/// The name of this process.
fn comm() -> String {
    fs::read_to_string("/proc/self/comm").unwrap().trim_end().to_owned()
}

fn server(process: &str, pod: &str, container: &str) -> Option<[String; 3]> {
    Some([process, pod, container].map(str::to_owned))
}

fn info(scrape: &Metrics, netns: &str, port: u16) -> Option<Labels> {
    let infos = scrape.series("listenq_listener_info").into_iter().map(|(labels, _)| labels);
    let mut infos = infos.filter(|info| info["netns"] == netns && info["port"] == port.to_string());
    let info = infos.next();
    assert_eq!(infos.next(), None);
    info
}

// === impl ProgramFile ===

impl Drop for ProgramFile {
    fn drop(&mut self) {
        if self.is_copy {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn has_tools() -> bool {
    Netns::require_root()
        && ["runc", "setcap", "/usr/bin/python3", PYTHON].iter().all(|tool| require_tool(tool))
}

/// The specification of the pod that the chart renders from these values files, with a discovery
/// interval of one second.
fn rendered(values: &[PathBuf]) -> Value {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chart/chart.py");
    let output = Command::new(PYTHON).arg(program).args(values).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let objects: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let daemon_set = objects.into_iter().find(|object| object["kind"] == "DaemonSet").unwrap();
    let mut pod = daemon_set["spec"]["template"]["spec"].clone();
    let args = pod["containers"][0]["args"].as_array_mut().unwrap();
    args.extend(["--discovery.interval=1s", OURS].map(Value::from));
    pod
}

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Waits until the daemon shows what is expected; after the timeout returns what it shows. Compares
/// only after four seconds of samples: before, a daemon that should show nothing always matches.
fn seen(pod: &Pod, scene: &Scene, expected: &Seen) -> Seen {
    let look = || {
        let scrape = pod.daemon.scrape();
        let sampled = scrape.value("listenq_netns_sampled_seconds_total", &[("netns", "host")]);
        (sampled > Some(4.0)).then(|| Seen::in_scrape(&scrape, scene))
    };
    let found = within(TIMEOUT, || look().filter(|seen| seen == expected));
    found.or_else(look).expect("four seconds of samples")
}

/// Removes a capability from the pod.
fn take_capability(pod: &mut Value, name: &str) {
    let added = pod["containers"][0]["securityContext"]["capabilities"]["add"].as_array_mut();
    let added = added.unwrap();
    let before = added.len();
    added.retain(|capability| capability != name);
    assert_eq!(added.len() + 1, before);
}

/// Removes the mounts of the node's directories below this path.
fn take_mounts(pod: &mut Value, below: &str) {
    let mounts = pod["containers"][0]["volumeMounts"].as_array_mut().unwrap();
    let before = mounts.len();
    let path = |mount: &Value| mount["mountPath"].as_str().unwrap().to_owned();
    mounts.retain(|mount| !path(mount).starts_with(&format!("/host{below}")));
    assert!(mounts.len() < before);
}

fn cases() -> [Case; 10] {
    let all = Seen::all();
    let blind = Seen { server: None, ..all.clone() };
    let missing = |features: &[&str]| features.iter().map(|name| (*name).to_owned()).collect();
    let nothing =
        Seen { own_is_named: false, missing: missing(&["namespaces", "owners"]), ..blind.clone() };
    let case = |what, change, seen| Case { what, change, program: Program::Permitted, seen };
    let plain = |what, change, seen| Case { what, change, program: Program::Plain, seen };
    [
        case("as it is", |_| (), all.clone()),
        case(
            "without SYS_ADMIN",
            |pod| take_capability(pod, "SYS_ADMIN"),
            Seen { missing: missing(&["namespaces"]), ..blind.clone() },
        ),
        case("without SYS_PTRACE", |pod| take_capability(pod, "SYS_PTRACE"), nothing.clone()),
        case(
            "without DAC_READ_SEARCH",
            |pod| take_capability(pod, "DAC_READ_SEARCH"),
            Seen {
                own_is_named: false,
                server: server("", "web-0", "app"),
                missing: missing(&["owners"]),
            },
        ),
        case(
            "without hostPID",
            |pod| pod["hostPID"] = json!(false),
            Seen { own_is_named: false, missing: missing(&["namespaces", "owners"]), ..blind },
        ),
        case(
            "without the kubelet's logs",
            |pod| take_mounts(pod, "/var/log"),
            Seen { server: server("python3", UID, ""), ..all.clone() },
        ),
        case(
            "without cgroups",
            |pod| take_mounts(pod, "/sys/fs/cgroup"),
            Seen { missing: missing(&["cgroup"]), ..all.clone() },
        ),
        case(
            "without a way to new privileges",
            |pod| {
                let security = &mut pod["containers"][0]["securityContext"];
                security["allowPrivilegeEscalation"] = json!(false);
            },
            all.clone(),
        ),
        plain("in an image that lost the file's capabilities", |_| (), nothing),
        plain(
            "in such an image as root",
            |pod| pod["securityContext"]["runAsUser"] = json!(0),
            all,
        ),
    ]
}

/// The program's file for this pod.
fn program(pod: &Value, program: Program) -> ProgramFile {
    let added = pod["containers"][0]["securityContext"]["capabilities"]["add"].as_array().unwrap();
    let added: Vec<_> =
        added.iter().map(|name| format!("cap_{}", name.as_str().unwrap())).collect();
    if matches!(program, Program::Plain) || added.is_empty() {
        return ProgramFile { path: BIN.into(), is_copy: false };
    }
    let capabilities = added.join(",").to_lowercase();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("listenq-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::copy(BIN, &path).unwrap();
    let set = Command::new("setcap").arg(format!("{capabilities}+ep")).arg(&path).status();
    assert!(set.unwrap().success());
    ProgramFile { path, is_copy: true }
}

#[test]
fn each_privilege_of_the_pod_is_necessary_and_together_they_are_sufficient() {
    if !has_tools() {
        return;
    }
    let scene = Scene::new();
    let pod = rendered(&[]);
    let cases = cases();
    let hosts = cases.each_ref().map(|_| Host::new());
    let start = |(case, host): (&Case, &Host)| {
        let mut pod = pod.clone();
        (case.change)(&mut pod);
        scene.start(host, &pod, &program(&pod, case.program).path)
    };
    let pods: Vec<_> = cases.iter().zip(&hosts).map(start).collect();
    for (case, pod) in cases.iter().zip(&pods) {
        let seen = seen(pod, &scene, &case.seen);
        assert_eq!(seen, case.seen, "{}; its log: {:#?}", case.what, pod.daemon.log());
    }
}

/// The kernel's fields of the sampler thread: user, effective capabilities, capability bounding
/// set, no_new_privs (1 is set) and seccomp mode (2 is a filter).
fn privileges(pod: &Pod) -> [String; 5] {
    let mut threads = threads_of(pod.pid()).into_iter();
    let sampler = threads.find(|(_, name, _)| name == "sampler").unwrap();
    let status = fs::read_to_string(sampler.0.join("status")).unwrap();
    ["Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp"].map(|field| {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
        line.unwrap().split_whitespace().next().unwrap().trim_start_matches('0').to_owned()
    })
}

/// System calls that an attacker with SYS_ADMIN could use. Prints the name of each call that
/// succeeds or fails with another error than EPERM.
const FORBIDDEN: &str = "
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUTS, NEWNET = 0x20000, 0x4000000, 0x40000000
def other(name):
    return os.open('/proc/self/ns/' + name, os.O_RDONLY)
calls = {
    'unshare': lambda: libc.unshare(NEWNS),
    'unshare a network namespace': lambda: libc.unshare(NEWNET),
    'mount': lambda: libc.mount(b'none', b'/dev', b'tmpfs', 0, None),
    'setns of a mount namespace': lambda: libc.setns(other('mnt'), NEWNS),
    'setns of a namespace of any kind': lambda: libc.setns(other('uts'), 0),
    'ptrace': lambda: libc.ptrace(0, 0, 0, 0),
    'bpf': lambda: libc.syscall(321, 0, 0, 0),
    'packet socket': lambda: libc.socket(17, socket.SOCK_RAW, 0),
    'audit socket': lambda: libc.socket(16, socket.SOCK_RAW, 9),
    'limits of another process': lambda: libc.prlimit(1, 7, None, None),
    'open_by_handle_at': lambda: libc.syscall(304, 0, 0, 0),
}
for name, call in calls.items():
    if call() != -1 or ctypes.get_errno() != errno.EPERM:
        print(name)
print('entered' if libc.setns(other('net'), NEWNET) == 0 else 'setns of a network namespace')
";

/// The calls of [`FORBIDDEN`] that a process in the pod's container can make with the pod's
/// capabilities.
fn possible(pod: &Pod) -> Vec<String> {
    let python = "/usr/bin/python3";
    let options = ["--user=0:0", "--cap=CAP_SYS_ADMIN", "--cap=CAP_SYS_PTRACE"];
    let output = pod.exec(&options, &[python, "-c", FORBIDDEN]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
#[cfg(target_arch = "x86_64")]
fn under_its_own_seccomp_profile_all_features_work_and_other_system_calls_fail() {
    if !has_tools() {
        return;
    }
    let (scene, hosts) = (Scene::new(), [Host::new(), Host::new()]);
    let own = in_repository("deploy/helm/listenq/values-seccomp.yaml");
    let pods = [(vec![own], &hosts[0]), (vec![], &hosts[1])].map(|(values, host)| {
        let pod = rendered(&values);
        scene.start(host, &pod, &program(&pod, Program::Permitted).path)
    });
    let [own, default] = pods.each_ref().map(possible);
    assert_eq!(own, ["entered"]);
    // The runtime's filter allows most of these calls, so listenq's own filter denies them above.
    assert!(default.len() >= 6 && default.contains(&"mount".to_owned()), "{default:?}");
    assert_eq!(seen(&pods[0], &scene, &Seen::all()), Seen::all());
    let explained = pods[0].exec(&[], &["/listenq", "explain"]);
    let text = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(explained.status.success() && text.contains("asked the daemon at"), "{explained:?}");
}

#[test]
fn the_pod_runs_with_no_more_than_the_chart_says() {
    if !has_tools() {
        return;
    }
    let (scene, host) = (Scene::new(), Host::new());
    // DAC_READ_SEARCH, SYS_PTRACE and SYS_ADMIN are the bits 2, 19 and 21.
    let of = |values: &[PathBuf]| {
        let pod = rendered(values);
        privileges(&scene.start(&host, &pod, &program(&pod, Program::Permitted).path))
    };
    assert_eq!(of(&[]), ["65534", "280004", "280004", "", "2"]);
    let unprivileged = in_repository("deploy/helm/listenq/values-unprivileged.yaml");
    assert_eq!(of(&[unprivileged]), ["65534", "", "", "1", "2"]);
}

#[test]
fn the_unprivileged_pod_sees_the_nodes_own_listeners() {
    if !has_tools() {
        return;
    }
    let (scene, host) = (Scene::new(), Host::new());
    let values = in_repository("deploy/helm/listenq/values-unprivileged.yaml");
    let pod = scene.start(&host, &rendered(&[values]), Path::new(BIN));
    drop(host.netns.run(|| fill(host.listener.target(), 25)));
    let own = eventually("overflows", TIMEOUT, || {
        let own = pod.daemon.scrape().of_netns("host").listener("127.0.0.1", OWN);
        own.overflows.filter(|overflows| *overflows >= 20.0).map(|_| own)
    });
    assert_eq!((own.length, own.limit), (Some(5.0), Some(4.0)));
    // The pod does not request namespaces and pods; without the host's PIDs it finds no process.
    let missing = ["owners", "cgroup"].map(str::to_owned).to_vec();
    let expected = Seen { own_is_named: false, server: None, missing };
    assert_eq!(seen(&pod, &scene, &expected), expected);
}

/// Writes a Secret as the kubelet does: files are links through `..data` to the files of one
/// version.
fn put_secret(root: &Rootfs, version: &str, user: &str) {
    let directory = root.path().join("secrets/listenq-web");
    let config = format!("basic_auth_users:\n  {user}: {RIGHT}\n");
    let file = root.file(&format!("secrets/listenq-web/..{version}/web-config.yml"), config);
    fs::set_permissions(&file, PermissionsExt::from_mode(0o440)).unwrap();
    chown(&file, Some(0), Some(65534)).unwrap();
    symlink(format!("..{version}"), directory.join("..data_tmp")).unwrap();
    fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    let _ = symlink("..data/web-config.yml", directory.join("web-config.yml"));
}

#[test]
fn a_pod_with_a_secret_asks_for_the_password_and_follows_the_secret() {
    if !has_tools() {
        return;
    }
    let (host, root) = (Host::new(), Rootfs::new());
    let everything = in_repository("tests/chart/values/everything.yaml");
    let unprivileged = in_repository("deploy/helm/listenq/values-unprivileged.yaml");
    for (n, values) in [vec![everything.clone()], vec![everything, unprivileged]].iter().enumerate()
    {
        put_secret(&root, &format!("{n}-before"), "someone");
        let pod = rendered(values);
        let node = Node { host: &host.netns, root: &root };
        let pod = Pod::start(node, &pod, Path::new(BIN), false);
        assert_eq!(pod.daemon.address().to_string(), "127.0.0.1:19511");
        assert_eq!(pod.daemon.get("/-/healthy", &AS_U).status, 401);
        put_secret(&root, &format!("{n}-after"), "u");
        eventually("the new user", TIMEOUT, || {
            (pod.daemon.get("/-/healthy", &AS_U).status == 200).then_some(())
        });
    }
}
