//! Tests the HTTP server: pages, headers, compression, and clients that are slow, many, or still
//! connected at the end.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use listenq_lab::Signal;
use listenq_lab::http::Response;
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::tool::feed;
use listenq_lab::wait::{TIMEOUT, eventually};
use socket2::{Domain, Socket, Type};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const PROTOBUF: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

fn scene(hint: &str) -> (Netns, Daemon) {
    let ns = Netns::new(hint);
    let daemon = Launch::new(BIN).inside(&ns).start();
    (ns, daemon)
}

/// A connection to the daemon on which only `bytes` were sent.
fn client(ns: &Netns, daemon: &Daemon, bytes: &[u8]) -> TcpStream {
    let mut stream = ns.run(|| TcpStream::connect(daemon.address())).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// Whether the daemon has closed the connection. Reads and ignores earlier data.
fn is_closed(stream: &mut TcpStream) -> bool {
    loop {
        match stream.read(&mut [0; 1024]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) => return e.kind() != ErrorKind::WouldBlock,
        }
    }
}

/// Names and labels of all series, sorted.
fn series(text: &str) -> BTreeSet<String> {
    Metrics::parse(text).unwrap().assert_unique();
    let lines = text.lines().map(|line| line.rsplit_once(' ').map_or(line, |(series, _)| series));
    lines.map(str::to_owned).collect()
}

/// The body of a compressed response, decompressed by `gzip`.
fn unpacked(answer: &Response) -> String {
    assert_eq!(answer.header("content-encoding"), Some("gzip"), "{:?}", answer.headers);
    let (_, output) = feed("gzip", &["-dc"], &answer.body);
    assert!(output.status.success(), "{}", output.stderr);
    output.stdout
}

#[test]
fn protobuf_is_for_clients_that_ask_for_it_and_text_for_all_others() {
    if !Netns::require_root() {
        return;
    }
    let (_ns, daemon) = scene("format");
    let family = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
    let both = format!("{family};q=0.6,text/plain;version=0.0.4;q=0.3");
    for accept in [family, &both] {
        let answer = daemon.get("/metrics", &[("Accept", accept)]);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(PROTOBUF)));
        assert_eq!(answer.header("vary"), Some("accept-encoding"));
        // The length of the first metric family, a varint, comes before the key and the length of
        // the name.
        let name = b"\x0a\x1blistenq_accept_queue_length\x12";
        let length = 1 + answer.body.iter().take_while(|byte| **byte >= 0x80).count();
        assert_eq!(&answer.body[length..length + name.len()], name);
    }
    for accept in ["*/*", "text/plain", "application/openmetrics-text;version=1.0.0"] {
        let answer = daemon.get("/metrics", &[("Accept", accept)]);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(TEXT)));
        assert!(answer.text().starts_with("# HELP listenq_accept_queue_length "));
    }
}

#[test]
fn every_page_has_its_status_type_and_body() {
    if !Netns::require_root() {
        return;
    }
    let (_ns, daemon) = scene("pages");
    let page = |path| {
        let answer = daemon.get(path, &[]);
        let body = answer.text().to_owned();
        (answer.status, answer.header("content-type").unwrap_or_default().to_owned(), body)
    };
    let plain =
        |status, text: &str| (status, "text/plain; charset=utf-8".to_owned(), text.to_owned());
    assert_eq!(page("/-/healthy"), plain(200, "listenq is healthy.\n"));
    assert_eq!(page("/-/ready"), plain(200, "listenq is ready.\n"));
    assert_eq!(page("/nothing").0, 404);
    let (status, kind, body) = page("/");
    assert_eq!((status, kind.as_str()), (200, "text/html; charset=utf-8"));
    assert!(body.contains("<a href=\"./metrics\">"), "{body}");
    let (status, kind, body) = page("/metrics");
    assert_eq!((status, kind.as_str()), (200, TEXT));
    assert!(body.ends_with('\n') && body.contains("\nlistenq_build_info{"), "{body}");
}

#[test]
fn compressed_pages_equal_the_plain_pages() {
    if !Netns::require_root() {
        return;
    }
    let (_ns, daemon) = scene("gzip");
    let gzip = [("accept-encoding", "gzip")];
    assert_eq!(daemon.get("/", &[]).header("content-encoding"), None);
    // The page itself changes with the numbers.
    let style = |headers| daemon.get("/static/page.css", headers);
    assert_eq!(unpacked(&style(&gzip)), style(&[]).text());
    assert!(unpacked(&daemon.get("/", &gzip)).starts_with("<!DOCTYPE html>"));
    // The header is the one that Prometheus sends. Values change between two scrapes; series do not
    // change after the first scans.
    eventually("the same series, packed and plain", Duration::from_secs(15), || {
        let packed = daemon.get("/metrics", &[("accept-encoding", "gzip;q=1.0,identity;q=0.5")]);
        assert_eq!((packed.status, packed.header("content-type")), (200, Some(TEXT)));
        let plain = daemon.scrape();
        assert!(packed.body.len() < plain.text().len() / 2, "{} bytes", packed.body.len());
        (series(&unpacked(&packed)) == series(plain.text())).then_some(())
    });
}

#[test]
fn the_page_links_to_the_configured_telemetry_path() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("path");
    let daemon = Launch::new(BIN).args(&["--web.telemetry-path=/queues"]).inside(&ns).start();
    assert_eq!([daemon.get("/queues", &[]).status, daemon.get("/metrics", &[]).status], [200, 404]);
    assert!(daemon.get("/", &[]).text().contains("<a href=\"./queues\">"));
}

#[test]
fn slow_clients_are_closed_after_ten_seconds_and_delay_no_other_client() {
    if !Netns::require_root() {
        return;
    }
    let (ns, daemon) = scene("slow");
    let begin = Instant::now();
    let [silent, half, trickle] = [&b""[..], b"GET /metrics HTTP/1.1\r\nHost:", b"GET /"];
    let mut streams = [silent, half, trickle].map(|bytes| client(&ns, &daemon, bytes));
    let mut cut: [Option<Duration>; 3] = [None; 3];
    while cut.contains(&None) && begin.elapsed() < 2 * TIMEOUT {
        let _ = streams[2].write_all(b"x");
        let asked = Instant::now();
        assert_eq!(daemon.get("/metrics", &[]).status, 200);
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        for (cut, stream) in cut.iter_mut().zip(&mut streams) {
            if cut.is_none() && is_closed(stream) {
                *cut = Some(begin.elapsed());
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("cut after {cut:?}");
    let in_time = |cut: &Option<Duration>| cut.is_some_and(|cut| (8..15).contains(&cut.as_secs()));
    assert!(cut.iter().all(in_time), "silent, half, trickle: {cut:?}");
}

#[test]
fn of_more_than_128_connections_the_oldest_are_closed() {
    if !Netns::require_root() {
        return;
    }
    let (ns, daemon) = scene("cap");
    let mut idle: Vec<_> = (0..300).map(|_| client(&ns, &daemon, b"")).collect();
    eventually("the first connections to be closed", Duration::from_secs(5), || {
        let closed: Vec<bool> = idle.iter_mut().map(is_closed).collect();
        (closed == (0..300).map(|n| n < 172).collect::<Vec<_>>()).then_some(())
    });
    // An open connection still gets responses, and new clients are served.
    let mut last = idle.remove(299);
    last.write_all(b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    last.set_nonblocking(false).unwrap();
    last.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut status = [0; 12];
    last.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    assert_eq!(daemon.get("/metrics", &[]).status, 200);
    drop(idle);
}

#[test]
fn a_request_head_above_the_maximum_is_refused() {
    if !Netns::require_root() {
        return;
    }
    let (ns, daemon) = scene("head");
    let answer = |bytes: usize| {
        let mut stream = ns.run(|| TcpStream::connect(daemon.address())).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let filler = "a".repeat(bytes);
        let _ = write!(stream, "GET /-/healthy HTTP/1.1\r\nHost: a\r\nCookie: {filler}\r\n\r\n");
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        String::from_utf8_lossy(&status).into_owned()
    };
    assert_eq!([20_000, 200_000].map(answer), ["HTTP/1.1 200", "HTTP/1.1 431"]);
}

/// A connection from 127.0.0.2 that sends requests and reads nothing: the kernel's buffers fill,
/// and then the daemon waits.
fn deaf_client(daemon: &Daemon) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
    socket.connect(&daemon.address().into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_nonblocking(true).unwrap();
    let _ = stream.write(&b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000));
    stream
}

#[test]
fn clients_that_never_read_lose_their_places_after_thirty_seconds_and_to_clients_of_other_addresses()
 {
    if !Netns::require_root() {
        return;
    }
    let (ns, daemon) = scene("deaf");
    let deaf: Vec<_> = ns.run(|| (0..256).map(|_| deaf_client(&daemon)).collect());
    let begin = Instant::now();
    eventually("every place to be taken", TIMEOUT, || (daemon.descriptors() > 128).then_some(()));
    let mut taken = 0;
    let free = eventually("the places", 5 * TIMEOUT, || {
        assert_eq!(daemon.get("/-/ready", &[]).status, 200);
        let descriptors = daemon.descriptors();
        taken = taken.max(descriptors);
        (descriptors < 64).then(|| begin.elapsed())
    });
    println!("at most {taken} descriptors, all places free again after {free:?}");
    assert!((25..45).contains(&free.as_secs()), "{free:?}");
    assert_eq!(daemon.get("/metrics", &[]).status, 200);
    drop(deaf);
}

#[test]
fn sigterm_and_sigint_end_the_daemon_within_a_second() {
    if !Netns::require_root() {
        return;
    }
    for signal in [Signal::TERM, Signal::INT] {
        let (ns, mut daemon) = scene("stop");
        let served = b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut clients =
            [&b""[..], b"GET /metrics HTTP/1.1\r\nHos", served].map(|b| client(&ns, &daemon, b));
        eventually("an answer", TIMEOUT, || {
            clients[2].read(&mut [0; 1024]).is_ok_and(|n| n > 0).then_some(())
        });
        let stopped = daemon.stop(signal);
        println!("{signal:?}: {:?} after {:?}", stopped.status, stopped.took);
        assert_eq!(stopped.status.code(), Some(0), "{signal:?}: {:?}", daemon.log());
        assert!(stopped.took < Duration::from_secs(2), "{signal:?}: {:?}", stopped.took);
        assert!(clients.iter_mut().all(is_closed));
    }
}

/// The effective and permitted capabilities of each thread, by thread name.
fn capabilities(daemon: &Daemon) -> BTreeMap<String, [u64; 2]> {
    let of = |task: &Path| {
        let status = fs::read_to_string(task.join("status")).unwrap();
        ["CapEff:", "CapPrm:"].map(|name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        })
    };
    daemon.threads().iter().map(|(task, name, _)| (name.clone(), of(task))).collect()
}

#[test]
fn threads_that_serve_or_log_hold_no_capability() {
    if !Netns::require_root() {
        return;
    }
    const DAC_READ_SEARCH: u64 = 1 << 2;
    let (root, ns) = (Rootfs::new(), Netns::new("capabilities"));
    let flag = format!("--web.config.file={}", root.file("web.yml", "").display());
    let daemon = Launch::new(BIN).args(&[&flag]).inside(&ns).start();
    // Rendering starts a worker thread.
    assert_eq!(daemon.get("/metrics", &[]).status, 200);
    let mut held = capabilities(&daemon);
    for name in ["listenq", "http-worker", "log"] {
        assert_eq!(held.remove(name), Some([0, 0]), "{name}");
    }
    assert_eq!(held.remove("web-config"), Some([DAC_READ_SEARCH; 2]));
    // The other threads read from the kernel.
    assert!(held.contains_key("sampler"), "{held:?}");
    assert!(held.values().all(|[effective, _]| *effective != 0), "{held:?}");
    // Stopping needs no capabilities.
    let mut daemon = daemon;
    assert_eq!(daemon.stop(Signal::TERM).status.code(), Some(0));
}

#[test]
fn the_page_and_the_json_answer_only_for_names_of_the_machine() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("host");
    let daemon = Launch::new(BIN).args(&["--web.allowed-host=listenq.example"]).inside(&ns).start();
    let machine = rustix::system::uname().nodename().to_str().unwrap().to_owned();
    let status = |path: &str, host: &str| {
        let mut stream = ns.run(|| TcpStream::connect(daemon.address())).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.contains("--web.allowed-host"), answer.contains(" 421 "), "{answer}");
        answer[9..12].to_owned()
    };
    for host in
        [&*daemon.address().to_string(), "localhost:80", &machine, "listenq.example", "[::1]"]
    {
        assert_eq!(status("/", host), "200", "{host}");
        assert_eq!(status("/api/v1/listeners", host), "200", "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", ""] {
        assert_eq!(status("/", host), "421", "{host}");
        assert_eq!(status("/?filter=a", host), "421", "{host}");
        assert_eq!(status("/api/v1/listeners", host), "421", "{host}");
        for path in ["/metrics", "/-/healthy", "/-/ready"] {
            assert_eq!(status(path, host), "200", "{host}");
        }
    }
}
