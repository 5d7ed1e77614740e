//! Owns HTTP requests to the daemon under test.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::enter::run_in;

/// The largest body that is read.
const MOST_BYTES: u64 = 1 << 30;
/// The longest a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the daemon answered, whatever its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
    /// The body as sent, not decompressed.
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
    /// When it is not UTF-8.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is UTF-8")
    }
}

/// GETs `path` at `address` from inside the namespace at `netns`, or from the caller's.
///
/// # Errors
///
/// When no answer came; a status that tells of an error is an answer.
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
