//! The runbooks of the alerts, as part of the program: where listenq answers, the way out of the trouble is at hand.

use std::fmt::Write;

use axum::Router;
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;

/// A list of runbooks, each by the name of its file in `deploy/runbooks`, which is that of its alert.
macro_rules! runbooks {
    ($($name:literal)*) => {
        &[$(Runbook {
            alert: $name,
            text: include_str!(concat!("../../deploy/runbooks/", $name, ".md")),
        }),*]
    };
}

/// What to do about an alert.
#[derive(Clone, Copy, Debug)]
pub struct Runbook {
    /// The name of the alert.
    pub alert: &'static str,
    /// Markdown that reads well as it is.
    pub text: &'static str,
}

/// A runbook for every alert: those that page, those that warn, those about listenq itself.
pub const RUNBOOKS: &[Runbook] = runbooks![
    "ListenQueueOverflowing"
    "ListenQueueStalled"
    "ListenQueueOverflowed"
    "ListenQueueSlowAccept"
    "ListenQueueAbandoned"
    "ListenQueueNearLimit"
    "ListenQueueImbalance"
    "ListenQueueSynFlood"
    "ListenQueueStaleLimit"
    "ListenQueueOverflowUnattributed"
    "ListenQueueExporterDown"
    "ListenQueueSampleStale"
    "ListenQueueSamplingSlow"
    "ListenQueueNamespacesInaccessible"
    "ListenQueueFeatureLost"
];

/// `/runbooks/` lists them, `/runbooks/ALERT` is one.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let list = list();
    Router::new()
        .route("/runbooks/", get(|| async { Html(list) }))
        .route("/runbooks/{alert}", get(one))
}

/// Plain text: every browser shows it, and wraps it on a phone; `text/markdown` they would save.
async fn one(Path(alert): Path<String>) -> Response {
    match RUNBOOKS.iter().find(|runbook| runbook.alert == alert) {
        Some(Runbook { text, .. }) => {
            ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], *text).into_response()
        }
        None => {
            (StatusCode::NOT_FOUND, "No such runbook; /runbooks/ lists them.\n").into_response()
        }
    }
}

/// The names are words of ours and need no escaping.
fn list() -> String {
    let mut page = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Runbooks of listenq</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\"></head>\n<body>\n<h1>Runbooks</h1>\n<ul>\n",
    );
    for Runbook { alert, .. } in RUNBOOKS {
        let _ = writeln!(page, "<li><a href=\"{alert}\">{alert}</a></li>");
    }
    page + "</ul>\n</body>\n</html>\n"
}
