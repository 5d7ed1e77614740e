//! Renders answers from the published view, off the serving thread. All clients that request at the
//! same time receive one copy: the requests of many clients cost one or two renderings, and the
//! memory of one answer.

use std::convert::Infallible;
use std::fmt::Display;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use crate::report::Report;
use crate::view::publish::{Published, Reader};
use crate::web_config::Authenticated;
use crate::web_config::client_address::ClientAddress;
use crate::web_config::fair_turns::{FairTurn, FairTurns};

use super::weights::alternatives;

/// Maximum time from the start of a rendering during which the answer may be sent to further
/// clients, while the view is unchanged.
const SHARED_FOR: Duration = Duration::from_millis(100);
/// Renderings that may wait; further requests of the client address with the most waiting requests
/// get 503.
const MOST_WAITING: usize = 32;

/// The encoding of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
}

/// The client, and the encoding it prefers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    client: ClientAddress,
    encoding: Encoding,
    /// Whether the user has given a password.
    is_authenticated: bool,
}

/// Renders answers of one kind.
#[derive(Clone, Debug)]
pub(super) struct Renderer {
    content_type: &'static str,
    turns: RenderTurns,
    /// The latest answer for users with and without a password, in each encoding, while it is being
    /// sent to any client.
    latest: [[Arc<Mutex<Weak<Rendered>>>; 2]; 2],
}

/// Allows one rendering at a time. Answers that are costly and less important than metrics share
/// one lock.
#[derive(Clone, Debug)]
pub(super) struct RenderTurns(FairTurns);

/// A rendered answer.
#[derive(Debug)]
pub(super) struct Rendered {
    /// The id; a later answer has a larger id.
    pub(super) id: u64,
    /// When the view was published; `None` for an answer that is not shared.
    of: Option<Instant>,
    begun: Instant,
    content: Box<[u8]>,
}

/// The content of a rendered answer that may be sent to several clients at the same time.
struct SharedContent(Arc<Rendered>);

// === impl Asked ===

impl Asked {
    pub(super) fn encoding(self) -> Encoding {
        self.encoding
    }

    /// The report that this user may see.
    pub(super) fn report(self, published: &Published) -> Report {
        match self.is_authenticated {
            true => Report::with_clients(&published.view, published.age()),
            false => Report::new(&published.view, published.age()),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Asked {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let client = parts.extensions.get().copied().unwrap_or_default();
        let is_authenticated = parts.extensions.get::<Authenticated>().is_some();
        Ok(Self { client, encoding: Encoding::preferred(&parts.headers), is_authenticated })
    }
}

// === impl Encoding ===

impl Encoding {
    /// Returns gzip if the client accepts gzip and does not prefer the plain answer.
    pub(super) fn preferred(headers: &HeaderMap) -> Self {
        let (mut gzip, mut identity) = (None, None);
        for coding in alternatives(headers, &header::ACCEPT_ENCODING) {
            let weight = Some(coding.weight);
            if coding.is_any_of(&["gzip", "x-gzip"]) {
                gzip = weight;
            } else if coding.is_any_of(&["identity"]) {
                identity = weight;
            } else if coding.is_any_of(&["*"]) {
                gzip = gzip.or(weight);
            }
        }
        let (gzip, identity) = (gzip.unwrap_or(0.0), identity.unwrap_or(0.0));
        if gzip > 0.0 && gzip >= identity { Self::Gzip } else { Self::Identity }
    }

    /// The bytes of an answer in this encoding.
    pub(super) fn encode(self, content: impl Into<Vec<u8>>) -> io::Result<Box<[u8]>> {
        let content = content.into();
        match self {
            Self::Identity => Ok(content.into_boxed_slice()),
            Self::Gzip => {
                // A scrape is so repetitive that the lowest level compresses it well enough, in a
                // third of the time.
                let mut encoder =
                    GzEncoder::new(Vec::with_capacity(content.len() / 8), Compression::fast());
                encoder.write_all(&content)?;
                Ok(encoder.finish()?.into_boxed_slice())
            }
        }
    }

    /// Creates the response with this content.
    pub(super) fn response(self, content_type: &'static str, content: Bytes) -> Response {
        let headers = [
            (header::CONTENT_TYPE, content_type),
            (header::VARY, header::ACCEPT_ENCODING.as_str()),
        ];
        match self {
            Self::Identity => (headers, content).into_response(),
            Self::Gzip => (headers, [(header::CONTENT_ENCODING, "gzip")], content).into_response(),
        }
    }
}

// === impl RenderTurns ===

impl Default for RenderTurns {
    fn default() -> Self {
        Self(FairTurns::new(MOST_WAITING))
    }
}

// === impl Renderer ===

impl Renderer {
    pub(super) fn new(content_type: &'static str, turns: RenderTurns) -> Self {
        Self { content_type, turns, latest: Default::default() }
    }

    /// Answers with a rendering of the current view, or with a recent rendering of the same view
    /// made for another client.
    pub(super) async fn shared<T: Into<Vec<u8>>, E: Display + Send + 'static>(
        &self,
        asked: Asked,
        reader: Reader,
        render: impl FnOnce(&Published) -> Result<T, E> + Send + 'static,
    ) -> Response {
        let since = Instant::now();
        let slot =
            Arc::clone(&self.latest[usize::from(asked.is_authenticated)][asked.encoding as usize]);
        let mut latest = slot.lock_owned().await;
        let current = reader.read().map(|published| published.at());
        if let Some(rendered) = latest.upgrade().filter(|old| old.is_fresh(since, current)) {
            return self.response(asked, rendered);
        }
        let Some(turn) = self.turns.0.take(asked.client).await else { return busy() };
        // The lock is held until the rendering ends, even if the client disconnects first.
        let work = move || {
            let rendered = Arc::new(rendered(turn, asked.encoding, &reader, render)?);
            *latest = Arc::downgrade(&rendered);
            Ok::<_, String>(rendered)
        };
        self.run(asked, work).await
    }

    /// Answers with a rendering for this client only.
    pub(super) async fn unshared<T: Into<Vec<u8>>, E: Display + Send + 'static>(
        &self,
        asked: Asked,
        reader: Reader,
        render: impl FnOnce(&Published) -> Result<T, E> + Send + 'static,
    ) -> Response {
        let Some(turn) = self.turns.0.take(asked.client).await else { return busy() };
        self.run(asked, move || rendered(turn, asked.encoding, &reader, render).map(Arc::new)).await
    }

    async fn run(
        &self,
        asked: Asked,
        work: impl FnOnce() -> Result<Arc<Rendered>, String> + Send + 'static,
    ) -> Response {
        match spawn_blocking(work).await {
            Ok(Ok(rendered)) => self.response(asked, rendered),
            Ok(Err(error)) => failed(&error),
            Err(error) => failed(&error),
        }
    }

    fn response(&self, asked: Asked, rendered: Arc<Rendered>) -> Response {
        let sending = Arc::downgrade(&rendered);
        let content = Bytes::from_owner(SharedContent(rendered));
        let mut response = asked.encoding.response(self.content_type, content);
        response.extensions_mut().insert(sending);
        response
    }
}

fn rendered<T: Into<Vec<u8>>, E: Display>(
    turn: FairTurn,
    encoding: Encoding,
    reader: &Reader,
    render: impl FnOnce(&Published) -> Result<T, E>,
) -> Result<Rendered, String> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (begun, published) = (Instant::now(), reader.read().unwrap_or_default());
    let of = Some(published.at());
    let content = render(&published).map_err(|error| error.to_string())?;
    drop(published);
    let content = encoding.encode(content).map_err(|error| error.to_string())?;
    drop(turn);
    Ok(Rendered { id: NEXT.fetch_add(1, Ordering::Relaxed), of, begun, content })
}

fn busy() -> Response {
    let text = "Too many requests from this address are waiting.\n";
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], text).into_response()
}

fn failed(error: &dyn Display) -> Response {
    tracing::error!(%error, "rendering an answer failed");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}

// === impl Rendered ===

impl Rendered {
    pub(super) fn len(&self) -> usize {
        self.content.len()
    }

    /// Whether the rendering may answer a request that arrived at `since`, while the view of
    /// `current` is published.
    fn is_fresh(&self, since: Instant, current: Option<Instant>) -> bool {
        self.begun >= since || (self.of == current && self.begun.elapsed() < SHARED_FOR)
    }

    #[cfg(test)]
    pub(super) fn of_len(bytes: usize) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { id, of: None, begun: Instant::now(), content: vec![0; bytes].into() }
    }
}

// === impl SharedContent ===

impl AsRef<[u8]> for SharedContent {
    fn as_ref(&self) -> &[u8] {
        &self.0.content
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_preferred_where_the_client_accepts_it() {
        let preferred = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
            Encoding::preferred(&headers)
        };
        for value in [
            "gzip",
            "deflate, gzip;q=0.5, br",
            "*",
            "gzip;q=1.0,identity;q=0.5",
            "x-gzip",
            "GZIP;Q=0.5",
        ] {
            assert_eq!(preferred(value), Encoding::Gzip, "{value}");
        }
        for value in [
            "",
            "br",
            "gzip;q=0",
            "GZIP;Q=0",
            "*;q=0",
            "gzip;q=0.1, identity",
            "gzip;q=x",
            "*, gzip;q=0",
        ] {
            assert_eq!(preferred(value), Encoding::Identity, "{value}");
        }
        assert_eq!(Encoding::preferred(&HeaderMap::new()), Encoding::Identity);
    }
}
