//! Owns a machine without netlink, or without the modules that answer socket dumps: seccomp filters under which
//! `socket(AF_NETLINK)` fails with `EAFNOSUPPORT`, or sending a request with `ENOENT`.

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

/// Lets every netlink request of the calling thread, and of every process and thread it starts from now on, fail with
/// `ENOENT`, as the kernel answers when it finds no module for it. A request is what is sent without any flag.
///
/// # Errors
///
/// When the kernel refuses the filter or the processor is not a known one.
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

/// A filter under which calls that fit `rules` fail.
fn failing<const N: usize>(rules: [(i64, Vec<SeccompRule>); N], errno: i32) -> Result<BpfProgram> {
    let refuse = SeccompAction::Errno(errno as u32);
    let arch = std::env::consts::ARCH.try_into()?;
    let filter =
        SeccompFilter::new(rules.into_iter().collect(), SeccompAction::Allow, refuse, arch)?;
    Ok(filter.try_into()?)
}
