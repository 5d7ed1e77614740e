//! Looks up names of network interfaces by index (`SIOCGIFNAME`) through a socket of the namespace.

use std::os::fd::AsFd;

use rustix::net::netdevice::index_to_name_inlined;

use crate::snapshot::DeviceName;

/// Cache of interface names. Interfaces can be renamed: call [`refresh`](Self::refresh) from time
/// to time.
#[derive(Default)]
pub struct Devices {
    known: Vec<Device>,
}

struct Device {
    index: u32,
    name: DeviceName,
    is_fresh: bool,
}

// === impl Devices ===

impl Devices {
    /// Returns the name of interface `index`.
    ///
    /// A socket stays bound to a deleted interface. In that case this is the last known name, or
    /// the index in digits if the name was never known.
    pub fn name(&mut self, socket: impl AsFd, index: u32) -> DeviceName {
        let last = self.known.iter_mut().find(|device| device.index == index);
        if let Some(Device { name, is_fresh: true, .. }) = last {
            return *name;
        }
        let asked = index_to_name_inlined(socket, index).ok();
        let asked = asked.map(|name| DeviceName::new(name.as_str()));
        match last {
            Some(device) => {
                device.name = asked.unwrap_or(device.name);
                device.is_fresh = true;
                device.name
            }
            None => {
                let name = asked.unwrap_or_else(|| DeviceName::new(&index.to_string()));
                self.known.push(Device { index, name, is_fresh: true });
                name
            }
        }
    }

    /// Marks all names for a new lookup and drops names not requested since the last call.
    ///
    /// Returns whether any name is known.
    pub fn refresh(&mut self) -> bool {
        self.known.retain_mut(|device| std::mem::take(&mut device.is_fresh));
        !self.known.is_empty()
    }
}
