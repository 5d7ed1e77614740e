//! Static files of the page. Their URL changes with their content, so that a browser may cache them
//! permanently.

use std::hash::Hasher;
use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use rustc_hash::FxHasher;

use super::render::{Asked, Encoding};

/// A file that is part of the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asset {
    /// The URL path.
    pub(super) path: &'static str,
    content_type: &'static str,
    content: &'static str,
    /// The compressed content, compressed once for all clients.
    gzip: &'static LazyLock<Bytes>,
}

static STYLE_GZIP: LazyLock<Bytes> = LazyLock::new(|| compressed(STYLE.content));
static SCRIPT_GZIP: LazyLock<Bytes> = LazyLock::new(|| compressed(SCRIPT.content));
static ICON_GZIP: LazyLock<Bytes> = LazyLock::new(|| compressed(ICON.content));

pub(super) const STYLE: Asset = Asset {
    path: "/static/page.css",
    content_type: "text/css; charset=utf-8",
    content: include_str!("page/page.css"),
    gzip: &STYLE_GZIP,
};
pub(super) const SCRIPT: Asset = Asset {
    path: "/static/page.js",
    content_type: "text/javascript; charset=utf-8",
    content: include_str!("page/page.js"),
    gzip: &SCRIPT_GZIP,
};
pub(super) const ICON: Asset = Asset {
    path: "/static/icon.svg",
    content_type: "image/svg+xml",
    content: include_str!("page/icon.svg"),
    gzip: &ICON_GZIP,
};

/// Compresses `content`. Writing to memory does not fail; on an error, an empty file would be
/// served.
fn compressed(content: &str) -> Bytes {
    Encoding::Gzip.encode(content.to_owned()).unwrap_or_default().into()
}

// === impl Asset ===

impl Asset {
    /// The link to the file, relative to the page.
    pub(super) fn link(self) -> String {
        let mut hasher = FxHasher::default();
        hasher.write(self.content.as_bytes());
        format!(".{}?{:016x}", self.path, hasher.finish())
    }

    pub(super) fn answer(self, asked: Asked) -> Response {
        let content = match asked.encoding() {
            Encoding::Identity => Bytes::from_static(self.content.as_bytes()),
            Encoding::Gzip => Bytes::clone(self.gzip),
        };
        let answer = asked.encoding().response(self.content_type, content);
        ([(header::CACHE_CONTROL, "max-age=31536000, immutable")], answer).into_response()
    }
}
