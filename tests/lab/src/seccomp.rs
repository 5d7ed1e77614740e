//! Owns a machine without netlink: a seccomp filter under which `socket(AF_NETLINK)` fails with `EAFNOSUPPORT`.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

/// Takes netlink from the calling thread, and from every process and thread it starts from now on.
///
/// It also sets `no_new_privs`. It cannot be undone: give it a thread of its own.
///
/// # Errors
///
/// When the kernel refuses the filter or the processor is not a known one.
pub fn forbid_netlink() -> Result<()> {
    let program = filter().context("compiling the seccomp filter")?;
    apply_filter(&program).context("installing the seccomp filter")
}

/// Becomes `command`, without netlink. Returns only if that fails.
pub fn exec_without_netlink(command: &mut Command) -> anyhow::Error {
    match forbid_netlink() {
        Ok(()) => anyhow::Error::new(command.exec()).context(format!("executing {command:?}")),
        Err(e) => e,
    }
}

fn filter() -> Result<BpfProgram> {
    let family = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        libc::AF_NETLINK as u64,
    )?;
    let rules = [(libc::SYS_socket, vec![SeccompRule::new(vec![family])?])];
    let refuse = SeccompAction::Errno(libc::EAFNOSUPPORT as u32);
    let arch = std::env::consts::ARCH.try_into()?;
    let filter =
        SeccompFilter::new(rules.into_iter().collect(), SeccompAction::Allow, refuse, arch)?;
    Ok(filter.try_into()?)
}
