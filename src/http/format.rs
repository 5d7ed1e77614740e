//! Chooses the format of the metrics from the `Accept` header.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};

use super::weights::{Alternative, alternatives};

/// A format of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The text format 0.0.4, for all clients that do not ask for protobuf.
    Text,
    /// Delimited `MetricFamily` messages.
    Protobuf,
}

// === impl Format ===

impl Format {
    /// Returns protobuf if the client accepts protobuf and does not prefer text.
    fn preferred(headers: &HeaderMap) -> Self {
        let (mut protobuf, mut text) = (0.0, 0.0);
        for media in alternatives(headers, &header::ACCEPT) {
            if is_delimited_family(&media) {
                protobuf = media.weight.max(protobuf);
            } else if media.is_any_of(&["text/plain", "text/*", "*/*"]) {
                text = media.weight.max(text);
            }
        }
        if protobuf > 0.0 && protobuf >= text { Self::Protobuf } else { Self::Text }
    }
}

impl<S: Sync> FromRequestParts<S> for Format {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::preferred(&parts.headers))
    }
}

/// Whether it is protobuf, and the parameters name the message and encoding that listenq writes.
/// Prometheus sends both.
fn is_delimited_family(media: &Alternative<'_>) -> bool {
    media.is_any_of(&["application/vnd.google.protobuf"])
        && media.has("proto", "io.prometheus.client.MetricFamily")
        && media.has("encoding", "delimited")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preferred(value: &'static str) -> Format {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, value.parse().unwrap());
        Format::preferred(&headers)
    }

    #[test]
    fn protobuf_is_for_clients_that_prefer_it() {
        for value in [
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
            // Prometheus 3 with native histograms, and Prometheus 2.
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,\
             application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited, text/plain",
            "Application/Vnd.Google.Protobuf;Proto=\"io.prometheus.client.MetricFamily\";Encoding=\"delimited\"",
        ] {
            assert_eq!(preferred(value), Format::Protobuf, "{value}");
        }
        for value in [
            "",
            "*/*",
            "text/html,*/*;q=0.8",
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
            "application/vnd.google.protobuf;encoding=delimited",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=x",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.2,text/plain",
        ] {
            assert_eq!(preferred(value), Format::Text, "{value}");
        }
        assert_eq!(Format::preferred(&HeaderMap::new()), Format::Text);
    }
}
