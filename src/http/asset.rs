//! Files that are part of the program: what the page looks like and how it keeps itself fresh. Their address changes
//! with their content, so a browser may keep them for good.

use std::hash::Hasher;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use rustc_hash::FxHasher;

/// A file that is part of the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asset {
    /// Where it is served.
    pub(super) path: &'static str,
    content_type: &'static str,
    content: &'static str,
}

pub(super) const STYLE: Asset = Asset {
    path: "/static/page.css",
    content_type: "text/css; charset=utf-8",
    content: include_str!("page/page.css"),
};
pub(super) const SCRIPT: Asset = Asset {
    path: "/static/page.js",
    content_type: "text/javascript; charset=utf-8",
    content: include_str!("page/page.js"),
};
pub(super) const ICON: Asset = Asset {
    path: "/static/icon.svg",
    content_type: "image/svg+xml",
    content: include_str!("page/icon.svg"),
};

// === impl Asset ===

impl Asset {
    /// Where the page finds it, below whatever path the page itself is reached by.
    pub(super) fn link(self) -> String {
        let mut hasher = FxHasher::default();
        hasher.write(self.content.as_bytes());
        format!(".{}?{:016x}", self.path, hasher.finish())
    }
}

impl IntoResponse for Asset {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, self.content_type),
            (header::CACHE_CONTROL, "max-age=31536000, immutable"),
        ];
        (headers, self.content).into_response()
    }
}
