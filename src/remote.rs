//! Asks a running daemon for its report, over HTTP.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use ureq::http::Uri;

use crate::report::Report;

/// Where a daemon of this machine listens unless told otherwise.
pub const LOCAL: &str = "http://localhost:19511";
/// Where it answers with its report.
const PATH: &str = "/api/v1/listeners";
/// A report of 100,000 listeners is smaller.
const MOST_BYTES: u64 = 1 << 28;

/// The URL of a daemon.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    /// Of its report, with user and password.
    full: String,
    /// As it may be shown.
    shown: String,
}

/// Why there is no report.
#[derive(Debug, Error)]
pub enum Failure {
    /// Nobody answers there.
    #[error("{url} does not answer ({reason})")]
    Silent {
        /// Who was asked.
        url: Url,
        /// What the network said.
        reason: String,
    },
    /// Somebody answers, but not with a report.
    #[error("{url} answered {status}{hint}")]
    Refused {
        /// Who was asked.
        url: Url,
        /// The status code.
        status: u16,
        /// What may be wrong.
        hint: &'static str,
    },
    /// The answer is something else.
    #[error("{url} answered with something else than a report of listeners ({reason})")]
    Strange {
        /// Who was asked.
        url: Url,
        /// What is wrong with it.
        reason: String,
    },
}

// === impl Url ===

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("https://") {
            return Err("https is not supported: ask over http, on the machine itself".into());
        }
        if !text.starts_with("http://") {
            return Err("does not begin with http://".into());
        }
        let uri: Uri = text.parse().map_err(|error| format!("not a URL: {error}"))?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        if uri.host().is_none_or(str::is_empty) {
            return Err("has no host".into());
        }
        if uri.query().is_some() {
            return Err("has a query: only the address of a daemon is needed".into());
        }
        let path = uri.path().trim_end_matches('/');
        let path = path.strip_suffix(PATH).unwrap_or(path);
        Ok(Self {
            full: format!("http://{authority}{path}{PATH}"),
            shown: format!("http://{host}{path}"),
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Url {
    /// Never with the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Url").field(&self.shown).finish()
    }
}

// === impl Failure ===

impl Failure {
    /// As it is said where nobody promised that a daemon is there.
    pub fn as_absence(&self) -> String {
        match self {
            Self::Silent { url, reason } => format!("no daemon at {url} ({reason})"),
            other => other.to_string(),
        }
    }
}

/// Asks the daemon at `url`, and waits for its answer so long at most.
pub fn fetch(url: &Url, patience: Duration) -> Result<Report, Failure> {
    let silent = |error| Failure::Silent { url: url.clone(), reason: reason(error, patience) };
    let agent = ureq::config::Config::builder()
        .http_status_as_error(false)
        .timeout_global(Some(patience))
        .max_redirects(0)
        .proxy(None)
        .user_agent(concat!("listenq/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent();
    let mut answer = agent.get(&url.full).call().map_err(silent)?;
    let status = answer.status().as_u16();
    if status != 200 {
        return Err(Failure::Refused { url: url.clone(), status, hint: hint(status) });
    }
    let body = answer.body_mut().with_config().limit(MOST_BYTES).read_to_vec().map_err(silent)?;
    serde_json::from_slice(&body)
        .map_err(|error| Failure::Strange { url: url.clone(), reason: error.to_string() })
}

fn reason(error: ureq::Error, patience: Duration) -> String {
    match error {
        ureq::Error::Timeout(_) => format!("not within {}", humantime::format_duration(patience)),
        ureq::Error::HostNotFound => "there is no such host".into(),
        ureq::Error::Io(error) => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or_default().to_lowercase()
        }
        error => error.to_string(),
    }
}

fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => ": it wants a user and a password, as in http://USER:PASSWORD@HOST:PORT",
        404 => ": is it listenq, and not an older one?",
        503 => ": it has no sample to show",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(String, String), String> {
        text.parse().map(|Url { full, shown }| (full, shown))
    }

    #[track_caller]
    fn assert_parsed(text: &str, full: &str, shown: &str) {
        assert_eq!(parsed(text), Ok((full.into(), shown.into())));
    }

    #[test]
    fn the_report_is_below_the_address() {
        let full = "http://localhost:19511/api/v1/listeners";
        assert_parsed(LOCAL, full, LOCAL);
        assert_parsed("http://localhost:19511/", full, LOCAL);
        assert_parsed(full, full, LOCAL);
        assert_parsed(
            "http://[::1]:80/lq/",
            "http://[::1]:80/lq/api/v1/listeners",
            "http://[::1]:80/lq",
        );
    }

    #[test]
    fn a_password_is_never_shown() {
        let text = "http://me:secret@web1:19511";
        assert_parsed(text, "http://me:secret@web1:19511/api/v1/listeners", "http://web1:19511");
        assert!(!format!("{:?}", text.parse::<Url>()).contains("secret"));
    }

    #[test]
    fn what_is_no_url_of_a_daemon_says_why() {
        for (text, why) in [
            ("https://web1:19511", "https is not supported"),
            ("web1:19511", "does not begin with http://"),
            ("http://", "not a URL"),
            ("http://:80", "has no host"),
            ("http://web1/?a=b", "has a query"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
