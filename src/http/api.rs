//! `/api/v1/listeners`: the report as JSON, for scripts.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::report::Report;
use crate::view::publish::Reader;

use super::render;

pub(super) async fn listeners(State(reader): State<Reader>) -> Response {
    let answer = render::answer("application/json", reader, |published| {
        serde_json::to_string(&Report::new(&published.view, published.age()))
    });
    ([(header::CACHE_CONTROL, "no-store")], answer.await).into_response()
}
