//! The live page at `/`: the report as HTML that is complete without JavaScript. The script
//! requests the same page repeatedly and updates the parts that differ.

mod chart;
mod filter;
mod format;
mod listener;
mod text;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use maud::{DOCTYPE, Markup, html};

use crate::report::words::{many, time};
use crate::report::{Listener, Report};
use crate::snapshot::escaped;
use crate::view::publish::{Published, Reader};

use super::asset::{ICON, SCRIPT, STYLE};
use super::render::{Asked, RenderTurns, Renderer};

use filter::Filter;

/// The number of listeners with a full entry, listeners in trouble first; each other listener gets
/// one row.
const IN_FULL: usize = 100;

/// The parts that all pages of this process share.
#[derive(Clone, Debug, Default)]
struct Page {
    /// The host name; empty when unknown.
    host: String,
    /// The link to the metrics. Links are relative, so that the page works behind a proxy, below
    /// any path.
    metrics: String,
}

/// The contents of one page.
#[derive(Debug)]
struct Content<'a> {
    report: &'a Report,
    /// Whether a namespace has a good sample of the last 10 s.
    is_ready: bool,
    filter: &'a Filter,
    listeners: Vec<&'a Listener>,
}

/// The page and its static files.
pub(super) fn router(telemetry_path: &str, turns: RenderTurns) -> Router<Reader> {
    let page = Arc::new(Page::new(telemetry_path));
    let renderer = Renderer::new("text/html; charset=utf-8", turns);
    let answer = |State(reader): State<Reader>, asked: Asked, RawQuery(query): RawQuery| async move {
        let answer = answer(page, &renderer, reader, asked, query).await;
        ([(header::CACHE_CONTROL, "no-store")], answer).into_response()
    };
    let mut router = Router::new().route("/", get(answer));
    for asset in [STYLE, SCRIPT, ICON] {
        router =
            router.route(asset.path, get(move |asked: Asked| async move { asset.answer(asked) }));
    }
    router
}

async fn answer(
    page: Arc<Page>,
    renderer: &Renderer,
    reader: Reader,
    asked: Asked,
    query: Option<String>,
) -> Response {
    let filter = Filter::from_query(&query.unwrap_or_default());
    let is_whole = filter.text.is_empty();
    let render = move |published: &Published| {
        let is_ready = published.view.is_ready(published.age());
        let report = asked.report(published);
        let content = Content::new(&report, is_ready, &filter);
        Ok::<_, Infallible>(page.html(&content).into_string())
    };
    match is_whole {
        true => renderer.shared(asked, reader, render).await,
        false => renderer.unshared(asked, reader, render).await,
    }
}

// === impl Page ===

impl Page {
    fn new(telemetry_path: &str) -> Self {
        let host = rustix::system::uname();
        Self { host: escaped(host.nodename().to_bytes()), metrics: format!(".{telemetry_path}") }
    }

    fn html(&self, content: &Content<'_>) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                (self.head(content))
                body {
                    (self.header(content.filter))
                    main #live {
                        (content.facts())
                        (content.listeners())
                    }
                    footer { "listenq " (crate::VERSION) " (" (crate::REVISION) ")" }
                }
            }
        }
    }

    fn head(&self, content: &Content<'_>) -> Markup {
        html! {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (content.title()) (self.host) " · listenq" }
                link rel="icon" href=(ICON.link());
                link rel="stylesheet" href=(STYLE.link());
                script src=(SCRIPT.link()) defer {}
            }
        }
    }

    fn header(&self, filter: &Filter) -> Markup {
        html! {
            header {
                h1 { "listenq" @if !self.host.is_empty() { " " bdi { (self.host) } } }
                nav aria-label="Other pages" {
                    a href=(self.metrics) { "Metrics" }
                    a href="./api/v1/listeners" { "JSON" }
                    a href="./-/healthy" { "Healthy" }
                    a href="./-/ready" { "Ready" }
                }
                form role="search" action="./" {
                    input type="search" name="filter" value=(filter.text) autocomplete="off" spellcheck="false"
                        aria-label="Filter" placeholder="address, port, process, unit, pod, diagnosis";
                    button { "Filter" }
                }
                p #status role="status" { noscript { "Reload for newer numbers." } }
                button #pause type="button" hidden { "Pause" }
            }
        }
    }
}

// === impl Content ===

impl<'a> Content<'a> {
    fn new(report: &'a Report, is_ready: bool, filter: &'a Filter) -> Self {
        let listeners = report.listeners.iter().filter(|listener| filter.passes(listener));
        Self { report, is_ready, filter, listeners: listeners.collect() }
    }

    /// The title with the number of listeners in trouble, visible in a browser tab.
    fn title(&self) -> String {
        let in_trouble = self.listeners.iter().filter(|listener| is_in_trouble(listener)).count();
        if in_trouble > 0 { format!("({in_trouble}) ") } else { String::new() }
    }

    /// The scope of the page: sampled and omitted namespaces and listeners.
    fn facts(&self) -> Markup {
        let Report { namespaces, listeners_omitted, .. } = self.report;
        let Report { namespaces_inaccessible, namespaces_waiting, .. } = self.report;
        html! {
            ul.facts {
                li { (many(self.report.listeners.len() as u64, "listener")) }
                li {
                    (many(*namespaces as u64, "network namespace"))
                    @if let Some(more @ 1..) = namespaces_inaccessible { ", " (more) " more could not be entered" }
                    @if let Some(more @ 1..) = namespaces_waiting { ", " (more) " more are not sampled yet" }
                }
                @if let Some(interval) = self.report.sample_interval_seconds {
                    li { "sampled every " (format::milliseconds(interval)) }
                }
                @if let Some(at) = self.report.sampled_at.and_then(format::time) {
                    li { "last at " time datetime=(at) { (at.replace('T', " ").replace('Z', " UTC")) } }
                }
                li { "assumed client patience " (time(self.report.client_patience_seconds)) }
                @if *listeners_omitted > 0 { li { (listeners_omitted) " more omitted because of --listener.max" } }
            }
            (self.warnings())
        }
    }

    fn warnings(&self) -> Markup {
        html! {
            @if !self.is_ready {
                p.warning { strong { "No good sample of the last 10 seconds." } " The log of listenq says why." }
            }
            @for missing in &self.report.missing_features {
                p.missing { "Without " code { (missing.feature) } ": " (missing.cost) "." }
            }
        }
    }

    fn listeners(&self) -> Markup {
        let is_idle = |listener: &Listener| listener.length == 0 && listener.history.is_empty();
        let (trouble, calm): (Vec<_>, Vec<_>) =
            self.listeners.iter().copied().partition(|l| is_in_trouble(l));
        let (idle, busy): (Vec<_>, Vec<_>) = calm.into_iter().partition(|l| is_idle(l));
        html! {
            @if !self.filter.is_empty() {
                p.matches { (self.listeners.len()) " of " (many(self.report.listeners.len() as u64, "listener")) " match" }
            }
            (self.in_trouble(&trouble))
            (self.busy(&busy, IN_FULL.saturating_sub(trouble.len())))
            (idle_table(&idle))
        }
    }

    fn in_trouble(&self, listeners: &[&Listener]) -> Markup {
        let (in_full, rest) = listeners.split_at(listeners.len().min(IN_FULL));
        html! {
            section.trouble {
                h2 { "In trouble " span { (listeners.len()) } }
                @for listener in in_full { (listener::card(listener)) }
                @if !rest.is_empty() { div.rows { @for listener in rest { (listener::short_row(listener)) } } }
                @if listeners.is_empty() && self.is_ready { p.none { (self.no_listener()) } }
            }
        }
    }

    fn no_listener(&self) -> &'static str {
        match (self.filter.is_empty(), self.listeners.is_empty()) {
            (true, _) => "No listener is in trouble.",
            (false, true) => "No listener matches.",
            (false, false) => "No listener that matches is in trouble.",
        }
    }

    fn busy(&self, listeners: &[&Listener], in_full: usize) -> Markup {
        let (in_full, rest) = listeners.split_at(listeners.len().min(in_full));
        html! {
            @if !listeners.is_empty() {
                section.busy {
                    h2 { "In use " span { (listeners.len()) } }
                    div.rows {
                        @for listener in in_full { (listener::row(listener)) }
                        @for listener in rest { (listener::short_row(listener)) }
                    }
                }
            }
        }
    }
}

fn idle_table(listeners: &[&Listener]) -> Markup {
    html! {
        @if !listeners.is_empty() {
            section.idle {
                h2 { "Idle " span { (listeners.len()) } }
                table {
                    thead { tr {
                        @for heading in ["Listener", "Unit, container or pod", "Namespace", "Limit", "Sockets", "Refusals"] {
                            th scope="col" { (heading) }
                        }
                    } }
                    tbody { @for listener in listeners { (listener::idle(listener)) } }
                }
            }
        }
    }
}

fn is_in_trouble(listener: &Listener) -> bool {
    !listener.diagnoses.is_empty()
}
