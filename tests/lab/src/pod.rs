//! The daemon in a pod: the pod's specification as a container configured like kubelet and
//! containerd do, and run by `runc`. Privileges that the specification grants and drops are
//! applied; images, networks and an API do not exist.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Map, Value, json};

use crate::listenq::Daemon;
use crate::netns::Netns;
use crate::rootfs::Rootfs;
use crate::runc::{Container, fresh_id, usr};

/// The image's entry point.
const ENTRY: &str = "/listenq";
/// The default capabilities of a container: containerd's list.
const CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Paths hidden from containers, and paths read-only for containers: containerd's lists.
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The machine of the pod.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// The host network, and so the network of pods with `hostNetwork`; its address is 127.0.0.1.
    pub host: &'a Netns,
    /// The files of the host, except `/sys`, which is this machine's. Secrets are directories below
    /// `secrets`.
    pub root: &'a Rootfs,
}

/// A running pod. Dropping it ends the pod.
#[derive(Debug)]
pub struct Pod {
    /// The daemon; its pid is the pid of the runtime.
    pub daemon: Daemon,
    container: Container,
}

/// One container of a pod's specification.
struct Spec<'a> {
    pod: &'a Value,
    container: &'a Value,
    node: Node<'a>,
}

// === impl Pod ===

impl Pod {
    /// Starts `binary` as the only container of `pod` (a `PodSpec`), and waits until it listens, or
    /// with `await_ready` until it is ready.
    ///
    /// # Panics
    ///
    /// With the log, when the daemon does not start, or the specification has an unsupported field.
    #[must_use]
    pub fn start(node: Node<'_>, pod: &Value, binary: &Path, await_ready: bool) -> Self {
        let spec = Spec { pod, container: &pod["containers"][0], node };
        let id = fresh_id();
        let cgroup = format!("/kubepods/burstable/pod{}/{id}", &id[..32]);
        let mut container = Container::lay(&id, &cgroup, &spec.bundle(binary, &cgroup));
        let mut command = container.run_attached();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = child.spawn().expect("runc runs");
        let daemon = Daemon::attach(child, Some(node.host.path()), await_ready);
        container.find_pid();
        Self { daemon, container }
    }

    /// Runs a program in the container of the daemon, as `kubectl exec` does, with options of
    /// `runc exec`.
    #[must_use]
    pub fn exec(&self, options: &[&str], args: &[&str]) -> Output {
        self.container.exec(options, args)
    }

    /// The pid of the daemon outside the container.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.container.pid()
    }
}

// === impl Spec ===

impl Spec<'_> {
    /// The bundle's configuration.
    fn bundle(&self, binary: &Path, cgroup: &str) -> Value {
        let security = self.security();
        let capabilities = self.capabilities();
        let read_only = security["readOnlyRootFilesystem"] == true;
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {
                    "uid": security["runAsUser"],
                    "gid": security["runAsGroup"],
                    "additionalGids": self.pod["securityContext"].get("fsGroup").into_iter().collect::<Vec<_>>(),
                },
                "args": self.args(),
                "env": self.env().iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
                "cwd": "/",
                // Neither inheritable nor ambient: Kubernetes has no field for these sets.
                "capabilities": {
                    "bounding": capabilities, "permitted": capabilities, "effective": capabilities,
                },
                "noNewPrivileges": security["allowPrivilegeEscalation"] == false,
            },
            "root": {"path": "rootfs", "readonly": read_only},
            "mounts": self.mounts(binary),
            "linux": {
                "cgroupsPath": cgroup,
                "namespaces": self.namespaces(),
                "seccomp": self.seccomp(&capabilities),
                "maskedPaths": MASKED,
                "readonlyPaths": READ_ONLY,
                "resources": {"memory": {"limit": self.memory_limit()}},
            },
        })
    }

    /// The security context of the pod, overridden by the container's.
    fn security(&self) -> Map<String, Value> {
        let contexts = [self.pod, self.container].map(|level| level["securityContext"].as_object());
        let mut merged = Map::new();
        for context in contexts.into_iter().flatten() {
            merged.extend(context.clone());
        }
        assert_ne!(merged.get("privileged"), Some(&json!(true)), "not known here");
        for (field, default) in [("runAsUser", 0), ("runAsGroup", 0)] {
            merged.entry(field).or_insert_with(|| default.into());
        }
        for field in ["readOnlyRootFilesystem", "allowPrivilegeEscalation"] {
            merged.entry(field).or_insert(Value::Null);
        }
        merged
    }

    fn capabilities(&self) -> Vec<String> {
        let lists = &self.container["securityContext"]["capabilities"];
        let [drop, add] = ["drop", "add"].map(|list| words(&lists[list]));
        let is_kept = |name: &&str| !drop.contains(&"ALL") && !drop.contains(name);
        let all = CAPABILITIES.into_iter().filter(is_kept).chain(add);
        all.map(|name| format!("CAP_{name}")).collect()
    }

    /// The arguments, with `$(NAME)` replaced by the environment variable.
    fn args(&self) -> Vec<String> {
        let env = self.env();
        let expand = |arg: &str| {
            env.iter().fold(arg.to_owned(), |arg, (name, value)| {
                arg.replace(&format!("$({name})"), value)
            })
        };
        let args = words(&self.container["args"]).into_iter().map(expand);
        [ENTRY.to_owned()].into_iter().chain(args).collect()
    }

    fn env(&self) -> Vec<(&str, &str)> {
        let variables = self.container["env"].as_array().into_iter().flatten();
        variables.map(|variable| (text(&variable["name"]), env_value(variable))).collect()
    }

    fn namespaces(&self) -> Vec<Value> {
        let network = match self.pod["hostNetwork"] == true {
            true => json!({"type": "network", "path": self.node.host.path()}),
            false => json!({"type": "network"}),
        };
        let mut namespaces = vec![network];
        namespaces.extend(["mount", "ipc", "cgroup"].map(|kind| json!({"type": kind})));
        if self.pod["hostPID"] != true {
            namespaces.push(json!({"type": "pid"}));
        }
        namespaces
    }

    fn mounts(&self, binary: &Path) -> Vec<Value> {
        let options = ["nosuid", "noexec", "nodev", "ro"];
        let entry = json!({"destination": ENTRY, "type": "bind", "source": binary, "options": ["bind", "ro"]});
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc", "options": &options[..3]}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": options}),
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}),
            usr(),
            entry,
        ];
        let mounted = self.container["volumeMounts"].as_array().into_iter().flatten();
        mounts.extend(mounted.map(|mount| self.mount(mount)));
        mounts
    }

    fn mount(&self, mount: &Value) -> Value {
        let volumes = self.pod["volumes"].as_array().expect("volumes");
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]);
        let volume = volume.expect("the mount's volume");
        if volume["emptyDir"].is_object() {
            let options = ["nosuid", "nodev", "mode=0777", "size=1m"];
            return json!({
                "destination": mount["mountPath"], "type": "tmpfs", "source": "tmpfs", "options": options,
            });
        }
        let node = self.node.root.path();
        let source = if let Some(path) = volume["hostPath"]["path"].as_str() {
            if path.starts_with("/sys/") { path.into() } else { node.join(&path[1..]) }
        } else {
            node.join("secrets").join(text(&volume["secret"]["secretName"]))
        };
        let access = if mount["readOnly"] == true { "ro" } else { "rw" };
        let propagation = match mount["mountPropagation"].as_str() {
            Some("HostToContainer") => "rslave",
            _ => "rprivate",
        };
        // containerd creates a missing host directory.
        fs::create_dir_all(&source).expect("a directory");
        json!({
            "destination": mount["mountPath"], "type": "bind", "source": source,
            "options": ["rbind", propagation, access],
        })
    }

    fn seccomp(&self, capabilities: &[String]) -> Option<Value> {
        let profile = &self.pod["securityContext"]["seccompProfile"];
        match profile["type"].as_str() {
            Some("RuntimeDefault") => Some(runtime_default(capabilities)),
            Some("Localhost") => Some(of_the_chart(text(&profile["localhostProfile"]))),
            other => {
                assert!(matches!(other, None | Some("Unconfined")), "not known here: {other:?}");
                None
            }
        }
    }

    fn memory_limit(&self) -> Option<u64> {
        let limit = self.container["resources"]["limits"]["memory"].as_str()?;
        let mebibytes: u64 = limit.strip_suffix("Mi").expect("in Mi").parse().expect("a number");
        Some(mebibytes << 20)
    }
}

/// A seccomp filter of the chart. The kubelet reads it from a directory of the node.
fn of_the_chart(name: &str) -> Value {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/helm/listenq/seccomp");
    let profile = fs::read(Path::new(directory).join(name)).expect("the chart has the profile");
    serde_json::from_slice(&profile).expect("the profile is JSON")
}

/// The seccomp filter of container runtimes for a container with these capabilities.
fn runtime_default(capabilities: &[String]) -> Value {
    let profile: Value =
        serde_json::from_str(include_str!("runtime_default.json")).expect("it is JSON");
    let rules = profile["rules"].as_array().expect("rules").iter();
    let has = |name: &Value| capabilities.iter().any(|have| name == have);
    let holds =
        |rule: &&Value| rule.get("with").is_none_or(has) && !rule.get("without").is_some_and(has);
    let plain = |rule: &Value| {
        let mut rule = rule.clone();
        let fields = rule.as_object_mut().expect("a rule");
        fields.retain(|field, _| field != "with" && field != "without");
        rule
    };
    let rules: Vec<_> = rules.filter(holds).map(plain).collect();
    json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules})
}

fn env_value(variable: &Value) -> &str {
    match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
        None => text(&variable["value"]),
        Some("status.hostIP") => "127.0.0.1",
        Some(other) => panic!("not known here: {other}"),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_allows_setns_only_with_the_capability() {
        let allows = |capabilities: &[&str]| {
            let capabilities: Vec<_> = capabilities.iter().map(|name| (*name).to_owned()).collect();
            let filter = runtime_default(&capabilities);
            let rules = filter["syscalls"].as_array().unwrap().clone();
            rules.iter().any(|rule| {
                rule["action"] == "SCMP_ACT_ALLOW" && words(&rule["names"]).contains(&"setns")
            })
        };
        assert_eq!(
            [allows(&[]), allows(&["CAP_SYS_PTRACE"]), allows(&["CAP_SYS_ADMIN"])],
            [false, false, true]
        );
    }
}
