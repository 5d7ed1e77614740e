//! The listen sockets of one namespace, by the best way this kernel has: one netlink walk for both families,
//! else one for each, else `/proc/net/tcp`.

use std::path::Path;

use super::device::Devices;
use super::diag_stream::DumpError;
use super::inet_diag;
use super::netlink::Channel;
use super::proc_tcp::{self, RowError};
use super::procfs_file::{ProcfsFile, ReadError};
use crate::snapshot::ListenSocket;

/// Why there are no listen sockets this time.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The dump over netlink failed.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// `/proc/net/tcp` could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// `/proc/net/tcp` could not be understood.
    #[error("/proc/net/tcp: {0}")]
    Row(#[from] RowError),
}

/// Reads the listen sockets of the namespace it was first used in.
pub struct ListenReader {
    way: Way,
    requests: Vec<Vec<u8>>,
    channel: Option<Channel>,
    devices: Devices,
    /// Rows bound to an interface, by place and interface index.
    bound: Vec<(usize, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Untried,
    Netlink,
    Procfs,
}

// === impl ListenReader ===

impl Default for ListenReader {
    fn default() -> Self {
        Self {
            way: Way::Untried,
            requests: Vec::new(),
            channel: None,
            devices: Devices::default(),
            bound: Vec::new(),
        }
    }
}

impl ListenReader {
    /// Whether netlink answers; `None` until it was tried. Decided once: identities of the two ways do not mix.
    pub fn has_sock_diag(&self) -> Option<bool> {
        match self.way {
            Way::Untried => None,
            Way::Netlink => Some(true),
            Way::Procfs => Some(false),
        }
    }

    /// Puts the listen sockets of now into `sockets`; what it holds after an error is worth nothing.
    pub fn read(
        &mut self,
        procfs: &Path,
        sockets: &mut Vec<ListenSocket>,
    ) -> Result<(), ListenError> {
        sockets.clear();
        match self.way {
            Way::Untried => self.find_a_way(procfs, sockets),
            Way::Netlink => Ok(self.dump(sockets)?),
            Way::Procfs => read_procfs(procfs, sockets),
        }
    }

    /// Looks up the names of interfaces anew from now on.
    pub fn forget_devices(&mut self) {
        self.devices.forget();
    }

    fn find_a_way(
        &mut self,
        procfs: &Path,
        sockets: &mut Vec<ListenSocket>,
    ) -> Result<(), ListenError> {
        let ways = [vec![inet_diag::both_families()], inet_diag::one_per_family().into()];
        let mut last = None;
        for requests in ways {
            self.requests = requests;
            match self.dump(sockets) {
                Ok(()) => {
                    self.way = Way::Netlink;
                    return Ok(());
                }
                Err(error @ DumpError::Kernel(_)) => last = Some(error),
                Err(error) => {
                    last = Some(error);
                    break;
                }
            }
            sockets.clear();
        }
        match last {
            Some(error) if error.means_unavailable() => {
                tracing::warn!(%error, "no sock_diag: /proc/net/tcp gives lengths, but no limits and no drops");
                self.way = Way::Procfs;
                read_procfs(procfs, sockets)
            }
            error => error.map_or(Ok(()), |error| Err(error.into())),
        }
    }

    fn dump(&mut self, sockets: &mut Vec<ListenSocket>) -> Result<(), DumpError> {
        // A failed dump leaves unread rows behind: the next one gets a new channel.
        let mut channel = match self.channel.take() {
            Some(channel) => channel,
            None => Channel::open()?,
        };
        self.bound.clear();
        for request in &mut self.requests {
            channel.dump(request, |payload| {
                if let Some(row) = inet_diag::decode_row(payload)? {
                    if row.interface != 0 {
                        self.bound.push((sockets.len(), row.interface));
                    }
                    sockets.push(row.socket);
                }
                Ok(())
            })?;
        }
        for (place, interface) in &self.bound {
            sockets[*place].address.device = Some(self.devices.name(&channel, *interface));
        }
        self.channel = Some(channel);
        Ok(())
    }
}

fn read_procfs(procfs: &Path, sockets: &mut Vec<ListenSocket>) -> Result<(), ListenError> {
    for name in ["net/tcp", "net/tcp6"] {
        let path = procfs.join(name);
        // Without IPv6 in the kernel there is no tcp6.
        if name == "net/tcp6" && !path.exists() {
            continue;
        }
        proc_tcp::parse(ProcfsFile::open(path)?.read()?, sockets)?;
    }
    Ok(())
}
