//! Reads whole procfs files repeatedly into one buffer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Reading a procfs file failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {cause}", path.display())]
pub struct ReadError {
    path: PathBuf,
    cause: io::Error,
}

/// An open procfs file.
///
/// A read from offset 0 makes the kernel generate the content again. A file of a network namespace
/// stays bound to that namespace, whichever thread reads it.
pub struct ProcfsFile {
    path: PathBuf,
    file: File,
}

/// Read buffer, shared by all files.
pub struct Text(Vec<u8>);

// === impl Text ===

impl Default for Text {
    fn default() -> Self {
        Self(vec![0; 8 * 1024])
    }
}

// === impl ReadError ===

impl ReadError {
    pub(crate) fn new(path: &Path, cause: io::Error) -> Self {
        Self { path: path.to_owned(), cause }
    }

    pub(crate) fn invalid(path: &Path, what: impl std::fmt::Display) -> Self {
        Self::new(path, io::Error::new(io::ErrorKind::InvalidData, what.to_string()))
    }
}

// === impl ProcfsFile ===

impl ProcfsFile {
    /// Opens `path`.
    pub fn open(path: PathBuf) -> Result<Self, ReadError> {
        let file = File::open(&path).map_err(|error| ReadError::new(&path, error))?;
        Ok(Self { path, file })
    }

    /// Returns the path at which the file was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the current text up to a line for which `is_last` holds, and possibly further lines,
    /// because a table may be long.
    pub fn read_lines<'text>(
        &self,
        text: &'text mut Text,
        is_last: impl Fn(&str) -> bool,
    ) -> Result<&'text str, ReadError> {
        self.read_until(text, |text, _| last_line(text).is_some_and(&is_last))
    }

    /// Reads the text of a file that the kernel writes in one piece (a counter file or a setting,
    /// not a table). A read that does not fill the buffer has reached the end, so no second read is
    /// necessary.
    pub fn read_piece<'text>(&self, text: &'text mut Text) -> Result<&'text str, ReadError> {
        self.read_until(text, |_, room_left| room_left > 0)
    }

    fn read_until<'text>(
        &self,
        text: &'text mut Text,
        has_ended: impl Fn(&[u8], usize) -> bool,
    ) -> Result<&'text str, ReadError> {
        let length =
            self.fill(&mut text.0, has_ended).map_err(|error| ReadError::new(&self.path, error))?;
        std::str::from_utf8(&text.0[..length])
            .map_err(|error| ReadError::invalid(&self.path, error))
    }

    fn fill(
        &self,
        buffer: &mut Vec<u8>,
        has_ended: impl Fn(&[u8], usize) -> bool,
    ) -> io::Result<usize> {
        let mut length = 0;
        loop {
            if length == buffer.len() {
                buffer.resize(2 * length, 0);
            }
            match self.file.read_at(&mut buffer[length..], length as u64) {
                Ok(0) => return Ok(length),
                Ok(more) => {
                    length += more;
                    if has_ended(&buffer[..length], buffer.len() - length) {
                        return Ok(length);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Returns the last whole line.
fn last_line(text: &[u8]) -> Option<&str> {
    let is_break = |byte: &u8| *byte == b'\n';
    let end = text.iter().rposition(is_break)?;
    let begin = text[..end].iter().rposition(is_break).map_or(0, |at| at + 1);
    std::str::from_utf8(&text[begin..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_read_returns_the_current_content() {
        let file = ProcfsFile::open("/proc/self/stat".into()).unwrap();
        let mut text = Text::default();
        let first = file.read_piece(&mut text).unwrap().to_owned();
        assert!(first.starts_with(&std::process::id().to_string()), "{first}");
        assert!(file.read_piece(&mut text).unwrap().starts_with(&std::process::id().to_string()));
    }

    #[test]
    fn a_long_table_is_read_only_up_to_the_last_needed_line() {
        let path = std::env::temp_dir().join(format!("lq-table-{}", std::process::id()));
        let table: String = (0..10_000).map(|n| format!("row {n}\n")).collect();
        std::fs::write(&path, &table).unwrap();
        let file = ProcfsFile::open(path.clone()).unwrap();
        std::fs::remove_file(path).unwrap();
        let mut text = Text(vec![0; 64]);
        let number = |line: &str| line.strip_prefix("row ").unwrap().parse::<u32>().unwrap();
        let begin = file.read_lines(&mut text, |line| number(line) >= 20).unwrap();
        assert!(begin.contains("row 20\n") && begin.len() <= 512, "{begin}");
        assert_eq!(file.read_lines(&mut text, |_| false).unwrap(), table);
    }

    #[test]
    fn a_file_of_one_piece_is_whole_however_small_the_buffer() {
        let file = ProcfsFile::open("/proc/net/netstat".into()).unwrap();
        let mut text = Text(vec![0; 64]);
        for _ in 0..2 {
            let read = file.read_piece(&mut text).unwrap();
            assert!(read.starts_with("TcpExt: ") && read.ends_with('\n'), "{read}");
            assert_eq!(read.lines().count() % 2, 0, "{read}");
            assert!(read.contains("\nIpExt: "), "{read}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = ProcfsFile::open("/proc/nowhere".into()).err().unwrap();
        assert_eq!(
            error.to_string(),
            "cannot read /proc/nowhere: No such file or directory (os error 2)"
        );
    }
}
