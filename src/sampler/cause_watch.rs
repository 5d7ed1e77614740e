//! The thread that looks at the owners of listeners in trouble, once a second and off the sampling path, with at most one
//! two-hundredth of a core. With nobody in trouble it sleeps until it is asked.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::owner::reader::OwnerReader;
use crate::snapshot::owner_reading::{OwnerReading, WatchedSocket};

use super::thread_cpu;

/// How often owners are looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// After a round of looks, the next one waits this many times as long as the round took of a processor.
const REST: u32 = 199;

/// One look at the owner of a listen socket.
pub type Look = (u32, Arc<OwnerReading>);

/// The thread at work. Dropping it ends the thread.
pub struct CauseWatch {
    due: Duration,
    is_busy: bool,
    requests: Sender<Vec<WatchedSocket>>,
    rounds: Receiver<Round>,
}

/// The looks of one round, by the inode of the listen socket.
struct Round {
    looks: Vec<Look>,
    cpu: Duration,
}

// === impl CauseWatch ===

impl CauseWatch {
    /// Starts the thread.
    pub fn start(procfs: PathBuf, rootfs: PathBuf) -> io::Result<Self> {
        let (requests, asked) = channel();
        let (sender, rounds) = channel();
        let work = move || run(OwnerReader::new(&procfs, &rootfs), &asked, &sender);
        thread::Builder::new().name("causes".into()).spawn(work)?;
        Ok(Self { due: Duration::ZERO, is_busy: false, requests, rounds })
    }

    /// Whether a round may be asked for at `now`.
    pub fn is_due(&self, now: Duration) -> bool {
        !self.is_busy && now >= self.due
    }

    /// Asks for one round of looks.
    pub fn ask(&mut self, now: Duration, sockets: Vec<WatchedSocket>) {
        self.due = now + INTERVAL;
        // If the thread is gone, causes stay unknown: that it went was said in the log.
        self.is_busy = !sockets.is_empty() && self.requests.send(sockets).is_ok();
    }

    /// The looks of the round that ended since the last call, without waiting.
    pub fn looks(&mut self, now: Duration) -> Vec<Look> {
        let Ok(Round { looks, cpu }) = self.rounds.try_recv() else { return Vec::new() };
        self.is_busy = false;
        self.due = self.due.max(now + cpu * REST);
        looks
    }
}

/// Works until nobody asks or listens any longer.
fn run(mut reader: OwnerReader, asked: &Receiver<Vec<WatchedSocket>>, rounds: &Sender<Round>) {
    while let Ok(sockets) = asked.recv() {
        let (begin, started) = (thread_cpu(), Instant::now());
        let inodes = sockets.iter().map(|socket| socket.inode).collect();
        reader.keep_only(&inodes);
        let look = |socket: WatchedSocket| (socket.inode, Arc::new(reader.read(socket)));
        let looks: Vec<Look> = sockets.into_iter().map(look).collect();
        let cpu = thread_cpu().saturating_sub(begin);
        tracing::trace!(looks = looks.len(), ?cpu, took = ?started.elapsed(), "looked at owners");
        if rounds.send(Round { looks, cpu }).is_err() {
            return;
        }
    }
}
