//! Reads a namespace's state and settings: sysctl, `nstat`, `ss`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::netns::{Netns, output};
use crate::ss::{SsRow, parse_rows};

impl Netns {
    /// Sets a sysctl of the namespace, for example `net.core.somaxconn`.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn sysctl(&self, key: &str, value: impl ToString) {
        let (path, value) = (sysctl_path(key), value.to_string());
        self.run(|| fs::write(&path, &value))
            .unwrap_or_else(|e| panic!("writing {value:?} to {path:?}: {e}"));
    }

    /// Reads a sysctl of the namespace.
    ///
    /// # Panics
    ///
    /// When there is no such sysctl.
    #[must_use]
    pub fn sysctl_get(&self, key: &str) -> String {
        let path = sysctl_path(key);
        let text = self
            .run(|| fs::read_to_string(&path))
            .unwrap_or_else(|e| panic!("reading {path:?}: {e}"));
        text.trim().to_owned()
    }

    /// All SNMP and netstat counters of the namespace as `nstat` shows them, absolute, zeros
    /// included.
    ///
    /// # Panics
    ///
    /// When `nstat` fails.
    #[must_use]
    pub fn nstat(&self) -> BTreeMap<String, u64> {
        // -a and -s together: neither read nor write the history file.
        let text = output(self.command("nstat").args(["-a", "-s", "-z", "--json"])).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).expect("nstat prints JSON");
        let counters = json["kernel"].as_object().expect("nstat prints an object named kernel");
        counters.iter().filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect()
    }

    /// The TCP listen sockets of the namespace as `ss` shows them.
    ///
    /// # Panics
    ///
    /// When `ss` fails or its output cannot be parsed.
    #[must_use]
    pub fn ss_listen(&self) -> Vec<SsRow> {
        let text = output(self.command("ss").arg("-HOltnm")).unwrap();
        parse_rows(&text).unwrap()
    }
}

fn sysctl_path(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key.replace('.', "/"))
}
