//! Serves the runbooks of the alerts, which are part of the program.

use std::fmt::Write;

use axum::Router;
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;

/// A list of runbooks by alert name, which is also the file name in `deploy/runbooks`.
macro_rules! runbooks {
    ($($name:literal)*) => {
        &[$(Runbook {
            alert: $name,
            text: include_str!(concat!("../../deploy/runbooks/", $name, ".md")),
        }),*]
    };
}

/// The runbook of one alert.
#[derive(Clone, Copy, Debug)]
pub struct Runbook {
    pub alert: &'static str,
    /// The text in Markdown.
    pub text: &'static str,
}

/// The runbooks of all alerts: alerts that page, alerts that warn, alerts about listenq itself.
pub const RUNBOOKS: &[Runbook] = runbooks![
    "ListenQueueManyHosts"
    "ListenQueueOverflowing"
    "ListenQueueStalled"
    "ListenQueueClientsUnserved"
    "ListenQueueOverflowed"
    "ListenQueueSlowAccept"
    "ListenQueueStandingQueue"
    "ListenQueueAbandoned"
    "ListenQueueNearLimit"
    "ListenQueueImbalance"
    "ListenQueueSynFlood"
    "ListenQueueStaleLimit"
    "ListenQueueOverflowUnattributed"
    "ListenQueueExporterDown"
    "ListenQueueJobGone"
    "ListenQueueSampleStale"
    "ListenQueueSamplingSlow"
    "ListenQueueOverflowsUnexposed"
    "ListenQueueListenersOmitted"
    "ListenQueueNamespacesOmitted"
    "ListenQueueNamespacesInaccessible"
    "ListenQueueFeatureLost"
    "ListenQueueFeatureMissing"
    "ListenQueueWebConfigReloadFailed"
];

/// Serves the list at `/runbooks/` and one runbook at `/runbooks/ALERT`.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let list = list();
    Router::new()
        .route("/runbooks/", get(|| async { Html(list) }))
        .route("/runbooks/{alert}", get(one))
}

/// Sends plain text, which every browser shows; browsers save `text/markdown` to a file.
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

/// The list of runbooks. Names of alerts need no escaping.
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
