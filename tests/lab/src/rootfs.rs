//! A temporary root directory: files, links, and mounts of namespaces under chosen names.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::netns::Netns;

/// A temporary directory. Dropping it unmounts the namespaces and removes the directory.
#[derive(Debug)]
pub struct Rootfs {
    path: PathBuf,
    mounts: Vec<PathBuf>,
}

// === impl Rootfs ===

impl Rootfs {
    /// Creates an empty directory.
    ///
    /// # Panics
    ///
    /// When the directory cannot be created.
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("lq-root-{}-{n}", process::id()));
        fs::create_dir(&path).expect("a fresh temporary directory");
        Self { path, mounts: Vec::new() }
    }

    /// The path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The flag that makes listenq use this root.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--path.rootfs={}", self.path.display())
    }

    /// A path below the root; the parent directory is created.
    ///
    /// # Panics
    ///
    /// When the directory cannot be created.
    #[must_use]
    pub fn place(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(path.parent().expect("it is inside")).expect("a directory");
        path
    }

    /// Writes a file.
    ///
    /// # Panics
    ///
    /// When the file cannot be written.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.place(name);
        fs::write(&path, content).expect("a file");
        path
    }

    /// Creates a symbolic link.
    ///
    /// # Panics
    ///
    /// When the link cannot be created.
    pub fn link(&self, name: &str, target: &str) {
        symlink(target, self.place(name)).expect("a link");
    }

    /// Mounts a namespace as `ip netns add <name>` does in this root.
    ///
    /// # Panics
    ///
    /// When the namespace cannot be mounted.
    pub fn mount_netns(&mut self, ns: &Netns, name: &str) {
        let target = self.file(&format!("run/netns/{name}"), "");
        mount_bind(ns.path(), &target).expect("a bind mount");
        self.mounts.push(target);
    }

    /// Unmounts all namespaces and removes their names.
    pub fn unmount_all(&mut self) {
        self.unmount_first(self.mounts.len());
    }

    /// Unmounts the `count` namespaces that were mounted first, and removes their names.
    pub fn unmount_first(&mut self, count: usize) {
        for mount in self.mounts.drain(..count) {
            let _ = unmount(&mount, UnmountFlags::DETACH);
            let _ = fs::remove_file(&mount);
        }
    }
}

impl Default for Rootfs {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Rootfs {
    fn drop(&mut self) {
        self.unmount_all();
        let _ = fs::remove_dir_all(&self.path);
    }
}
