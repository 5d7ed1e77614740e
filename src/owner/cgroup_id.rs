//! Maps the cgroup ids of sockets to cgroup paths.
//!
//! `INET_DIAG_CGROUP_ID` is the inode of a directory in the version 2 hierarchy: the cgroup that
//! *created* the socket.
//!
//! The tree is read as a whole: directory entries contain the inodes of the children, and the link
//! count shows whether a directory has children. Ids are not reused while the machine runs.

use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustc_hash::FxHashMap;

/// File that exists in every version 2 cgroup, including the root, and in no version 1 cgroup.
const MARK: &str = "cgroup.controllers";

/// The cgroups of a version 2 hierarchy at the time of the last read.
#[derive(Debug)]
pub struct CgroupTree {
    root: PathBuf,
    paths: FxHashMap<u64, Arc<str>>,
}

// === impl CgroupTree ===

impl CgroupTree {
    /// Finds the version 2 mount below `rootfs`: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on a
    /// hybrid machine. Reads nothing yet.
    pub fn find(rootfs: &Path) -> Option<Self> {
        let mounts = ["sys/fs/cgroup", "sys/fs/cgroup/unified"].map(|path| rootfs.join(path));
        let root = mounts.into_iter().find(|root| root.join(MARK).exists())?;
        Some(Self { root, paths: FxHashMap::default() })
    }

    /// Returns the path of the cgroup with this id, in the format of `/proc/<pid>/cgroup`; `/` is
    /// the root. Returns `None` for a cgroup created after the last [`refresh`](Self::refresh) or
    /// removed before it.
    pub fn path(&self, id: u64) -> Option<&Arc<str>> {
        self.paths.get(&id)
    }

    /// Returns the directory of a cgroup, which contains its `cgroup.procs`.
    pub fn directory(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Reads the tree again and returns the number of cgroups; the cost grows with that number. If
    /// the root cannot be read, the known cgroups are kept.
    pub fn refresh(&mut self) -> io::Result<usize> {
        let mut paths = FxHashMap::default();
        paths.insert(fs::metadata(&self.root)?.ino(), "/".into());
        let mut parents = vec![String::new()];
        while let Some(parent) = parents.pop() {
            match self.children(&parent, &mut paths) {
                Ok(children) => parents.extend(children),
                Err(error) if parent.is_empty() => return Err(error),
                // The cgroup was removed in the meantime, or access is denied.
                Err(_) => {}
            }
        }
        self.paths = paths;
        Ok(self.paths.len())
    }

    /// Records and returns the children of a cgroup.
    fn children(
        &self,
        parent: &str,
        paths: &mut FxHashMap<u64, Arc<str>>,
    ) -> io::Result<Vec<String>> {
        let directory = self.directory(parent);
        let mut children = Vec::new();
        // Two links, the name and the directory's own `.`: no child links to this directory with
        // `..`.
        if fs::symlink_metadata(&directory)?.nlink() == 2 {
            return Ok(children);
        }
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                let Ok(name) = entry.file_name().into_string() else { continue };
                let path = format!("{parent}/{name}");
                paths.insert(entry.ino(), path.as_str().into());
                children.push(path);
            }
        }
        Ok(children)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::fixture::Dir;

    fn inode(path: &Path) -> u64 {
        fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn a_cgroup_is_found_by_the_inode_of_its_directory() {
        let dir = Dir::new("cgroup");
        dir.file("sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
        let nginx = dir.directory("sys/fs/cgroup/system.slice/nginx.service");
        let mut tree = CgroupTree::find(dir.path()).unwrap();
        assert_eq!(tree.path(inode(&nginx)), None);
        assert_eq!(tree.refresh().unwrap(), 3);
        let path = tree.path(inode(&nginx)).unwrap();
        assert_eq!(&**path, "/system.slice/nginx.service");
        assert_eq!(tree.directory(path), nginx);
        let root = inode(&dir.path().join("sys/fs/cgroup"));
        assert_eq!(tree.path(root).map(|path| &**path), Some("/"));
        fs::remove_dir(&nginx).unwrap();
        assert_eq!(tree.refresh().unwrap(), 2);
    }

    #[test]
    fn version_2_is_distinguished_from_version_1() {
        let dir = Dir::new("cgroup-hybrid");
        dir.file("sys/fs/cgroup/memory/cgroup.procs", "1\n");
        assert!(CgroupTree::find(dir.path()).is_none());
        dir.file("sys/fs/cgroup/unified/cgroup.controllers", "");
        let tree = CgroupTree::find(dir.path()).unwrap();
        assert_eq!(tree.directory("/a"), dir.path().join("sys/fs/cgroup/unified/a"));
    }

    #[test]
    fn known_cgroups_are_kept_if_the_root_cannot_be_read() {
        let dir = Dir::new("cgroup-gone");
        dir.file("sys/fs/cgroup/cgroup.controllers", "");
        let mut tree = CgroupTree::find(dir.path()).unwrap();
        let id = inode(&dir.path().join("sys/fs/cgroup"));
        tree.refresh().unwrap();
        dir.remove("sys");
        assert!(tree.refresh().is_err());
        assert!(tree.path(id).is_some());
    }
}
