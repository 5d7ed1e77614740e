//! The runbook of each diagnosis.

use crate::diagnosis::Diagnosis;

/// The directory of the runbooks in the repository.
const BASE: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/deploy/runbooks");

/// The alert whose runbook covers `diagnosis`; `None` for information.
pub const fn alert(diagnosis: Diagnosis) -> Option<&'static str> {
    match diagnosis {
        Diagnosis::Imbalance => Some("ListenQueueImbalance"),
        Diagnosis::Stalled => Some("ListenQueueStalled"),
        Diagnosis::Abandoned => Some("ListenQueueAbandoned"),
        Diagnosis::SlowAccept => Some("ListenQueueSlowAccept"),
        Diagnosis::StandingQueue => Some("ListenQueueStandingQueue"),
        Diagnosis::ShortQueue => Some("ListenQueueOverflowing"),
        Diagnosis::StaleLimit => Some("ListenQueueStaleLimit"),
        Diagnosis::SynFlood => Some("ListenQueueSynFlood"),
        Diagnosis::NotAccepting => None,
    }
}

/// The address of the runbook in the repository.
pub fn url(diagnosis: Diagnosis) -> Option<String> {
    Some(format!("{BASE}/{}.md", alert(diagnosis)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::runbooks::RUNBOOKS;

    #[test]
    fn every_trouble_has_a_runbook_that_exists() {
        for diagnosis in Diagnosis::ALL {
            let alert = alert(diagnosis);
            assert_eq!(alert.is_none(), diagnosis.is_information(), "{diagnosis:?}");
            let known = |alert| RUNBOOKS.iter().any(|runbook| runbook.alert == alert);
            assert!(alert.is_none_or(known), "{alert:?}");
        }
        let expected =
            "https://github.com/listenq/listenq/blob/main/deploy/runbooks/ListenQueueStalled.md";
        assert_eq!(url(Diagnosis::Stalled).as_deref(), Some(expected));
    }
}
