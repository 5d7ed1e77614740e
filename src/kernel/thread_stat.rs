//! Parses the files of a thread in `/proc/PID/task/TID`: its state (`stat`), its time on a CPU and
//! in the run queue (`schedstat`), and the system call in which it waits (`syscall`).

use std::time::Duration;

/// The system call in which a thread waits. Calls that listenq does not distinguish are `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The file could not be read: reading requires `CAP_SYS_PTRACE`.
    Unknown,
    /// The thread runs, or waits outside of a system call.
    Running,
    /// `accept`, `accept4` on this descriptor.
    Accept(u32),
    /// `read`, `readv` on this descriptor.
    Read(u32),
    /// `recvfrom`, `recvmsg` on this descriptor.
    Receive(u32),
    /// `write`, `sendto`, `sendmsg` on this descriptor.
    Send(u32),
    /// `connect` on this descriptor.
    Connect(u32),
    /// `poll` of this number of descriptors.
    Poll(u64),
    /// `epoll_wait` and its variants on this epoll descriptor.
    Epoll(u32),
    /// `select`, `pselect6`, `io_uring_enter`.
    Events,
    /// `futex`.
    Futex,
    /// Any other system call.
    Other,
}

/// System call numbers (`asm/unistd.h`) of `accept`, `accept4`, and so on.
struct Numbers {
    accept: &'static [i64],
    read: &'static [i64],
    receive: &'static [i64],
    send: &'static [i64],
    connect: i64,
    poll: &'static [i64],
    epoll: &'static [i64],
    events: &'static [i64],
    futex: i64,
}

#[cfg(target_arch = "x86_64")]
const NUMBERS: Option<Numbers> = Some(Numbers {
    accept: &[43, 288],
    read: &[0, 19],
    receive: &[45, 47],
    send: &[1, 20, 44, 46],
    connect: 42,
    poll: &[7, 271],
    epoll: &[232, 281, 441],
    events: &[23, 270, 426],
    futex: 202,
});
#[cfg(target_arch = "aarch64")]
const NUMBERS: Option<Numbers> = Some(Numbers {
    accept: &[202, 242],
    read: &[63, 65],
    receive: &[207, 212],
    send: &[64, 66, 206, 211],
    connect: 203,
    poll: &[73],
    epoll: &[22, 441],
    events: &[72, 426],
    futex: 98,
});
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const NUMBERS: Option<Numbers> = None;

/// Parses the state letter of `stat`; the name before it may contain any character.
pub fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Parses the parent's pid in `stat`.
pub fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Parses the start time in `stat`, in clock ticks since boot.
pub fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// Parses the time on a CPU, and the time runnable but not running.
pub fn schedstat(text: &str) -> Option<(Duration, Duration)> {
    let mut numbers = text.split_ascii_whitespace().map(|number| number.parse().ok());
    let (on_cpu, runnable) = (numbers.next()??, numbers.next()??);
    Some((Duration::from_nanos(on_cpu), Duration::from_nanos(runnable)))
}

/// Parses `syscall`: `running`, or the number and arguments of the system call in hexadecimal.
pub fn call(text: &str) -> Call {
    let mut words = text.split_ascii_whitespace();
    let Some(number) = words.next().and_then(|word| word.parse::<i64>().ok()) else {
        return Call::Running;
    };
    let Some(numbers) = NUMBERS else { return Call::Unknown };
    let mut arguments =
        words.map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    let (first, second) = (arguments.next().flatten(), arguments.next().flatten());
    numbers.call(number, first, second)
}

// === impl Numbers ===

impl Numbers {
    fn call(&self, number: i64, first: Option<u64>, second: Option<u64>) -> Call {
        let fd = first.and_then(|first| u32::try_from(first).ok());
        let on_fd = |call: fn(u32) -> Call| fd.map_or(Call::Other, call);
        match number {
            -1 => Call::Running,
            n if self.accept.contains(&n) => on_fd(Call::Accept),
            n if self.read.contains(&n) => on_fd(Call::Read),
            n if self.receive.contains(&n) => on_fd(Call::Receive),
            n if self.send.contains(&n) => on_fd(Call::Send),
            n if n == self.connect => on_fd(Call::Connect),
            n if self.poll.contains(&n) => second.map_or(Call::Events, Call::Poll),
            n if self.epoll.contains(&n) => fd.map_or(Call::Events, Call::Epoll),
            n if self.events.contains(&n) => Call::Events,
            n if n == self.futex => Call::Futex,
            _ => Call::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_fields_are_read_after_the_process_name() {
        let stat = "71 (a) R (b) T 42 7 7 0 -1 4194560 1 0 0 0 3 4 0 0 20 0 1 0 101499 31334 1";
        assert_eq!(
            (state(stat), parent(stat), start_time(stat)),
            (Some('T'), Some(42), Some(101_499))
        );
        assert_eq!(state("71 (a"), None);
    }

    #[test]
    fn schedstat_is_in_nanoseconds() {
        assert_eq!(
            schedstat("2500 70 3\n"),
            Some((Duration::from_nanos(2500), Duration::from_nanos(70)))
        );
        assert_eq!(schedstat(""), None);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn system_calls_are_recognized_by_number() {
        let of = |text: &str| call(&format!("{text} 0x0 0x0 0x0 0x7ff 0x7f1"));
        assert_eq!(call("running\n"), Call::Running);
        assert_eq!(call("-1 0x7ffc 0x7f15\n"), Call::Running);
        assert_eq!(of("288 0x5 0x0 0x0"), Call::Accept(5));
        assert_eq!(of("45 0x4 0x7f15 0x1000"), Call::Receive(4));
        assert_eq!(of("0 0xb 0x7f15 0x1000"), Call::Read(11));
        assert_eq!(of("7 0x7f15 0x1 0xffffffff"), Call::Poll(1));
        assert_eq!(of("232 0x8 0x7f15 0x200"), Call::Epoll(8));
        assert_eq!(of("23 0x8 0x7f15 0x0"), Call::Events);
        assert_eq!(of("202 0x7f15 0x80 0x2"), Call::Futex);
        assert_eq!(of("35 0x7f15 0x0 0x0"), Call::Other);
    }

    #[test]
    fn this_thread_runs_while_it_reads_itself() {
        let text =
            |name: &str| std::fs::read_to_string(format!("/proc/thread-self/{name}")).unwrap();
        assert_eq!(state(&text("stat")), Some('R'));
        // A new thread has not run for a whole tick yet.
        let has_run = || schedstat(&text("schedstat")).is_some_and(|(on_cpu, _)| !on_cpu.is_zero());
        assert!((0..100_000).any(|_| has_run()));
    }
}
