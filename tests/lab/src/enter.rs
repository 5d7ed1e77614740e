//! Entering a namespace, one thread at a time, with `setns(2)`.

use std::fs::File;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `work` in the namespace at `path`, or on the calling thread if there is no path.
pub(crate) fn run_in<T: Send>(path: Option<&Path>, work: impl FnOnce() -> T + Send) -> T {
    match path {
        Some(_) => on_thread_inside(path, work),
        None => work(),
    }
}

/// Runs `work` on a new thread, in the namespace at `path` if there is one.
pub(crate) fn on_thread_inside<T: Send>(path: Option<&Path>, work: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        if let Some(path) = path {
            enter(path).unwrap();
        }
        work()
    };
    thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// Moves the calling thread into the namespace at `path`.
pub(crate) fn enter(path: &Path) -> Result<()> {
    let link =
        File::open(path).with_context(|| format!("opening the namespace {}", path.display()))?;
    move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("entering the namespace {}", path.display()))
}
