//! The configuration in force, and what stands between a request and its answer.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use rustls::ServerConfig;

use crate::self_stats::Reloaded;

use super::WebConfig;
use super::passwords::{Passwords, Verdict};
use super::rate_limit::Bucket;
use super::reload::Watch;

/// A web configuration at work.
#[derive(Clone, Debug)]
pub struct Guarded {
    in_force: Arc<ArcSwap<WebConfig>>,
    reloaded: Reloaded,
    memory: Arc<Memory>,
}

/// What outlives a change of the configuration.
#[derive(Debug)]
struct Memory {
    bucket: Mutex<Bucket>,
    passwords: Passwords,
}

// === impl Guarded ===

impl Guarded {
    /// Reads the configuration and watches its files from now on.
    pub fn start(path: &Path) -> Result<Self> {
        let (watch, in_force) = Watch::start(path)?;
        let passwords = Passwords::new().map_err(|_| anyhow!("the kernel gave no randomness"))?;
        let memory = Memory { bucket: Mutex::default(), passwords };
        let reloaded = watch.reloaded();
        watch.spawn().context("starting to watch the web configuration")?;
        Ok(Self { in_force, reloaded, memory: Arc::new(memory) })
    }

    /// Whether the last change of the files was taken over.
    pub fn reloaded(&self) -> Reloaded {
        self.reloaded.clone()
    }

    /// How to speak TLS on the next connection, if at all.
    pub fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.in_force.load().tls.clone()
    }

    /// Puts the guard before everything the router serves.
    pub fn protect(&self, router: Router) -> Router {
        router.layer(from_fn_with_state(self.clone(), guard))
    }

    async fn admit(&self, config: &WebConfig, headers: &HeaderMap) -> Result<(), Response> {
        if let Some(limit) = config.rate_limit {
            let bucket = &self.memory.bucket;
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            if !bucket.take(limit, Instant::now()) {
                return Err(StatusCode::TOO_MANY_REQUESTS.into_response());
            }
        }
        let credentials = headers.get(header::AUTHORIZATION);
        match self.memory.passwords.check(&config.users, credentials).await {
            Verdict::Granted => Ok(()),
            Verdict::Denied => {
                let realm = [(header::WWW_AUTHENTICATE, "Basic realm=\"listenq\"")];
                Err((StatusCode::UNAUTHORIZED, realm, "Unauthorized\n").into_response())
            }
            Verdict::Busy => {
                let later = [(header::RETRY_AFTER, "1")];
                let text = "Too many passwords are being checked.\n";
                Err((StatusCode::SERVICE_UNAVAILABLE, later, text).into_response())
            }
        }
    }
}

async fn guard(State(guarded): State<Guarded>, request: Request, next: Next) -> Response {
    let config = guarded.in_force.load_full();
    let mut response = match guarded.admit(&config, request.headers()).await {
        Ok(()) => next.run(request).await,
        Err(refused) => refused,
    };
    for (name, value) in &config.headers {
        response.headers_mut().insert(name, value.clone());
    }
    response
}
