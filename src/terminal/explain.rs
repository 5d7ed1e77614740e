//! `listenq explain`: what is wrong with a listener and why, what to do, and what to avoid.

use std::collections::HashSet;
use std::io::{self, Write};

use anyhow::Result;

use crate::diagnosis::Diagnosis;
use crate::report::because::OwnerState;
use crate::report::limit::{self, Cap};
use crate::report::words::{count, many, rate, time};
use crate::report::{
    Accepts, Clients, DIAGNOSIS_TAKES, Diagnosed, Listener, Recent, advice, evidence, recovery,
};
use crate::terminal::source::Known;
use crate::terminal::{owner, target, title, write_filled};

/// The listeners that match `target`; without a target, the listener most in trouble, or one
/// watched too briefly for a diagnosis.
pub fn chosen<'a>(known: &'a Known, target: Option<&str>) -> Result<Vec<&'a Listener>> {
    if let Some(target) = target {
        return target::chosen(known, target, false);
    }
    let listeners = &known.report.listeners;
    let in_trouble = listeners.first().filter(|first| !first.diagnoses.is_empty());
    let unclear = || listeners.iter().find(|one| one.watched_too_briefly().is_some());
    Ok(in_trouble.or_else(unclear).into_iter().collect())
}

/// Writes the listeners as JSON objects, one after another.
pub fn write_json(listeners: &[&Listener], mut out: impl Write) -> io::Result<()> {
    for listener in listeners {
        serde_json::to_writer_pretty(&mut out, listener)?;
        writeln!(out)?;
    }
    Ok(())
}

/// Writes the listeners in plain English.
pub fn write_text(known: &Known, chosen: &[&Listener], mut out: impl Write) -> io::Result<()> {
    writeln!(out, "{}", known.origin)?;
    if let Some(blindness) = known.blindness() {
        write_filled(&mut out, "", blindness)?;
    }
    if chosen.is_empty() {
        writeln!(out)?;
        return match known.nothing() {
            Some(why) => writeln!(out, "{why}"),
            None => write_calm(known, &mut out),
        };
    }
    for listener in chosen {
        writeln!(out)?;
        write_listener(listener, &mut out)?;
    }
    Ok(())
}

fn write_calm(known: &Known, out: &mut impl Write) -> io::Result<()> {
    let report = &known.report;
    let all = many(report.listeners.len() as u64, "listener");
    match known.is_blind() {
        true => writeln!(out, "Unknown: {all}, but trouble cannot be detected.")?,
        false => writeln!(out, "No trouble found: {all}.")?,
    }
    match report.listeners.iter().find(|listener| listener.length > 0) {
        Some(fullest) => {
            let text =
                format!("The fullest queue is {}: {}.", title(fullest), evidence::waiting(fullest));
            write_filled(out, "", &text)
        }
        None => writeln!(out, "No connection waits to be accepted."),
    }
}

fn write_listener(listener: &Listener, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}: {}", title(listener), verdict(listener))?;
    let owner = owner(&listener.owner).unwrap_or("owner not known".into());
    writeln!(out, "{owner}\n")?;
    for (label, fact) in facts(listener) {
        write_filled(out, &format!("  {label:<10} "), &fact)?;
    }
    let mut said = HashSet::new();
    for diagnosed in &listener.diagnoses {
        let is_over = recovery::is_over(listener, diagnosed.diagnosis);
        write_diagnosed(diagnosed, is_over, &mut said, out)?;
    }
    let last = match (listener.diagnoses.is_empty(), is_over(listener)) {
        (true, _) => looked_at(listener),
        (false, false) => Some(advice::cost_of_full(listener).into()),
        (false, true) => None,
    };
    let Some(last) = last else { return Ok(()) };
    writeln!(out)?;
    write_filled(out, "", &last)
}

/// The values that listenq compared, for a listener without a finding.
fn looked_at(listener: &Listener) -> Option<String> {
    let recent = listener.recent?;
    let Recent { watched_seconds, full_seconds, overflows, untaken_seconds, .. } = recent;
    let waits = match (listener.length, untaken_seconds) {
        (0, _) => "no client waits",
        (_, Some(_)) => "the waiting clients were scanned",
        (_, None) => "the waiting clients were not scanned",
    };
    Some(format!(
        "In the last {}: full for {}, {}, peak {}; {waits}.",
        time(watched_seconds),
        time(full_seconds),
        many(overflows, "refusal"),
        count(listener.peak_length)
    ))
}

fn verdict(listener: &Listener) -> String {
    let words = listener.words(", ");
    match (words.is_empty(), listener.watched_too_briefly()) {
        (false, _) if is_over(listener) => words + &listener.because() + " (over now)",
        (false, _) => words + &listener.because(),
        (true, None) => "no trouble found".into(),
        (true, Some(0)) => format!("no diagnosis yet: it needs {DIAGNOSIS_TAKES} s of samples"),
        (true, Some(watched)) => {
            format!("no diagnosis yet: watched for {watched} s, it needs {DIAGNOSIS_TAKES} s")
        }
    }
}

/// Whether the trouble of every diagnosis is over.
fn is_over(listener: &Listener) -> bool {
    let mut diagnoses = listener.diagnoses.iter().map(|held| held.diagnosis);
    diagnoses.all(|diagnosis| recovery::is_over(listener, diagnosis))
}

/// Writes a diagnosis; a step shared by several diagnoses is written once.
fn write_diagnosed<'a>(
    diagnosed: &'a Diagnosed,
    is_over: bool,
    said: &mut HashSet<&'a str>,
    out: &mut impl Write,
) -> io::Result<()> {
    let Diagnosed { diagnosis, for_seconds, meaning, evidence, advice, avoid, runbook } = diagnosed;
    writeln!(out)?;
    let over = if is_over { ", over now" } else { "" };
    let label = format!("{} for {}{over}: ", diagnosis.label(), time(*for_seconds));
    write_filled(out, "", &format!("{label}{meaning}"))?;
    write_filled(out, "  ", evidence)?;
    let steps: Vec<&str> =
        advice.iter().map(String::as_str).filter(|step| said.insert(step)).collect();
    if !steps.is_empty() {
        writeln!(out, "  What to do:")?;
    }
    for (place, step) in steps.iter().enumerate() {
        write_filled(out, &format!("  {}. ", place + 1), step)?;
    }
    let avoid: Vec<&str> =
        avoid.iter().map(String::as_str).filter(|text| said.insert(text)).collect();
    if !avoid.is_empty() {
        writeln!(out, "  What not to do:")?;
    }
    avoid.iter().try_for_each(|text| write_filled(out, "  - ", text))?;
    // A diagnosis without steps refers to the diagnosis that it follows from.
    match runbook {
        Some(runbook) if !advice.is_empty() => writeln!(out, "  Runbook: {runbook}"),
        _ => Ok(()),
    }
}

/// The numbers with their labels.
fn facts(listener: &Listener) -> Vec<(&'static str, String)> {
    let mut facts = vec![("queue", queue(listener)), ("limit", limit_text(listener))];
    facts.extend(listener.began().map(|began| ("began with", began.evidence.clone())));
    facts.extend(accepts(listener).map(|accepts| ("accepts", accepts)));
    facts.extend(clients(listener).map(|clients| ("clients", clients)));
    facts.extend(listener.patience().map(|patience| ("patience", patience)));
    facts.extend(open_connections(listener).map(|open| ("open", open)));
    if let Some(overflows) = listener.overflows {
        facts.push(("refusals", refusals(listener, overflows)));
    }
    facts.extend(listener.owner_state.as_ref().map(|state| ("process", process(listener, state))));
    if let Some(waits_for) = listener.owner_state.as_ref().and_then(|state| state.waits_for.clone())
    {
        facts.push(("waits for", waits_for));
    }
    if let Some(half_open @ 1..) = listener.syn_queue_length {
        facts.push(("SYN queue", many(half_open, "half-open connection")));
    }
    if listener.sockets > 1 {
        facts.push(("sockets", format!("{} (SO_REUSEPORT)", count(listener.sockets.into()))));
    }
    facts
}

/// `950 per second, mean wait 25 ms; 9.8 per second while the queue is full`.
fn accepts(listener: &Listener) -> Option<String> {
    let drained = listener.drain_rate;
    let drained = drained.map(|drained| format!("{} while the queue is full", rate(drained)));
    let parts = [listener.accepts.as_ref().map(Accepts::sentence), drained];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// The clients of the last scan, unless all have been accepted since.
fn clients(listener: &Listener) -> Option<String> {
    let is_used = listener.length > 0 || listener.syn_queue_length.is_some_and(|open| open > 0);
    listener.clients.as_ref().filter(|_| is_used).map(Clients::sentence)
}

fn open_connections(listener: &Listener) -> Option<String> {
    let open = listener.open_connections?;
    let most = count(listener.most_open_connections.max(open));
    Some(format!("{} accepted, at most {most} within the last hour", count(open)))
}

/// The state of the accepting process at the last read.
fn process(listener: &Listener, state: &OwnerState) -> String {
    let pid = state.accepting_pid.or(listener.owner.pid);
    let pid = pid.map_or(String::new(), |pid| format!("PID {pid}, "));
    format!("{pid}{}", state.looked_at())
}

/// Writes the refusals; each retry of a client counts.
fn refusals(listener: &Listener, overflows: u64) -> String {
    let recent = match listener.recent {
        Some(recent) if recent.overflows > 0 => {
            let per_second = recent
                .refusal_rate()
                .map_or(String::new(), |refused| format!(" ({})", rate(refused)));
            format!(
                "{} within the last {}{per_second}, ",
                count(recent.overflows),
                time(recent.watched_seconds)
            )
        }
        _ => String::new(),
    };
    let retries = if overflows > 0 { " (each retry of a client counts)" } else { "" };
    format!("{recent}{} in all{retries}", count(overflows))
}

fn queue(listener: &Listener) -> String {
    let abandoned = match listener.abandoned {
        Some(abandoned @ 1..) => format!(", {} abandoned", count(abandoned)),
        _ => String::new(),
    };
    let waiting = evidence::waiting(listener);
    let waiting = waiting.strip_prefix("queue ").unwrap_or(&waiting);
    let empty = if listener.length == 0 { "empty" } else { waiting };
    format!("{empty}{abandoned}; peak {}", count(listener.peak_length))
}

fn limit_text(listener: &Listener) -> String {
    let Some(limit) = listener.limit else { return "not known".into() };
    let limit = match (listener.sockets, limit::per_socket(listener)) {
        (2.., Some(each)) if each * u64::from(listener.sockets) == limit => {
            format!("{} each, {} in all", count(each), count(limit))
        }
        (2.., _) => format!("{} in all", count(limit)),
        _ => count(limit),
    };
    let somaxconn = listener.settings.somaxconn.map_or(0, i64::unsigned_abs);
    let why = match (advice::limit_zero(listener), limit::binding(listener)) {
        (Some(zero), _) => format!(": {zero}"),
        (None, Cap::Somaxconn(limit)) if limit == somaxconn => {
            " = net.core.somaxconn (the server may have asked for more)".into()
        }
        (None, Cap::Somaxconn(_)) => format!(
            ", from before net.core.somaxconn became {}: a restart lowers it",
            count(somaxconn)
        ),
        (None, Cap::Backlog(_)) => {
            format!(", the server's own backlog; net.core.somaxconn allows {}", count(somaxconn))
        }
        (None, Cap::Unknown) => String::new(),
    };
    format!("{limit}{why}{}", useful_limit(listener).unwrap_or_default())
}

/// The useful limit; `None` beside advice not to raise the limit, if the useful limit is higher.
fn useful_limit(listener: &Listener) -> Option<String> {
    let useful = listener.credible_useful_limit()? as u64;
    let is_higher = listener.limit.is_some_and(|limit| useful > limit);
    let is_short = |held: &Diagnosed| held.diagnosis == Diagnosis::ShortQueue;
    if is_higher && !listener.diagnoses.iter().all(is_short) {
        return None;
    }
    let why = match listener.assumed_patience() {
        Some(patience) => format!(" if clients wait for {} (--client-patience)", time(patience)),
        None => ", clients further back leave first".into(),
    };
    Some(format!("; useful limit {}{why}", count(useful)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onset::Beginning;
    use crate::report::{Began, Caps, Recent, Report};
    use crate::snapshot::owner::Owner;
    use crate::view::Protocol;

    fn php() -> Listener {
        let mut php = Listener {
            netns: "host".into(),
            protocol: Protocol::Tcp,
            address: "127.0.0.1".into(),
            port: "9000".into(),
            owner: Owner {
                process: "php-fpm8.2".into(),
                unit: "php8.2-fpm.service".into(),
                ..Owner::default()
            },
            sockets: 1,
            length: 129,
            limit: Some(128),
            fullest_ratio: Some(1.0),
            peak_length: 129,
            oldest_seconds: Some(8.284),
            abandoned: Some(119),
            drain_rate: Some(4.0),
            useful_limit: Some(240.0),
            overflows: Some(3_436),
            settings: Caps { somaxconn: Some(128), ..Caps::default() },
            recent: Some(Recent {
                watched_seconds: 30.0,
                full_seconds: 24.1,
                overflows: 1_200,
                ..Recent::default()
            }),
            ..Listener::default()
        };
        for diagnosis in [Diagnosis::SlowAccept, Diagnosis::Abandoned] {
            php.diagnoses.push(Diagnosed::new(&php, diagnosis, 125.0));
        }
        php
    }

    fn idle() -> Listener {
        let settings = Caps { somaxconn: Some(4_096), ..Caps::default() };
        Listener {
            address: "::".into(),
            port: "443".into(),
            length: 0,
            limit: Some(511),
            fullest_ratio: Some(0.0),
            peak_length: 3,
            overflows: Some(0),
            settings,
            diagnoses: Vec::new(),
            recent: None,
            oldest_seconds: Some(0.0),
            abandoned: Some(0),
            drain_rate: None,
            useful_limit: None,
            owner: Owner::default(),
            ..php()
        }
    }

    fn known(listeners: Vec<Listener>) -> Known {
        let report = Report { listeners, ..Report::default() };
        Known { report, origin: "watched for 12s".into(), ..Known::default() }
    }

    fn text(listeners: Vec<Listener>, target: Option<&str>) -> String {
        let known = known(listeners);
        let chosen = chosen(&known, target).unwrap();
        let mut out = Vec::new();
        write_text(&known, &chosen, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_listener_most_in_trouble_is_explained() {
        let expected = "\
watched for 12s

127.0.0.1:9000 (tcp, netns host): slow_accept, abandoned
php-fpm8.2 (php8.2-fpm.service)

  queue      full: 129 of 128, oldest waiting 8.3 s, 119 abandoned; peak 129
  limit      128 = net.core.somaxconn (the server may have asked for more)
  accepts    4.0 per second while the queue is full
  refusals   1,200 within the last 30 s (40 per second), 3,436 in all (each retry of a client
             counts)

slow_accept for 2 min: Connections come faster than the server accepts them.
  Full for 24 s of the last 30 s, 1,200 refusals; queue full: 129 of 128, oldest waiting 8.3 s; 4.0
  per second accepted.
  What to do:
  1. Let php-fpm8.2 accept more: `pm.max_children` in the file of the pool (pool.d/*.conf).
  2. See what keeps its workers busy: `ss -tlnp 'sport = :9000'` names the process (PID), `strace -f
     -p PID` what it waits for.
  3. Shed load in front of the server until it keeps up: set a rate limit, or add machines.
  What not to do:
  - Do not raise the backlog: the server accepts 4.0 per second, so a full queue of 128 already
    means a wait of 32 s; a longer queue makes clients wait longer.
  Runbook: https://github.com/listenq/listenq/blob/main/deploy/runbooks/ListenQueueSlowAccept.md

abandoned for 2 min: This follows from slow_accept: see the advice for slow_accept.
  119 of 129 waiting clients left, oldest waiting 8.3 s.

A client that meets the full queue gets no answer and retries after 1, 3 and 7 s (from Linux 6.5 on
every second at first): it is slow, or times out.
";
        assert_eq!(text(vec![php(), idle()], None), expected);
    }

    #[test]
    fn known_facts_about_clients_and_connections_are_printed() {
        let began = Began {
            with: Beginning::SlowerServer,
            seconds_ago: 40.0,
            before: 950.0,
            after: 12.0,
            evidence: "a slower server 40 s ago.".into(),
        };
        let accepts = Accepts {
            per_second: 950.0,
            mean_wait_seconds: Some(0.025),
            began: Some(began),
            ..Accepts::default()
        };
        let listener = Listener {
            accepts: Some(accepts),
            patience_seconds: Some(3.0),
            patience_clients: Some(114),
            open_connections: Some(7),
            most_open_connections: 1_200,
            ..php()
        };
        let said = text(vec![listener.clone()], None);
        for line in [
            " began with a slower server 40 s ago. ",
            " accepts 950 per second, mean wait 25 ms; 4.0 per second while the queue is full ",
            " patience clients leave after 3.0 s (median of 114) ",
            " open 7 accepted, at most 1,200 within the last hour ",
        ] {
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(said.contains(line), "no {line:?} in {said}");
        }
        let calm = Listener { diagnoses: Vec::new(), ..listener };
        assert!(!text(vec![calm], Some("9000")).contains("began with"));
    }

    #[test]
    fn a_listener_without_trouble_has_its_numbers() {
        let expected = "\
watched for 12s

[::]:443 (tcp, netns host): no trouble found
owner not known

  queue      empty; peak 3
  limit      511, the server's own backlog; net.core.somaxconn allows 4,096
  refusals   0 in all
";
        assert_eq!(text(vec![php(), idle()], Some("443")), expected);
    }

    #[test]
    fn a_briefly_watched_queue_has_no_diagnosis() {
        let young = |recent| Listener { diagnoses: Vec::new(), recent, ..php() };
        let recent = Recent { watched_seconds: 3.7, ..Recent::default() };
        for (listener, words) in [
            (young(Some(recent)), "no diagnosis yet: watched for 3 s, it needs 10 s"),
            (young(None), "no diagnosis yet: it needs 10 s of samples"),
            (young(php().recent), "no trouble found"),
            (Listener { overflows: Some(9), ..idle() }, "no trouble found"),
        ] {
            assert_eq!(verdict(&listener), words);
        }
        let text = text(vec![idle(), young(Some(recent))], None);
        assert!(text.contains("netns host): no diagnosis yet: watched"), "{text}");
    }

    #[test]
    fn without_a_finding_the_text_lists_what_was_compared() {
        let recent =
            Recent { watched_seconds: 30.0, untaken_seconds: Some(0.0), ..Recent::default() };
        let looked = |length, recent| looked_at(&Listener { length, recent, ..idle() });
        let begin = "In the last 30 s: full for 0 s, 0 refusals, peak 3; ";
        let unscanned = Some(Recent { untaken_seconds: None, ..recent });
        for (length, recent, end) in [
            (0, unscanned, "no client waits."),
            (2, Some(recent), "the waiting clients were scanned."),
            (2, unscanned, "the waiting clients were not scanned."),
        ] {
            assert_eq!(looked(length, recent).unwrap(), format!("{begin}{end}"));
        }
        assert_eq!(looked(0, None), None);
    }

    #[test]
    fn a_limit_of_0_set_by_the_server_is_explained() {
        let owner = Owner { process: "memcached".into(), ..Owner::default() };
        let memcached = Listener { owner, limit: Some(0), ..idle() };
        let text = limit_text(&memcached);
        assert!(
            text.starts_with(
                "0: memcached set it to 0 because it has reached its connection limit"
            ),
            "{text}"
        );
    }

    #[test]
    fn the_limit_of_a_group_is_given_for_each_and_for_all() {
        let group = Listener { sockets: 8, limit: Some(128), ..idle() };
        assert!(
            limit_text(&group).starts_with("16 each, 128 in all, the server's"),
            "{}",
            limit_text(&group)
        );
    }

    #[test]
    fn the_useful_limit_names_its_patience() {
        let calm = Listener { diagnoses: Vec::new(), ..php() };
        let useful = |listener: &Listener| {
            limit_text(listener).split_once("; useful limit ").map(|(_, text)| text.to_owned())
        };
        let assumed = useful(&calm);
        assert_eq!(assumed.as_deref(), Some("240 if clients wait for 60 s (--client-patience)"));
        let measured = Listener { patience_seconds: Some(60.0), ..calm.clone() };
        // Clients that were refused spent a part of their patience half open.
        assert_eq!(useful(&measured), None);
        let without_refusals = Listener { recent: None, ..measured };
        let text = useful(&without_refusals);
        assert_eq!(text.as_deref(), Some("240, clients further back leave first"));
        // "Do not raise the backlog" and a higher useful limit contradict each other.
        let mut slow = calm;
        slow.diagnoses = vec![Diagnosed::new(&slow, Diagnosis::SlowAccept, 10.0)];
        assert_eq!(useful(&slow), None);
        let text = useful(&Listener { limit: Some(511), ..slow });
        assert_eq!(text.as_deref(), Some("240 if clients wait for 60 s (--client-patience)"));
    }

    #[test]
    fn trouble_that_is_over_is_reported_as_over() {
        let before = Clients { connections: 8, addresses: Some(0), ..Clients::default() };
        let mut calm = Listener { length: 0, clients: Some(before), ..php() };
        calm.diagnoses = vec![Diagnosed::new(&calm, Diagnosis::Stalled, 14.2)];
        let text = text(vec![calm], Some("9000"));
        assert!(text.contains("(tcp, netns host): stalled (over now)\n"), "{text}");
        let said = "stalled for 14 s, over now: The server accepted nothing for a time. Its queue moves again.\n  \
                    It is over: queue empty (limit 128).\n  What to do:\n  1. Nothing to do now: ";
        assert!(text.contains(said), "{text}");
        for untrue in ["estart", "full queue", "clients "] {
            assert!(!text.contains(untrue), "no {untrue:?} in {text}");
        }
    }

    #[test]
    fn without_a_listener_one_line_reports_it() {
        assert_eq!(text(vec![], None), "watched for 12s\n\nno listener here\n");
        let error = chosen(&known(vec![]), Some("80")).unwrap_err().to_string();
        assert_eq!(error, "no listener here (watched for 12s)");
    }

    #[test]
    fn without_trouble_one_line_reports_it() {
        let text = text(vec![idle(), idle()], None);
        assert!(text.contains("\nNo trouble found: 2 listeners.\nNo connection"), "{text}");
    }

    #[test]
    fn an_unknown_target_is_reported_with_similar_listeners() {
        let known = known(vec![php(), idle()]);
        let error = |target| chosen(&known, Some(target)).unwrap_err().to_string();
        assert_eq!(
            error("10.0.0.1:9000"),
            "no listener matches \"10.0.0.1:9000\"; similar: host/tcp/127.0.0.1:9000 (watched for 12s)"
        );
        assert_eq!(
            error("1"),
            "no listener matches \"1\"; similar: host/tcp/127.0.0.1:9000 (watched for 12s)"
        );
        assert_eq!(
            error("10.0.0.1:443"),
            "no listener matches \"10.0.0.1:443\"; similar: host/tcp/[::]:443 (any address) (watched for 12s)"
        );
        assert_eq!(
            error("25"),
            "no listener matches \"25\"; listenq list shows all 2 (watched for 12s)"
        );
    }

    #[test]
    fn json_contains_the_whole_listener() {
        let php = php();
        let mut out = Vec::new();
        write_json(&[&php], &mut out).unwrap();
        assert_eq!(serde_json::from_slice::<Listener>(&out).unwrap(), php);
    }
}
