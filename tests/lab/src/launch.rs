//! How the program under test is started: in which namespace, as which user, and without which
//! privileges.

use std::ffi::OsString;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::enter::on_thread_inside;
use crate::listenq::Daemon;
use crate::netns::Netns;
use crate::seccomp::{forbid_netlink, forbid_requests};
use crate::wait::within;

/// Timeout of a subcommand.
const END: Duration = Duration::from_secs(30);
/// The default address of the daemon, if the test sets none.
const ANY_PORT: &str = "--web.listen-address=127.0.0.1:0";
/// Drops root and all ways to regain it.
const AS_NOBODY: [&str; 5] =
    ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"];

/// How to start the program under test.
#[derive(Debug, Clone)]
pub struct Launch {
    binary: PathBuf,
    netns: Option<PathBuf>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    as_nobody: bool,
    through: Vec<OsString>,
    keeps_mounts: bool,
    filter: Option<Filter>,
    await_ready: bool,
}

/// Installs a seccomp filter.
type Filter = fn() -> anyhow::Result<()>;

/// The output of a process that ended by itself.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit status.
    pub status: ExitStatus,
    /// The standard output.
    pub stdout: String,
    /// The log, from standard error.
    pub stderr: String,
}

/// Runs a subcommand to its end; see [`Launch::run`].
#[must_use]
pub fn run(ns: Option<&Netns>, binary: &Path, args: &[&str]) -> Output {
    Launch::new(binary).args(args).maybe_inside(ns).run()
}

// === impl Launch ===

impl Launch {
    /// Starts `binary` as the current user in the current namespace, without arguments, unless
    /// configured otherwise.
    #[must_use]
    pub fn new(binary: impl AsRef<Path>) -> Self {
        Self {
            binary: binary.as_ref().to_owned(),
            netns: None,
            args: Vec::new(),
            // The namespaces and control sockets of other tests that run at the same time must not
            // matter.
            env: vec![
                ("LISTENQ_NETNS".into(), "own".into()),
                ("LISTENQ_CONTROL_SOCKET".into(), "none".into()),
            ],
            as_nobody: false,
            through: Vec::new(),
            keeps_mounts: false,
            filter: None,
            await_ready: true,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(OsString::from));
        self
    }

    /// Sets an environment variable. `LISTENQ_*` variables of the test's own environment are not
    /// passed on; `LISTENQ_NETNS` is `own` unless set here or as a flag.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts the program inside `ns`.
    #[must_use]
    pub fn inside(self, ns: &Netns) -> Self {
        self.maybe_inside(Some(ns))
    }

    /// Starts the program inside `ns`, if given.
    #[must_use]
    pub fn maybe_inside(self, ns: Option<&Netns>) -> Self {
        Self { netns: ns.map(Netns::path), ..self }
    }

    /// Starts the program as user and group 65534, without groups, capabilities or new privileges.
    #[must_use]
    pub fn as_nobody(self) -> Self {
        Self { as_nobody: true, ..self }
    }

    /// Starts the program through another program that execs it without forking, for example
    /// `setpriv`.
    #[must_use]
    pub fn through(self, words: &[&str]) -> Self {
        Self { through: words.iter().map(OsString::from).collect(), ..self }
    }

    /// Enters the namespace without new mounts: `ip netns exec` hides cgroup mounts.
    #[must_use]
    pub fn keeping_mounts(self) -> Self {
        Self { keeps_mounts: true, ..self }
    }

    /// Starts the program where no netlink socket can be created.
    #[must_use]
    pub fn without_netlink(self) -> Self {
        Self { filter: Some(forbid_netlink), ..self }
    }

    /// Starts the program where the kernel has no module for socket dumps.
    #[must_use]
    pub fn without_diag(self) -> Self {
        Self { filter: Some(forbid_requests), ..self }
    }

    /// Does not wait for status 200 of `/-/ready`: for a daemon that cannot be ready, or requires
    /// TLS or a password.
    #[must_use]
    pub fn unready(self) -> Self {
        Self { await_ready: false, ..self }
    }

    /// Starts the daemon, on any port of 127.0.0.1 unless the arguments set an address, and waits
    /// until it is ready.
    ///
    /// # Panics
    ///
    /// With the log, when the daemon did not listen or was not ready within 10 s.
    #[must_use]
    pub fn start(mut self) -> Daemon {
        if !self.args.iter().any(|arg| arg.to_string_lossy().starts_with("--web.listen-address")) {
            self.args.push(ANY_PORT.into());
        }
        let child = self.spawn(Stdio::null(), Stdio::piped());
        Daemon::attach(child, self.netns, self.await_ready)
    }

    /// Starts the daemon at `address`, with its log sent elsewhere, and waits until it is ready.
    ///
    /// # Panics
    ///
    /// When the daemon was not ready within 10 s.
    #[must_use]
    pub fn start_logging_to(mut self, log: Stdio, address: SocketAddr) -> Daemon {
        self.args.push(format!("--web.listen-address={address}").into());
        let child = self.spawn(Stdio::null(), log);
        Daemon::attach_at(child, self.netns, address)
    }

    /// Runs the program to its end and returns its output.
    ///
    /// # Panics
    ///
    /// When the program still runs after 30 s; it is killed then.
    #[must_use]
    pub fn run(self) -> Output {
        let mut child = self.spawn(Stdio::piped(), Stdio::piped());
        let stdout = read_all(child.stdout.take().expect("stdout is piped"));
        let stderr = read_all(child.stderr.take().expect("stderr is piped"));
        let status = within(END, || child.try_wait().expect("waiting for a child"));
        if status.is_none() {
            let _ = child.kill();
        }
        let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
        let status = status
            .unwrap_or_else(|| panic!("{self:?} did not end within {END:?}:\n{stdout}\n{stderr}"));
        Output { status, stdout, stderr }
    }

    /// Spawns the child; a filter is installed on the spawning thread, because the child inherits
    /// it.
    pub(crate) fn spawn(&self, stdout: Stdio, stderr: Stdio) -> Child {
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let mut start = || command.spawn().unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
        let Some(filter) = self.filter else { return start() };
        let filtered = || {
            filter().unwrap();
            start()
        };
        on_thread_inside(self.netns.as_deref(), filtered)
    }

    fn command(&self) -> Command {
        let words = self.words();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LISTENQ_"))
        {
            command.env_remove(name);
        }
        command.envs(self.env.iter().cloned());
        command
    }

    /// The command line: enter the namespace, drop root, then run the program.
    fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        // Not where netlink is forbidden: `ip` itself needs netlink. There the spawning thread
        // enters the namespace.
        if let Some(path) = self.netns.as_ref().filter(|_| self.keeps_mounts) {
            words.extend(["nsenter".into(), format!("--net={}", path.display()).into()]);
        } else if let Some(name) =
            self.netns.as_ref().and_then(|path| path.file_name()).filter(|_| self.filter.is_none())
        {
            words.extend(["ip".into(), "netns".into(), "exec".into(), name.to_owned()]);
        }
        if self.as_nobody {
            words.extend(AS_NOBODY.map(OsString::from));
        }
        words.extend(self.through.iter().cloned());
        words.push(self.binary.clone().into());
        words.extend(self.args.iter().cloned());
        words
    }
}

/// Reads a pipe to its end on a separate thread.
fn read_all(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
