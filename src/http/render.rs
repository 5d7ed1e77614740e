//! Answers that are made from the published view. Rendering is work, not waiting: it happens away from the thread
//! that answers everybody else.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use crate::view::publish::{Published, Reader};

/// One text for all who wait for it at the same time: a crowd costs a rendering or two, and the memory of one text.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared {
    latest: Arc<Mutex<Option<Text>>>,
    waiting: Arc<AtomicUsize>,
}

/// A text, and when its making began.
#[derive(Debug)]
struct Text {
    begun: Instant,
    text: Arc<String>,
}

/// Somebody who waits. The last to leave takes the text along.
struct Waiting<'a>(&'a Shared);

/// A text that others are being sent, too.
struct Held(Arc<String>);

/// The answer that `render` makes of what is published now.
pub(super) async fn answer<E: Display + Send + 'static>(
    content_type: &'static str,
    reader: Reader,
    render: impl FnOnce(&Published) -> Result<String, E> + Send + 'static,
) -> Response {
    match made(move || render(&reader.read().unwrap_or_default())).await {
        Ok(text) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Err(failed) => failed,
    }
}

async fn made<T: Send + 'static, E: Display + Send + 'static>(
    make: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Response> {
    match spawn_blocking(make).await {
        Ok(Ok(made)) => Ok(made),
        Ok(Err(error)) => Err(failed(&error)),
        Err(error) => Err(failed(&error)),
    }
}

// === impl Shared ===

impl Shared {
    /// As [`answer`], of a text whose making began after this was asked for, whoever had it made.
    pub(super) async fn answer<E: Display + Send + 'static>(
        &self,
        content_type: &'static str,
        reader: Reader,
        render: impl FnOnce(&Published) -> Result<String, E> + Send + 'static,
    ) -> Response {
        let (asked, _waiting) = (Instant::now(), Waiting::new(self));
        let mut latest = Arc::clone(&self.latest).lock_owned().await;
        let text = match &*latest {
            Some(latest) if latest.begun >= asked => Ok(Arc::clone(&latest.text)),
            // The lock goes along: it ends with the work, not with a client that hangs up.
            _ => {
                made(move || {
                    let begun = Instant::now();
                    let text = Arc::new(render(&reader.read().unwrap_or_default())?);
                    *latest = Some(Text { begun, text: Arc::clone(&text) });
                    Ok::<_, E>(text)
                })
                .await
            }
        };
        match text {
            Ok(text) => {
                let text = Bytes::from_owner(Held(text));
                ([(header::CONTENT_TYPE, content_type)], text).into_response()
            }
            Err(failed) => failed,
        }
    }
}

// === impl Waiting ===

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.waiting.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::Relaxed) == 1
            && let Ok(mut latest) = self.0.latest.try_lock()
        {
            *latest = None;
        }
    }
}

// === impl Held ===

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

fn failed(error: &dyn Display) -> Response {
    tracing::error!(%error, "an answer could not be written");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}
