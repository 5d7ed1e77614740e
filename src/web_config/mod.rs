//! The web configuration of `--web.config.file`, in the format of Prometheus' exporter-toolkit:
//! TLS, users, rate limit and headers. [`LiveWebConfig`] applies the configuration and reloads it
//! when its files change.

pub mod certificate;
pub mod client_address;
pub mod client_cert;
pub mod fair_turns;
pub mod file;
pub mod guard;
pub mod headers;
pub mod passwords;
pub mod rate_limit;
pub mod reload;
pub mod sources;
pub mod tls;
pub mod users;

use std::path::Path;
use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue};
use rustls::ServerConfig;

use file::{ConfigError, Fault, File};
use rate_limit::RateLimit;
use sources::Sources;
use tls::Loader;
use users::Users;

pub use guard::{Authenticated, LiveWebConfig};

/// A valid web configuration.
#[derive(Debug, Default)]
pub struct WebConfig {
    /// `None` for plain HTTP.
    pub tls: Option<Arc<ServerConfig>>,
    /// Headers of every response.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The users; without users no password is required.
    pub users: Users,
    pub rate_limit: Option<RateLimit>,
}

/// Validates the configuration and every file it references.
pub fn check(path: &Path) -> Result<(), ConfigError> {
    WebConfig::load(path, &mut Sources::default()).map(drop)
}

// === impl WebConfig ===

impl WebConfig {
    /// Loads the configuration and every file it references.
    pub fn load(path: &Path, sources: &mut Sources) -> Result<Self, ConfigError> {
        let loaded = Self::read(path, sources);
        loaded.map_err(|fault| ConfigError { path: path.to_owned(), fault })
    }

    fn read(path: &Path, sources: &mut Sources) -> Result<Self, Fault> {
        let content = sources.read(path).map_err(|error| Fault::new(0, error.to_string()))?;
        let text = String::from_utf8(content).map_err(|_| Fault::new(0, "not UTF-8 text"))?;
        let directory = path.parent().unwrap_or(Path::new(""));
        Self::from_file(&File::parse(&text)?, &mut Loader { directory, sources })
    }

    fn from_file(file: &File, loader: &mut Loader<'_>) -> Result<Self, Fault> {
        let File { tls_server_config, http_server_config, basic_auth_users, rate_limit } = file;
        let tls = tls_server_config.as_ref().map(|tls| loader.server_config(tls)).transpose()?;
        let headers = http_server_config.as_ref().and_then(|http| http.headers.as_ref());
        let rate_limit = rate_limit.as_ref().map(RateLimit::parse).transpose()?;
        Ok(Self {
            tls: tls.flatten().map(Arc::new),
            headers: headers.map(headers::parse).transpose()?.unwrap_or_default(),
            users: basic_auth_users.as_ref().map(Users::parse).transpose()?.unwrap_or_default(),
            rate_limit: rate_limit.flatten(),
        })
    }

    /// Whether the configuration sets nothing.
    pub fn is_blank(&self) -> bool {
        let Self { tls, headers, users, rate_limit } = self;
        tls.is_none() && headers.is_empty() && users.is_empty() && rate_limit.is_none()
    }
}
