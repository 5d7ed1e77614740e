//! Which namespaces there are: what came and went between two looks around, what each is called, and the readers
//! of each new one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::thread::{CapabilitySet, capabilities};

use crate::kernel::listen::Scratch;
use crate::kernel::namespaces::{self, Entrance, Found};
use crate::owner::Owner;
use crate::snapshot::NetnsId;

use super::netns::NetnsReader;
use super::owners::Owners;

/// The name of the namespace that listenq itself is in.
pub const OWN_NAME: &str = "host";

/// News of one look around.
#[derive(Default)]
pub struct News {
    /// Namespaces not seen before, with their readers.
    pub born: Vec<Newcomer>,
    /// Namespaces that nothing holds any more but listenq: they must be let go.
    pub ended: Vec<NetnsId>,
    /// Owners of namespaces that had none at first.
    pub owners: Vec<(NetnsId, Arc<Owner>)>,
    /// Namespaces that are there and could not be entered.
    pub inaccessible: usize,
    /// Whether other namespaces could be seen and entered at all.
    pub is_available: bool,
    /// Whether looking around failed altogether.
    pub failure: Option<io::Error>,
}

/// A namespace to be sampled from now on.
pub struct Newcomer {
    /// Which it is.
    pub id: NetnsId,
    /// The `netns` label, its own for as long as it lives.
    pub name: Arc<str>,
    /// Who it was made for.
    pub owner: Arc<Owner>,
    /// Whether it came up while listenq was running.
    pub is_newborn: bool,
    /// Its readers.
    pub reader: NetnsReader,
}

/// What is known of the namespaces of this machine.
pub struct Discovery {
    procfs: PathBuf,
    rootfs: PathBuf,
    own: NetnsId,
    names: BTreeMap<NetnsId, Arc<str>>,
    scratch: Scratch,
    /// Namespaces that could not be entered at the last look.
    closed: BTreeSet<NetnsId>,
    /// Namespaces whose owner is not known: a mount may be there before the first process.
    ownerless: BTreeSet<NetnsId>,
    has_looked: bool,
}

// === impl Discovery ===

impl Discovery {
    /// Knows only the own namespace so far.
    pub fn new(procfs: &Path, rootfs: &Path, own: NetnsId) -> Self {
        Self {
            procfs: procfs.to_owned(),
            rootfs: rootfs.to_owned(),
            own,
            names: BTreeMap::from([(own, OWN_NAME.into())]),
            scratch: Scratch::default(),
            closed: BTreeSet::new(),
            ownerless: BTreeSet::new(),
            has_looked: false,
        }
    }

    /// Looks around once.
    pub fn look(&mut self, owners: &mut Owners) -> News {
        let mut news = News::default();
        match namespaces::find(&self.procfs, &self.rootfs) {
            Ok(found) => {
                self.compare(&found, owners, &mut news);
                self.has_looked = true;
            }
            Err(error) => news.failure = Some(error),
        }
        news
    }

    fn compare(&mut self, found: &Found, owners: &mut Owners, news: &mut News) {
        let ended: Vec<NetnsId> = self
            .names
            .keys()
            .filter(|id| **id != self.own && !found.namespaces.contains_key(id))
            .copied()
            .collect();
        for id in &ended {
            self.names.remove(id);
            self.ownerless.remove(id);
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
        news.is_available = !denied && (found.denied == 0 || may_see_others());
    }

    fn enter(
        &mut self,
        id: NetnsId,
        entrance: &Entrance,
        owners: &mut Owners,
    ) -> io::Result<Newcomer> {
        let (procfs, scratch) = (&self.procfs, &mut self.scratch);
        let opened =
            namespaces::enter(&entrance.path, id, || NetnsReader::open_here(procfs, scratch))?;
        let reader = opened.map_err(|error| io::Error::other(error.to_string()))?;
        let owner = entrance.pid.map(|pid| owners.of_process(pid)).unwrap_or_default();
        let name = self.name(id, entrance, &owner);
        self.names.insert(id, name.clone());
        if owner.is_unknown() {
            self.ownerless.insert(id);
        }
        // One that was there and could not be entered before has a history.
        let is_newborn = self.has_looked && !self.closed.contains(&id);
        Ok(Newcomer { id, name, owner: Arc::new(owner), is_newborn, reader })
    }

    fn ask_again(
        &mut self,
        id: NetnsId,
        entrance: &Entrance,
        owners: &mut Owners,
        news: &mut News,
    ) {
        let Some(pid) = entrance.pid.filter(|_| self.ownerless.contains(&id)) else { return };
        let owner = owners.of_process(pid);
        if !owner.is_unknown() {
            self.ownerless.remove(&id);
            news.owners.push((id, Arc::new(owner)));
        }
    }

    /// A name nobody else has: that of its mount, else of its container, else its inode.
    fn name(&self, id: NetnsId, entrance: &Entrance, owner: &Owner) -> Arc<str> {
        let taken: BTreeSet<&str> = self.names.values().map(|name| &**name).collect();
        let container = || owner.container_id.chars().take(12).collect();
        let unnamed =
            || if owner.container_id.is_empty() { format!("netns:{}", id.0) } else { container() };
        let name = entrance.mount.clone().unwrap_or_else(unnamed);
        let mut unique = name;
        while taken.contains(&*unique) {
            unique = format!("{unique}~{}", id.0);
        }
        unique.into()
    }
}

/// Whether this thread has the capabilities for the `ns/net` links of others and for entering. Some processes deny
/// even those who have them.
fn may_see_others() -> bool {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
    capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}
