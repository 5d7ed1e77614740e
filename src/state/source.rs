//! The source of a listener or namespace. Places and new names are shared between sources, so that
//! no source takes all of them.

use std::fmt;
use std::hash::BuildHasher;

use rustc_hash::FxBuildHasher;

use crate::snapshot::owner::user_of;
use crate::snapshot::{NetnsId, OWN_NETNS, Origin, UNNAMED_NETNS};

/// The first user id of a person (`UID_MIN` of login.defs). Smaller ids are service accounts.
const UID_MIN: u32 = 1000;

/// The user, service or namespace that a listener belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A user: the user's listeners in listenq's own namespace, and the namespaces that the user
    /// made, with everything in them.
    User(u32),
    /// A service in listenq's own namespace: its account and its cgroup.
    Service {
        /// The user id of the sockets' creator.
        uid: u32,
        /// The cgroup id of the sockets' creator; 0 where the kernel does not report it.
        cgroup: u64,
    },
    /// A namespace made by root: a container or a pod. The kernel reuses an inode for the next
    /// namespace at once, so the name is part of the source.
    Netns(NetnsId, NameHash),
}

/// A hash of a namespace name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameHash(u64);

// === impl NameHash ===

impl NameHash {
    fn of(name: &str) -> Self {
        Self(FxBuildHasher.hash_one(name))
    }
}

// === impl Source ===

impl Source {
    /// The source of a namespace made by this user id. `None` means root: other users need a user
    /// namespace to make one.
    pub(super) fn of_netns(made_by: Option<u32>) -> Self {
        Self::User(made_by.map_or(0, user_of))
    }

    /// The source of a listener in the namespace `name`. Inside a container or pod user ids are
    /// arbitrary, so all its listeners belong to one source.
    pub(super) fn of_listener(
        name: &str,
        id: NetnsId,
        made_by: Option<u32>,
        origin: Origin,
    ) -> Self {
        let uid = origin.uid.unwrap_or(0);
        match made_by {
            Some(maker) if maker != 0 => Self::User(user_of(maker)),
            _ if name != OWN_NETNS => Self::Netns(id, NameHash::of(name)),
            _ if uid >= UID_MIN => Self::User(user_of(uid)),
            _ => Self::Service { uid, cgroup: origin.cgroup.unwrap_or(0) },
        }
    }

    /// Whether root made it or can stop it: services, containers and pods.
    pub(super) fn is_managed(self) -> bool {
        !matches!(self, Self::User(uid) if uid != 0)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) | Self::Service { uid, cgroup: 0 } => write!(f, "uid {uid}"),
            Self::Service { uid, cgroup } => write!(f, "uid {uid}, cgroup {cgroup}"),
            Self::Netns(NetnsId(inode), _) => write!(f, "{UNNAMED_NETNS}{inode}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_belongs_to_a_user_a_service_or_a_namespace() {
        let origin = |uid, cgroup| Origin { inode: 1, cgroup, uid };
        let of = |name, made_by, origin| {
            Source::of_listener(name, NetnsId(7), made_by, origin).to_string()
        };
        let table = [
            (of("host", None, origin(Some(0), Some(44))), "uid 0, cgroup 44"),
            (of("host", Some(0), origin(Some(33), None)), "uid 33"),
            (of("host", None, origin(None, None)), "uid 0"),
            (of("host", None, origin(Some(1000), Some(44))), "uid 1000"),
            (of("host", None, origin(Some(165_535), None)), "uid 100000"),
            (of("host", None, origin(Some(165_536), None)), "uid 165536"),
            (of("web", None, origin(Some(1000), Some(44))), "netns:7"),
            (of("web", Some(0), origin(Some(0), None)), "netns:7"),
            (of("netns:7", Some(1000), origin(Some(0), None)), "uid 1000"),
        ];
        for (source, expected) in table {
            assert_eq!(source, expected);
        }
        assert_eq!(Source::of_netns(None), Source::User(0));
        assert_eq!(Source::of_netns(Some(1000)), Source::User(1000));
    }
}
