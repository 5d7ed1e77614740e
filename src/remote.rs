//! Requests the report of a running daemon over HTTP.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use thiserror::Error;
use ureq::http::Uri;
use ureq::http::header::AUTHORIZATION;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};

use crate::report::Report;

/// The path of the report.
const PATH: &str = "/api/v1/listeners";
/// Maximum bytes of a report; a report of 100,000 listeners is smaller.
const MOST_BYTES: u64 = 1 << 28;

/// The URL of a daemon.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    /// The URL of the report, without user and password.
    full: String,
    /// The URL as it may be shown.
    shown: String,
    /// The value of the `Authorization` header.
    authorization: Option<String>,
}

/// Why a request returned no report.
#[derive(Debug, Error)]
pub enum Failure {
    /// No server answers at the address.
    #[error("{url} does not answer ({reason})")]
    Silent {
        /// The requested URL.
        url: Url,
        /// The network error.
        reason: String,
    },
    /// A server answered, but not with a report.
    #[error("{url} answered {status}{hint}")]
    Refused {
        /// The requested URL.
        url: Url,
        status: u16,
        /// The probable cause.
        hint: &'static str,
    },
    /// The answer is not a report.
    #[error("the response of {url} is not a report of listeners ({reason})")]
    Strange {
        /// The requested URL.
        url: Url,
        /// Why the answer is invalid.
        reason: String,
    },
}

// === impl Url ===

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let schemes = ["http://", "https://"];
        let Some(scheme) = schemes.into_iter().find(|scheme| text.starts_with(scheme)) else {
            return Err("does not begin with http:// or https://".into());
        };
        let rest = &text[scheme.len()..];
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if path.contains('@') {
            return Err(
                "has an @ after the host: in a password / is %2F, ? is %3F and # is %23".into()
            );
        }
        let (credentials, host) = match authority.rsplit_once('@') {
            Some((credentials, host)) => (Some(credentials), host),
            None => (None, authority),
        };
        // Errors about this part cannot contain the password.
        let path = checked_path(scheme, host, path)?;
        Ok(Self {
            full: format!("{scheme}{host}{path}{PATH}"),
            shown: format!("{scheme}{host}{path}"),
            authorization: credentials.map(basic),
        })
    }
}

/// Completes the path of `http://HOST:PORT/PATH` to the path of the report, if the whole is a valid
/// daemon address.
fn checked_path(scheme: &str, host: &str, path: &str) -> Result<String, String> {
    let text = format!("{scheme}{host}{path}");
    let uri: Uri = text.parse().map_err(|error| format!("not a URL: {error}"))?;
    if uri.host().is_none_or(str::is_empty) {
        return Err("has no host".into());
    }
    let after_address = host.rsplit(']').next().unwrap_or(host);
    if let Some((_, port)) = after_address.rsplit_once(':')
        && !port.parse::<u16>().is_ok_and(|port| port > 0)
    {
        return Err(format!("{port:?} is not a port from 1 to 65535"));
    }
    if uri.query().is_some() {
        return Err("has a query: only the address of a daemon is needed".into());
    }
    let path = uri.path().trim_end_matches('/');
    Ok(path.strip_suffix(PATH).unwrap_or(path).into())
}

/// Encodes `USER:PASSWORD` for HTTP, after percent-decoding.
fn basic(credentials: &str) -> String {
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let mut plain: Vec<u8> = percent_decode_str(user).collect();
    plain.push(b':');
    plain.extend(percent_decode_str(password));
    format!("Basic {}", STANDARD.encode(plain))
}

/// Replaces the part of `text` that may be a password with `***`: an error shows text that is not a
/// valid URL.
pub fn masked(text: &str) -> String {
    let begin = text.find("://").map_or(0, |scheme| scheme + "://".len());
    let (scheme, rest) = text.split_at(begin);
    match rest.rsplit_once('@').map(|(credentials, host)| (credentials.split_once(':'), host)) {
        Some((Some((user, _)), host)) => format!("{scheme}{user}:***@{host}"),
        _ => text.into(),
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Url {
    /// Formats the URL without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Url").field(&self.shown).finish()
    }
}

/// How to reach a daemon.
#[derive(Clone, Debug)]
pub struct Access {
    /// The request timeout.
    pub timeout: Duration,
    /// Certificates to trust instead of the system's certificates.
    pub ca_file: Option<PathBuf>,
}

/// Why the trusted certificates could not be loaded.
#[derive(Debug, Error)]
enum RootsError {
    #[error("--tls.ca-file {path}: {reason}")]
    File { path: String, reason: String },
    #[error("the system has no certificates to trust: name them with --tls.ca-file")]
    System,
}

/// Requests the report of the daemon at `url`.
pub fn fetch(url: &Url, access: &Access) -> Result<Report, Failure> {
    let timeout = access.timeout;
    let silent = |error| Failure::Silent { url: url.clone(), reason: reason(error, timeout) };
    let tls = tls(url, access)
        .map_err(|error| Failure::Silent { url: url.clone(), reason: error.to_string() })?;
    let agent = ureq::config::Config::builder()
        .http_status_as_error(false)
        .timeout_global(Some(timeout))
        .max_redirects(0)
        .proxy(None)
        .tls_config(tls)
        .user_agent(concat!("listenq/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent();
    let request = agent.get(&url.full);
    let request = match &url.authorization {
        Some(authorization) => request.header(AUTHORIZATION, authorization),
        None => request,
    };
    let mut answer = request.call().map_err(silent)?;
    let status = answer.status().as_u16();
    if status != 200 {
        let hint = hint(status, url.authorization.is_some());
        return Err(Failure::Refused { url: url.clone(), status, hint });
    }
    let body = answer.body_mut().with_config().limit(MOST_BYTES).read_to_vec().map_err(silent)?;
    Report::received(&body)
        .map_err(|error| Failure::Strange { url: url.clone(), reason: error.to_string() })
}

fn tls(url: &Url, access: &Access) -> Result<TlsConfig, RootsError> {
    let builder = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
    // Plain HTTP reads no certificates.
    let builder = match url.full.starts_with("https://") {
        true => builder.root_certs(RootCerts::Specific(Arc::new(roots(access)?))),
        false => builder,
    };
    Ok(builder.build())
}

fn roots(access: &Access) -> Result<Vec<Certificate<'static>>, RootsError> {
    let Some(path) = &access.ca_file else {
        let native = rustls_native_certs::load_native_certs().certs;
        let roots: Vec<_> =
            native.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        return if roots.is_empty() { Err(RootsError::System) } else { Ok(roots) };
    };
    let wrong = |reason: String| RootsError::File { path: path.display().to_string(), reason };
    let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let items = ureq::tls::parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
        Ok(_) => None,
        Err(error) => Some(Err(wrong(error.to_string()))),
    });
    let roots: Vec<_> = items.collect::<Result<_, _>>()?;
    if roots.is_empty() { Err(wrong("holds no certificate".into())) } else { Ok(roots) }
}

fn reason(error: ureq::Error, timeout: Duration) -> String {
    match error {
        ureq::Error::Timeout(_) => format!("not within {}", humantime::format_duration(timeout)),
        ureq::Error::HostNotFound => "there is no such host".into(),
        ureq::Error::Io(error) => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or_default().to_lowercase()
        }
        error => error.to_string(),
    }
}

fn hint(status: u16, has_password: bool) -> &'static str {
    match status {
        401 if has_password => ": user or password is wrong",
        401 | 403 => ": it requires a user and a password, as in http://USER:PASSWORD@HOST:PORT",
        404 => ": is it listenq, and not an older one?",
        503 => ": it has no sample to show",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(String, String), String> {
        text.parse().map(|Url { full, shown, .. }| (full, shown))
    }

    #[track_caller]
    fn assert_parsed(text: &str, full: &str, shown: &str) {
        assert_eq!(parsed(text), Ok((full.into(), shown.into())));
    }

    #[test]
    fn the_report_is_below_the_address() {
        let (full, shown) = ("http://web1:19511/api/v1/listeners", "http://web1:19511");
        assert_parsed(shown, full, shown);
        assert_parsed("http://web1:19511/", full, shown);
        assert_parsed(full, full, shown);
        assert_parsed("https://web1", "https://web1/api/v1/listeners", "https://web1");
        assert_parsed(
            "http://[::1]:80/lq/",
            "http://[::1]:80/lq/api/v1/listeners",
            "http://[::1]:80/lq",
        );
    }

    #[test]
    fn a_password_is_never_shown() {
        let text = "http://me:secret@web1:19511";
        assert_parsed(text, "http://web1:19511/api/v1/listeners", "http://web1:19511");
        assert!(!format!("{:?}", text.parse::<Url>()).contains("secret"));
        for (text, shown) in [
            (text, "http://me:***@web1:19511"),
            ("http://me:sec/ret@web1", "http://me:***@web1"),
            ("http://me:s@cret@web1:0/@", "http://me:***@"),
            ("me:secret@web1", "me:***@web1"),
            ("http://web1:19511", "http://web1:19511"),
            ("http://me@web1", "http://me@web1"),
        ] {
            assert_eq!(masked(text), shown);
        }
        for text in ["http://me:secret@", "http://me:secret@web1:x", "http://me:sec/ret@web1"] {
            let error = parsed(text).unwrap_err();
            assert!(!error.contains("sec"), "{error}");
        }
    }

    #[test]
    fn user_and_password_are_percent_decoded() {
        let authorization = |text: &str| text.parse::<Url>().unwrap().authorization;
        // The base64 text decodes to "me:s@cret/%".
        let expected = Some("Basic bWU6c0BjcmV0LyU=".into());
        assert_eq!(authorization("http://me:s%40cret%2F%25@web1"), expected);
        assert_eq!(authorization("http://me:s@cret%2f%@web1"), expected);
        assert_eq!(authorization("http://web1"), None);
    }

    #[test]
    fn a_wrong_password_and_a_missing_password_have_different_errors() {
        assert_eq!(hint(401, true), ": user or password is wrong");
        assert!(hint(401, false).starts_with(": it requires a user"));
    }

    #[test]
    fn an_invalid_daemon_url_is_explained() {
        for (text, why) in [
            ("ftp://web1:19511", "does not begin with http:// or https://"),
            ("web1:19511", "does not begin with http://"),
            ("http://", "not a URL"),
            ("http://:80", "has no host"),
            ("http://web1:", "\"\" is not a port"),
            ("http://web1:0", "\"0\" is not a port"),
            ("http://[::1]:99999", "\"99999\" is not a port"),
            ("http://web1/a@b", "has an @ after the host"),
            ("http://web1/?a=b", "has a query"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
