//! Checks that a browser opens, reads, fills in and photographs a page, and reports all its
//! requests and errors.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use listenq_lab::browser::{Browser, CHROMIUM, Scheme};
use listenq_lab::netns::Netns;
use listenq_lab::tool::require_tool;

const PAGE: &str = r#"<!doctype html><title>t</title><link rel="icon" href="data:,">
<style>body { margin: 0; background: #fff } @media (prefers-color-scheme: dark) { body { background: #000 } }</style>
<input id="filter" value="old"><p class="row">one</p><p class="row">two</p><p id="count">0</p><div style="height: 2000px"></div>
<script>
let count = 0;
setInterval(() => document.getElementById("count").textContent = ++count, 50);
document.getElementById("filter").addEventListener("input", e => {
  for (const row of document.querySelectorAll(".row")) row.hidden = !row.textContent.includes(e.target.value);
});
</script>"#;
const BROKEN: &str = r#"<!doctype html><link rel="icon" href="data:,"><img src="/missing.png">
<script>console.log("fine"); console.error("printed", 7); throw new Error("thrown");</script>"#;

/// A few pages over HTTP. The server ends when dropped.
struct Site {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Site {
    fn start(ns: &Netns) -> Self {
        let listener = ns.run(|| TcpListener::bind("127.0.0.1:0").unwrap());
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => answer(stream),
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self { address, stop, thread: Some(thread) }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Answers one request. A browser may also connect and send nothing.
fn answer(stream: TcpStream) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
    let Some(request) = lines.next() else {
        return;
    };
    for _ in lines.take_while(|line| !line.is_empty()) {}
    let (status, body) = match request.split(' ').nth(1) {
        Some("/") => ("200 OK", PAGE),
        Some("/broken") => ("200 OK", BROKEN),
        _ => ("404 Not Found", ""),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/html\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let _ = (&stream).write_all(&[head.as_bytes(), body.as_bytes()].concat());
}

fn ready() -> bool {
    Netns::require_root() && require_tool(CHROMIUM)
}

/// The width and height in a PNG file.
fn size(png: &[u8]) -> (u32, u32) {
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

#[test]
fn a_page_is_read_filled_in_and_awaited() {
    if !ready() {
        return;
    }
    let ns = Netns::new("browser");
    let site = Site::start(&ns);
    let mut browser = Browser::start(&ns);
    browser.open(&site.url("/"));
    assert_eq!(browser.texts(".row"), ["one", "two"]);
    browser.await_true("count > 3");
    assert!(browser.dom().contains(r#"<p class="row">one</p>"#));
    browser.type_into("#filter", "tw");
    assert_eq!(browser.evaluate("document.querySelector('#filter').value"), "tw");
    assert_eq!(browser.texts(".row:not([hidden])"), ["two"]);
    browser.type_into("#filter", "");
    assert_eq!(browser.texts(".row:not([hidden])"), ["one", "two"]);
    assert_eq!((browser.requests(), browser.errors()), (vec![site.url("/")], vec![]));
    assert_eq!(ns.ss_listen().len(), 1, "the browser listens nowhere");
}

#[test]
fn all_errors_of_a_page_are_reported() {
    if !ready() {
        return;
    }
    let ns = Netns::new("broken");
    let site = Site::start(&ns);
    let mut browser = Browser::start(&ns);
    browser.open(&site.url("/broken"));
    assert_eq!(browser.requests(), [site.url("/broken"), site.url("/missing.png")]);
    let errors = browser.errors();
    assert_eq!(errors.len(), 3, "{errors:?}");
    for (error, part) in errors.iter().zip(["Error: thrown", "printed", "missing.png"]) {
        assert!(error.contains(part), "{part} in {errors:?}");
    }
    browser.open(&site.url("/"));
    assert_eq!((browser.requests(), browser.errors()), (vec![site.url("/")], vec![]));
}

#[test]
fn a_screenshot_shows_the_whole_page_as_wide_as_asked_in_either_scheme() {
    if !ready() {
        return;
    }
    let ns = Netns::new("shots");
    let site = Site::start(&ns);
    let mut browser = Browser::start(&ns);
    let background = "getComputedStyle(document.body).backgroundColor";
    for (width, scheme, color) in
        [(1280, Scheme::Light, "rgb(255, 255, 255)"), (390, Scheme::Dark, "rgb(0, 0, 0)")]
    {
        browser.view(width, 700, scheme);
        browser.open(&site.url("/"));
        assert_eq!(browser.evaluate(background), color);
        let (wide, high) = size(&browser.screenshot());
        assert!(wide == width && high > 2000, "{wide} x {high}");
    }
}

#[test]
fn a_page_is_read_where_scripts_may_not_run() {
    if !ready() {
        return;
    }
    let ns = Netns::new("noscript");
    let site = Site::start(&ns);
    let mut browser = Browser::start(&ns);
    browser.allow_script(false);
    browser.open(&site.url("/"));
    thread::sleep(Duration::from_millis(200));
    assert_eq!(browser.texts("#count"), ["0"]);
    browser.allow_script(true);
    browser.open(&site.url("/"));
    browser.await_true("count > 0");
}

#[test]
fn a_browser_leaves_no_process_behind() {
    if !ready() {
        return;
    }
    let ns = Netns::new("gone");
    let browser = Browser::start(&ns);
    assert!(ns.processes() >= 1);
    drop(browser);
    listenq_lab::wait::eventually("its end", Duration::from_secs(5), || {
        (ns.processes() == 0).then_some(())
    });
}
