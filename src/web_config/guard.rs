//! The current configuration, and the check of each request against it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use rustls::ServerConfig;

use crate::self_stats::Reloaded;

use super::WebConfig;
use super::client_address::ClientAddress;
use super::passwords::{Passwords, Verdict};
use super::rate_limit::Bucket;
use super::reload::Watch;

/// The current web configuration, and the state that survives reloads.
#[derive(Clone, Debug)]
pub struct LiveWebConfig {
    current: Arc<ArcSwap<WebConfig>>,
    reloaded: Reloaded,
    memory: Arc<Memory>,
}

/// Marks a request of a user that has given the right password.
#[derive(Clone, Copy, Debug)]
pub struct Authenticated;

/// The state that survives a reload.
#[derive(Debug)]
struct Memory {
    bucket: Mutex<Bucket>,
    passwords: Passwords,
}

// === impl LiveWebConfig ===

impl LiveWebConfig {
    /// Loads the configuration and starts to watch its files.
    pub fn start(path: &Path) -> Result<Self> {
        let (watch, current) = Watch::start(path)?;
        let passwords = Passwords::new().map_err(|_| anyhow!("the kernel gave no randomness"))?;
        let memory = Memory { bucket: Mutex::default(), passwords };
        let reloaded = watch.reloaded();
        watch.spawn().context("starting to watch the web configuration")?;
        Ok(Self { current, reloaded, memory: Arc::new(memory) })
    }

    /// Whether the last reload succeeded.
    pub fn reloaded(&self) -> Reloaded {
        self.reloaded.clone()
    }

    /// The TLS configuration for the next connection; `None` for plain HTTP.
    pub fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.current.load().tls.clone()
    }

    /// Applies the configuration to all routes.
    pub fn protect(&self, router: Router) -> Router {
        router.layer(from_fn_with_state(self.clone(), guard))
    }

    async fn admit(
        &self,
        config: &WebConfig,
        client: ClientAddress,
        credentials: Option<HeaderValue>,
    ) -> Result<(), Response> {
        if let Some(limit) = config.rate_limit {
            let bucket = &self.memory.bucket;
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            if !bucket.take(limit, Instant::now()) {
                return Err(StatusCode::TOO_MANY_REQUESTS.into_response());
            }
        }
        match self.memory.passwords.check(&config.users, client, credentials).await {
            Verdict::Granted => Ok(()),
            Verdict::Denied => {
                let realm = [(header::WWW_AUTHENTICATE, "Basic realm=\"listenq\"")];
                Err((StatusCode::UNAUTHORIZED, realm, "Unauthorized\n").into_response())
            }
            Verdict::Busy => {
                let later = [(header::RETRY_AFTER, "1")];
                let text = "Too many passwords from this address are waiting to be checked.\n";
                Err((StatusCode::SERVICE_UNAVAILABLE, later, text).into_response())
            }
        }
    }
}

async fn guard(State(live): State<LiveWebConfig>, mut request: Request, next: Next) -> Response {
    let config = live.current.load_full();
    let client = request.extensions().get().copied().unwrap_or_default();
    let credentials = request.headers().get(header::AUTHORIZATION).cloned();
    let mut response = match live.admit(&config, client, credentials).await {
        Ok(()) => {
            if !config.users.is_empty() {
                request.extensions_mut().insert(Authenticated);
            }
            next.run(request).await
        }
        Err(refused) => refused,
    };
    for (name, value) in &config.headers {
        response.headers_mut().insert(name, value.clone());
    }
    response
}
