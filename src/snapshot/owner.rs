//! Who owns a listen socket: process, systemd unit, container and pod.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The owner of a listen socket. What is not known is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Name (`comm`) of the oldest process that holds the socket: a prefork master, not a worker.
    pub process: Arc<str>,
    /// The id of that process; never a label.
    #[serde(default)]
    pub pid: Option<u32>,
    /// When that process was started, in clock ticks since boot.
    #[serde(skip)]
    pub start_time: u64,
    /// The systemd unit it runs in, as systemd names it: `nginx.service`, `session-3.scope`; of a user's own systemd
    /// behind that: `user@1000.service/web.service`.
    pub unit: Arc<str>,
    /// The whole id of its container, 64 hexadecimal digits; an LXC container's name.
    pub container_id: Arc<str>,
    /// The Kubernetes namespace of its pod.
    pub k8s_namespace: Arc<str>,
    /// Its pod's name.
    pub k8s_pod: Arc<str>,
    /// Its container's name within the pod.
    pub k8s_container: Arc<str>,
}

// === impl Owner ===

impl Owner {
    /// Where it runs, by the most telling name: pod, container or unit.
    pub fn place(&self) -> String {
        let Self { unit, container_id, k8s_namespace, k8s_pod, k8s_container, .. } = self;
        match (k8s_pod.is_empty(), container_id.is_empty()) {
            (false, _) => [&**k8s_namespace, k8s_pod, k8s_container].join("/"),
            (true, false) => container_id.chars().take(12).collect(),
            (true, true) => unit.to_string(),
        }
    }

    /// Whether nothing at all is known.
    pub fn is_unknown(&self) -> bool {
        let Self { process, unit, container_id, k8s_namespace, k8s_pod, k8s_container, .. } = self;
        [process, unit, container_id, k8s_namespace, k8s_pod, k8s_container]
            .iter()
            .all(|field| field.is_empty())
    }

    /// Takes from `other` what is empty here.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_filled_where_it_is_empty() {
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
    fn an_owner_of_whom_nothing_is_known_is_unknown() {
        assert!(Owner::default().is_unknown());
        assert!(!Owner { k8s_pod: "web-0".into(), ..Owner::default() }.is_unknown());
    }
}
