//! Whether the trouble of a diagnosis or a cause is over. Both hold for some seconds longer than
//! their evidence, so their texts need to know.

use std::time::Duration;

use crate::cause::Cause;
use crate::diagnosis::Diagnosis;
use crate::report::Listener;

/// The server accepts again if a connection was accepted within this time.
pub const ACCEPTED_WITHIN: Duration = Duration::from_secs(2);

/// Whether the listener no longer shows the trouble of `diagnosis`.
pub fn is_over(listener: &Listener, diagnosis: Diagnosis) -> bool {
    match diagnosis {
        Diagnosis::Imbalance => listener
            .recent
            .is_some_and(|recent| recent.sockets_brimming == 0 && recent.sockets_stuck == 0),
        Diagnosis::Stalled => listener.length == 0 || accepts_again(listener),
        Diagnosis::Abandoned
        | Diagnosis::SlowAccept
        | Diagnosis::StandingQueue
        | Diagnosis::NotAccepting => listener.length == 0,
        Diagnosis::ShortQueue | Diagnosis::StaleLimit | Diagnosis::SynFlood => false,
    }
}

/// Whether the owner of the listener is no longer in the state that `cause` describes. A server in
/// one of these states accepts nothing, so its queue cannot become empty.
pub fn is_cause_over(listener: &Listener, cause: Cause) -> bool {
    let accepts_nothing = cause.stops_accepting() || cause == Cause::Lock;
    let states = listener.owner_state.as_ref().map_or("", |state| &state.thread_states);
    let runs = !states.is_empty() && !states.contains(['T', 't']);
    (accepts_nothing && listener.length == 0) || (cause == Cause::Stopped && runs)
}

/// Whether scans saw an accept and samples saw a shorter queue. A scan without a scan to compare
/// with also restarts the time without an accept.
fn accepts_again(listener: &Listener) -> bool {
    listener.recent.is_some_and(|recent| {
        let accepted =
            recent.untaken_seconds.is_some_and(|untaken| untaken < ACCEPTED_WITHIN.as_secs_f64());
        accepted && recent.sockets_stuck < listener.sockets.max(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Recent;
    use crate::report::because::OwnerState;

    fn waiting(length: u64, untaken: f64, sockets_stuck: u32) -> Listener {
        let untaken_seconds = Some(untaken);
        let recent = Some(Recent { untaken_seconds, sockets_stuck, ..Recent::default() });
        Listener { sockets: 1, length, recent, ..Listener::default() }
    }

    #[test]
    fn a_stall_is_over_when_the_queue_is_empty_or_moves() {
        let is_over = |listener: Listener| is_over(&listener, Diagnosis::Stalled);
        assert!(is_over(waiting(0, 0.0, 0)));
        assert!(is_over(waiting(9, 1.1, 0)));
        assert!(!is_over(waiting(9, 14.0, 1)));
        assert!(!is_over(waiting(9, 5.0, 0)));
        // The queue did not become shorter: the scan before is missing.
        assert!(!is_over(waiting(9, 0.0, 1)));
        assert!(!is_over(Listener { recent: None, ..waiting(9, 0.0, 0) }));
    }

    #[test]
    fn a_stopped_process_runs_again_when_its_threads_or_its_queue_show_it() {
        let with = |length, states: &str| {
            let state = OwnerState { thread_states: states.into(), ..OwnerState::default() };
            Listener { owner_state: Some(state), ..waiting(length, 14.0, 1) }
        };
        let is_over = |cause, length, states| is_cause_over(&with(length, states), cause);
        assert!(is_over(Cause::Stopped, 9, "SS"));
        assert!(is_over(Cause::Stopped, 0, "T"));
        assert!(!is_over(Cause::Stopped, 9, "T"));
        assert!(!is_over(Cause::Stopped, 9, "t"));
        assert!(!is_over(Cause::Stopped, 9, ""));
        assert!(is_over(Cause::Frozen, 0, "S") && !is_over(Cause::Frozen, 9, "S"));
        assert!(!is_over(Cause::CpuBound, 0, "R"));
    }
}
