//! `/proc/self`: what this process itself uses.

use std::path::{Path, PathBuf};

use procfs::process::{LimitValue, Process as ProcSelf};
use procfs::{ProcResult, WithCurrentSystemInfo};
use rustix::time::{ClockId, clock_gettime};

use crate::own::Process;

/// Reads [`Process`]; when it was started is looked up once.
pub struct OwnProcess {
    directory: PathBuf,
    start_time_seconds: Option<f64>,
}

// === impl OwnProcess ===

impl OwnProcess {
    /// A reader of `self` below `procfs`.
    pub fn new(procfs: &Path) -> Self {
        let directory = procfs.join("self");
        let start_time_seconds = start_time(&directory).ok();
        Self { directory, start_time_seconds }
    }

    /// Reads it now.
    pub fn read(&self) -> ProcResult<Process> {
        let process = ProcSelf::new_with_root(self.directory.clone())?;
        let stat = process.stat()?;
        Ok(Process {
            cpu_seconds: cpu_seconds(),
            open_fds: process.fd_count().ok().map(|count| count as u64),
            max_fds: process
                .limits()
                .ok()
                .and_then(|limits| finite(limits.max_open_files.soft_limit)),
            virtual_memory_bytes: stat.vsize,
            resident_memory_bytes: stat.rss_bytes().get(),
            threads: u64::try_from(stat.num_threads).unwrap_or_default(),
            start_time_seconds: self.start_time_seconds,
        })
    }
}

/// `CLOCK_PROCESS_CPUTIME_ID`: nanoseconds, where `/proc/self/stat` has hundredths of a second.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn start_time(directory: &Path) -> ProcResult<f64> {
    let stat = ProcSelf::new_with_root(directory.to_owned())?.stat()?;
    let since_boot = stat.starttime as f64 / procfs::ticks_per_second() as f64;
    Ok(procfs::boot_time_secs()? as f64 + since_boot)
}

fn finite(limit: LimitValue) -> Option<u64> {
    match limit {
        LimitValue::Value(value) => Some(value),
        LimitValue::Unlimited => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_was_just_started() {
        let own = OwnProcess::new(Path::new("/proc")).read().unwrap();
        assert!(own.resident_memory_bytes > 0);
        assert!(own.cpu_seconds > 0.0);
        assert!(own.open_fds.unwrap() >= 3);
        assert!(own.threads >= 1);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let age = now.as_secs_f64() - own.start_time_seconds.unwrap();
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }
}
