//! What to read of one namespace, and when: the dump always; the counters, which cost as much, when a drop
//! or a socket moved and at least once a second; the settings once a second.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::kernel::listen::ListenReader;
use crate::kernel::netstat::{Netstat, Snmp};
use crate::kernel::procfs_file::{ProcfsFile, ReadError};
use crate::kernel::sysctl;
use crate::own::{Feature, Own, Source};
use crate::snapshot::{Counters, Dump, ListenSocket, NetnsSample, Settings};

use super::health::Health;

/// What moves rarely is read so often.
const SLOW: Duration = Duration::from_secs(1);

/// The readers of the namespace that the calling thread is in.
pub struct NetnsReader {
    procfs: PathBuf,
    listen: ListenReader,
    netstat: ProcfsFile,
    snmp: ProcfsFile,
    health: Health,
    spare: Dump,
    fingerprint: u64,
    counted_at: Option<Duration>,
    settled_at: Option<Duration>,
}

// === impl NetnsReader ===

impl NetnsReader {
    /// Opens the counter files below `procfs`: without them there is nothing to say at all.
    pub fn open(procfs: &Path) -> Result<Self, ReadError> {
        Ok(Self {
            procfs: procfs.to_owned(),
            listen: ListenReader::default(),
            netstat: ProcfsFile::open(procfs.join("net/netstat"))?,
            snmp: ProcfsFile::open(procfs.join("net/snmp"))?,
            health: Health::default(),
            spare: Dump::default(),
            fingerprint: 0,
            counted_at: None,
            settled_at: None,
        })
    }

    /// Reads what is due at `now`.
    pub fn read(&mut self, now: Duration, sample: &mut NetnsSample, own: &mut Own) {
        (sample.netstat, sample.snmp, sample.settings) = (None, None, None);
        let slow = is_due(self.settled_at, now);
        if slow {
            self.settled_at = Some(now);
            self.listen.forget_devices();
            sample.settings = self.read_settings(now, own);
        }
        let moved = self.read_dump(now, sample, own);
        if sample.dump.is_some() && (moved || is_due(self.counted_at, now)) {
            self.counted_at = Some(now);
            sample.netstat = self.read_netstat(now, own);
            sample.snmp = self.read_snmp(now, own);
        }
    }

    /// Whether any drop or socket moved since the last good dump.
    fn read_dump(&mut self, now: Duration, sample: &mut NetnsSample, own: &mut Own) -> bool {
        let mut dump = sample.dump.take().unwrap_or_else(|| std::mem::take(&mut self.spare));
        let reading = self.listen.read(&self.procfs, &mut dump.sockets);
        own.features[Feature::SockDiag as usize] = self.listen.has_sock_diag();
        match self.health.check(own, Source::InetDiag, now, reading) {
            Some(()) => {
                let fingerprint = fingerprint(&dump.sockets);
                sample.dump = Some(dump);
                std::mem::replace(&mut self.fingerprint, fingerprint) != fingerprint
            }
            None => {
                self.spare = dump;
                false
            }
        }
    }

    fn read_netstat(&mut self, now: Duration, own: &mut Own) -> Option<Counters> {
        let reading =
            counters(&mut self.netstat, |text| Netstat::parse(text).map(|netstat| netstat.0));
        self.health.check(own, Source::Netstat, now, reading)
    }

    fn read_snmp(&mut self, now: Duration, own: &mut Own) -> Option<Counters> {
        let reading = counters(&mut self.snmp, |text| Snmp::parse(text).map(|snmp| snmp.0));
        self.health.check(own, Source::Snmp, now, reading)
    }

    fn read_settings(&mut self, now: Duration, own: &mut Own) -> Option<Settings> {
        let settings = sysctl::read(&self.procfs);
        let reading = match settings == Settings::default() {
            true => {
                Err(format!("nothing below {} can be read", self.procfs.join("sys/net").display()))
            }
            false => Ok(settings),
        };
        self.health.check(own, Source::Sysctl, now, reading)
    }
}

fn counters<E: std::fmt::Display>(
    file: &mut ProcfsFile,
    parse: impl FnOnce(&str) -> Result<Counters, E>,
) -> Result<Counters, ReadError> {
    let parsed = parse(file.read()?).map_err(|error| error.to_string());
    parsed.map_err(|error| ReadError::invalid(file.path(), error))
}

fn is_due(last: Option<Duration>, now: Duration) -> bool {
    last.is_none_or(|last| now.saturating_sub(last) >= SLOW)
}

/// Differs, but for chance, when any socket came, went or dropped something; the order does not matter.
fn fingerprint(sockets: &[ListenSocket]) -> u64 {
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |socket: &ListenSocket| {
        let drops = u64::from(socket.drops.unwrap_or(0));
        let mixed = (socket.cookie.0.wrapping_mul(SPREAD) ^ drops).wrapping_mul(SPREAD);
        mixed ^ mixed >> 32
    };
    sockets.iter().map(mix).fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{AcceptQueue, Cookie, ListenAddress};

    fn socket(cookie: u64, drops: u32) -> ListenSocket {
        ListenSocket {
            cookie: Cookie(cookie),
            address: ListenAddress { ip: "::".parse().unwrap(), port: 80, device: None },
            queue: AcceptQueue { length: 0, limit: Some(5) },
            drops: Some(drops),
        }
    }

    #[test]
    fn a_fingerprint_tells_moves_and_not_order() {
        let before = fingerprint(&[socket(1, 5), socket(2, 0)]);
        assert_eq!(before, fingerprint(&[socket(2, 0), socket(1, 5)]));
        assert_ne!(before, fingerprint(&[socket(1, 5), socket(2, 1)]));
        assert_ne!(before, fingerprint(&[socket(1, 5)]));
        assert_ne!(before, fingerprint(&[socket(1, 5), socket(3, 0)]));
    }

    #[test]
    fn this_namespace_can_be_read() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut reader = NetnsReader::open(Path::new("/proc")).unwrap();
        let (mut sample, mut own) = (NetnsSample::new("host".into()), Own::default());
        reader.read(Duration::ZERO, &mut sample, &mut own);
        let dump = sample.dump.as_ref().unwrap();
        assert!(dump.sockets.iter().any(|socket| socket.address.port == port));
        assert!(sample.netstat.is_some() && sample.snmp.is_some() && sample.settings.is_some());
        assert_eq!(own.errors, [0; 4]);
    }
}
