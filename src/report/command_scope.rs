//! Writes commands that inspect a listener for the listener's network namespace.

use crate::report::Listener;
use crate::report::words::quoted;
use crate::snapshot::{OWN_NETNS, UNNAMED_NETNS};

/// The network namespace of a listener, as needed for commands and settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandScope {
    /// The namespace of listenq itself.
    Host,
    /// A namespace with a name in `ip netns`.
    Named(String),
    /// The namespace of a pod, identified by a container in the pod.
    Pod(String),
    /// The namespace of a container.
    Container(String),
    /// A namespace without a name.
    Nameless,
}

// === impl CommandScope ===

impl CommandScope {
    /// The scope of `listener`.
    pub fn of(listener: &Listener) -> Self {
        let Listener { netns, owner, .. } = listener;
        let id: String = owner.container_id.chars().take(12).collect();
        match (netns.as_str(), id.is_empty(), owner.k8s_pod.is_empty()) {
            (OWN_NETNS, ..) => Self::Host,
            (_, false, false) => Self::Pod(id),
            (_, false, true) => Self::Container(id),
            (netns, ..) if netns.starts_with(UNNAMED_NETNS) || !is_real(netns) => Self::Nameless,
            (netns, ..) => Self::Named(netns.into()),
        }
    }

    /// Returns `command` as it is run in this namespace.
    pub fn run(&self, command: &str) -> String {
        let pid = match self {
            Self::Host => return format!("`{command}`"),
            Self::Named(name) => return format!("`ip netns exec {} {command}`", quoted(name)),
            Self::Pod(id) => {
                let template = "--output go-template --template '{{.info.pid}}'";
                format!("crictl inspect {template} {}", quoted(id))
            }
            Self::Container(id) => {
                format!("docker inspect --format '{{{{.State.Pid}}}}' {}", quoted(id))
            }
            Self::Nameless => "lsns --type net".into(),
        };
        format!("`nsenter --target PID --net {command}` with PID from `{pid}`")
    }

    /// Returns how to set `net.core.somaxconn` permanently. A restart of a container creates a new
    /// namespace.
    pub fn set_somaxconn(&self, value: u64) -> String {
        let setting = format!("net.core.somaxconn={value}");
        match self {
            Self::Host => format!(
                "`sysctl -w {setting}`, and the same line in a file in /etc/sysctl.d to make it last"
            ),
            Self::Named(_) | Self::Nameless => self.run(&format!("sysctl -w {setting}")),
            Self::Container(_) => format!(
                "`docker run --sysctl {setting}` (in compose `sysctls:`), which creates a new container"
            ),
            Self::Pod(_) => format!(
                "{setting} in `securityContext.sysctls` of the pod (the kubelet must allow it: \
                 --allowed-unsafe-sysctls=net.core.somaxconn)"
            ),
        }
    }
}

/// Whether `ip netns` knows this name. A name with escaped bytes, or with a suffix that makes the
/// name unique, is unknown to `ip netns`.
fn is_real(name: &str) -> bool {
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_unique_by_inode = name.rsplit_once('~').is_some_and(|(_, inode)| is_digits(inode));
    !name.contains("\\x") && !is_unique_by_inode
}

/// The longest part of a name without escaped bytes.
fn longest_real(name: &str) -> &str {
    let parts = name.split("\\x").enumerate();
    // The two digits after an escape belong to the escape.
    let real =
        parts.map(|(place, part)| if place == 0 { part } else { part.get(2..).unwrap_or("") });
    real.max_by_key(|part| part.len()).unwrap_or("")
}

/// The `ss` command with these flags, for this listener only.
pub fn ss(listener: &Listener, flags: &str) -> String {
    let Listener { address, port, .. } = listener;
    match port.is_empty() {
        // The filter of `ss` does not accept every name.
        true => match longest_real(address) {
            "" => format!("ss -xl{flags}"),
            part => format!("ss -xl{flags} | grep -F -- {}", quoted(part)),
        },
        false => format!("ss -tln{flags} 'sport = :{port}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::owner::Owner;

    fn at(netns: &str, container_id: &str, k8s_pod: &str) -> String {
        let owner = Owner {
            container_id: container_id.into(),
            k8s_pod: k8s_pod.into(),
            ..Owner::default()
        };
        CommandScope::of(&Listener { netns: netns.into(), owner, ..Listener::default() })
            .run("nstat")
    }

    #[test]
    fn a_command_runs_in_the_namespace_of_the_listener() {
        let id = "0123456789abcdef";
        assert_eq!(at("host", "", ""), "`nstat`");
        assert_eq!(at("host", id, "web-1"), "`nstat`");
        assert_eq!(at("blue", "", ""), "`ip netns exec blue nstat`");
        assert_eq!(at("a b", "", ""), "`ip netns exec 'a b' nstat`");
        let entered = "`nsenter --target PID --net nstat` with PID from ";
        let docker = "`docker inspect --format '{{.State.Pid}}' 0123456789ab`";
        assert_eq!(at("0123456789ab", id, ""), format!("{entered}{docker}"));
        let crictl =
            "`crictl inspect --output go-template --template '{{.info.pid}}' 0123456789ab`";
        assert_eq!(at("0123456789ab", id, "web-1"), format!("{entered}{crictl}"));
        for nameless in ["netns:4026532201", "blue~4026532201", "a\\x0Ab"] {
            assert_eq!(at(nameless, "", ""), format!("{entered}`lsns --type net`"));
        }
        assert_eq!(at("blue~green", "", ""), "`ip netns exec 'blue~green' nstat`");
    }

    #[test]
    fn somaxconn_is_set_in_the_namespace_of_the_listener() {
        let set = |place: CommandScope| place.set_somaxconn(512);
        assert!(set(CommandScope::Host).starts_with("`sysctl -w net.core.somaxconn=512`, "));
        let named = "`ip netns exec blue sysctl -w net.core.somaxconn=512`";
        assert_eq!(set(CommandScope::Named("blue".into())), named);
        let run = "`docker run --sysctl net.core.somaxconn=512` ";
        assert!(set(CommandScope::Container("0123".into())).starts_with(run));
        assert!(set(CommandScope::Pod("0123".into())).contains("`securityContext.sysctls`"));
    }

    #[test]
    fn ss_filters_for_this_listener() {
        let tcp = Listener { address: "::".into(), port: "80".into(), ..Listener::default() };
        assert_eq!(ss(&tcp, "p"), "ss -tlnp 'sport = :80'");
        let unix = Listener { address: "@a b".into(), ..Listener::default() };
        assert_eq!(ss(&unix, "p"), "ss -xlp | grep -F -- '@a b'");
        let unix = Listener { address: "@\\x0Aname\\x5Cb".into(), ..unix };
        assert_eq!(ss(&unix, "p"), "ss -xlp | grep -F -- name");
    }
}
