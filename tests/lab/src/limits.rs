//! The descriptor limit of this process (`RLIMIT_NOFILE`).

use std::sync::Once;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The requested limit: the kernel's default of `fs.nr_open`.
const WANTED: u64 = 1 << 20;

/// Raises the descriptor limit once: thousands of sockets need thousands of descriptors.
///
/// Raises it above the hard limit if the kernel allows, else up to the hard limit. A refusal shows
/// later as the error "too many open files".
pub fn raise_descriptor_limit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hard = getrlimit(Resource::Nofile).maximum;
        if hard.is_none_or(|hard| hard >= WANTED) || set(Some(WANTED)).is_err() {
            let _ = set(hard);
        }
    });
}

fn set(limit: Option<u64>) -> rustix::io::Result<()> {
    let limit = Rlimit { current: limit, maximum: limit };
    setrlimit(Resource::Nofile, limit)
}
