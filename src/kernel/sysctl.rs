//! The five settings under `/proc/sys/net`, as the calling thread's namespace has them.

use std::path::Path;

use crate::snapshot::{Setting, Settings};

/// Reads the settings below `procfs`. One that this kernel lacks, or that cannot be read, stays unknown.
pub fn read(procfs: &Path) -> Settings {
    let mut settings = Settings::default();
    for setting in Setting::ALL {
        let path = procfs.join("sys").join(setting.path());
        if let Some(value) = std::fs::read_to_string(path).ok().and_then(|text| parse(&text)) {
            settings.set(setting, value);
        }
    }
    settings
}

fn parse(text: &str) -> Option<i64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_all_five() {
        let settings = read(Path::new("/proc"));
        for setting in Setting::ALL {
            assert!(settings.get(setting).is_some(), "{}", setting.path());
        }
    }

    #[test]
    fn what_is_no_number_is_unknown() {
        assert_eq!(parse("4096\n"), Some(4096));
        assert_eq!(parse("4096 8192\n"), None);
        assert_eq!(parse(""), None);
    }
}
