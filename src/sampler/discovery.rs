//! Discovers namespaces: which namespaces appeared and ended between two looks, their names, and
//! the readers of each new namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustc_hash::FxHashSet;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::kernel::listen::Scratch;
use crate::kernel::namespaces::{self, Entrance, FoundNetns, Processes};
use crate::snapshot::NetnsId;
use crate::snapshot::owner::Owner;

use super::netns::NetnsReader;
use crate::owner::lookup::{self, OwnerLookup};

pub use crate::snapshot::OWN_NETNS as OWN_NAME;

/// File descriptors per namespace.
const EACH: u64 = 11;
/// File descriptors reserved for machine-wide files, discovery, scans and clients.
const KEPT: u64 = 64;
/// After this number of consecutive failed looks, namespaces may have ended unseen.
const BLIND_LOOKS: u32 = 2;

/// Result of one look.
#[derive(Default)]
pub struct Discovered {
    /// Namespaces not seen before, with their readers.
    pub born: Vec<Newcomer>,
    /// Namespaces that, as far as listenq can see, only listenq still holds. They must be released.
    pub ended: Vec<NetnsId>,
    /// Owners of namespaces that had no owner at first.
    pub owners: Vec<(NetnsId, Arc<Owner>)>,
    /// Number of namespaces that exist but could not be entered.
    pub inaccessible: usize,
    /// Whether other namespaces can be seen and entered at all; `None` if this look cannot
    /// determine that.
    pub is_available: Option<bool>,
    /// Error that made the whole look fail.
    pub failure: Option<io::Error>,
}

/// A namespace to sample from now on.
pub struct Newcomer {
    pub id: NetnsId,
    /// Value of the `netns` label, unique while the namespace exists.
    pub name: Arc<str>,
    /// Owner for which the namespace was created.
    pub owner: Arc<Owner>,
    /// Whether the namespace appeared while listenq was running.
    pub is_newborn: bool,
    /// User who created the namespace, unless that user is root.
    pub made_by: Option<u32>,
    pub reader: NetnsReader,
}

/// Known namespaces of this machine.
pub struct Discovery {
    procfs: PathBuf,
    rootfs: PathBuf,
    own: NetnsId,
    names: BTreeMap<NetnsId, Arc<str>>,
    /// The values of `names`.
    taken: FxHashSet<Arc<str>>,
    processes: Processes,
    scratch: Scratch,
    /// Namespaces that could not be entered at the last look.
    closed: BTreeSet<NetnsId>,
    /// Namespaces without a known owner: a mount may exist before the first process.
    ownerless: BTreeSet<NetnsId>,
    /// Namespaces that were released because they were no longer visible. They may still exist.
    lost: BTreeSet<NetnsId>,
    has_looked: bool,
    /// Whether a look ever saw most of the machine.
    has_seen: bool,
    failed_looks: u32,
    said_full: bool,
}

// === impl Discovery ===

impl Discovery {
    /// Creates a discovery that knows only the own namespace.
    pub fn new(procfs: &Path, rootfs: &Path, own: NetnsId) -> Self {
        Self {
            procfs: procfs.to_owned(),
            rootfs: rootfs.to_owned(),
            own,
            names: BTreeMap::from([(own, OWN_NAME.into())]),
            taken: FxHashSet::from_iter([OWN_NAME.into()]),
            processes: Processes::default(),
            scratch: Scratch::default(),
            closed: BTreeSet::new(),
            ownerless: BTreeSet::new(),
            lost: BTreeSet::new(),
            has_looked: false,
            has_seen: false,
            failed_looks: 0,
            said_full: false,
        }
    }

    /// Looks for namespaces once.
    pub fn look(&mut self, owners: &mut OwnerLookup) -> Discovered {
        let mut news = Discovered::default();
        match self.processes.find(&self.procfs, &self.rootfs) {
            Ok(found) => {
                self.compare(&found, owners, &mut news);
                (self.has_looked, self.failed_looks) = (true, 0);
            }
            Err(error) => {
                self.failed_looks += 1;
                if self.failed_looks >= BLIND_LOOKS {
                    self.let_all_go(&mut news);
                }
                news.failure = Some(error);
            }
        }
        news
    }

    /// Releases all namespaces. The ended namespaces are unknown, and listenq must keep no
    /// namespace alive.
    fn let_all_go(&mut self, news: &mut Discovered) {
        news.ended = self.names.keys().filter(|id| **id != self.own).copied().collect();
        self.lost.extend(&news.ended);
        self.let_go(&news.ended);
        news.is_available = Some(false);
    }

    fn let_go(&mut self, ended: &[NetnsId]) {
        for id in ended {
            if let Some(name) = self.names.remove(id) {
                self.taken.remove(&name);
            }
            self.ownerless.remove(id);
        }
    }

    fn compare(&mut self, found: &FoundNetns, owners: &mut OwnerLookup, news: &mut Discovered) {
        let ended: Vec<NetnsId> = self
            .names
            .keys()
            .filter(|id| **id != self.own && !found.namespaces.contains_key(id))
            .copied()
            .collect();
        self.let_go(&ended);
        let is_blind = found.is_blind();
        if is_blind && self.has_seen {
            self.lost.extend(&ended);
        }
        news.ended = ended;
        let (mut denied, mut closed) = (false, BTreeSet::new());
        for (id, entrance) in &found.namespaces {
            if self.names.contains_key(id) {
                self.ask_again(*id, entrance, owners, news);
                continue;
            }
            match self.enter(*id, entrance, owners) {
                Ok(newcomer) => news.born.push(newcomer),
                Err(error) => {
                    denied |= error.kind() == io::ErrorKind::PermissionDenied;
                    news.inaccessible += 1;
                    closed.insert(*id);
                    tracing::debug!(path = %entrance.path.display(), %error, "a namespace could not be entered");
                }
            }
        }
        self.closed = closed;
        if !is_blind {
            // A namespace not found now has ended.
            self.lost.clear();
            self.has_seen = true;
        }
        let sees_all = found.denied == 0 && !lookup::hides_processes(&self.procfs);
        let sees_others = sees_all || may_see_others() && !is_blind;
        news.is_available = Some(!denied && sees_others && namespaces::shows_host(&self.procfs));
    }

    fn enter(
        &mut self,
        id: NetnsId,
        entrance: &Entrance,
        owners: &mut OwnerLookup,
    ) -> io::Result<Newcomer> {
        self.ensure_room()?;
        let (procfs, scratch) = (&self.procfs, &mut self.scratch);
        let opened =
            namespaces::enter(&entrance.path, id, || NetnsReader::open_here(procfs, scratch))?;
        let reader = opened.map_err(|error| io::Error::other(error.to_string()))?;
        let owner = entrance.pid.map(|pid| owners.of_process(pid)).unwrap_or_default();
        let name = self.name(id, entrance, &owner);
        self.names.insert(id, name.clone());
        self.taken.insert(name.clone());
        if owner.is_unknown() {
            self.ownerless.insert(id);
        }
        // A namespace that existed and could not be entered before has a history.
        let is_newborn = self.has_looked && !self.closed.contains(&id) && !self.lost.contains(&id);
        let made_by = entrance.pid.and_then(|pid| namespaces::maker(&self.procfs, pid));
        Ok(Newcomer { id, name, owner: Arc::new(owner), is_newborn, made_by, reader })
    }

    /// Fails if no descriptors would remain for clients. Only clients, which request the data
    /// already known, depend on the last descriptors.
    fn ensure_room(&mut self) -> io::Result<()> {
        let wanted = EACH * self.names.len() as u64 + KEPT;
        let limit = getrlimit(Resource::Nofile).current;
        if limit.is_none_or(|limit| wanted <= limit) {
            return Ok(());
        }
        if !std::mem::replace(&mut self.said_full, true) {
            tracing::warn!(
                limit,
                "the descriptor limit is too low for all network namespaces: raise the hard limit (LimitNOFILE=)"
            );
        }
        Err(Errno::MFILE.into())
    }

    fn ask_again(
        &mut self,
        id: NetnsId,
        entrance: &Entrance,
        owners: &mut OwnerLookup,
        news: &mut Discovered,
    ) {
        let Some(pid) = entrance.pid.filter(|_| self.ownerless.contains(&id)) else { return };
        let owner = owners.of_process(pid);
        if !owner.is_unknown() {
            self.ownerless.remove(&id);
            news.owners.push((id, Arc::new(owner)));
        }
    }

    /// Returns a unique name: the name of the mount, else of the container, else the inode.
    fn name(&self, id: NetnsId, entrance: &Entrance, owner: &Owner) -> Arc<str> {
        let container = || owner.container_id.chars().take(12).collect();
        let unnamed =
            || if owner.container_id.is_empty() { format!("netns:{}", id.0) } else { container() };
        let name = entrance.mount.clone().unwrap_or_else(unnamed);
        let mut unique = name;
        while self.taken.contains(&*unique) {
            unique = format!("{unique}~{}", id.0);
        }
        unique.into()
    }
}

/// Whether this thread has the capabilities to read the `ns/net` links of other processes and to
/// enter their namespaces. Some processes deny access even with these capabilities.
fn may_see_others() -> bool {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
    capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}
