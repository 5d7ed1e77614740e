//! The control socket: a Unix socket over which `list`, `explain` and `check` ask the daemon of
//! this machine.
//!
//! Any user may hold a TCP port; a client trusts the control socket only if it trusts the socket's
//! owner: the peer must be root, the requesting user, or the owner of a directory that no other
//! user can have created. The daemon writes its report as JSON to each connection and closes the
//! connection; the daemon reads nothing.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use thiserror::Error;

use crate::report::Report;
use crate::view::publish::Reader;

/// The default path of the control socket.
pub const DEFAULT_PATH: &str = "/run/listenq/control.sock";
/// Timeout for one client to read the report.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for a client that waits for the daemon.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum bytes of a report; a report of 100,000 listeners is smaller.
const MAX_BYTES: u64 = 1 << 28;
/// The mode of the socket: the user and the group of the daemon may connect.
const MODE: u32 = 0o660;

/// The daemon's side of the control socket. Dropping it removes the socket.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    listener: UnixListener,
}

/// Why the control socket returned no report.
#[derive(Debug, Error)]
pub enum ControlError {
    /// No daemon listens there.
    #[error("no daemon at {path} ({reason})")]
    Absent {
        /// The path of the socket.
        path: String,
        /// The kernel's error text.
        reason: String,
    },
    /// The socket exists and this user may not connect.
    #[error(
        "{path}: permission denied; run as root, join the group of the socket, or ask with --url"
    )]
    Denied {
        /// The path of the socket.
        path: String,
    },
    /// Another user made the socket.
    #[error(
        "{path} belongs to user {uid}, who is neither root nor the owner of its directory: not connecting"
    )]
    Untrusted {
        /// The path of the socket.
        path: String,
        /// The user that owns the socket.
        uid: u32,
    },
    /// The answer is not a report.
    #[error("{path} did not answer with a report ({reason})")]
    Strange {
        /// The path of the socket.
        path: String,
        /// Why the answer is invalid.
        reason: String,
    },
}

// === impl ControlSocket ===

impl ControlSocket {
    /// Listens at `path`, and creates the directory if it is missing. A stale socket without a
    /// listener is replaced.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        }
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && is_stale(path) => {
                fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            bound => bound?,
        };
        fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
        Ok(Self { path: path.to_owned(), listener })
    }

    /// Answers clients one by one on a separate thread until the program ends.
    pub fn serve(&self, reader: Reader) -> io::Result<()> {
        let listener = self.listener.try_clone()?;
        let serve = move || {
            for client in listener.incoming() {
                let answered = client.and_then(|client| answer(&client, &reader));
                if let Err(error) = answered {
                    tracing::debug!(%error, "a request over the control socket could not be answered");
                    // Without free descriptors, `accept` fails at once, repeatedly.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        };
        thread::Builder::new().name("control".into()).spawn(serve).map(|_| ())
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a socket is left over from a daemon that has ended.
fn is_stale(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn answer(client: &UnixStream, reader: &Reader) -> io::Result<()> {
    client.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let published = reader.read().ok_or_else(|| io::Error::other("there is no sample yet"))?;
    let report = Report::with_clients(&published.view, published.age());
    let mut out = io::BufWriter::new(client);
    serde_json::to_writer(&mut out, &report)?;
    out.flush()
}

/// Requests the report of the daemon at `path`.
pub fn fetch(path: &Path) -> Result<Report, ControlError> {
    let shown = path.display().to_string();
    let mut stream = UnixStream::connect(path).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => ControlError::Denied { path: shown.clone() },
        _ => ControlError::Absent { path: shown.clone(), reason: plain(&error) },
    })?;
    let uid = trusted(path, &stream)
        .map_err(|error| ControlError::Absent { path: shown.clone(), reason: plain(&error) })?;
    if let Err(uid) = uid {
        return Err(ControlError::Untrusted { path: shown, uid });
    }
    let strange = |reason: String| ControlError::Strange { path: shown.clone(), reason };
    let mut bytes = Vec::new();
    stream.set_read_timeout(Some(READ_TIMEOUT)).map_err(|error| strange(plain(&error)))?;
    let mut limited = (&mut stream).take(MAX_BYTES);
    limited.read_to_end(&mut bytes).map_err(|error| strange(plain(&error)))?;
    Report::received(&bytes).map_err(|error| strange(error.to_string()))
}

/// The user of the peer if it is trusted, otherwise that user as the error.
fn trusted(path: &Path, stream: &UnixStream) -> io::Result<Result<u32, u32>> {
    let uid = socket_peercred(stream)?.uid.as_raw();
    let is_ours = uid == 0 || uid == geteuid().as_raw() || owns_directory(path, uid)?;
    Ok(if is_ours { Ok(uid) } else { Err(uid) })
}

/// Whether `uid` owns the directory of the socket, and only root can have given the directory to
/// `uid`.
fn owns_directory(path: &Path, uid: u32) -> io::Result<bool> {
    let directory = path.parent().unwrap_or(Path::new("/")).canonicalize()?;
    let own = fs::metadata(&directory)?;
    let above = fs::metadata(directory.parent().unwrap_or(Path::new("/")))?;
    let is_closed = |mode: u32| mode & 0o022 == 0;
    Ok(own.uid() == uid && is_closed(own.mode()) && above.uid() == 0 && is_closed(above.mode()))
}

/// The kernel's error text without the error number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::fixture::Dir;
    use crate::view::publish::Publisher;

    fn publisher() -> Publisher {
        let mut publisher = Publisher::default();
        publisher.publish(|view| view.stats.sampled_namespaces = 3);
        publisher
    }

    #[test]
    fn a_client_gets_the_report_of_the_daemon() {
        let dir = Dir::new("control");
        let path = dir.path().join("run/control.sock");
        let publisher = publisher();
        let socket = ControlSocket::bind(&path).unwrap();
        socket.serve(publisher.reader()).unwrap();
        assert_eq!(fetch(&path).unwrap().namespaces, 3);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, MODE);
        drop(socket);
        assert!(!path.exists());
        assert!(matches!(fetch(&path), Err(ControlError::Absent { .. })));
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = Dir::new("control-stale");
        let path = dir.path().join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        let socket = ControlSocket::bind(&path).unwrap();
        let second = ControlSocket::bind(&path);
        assert_eq!(second.unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(socket);
    }

    #[test]
    fn an_answer_that_is_no_report_is_refused() {
        let dir = Dir::new("control-strange");
        let path = dir.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let answer =
            thread::spawn(move || listener.accept().unwrap().0.write_all(b"hello").unwrap());
        assert!(matches!(fetch(&path), Err(ControlError::Strange { .. })));
        answer.join().unwrap();
    }

    #[test]
    fn a_socket_is_not_trusted_if_other_users_can_create_its_directory() {
        let dir = Dir::new("control-owner");
        let path = dir.path().join("control.sock");
        // The parent directory is writable for all users.
        let uid = fs::metadata(dir.path()).unwrap().uid();
        assert!(!owns_directory(&path, uid).unwrap());
        assert!(owns_directory(Path::new("/proc/control.sock"), 0).unwrap());
        assert!(!owns_directory(Path::new("/proc/control.sock"), 1000).unwrap());
    }
}
