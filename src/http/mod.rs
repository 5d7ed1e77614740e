//! The HTTP server: `/metrics`, `/api/v1/listeners`, `/runbooks/`, `/-/healthy`, `/-/ready` and the
//! live page at `/`. It renders the published view and reads nothing from the kernel.

mod accept;
mod api;
mod asset;
mod format;
mod host;
mod linger;
mod page;
mod permits;
mod render;
pub mod runbooks;
mod weights;
mod write_timeout;

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::get;
use axum_server::Handle;

use crate::exposition::{self, protobuf};
use crate::view::publish::{Published, Reader};
use crate::web_config::LiveWebConfig;

pub use host::AllowedHosts;

use accept::Acceptor;
use format::Format;
use permits::{ConnectionPermits, attend};
use render::{Asked, RenderTurns, Renderer};

/// Timeout for a client to send the head of a request, and to send the next request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout for a client to read an answer, once the client's buffers and the kernel's are full.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of open connections, over all addresses.
const MAX_CONNECTIONS: usize = 128;
/// Maximum bytes of a request head, and of an answer that hyper buffers.
const BUFFER: usize = 32 << 10;
/// Timeout for started answers after SIGTERM or SIGINT.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// The servers of all listen addresses.
#[derive(Clone, Debug)]
pub struct Servers {
    handles: Vec<Handle<SocketAddr>>,
    permits: ConnectionPermits,
}

/// Headers that allow a browser to load only the files of the page, and forbid other sites to frame
/// the page.
const HEADERS: [(HeaderName, &str); 3] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
         base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
];

/// The routes. With metrics at `/` there is no page; `/api/v1/listeners` has the same contents.
pub fn router(reader: Reader, telemetry_path: &str, hosts: AllowedHosts) -> Router {
    let turns = RenderTurns::default();
    let renderers = [
        Renderer::new(exposition::CONTENT_TYPE, turns.clone()),
        Renderer::new(protobuf::CONTENT_TYPE, turns),
    ];
    // Metrics do not wait for reports.
    let reports = RenderTurns::default();
    let mut guarded = api::router(reports.clone());
    if telemetry_path != "/" {
        guarded = guarded.merge(page::router(telemetry_path, reports));
    }
    let router = Router::new()
        .route(
            telemetry_path,
            get(|reader, format, asked| metrics(renderers, reader, format, asked)),
        )
        .merge(guarded.route_layer(from_fn_with_state(hosts, host::check)))
        .merge(runbooks::router())
        .route("/-/healthy", get(|| async { "listenq is healthy.\n" }))
        .route("/-/ready", get(ready));
    router.with_state(reader).layer(map_response(with_headers))
}

async fn with_headers(mut response: Response) -> Response {
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn metrics(
    [text, protobuf]: [Renderer; 2],
    State(reader): State<Reader>,
    format: Format,
    asked: Asked,
) -> Response {
    let as_text = |published: &Published| exposition::render(&published.view, published.age());
    let as_protobuf = |published: &Published| {
        Ok::<_, Infallible>(protobuf::render(&published.view, published.age()))
    };
    let mut response = match format {
        Format::Text => text.shared(asked, reader, as_text).await,
        Format::Protobuf => protobuf.shared(asked, reader, as_protobuf).await,
    };
    response.headers_mut().append(header::VARY, HeaderValue::from_static("accept"));
    response
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

// === impl Servers ===

impl Default for Servers {
    fn default() -> Self {
        Self { handles: Vec::new(), permits: ConnectionPermits::new(MAX_CONNECTIONS) }
    }
}

impl Servers {
    /// Serves `router` on `listener` until stopped; over TLS if the web configuration requires TLS.
    pub fn start(
        &mut self,
        listener: TcpListener,
        router: Router,
        config: Option<LiveWebConfig>,
    ) -> io::Result<impl Future<Output = io::Result<()>> + use<>> {
        listener.set_nonblocking(true)?;
        accept::limit_buffers(&listener)?;
        let handle = Handle::new();
        self.handles.push(handle.clone());
        let mut server = axum_server::from_tcp(listener)?
            .acceptor(Acceptor::new(self.permits.clone(), config))
            .http1_only()
            .first_request_timeout(HEADER_TIMEOUT)
            .handle(handle);
        server.http_builder().http1().header_read_timeout(HEADER_TIMEOUT).max_buf_size(BUFFER);
        Ok(server.serve(router.layer(from_fn(attend)).into_make_service()))
    }

    /// Stops accepting, lets answers in flight finish, and ends all servers.
    pub fn stop(&self) {
        for handle in &self.handles {
            handle.graceful_shutdown(Some(STOP_TIMEOUT));
        }
    }
}
