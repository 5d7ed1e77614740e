//! One listener on the page: a card when it is in trouble, an expandable row while it holds
//! connections, a table row when it is idle. Unknown values are omitted.

use maud::{Markup, html};

use crate::diagnosis::NEARLY_FULL;
use crate::report::limit::{self, Cap};
use crate::report::runbook;
use crate::report::words::{count, rate, time};
use crate::report::{Accepts, Clients, Diagnosed, Listener};
use crate::snapshot::printable;

use super::chart;
use super::format::percent;
use super::text::with_code;

/// A card with everything about a listener in trouble.
pub(super) fn card(listener: &Listener) -> Markup {
    html! {
        article.card data-key=(listener.named()) {
            header {
                h3 { (title(listener)) }
                (place(listener))
            }
            div.body {
                div {
                    (queue(listener))
                    (began(listener))
                    @for (place, diagnosed) in listener.diagnoses.iter().enumerate() {
                        @if place == 0 { (diagnosis(diagnosed)) } @else { (further(diagnosed)) }
                    }
                }
                div { (figure(listener)) (facts(listener)) }
            }
        }
    }
}

/// A row that expands to everything about a listener that holds or held connections.
pub(super) fn row(listener: &Listener) -> Markup {
    html! {
        details data-key=(listener.named()) {
            summary { (head(listener)) }
            div.body {
                div { (queue(listener)) (facts(listener)) }
                (figure(listener))
            }
        }
    }
}

/// A row that does not expand, for listeners beyond the first hundred.
pub(super) fn short_row(listener: &Listener) -> Markup {
    html! { div.summary data-key=(listener.named()) { (head(listener)) } }
}

/// A table row of a listener that held no connection for five minutes.
pub(super) fn idle(listener: &Listener) -> Markup {
    let known = |number: Option<u64>| number.map(count);
    html! {
        tr data-key=(listener.named()) {
            th scope="row" { (title(listener)) }
            td { (place_of_owner(listener)) }
            td { bdi { (listener.netns) } }
            td { (known(listener.limit).unwrap_or_default()) }
            td.usual[listener.sockets == 1] { (listener.sockets) }
            td.usual[listener.overflows == Some(0)] { (known(listener.overflows).unwrap_or_default()) }
        }
    }
}

/// The process, if it is known, and the address.
fn title(listener: &Listener) -> Markup {
    let process = printable(&listener.owner.process);
    html! {
        @if !process.is_empty() { bdi.process { (process) } " " }
        bdi.address { (listener.endpoint()) }
    }
}

/// The unit, container or pod, if it is known.
fn place_of_owner(listener: &Listener) -> Markup {
    let place = printable(&listener.owner.place());
    html! { @if !place.is_empty() { bdi { (place) } } }
}

fn head(listener: &Listener) -> Markup {
    let Listener { length, limit, peak_length, .. } = listener;
    html! {
        span.who { (title(listener)) small { (place_of_owner(listener)) } }
        span.where { bdi { (listener.netns) } }
        (chart::spark(&listener.history, *limit))
        span.queue { b { (count(*length)) } @if let Some(limit) = limit { " of " (count(*limit)) } (bar(listener)) }
        span.peak { small { "peak" } " " (count(*peak_length)) }
        span.wait {
            @if let Some(diagnosed) = listener.diagnoses.first() { (badge(diagnosed)) }
            @else if let Some(oldest) = listener.oldest_seconds { small { "oldest" } " " (time(oldest)) }
        }
    }
}

fn queue(listener: &Listener) -> Markup {
    html! {
        p.queue {
            b { (count(listener.length)) } " waiting"
            @if let Some(limit) = listener.limit { ", limit " b { (count(limit)) } }
            ", peak " b { (count(listener.peak_length)) }
        }
        (bar(listener))
    }
}

fn figure(listener: &Listener) -> Markup {
    html! { @if !listener.history.is_empty() { (chart::figure(&listener.history, listener.limit)) } }
}

/// The change with which the trouble began, if known.
fn began(listener: &Listener) -> Markup {
    html! { @if let Some(began) = listener.began() { p.began { "Began with " (began.evidence) } } }
}

/// The numbers other than the queue itself.
fn facts(listener: &Listener) -> Markup {
    let useful_limit = listener.credible_useful_limit();
    let open = listener.open_connections.map(|open| {
        format!("{}, at most {}", count(open), count(listener.most_open_connections.max(open)))
    });
    let facts = [
        ("Oldest waits", listener.oldest_seconds.map(time)),
        ("Abandoned", listener.abandoned.map(count)),
        ("Accepts", listener.accepts.as_ref().map(Accepts::sentence)),
        ("Clients", listener.clients.as_ref().map(Clients::sentence)),
        ("Patience", listener.patience()),
        ("Open in the last hour", open),
        ("Refusals", listener.overflows.map(|overflows| refusals(listener, overflows))),
        ("Time full", listener.full_seconds.map(time)),
        ("Drain rate", listener.drain_rate.map(rate)),
        ("Useful limit", useful_limit.map(|limit| count(limit.round() as u64))),
        ("Limit set by", limit_set_by(listener).map(Into::into)),
        ("somaxconn", listener.settings.somaxconn.map(|number| number.to_string())),
        ("Sockets", Some(count(listener.sockets.into()))),
        ("SYN queue", listener.syn_queue_length.map(count)),
        ("Drops of any kind", listener.drops.map(count)),
    ];
    let known = facts.into_iter().filter_map(|(name, value)| Some((name, value?)));
    html! { dl { @for (name, value) in known { div { dt { (name) } dd { (value) } } } } }
}

/// `1,284, 43 per second within the last 30 s`.
fn refusals(listener: &Listener, overflows: u64) -> String {
    let recent = listener.recent.unwrap_or_default();
    let per_second = recent.refusal_rate().map_or(String::new(), |refused| {
        format!(", {} within the last {}", rate(refused), time(recent.watched_seconds))
    });
    format!("{}{per_second}", count(overflows))
}

fn limit_set_by(listener: &Listener) -> Option<&'static str> {
    match limit::binding(listener) {
        Cap::Somaxconn(_) => Some("somaxconn"),
        Cap::Backlog(_) => Some("listen backlog"),
        Cap::Unknown => None,
    }
}

/// The fullest ratio as text and as a bar.
fn bar(listener: &Listener) -> Markup {
    let Some(ratio) = listener.fullest_ratio else { return html! {} };
    let class = match ratio {
        ratio if ratio >= 1.0 => "bar full",
        ratio if ratio >= NEARLY_FULL => "bar high",
        _ => "bar",
    };
    html! {
        span.fullness {
            svg class=(class) viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true" {
                rect width=((ratio.min(1.0) * 100.0).ceil()) height="1" {}
            }
            small { (percent(ratio)) }
        }
    }
}

/// The first diagnosis of the listener.
fn diagnosis(diagnosed: &Diagnosed) -> Markup {
    html! {
        section.diagnosis {
            h4 { (badge(diagnosed)) small { " for " (time(diagnosed.for_seconds)) } }
            (explanation(diagnosed))
        }
    }
}

/// A further diagnosis, often with the same cause as the first.
fn further(diagnosed: &Diagnosed) -> Markup {
    html! {
        details.diagnosis {
            summary { (badge(diagnosed)) small { " for " (time(diagnosed.for_seconds)) } }
            (explanation(diagnosed))
        }
    }
}

/// Meaning, evidence and advice of a diagnosis.
fn explanation(diagnosed: &Diagnosed) -> Markup {
    let Diagnosed { diagnosis, meaning, evidence, advice, avoid, .. } = diagnosed;
    html! {
        p { strong { (with_code(meaning)) } " " (with_code(evidence)) }
        ol { @for step in advice { li { (with_code(step)) } } }
        ul { @for step in avoid { li { (with_code(step)) } } }
        // A diagnosis without steps refers to the diagnosis that it follows from.
        @if let Some(alert) = runbook::alert(*diagnosis).filter(|_| !advice.is_empty()) {
            p.runbook { a href={ "./runbooks/" (alert) } { "Runbook" } }
        }
    }
}

fn badge(diagnosed: &Diagnosed) -> Markup {
    html! { span.badge { (diagnosed.diagnosis.label()) } }
}

/// Namespace and owner of a card's listener.
fn place(listener: &Listener) -> Markup {
    html! {
        p.place {
            span { (listener.protocol.label()) } span { "netns " bdi { (listener.netns) } }
            @let names = names(listener);
            @if names.is_empty() && listener.owner.process.is_empty() { span { "owner not known" } }
            @for (what, name) in names { span { (what) " " bdi { (name) } } }
        }
    }
}

/// The known names of where the owner runs. They may contain any bytes.
fn names(listener: &Listener) -> Vec<(&'static str, String)> {
    let owner = &listener.owner;
    let pod = [&owner.k8s_namespace, &owner.k8s_pod, &owner.k8s_container];
    let pod = pod.into_iter().filter(|name| !name.is_empty()).map(|name| &**name);
    let names = [
        ("unit", owner.unit.to_string()),
        ("pod", pod.collect::<Vec<_>>().join("/")),
        ("container", owner.container_id.chars().take(12).collect()),
    ];
    let known = names.into_iter().filter(|(_, name)| !name.is_empty());
    known.map(|(what, name)| (what, printable(&name))).collect()
}
