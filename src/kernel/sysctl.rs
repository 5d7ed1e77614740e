//! Reads the five settings under `/proc/sys/net`. The open files stay bound to the namespace in
//! which they were opened.

use std::path::Path;

use super::procfs_file::{ProcfsFile, ReadError, Text};
use crate::snapshot::{Setting, Settings};

/// The settings of one namespace.
pub struct Sysctls {
    files: [Result<ProcfsFile, ReadError>; Setting::ALL.len()],
}

// === impl Sysctls ===

impl Sysctls {
    /// Opens the settings of the calling thread's namespace. A setting that this kernel lacks stays
    /// unknown.
    pub fn open(procfs: &Path) -> Self {
        let open = |setting: Setting| ProcfsFile::open(procfs.join("sys").join(setting.path()));
        Self { files: Setting::ALL.map(open) }
    }

    /// Reads the settings. Fails only if no setting can be read.
    pub fn read(&self, text: &mut Text) -> Result<Settings, String> {
        let (mut settings, mut failure) = (Settings::default(), None);
        for (setting, file) in Setting::ALL.into_iter().zip(&self.files) {
            match value(file, text) {
                Ok(value) => settings.set(setting, value),
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) if settings == Settings::default() => Err(error),
            _ => Ok(settings),
        }
    }
}

fn value(file: &Result<ProcfsFile, ReadError>, text: &mut Text) -> Result<i64, String> {
    let file = file.as_ref().map_err(ToString::to_string)?;
    let text = file.read_piece(text).map_err(|error| error.to_string())?;
    text.trim().parse().map_err(|_| format!("{}: {text:?} is no number", file.path().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_all_five_settings() {
        let settings = Sysctls::open(Path::new("/proc")).read(&mut Text::default()).unwrap();
        for setting in Setting::ALL {
            assert!(settings.get(setting).is_some(), "{}", setting.path());
        }
    }

    #[test]
    fn the_error_names_a_file_if_none_can_be_read() {
        let error = Sysctls::open(Path::new("/nowhere")).read(&mut Text::default()).unwrap_err();
        assert!(error.starts_with("cannot read /nowhere/sys/net/ipv4/"), "{error}");
    }
}
