//! A full pipe that is read only on request.

use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write, pipe};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::io::ioctl_fionbio;

/// A full pipe. A program that uses it as standard error blocks at its first line.
#[derive(Debug)]
pub struct FullPipe {
    reader: PipeReader,
    writer: PipeWriter,
}

/// The data read from the pipe so far.
#[derive(Debug, Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<String>>>);

// === impl FullPipe ===

impl FullPipe {
    /// Creates a pipe, full of empty lines.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    #[must_use]
    pub fn new() -> Self {
        let (reader, writer) = pipe().expect("a pipe");
        // The flag applies to both ends and all processes that share the pipe: it is reset before
        // another process gets an end.
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

    /// The write end, for a program.
    ///
    /// # Panics
    ///
    /// When descriptors run out.
    #[must_use]
    pub fn end(&self) -> Stdio {
        self.writer.try_clone().expect("another descriptor").into()
    }

    /// Reads the pipe from now on, until its last writer is gone.
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
