//! Tests the page as the daemon sends it, for a browser without script.

use std::time::Instant;

use listenq::report::{Listener, Report};
use listenq::snapshot::owner::Owner;
use listenq::view::{ListenerView, View};
use listenq_lab::http::Response;
use listenq_lab::listenq::Launch;
use listenq_lab::netns::Netns;

use crate::BIN;
use crate::made::{HOSTILE, Site, busy, hostile, idle, lively, view, waves};

const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

fn site(hint: &str, view: View) -> (Netns, Site) {
    let ns = Netns::new(hint);
    let site = Site::serve(&ns, view);
    (ns, site)
}

/// The keys of all listeners on a page, in the order of the page.
fn keys(html: &str) -> Vec<&str> {
    let parts = html.split("data-key=\"").skip(1);
    parts.map(|part| part.split_once('"').unwrap().0).collect()
}

/// The values of all attributes of this name, in order.
fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let opening = format!(" {name}=\"");
    let found = html.match_indices(&opening).map(|(at, _)| &html[at + opening.len()..]);
    found.map(|rest| rest.split_once('"').unwrap().0).collect()
}

fn assert_headers(answer: &Response, expected: &[(&str, &str)]) {
    let always = [
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
    ];
    for (name, value) in always.iter().chain(expected) {
        assert_eq!(answer.header(name), Some(*value), "{name} of {:?}", answer.headers);
    }
}

#[test]
fn every_answer_forbids_a_browser_what_it_does_not_need() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("headers");
    let daemon = Launch::new(BIN).inside(&ns).start();
    let html = ("content-type", "text/html; charset=utf-8");
    let fresh = ("cache-control", "no-store");
    assert_headers(&daemon.get("/", &[]), &[html, fresh]);
    assert_headers(&daemon.get("/?filter=a", &[]), &[html, fresh]);
    assert_headers(&daemon.get("/api/v1/listeners", &[]), &[fresh]);
    for path in ["/metrics", "/-/ready", "/-/healthy", "/nothing", "/static/nothing"] {
        assert_headers(&daemon.get(path, &[]), &[]);
    }
}

#[test]
fn static_files_of_the_page_may_be_cached_for_a_year() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("static");
    let daemon = Launch::new(BIN).inside(&ns).start();
    let answer = daemon.get("/", &[]);
    let html = answer.text();
    let links = [attributes(html, "src"), attributes(html, "href")].concat();
    let parts: Vec<_> = links.into_iter().filter(|link| link.starts_with("./static/")).collect();
    assert_eq!(parts.len(), 3, "{html}");
    for link in parts {
        assert_eq!(link.split_once('?').map(|(_, hash)| hash.len()), Some(16), "{link}");
        let part = daemon.get(&link[1..], &[]);
        assert_eq!(part.status, 200, "{link}");
        assert_headers(&part, &[("cache-control", "max-age=31536000, immutable")]);
        assert!(!part.text().contains("http://") || link.contains("icon.svg"), "{link}");
    }
}

#[test]
fn nothing_is_inline_and_every_link_is_relative() {
    if !Netns::require_root() {
        return;
    }
    let (_ns, site) = site("inline", lively());
    let html = site.text("/");
    assert_eq!(html.matches("<script").count(), 1);
    assert!(html.contains(" defer></script>"), "{html}");
    for inline in ["<style", " style=", " onclick=", " onload=", " oninput=", "javascript:"] {
        assert!(!html.contains(inline), "{inline}");
    }
    let links = [attributes(&html, "src"), attributes(&html, "href"), attributes(&html, "action")];
    let links = links.concat();
    assert_eq!(links.len(), 10, "{links:?}");
    assert!(links.iter().all(|link| link.starts_with("./")), "{links:?}");
}

#[test]
fn links_lead_to_the_other_answers() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("links");
    let daemon = Launch::new(BIN).inside(&ns).start();
    let answer = daemon.get("/", &[]);
    for link in ["./metrics", "./api/v1/listeners", "./-/healthy", "./-/ready"] {
        assert!(answer.text().contains(&format!("<a href=\"{link}\">")), "{}", answer.text());
        assert_eq!(daemon.get(&link[1..], &[]).status, 200, "{link}");
    }
}

#[test]
fn names_from_the_system_are_text_and_nothing_else() {
    if !Netns::require_root() {
        return;
    }
    let (_ns, site) = site("hostile", hostile());
    let query: String =
        form_urlencoded::Serializer::new(String::new()).append_pair("filter", HOSTILE).finish();
    for path in ["/".to_owned(), format!("/?{query}")] {
        let html = site.text(&path);
        assert_eq!(html.matches("<script").count(), 1, "{html}");
        assert!(!html.contains("<img") && !html.contains("\"'&amp;\""), "{html}");
        assert!(!html.contains("</style>") && html.matches("</title>").count() < 10, "{html}");
        assert_eq!(keys(&html).len(), 3, "{html}");
        assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{html}");
    }
}

#[test]
fn control_and_direction_marks_in_names_are_spelled_out() {
    if !Netns::require_root() {
        return;
    }
    let owner = Owner { process: "a\n\u{1b}[31m\u{202e}b".into(), ..Owner::default() };
    let listener = ListenerView { owner: owner.into(), ..idle("::", "80", "a") };
    let (_ns, site) = site("marks", view(vec![listener]));
    let html = site.text("/");
    assert!(html.contains(r">a\x0A\x1B[31m\xE2\x80\xAEb</bdi>"), "{html}");
}

#[test]
fn the_page_is_in_the_order_of_the_report() {
    if !Netns::require_root() {
        return;
    }
    let (_ns, site) = site("order", lively());
    let html = site.text("/");
    let report: Report = serde_json::from_str(&site.text("/api/v1/listeners")).unwrap();
    let expected = report.listeners.iter().map(Listener::named);
    assert_eq!(keys(&html), expected.collect::<Vec<_>>());
    assert!(html.contains("<title>(2) "), "{html}");
    let places: Vec<_> = ["In trouble <span>2<", "In use <span>3<", "Idle <span>21<"]
        .map(|heading| html.find(heading).unwrap())
        .into();
    assert!(places.is_sorted(), "{places:?}");
}

#[test]
fn a_filter_leaves_the_others_out_without_any_script() {
    if !Netns::require_root() {
        return;
    }
    let (_ns, site) = site("filter", lively());
    let shown = |query: &str| {
        let html = site.text(&format!("/?filter={query}"));
        keys(&html).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let [pool, socket] = ["host/tcp/127.0.0.1:9000", "host/unix//run/php/php8.2-fpm.sock"];
    assert_eq!(shown("PHP"), [pool, socket]);
    assert_eq!(shown("php+tcp"), [pool]);
    assert_eq!(shown("abandoned"), [pool]);
    assert_eq!(shown("5019"), ["host/tcp/127.0.0.1:5019"]);
    assert_eq!(shown("absent"), [""; 0]);
    assert_eq!(shown("").len(), 26);
    let html = site.text("/?filter=absent");
    assert!(html.contains("No listener matches.") && html.contains("0 of 26 listeners match"));
    assert!(html.contains(r#"name="filter" value="absent""#), "{html}");
}

#[test]
fn missing_samples_features_and_listeners_are_shown_at_the_top() {
    if !Netns::require_root() {
        return;
    }
    let mut view = lively();
    view.namespaces[0].tcp_sampled_at = None;
    view.stats.omissions.listeners = 7;
    view.stats.inaccessible_namespaces = Some(2);
    let (_ns, site) = site("missing", view);
    let html = site.text("/");
    for said in [
        "No good sample of the last 10 seconds.",
        "Without <code>owners</code>: sockets of other accounts have no process",
        "1 network namespace, 2 more could not be entered",
        "7 more omitted because of --listener.max",
        "sampled every 100 ms",
        "2023-11-14 22:13:20 UTC",
    ] {
        assert!(html.contains(said), "{said} in {html}");
    }
    // Their numbers are too old to be shown.
    assert_eq!(keys(&html), ["host/unix//run/php/php8.2-fpm.sock", "host/unix/@/tmp/.X11-unix/X0"]);
}

#[test]
fn metrics_at_the_root_replace_the_page_and_not_the_json() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("root");
    let daemon = Launch::new(BIN).args(&["--web.telemetry-path=/"]).inside(&ns).start();
    let status = |path| daemon.get(path, &[]).status;
    assert!(daemon.get("/", &[]).text().starts_with("# HELP"));
    assert_eq!(["/api/v1/listeners", "/static/page.css"].map(status), [200, 404]);
}

#[test]
fn a_thousand_listeners_are_rendered_at_once() {
    if !Netns::require_root() {
        return;
    }
    let many = |make: fn(ListenerView) -> ListenerView| {
        let listener = |port: u32| make(idle("192.0.2.1", &port.to_string(), "worker"));
        view((10_000..11_000).map(listener).collect())
    };
    let gzip = [("accept-encoding", "gzip")];
    for (what, view) in [
        ("idle", many(|listener| listener)),
        ("in use", many(|listener| busy(listener, 5, 128, &waves(90)))),
    ] {
        let (_ns, site) = site("many", view);
        let html = site.text("/");
        let begin = Instant::now();
        site.text("/");
        let took = begin.elapsed();
        let packed = site.get("/", &gzip).body.len();
        println!("1,000 {what}: {} bytes, {packed} packed, {took:?}", html.len());
        assert_eq!(keys(&html).len(), 1_000);
        assert!(html.len() < 1_500_000 && packed < 150_000);
    }
}
