//! Owns the descriptor limit of this process (`RLIMIT_NOFILE`).

use std::sync::Once;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the lab asks for: the kernel's default of `fs.nr_open`.
const WANTED: u64 = 1 << 20;

/// Raises the limit, once: thousands of sockets need thousands of descriptors.
///
/// Above the hard limit where the kernel allows it, else up to it. A refusal is left to show
/// itself as "too many open files" where it hurts.
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
