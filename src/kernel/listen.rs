//! Reads the listen sockets of one namespace.
//!
//! TCP uses the best method that the kernel supports: one netlink walk for both families, with one
//! query per known socket between walks; else one walk per family; else `/proc/net/tcp`. Unix
//! sockets are read through netlink only.

use std::path::Path;

use super::device::Devices;
use super::diag_modules::{DiagModule, DiagModules};
use super::diag_stream::DumpError;
use super::inet_diag::Row;
use super::netlink::{Channel, Datagram, LastDump};
use super::proc_tcp::{self, RowError};
use super::procfs_file::{ProcfsFile, ReadError, Text};
use super::socket_queries::{Answers, Asked, Questions};
use super::{inet_diag, unix_diag};
use crate::snapshot::{Identity, ListenSocket, UnixAddress};

/// Reasons why a reading has no listen sockets.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The dump over netlink failed.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// `/proc/net/tcp` could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// `/proc/net/tcp` could not be parsed.
    #[error("/proc/net/tcp: {0}")]
    Row(#[from] RowError),
}

/// Buffers for readings, shared by all namespaces.
#[derive(Default)]
pub struct Scratch {
    /// For netlink.
    pub datagram: Datagram,
    /// For procfs.
    pub text: Text,
    rows: Rows,
    unix: Vec<ListenSocket<UnixAddress>>,
}

/// Rows of a reading that is not yet complete.
#[derive(Default)]
struct Rows {
    sockets: Vec<ListenSocket>,
    /// Sockets bound to an interface, by position and interface index.
    bound: Vec<(usize, u32)>,
}

/// Reads the listen sockets of the namespace in which the reader was opened.
pub struct ListenReader {
    /// `None` if no netlink socket can be created.
    channel: Option<Channel>,
    tcp: Way,
    unix_request: Vec<u8>,
    last_unix: LastDump,
}

/// Method of reading TCP listeners.
enum Way {
    Netlink(Box<Netlink>),
    Procfs(Vec<ProcfsFile>),
}

struct Netlink {
    requests: Vec<Vec<u8>>,
    last: LastDump,
    questions: Questions,
    devices: Devices,
    /// Sockets of the last dump that are bound to an interface, by position and interface index.
    bound: Vec<(usize, u32)>,
}

// === impl ListenReader ===

impl ListenReader {
    /// Finds the best method in the calling thread's namespace; `net` is a directory like
    /// `/proc/net`.
    pub fn open(net: &Path, scratch: &mut Scratch) -> Result<Self, ListenError> {
        Self::open_with(DiagModules::of_process(), net, scratch)
    }

    /// Like [`open`](Self::open), with the given module state instead of the state of the process.
    pub fn open_with(
        modules: &'static DiagModules,
        net: &Path,
        scratch: &mut Scratch,
    ) -> Result<Self, ListenError> {
        let mut channel = match Channel::open_with(modules) {
            Err(error) if error.means_unavailable() => None,
            channel => Some(channel?),
        };
        let netlink = channel.as_mut().map(|channel| Netlink::open(channel, scratch));
        let tcp = match netlink {
            Some(Err(error)) if !error.means_unavailable() => return Err(error.into()),
            Some(Ok(netlink)) => Way::Netlink(Box::new(netlink)),
            None | Some(Err(_)) => Way::procfs(net)?,
        };
        let (unix_request, last_unix) = (unix_diag::request(), LastDump::default());
        Ok(Self { channel, tcp, unix_request, last_unix })
    }

    /// Whether netlink answers TCP requests.
    pub fn has_sock_diag(&self) -> bool {
        let is_missing = |channel: &Channel| channel.modules().is_missing(DiagModule::Tcp);
        matches!(self.tcp, Way::Netlink(_)) && !self.channel.as_ref().is_some_and(is_missing)
    }

    /// Returns the fields that identify the TCP sockets of this reader.
    pub fn identity(&self) -> Identity {
        match self.tcp {
            Way::Netlink(_) => Identity::Cookie,
            Way::Procfs(_) => Identity::Inode,
        }
    }

    /// Replaces `sockets` with the current TCP listen sockets.
    ///
    /// `sockets` holds the sockets of the last good reading and keeps them after an error. Returns
    /// whether nothing changed since that reading.
    pub fn read_tcp(
        &mut self,
        scratch: &mut Scratch,
        sockets: &mut Vec<ListenSocket>,
    ) -> Result<bool, ListenError> {
        self.heal(scratch)?;
        match (&mut self.tcp, &mut self.channel) {
            (Way::Netlink(netlink), Some(channel)) => Ok(netlink.dump(channel, scratch, sockets)?),
            (Way::Procfs(files), _) => {
                let Scratch { text, rows, .. } = scratch;
                rows.clear();
                for file in files {
                    let text = file.read_lines(text, proc_tcp::is_connection)?;
                    proc_tcp::parse(text, &mut rows.sockets)?;
                }
                Ok(rows.replace(sockets))
            }
            // Netlink is chosen only if there is a netlink socket.
            (Way::Netlink(_), None) => Ok(false),
        }
    }

    /// Switches to netlink once its module is loaded.
    fn heal(&mut self, scratch: &mut Scratch) -> Result<(), DumpError> {
        let (Way::Procfs(_), Some(channel)) = (&self.tcp, &mut self.channel) else { return Ok(()) };
        if !channel.modules().may_answer(DiagModule::Tcp) {
            return Ok(());
        }
        match Netlink::open(channel, scratch) {
            Ok(netlink) => self.tcp = Way::Netlink(Box::new(netlink)),
            Err(error) if error.means_unavailable() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Selects the sockets that [`ask_tcp`](Self::ask_tcp) queries until the next call, by their
    /// positions in `sockets`, the result of the last [`read_tcp`](Self::read_tcp).
    pub fn select(&mut self, sockets: &[ListenSocket], places: impl Iterator<Item = usize>) {
        if let Way::Netlink(netlink) = &mut self.tcp {
            let Netlink { questions, bound, .. } = &mut **netlink;
            let interface = |place| {
                let found = bound.binary_search_by_key(&place, |(place, _)| *place);
                found.map_or(0, |nth| bound[nth].1)
            };
            let asked = places.map(|place| Asked { place, interface: interface(place) });
            questions.renew(sockets, asked);
        }
    }

    /// Queries the selected TCP listen sockets and updates them in `sockets`, the result of the
    /// last [`read_tcp`](Self::read_tcp).
    ///
    /// Returns `None` and leaves `sockets` unchanged if nothing can be queried.
    pub fn ask_tcp(
        &mut self,
        scratch: &mut Scratch,
        sockets: &mut [ListenSocket],
    ) -> Option<Answers> {
        let (Way::Netlink(netlink), Some(channel)) = (&mut self.tcp, &mut self.channel) else {
            return None;
        };
        netlink.ask(channel, scratch, sockets)
    }

    /// Replaces `sockets` with the current Unix listen sockets.
    ///
    /// `sockets` holds the sockets of the last good reading and keeps them after an error. Returns
    /// whether nothing changed since that reading, or `None` if this kernel cannot list Unix
    /// sockets.
    pub fn read_unix(
        &mut self,
        scratch: &mut Scratch,
        sockets: &mut Vec<ListenSocket<UnixAddress>>,
    ) -> Result<Option<bool>, ListenError> {
        let Self { channel: Some(channel), unix_request, last_unix, .. } = self else {
            return Ok(None);
        };
        let Scratch { datagram, unix: rows, .. } = scratch;
        rows.clear();
        let dumped = channel.dump_unless_same(unix_request, datagram, last_unix, |payload| {
            rows.extend(unix_diag::decode_row(payload)?);
            Ok(())
        });
        match dumped {
            Ok(is_same) => {
                if !is_same {
                    std::mem::swap(rows, sockets);
                }
                Ok(Some(is_same))
            }
            Err(error) if error.means_unavailable() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Marks the names of interfaces for a new lookup.
    pub fn forget_devices(&mut self) {
        if let Way::Netlink(netlink) = &mut self.tcp {
            netlink.forget_devices();
        }
    }
}

/// Returns the requests that this kernel answers, found by trying them.
fn find_requests(channel: &mut Channel, scratch: &mut Scratch) -> Result<Vec<Vec<u8>>, DumpError> {
    let mut both = vec![inet_diag::both_families()];
    match try_out(channel, &mut both, scratch) {
        Ok(()) => return Ok(both),
        Err(error @ DumpError::Kernel(_)) if !error.means_missing_module() => {}
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

// === impl Netlink ===

impl Netlink {
    fn open(channel: &mut Channel, scratch: &mut Scratch) -> Result<Self, DumpError> {
        Ok(Self {
            requests: find_requests(channel, scratch)?,
            last: LastDump::default(),
            questions: Questions::default(),
            devices: Devices::default(),
            bound: Vec::new(),
        })
    }

    /// Whether the sockets equal the last reading, in which case `sockets` is already correct.
    fn dump(
        &mut self,
        channel: &mut Channel,
        scratch: &mut Scratch,
        sockets: &mut Vec<ListenSocket>,
    ) -> Result<bool, DumpError> {
        let Self { requests, last, devices, bound, .. } = self;
        let Scratch { datagram, rows, .. } = scratch;
        rows.clear();
        let mut row = |payload: &[u8]| {
            inet_diag::decode_row(payload)?.into_iter().for_each(|row| rows.push(row));
            Ok(())
        };
        match &mut requests[..] {
            [both] => {
                if channel.dump_unless_same(both, datagram, last, &mut row)? {
                    return Ok(true);
                }
            }
            each => {
                for request in each {
                    channel.dump(request, datagram, &mut row)?;
                }
            }
        }
        bound.clone_from(&rows.bound);
        rows.name_devices(devices, channel);
        Ok(rows.replace(sockets))
    }

    /// Queries the selected sockets and updates `sockets`.
    fn ask(
        &mut self,
        channel: &mut Channel,
        scratch: &mut Scratch,
        sockets: &mut [ListenSocket],
    ) -> Option<Answers> {
        let Self { last, questions, .. } = self;
        if questions.is_empty() {
            return None;
        }
        let answers = questions.ask(channel, &mut scratch.datagram, sockets).ok()?;
        if !answers.is_same {
            // The next dump may equal the last kept dump although `sockets` has changed since then.
            last.forget();
        }
        Some(answers)
    }

    fn forget_devices(&mut self) {
        if self.devices.refresh() {
            self.last.forget();
            self.questions.forget();
        }
    }
}

// === impl Rows ===

impl Rows {
    fn clear(&mut self) {
        self.sockets.clear();
        self.bound.clear();
    }

    fn push(&mut self, row: Row) {
        if row.interface != 0 {
            self.bound.push((self.sockets.len(), row.interface));
        }
        self.sockets.push(row.socket);
    }

    fn name_devices(&mut self, devices: &mut Devices, channel: &Channel) {
        for (place, interface) in &self.bound {
            self.sockets[*place].address.device = Some(devices.name(channel, *interface));
        }
    }

    /// Replaces `sockets` with these rows. Returns whether they are equal.
    fn replace(&mut self, sockets: &mut Vec<ListenSocket>) -> bool {
        let is_same = self.sockets == *sockets;
        if !is_same {
            std::mem::swap(&mut self.sockets, sockets);
        }
        is_same
    }
}

// === impl Way ===

impl Way {
    /// Opens the procfs tables. A kernel without IPv6 has no `tcp6`.
    fn procfs(net: &Path) -> Result<Self, ReadError> {
        let mut files = vec![ProcfsFile::open(net.join("tcp"))?];
        files.extend(ProcfsFile::open(net.join("tcp6")).ok());
        Ok(Self::Procfs(files))
    }
}
