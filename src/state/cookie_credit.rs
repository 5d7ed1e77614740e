//! Attributes the SYN cookies of a namespace to a listener. The kernel counts cookies per namespace
//! and sends them for a listener whose SYN queue is at its cap.

/// SYN cookies that the kernel sent and received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CookieCount {
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// The cookies that are not attributed yet.
#[derive(Clone, Debug, Default)]
pub(super) struct CookieCredit {
    /// Cookies since the last scan.
    fresh: CookieCount,
    /// Cookies between the last two scans.
    settled: CookieCount,
    /// The listeners whose SYN queue was at its cap in the last two scans; `None` before those
    /// scans.
    at_cap: [Option<Vec<usize>>; 2],
}

// === impl CookieCount ===

impl CookieCount {
    pub(super) fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.received += other.received;
    }
}

// === impl CookieCredit ===

impl CookieCredit {
    /// Adds growth of the kernel's counters.
    pub(super) fn counted(&mut self, cookies: CookieCount) {
        self.fresh.add(cookies);
    }

    /// Applies a scan that found these listeners `at_cap`. Returns the cookies between the two
    /// scans before it, and the listener that they were sent for: the only one at its cap in all
    /// three scans. If several were, each of them may have caused the cookies.
    ///
    /// A scan and the counters are read at different times, so the scans before and after the
    /// cookies are not enough.
    pub(super) fn scanned(&mut self, at_cap: Vec<usize>) -> Option<(usize, CookieCount)> {
        let due = std::mem::replace(&mut self.settled, std::mem::take(&mut self.fresh));
        let [before, last] = &mut self.at_cap;
        let earlier = std::mem::replace(before, last.replace(at_cap));
        let scans = [earlier.as_ref()?, before.as_ref()?, last.as_ref()?];
        let mut listeners = scans.into_iter().flatten();
        let first = *listeners.next()?;
        listeners.all(|listener| *listener == first).then_some((first, due))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cookies that each scan attributes, where 100 are sent between two scans.
    fn credited(scans: &[&[usize]]) -> Vec<Option<usize>> {
        let mut credit = CookieCredit::default();
        let scan = |at_cap: &&[usize]| {
            let all = CookieCount { sent: 100, received: 3 };
            credit.counted(all);
            let credited = credit.scanned(at_cap.to_vec());
            assert!(credited.is_none_or(|(_, cookies)| cookies == all));
            credited.map(|(listener, _)| listener)
        };
        scans.iter().map(scan).collect()
    }

    #[test]
    fn cookies_belong_to_the_only_listener_at_its_cap() {
        assert_eq!(credited(&[&[], &[], &[7], &[7]]), [None, None, Some(7), Some(7)]);
        assert_eq!(credited(&[&[], &[], &[], &[]]), [None; 4]);
    }

    #[test]
    fn two_listeners_at_their_caps_get_none() {
        // Listener 1 is at its cap because of a slow client, and then a flood of listener 7 begins.
        let scans: [&[usize]; 6] = [&[1], &[1], &[1], &[1, 7], &[1, 7], &[1, 7]];
        let [.., second_last, last] = credited(&scans)[..] else { unreachable!() };
        assert_eq!([second_last, last], [None, None]);
        // The flood of listener 7 ended, and its last cookies are counted late.
        assert_eq!(credited(&[&[7], &[7], &[1], &[1], &[1]])[2..4], [None, None]);
    }

    #[test]
    fn before_three_scans_nothing_is_known() {
        assert_eq!(credited(&[&[7], &[7], &[7]]), [None, None, Some(7)]);
    }
}
