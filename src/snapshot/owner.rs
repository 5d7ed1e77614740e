//! The owner of a listen socket: process, systemd unit, container and pod.

use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};

/// The owner of a listen socket. Unknown fields are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Name (`comm`) of the oldest process that holds the socket: a prefork master, not a worker.
    pub process: Arc<str>,
    /// The id of that process. Never used as a label.
    #[serde(default)]
    pub pid: Option<u32>,
    /// The start time of that process, in clock ticks since boot.
    #[serde(skip)]
    pub start_time: u64,
    /// The systemd unit of the process, as systemd names it: `nginx.service`, `session-3.scope`. A
    /// unit of a user's own systemd follows the user's unit: `user@1000.service/web.service`.
    pub unit: Arc<str>,
    /// The full id of its container, 64 hexadecimal digits, or the name of an LXC container.
    pub container_id: Arc<str>,
    /// The Kubernetes namespace of its pod.
    pub k8s_namespace: Arc<str>,
    /// The name of its pod.
    pub k8s_pod: Arc<str>,
    /// The name of its container within the pod.
    pub k8s_container: Arc<str>,
}

// === impl Owner ===

impl Owner {
    /// The unknown owner, which all listeners without a known owner share.
    pub fn unknown() -> Arc<Self> {
        static UNKNOWN: LazyLock<Arc<Owner>> = LazyLock::new(Arc::default);
        Arc::clone(&UNKNOWN)
    }

    /// The most specific name of where the owner runs: pod, container or unit.
    pub fn place(&self) -> String {
        let Self { unit, container_id, k8s_namespace, k8s_pod, k8s_container, .. } = self;
        match (k8s_pod.is_empty(), container_id.is_empty()) {
            (false, _) => [&**k8s_namespace, k8s_pod, k8s_container].join("/"),
            (true, false) => container_id.chars().take(12).collect(),
            (true, true) => unit.to_string(),
        }
    }

    /// Whether all names are empty.
    pub fn is_unknown(&self) -> bool {
        let Self { process, unit, container_id, k8s_namespace, k8s_pod, k8s_container, .. } = self;
        [process, unit, container_id, k8s_namespace, k8s_pod, k8s_container]
            .iter()
            .all(|field| field.is_empty())
    }

    /// Fills empty fields from `other`.
    pub fn fill_from(&mut self, other: &Self) {
        let Self { process, unit, container_id, k8s_namespace, k8s_pod, k8s_container, .. } = self;
        let fields = [
            (process, &other.process),
            (unit, &other.unit),
            (container_id, &other.container_id),
            (k8s_namespace, &other.k8s_namespace),
            (k8s_pod, &other.k8s_pod),
            (k8s_container, &other.k8s_container),
        ];
        for (mine, theirs) in fields {
            if mine.is_empty() {
                mine.clone_from(theirs);
            }
        }
    }
}

/// The first user id of the ranges of [`SUBUIDS`] ids. `/etc/subuid` gives one range to one user.
const FIRST_SUBUID: u32 = 100_000;
const SUBUIDS: u32 = 65_536;

/// Returns one id for all ids that `/etc/subuid` gives to a user: the first id of the range.
pub fn user_of(uid: u32) -> u32 {
    match uid.checked_sub(FIRST_SUBUID) {
        Some(above) => uid - above % SUBUIDS,
        None => uid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_empty_fields_are_filled() {
        let mut owner = Owner { process: "nginx".into(), ..Owner::default() };
        let unit = "nginx.service";
        owner.fill_from(&Owner {
            process: "systemd".into(),
            unit: unit.into(),
            ..Owner::default()
        });
        let filled = Owner { process: "nginx".into(), unit: unit.into(), ..Owner::default() };
        assert_eq!(owner, filled);
    }

    #[test]
    fn an_owner_without_names_is_unknown() {
        assert!(Owner::default().is_unknown());
        assert!(!Owner { k8s_pod: "web-0".into(), ..Owner::default() }.is_unknown());
    }
}
