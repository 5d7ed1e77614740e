//! Names of pods and containers from the kubelet's logs: `/var/log/pods/<namespace>_<pod>_<uid>`
//! and `/var/log/containers/<pod>_<namespace>_<container>-<container id>.log`.
//!
//! The names of the directory entries are sufficient: listenq opens no file, follows no link and
//! calls no API.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::text::{is_pod_uid, split_container_id};
use crate::snapshot::printable;

/// Kubernetes namespace and name of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// Pod and name of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Pod that contains the container.
    pub pod: Pod,
    /// Name of the container within the pod.
    pub name: Arc<str>,
}

/// All pods and containers with kubelet logs on this machine.
#[derive(Clone, Debug, Default)]
pub struct Kubelet {
    pods: FxHashMap<Box<str>, Pod>,
    containers: FxHashMap<Box<str>, Container>,
}

// === impl Kubelet ===

impl Kubelet {
    /// Lists both directories below `rootfs`.
    ///
    /// A directory that cannot be read counts as empty. If neither can be read, the error is the
    /// error of `/var/log/pods`: "not found" on a machine without a kubelet.
    ///
    /// A pod's sandbox has no log, so its id is not among the containers: look up the pod's uid
    /// instead.
    pub fn read(rootfs: &Path) -> io::Result<Self> {
        let pods = collect(&rootfs.join("var/log/pods"), parse_pod_directory);
        let containers = collect(&rootfs.join("var/log/containers"), parse_container_link);
        match (pods, containers) {
            (Err(error), Err(_)) => Err(error),
            (pods, containers) => Ok(Self {
                pods: pods.unwrap_or_default(),
                containers: containers.unwrap_or_default(),
            }),
        }
    }

    /// Returns the pod with this uid, in the format of a cgroup path. The uid of a static pod is
    /// the hash of its manifest.
    pub fn pod(&self, uid: &str) -> Option<&Pod> {
        self.pods.get(uid)
    }

    /// Returns the container with this id.
    pub fn container(&self, id: &str) -> Option<&Container> {
        self.containers.get(id)
    }
}

/// Parses `<namespace>_<pod>_<uid>` into the uid and the names. Kubernetes allows no `_` in any of
/// these names.
pub fn parse_pod_directory(name: &str) -> Option<(&str, Pod)> {
    let [namespace, name, uid] = three(name)?;
    is_pod_uid(uid).then(|| (uid, Pod::new(namespace, name)))
}

/// Parses `<pod>_<namespace>_<container>-<container id>.log` into the container id and the names.
pub fn parse_container_link(name: &str) -> Option<(&str, Container)> {
    let (names, id) = split_container_id(name.strip_suffix(".log")?)?;
    let [pod, namespace, name] = three(names)?;
    Some((id, Container { pod: Pod::new(namespace, pod), name: printable(name).into() }))
}

fn three(name: &str) -> Option<[&str; 3]> {
    let mut parts = name.split('_');
    let three = [parts.next()?, parts.next()?, parts.next()?];
    (parts.next().is_none() && three.iter().all(|part| !part.is_empty())).then_some(three)
}

fn collect<T>(
    directory: &Path,
    parse: impl Fn(&str) -> Option<(&str, T)>,
) -> io::Result<FxHashMap<Box<str>, T>> {
    let mut found = FxHashMap::default();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if let Some((key, value)) = name.to_str().and_then(&parse) {
            found.insert(key.into(), value);
        }
    }
    Ok(found)
}

// === impl Pod ===

impl Pod {
    fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: printable(namespace).into(), name: printable(name).into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::fixture::Dir;
    use proptest::prelude::*;

    const ID: &str = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d";
    const UID: &str = "36b6d6be-73b1-065a-f369-b3985edafa09";
    const STATIC: &str = "89f4f2cb511c3b0b7e5272cff5ec37bf";

    fn web() -> Pod {
        Pod::new("shop", "web-7d4b9c-x2x4z")
    }

    fn nginx() -> Container {
        Container { pod: web(), name: "nginx-main".into() }
    }

    #[test]
    fn the_name_of_a_pod_directory_contains_uid_and_names() {
        let name = format!("shop_web-7d4b9c-x2x4z_{UID}");
        assert_eq!(parse_pod_directory(&name), Some((UID, web())));
        let name = format!("kube-system_etcd-node.example_{STATIC}");
        let etcd = Pod::new("kube-system", "etcd-node.example");
        assert_eq!(parse_pod_directory(&name), Some((STATIC, etcd)));
    }

    #[test]
    fn the_name_of_a_container_link_contains_id_and_names() {
        let name = format!("web-7d4b9c-x2x4z_shop_nginx-main-{ID}.log");
        assert_eq!(parse_container_link(&name), Some((ID, nginx())));
    }

    #[test]
    fn other_names_are_ignored() {
        for name in ["", "_", "__", "lost+found", &format!("__{UID}"), &format!("a_b_c_{UID}"), UID]
        {
            assert_eq!(parse_pod_directory(name), None, "{name}");
        }
        for name in [
            format!("a_b_c-{ID}"),
            format!("a_b_-{ID}.log"),
            format!("a_b-{ID}.log"),
            format!("a_b_c-{STATIC}.log"),
        ] {
            assert_eq!(parse_container_link(&name), None, "{name}");
        }
    }

    #[test]
    fn pods_are_found_by_uid_and_containers_by_id() {
        let dir = Dir::new("kubelet");
        dir.directory(&format!("var/log/pods/shop_web-7d4b9c-x2x4z_{UID}/nginx-main"));
        dir.directory("var/log/pods/other");
        // The target of the link is not below this root and need not be.
        dir.link(
            "/var/log/pods/anywhere/0.log",
            &format!("var/log/containers/web-7d4b9c-x2x4z_shop_nginx-main-{ID}.log"),
        );
        let kubelet = Kubelet::read(dir.path()).unwrap();
        assert_eq!(kubelet.pod(UID), Some(&web()));
        assert_eq!(kubelet.container(ID), Some(&nginx()));
        assert_eq!((kubelet.pod(ID), kubelet.container(UID)), (None, None));
        assert_eq!((kubelet.pods.len(), kubelet.containers.len()), (1, 1));
    }

    #[test]
    fn one_directory_is_enough_and_none_is_an_error() {
        let dir = Dir::new("kubelet-half");
        let error = Kubelet::read(dir.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        dir.directory(&format!("var/log/pods/shop_web-7d4b9c-x2x4z_{UID}"));
        assert_eq!(Kubelet::read(dir.path()).unwrap().pod(UID), Some(&web()));
    }

    proptest! {
        #[test]
        fn any_name_is_read_without_panic(name in any::<String>()) {
            let _ = (parse_pod_directory(&name), parse_container_link(&name));
        }
    }
}
