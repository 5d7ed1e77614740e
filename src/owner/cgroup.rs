//! Extracts systemd units, containers and pods from cgroup paths.
//!
//! `/proc/<pid>/cgroup` has one line per hierarchy, `<number>:<controllers>:<path>`: one line `0::`
//! for version 2, one line for each version 1 hierarchy, and both on a hybrid machine.

use super::text::{is_container_id, is_pod_uid, split_container_id};

/// Unit, container and pod of the processes in a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The systemd unit: the innermost unit below a slice.
    ///
    /// A container's own scope and the service of the runtime that started the container do not
    /// count. A unit of a user's systemd is prefixed with the manager, as in
    /// `user@1000.service/web.service`, because user 1000 chooses the names below
    /// `user@1000.service`. `init.scope` is systemd itself, which also creates the sockets that it
    /// passes on.
    pub unit: Option<String>,
    /// The whole id of the innermost container: 64 hexadecimal digits, or the name of an LXC
    /// container. Only root can have chosen the id: ids in `user.slice` are ignored.
    pub container_id: Option<String>,
    /// The uid of the innermost pod: a UUID with dashes, or 32 hexadecimal digits for a static pod.
    pub pod_uid: Option<String>,
}

/// The user who may choose the name of a directory in a path.
enum Rights<'a> {
    /// Only root.
    Root,
    /// Root, in `user.slice`, where root places the sessions of users.
    UserSlice,
    /// The user of this `user@<uid>.service`, to which the cgroup is delegated.
    User(&'a str),
}

/// Meaning of one directory of a path.
enum Part<'a> {
    Container(&'a str),
    /// A container inside the service that manages it (`podman --cgroups=split`, quadlet): the unit
    /// includes the container.
    UnitsContainer(&'a str),
    Unit(&'a str),
    Other,
}

/// Returns the most informative path in the text of a `/proc/<pid>/cgroup`; `None` if all paths are
/// `/`.
///
/// A path with a container precedes a path with only a unit. Among these, version 2 precedes
/// systemd's hierarchy, which precedes the other hierarchies.
///
/// Version 2 is not always the best choice: on hybrid machines a container started without systemd
/// often stays in the service of its runtime in version 2, while the version 1 hierarchies contain
/// the container.
pub fn owner_path(text: &str) -> Option<&str> {
    let paths = text.lines().filter_map(line).filter(|(_, path)| path.len() > 1);
    paths.max_by_key(|(hierarchy, path)| (rank(path), *hierarchy)).map(|(_, path)| path)
}

/// Splits a line into the rank of its hierarchy and the path.
fn line(line: &str) -> Option<(u8, &str)> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let hierarchy = match (number, controllers) {
        ("0", "") => 3,
        (_, "name=systemd") => 2,
        // Fewer runtimes join the other hierarchies.
        (_, controllers) if controllers.split(',').any(|name| name == "memory") => 1,
        _ => 0,
    };
    Some((hierarchy, path))
}

fn rank(path: &str) -> (bool, bool, bool) {
    let Placement { unit, container_id, pod_uid } = Placement::of(path);
    (container_id.is_some(), pod_uid.is_some(), unit.is_some())
}

// === impl Placement ===

impl Placement {
    /// Parses a cgroup path. Paths seen from a cgroup namespace (`/../..`) and paths of a removed
    /// cgroup (`... (deleted)`) are valid.
    pub fn of(path: &str) -> Self {
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        let mut placement = Self::default();
        let (mut parent, mut belongs_to) = ("", Rights::Root);
        for name in path.split('/') {
            match &belongs_to {
                Rights::Root => placement.enter(parent, name),
                Rights::UserSlice => placement.enter_user_slice(name),
                Rights::User(manager) => placement.enter_manager(manager, name),
            }
            belongs_to = belongs_to.below(name);
            parent = name;
        }
        placement
    }

    fn enter(&mut self, parent: &str, name: &str) {
        match Part::of(parent, name) {
            Part::Container(id) => {
                self.container_id = Some(id.to_owned());
                self.unit = None;
            }
            Part::UnitsContainer(id) => self.container_id = Some(id.to_owned()),
            // systemd places no unit below a service: the service may have chosen the name.
            Part::Unit(_) if self.is_in_service() => {}
            Part::Unit(unit) => self.unit = Some(unit.to_owned()),
            Part::Other => {}
        }
        if let Some(uid) = pod_uid(name) {
            self.pod_uid = Some(uid);
        }
    }

    fn is_in_service(&self) -> bool {
        self.unit.as_ref().is_some_and(|unit| unit.ends_with(".service"))
    }

    /// Records the unit of a directory in `user.slice`. Sessions and user managers are units; the
    /// directories below them are not.
    fn enter_user_slice(&mut self, name: &str) {
        if self.unit.is_none() && is_unit(name) {
            self.unit = Some(name.to_owned());
        }
    }

    fn enter_manager(&mut self, manager: &str, name: &str) {
        if is_unit(name) {
            self.unit = Some(format!("{manager}/{}", unescape(name)));
        }
    }
}

// === impl Rights ===

impl<'a> Rights<'a> {
    /// Returns the rights for the names of directories in `name`, which is itself in this
    /// directory.
    fn below(self, name: &'a str) -> Self {
        let is_manager = name.starts_with("user@") && name.ends_with(".service");
        match self {
            Self::Root | Self::UserSlice if is_manager => Self::User(name),
            Self::Root if name == "user.slice" => Self::UserSlice,
            rights => rights,
        }
    }
}

// === impl Part ===

impl<'a> Part<'a> {
    fn of(parent: &str, name: &'a str) -> Self {
        let container = container(name).or_else(|| lxc(parent, name));
        match container {
            Some(id) if name.starts_with("libpod-payload-") => Self::UnitsContainer(id),
            Some(id) => Self::Container(id),
            None if is_unit(name) => Self::Unit(unescape(name)),
            None => Self::Other,
        }
    }
}

/// Parses the id in `<id>`, `<runtime>-<id>`, either with `.scope`, or `<slice>:<runtime>:<id>`.
fn container(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let name = name.rsplit_once(':').map_or(name, |(_, id)| id);
    match split_container_id(name) {
        // The monitor process of a Podman or CRI-O container, not the container.
        Some((runtime, _)) if runtime.ends_with("conmon") => None,
        Some((_, id)) => Some(id),
        None => is_container_id(name).then_some(name),
    }
}

/// Parses the name in `lxc.payload.<name>`, or `lxc/<name>` of older versions. Only ASCII names are
/// accepted, because other code may truncate the name.
fn lxc<'a>(parent: &str, name: &'a str) -> Option<&'a str> {
    let older = || (parent == "lxc").then_some(name);
    let name = name.strip_prefix("lxc.payload.").or_else(older)?;
    (!name.is_empty() && name.is_ascii()).then_some(name)
}

/// Whether the name is a unit that holds processes, or a `.socket`, which creates sockets. Slices
/// only group units.
fn is_unit(name: &str) -> bool {
    let kind = name.rsplit_once('.').filter(|(stem, _)| !stem.is_empty());
    matches!(kind, Some((_, "service" | "scope" | "socket")))
}

/// Removes the `_` that systemd puts before a name that may collide with a kernel file.
fn unescape(name: &str) -> &str {
    name.strip_prefix('_').unwrap_or(name)
}

/// Parses the uid in `pod<uid>`, or `...-pod<uid>.slice` with `_` for the dashes of the uid.
fn pod_uid(name: &str) -> Option<String> {
    let slice = name.split(':').next().and_then(|name| name.strip_suffix(".slice"));
    let uid = match slice {
        Some(stem) => stem.rsplit_once("-pod")?.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    is_pod_uid(&uid).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: &str = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970";
    const B: &str = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d";
    const UID: &str = "36b6d6be-73b1-065a-f369-b3985edafa09";
    const STATIC: &str = "89f4f2cb511c3b0b7e5272cff5ec37bf";

    /// Path, unit, container and pod. `$A` and `$B` stand for ids, `$U` for a uid, `$_` for a uid
    /// as in a slice name, `$S` for the uid of a static pod.
    const SHAPES: &str = "
        / | - | - | -
        # systemd
        /system.slice/nginx.service | nginx.service | - | -
        /system.slice/nginx.service (deleted) | nginx.service | - | -
        /system.slice/system-getty.slice/getty@tty1.service | getty@tty1.service | - | -
        /system.slice/system-postgresql.slice/postgresql@15-main.service | postgresql@15-main.service | - | -
        /system.slice/_memory.service | memory.service | - | -
        /system.slice/dev-hugepages.mount | - | - | -
        /system.slice/sshd.socket | sshd.socket | - | -
        /system.slice/$A.service | $A.service | - | -
        /init.scope | init.scope | - | -
        /user.slice/user-1000.slice/session-3.scope | session-3.scope | - | -
        # What a user may spell
        /user.slice/user-1000.slice/user@1000.service/app.slice/web.service | user@1000.service/web.service | - | -
        /user.slice/user-1000.slice/user@1000.service/init.scope | user@1000.service/init.scope | - | -
        /user.slice/user-1000.slice/user@1000.service | user@1000.service | - | -
        /../user@1000.service/app.slice/web.service | user@1000.service/web.service | - | -
        /user.slice/user-1000.slice/user@1000.service/a.service/b.service | user@1000.service/b.service | - | -
        /user.slice/user-1000.slice/user@1000.service/system.slice/user@0.service/web.service | user@1000.service/web.service | - | -
        /user.slice/user-1000.slice/user@1000.service/kubepods/burstable/pod$U/$A | user@1000.service | - | -
        /user.slice/user-1000.slice/user@1000.service/lxc.payload.web-1 | user@1000.service | - | -
        /user.slice/user-1000.slice/user@1000.service/system.slice/docker-$A.scope | user@1000.service/docker-$A.scope | - | -
        /user.slice/user-1000.slice/session-3.scope/web.service | session-3.scope | - | -
        /user.slice/user-1000.slice/session-3.scope/docker/$A | session-3.scope | - | -
        /system.slice/mine.service/nginx.service | mine.service | - | -
        /docker/$A/user.slice/user-0.slice/user@0.service/web.service | user@0.service/web.service | $A | -
        /machine.slice/machine-web.scope/payload/system.slice/nginx.service | nginx.service | - | -
        /../../nginx.service | nginx.service | - | -
        # Kubernetes
        /kubepods/burstable/pod$U/$A | - | $A | $U
        /kubepods/pod$S/$A | - | $A | $S
        /kubepods/besteffort/pod$U/crio-$A | - | $A | $U
        /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod$_.slice/cri-containerd-$A.scope | - | $A | $U
        /kubepods.slice/kubepods-pod$_.slice/crio-$A.scope/container | - | $A | $U
        /kubepods.slice/kubepods-pod$_.slice/crio-conmon-$A.scope | crio-conmon-$A.scope | - | $U
        /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod$S.slice/docker-$A.scope | - | $A | $S
        /system.slice/containerd.service/kubepods-burstable-pod$S.slice:cri-containerd:$A | - | $A | $S
        /system.slice/containerd.service/kubepods-besteffort-pod$_.slice:cri-containerd:$A | - | $A | $U
        /../../../kubepods-besteffort-pod$_.slice/cri-containerd-$A.scope | - | $A | $U
        /../../pod$U/$A | - | $A | $U
        /kubepods/burstable/pod$U | - | - | $U
        # Docker, containerd, Podman
        /docker/$A | - | $A | -
        /system.slice/docker-$A.scope | - | $A | -
        /system.slice/docker-$A.scope (deleted) | - | $A | -
        /ecs/cluster/task/$A | - | $A | -
        /default/$A | - | $A | -
        /system.slice/nerdctl-$A.scope | - | $A | -
        /machine.slice/libpod-$A.scope/container | - | $A | -
        /machine.slice/machine-libpod_pod_$B.slice/libpod-$A.scope | - | $A | -
        /machine.slice/libpod-conmon-$A.scope | libpod-conmon-$A.scope | - | -
        /libpod_parent/libpod-$A | - | $A | -
        /libpod_parent/conmon | - | - | -
        /user.slice/user-1000.slice/user@1000.service/user.slice/libpod-$A.scope/container | user@1000.service/libpod-$A.scope | - | -
        /system.slice/web.service/libpod-payload-$A | web.service | $A | -
        /system.slice/web.service/runtime | web.service | - | -
        # One inside the other
        /docker/$A/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod$_.slice/cri-containerd-$B.scope | - | $B | $U
        /system.slice/docker-$A.scope/kubepods/burstable/pod$U/$B | - | $B | $U
        /docker/$A/kubelet.slice/kubelet.service | kubelet.service | $A | -
        /docker/$A/system.slice/opendkim.service | opendkim.service | $A | -
        /docker/$A/docker/$B | - | $B | -
        /kubepods/pod$U/$A/system.slice/docker-$B.scope | - | $B | $U
        # LXC
        /lxc.payload.web-1 | - | web-1 | -
        /lxc.payload.web-1/system.slice/nginx.service | nginx.service | web-1 | -
        /lxc/101/ns/system.slice/nginx.service | nginx.service | 101 | -
        /lxc.monitor.web-1 | - | - | -
        # Nothing known
        /process_api/e1ac1875337501bc7d704ddbc419a7b1 | - | - | -
        /kubepods.slice/kubepods-podweb.slice | - | - | -
        /.service | - | - | -
    ";

    fn write_out(text: &str) -> String {
        let slice = UID.replace('-', "_");
        let words = [("$A", A), ("$B", B), ("$U", UID), ("$_", &*slice), ("$S", STATIC)];
        words.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }

    #[test]
    fn unit_container_and_pod_are_read_from_the_cgroup_path() {
        let rows = SHAPES.lines().map(str::trim).filter(|row| row.starts_with('/'));
        for row in rows {
            let fields: Vec<String> = row.split(" | ").map(write_out).collect();
            let [path, unit, container_id, pod_uid] = fields.try_into().unwrap();
            let some = |field: String| (field != "-").then_some(field);
            let (unit, container_id, pod_uid) = (some(unit), some(container_id), some(pod_uid));
            assert_eq!(Placement::of(&path), Placement { unit, container_id, pod_uid }, "{row}");
        }
        assert_eq!(Placement::of(""), Placement::default());
    }

    #[test]
    fn the_most_informative_path_is_returned() {
        let table = [
            ("0::/system.slice/nginx.service\n", Some("/system.slice/nginx.service")),
            ("0::/\n", None),
            ("", None),
            ("nonsense\n0:\n::\n", None),
            (
                "2:cpu:/user.slice\n1:name=systemd:/user.slice/user-0.slice/session-1.scope\n0::/user.slice\n",
                Some("/user.slice/user-0.slice/session-1.scope"),
            ),
            (
                "9:name=systemd:/\n8:pids:/\n4:memory:/process_api/e1ac\n1:cpu:/a\n0::/\n",
                Some("/process_api/e1ac"),
            ),
            (
                "4:memory:/docker/$A\n1:name=systemd:/system.slice/docker.service\n0::/system.slice/docker.service\n",
                Some("/docker/$A"),
            ),
            (
                "4:memory:/docker/$A\n1:name=systemd:/docker/$A/system.slice/opendkim.service\n0::/system.slice/containerd.service\n",
                Some("/docker/$A/system.slice/opendkim.service"),
            ),
            (
                "3:cpu,cpuacct:/kubepods/pod$U/$A\n1:name=systemd:/kubepods/pod$U/$A\n",
                Some("/kubepods/pod$U/$A"),
            ),
            (
                "0::/system.slice/containerd.service/kubepods-pod$S.slice:cri-containerd:$A\n",
                Some("/system.slice/containerd.service/kubepods-pod$S.slice:cri-containerd:$A"),
            ),
        ];
        for (text, path) in table {
            assert_eq!(owner_path(&write_out(text)), path.map(write_out).as_deref(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in any::<String>()) {
            let _ = Placement::of(&text);
            let _ = owner_path(&text);
        }

        #[test]
        fn any_arrangement_of_known_parts_is_read_without_panic(
            parts in prop::collection::vec(prop::sample::select(vec![
                "/", ":", "-", ".", "pod", "-pod", ".slice", ".scope", ".service", "lxc", "lxc.payload.",
                "libpod-", "conmon-", "..", " (deleted)", "_", "0::", "\n", "é", A, UID, STATIC,
            ]), 0..12)
        ) {
            let text = parts.concat();
            let Placement { unit, container_id, pod_uid } = Placement::of(&text);
            prop_assert!(unit.is_none_or(|unit| !unit.is_empty() && unit.split('/').all(|part| !part.is_empty())));
            prop_assert!(container_id.is_none_or(|id| id.is_ascii() && !id.is_empty()));
            prop_assert!(pod_uid.is_none_or(|uid| is_pod_uid(&uid)));
            let _ = owner_path(&text);
        }
    }
}
