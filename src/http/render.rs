//! Answers that are made from the published view. Rendering is work, not waiting: it happens away from the thread
//! that answers everybody else.

use std::fmt::Display;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::task::spawn_blocking;

use crate::sampler::publish::{Published, Reader};

/// The answer that `render` makes of what is published now.
pub(super) async fn answer<E: Display + Send + 'static>(
    content_type: &'static str,
    reader: Reader,
    render: impl FnOnce(&Published) -> Result<String, E> + Send + 'static,
) -> Response {
    let text = spawn_blocking(move || render(&reader.read().unwrap_or_default()));
    match text.await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn Display) -> Response {
    tracing::error!(%error, "an answer could not be written");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}
