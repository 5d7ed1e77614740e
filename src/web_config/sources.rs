//! Reads the files of a web configuration and detects changes.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

/// Maximum bytes of a file; larger than any certificate bundle.
const MOST_BYTES: u64 = 1 << 20;

/// A digest of the contents of a file, or of the error that reading it returned.
pub type Digest = [u8; 32];

/// Reads files, and remembers their paths and digests.
#[derive(Debug, Default)]
pub struct Sources {
    files: Vec<(PathBuf, Digest)>,
}

// === impl Sources ===

impl Sources {
    /// Reads a file and remembers its digest, even if the read fails.
    pub fn read(&mut self, path: &Path) -> Result<Vec<u8>> {
        let content = read(path);
        self.files.push((path.to_owned(), digest(&content)));
        content
    }

    /// The digests at the time of the reads.
    pub fn then(&self) -> Vec<Digest> {
        self.files.iter().map(|(_, digest)| *digest).collect()
    }

    /// The current digests.
    pub fn now(&self) -> Vec<Digest> {
        self.files.iter().map(|(path, _)| digest(&read(path))).collect()
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    // Opening a pipe would wait for a writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut content = Vec::new();
    File::open(path)?.take(MOST_BYTES + 1).read_to_end(&mut content)?;
    match content.len() as u64 > MOST_BYTES {
        true => Err(Error::new(ErrorKind::FileTooLarge, "larger than 1 MiB")),
        false => Ok(content),
    }
}

fn digest(content: &Result<Vec<u8>>) -> Digest {
    let mut context = Context::new(&SHA256);
    match content {
        Ok(content) => {
            context.update(&[1]);
            context.update(content);
        }
        Err(error) => context.update(format!("{:?}", error.kind()).as_bytes()),
    }
    let mut digest = Digest::default();
    digest.copy_from_slice(context.finish().as_ref());
    digest
}
