//! The HTTP end: `/metrics`, `/-/healthy`, `/-/ready` and a plain `/`. It answers from the published view and
//! never touches the kernel.

mod door;
mod limit;
mod page;
mod patience;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum_server::Handle;
use tower_http::compression::CompressionLayer;

use crate::exposition;
use crate::sampler::publish::Reader;
use crate::web_config::Guarded;

use door::Door;

/// How long a client may take to send the head of a request, and to send the next one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to read what was written to it, once its own buffers and the kernel's are full.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections open at once; more are closed at once.
const MAX_CONNECTIONS: usize = 256;
/// How long answers under way may take to finish once listenq is told to stop.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// All servers of one listenq, to be stopped together.
#[derive(Clone, Debug, Default)]
pub struct Servers {
    handles: Vec<Handle<SocketAddr>>,
}

/// What is served where.
pub fn router(reader: Reader, telemetry_path: &str) -> Router {
    let mut router = Router::new()
        .route(telemetry_path, get(metrics))
        .route("/-/healthy", get(|| async { "listenq is healthy.\n" }))
        .route("/-/ready", get(ready));
    if telemetry_path != "/" {
        let page = page::render(telemetry_path);
        router = router.route("/", get(|| async { page }));
    }
    router.with_state(reader).layer(CompressionLayer::new())
}

async fn metrics(State(reader): State<Reader>) -> Response {
    // Rendering is work, not waiting: away from the thread that answers everybody else.
    let text = tokio::task::spawn_blocking(move || {
        let published = reader.read().unwrap_or_default();
        exposition::render(&published.view, published.age())
    });
    match text.await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], text).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error),
    }
}

async fn ready(State(reader): State<Reader>) -> (StatusCode, &'static str) {
    let is_ready = reader.read().is_some_and(|published| published.view.is_ready(published.age()));
    match is_ready {
        true => (StatusCode::OK, "listenq is ready.\n"),
        false => (
            StatusCode::SERVICE_UNAVAILABLE,
            "listenq has no good sample of the last 10 seconds.\n",
        ),
    }
}

fn failed(error: &dyn std::fmt::Display) -> Response {
    tracing::error!(%error, "the exposition could not be written");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}

// === impl Servers ===

impl Servers {
    /// Serves `router` on `listener` until stopped; over TLS, if the web configuration asks for it.
    pub fn start(
        &mut self,
        listener: TcpListener,
        router: Router,
        guarded: Option<Guarded>,
    ) -> io::Result<impl Future<Output = io::Result<()>> + use<>> {
        listener.set_nonblocking(true)?;
        let handle = Handle::new();
        self.handles.push(handle.clone());
        let mut server = axum_server::from_tcp(listener)?
            .acceptor(Door::new(MAX_CONNECTIONS, guarded))
            .http1_only()
            .first_request_timeout(HEADER_TIMEOUT)
            .handle(handle);
        server.http_builder().http1().header_read_timeout(HEADER_TIMEOUT);
        Ok(server.serve(router.into_make_service()))
    }

    /// Stops accepting, lets answers under way finish, and ends all servers.
    pub fn stop(&self) {
        for handle in &self.handles {
            handle.graceful_shutdown(Some(STOP_TIMEOUT));
        }
    }
}
