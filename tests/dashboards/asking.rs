//! Builds the paths of Prometheus queries.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// The path of a query at `end`, or of a range query over `seconds` before `end`.
pub(crate) fn path(expr: &str, seconds: Option<u64>, end: SystemTime) -> String {
    let (query, end) = (encode(expr), end.duration_since(UNIX_EPOCH).unwrap().as_secs());
    match seconds {
        None => format!("/api/v1/query?query={query}&time={end}"),
        Some(seconds) => {
            let start = end - seconds;
            format!("/api/v1/query_range?query={query}&start={start}&end={end}&step=2")
        }
    }
}

fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte.is_ascii_alphanumeric() {
            true => encoded.push(byte.into()),
            false => write!(encoded, "%{byte:02X}").unwrap(),
        }
        encoded
    })
}
