//! Reads frozen, throttling and memory pressure state from the files of a cgroup and its ancestors.
//!
//! Supports version 1, version 2 and hybrid mounts below `/sys/fs/cgroup`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::snapshot::owner_reading::{CgroupReading, Periods};

/// Controllers whose version 1 hierarchies are read, named as in `/proc/PID/cgroup`.
const V1: [&str; 3] = ["cpu", "freezer", "memory"];

/// Mount point of the cgroup hierarchies.
#[derive(Clone, Debug)]
pub struct CgroupMounts {
    root: PathBuf,
}

/// One hierarchy of a process and the path of the process in that hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Membership<'a> {
    /// Empty for version 2.
    controller: &'a str,
    path: &'a str,
}

// === impl CgroupMounts ===

impl CgroupMounts {
    /// Returns the mounts of the machine whose root is at `rootfs`.
    pub fn new(rootfs: &Path) -> Self {
        Self { root: rootfs.join("sys/fs/cgroup") }
    }

    /// Reads the cgroups of a process, given the text of its `/proc/PID/cgroup`.
    ///
    /// In each hierarchy the innermost cgroup comes first, then its ancestors. The result omits
    /// cgroups without a readable file.
    pub fn read(&self, text: &str) -> Vec<CgroupReading> {
        let all = memberships(text);
        let chains = all.iter().flat_map(|membership| {
            ancestors(membership.path).map(|path| self.read_one(membership.controller, path))
        });
        chains.filter(has_values).collect()
    }

    fn read_one(&self, controller: &str, path: &str) -> CgroupReading {
        let directory = self.directory(controller).join(path.trim_start_matches('/'));
        let text = |name: &str| fs::read_to_string(directory.join(name)).ok();
        let cpu = text("cpu.stat").filter(|_| matches!(controller, "" | "cpu"));
        let mut reading = CgroupReading {
            path: format!("{controller}{path}"),
            periods: cpu.as_deref().and_then(periods),
            throttled: cpu.as_deref().and_then(throttled),
            ..CgroupReading::default()
        };
        match controller {
            "" => {
                reading.frozen =
                    text("cgroup.events").and_then(|text| Some(field(&text, "frozen")? == 1));
                reading.memory_stalled = text("memory.pressure").and_then(|text| stalled(&text));
                reading.memory_high = text("memory.events").and_then(|text| field(&text, "high"));
            }
            "freezer" => reading.frozen = text("freezer.state").map(|text| text.trim() == "FROZEN"),
            _ => {}
        }
        reading
    }

    fn directory(&self, controller: &str) -> PathBuf {
        match controller {
            "" if self.root.join("cgroup.controllers").exists() => self.root.clone(),
            "" => self.root.join("unified"),
            controller => self.root.join(controller),
        }
    }
}

/// Parses the memberships in the hierarchies that are read.
fn memberships(text: &str) -> Vec<Membership<'_>> {
    let line = |line| -> Option<Membership<'_>> {
        let mut fields = str::splitn(line, 3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let controller = match controllers {
            "" => "",
            _ => controllers.split(',').find(|name| V1.contains(name))?,
        };
        Some(Membership { controller, path })
    };
    text.lines().filter_map(line).collect()
}

/// Iterates over the path and its ancestors; the root is last.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| parent(path))
}

fn parent(path: &str) -> Option<&str> {
    match path.rfind('/')? {
        0 => (path.len() > 1).then_some("/"),
        end => Some(&path[..end]),
    }
}

fn has_values(reading: &CgroupReading) -> bool {
    *reading != CgroupReading { path: reading.path.clone(), ..CgroupReading::default() }
}

/// Returns the value of a line `<name> <number>`.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut fields = text.lines().filter_map(|line| line.split_once(' '));
    fields.find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

/// Parses `nr_periods` and `nr_throttled`: absent without a quota on version 2, zero on version 1.
fn periods(text: &str) -> Option<Periods> {
    Some(Periods { all: field(text, "nr_periods")?, throttled: field(text, "nr_throttled")? })
}

/// Parses `throttled_usec` (version 2) or `throttled_time` in nanoseconds (version 1).
fn throttled(text: &str) -> Option<Duration> {
    let v2 = field(text, "throttled_usec").map(Duration::from_micros);
    v2.or_else(|| field(text, "throttled_time").map(Duration::from_nanos))
}

/// Parses `total=` of the line `some` of a pressure file, in microseconds.
fn stalled(text: &str) -> Option<Duration> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some.split(' ').find_map(|field| field.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::fixture::Dir;

    #[test]
    fn a_path_has_its_ancestors_and_the_root() {
        let all: Vec<&str> = ancestors("/a/b/c").collect();
        assert_eq!(all, ["/a/b/c", "/a/b", "/a", "/"]);
        assert_eq!(ancestors("/").collect::<Vec<_>>(), ["/"]);
    }

    #[test]
    fn a_quota_of_the_parent_counts_on_version_2() {
        let dir = Dir::new("cgroup2");
        dir.file("sys/fs/cgroup/cgroup.controllers", "cpu memory");
        let pod = "sys/fs/cgroup/pod";
        dir.file(
            &format!("{pod}/cpu.stat"),
            "usage_usec 5\nnr_periods 20\nnr_throttled 19\nthrottled_usec 1900000\n",
        );
        dir.file(&format!("{pod}/box/cpu.stat"), "usage_usec 5\n");
        dir.file(&format!("{pod}/box/cgroup.events"), "populated 1\nfrozen 1\n");
        dir.file(&format!("{pod}/box/memory.events"), "low 0\nhigh 7\nmax 0\n");
        dir.file(
            &format!("{pod}/box/memory.pressure"),
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
        );
        let inner = CgroupReading {
            path: "/pod/box".into(),
            frozen: Some(true),
            memory_stalled: Some(Duration::from_micros(2500)),
            memory_high: Some(7),
            ..CgroupReading::default()
        };
        let outer = CgroupReading {
            path: "/pod".into(),
            periods: Some(Periods { all: 20, throttled: 19 }),
            throttled: Some(Duration::from_millis(1900)),
            ..CgroupReading::default()
        };
        assert_eq!(CgroupMounts::new(dir.path()).read("0::/pod/box\n"), [inner, outer]);
    }

    #[test]
    fn version_1_has_a_hierarchy_for_each_controller() {
        let dir = Dir::new("cgroup1");
        dir.file(
            "sys/fs/cgroup/cpu/a/cpu.stat",
            "nr_periods 4\nnr_throttled 2\nthrottled_time 3000\n",
        );
        dir.file("sys/fs/cgroup/freezer/b/freezer.state", "FROZEN\n");
        let cpu = CgroupReading {
            path: "cpu/a".into(),
            periods: Some(Periods { all: 4, throttled: 2 }),
            throttled: Some(Duration::from_micros(3)),
            ..CgroupReading::default()
        };
        let freezer = CgroupReading {
            path: "freezer/b".into(),
            frozen: Some(true),
            ..CgroupReading::default()
        };
        let text = "9:name=systemd:/x\n6:freezer:/b\n1:cpu,cpuacct:/a\n0::/\n";
        assert_eq!(CgroupMounts::new(dir.path()).read(text), [freezer, cpu]);
    }

    #[test]
    fn a_cgroup_that_is_gone_is_left_out() {
        let dir = Dir::new("cgroup-gone");
        assert_eq!(CgroupMounts::new(dir.path()).read("0::/gone (deleted)\n"), []);
    }
}
