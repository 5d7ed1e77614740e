//! The headers that the configuration may add to every response.

use std::collections::BTreeMap;

use axum::http::{HeaderName, HeaderValue};
use serde_saphyr::Spanned;

use super::file::{Fault, shown};

/// The headers that exporter-toolkit supports, with their allowed values if these are limited.
const KNOWN: [(&str, &[&str]); 5] = [
    ("Content-Security-Policy", &[]),
    ("Strict-Transport-Security", &[]),
    ("X-Content-Type-Options", &["nosniff"]),
    ("X-Frame-Options", &["deny", "sameorigin"]),
    ("X-XSS-Protection", &[]),
];

/// Validates names and values. An empty value omits the header.
pub fn parse(
    headers: &BTreeMap<String, Spanned<String>>,
) -> Result<Vec<(HeaderName, HeaderValue)>, Fault> {
    let given = headers.iter().filter(|(_, value)| !value.value.is_empty());
    given.map(|(name, value)| header(name, value)).collect()
}

fn header(name: &str, value: &Spanned<String>) -> Result<(HeaderName, HeaderValue), Fault> {
    let Some((name, allowed)) = KNOWN.iter().find(|(known, _)| *known == name) else {
        let known: Vec<&str> = KNOWN.iter().map(|(name, _)| *name).collect();
        let what = format!("header {} cannot be set: not one of {}", shown(name), known.join(", "));
        return Err(Fault::of(value, what));
    };
    if !allowed.is_empty() && !allowed.contains(&value.value.as_str()) {
        return Err(Fault::of(value, format!("{name} can only be {}", allowed.join(" or "))));
    }
    let name = HeaderName::try_from(*name).map_err(|_| Fault::of(value, "not a header"))?;
    let text = HeaderValue::try_from(&value.value)
        .map_err(|_| Fault::of(value, format!("{name} has a character no header may have")))?;
    Ok((name, text))
}
