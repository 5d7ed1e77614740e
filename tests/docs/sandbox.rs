//! The sandbox for the commands of the documentation: a namespace with its own trouble, the
//! repository after a build, and an overlay over the machine's files that is removed afterwards.

use std::env;
use std::os::unix::fs::symlink;
use std::path::Path;

use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;

use crate::BIN;
use crate::page::root;

/// The directory of the sandbox that is mounted at `/run/listenq`, so that commands find no other
/// daemon of this machine.
const CONTROL: &str = "control";

/// Mounts overlays over the directories that commands may change.
const LAYERS: &str = "mount -t tmpfs tmpfs \"$LAYERS\"
for d in etc usr var; do
    mkdir -p \"$LAYERS/$d/new\" \"$LAYERS/$d/work\"
    mount -t overlay overlay -o \"lowerdir=/$d,upperdir=$LAYERS/$d/new,workdir=$LAYERS/$d/work\" \"/$d\"
done
mkdir -p /run/listenq
mount --bind \"$CONTROL\" /run/listenq
exec timeout -k 5 60 sh -euc \"$1\" 2>&1";

/// Runs commands. Files that they install are removed with the sandbox.
pub(crate) struct Sandbox {
    pub(crate) ns: Netns,
    files: Rootfs,
}

/// The result of a script.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) is_success: bool,
    /// Standard output and error, as a terminal shows them.
    pub(crate) printed: String,
}

// === impl Sandbox ===

impl Sandbox {
    pub(crate) fn new(ns: Netns) -> Self {
        let files = Rootfs::new();
        for place in ["deploy", "dashboards", "docs"] {
            files.link(place, root(place).to_str().unwrap());
        }
        for place in ["target/release/listenq", "bin/listenq"] {
            symlink(BIN, files.place(place)).unwrap();
        }
        for place in ["layers", CONTROL] {
            std::fs::create_dir(files.path().join(place)).unwrap();
        }
        Self { ns, files }
    }

    /// The working directory of the commands.
    pub(crate) fn directory(&self) -> &Path {
        self.files.path()
    }

    /// The path at which a daemon creates the control socket, so that commands find the socket at
    /// the default path.
    pub(crate) fn control_socket(&self) -> String {
        self.directory().join(CONTROL).join("control.sock").display().to_string()
    }

    pub(crate) fn run(&self, script: &str) -> Ran {
        let at = self.directory();
        let path = format!("{}:{}", at.join("bin").display(), env::var("PATH").unwrap());
        let mut command = self.ns.command("unshare");
        command.args(["--mount", "sh", "-euc", LAYERS, "sh", script]).current_dir(at);
        command.env("LAYERS", at.join("layers")).env("CONTROL", at.join(CONTROL)).env("PATH", path);
        // Hides the namespaces of other tests that run at the same time.
        command.env("LISTENQ_NETNS", "own");
        let output = command.output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let prelude = String::from_utf8_lossy(&output.stderr);
        Ran { is_success: output.status.success(), printed: format!("{prelude}{printed}") }
    }
}
