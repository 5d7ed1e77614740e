//! Parses header values such as `gzip;q=0.5, identity`: alternatives with weights (RFC 9110,
//! section 12.4.2). Names are compared without regard to case (sections 5.6.6, 8.3.1 and 8.4.1).

use axum::http::{HeaderMap, HeaderName};

/// One alternative that a client accepts.
pub(super) struct Alternative<'a> {
    name: &'a str,
    /// The preference; 0 means that the client does not accept it.
    pub(super) weight: f32,
    /// The parameters, among them `q`.
    parameters: Vec<(&'a str, &'a str)>,
}

/// The alternatives in all headers of this name.
pub(super) fn alternatives<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = Alternative<'a>> {
    let values = headers.get_all(name).into_iter();
    values.flat_map(|value| value.to_str().unwrap_or_default().split(',')).map(Alternative::parse)
}

// === impl Alternative ===

impl<'a> Alternative<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
        let weight = match parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case("q")) {
            Some((_, weight)) => weight.parse().unwrap_or(0.0),
            None => 1.0,
        };
        Self { name, weight, parameters }
    }

    /// Whether it has one of these names.
    pub(super) fn is_any_of(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.name.eq_ignore_ascii_case(name))
    }

    /// Whether it has this parameter with this value, which may be quoted.
    pub(super) fn has(&self, name: &str, value: &str) -> bool {
        self.parameters.iter().any(|(found, text)| {
            let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
            found.eq_ignore_ascii_case(name) && quoted.unwrap_or(text) == value
        })
    }
}
