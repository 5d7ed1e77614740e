//! HTTP requests to the daemon under test.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::enter::run_in;

/// The maximum size of a body.
const MOST_BYTES: u64 = 1 << 30;
/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The answer of the daemon, with any status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// The headers, with names in lower case, in the order received.
    pub headers: Vec<(String, String)>,
    /// The body as received, not decompressed.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of this name (in lower case).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    ///
    /// # Panics
    ///
    /// When the body is not UTF-8.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is UTF-8")
    }
}

/// Sends a GET for `path` at `address` from inside the namespace at `netns`, or from the caller's
/// namespace.
///
/// # Errors
///
/// When no answer arrived; an answer with an error status is an answer.
pub fn get(
    netns: Option<&Path>,
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Response> {
    let url = format!("http://{address}{path}");
    run_in(netns, || request(&url, headers)).with_context(|| format!("asking for {url}"))
}

fn request(url: &str, headers: &[(&str, &str)]) -> Result<Response> {
    let agent = ureq::config::Config::builder()
        .http_status_as_error(false)
        .timeout_global(Some(TIMEOUT))
        .max_redirects(0)
        .proxy(None)
        .build()
        .new_agent();
    let request =
        headers.iter().fold(agent.get(url), |request, (name, value)| request.header(*name, *value));
    let mut answer = request.call()?;
    let headers = answer.headers().iter();
    Ok(Response {
        status: answer.status().as_u16(),
        headers: headers
            .map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
            .collect(),
        body: answer.body_mut().with_config().limit(MOST_BYTES).read_to_vec()?,
    })
}
