//! Owns a pipe that is full, and that nobody reads until told to.

use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write, pipe};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::io::ioctl_fionbio;

/// A full pipe. A program whose standard error it is waits at the first line it writes.
#[derive(Debug)]
pub struct FullPipe {
    reader: PipeReader,
    writer: PipeWriter,
}

/// What came out of it so far.
#[derive(Debug, Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<String>>>);

// === impl FullPipe ===

impl FullPipe {
    /// Makes one, full of empty lines.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    #[must_use]
    pub fn new() -> Self {
        let (reader, writer) = pipe().expect("a pipe");
        // Of both ends alike, and of all that share it: waiting again before anybody else has it.
        ioctl_fionbio(&writer, true).expect("a pipe that does not wait");
        let page = [b'\n'; 4096];
        let full = loop {
            if let Err(error) = (&writer).write_all(&page) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock, "{full}");
        ioctl_fionbio(&writer, false).expect("a pipe that waits");
        Self { reader, writer }
    }

    /// The end that a program writes to.
    ///
    /// # Panics
    ///
    /// When descriptors run out.
    #[must_use]
    pub fn end(&self) -> Stdio {
        self.writer.try_clone().expect("another descriptor").into()
    }

    /// Reads it from now on, until its last writer is gone.
    #[must_use]
    pub fn read(self) -> Lines {
        let lines = Lines::default();
        let (read, reader) = (lines.clone(), BufReader::new(self.reader));
        thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok).filter(|line| !line.is_empty()) {
                read.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        lines
    }
}

impl Default for FullPipe {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Lines ===

impl Lines {
    /// All lines so far.
    #[must_use]
    pub fn get(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
