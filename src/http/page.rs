//! The plain page at `/`: where to find what.

use axum::response::Html;

/// The page; `telemetry_path` is known to be a plain path.
pub(super) fn render(telemetry_path: &str) -> Html<String> {
    Html(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>listenq</title></head>\n\
         <body>\n<h1>listenq</h1>\n<p>Prometheus exporter for Linux listen queues, version {version} ({revision}).</p>\n\
         <ul>\n<li><a href=\"{telemetry_path}\">Metrics</a></li>\n<li><a href=\"/-/healthy\">Healthy</a></li>\n\
         <li><a href=\"/-/ready\">Ready</a></li>\n</ul>\n</body>\n</html>\n",
        version = crate::VERSION,
        revision = crate::REVISION,
    ))
}
