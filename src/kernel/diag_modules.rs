//! Tracks whether the kernel modules for socket dumps are loaded: `tcp_diag` and `unix_diag`.
//!
//! `sock_diag` calls `request_module` for each request without a handler, so each of these requests
//! starts `modprobe`. The whole process therefore remembers that a module is missing. The kernel is
//! asked again when the module appears in `/proc/modules`, else after ten minutes, because a kernel
//! without loadable modules never lists a module.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use netlink_packet_sock_diag::constants::AF_UNIX;

use super::diag_stream::DumpError;

/// Interval between requests to the kernel for a module that is not listed.
const RETRY: Duration = Duration::from_secs(600);
/// Offset of `sdiag_family` in a request, after the netlink header.
const FAMILY_AT: usize = 16;

/// A kernel module that answers dumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiagModule {
    /// `tcp_diag`, which includes `inet_diag`.
    Tcp,
    /// `unix_diag`.
    Unix,
}

/// Availability of both modules, shared by all threads.
#[derive(Debug, Default)]
pub struct DiagModules([Gate; DiagModule::ALL.len()]);

/// Checks periodically whether missing modules have appeared.
#[derive(Debug)]
pub struct ModuleWatch {
    list: PathBuf,
    retries: Retries,
}

/// Decides when to ask the kernel again for a missing module.
#[derive(Debug, Default)]
struct Retries([Retry; DiagModule::ALL.len()]);

#[derive(Debug, Default)]
struct Gate(AtomicU8);

#[derive(Debug, Default)]
struct Retry {
    missing_since: Option<Instant>,
    was_loaded: bool,
}

/// No thread has asked for the module.
const UNTRIED: u8 = 0;
/// A thread is asking for the module now.
const TRYING: u8 = 1;
const AVAILABLE: u8 = 2;
const MISSING: u8 = 3;

// === impl DiagModule ===

impl DiagModule {
    const ALL: [Self; 2] = [Self::Tcp, Self::Unix];

    /// Returns the module that answers `request`.
    pub(super) fn answering(request: &[u8]) -> Self {
        match request.get(FAMILY_AT) {
            Some(&AF_UNIX) => Self::Unix,
            _ => Self::Tcp,
        }
    }

    /// Returns the module's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp_diag",
            Self::Unix => "unix_diag",
        }
    }

    /// Whether `/proc/modules` lists the module.
    fn is_listed(self, modules: &str) -> bool {
        modules.lines().any(|line| line.split(' ').next() == Some(self.name()))
    }
}

// === impl DiagModules ===

impl DiagModules {
    /// Returns the modules state of this process.
    pub fn of_process() -> &'static Self {
        static MODULES: DiagModules = DiagModules([Gate::new(), Gate::new()]);
        &MODULES
    }

    /// Whether the module was requested and is missing.
    pub fn is_missing(&self, module: DiagModule) -> bool {
        self.gate(module).load() == MISSING
    }

    /// Whether a dump may be tried: the module is present, or no thread has asked for it.
    pub fn may_answer(&self, module: DiagModule) -> bool {
        matches!(self.gate(module).load(), AVAILABLE | UNTRIED)
    }

    /// Runs `dump` unless its module is known to be missing, and records whether the module is
    /// missing.
    pub(super) fn ask<T>(
        &self,
        module: DiagModule,
        dump: impl FnOnce() -> Result<T, DumpError>,
    ) -> Result<T, DumpError> {
        let gate = self.gate(module);
        if !gate.enter() {
            return Err(DumpError::ModuleMissing(module.name()));
        }
        let result = dump();
        gate.leave(&result);
        result
    }

    /// Allows a new request for missing modules when one is due. `modules` is the text of
    /// `/proc/modules`.
    fn retry(&self, retries: &mut Retries, modules: &str, now: Instant) {
        for module in DiagModule::ALL {
            let retry = &mut retries.0[module as usize];
            if retry.is_due(self.is_missing(module), module.is_listed(modules), now) {
                self.gate(module).0.store(UNTRIED, Ordering::Release);
            }
        }
    }

    fn gate(&self, module: DiagModule) -> &Gate {
        &self.0[module as usize]
    }
}

// === impl ModuleWatch ===

impl ModuleWatch {
    /// Creates a watch of the modules listed in `procfs`.
    pub fn new(procfs: &Path) -> Self {
        Self { list: procfs.join("modules"), retries: Retries::default() }
    }

    /// Checks whether a missing module has appeared.
    pub fn look(&mut self, now: Instant) {
        // A kernel without loadable modules has no `/proc/modules`.
        let list = fs::read_to_string(&self.list).unwrap_or_default();
        DiagModules::of_process().retry(&mut self.retries, &list, now);
    }
}

// === impl Retry ===

impl Retry {
    fn is_due(&mut self, is_missing: bool, is_loaded: bool, now: Instant) -> bool {
        let has_appeared = is_loaded && !std::mem::replace(&mut self.was_loaded, is_loaded);
        if !is_missing {
            self.missing_since = None;
            return false;
        }
        let since = *self.missing_since.get_or_insert(now);
        let is_due = has_appeared || now.saturating_duration_since(since) >= RETRY;
        if is_due {
            self.missing_since = None;
        }
        is_due
    }
}

// === impl Gate ===

impl Gate {
    const fn new() -> Self {
        Self(AtomicU8::new(UNTRIED))
    }

    fn load(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }

    /// Whether the caller may ask. If several threads find the module untried, only one may ask.
    fn enter(&self) -> bool {
        self.load() == AVAILABLE
            || self.0.compare_exchange(UNTRIED, TRYING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn leave<T>(&self, result: &Result<T, DumpError>) {
        match result {
            Ok(_) if self.load() == AVAILABLE => {}
            Ok(_) => self.0.store(AVAILABLE, Ordering::Release),
            Err(error) if error.means_missing_module() => {
                self.0.store(MISSING, Ordering::Release);
            }
            // The error does not show whether the module is present: the next thread may ask.
            Err(_) => {
                let _ =
                    self.0.compare_exchange(TRYING, UNTRIED, Ordering::AcqRel, Ordering::Acquire);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustix::io::Errno;

    use super::*;

    const LISTED: &str = "tcp_diag 16384 0 - Live 0x0\ninet_diag 28672 1 tcp_diag, Live 0x0\n";

    /// A test machine with or without the module, and the number of requests that reached its
    /// kernel.
    #[derive(Default)]
    struct Machine {
        modules: DiagModules,
        is_there: bool,
        requests: u32,
    }

    impl Machine {
        fn ask(&mut self, module: DiagModule) -> bool {
            let (is_there, requests) = (self.is_there, &mut self.requests);
            let asked = self.modules.ask(module, || {
                *requests += 1;
                let missing = || DumpError::Kernel(io::Error::from(Errno::NOENT));
                if is_there { Ok(()) } else { Err(missing()) }
            });
            asked.is_ok()
        }
    }

    #[test]
    fn a_missing_module_is_requested_every_ten_minutes_for_all_namespaces() {
        let (mut machine, mut retries) = (Machine::default(), Retries::default());
        let begin = Instant::now();
        for second in 0..3_600 {
            if second % 5 == 0 {
                let now = begin + Duration::from_secs(second);
                machine.modules.retry(&mut retries, "", now);
            }
            for _ in 0..20 {
                assert!(!machine.ask(DiagModule::Tcp));
            }
        }
        // At the start, and after 10, 20, 30, 40 and 50 minutes.
        assert!((5..=6).contains(&machine.requests), "{}", machine.requests);
    }

    #[test]
    fn a_module_that_appears_is_requested_at_once() {
        let (mut machine, mut retries) = (Machine::default(), Retries::default());
        let begin = Instant::now();
        let at = |second| begin + Duration::from_secs(second);
        assert!(!machine.ask(DiagModule::Tcp));
        machine.modules.retry(&mut retries, "", at(5));
        machine.is_there = true;
        assert!(!machine.ask(DiagModule::Tcp) && machine.modules.is_missing(DiagModule::Tcp));
        machine.modules.retry(&mut retries, LISTED, at(10));
        assert!(machine.ask(DiagModule::Tcp) && machine.ask(DiagModule::Tcp));
        assert_eq!(machine.requests, 3);
        // The module is gone again and listed all the time: the list is no reason to ask.
        machine.is_there = false;
        assert!(!machine.ask(DiagModule::Tcp));
        for second in (15..600).step_by(5) {
            machine.modules.retry(&mut retries, LISTED, at(second));
            assert!(!machine.ask(DiagModule::Tcp));
        }
        assert_eq!(machine.requests, 4);
    }

    #[test]
    fn a_kernel_without_loadable_modules_is_asked_every_ten_minutes() {
        let (mut machine, mut retries) = (Machine::default(), Retries::default());
        let begin = Instant::now();
        assert!(!machine.ask(DiagModule::Unix));
        machine.is_there = true;
        machine.modules.retry(&mut retries, "", begin);
        machine.modules.retry(&mut retries, "", begin + RETRY);
        assert!(machine.ask(DiagModule::Unix));
    }

    #[test]
    fn modules_are_tracked_separately_and_other_errors_do_not_count() {
        let mut machine = Machine::default();
        assert!(!machine.ask(DiagModule::Unix));
        machine.is_there = true;
        assert!(machine.ask(DiagModule::Tcp));
        let modules = DiagModules::default();
        let lost = || Err::<(), _>(DumpError::Interrupted);
        assert!(modules.ask(DiagModule::Tcp, lost).is_err());
        assert!(modules.may_answer(DiagModule::Tcp));
    }

    #[test]
    fn a_request_belongs_to_the_module_of_its_family() {
        let of = |request: &[u8]| DiagModule::answering(request);
        assert_eq!(of(&super::super::unix_diag::request()), DiagModule::Unix);
        assert_eq!(of(&super::super::inet_diag::both_families()), DiagModule::Tcp);
        assert!(super::super::inet_diag::one_per_family().iter().all(|r| of(r) == DiagModule::Tcp));
    }
}
