//! Discovers namespaces: which namespaces appeared and ended between two looks, their names, and
//! the readers of each new namespace.
//!
//! A look finds the namespaces and enters some of them. The others wait
//! ([`waiting`](super::waiting)) and are entered later, as the CPU budget allows.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashSet;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::kernel::listen::Scratch;
use crate::kernel::namespaces::{self, Entrance, FoundNetns, Processes};
use crate::snapshot::owner::Owner;
use crate::snapshot::{NetnsId, OWN_NETNS, UNNAMED_NETNS};

use super::netns::NetnsReader;
use super::thread_cpu;
use super::waiting::{Candidate, Entered, Waiting, Which};
use crate::owner::lookup::{self, OwnerLookup};

/// File descriptors per namespace.
const EACH: u64 = 11;
/// File descriptors reserved for machine-wide files, discovery, scans and clients.
const KEPT: u64 = 64;
/// After this number of consecutive failed looks, namespaces may have ended unseen.
const BLIND_LOOKS: u32 = 2;

/// Result of one look, or of entering namespaces that waited.
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
    /// Number of namespaces that were found and are not entered yet.
    pub waiting: usize,
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
    /// Namespaces to enter.
    waiting: Waiting,
    entered: Entered,
    /// Namespaces that could not be entered at the last attempt, and whether access was denied.
    closed: BTreeMap<NetnsId, bool>,
    /// Namespaces without a known owner: a mount may exist before the first process.
    ownerless: BTreeSet<NetnsId>,
    /// Namespaces that were released because they were no longer visible. They may still exist.
    lost: BTreeSet<NetnsId>,
    has_looked: bool,
    /// Whether a look ever saw most of the machine.
    has_seen: bool,
    /// Whether the last look saw the processes of other users.
    sees_others: bool,
    /// CPU time of the threads inside namespaces since the last call of `take_cpu`.
    cpu: Duration,
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
            names: BTreeMap::from([(own, OWN_NETNS.into())]),
            taken: FxHashSet::from_iter([OWN_NETNS.into()]),
            processes: Processes::default(),
            scratch: Scratch::default(),
            waiting: Waiting::default(),
            entered: Entered::default(),
            closed: BTreeMap::new(),
            ownerless: BTreeSet::new(),
            lost: BTreeSet::new(),
            has_looked: false,
            has_seen: false,
            sees_others: false,
            cpu: Duration::ZERO,
            failed_looks: 0,
            said_full: false,
        }
    }

    /// Looks for namespaces, and enters namespaces until it has used `limit` of CPU time.
    pub fn look(&mut self, owners: &mut OwnerLookup, which: Which, limit: Duration) -> Discovered {
        let mut news = Discovered::default();
        match self.processes.find(&self.procfs, &self.rootfs) {
            Ok(found) => {
                self.compare(&found, owners, &mut news);
                (self.has_looked, self.failed_looks) = (true, 0);
                self.enter_some(owners, which, limit, &mut news);
            }
            Err(error) => {
                self.failed_looks += 1;
                if self.failed_looks >= BLIND_LOOKS {
                    self.let_all_go(&mut news);
                }
                (news.waiting, news.failure) = (self.count_waiting(), Some(error));
            }
        }
        news
    }

    /// Whether a namespace waits that may be entered.
    pub fn can_enter(&self, which: Which) -> bool {
        self.waiting.has_next(which, &self.entered)
    }

    /// Enters namespaces that wait, until it has used `limit` of CPU time.
    pub fn enter_more(
        &mut self,
        owners: &mut OwnerLookup,
        which: Which,
        limit: Duration,
    ) -> Discovered {
        let mut news = Discovered::default();
        self.enter_some(owners, which, limit, &mut news);
        news
    }

    /// Returns the CPU time that threads inside namespaces have used since the last call.
    pub fn take_cpu(&mut self) -> Duration {
        std::mem::take(&mut self.cpu)
    }

    fn enter_some(
        &mut self,
        owners: &mut OwnerLookup,
        which: Which,
        limit: Duration,
        news: &mut Discovered,
    ) {
        let (begin, inside) = (thread_cpu(), self.cpu);
        while let Some(candidate) = self.waiting.pop(which, &self.entered) {
            match self.enter(&candidate, owners) {
                Ok(newcomer) => {
                    self.closed.remove(&candidate.id);
                    news.born.push(newcomer);
                }
                Err(error) => {
                    let path = candidate.entrance.path.display();
                    tracing::debug!(%path, %error, "a namespace could not be entered");
                    let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
                    self.closed.insert(candidate.id, is_denied);
                }
            }
            if thread_cpu().saturating_sub(begin) + self.cpu.saturating_sub(inside) >= limit {
                break;
            }
        }
        (news.inaccessible, news.waiting) = (self.closed.len(), self.count_waiting());
        // Before the first namespace was entered, it is unknown whether namespaces can be entered.
        if self.waiting.is_empty() || self.names.len() > 1 {
            let is_denied = self.closed.values().any(|is_denied| *is_denied);
            news.is_available = Some(!is_denied && self.sees_others);
        }
    }

    /// Returns the number of namespaces that wait for the first attempt to enter them.
    fn count_waiting(&self) -> usize {
        self.waiting.ids().filter(|id| !self.closed.contains_key(id)).count()
    }

    /// Releases all namespaces. It is unknown which of them have ended, and listenq must not keep
    /// an ended namespace alive.
    fn let_all_go(&mut self, news: &mut Discovered) {
        news.ended = self.names.keys().filter(|id| **id != self.own).copied().collect();
        self.lost.extend(&news.ended);
        // A namespace that waits may have existed at the start.
        self.lost.extend(self.waiting.ids());
        self.let_go(&news.ended);
        self.waiting = Waiting::default();
        news.is_available = Some(false);
    }

    fn let_go(&mut self, ended: &[NetnsId]) {
        for id in ended {
            if let Some(name) = self.names.remove(id) {
                self.taken.remove(&name);
            }
            self.ownerless.remove(id);
            self.entered.remove(*id);
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
        self.closed.retain(|id, _| found.namespaces.contains_key(id));
        self.waiting.retain(|id| found.namespaces.contains_key(&id));
        for (id, entrance) in &found.namespaces {
            match self.names.contains_key(id) {
                true => self.ask_again(*id, entrance, owners, news),
                false => self.wait(*id, entrance),
            }
        }
        if !is_blind {
            // A namespace not found now has ended.
            self.lost.clear();
            self.has_seen = true;
        }
        let sees_all = found.denied == 0 && !lookup::hides_processes(&self.procfs);
        let sees_others = sees_all || may_see_others() && !is_blind;
        self.sees_others = sees_others && namespaces::shows_host(&self.procfs);
    }

    /// Adds a namespace to those that wait, or renews the path to it.
    fn wait(&mut self, id: NetnsId, entrance: &Entrance) {
        if let Some(candidate) = self.waiting.get_mut(id) {
            candidate.entrance = entrance.clone();
            return;
        }
        // A namespace that existed and could not be entered before has a history.
        let is_newborn =
            self.has_looked && !self.closed.contains_key(&id) && !self.lost.contains(&id);
        let made_by = entrance.pid.and_then(|pid| namespaces::maker(&self.procfs, pid));
        self.waiting.add(Candidate { id, entrance: entrance.clone(), made_by, is_newborn });
    }

    fn enter(&mut self, candidate: &Candidate, owners: &mut OwnerLookup) -> io::Result<Newcomer> {
        self.ensure_room()?;
        let Candidate { id, ref entrance, made_by, is_newborn } = *candidate;
        let (procfs, scratch) = (&self.procfs, &mut self.scratch);
        let open = || (NetnsReader::open_here(procfs, scratch), thread_cpu());
        let (opened, cpu) = namespaces::enter(&entrance.path, id, open)?;
        self.cpu += cpu;
        let reader = opened.map_err(|error| io::Error::other(error.to_string()))?;
        let owner = entrance.pid.map(|pid| owners.of_process(pid)).unwrap_or_default();
        let name = self.name(id, entrance, &owner);
        self.names.insert(id, name.clone());
        self.taken.insert(name.clone());
        self.entered.add(candidate);
        if owner.is_unknown() {
            self.ownerless.insert(id);
        }
        Ok(Newcomer { id, name, owner: Arc::new(owner), is_newborn, made_by, reader })
    }

    /// Fails if no descriptors would remain for clients. The last descriptors are reserved for
    /// clients, which request only data that was already read.
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
        let unnamed = || match owner.container_id.is_empty() {
            true => format!("{UNNAMED_NETNS}{}", id.0),
            false => container(),
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A look that finds these namespaces, none of which can be entered.
    fn found(ids: &[u64]) -> FoundNetns {
        let entrance = Entrance { path: "/nowhere".into(), mount: None, pid: None };
        let namespaces = ids.iter().map(|id| (NetnsId(*id), entrance.clone())).collect();
        FoundNetns { namespaces, seen: 10, denied: 0 }
    }

    fn newborns(discovery: &mut Discovery) -> Vec<u64> {
        let waiting = std::iter::from_fn(|| discovery.waiting.pop(Which::All, &Entered::default()));
        let mut all: Vec<_> = waiting.map(|one| (one.id.0, one.is_newborn)).collect();
        all.sort_unstable();
        all.into_iter().filter(|(_, is_newborn)| *is_newborn).map(|(id, _)| id).collect()
    }

    #[test]
    fn namespaces_of_the_first_look_are_not_newborn_however_late_they_are_entered() {
        let procfs = Path::new("/proc");
        let mut discovery = Discovery::new(procfs, Path::new("/nowhere"), NetnsId(1));
        let mut owners = OwnerLookup::new(procfs, Path::new("/nowhere"));
        let mut news = Discovered::default();
        discovery.compare(&found(&[2, 3, 4]), &mut owners, &mut news);
        discovery.has_looked = true;
        // One namespace was tried and could not be entered; another one ends before it is entered.
        assert!(
            discovery
                .waiting
                .pop(Which::All, &Entered::default())
                .is_some_and(|one| one.id == NetnsId(2))
        );
        discovery.closed.insert(NetnsId(2), false);
        discovery.compare(&found(&[2, 3, 5]), &mut owners, &mut news);
        assert_eq!(discovery.waiting.ids().map(|id| id.0).collect::<Vec<_>>(), [2, 3, 5]);
        assert_eq!(discovery.count_waiting(), 2);
        assert_eq!(newborns(&mut discovery), [5]);
    }

    #[test]
    fn namespaces_beyond_the_cpu_limit_wait_and_availability_is_unknown_until_entered() {
        let procfs = Path::new("/proc");
        let mut discovery = Discovery::new(procfs, Path::new("/nowhere"), NetnsId(1));
        let mut owners = OwnerLookup::new(procfs, Path::new("/nowhere"));
        discovery.compare(&found(&[2, 3, 4]), &mut owners, &mut Discovered::default());
        let news = discovery.enter_more(&mut owners, Which::All, Duration::ZERO);
        assert_eq!((news.inaccessible, news.waiting, news.is_available), (1, 2, None));
        let news = discovery.enter_more(&mut owners, Which::All, Duration::MAX);
        assert_eq!((news.inaccessible, news.waiting), (3, 0));
        assert!(news.is_available.is_some());
    }
}
