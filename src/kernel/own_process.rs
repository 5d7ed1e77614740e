//! Reads `/proc/self`: the resource usage of this process.

use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use procfs::process::Stat;
use procfs::{FromRead, ProcResult, WithCurrentSystemInfo};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::procfs_file::{ProcfsFile, ReadError, Text};
use crate::self_stats::Process;

/// Reads [`Process`]; the start time is read once.
pub struct OwnProcess {
    stat: Result<ProcfsFile, ReadError>,
    descriptors: PathBuf,
    start_time_seconds: Option<f64>,
}

// === impl OwnProcess ===

impl OwnProcess {
    /// Creates a reader of `self` below `procfs`.
    pub fn new(procfs: &Path) -> Self {
        let directory = procfs.join("self");
        let mut own = Self {
            stat: ProcfsFile::open(directory.join("stat")),
            descriptors: directory.join("fd"),
            start_time_seconds: None,
        };
        let stat = own.stat(&mut Text::default());
        own.start_time_seconds = stat.and_then(|stat| start_time(&stat).ok());
        own
    }

    /// Reads the current resource usage.
    pub fn read(&self, text: &mut Text) -> Option<Process> {
        let stat = self.stat(text)?;
        Some(Process {
            cpu_seconds: cpu_seconds(),
            open_fds: self.open_fds(),
            max_fds: getrlimit(Resource::Nofile).current,
            virtual_memory_bytes: stat.vsize,
            resident_memory_bytes: stat.rss_bytes().get(),
            threads: u64::try_from(stat.num_threads).unwrap_or_default(),
            start_time_seconds: self.start_time_seconds,
        })
    }

    fn stat(&self, text: &mut Text) -> Option<Stat> {
        let text = self.stat.as_ref().ok()?.read_piece(text).ok()?;
        Stat::from_read(text.as_bytes()).ok()
    }

    /// Returns the number of open descriptors: the directory size since Linux 6.2. Older kernels
    /// report 0, so the entries are counted.
    fn open_fds(&self) -> Option<u64> {
        match std::fs::metadata(&self.descriptors).ok()?.st_size() {
            0 => Some(std::fs::read_dir(&self.descriptors).ok()?.count() as u64),
            size => Some(size),
        }
    }
}

/// `CLOCK_PROCESS_CPUTIME_ID`: nanosecond resolution, while `/proc/self/stat` has hundredths of a
/// second.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn start_time(stat: &Stat) -> ProcResult<f64> {
    let since_boot = stat.starttime as f64 / procfs::ticks_per_second() as f64;
    Ok(procfs::boot_time_secs()? as f64 + since_boot)
}

/// Returns the CPU time of this thread (`CLOCK_THREAD_CPUTIME_ID`).
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_was_just_started() {
        let own = OwnProcess::new(Path::new("/proc")).read(&mut Text::default()).unwrap();
        assert!(own.resident_memory_bytes > 0);
        assert!(own.cpu_seconds > 0.0);
        // Other tests open and close descriptors at the same time.
        let open_fds = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        assert!(own.open_fds.unwrap().abs_diff(open_fds) < 100, "{open_fds} {own:?}");
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        assert!(own.max_fds.is_none_or(|most| limits.contains(&format!(" {most} "))), "{own:?}");
        assert!(own.threads >= 1);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let age = now.as_secs_f64() - own.start_time_seconds.unwrap();
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }
}
