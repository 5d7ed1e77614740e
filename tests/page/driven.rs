//! Tests the page in a browser that runs its script.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use listenq::diagnosis::Diagnosis;
use listenq::view::View;

use listenq_lab::browser::{Browser, CHROMIUM, Scheme};
use listenq_lab::client::fill;
use listenq_lab::listener::Listen;
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::netns::Netns;
use listenq_lab::tool::require_tool;
use listenq_lab::wait::TIMEOUT;
use listenq_lab::{Signal, wait::eventually};

use crate::BIN;
use crate::made::{HOSTILE, Site, busy, hostile, idle, lively, troubled, view, waves};

/// A time longer than the page waits between two requests.
const TURN: Duration = Duration::from_millis(2_500);
/// A time longer than a response takes.
const SETTLED: Duration = Duration::from_millis(500);

fn ready() -> bool {
    Netns::require_root() && require_tool(CHROMIUM)
}

fn open(ns: &Netns, url: &str) -> Browser {
    let mut browser = Browser::start(ns);
    browser.view(1_280, 800, Scheme::Light);
    browser.open(url);
    browser
}

fn daemon(ns: &Netns) -> (Daemon, String) {
    let daemon = Launch::new(BIN).inside(ns).start();
    // Chromium listens on a Unix socket of its own.
    let url = format!("http://{}/?filter=tcp", daemon.address());
    (daemon, url)
}

/// Waits until an element that the selector matches has this text.
#[track_caller]
fn await_text(browser: &mut Browser, selector: &str, text: &str) {
    let found = format!("document.querySelectorAll({selector:?})");
    browser.await_true(&format!("[...{found}].some(e => e.innerText.includes({text:?}))"));
}

/// Checks that the browser reports no error and that every request went to the server of `url`.
#[track_caller]
fn assert_clean(browser: &mut Browser, url: &str) {
    assert_eq!(browser.errors(), [""; 0]);
    let requests = browser.requests();
    assert!(requests.len() > 3, "{requests:?}");
    let (site, _) = url.rsplit_once('/').unwrap();
    assert!(requests.iter().all(|request| request.starts_with(site)), "{requests:?}");
}

#[test]
fn the_page_follows_what_happens_without_being_loaded_again() {
    if !ready() {
        return;
    }
    let ns = Netns::new("live");
    let first = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let (_daemon, url) = daemon(&ns);
    let mut browser = open(&ns, &url);
    assert_eq!(browser.texts("[data-key]").len(), 2);
    browser.evaluate("window.mark = 1");
    let second = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(9).open());
    await_text(&mut browser, "[data-key]", &second.addr().to_string());
    let _clients = ns.run(|| fill(first.target(), 3));
    await_text(&mut browser, ".queue b", "3");
    let _more = ns.run(|| fill(first.target(), 1));
    await_text(&mut browser, ".queue b", "4");
    drop(second);
    browser.await_true("document.querySelectorAll('[data-key]').length === 2");
    assert_eq!(browser.evaluate("window.mark"), 1);
    assert_eq!(browser.texts("#status"), ["Live"]);
    assert_clean(&mut browser, &url);
}

#[test]
fn a_filter_works_while_it_is_typed_and_stays() {
    if !ready() {
        return;
    }
    let ns = Netns::new("typed");
    let site = Site::serve(&ns, lively());
    let url = site.url("/");
    let mut browser = open(&ns, &url);
    assert_eq!(browser.evaluate("document.querySelectorAll('[data-key]').length"), 26);
    browser.type_into("input", "php tcp");
    browser.await_true("document.querySelectorAll('[data-key]').length === 1");
    assert_eq!(browser.texts("h3"), ["php-fpm8.2 127.0.0.1:9000"]);
    assert_eq!(browser.texts(".matches"), ["1 of 26 listeners match"]);
    assert_eq!(browser.evaluate("location.search"), "?filter=php+tcp");
    let asked = browser.requests().len();
    browser.await_true(&requests_beyond(asked + 1));
    assert_eq!(browser.texts("h3"), ["php-fpm8.2 127.0.0.1:9000"]);
    assert_eq!(
        browser.evaluate("document.activeElement === document.querySelector('input')"),
        true
    );
    let filtered = site.url("/?filter=php+tcp");
    browser.open(&filtered);
    assert_eq!(browser.evaluate("document.querySelector('input').value"), "php tcp");
    browser.type_into("input", "");
    browser.await_true("document.querySelectorAll('[data-key]').length === 26");
    assert_clean(&mut browser, &url);
}

/// A JavaScript expression: whether the page has made `number` or more requests since it loaded.
fn requests_beyond(number: usize) -> String {
    format!("performance.getEntriesByType('resource').length >= {number}")
}

#[test]
fn open_rows_scroll_position_and_selection_survive_a_refresh() {
    if !ready() {
        return;
    }
    let ns = Netns::new("kept");
    let site = Site::serve(&ns, lively());
    let url = site.url("/");
    let mut browser = open(&ns, &url);
    browser.click(".rows summary");
    browser.evaluate(
        "scrollTo(0, 400), getSelection().selectAllChildren(document.querySelector('tbody th .address'))",
    );
    let open = "document.querySelectorAll('.rows [open] .body').length";
    let state = format!("[{open}, scrollY, String(getSelection())].join()");
    let before = browser.evaluate(&state);
    assert_eq!(before, "1,400,127.0.0.1:5000");
    browser.await_true(&requests_beyond(4));
    assert_eq!(browser.evaluate(&state), before);
    assert_clean(&mut browser, &url);
}

/// Two listeners in trouble and three busy ones, the worst first or, if reversed, last.
fn ordered(is_reversed: bool) -> View {
    let mut words = [Diagnosis::Stalled, Diagnosis::ShortQueue];
    let mut lengths = [30, 20, 10];
    if is_reversed {
        words.reverse();
        lengths.reverse();
    }
    let of = |port: &str, length| busy(idle("127.0.0.1", port, "web"), length, 100, &waves(40));
    let mut listeners = vec![troubled(of("1", 9), &[words[0]]), troubled(of("2", 9), &[words[1]])];
    listeners.extend(["3", "4", "5"].iter().zip(lengths).map(|(port, length)| of(port, length)));
    view(listeners)
}

#[test]
fn listeners_keep_their_order_for_a_while() {
    if !ready() {
        return;
    }
    let ns = Netns::new("places");
    let site = Site::serve(&ns, ordered(false));
    let mut browser = open(&ns, &site.url("/"));
    let shown = |selector: &str| {
        format!(
            "[...document.querySelectorAll('{selector} .address')].map(e => e.innerText.slice(-1)).join('')"
        )
    };
    let [cards, rows] = [".card", ".busy summary"].map(shown);
    assert_eq!([browser.evaluate(&cards), browser.evaluate(&rows)], ["12", "345"]);
    browser.click(".busy summary");
    // A change of the order directly after another change.
    browser.evaluate("document.querySelector('input').dispatchEvent(new Event('input'))");
    std::thread::sleep(TURN);
    site.publish(ordered(true));
    let begin = Instant::now();
    browser.await_true("document.querySelector('.card .badge').innerText === 'short_queue'");
    assert_eq!([browser.evaluate(&cards), browser.evaluate(&rows)], ["12", "345"]);
    browser.await_true(&format!("{cards} === '21'"));
    let waited = begin.elapsed();
    println!("sorted again after {waited:?}");
    // The order may change 10 s after the last change, which was up to 3 s earlier.
    assert!(waited > Duration::from_secs(6), "{waited:?}");
    // The open row stays where it was.
    assert_eq!(browser.evaluate(&rows), "354");
    assert_clean(&mut browser, &site.url("/"));
}

#[test]
fn the_page_does_not_refresh_while_it_is_hidden_or_paused() {
    if !ready() {
        return;
    }
    let ns = Netns::new("rests");
    let site = Site::serve(&ns, lively());
    let mut browser = open(&ns, &site.url("/"));
    let hide = |hidden: bool| {
        format!(
            "Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }}), \
             document.dispatchEvent(new Event('visibilitychange'))"
        )
    };
    let pause = "document.getElementById('pause').click()";
    for (stop, go_on) in [(hide(true), hide(false)), (pause.into(), pause.into())] {
        browser.evaluate(&stop);
        // The browser reports a request that was in progress a moment later.
        std::thread::sleep(SETTLED);
        let asked = browser.requests().len();
        std::thread::sleep(TURN);
        assert_eq!(browser.requests().len(), asked);
        browser.evaluate(&go_on);
        eventually("a refresh", TIMEOUT, || (browser.requests().len() > asked).then_some(()));
    }
    assert_eq!(browser.texts("#pause"), ["Pause"]);
}

#[test]
fn the_page_shows_that_the_daemon_does_not_answer() {
    if !ready() {
        return;
    }
    let ns = Netns::new("gone");
    let (mut daemon, url) = daemon(&ns);
    let mut browser = open(&ns, &url);
    await_text(&mut browser, "#status", "Live");
    let _ = daemon.stop(Signal::TERM);
    await_text(&mut browser, "#status", "No answer since");
    assert_eq!(browser.evaluate("document.body.className"), "stale");
    let address = format!("--web.listen-address={}", daemon.address());
    let _again = Launch::new(BIN).args(&[&address]).inside(&ns).start();
    await_text(&mut browser, "#status", "Live");
    assert_eq!(browser.evaluate("document.body.className"), "");
}

#[test]
fn the_page_fits_wide_and_narrow_windows_in_light_and_dark_mode() {
    if !ready() {
        return;
    }
    let ns = Netns::new("sizes");
    let site = Site::serve(&ns, lively());
    let shots = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut browser = Browser::start(&ns);
    for (width, scheme) in
        [(1_280, Scheme::Light), (1_280, Scheme::Dark), (390, Scheme::Light), (390, Scheme::Dark)]
    {
        browser.view(width, 800, scheme);
        browser.open(&site.url("/"));
        browser.evaluate("document.querySelectorAll('details').forEach(row => row.open = true)");
        let png = browser.screenshot();
        fs::write(shots.join(format!("page-{width}-{scheme:?}.png")), &png).unwrap();
        assert_eq!(browser.evaluate("document.documentElement.scrollWidth"), width);
        let cut = "[...document.querySelectorAll('main :not(svg *)')].filter(e => e.scrollWidth > e.clientWidth + 1 && \
                   e.clientWidth > 0).map(e => e.tagName + ' ' + e.className)";
        assert_eq!(browser.evaluate(cut), serde_json::json!([]), "{width} {scheme:?}");
        let light = browser.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(c => c > 128)",
        );
        assert_eq!(light, scheme == Scheme::Light);
    }
}

#[test]
fn names_with_markup_are_shown_as_text() {
    if !ready() {
        return;
    }
    let ns = Netns::new("markup");
    let site = Site::serve(&ns, hostile());
    let mut browser = open(&ns, &site.url("/"));
    assert_eq!(browser.texts(".card h3 bdi"), [HOSTILE, HOSTILE]);
    assert_eq!(browser.evaluate("[document.scripts.length, document.images.length].join()"), "1,0");
    browser.type_into("input", HOSTILE);
    browser
        .await_true("document.querySelector('.matches')?.innerText === '3 of 3 listeners match'");
    assert_eq!(browser.evaluate("[document.scripts.length, document.images.length].join()"), "1,0");
    assert_clean(&mut browser, &site.url("/"));
}

#[test]
fn the_page_is_complete_without_scripts_and_its_markup_is_valid() {
    if !ready() {
        return;
    }
    let ns = Netns::new("noscript");
    let site = Site::serve(&ns, lively());
    let mut browser = Browser::start(&ns);
    browser.allow_script(false);
    browser.open(&site.url("/"));
    assert_eq!(browser.texts("[data-key]").len(), 26);
    assert_eq!(browser.texts("#status"), ["Reload for newer numbers."]);
    assert_eq!(browser.evaluate("document.getElementById('pause').checkVisibility()"), false);
    // The browser's document is equal to the markup that was sent: the browser did not close, move
    // or drop an element.
    let sent = site.text("/").replace("<!DOCTYPE html>", "").replace(" defer>", " defer=\"\">");
    assert_eq!(browser.dom(), sent.replace(" hidden>", " hidden=\"\">"));
    assert_eq!(browser.errors(), [""; 0]);
}
