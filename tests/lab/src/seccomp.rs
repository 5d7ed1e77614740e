//! A machine without netlink, or without the modules for socket dumps: seccomp filters under which
//! `socket(AF_NETLINK)` fails with `EAFNOSUPPORT`, or sending a request with `ENOENT`.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

/// Forbids netlink for the calling thread, and for every process and thread that it starts later.
///
/// Also sets `no_new_privs`. The filter cannot be removed: use a separate thread.
///
/// # Errors
///
/// When the kernel refuses the filter or the CPU architecture is unknown.
pub fn forbid_netlink() -> Result<()> {
    let program = filter().context("compiling the seccomp filter")?;
    apply_filter(&program).context("installing the seccomp filter")
}

/// Execs `command` without netlink. Returns only on failure.
pub fn exec_without_netlink(command: &mut Command) -> anyhow::Error {
    match forbid_netlink() {
        Ok(()) => anyhow::Error::new(command.exec()).context(format!("executing {command:?}")),
        Err(e) => e,
    }
}

/// Makes every netlink request of the calling thread, and of every process and thread that it
/// starts later, fail with `ENOENT`, the kernel's answer when it has no module for the request. A
/// request is a message sent without flags.
///
/// # Errors
///
/// When the kernel refuses the filter or the CPU architecture is unknown.
pub fn forbid_requests() -> Result<()> {
    let flags = SeccompCondition::new(3, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, 0)?;
    let rules = [(libc::SYS_sendto, vec![SeccompRule::new(vec![flags])?])];
    apply_filter(&failing(rules, libc::ENOENT)?).context("installing the seccomp filter")
}

fn filter() -> Result<BpfProgram> {
    let family = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        libc::AF_NETLINK as u64,
    )?;
    let rules = [(libc::SYS_socket, vec![SeccompRule::new(vec![family])?])];
    failing(rules, libc::EAFNOSUPPORT)
}

/// A filter under which system calls that match `rules` fail.
fn failing<const N: usize>(rules: [(i64, Vec<SeccompRule>); N], errno: i32) -> Result<BpfProgram> {
    let refuse = SeccompAction::Errno(errno as u32);
    let arch = std::env::consts::ARCH.try_into()?;
    let filter =
        SeccompFilter::new(rules.into_iter().collect(), SeccompAction::Allow, refuse, arch)?;
    Ok(filter.try_into()?)
}
