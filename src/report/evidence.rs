//! The evidence of a diagnosis: one sentence with the numbers.

use crate::diagnosis::Diagnosis;
use crate::report::recovery::{self, ACCEPTED_WITHIN};
use crate::report::words::{count, many, rate, time};
use crate::report::{Listener, Recent};

/// Why listenq makes `diagnosis` of `listener`.
pub fn sentence(listener: &Listener, diagnosis: Diagnosis) -> String {
    let recent = listener.recent.unwrap_or_default();
    if let Some(text) = over(listener, diagnosis) {
        return text;
    }
    match diagnosis {
        Diagnosis::Imbalance => imbalance(listener, &recent),
        Diagnosis::Stalled => stalled(listener, &recent),
        Diagnosis::Abandoned => abandoned(listener),
        Diagnosis::SlowAccept => slow_accept(listener, &recent),
        Diagnosis::StandingQueue => standing_queue(listener, &recent),
        Diagnosis::ShortQueue => short_queue(listener, &recent),
        Diagnosis::StaleLimit => stale_limit(listener, &recent),
        Diagnosis::SynFlood => syn_flood(listener, &recent),
        Diagnosis::NotAccepting => {
            format!("It was never seen to accept a connection; {}.", waiting(listener))
        }
    }
}

/// `queue full: 129 of 128, oldest waiting 8.3 s`, `58 of 511 waiting, oldest 3.0 s`, `queue empty
/// (limit 128)`.
pub fn waiting(listener: &Listener) -> String {
    let length = count(listener.length);
    match (listener.length, listener.limit) {
        (0, Some(limit)) => format!("queue empty (limit {})", count(limit)),
        (0, None) => "queue empty".into(),
        (now, Some(limit)) if now > limit => {
            format!(
                "queue full: {length} of {}{}",
                count(limit),
                oldest(listener, "oldest waiting")
            )
        }
        (_, Some(limit)) => {
            format!("{length} of {} waiting{}", count(limit), oldest(listener, "oldest"))
        }
        (_, None) => format!("{length} waiting{}", oldest(listener, "oldest")),
    }
}

/// The sentence for a diagnosis whose trouble is over; `None` if the usual sentence is still true.
fn over(listener: &Listener, diagnosis: Diagnosis) -> Option<String> {
    if !recovery::is_over(listener, diagnosis) || diagnosis == Diagnosis::SlowAccept {
        return None;
    }
    let waiting = waiting(listener);
    Some(match diagnosis {
        Diagnosis::Imbalance => format!("It is over: no socket is full or stuck; {waiting}."),
        Diagnosis::Stalled if listener.length > 0 => {
            let within = ACCEPTED_WITHIN.as_secs();
            format!("It accepts again (within the last {within} s); {waiting}.")
        }
        _ => format!("It is over: {waiting}."),
    })
}

fn oldest(listener: &Listener, words: &str) -> String {
    listener.oldest_seconds.map_or_else(String::new, |oldest| format!(", {words} {}", time(oldest)))
}

/// `1,200 refusals within the last 30 s`. Each retry of a client counts as a refusal.
fn refusals(recent: &Recent) -> String {
    let window = time(recent.watched_seconds);
    format!("{} within the last {window}", many(recent.overflows, "refusal"))
}

fn imbalance(listener: &Listener, recent: &Recent) -> String {
    let Recent { sockets_brimming, sockets_stuck, sockets_below_half, .. } = *recent;
    let all = many(u64::from(listener.sockets), "socket");
    let bad = match (sockets_brimming, sockets_stuck) {
        (0, stuck) => format!("nothing is accepted from {stuck} of {all}"),
        (full, 0) => format!("{full} of {all} {} full", are(full)),
        (full, stuck) => {
            format!("{full} of {all} {} full, nothing is accepted from {stuck}", are(full))
        }
    };
    let rest = format!("{sockets_below_half} {} less than half full", are(sockets_below_half));
    capitalised(&format!("{bad}, {rest}; {}.", waiting(listener)))
}

fn stalled(listener: &Listener, recent: &Recent) -> String {
    let since = match recent.untaken_seconds {
        // Scans can be late, and one that cannot be compared with the scan before starts again.
        Some(untaken) => format!(" for at least {}", time(untaken)),
        None => String::new(),
    };
    format!("Nothing was accepted{since}; {}.", waiting(listener))
}

fn abandoned(listener: &Listener) -> String {
    let clients = many(listener.length, "waiting client");
    let left = count(listener.abandoned.unwrap_or(0));
    let patience = listener.patience().map_or(String::new(), |patience| format!("; {patience}"));
    format!("{left} of {clients} left{}{patience}.", oldest(listener, "oldest waiting"))
}

fn slow_accept(listener: &Listener, recent: &Recent) -> String {
    let window = time(recent.watched_seconds);
    let full = match time(recent.full_seconds) {
        full if full == window => format!("Full for the last {window}"),
        full => format!("Full for {full} of the last {window}"),
    };
    let refusals = match listener.overflows {
        Some(_) => format!(", {}", many(recent.overflows, "refusal")),
        None => String::new(),
    };
    let drained = match listener.drain_rate {
        Some(drain_rate) => format!("; {} accepted", rate(drain_rate)),
        None => String::new(),
    };
    format!("{full}{refusals}; {}{drained}.", waiting(listener))
}

fn standing_queue(listener: &Listener, recent: &Recent) -> String {
    let standing = time(recent.standing_seconds);
    format!("Every client waits: the queue was never empty for {standing}; {}.", waiting(listener))
}

fn short_queue(listener: &Listener, recent: &Recent) -> String {
    let full = time(recent.full_seconds);
    let text = format!("{}, full for only {full} of it", refusals(recent));
    if listener.cause_of(Diagnosis::ShortQueue).is_some() {
        return format!("{text}.");
    }
    let burst = match recent.largest_burst {
        Some(burst) => format!("a burst of about {}", count(burst)),
        None => "a burst".into(),
    };
    let limit = listener.limit.map_or_else(String::new, |limit| format!(" of {}", count(limit)));
    format!("{text}: {burst} exceeded the limit{limit}.")
}

fn stale_limit(listener: &Listener, recent: &Recent) -> String {
    let earlier = recent.earlier_somaxconn.map_or(listener.limit.unwrap_or(0), u64::from);
    let now = match listener.settings.somaxconn {
        Some(now) => format!(", and is {} now", count(now.unsigned_abs())),
        None => String::new(),
    };
    let pressure = match recent.overflows {
        0 => format!("the queue's peak was {}", count(listener.peak_length)),
        _ => refusals(recent),
    };
    let earlier = count(earlier);
    format!(
        "net.core.somaxconn was {earlier} when the server called listen(2){now}: the limit is still {earlier}; \
         {pressure}."
    )
}

fn syn_flood(listener: &Listener, recent: &Recent) -> String {
    let half_open = many(listener.syn_queue_length.unwrap_or(0), "half-open connection");
    let cap = match recent.half_open_cap {
        Some(cap) => format!(" (at most {})", count(cap)),
        None => String::new(),
    };
    let old = count(recent.old_half_open.unwrap_or(0));
    let cookies = match recent.cookies_sent {
        0 => String::new(),
        sent => {
            let (sent, received) = (many(sent, "SYN cookie"), count(recent.cookies_received));
            format!("; {sent} sent within the last 30 s, {received} returned")
        }
    };
    format!("{half_open}{cap}, {old} of them for 3 s or longer{cookies}; {}.", waiting(listener))
}

fn are(number: u32) -> &'static str {
    if number == 1 { "is" } else { "are" }
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::diagnosis::Evidence;
    use crate::report::Caps;

    fn full() -> Listener {
        Listener {
            sockets: 1,
            length: 129,
            limit: Some(128),
            peak_length: 129,
            oldest_seconds: Some(8.284),
            abandoned: Some(119),
            drain_rate: Some(9.8),
            overflows: Some(3_436),
            settings: Caps { somaxconn: Some(4_096), ..Caps::default() },
            ..Listener::default()
        }
    }

    fn said(diagnosis: Diagnosis, recent: Recent, listener: Listener) -> String {
        sentence(&Listener { recent: Some(recent), ..listener }, diagnosis)
    }

    fn window(full_seconds: f64, overflows: u64) -> Recent {
        Recent { watched_seconds: 30.0, full_seconds, overflows, ..Recent::default() }
    }

    #[test]
    fn each_diagnosis_gives_its_numbers() {
        let group = Recent {
            sockets_brimming: 1,
            sockets_stuck: 1,
            sockets_below_half: 3,
            ..Recent::default()
        };
        assert_eq!(
            said(Diagnosis::Imbalance, group, Listener { sockets: 4, limit: Some(512), ..full() }),
            "1 of 4 sockets is full, nothing is accepted from 1, 3 are less than half full; 129 of 512 waiting, \
             oldest 8.3 s."
        );
        let untaken = Recent { untaken_seconds: Some(14.2), ..Recent::default() };
        assert_eq!(
            said(Diagnosis::Stalled, untaken, full()),
            "Nothing was accepted for at least 14 s; queue full: 129 of 128, oldest waiting 8.3 s."
        );
        assert_eq!(
            said(Diagnosis::Abandoned, Recent::default(), full()),
            "119 of 129 waiting clients left, oldest waiting 8.3 s."
        );
        let measured =
            Listener { patience_seconds: Some(3.0), patience_clients: Some(114), ..full() };
        assert_eq!(
            said(Diagnosis::Abandoned, Recent::default(), measured),
            "119 of 129 waiting clients left, oldest waiting 8.3 s; clients leave after 3.0 s (median of 114)."
        );
        assert_eq!(
            said(Diagnosis::SlowAccept, window(24.1, 1_200), full()),
            "Full for 24 s of the last 30 s, 1,200 refusals; queue full: 129 of 128, oldest waiting 8.3 s; 9.8 per \
             second accepted."
        );
        let short = "412 refusals within the last 30 s, full for only 0.4 s of it: ";
        assert_eq!(
            said(Diagnosis::ShortQueue, window(0.4, 412), full()),
            format!("{short}a burst exceeded the limit of 128.")
        );
        let burst = Recent { largest_burst: Some(150), ..window(0.4, 412) };
        assert_eq!(
            said(Diagnosis::ShortQueue, burst, full()),
            format!("{short}a burst of about 150 exceeded the limit of 128.")
        );
    }

    #[test]
    fn a_queue_is_full_for_no_longer_than_it_is_watched() {
        let (watched, longer) = (Duration::from_millis(29_100), Duration::from_secs(30));
        let recent = Recent::new(&Evidence { watched, full: longer, ..Evidence::default() });
        let text = said(Diagnosis::SlowAccept, recent, full());
        assert!(text.starts_with("Full for the last 29 s, 0 refusals; "), "{text}");
    }

    #[test]
    fn trouble_that_is_over_is_reported_as_over() {
        let empty = || Listener { length: 0, ..full() };
        let untaken = Recent { untaken_seconds: Some(0.0), ..Recent::default() };
        for diagnosis in [
            Diagnosis::Stalled,
            Diagnosis::Abandoned,
            Diagnosis::StandingQueue,
            Diagnosis::NotAccepting,
        ] {
            let text = said(diagnosis, untaken, empty());
            assert_eq!(text, "It is over: queue empty (limit 128).", "{diagnosis:?}");
        }
        assert_eq!(
            said(Diagnosis::Stalled, untaken, Listener { length: 58, ..full() }),
            "It accepts again (within the last 2 s); 58 of 128 waiting, oldest 8.3 s."
        );
        assert_eq!(
            said(Diagnosis::Imbalance, untaken, Listener { length: 58, ..full() }),
            "It is over: no socket is full or stuck; 58 of 128 waiting, oldest 8.3 s."
        );
        let slow = said(Diagnosis::SlowAccept, window(24.0, 9), empty());
        assert!(
            slow.starts_with("Full for 24 s of the last 30 s, 9 refusals; queue empty"),
            "{slow}"
        );
    }

    #[test]
    fn limits_and_half_open_connections_have_their_numbers() {
        let stale = Recent { earlier_somaxconn: Some(128), ..window(0.0, 30) };
        let begin = "net.core.somaxconn was 128 when the server called listen(2), and is 4,096 now: the limit is \
                     still 128; ";
        let said_of = |recent| said(Diagnosis::StaleLimit, recent, full());
        assert_eq!(said_of(stale), format!("{begin}30 refusals within the last 30 s."));
        assert_eq!(
            said_of(Recent { overflows: 0, ..stale }),
            format!("{begin}the queue's peak was 129.")
        );
        let flood = Recent {
            old_half_open: Some(100),
            half_open_cap: Some(128),
            cookies_sent: 5_000,
            cookies_received: 10,
            ..Recent::default()
        };
        let calm = Listener { length: 0, syn_queue_length: Some(129), ..full() };
        assert_eq!(
            said(Diagnosis::SynFlood, flood, calm),
            "129 half-open connections (at most 128), 100 of them for 3 s or longer; 5,000 SYN cookies sent within \
             the last 30 s, 10 returned; queue empty (limit 128)."
        );
    }

    #[test]
    fn unknown_values_are_omitted() {
        let bare = Listener { length: 1, ..Listener::default() };
        assert_eq!(waiting(&bare), "1 waiting");
        assert_eq!(sentence(&bare, Diagnosis::Stalled), "Nothing was accepted; 1 waiting.");
        let unix = Listener { overflows: None, drain_rate: None, ..full() };
        assert_eq!(
            said(Diagnosis::SlowAccept, window(30.0, 0), unix),
            "Full for the last 30 s; queue full: 129 of 128, oldest waiting 8.3 s."
        );
    }

    #[test]
    fn full_is_one_more_than_the_limit() {
        let at = |length| waiting(&Listener { length, oldest_seconds: Some(0.2), ..full() });
        assert_eq!(at(128), "128 of 128 waiting, oldest 0.2 s");
        assert_eq!(at(129), "queue full: 129 of 128, oldest waiting 0.2 s");
        assert_eq!(at(0), "queue empty (limit 128)");
    }
}
