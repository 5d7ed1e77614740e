//! Temporary directory for one test that contains parts of `/` or `/proc`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that is removed when dropped.
pub(crate) struct Dir(PathBuf);

// === impl Dir ===

impl Dir {
    /// Creates an empty directory.
    pub(crate) fn new(hint: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("lq-{}-{n}-{hint}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Returns the path of the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Creates a directory and its parents.
    pub(crate) fn directory(&self, path: &str) -> PathBuf {
        let path = self.0.join(path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Writes a file and creates its parent directories.
    pub(crate) fn file(&self, path: &str, text: impl AsRef<[u8]>) {
        fs::write(self.inside(path), text).unwrap();
    }

    /// Creates a symbolic link and its parent directories.
    pub(crate) fn link(&self, target: &str, path: &str) {
        symlink(target, self.inside(path)).unwrap();
    }

    /// Removes a directory and its contents.
    pub(crate) fn remove(&self, path: &str) {
        fs::remove_dir_all(self.0.join(path)).unwrap();
    }

    fn inside(&self, path: &str) -> PathBuf {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
