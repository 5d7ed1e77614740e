//! The output of the daemon's log lines: a short queue, and a thread that writes the lines to
//! standard error. The reader of standard error may be slow or stuck: no sample and no HTTP
//! response waits for it. Lines that find the queue full are dropped. A separate line reports their
//! number after the queued lines are written.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use crate::capabilities;

/// The queue length in lines: more than a start logs, or than a machine with many incidents logs in
/// some seconds.
const QUEUE_LEN: usize = 512;
/// The time limit for writing the last lines when the daemon exits.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// The delay between two attempts when a write would block or lines are pending.
const GAP: Duration = Duration::from_millis(5);
const STACK: usize = 128 * 1024;

/// The sending end: accepts lines without waiting. Every `write` is one line.
#[derive(Debug)]
pub struct Outlet {
    lines: SyncSender<Box<[u8]>>,
    queue: Arc<Queue>,
}

/// The counters shared by both ends.
#[derive(Debug, Default)]
struct Queue {
    /// Lines not yet written.
    waiting: AtomicUsize,
    /// Lines dropped since the start.
    dropped: AtomicU64,
}

// === impl Outlet ===

impl Outlet {
    /// Starts the thread that writes to standard error.
    pub fn start() -> io::Result<Arc<Self>> {
        Self::start_with(write_to_stderr)
    }

    fn start_with(write: impl FnMut(&[u8]) + Send + 'static) -> io::Result<Arc<Self>> {
        let (sender, lines) = sync_channel(QUEUE_LEN);
        let queue = Arc::new(Queue::default());
        let far_end = Arc::clone(&queue);
        let run = move || {
            capabilities::keep(CapabilitySet::empty());
            pass_on(&lines, &far_end, write);
        };
        thread::Builder::new().name("log".into()).stack_size(STACK).spawn(run)?;
        Ok(Arc::new(Self { lines: sender, queue }))
    }

    /// Lines dropped since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.queue.dropped.load(Ordering::Relaxed)
    }

    /// Waits a short time until the queued lines are written.
    pub fn finish(&self) {
        let deadline = Instant::now() + LAST_WORDS;
        while self.queue.waiting.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            thread::sleep(GAP);
        }
    }
}

impl Write for &Outlet {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.queue.waiting.fetch_add(1, Ordering::AcqRel);
        if self.lines.try_send(line.into()).is_err() {
            self.queue.waiting.fetch_sub(1, Ordering::AcqRel);
            self.queue.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes queued lines. When the queue is empty, reports how many lines were dropped.
fn pass_on(lines: &Receiver<Box<[u8]>>, queue: &Queue, mut write: impl FnMut(&[u8])) {
    let mut told = 0;
    for line in lines {
        write(&line);
        let is_last = queue.waiting.fetch_sub(1, Ordering::AcqRel) == 1;
        let dropped = queue.dropped.load(Ordering::Relaxed);
        if is_last && dropped > told {
            told = dropped;
            tracing::warn!(dropped, "the reader of the log is too slow: lines were dropped");
        }
    }
}

/// Writes without the lock of `io::stderr`, because a panicking thread needs that lock while this
/// function waits. When no reader can ever read the pipe, the line is lost silently.
fn write_to_stderr(mut line: &[u8]) {
    while !line.is_empty() {
        match rustix::io::write(io::stderr(), line) {
            Ok(written) => line = &line[written.min(line.len())..],
            Err(Errno::INTR) => {}
            // Another process that shares the pipe made it non-blocking.
            Err(Errno::AGAIN) => thread::sleep(GAP),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_stuck_reader_loses_lines_and_delays_nothing() {
        let (release, released) = channel::<()>();
        let (sender, written) = channel();
        let outlet = Outlet::start_with(move |line| {
            let _ = released.recv();
            let _ = sender.send(line.to_vec());
        });
        let outlet = outlet.unwrap();
        let begin = Instant::now();
        let said = 3 * QUEUE_LEN;
        for n in 0..said {
            (&*outlet).write_all(format!("{n}\n").as_bytes()).unwrap();
        }
        assert!(begin.elapsed() < Duration::from_secs(5));
        // The queue, plus the line that the thread may have taken from the queue.
        let dropped = outlet.queue.dropped.load(Ordering::Relaxed) as usize;
        assert!((said - QUEUE_LEN - 1..=said - QUEUE_LEN).contains(&dropped), "{dropped}");
        drop(release);
        outlet.finish();
        let written: Vec<Vec<u8>> = written.try_iter().collect();
        assert_eq!(written.len(), said - dropped);
        assert_eq!(
            (&written[0][..], outlet.queue.waiting.load(Ordering::Acquire)),
            (&b"0\n"[..], 0)
        );
    }
}
