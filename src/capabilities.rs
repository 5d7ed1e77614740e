//! The capabilities of threads: each thread keeps those that it needs.

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// Permanently drops all capabilities of this thread except `kept`. Threads that this thread starts
/// later do not have them either.
pub fn keep(kept: CapabilitySet) {
    let dropped = capabilities(None).and_then(|sets| {
        let CapabilitySets { effective, permitted, inheritable } = sets;
        let [effective, permitted, inheritable] =
            [effective, permitted, inheritable].map(|set| set.intersection(kept));
        set_capabilities(None, CapabilitySets { effective, permitted, inheritable })
    });
    if let Err(error) = dropped {
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or_default();
        tracing::warn!(%error, thread, "cannot drop capabilities: this thread keeps them");
    }
}
