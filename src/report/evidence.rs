//! What a diagnosis rests on, in one sentence with the numbers.

use crate::diagnosis::Diagnosis;
use crate::report::words::{count, many, rate, time};
use crate::report::{Listener, Recent};

/// Why `diagnosis` is made of `listener`.
pub fn sentence(listener: &Listener, diagnosis: Diagnosis) -> String {
    let recent = listener.recent.unwrap_or_default();
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
            format!("{}; no connection was ever seen accepted.", waiting(listener))
        }
    }
}

/// `129 connections wait (limit 128), the first for 8.3 s`.
pub fn waiting(listener: &Listener) -> String {
    let verb = if listener.length == 1 { "waits" } else { "wait" };
    let limit = listener.limit.map(|limit| format!(" (limit {})", count(limit)));
    let oldest = listener.oldest_seconds.filter(|_| listener.length > 0);
    let oldest = oldest.map(|oldest| format!(", the first for {}", time(oldest)));
    let connections = many(listener.length, "connection");
    format!("{connections} {verb}{}{}", limit.unwrap_or_default(), oldest.unwrap_or_default())
}

fn imbalance(listener: &Listener, recent: &Recent) -> String {
    let Recent { sockets_brimming, sockets_stuck, sockets_below_half, .. } = *recent;
    let all = many(u64::from(listener.sockets), "socket");
    let bad = match (sockets_brimming, sockets_stuck) {
        (0, stuck) => format!("nothing is taken from {stuck} of {all}"),
        (full, 0) => format!("{full} of {all} {} full", are(full)),
        (full, stuck) => {
            format!("{full} of {all} {} full and nothing is taken from {stuck}", are(full))
        }
    };
    let text = format!(
        "{bad}, while {sockets_below_half} {} less than half full",
        are(sockets_below_half)
    );
    capitalised(&format!("{text}; {}.", waiting(listener)))
}

fn stalled(listener: &Listener, recent: &Recent) -> String {
    let since = match recent.untaken_seconds {
        Some(untaken) => format!(" for {}", time(untaken)),
        None => String::new(),
    };
    format!("Nothing was taken from the queue{since}; {}.", waiting(listener))
}

fn abandoned(listener: &Listener) -> String {
    let gone = listener.abandoned.unwrap_or(0);
    let oldest = match listener.oldest_seconds {
        Some(oldest) => format!("; the first has waited {}", time(oldest)),
        None => String::new(),
    };
    let all = many(listener.length, "waiting connection");
    format!("{} of {all} {} no client any more{oldest}.", count(gone), have(gone))
}

fn slow_accept(listener: &Listener, recent: &Recent) -> String {
    let window = time(recent.watched_seconds);
    let full = match time(recent.full_seconds) {
        full if full == window => format!("Full for the last {window}"),
        full => format!("Full for {full} of the last {window}"),
    };
    let overflows = match listener.overflows {
        Some(_) => format!(", with {} in that time", many(recent.overflows, "overflow")),
        None => String::new(),
    };
    let drained = match listener.drain_rate {
        Some(drain_rate) => format!("; it accepts {}", rate(drain_rate)),
        None => String::new(),
    };
    format!("{full}{overflows}; {}{drained}.", waiting(listener))
}

fn standing_queue(listener: &Listener, recent: &Recent) -> String {
    let standing = time(recent.standing_seconds);
    format!(
        "The queue was never empty for {standing}, and every client waits; {}.",
        waiting(listener)
    )
}

fn short_queue(listener: &Listener, recent: &Recent) -> String {
    let limit = match listener.limit {
        // No burst was it.
        _ if listener.cause_of(Diagnosis::ShortQueue).is_some() => String::new(),
        Some(limit) => format!(": a burst went over its limit of {}", count(limit)),
        None => ": a burst went over its limit".into(),
    };
    format!(
        "{} in the last {}, and full for only {} of it{limit}.",
        many(recent.overflows, "overflow"),
        time(recent.watched_seconds),
        time(recent.full_seconds),
    )
}

fn stale_limit(listener: &Listener, recent: &Recent) -> String {
    let earlier = recent.earlier_somaxconn.map_or(listener.limit.unwrap_or(0), u64::from);
    let now = match listener.settings.somaxconn {
        Some(now) => format!(", and is {} now", count(now.unsigned_abs())),
        None => String::new(),
    };
    let pressure = match recent.overflows {
        0 => format!("the queue was {} long at its longest", count(listener.peak_length)),
        overflows => {
            let window = time(recent.watched_seconds);
            format!("{} in the last {window}", many(overflows, "overflow"))
        }
    };
    let earlier = count(earlier);
    format!(
        "net.core.somaxconn was {earlier} when the limit was taken{now}: the limit is still {earlier}; {pressure}."
    )
}

fn syn_flood(listener: &Listener, recent: &Recent) -> String {
    let half_open = many(listener.syn_queue_length.unwrap_or(0), "half-open connection");
    let cap = match recent.half_open_cap {
        Some(cap) => format!(" (cap {})", count(cap)),
        None => String::new(),
    };
    let old = count(recent.old_half_open.unwrap_or(0));
    let cookies = match recent.cookies_sent {
        0 => String::new(),
        sent => {
            let (sent, received) = (many(sent, "SYN cookie"), count(recent.cookies_received));
            format!(", {sent} sent in the last 30 s and {received} returned")
        }
    };
    format!("{half_open}{cap}, {old} of them for 3 s or longer{cookies}; {}.", waiting(listener))
}

fn are(number: u32) -> &'static str {
    if number == 1 { "is" } else { "are" }
}

fn have(number: u64) -> &'static str {
    if number == 1 { "has" } else { "have" }
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
            said(Diagnosis::Imbalance, group, Listener { sockets: 4, ..full() }),
            "1 of 4 sockets is full and nothing is taken from 1, while 3 are less than half full; 129 connections \
             wait (limit 128), the first for 8.3 s."
        );
        let untaken = Recent { untaken_seconds: Some(14.2), ..Recent::default() };
        assert_eq!(
            said(Diagnosis::Stalled, untaken, full()),
            "Nothing was taken from the queue for 14 s; 129 connections wait (limit 128), the first for 8.3 s."
        );
        assert_eq!(
            said(Diagnosis::Abandoned, Recent::default(), full()),
            "119 of 129 waiting connections have no client any more; the first has waited 8.3 s."
        );
        assert_eq!(
            said(Diagnosis::SlowAccept, window(24.1, 1_200), full()),
            "Full for 24 s of the last 30 s, with 1,200 overflows in that time; 129 connections wait \
             (limit 128), the first for 8.3 s; it accepts 9.8 a second."
        );
        assert_eq!(
            said(Diagnosis::ShortQueue, window(0.4, 412), full()),
            "412 overflows in the last 30 s, and full for only 0.4 s of it: a burst went over its limit of 128."
        );
    }

    #[test]
    fn limits_and_half_open_connections_have_their_numbers() {
        let stale = Recent { earlier_somaxconn: Some(128), ..window(0.0, 30) };
        let begin = "net.core.somaxconn was 128 when the limit was taken, and is 4,096 now: the limit is still 128; ";
        let said_of = |recent| said(Diagnosis::StaleLimit, recent, full());
        assert_eq!(said_of(stale), format!("{begin}30 overflows in the last 30 s."));
        assert_eq!(
            said_of(Recent { overflows: 0, ..stale }),
            format!("{begin}the queue was 129 long at its longest.")
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
            "129 half-open connections (cap 128), 100 of them for 3 s or longer, 5,000 SYN cookies sent in \
             the last 30 s and 10 returned; 0 connections wait (limit 128)."
        );
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        let bare = Listener { length: 1, ..Listener::default() };
        assert_eq!(waiting(&bare), "1 connection waits");
        assert_eq!(
            sentence(&bare, Diagnosis::Stalled),
            "Nothing was taken from the queue; 1 connection waits."
        );
        let unix = Listener { overflows: None, drain_rate: None, ..full() };
        assert_eq!(
            said(Diagnosis::SlowAccept, window(30.0, 0), unix),
            "Full for the last 30 s; 129 connections wait (limit 128), the first for 8.3 s."
        );
    }
}
