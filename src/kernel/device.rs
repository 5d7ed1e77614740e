//! Names of network interfaces by index (`SIOCGIFNAME`), asked of a socket of the namespace in question.

use std::os::fd::AsFd;

use rustix::net::netdevice::index_to_name_inlined;

use crate::snapshot::DeviceName;

/// The names asked for lately. An interface may be renamed: forget them now and then.
#[derive(Default)]
pub struct Devices {
    known: Vec<(u32, DeviceName)>,
}

// === impl Devices ===

impl Devices {
    /// The name of interface `index`, or the index itself in digits when it is gone.
    pub fn name(&mut self, socket: impl AsFd, index: u32) -> DeviceName {
        if let Some((_, name)) = self.known.iter().find(|(known, _)| *known == index) {
            return *name;
        }
        let name = match index_to_name_inlined(socket, index) {
            Ok(name) => DeviceName::new(name.as_str()),
            Err(_) => DeviceName::new(&index.to_string()),
        };
        self.known.push((index, name));
        name
    }

    /// Asks anew from now on. Gives whether there was anything to forget.
    pub fn forget(&mut self) -> bool {
        let had_any = !self.known.is_empty();
        self.known.clear();
        had_any
    }
}
