//! `/api/v1/listeners`: the report as JSON, for scripts.

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

use crate::view::publish::Reader;

use super::render::{Asked, RenderTurns, Renderer};

pub(super) fn router(turns: RenderTurns) -> Router<Reader> {
    let renderer = Renderer::new("application/json", turns);
    let listeners = |State(reader): State<Reader>, asked: Asked| async move {
        let answer = renderer.shared(asked, reader, move |published| {
            serde_json::to_string(&asked.report(published))
        });
        ([(header::CACHE_CONTROL, "no-store")], answer.await).into_response()
    };
    Router::new().route("/api/v1/listeners", get(listeners))
}
