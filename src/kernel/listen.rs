//! The listen sockets of one namespace. TCP by the best way this kernel has: one netlink walk for both
//! families, else one for each, else `/proc/net/tcp`. Unix by netlink or not at all.

use std::path::Path;

use super::device::Devices;
use super::diag_stream::DumpError;
use super::netlink::{Channel, Datagram, LastDump};
use super::proc_tcp::{self, RowError};
use super::procfs_file::{ProcfsFile, ReadError, Text};
use super::{inet_diag, unix_diag};
use crate::snapshot::{ListenSocket, UnixName};

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

/// The memory that readings go through: one for all namespaces.
#[derive(Default)]
pub struct Scratch {
    /// For netlink.
    pub datagram: Datagram,
    /// For procfs.
    pub text: Text,
    /// Rows bound to an interface, by place and interface index.
    bound: Vec<(usize, u32)>,
}

/// Reads the listen sockets of the namespace it was opened in.
pub struct ListenReader {
    way: Way,
    unix_request: Vec<u8>,
    devices: Devices,
}

/// How TCP listeners are read. Decided once: the identities of the two ways do not mix.
enum Way {
    Netlink {
        channel: Channel,
        requests: Vec<Vec<u8>>,
        last: LastDump,
    },
    /// Unix listeners may still be had by netlink.
    Procfs {
        files: Vec<ProcfsFile>,
        channel: Option<Channel>,
    },
}

// === impl ListenReader ===

impl ListenReader {
    /// Finds the best way in the calling thread's namespace; `net` is a directory like `/proc/net`.
    pub fn open(net: &Path, scratch: &mut Scratch) -> Result<Self, ListenError> {
        let way = match Way::netlink(scratch) {
            Err(error) if error.means_unavailable() => Way::procfs(net)?,
            way => way?,
        };
        Ok(Self { way, unix_request: unix_diag::request(), devices: Devices::default() })
    }

    /// Whether netlink answers for TCP.
    pub fn has_sock_diag(&self) -> bool {
        matches!(self.way, Way::Netlink { .. })
    }

    /// Puts the TCP listen sockets of now into `sockets`, which holds those of the last reading; what it holds after
    /// an error is worth nothing. Gives whether nothing at all moved since then.
    pub fn read_tcp(
        &mut self,
        scratch: &mut Scratch,
        sockets: &mut Vec<ListenSocket>,
    ) -> Result<bool, ListenError> {
        match &mut self.way {
            Way::Netlink { channel, requests, last } => {
                Ok(dump_tcp(channel, requests, last, &mut self.devices, scratch, sockets)?)
            }
            Way::Procfs { files, .. } => {
                sockets.clear();
                for file in files {
                    proc_tcp::parse(file.read(&mut scratch.text)?, sockets)?;
                }
                Ok(false)
            }
        }
    }

    /// Puts the Unix listen sockets of now into `sockets`; false where this kernel cannot tell them.
    pub fn read_unix(
        &mut self,
        scratch: &mut Scratch,
        sockets: &mut Vec<ListenSocket<UnixName>>,
    ) -> Result<bool, ListenError> {
        sockets.clear();
        let (Way::Netlink { channel, .. } | Way::Procfs { channel: Some(channel), .. }) =
            &mut self.way
        else {
            return Ok(false);
        };
        let dumped = channel.dump(&mut self.unix_request, &mut scratch.datagram, |payload| {
            sockets.extend(unix_diag::decode_row(payload)?);
            Ok(())
        });
        match dumped {
            Ok(()) => Ok(true),
            Err(error) if error.means_unavailable() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks up the names of interfaces anew from now on.
    pub fn forget_devices(&mut self) {
        if let (true, Way::Netlink { last, .. }) = (self.devices.forget(), &mut self.way) {
            last.forget();
        }
    }
}

/// The requests that this kernel answers, tried out.
fn find_requests(channel: &mut Channel, scratch: &mut Scratch) -> Result<Vec<Vec<u8>>, DumpError> {
    let mut both = vec![inet_diag::both_families()];
    match try_out(channel, &mut both, scratch) {
        Ok(()) => return Ok(both),
        Err(DumpError::Kernel(_)) => {}
        Err(error) => return Err(error),
    }
    let mut each = Vec::from(inet_diag::one_per_family());
    try_out(channel, &mut each, scratch).map(|()| each)
}

fn try_out(
    channel: &mut Channel,
    requests: &mut [Vec<u8>],
    scratch: &mut Scratch,
) -> Result<(), DumpError> {
    for request in requests {
        channel.dump(request, &mut scratch.datagram, |payload| {
            inet_diag::decode_row(payload).map(drop)
        })?;
    }
    Ok(())
}

/// Whether the answer was the same as the last, to the byte: then `sockets` is right as it is.
fn dump_tcp(
    channel: &mut Channel,
    requests: &mut [Vec<u8>],
    last: &mut LastDump,
    devices: &mut Devices,
    scratch: &mut Scratch,
    sockets: &mut Vec<ListenSocket>,
) -> Result<bool, DumpError> {
    let Scratch { datagram, bound, .. } = scratch;
    bound.clear();
    let mut is_first = true;
    let mut row = |payload: &[u8]| {
        if std::mem::take(&mut is_first) {
            sockets.clear();
        }
        if let Some(row) = inet_diag::decode_row(payload)? {
            if row.interface != 0 {
                bound.push((sockets.len(), row.interface));
            }
            sockets.push(row.socket);
        }
        Ok(())
    };
    let is_same = match requests {
        [both] => channel.dump_unless_same(both, datagram, last, &mut row)?,
        each => {
            for request in each {
                channel.dump(request, datagram, &mut row)?;
            }
            false
        }
    };
    if is_first && !is_same {
        // There was no row at all.
        sockets.clear();
    }
    for (place, interface) in &*bound {
        sockets[*place].address.device = Some(devices.name(&*channel, *interface));
    }
    Ok(is_same)
}

// === impl Way ===

impl Way {
    fn netlink(scratch: &mut Scratch) -> Result<Self, DumpError> {
        let mut channel = Channel::open()?;
        let requests = find_requests(&mut channel, scratch)?;
        Ok(Self::Netlink { channel, requests, last: LastDump::default() })
    }

    /// Without IPv6 in the kernel there is no tcp6.
    fn procfs(net: &Path) -> Result<Self, ReadError> {
        let mut files = vec![ProcfsFile::open(net.join("tcp"))?];
        files.extend(ProcfsFile::open(net.join("tcp6")).ok());
        Ok(Self::Procfs { files, channel: Channel::open().ok() })
    }
}
