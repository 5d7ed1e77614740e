//! Tests the secured endpoint with real clients: curl, openssl and Prometheus; and web
//! configurations that are invalid or change.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use listenq_lab::Signal;
use listenq_lab::certificate::{Authority, Subject};
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::running::Running;
use listenq_lab::tool::require_tool;
use listenq_lab::wait::{TIMEOUT, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const TLS: &str = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n";
const LOCAL: Subject<'_> = Subject { names: &["localhost", "127.0.0.1"], until: 2100 };
/// A bcrypt hash of "right", made by crypt(3), an implementation other than listenq's.
const RIGHT_8: &str = "$2y$08$abcdefghijklmnopqrstuuM7WmALSPQG/ubL8NksTdR4H7Y2WXZ..";
/// A bcrypt hash of "right" with cost 10, from the same source.
const RIGHT_10: &str = "$2y$10$abcdefghijklmnopqrstuu1VS0P7v3ZJmd2gzBFIzgfN7OOl6Rl52";

/// A directory with a certificate authority, certificates that it signed, and web configurations.
struct Files {
    root: Rootfs,
    authority: Authority,
}

/// A daemon with a web configuration, `web.yml`.
struct Scene {
    ns: Netns,
    files: Files,
    daemon: Daemon,
}

// === impl Files ===

impl Files {
    fn new() -> Self {
        let root = Rootfs::new();
        let authority = Authority::new(root.path(), "ca");
        authority.sign("server", LOCAL);
        Self { root, authority }
    }

    fn path(&self, name: &str) -> String {
        self.root.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.root.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

// === impl Scene ===

impl Scene {
    fn new(hint: &str, config: &str) -> Self {
        Self::with(hint, Files::new(), config)
    }

    fn with(hint: &str, files: Files, config: &str) -> Self {
        Self::launch(hint, files, config, &[])
    }

    fn launch(hint: &str, files: Files, config: &str, flags: &[&str]) -> Self {
        let ns = Netns::new(hint);
        let flag = format!("--web.config.file={}", files.write("web.yml", config).display());
        let daemon = Launch::new(BIN).args(&[&flag]).args(flags).inside(&ns).unready().start();
        Self { ns, files, daemon }
    }

    /// Requests this page with curl. Returns the status, `000` without a connection, and the
    /// response.
    fn curl(&self, scheme: &str, path: &str, args: &[&str]) -> (String, String) {
        let url = format!("{scheme}://{}{path}", self.daemon.address());
        let mut command = self.ns.command("curl");
        command.args(["-s", "-i", "--max-time", "20", "-w", "\n%{http_code}", "--cacert"]);
        let output = command.arg(self.files.path("ca.pem")).args(args).arg(url).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (answer, status) = text.rsplit_once('\n').unwrap();
        (status.to_owned(), answer.to_owned())
    }

    fn status(&self, scheme: &str, path: &str, args: &[&str]) -> String {
        self.curl(scheme, path, args).0
    }

    /// The status for a client with the certificate of this name.
    fn status_as(&self, client: &str) -> String {
        let [cert, key] = ["pem", "key"].map(|kind| self.files.path(&format!("{client}.{kind}")));
        self.status("https", "/-/healthy", &["--cert", &cert, "--key", &key])
    }

    /// Runs a handshake with openssl, which trusts this authority.
    fn s_client(&self, authority: &str, args: &[&str]) -> Output {
        let mut command = self.ns.command("openssl");
        command.args(["s_client", "-connect", &self.daemon.address().to_string()]).args(args);
        command.args(["-verify_return_error", "-CAfile", &self.files.path(authority)]);
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn shakes_hands(&self, args: &[&str]) -> bool {
        self.s_client("ca.pem", args).status.success()
    }

    fn metrics(&self, scheme: &str, args: &[&str]) -> Metrics {
        let (status, answer) = self.curl(scheme, "/metrics", args);
        assert_eq!(status, "200", "{answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        Metrics::parse(body).unwrap()
    }

    /// The gauge that reports the result of the last reload.
    fn reloaded(&self, scheme: &str, args: &[&str]) -> Option<f64> {
        self.metrics(scheme, args).value("listenq_web_config_last_reload_successful", &[])
    }

    /// The log lines that contain these words.
    fn said(&self, words: &str) -> Vec<String> {
        self.daemon.log().into_iter().filter(|line| line.contains(words)).collect()
    }
}

fn have_tools(tools: &[&str]) -> bool {
    Netns::require_root() && tools.iter().all(|tool| require_tool(tool))
}

#[test]
fn tls_follows_the_web_configuration() {
    if !have_tools(&["curl", "openssl"]) {
        return;
    }
    let scene = Scene::new("tls", TLS);
    assert_eq!(scene.status("https", "/metrics", &[]), "200");
    assert_eq!(scene.status("http", "/metrics", &[]), "000");
    assert!(scene.shakes_hands(&["-tls1_2"]) && scene.shakes_hands(&["-tls1_3"]));
    assert!(!scene.shakes_hands(&["-tls1_1"]));
    let newest = format!("{TLS}  min_version: TLS13\n  curve_preferences: [CurveP384]\n");
    let scene = Scene::new("tls13", &newest);
    assert!(!scene.shakes_hands(&["-tls1_2"]) && scene.shakes_hands(&["-tls1_3"]));
    assert!(!scene.shakes_hands(&["-groups", "X25519"]));
    let suite = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256";
    let oldest = format!("{TLS}  max_version: TLS12\n  cipher_suites: [{suite}]\n");
    let scene = Scene::new("tls12", &oldest);
    assert!(scene.shakes_hands(&["-tls1_2"]) && !scene.shakes_hands(&["-tls1_3"]));
    assert!(scene.shakes_hands(&["-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"]));
    assert!(!scene.shakes_hands(&["-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"]));
}

#[test]
fn an_incomplete_handshake_is_closed_after_ten_seconds() {
    if !have_tools(&["curl"]) {
        return;
    }
    let scene = Scene::new("half", TLS);
    let begin = Instant::now();
    // Nothing at all, and the head of a record that never follows.
    for bytes in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = scene.ns.run(|| TcpStream::connect(scene.daemon.address())).unwrap();
        stream.write_all(bytes).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        assert_eq!(scene.status("https", "/metrics", &[]), "200");
        assert_eq!(stream.read(&mut [0; 64]).unwrap_or(0), 0);
    }
    let each = begin.elapsed() / 2;
    assert!((8..13).contains(&each.as_secs()), "{each:?}");
}

#[test]
fn certificate_and_key_may_be_inline() {
    if !have_tools(&["curl"]) {
        return;
    }
    let files = Files::new();
    let inline = |name: &str| {
        let text = fs::read_to_string(files.path(name)).unwrap();
        text.lines().map(|line| format!("    {line}\n")).collect::<String>()
    };
    let (cert, key) = (inline("server.pem"), inline("server.key"));
    let config = format!("tls_server_config:\n  cert: |\n{cert}  key: |\n{key}");
    let scene = Scene::with("inline", files, &config);
    assert_eq!(scene.status("https", "/-/ready", &[]), "200");
}

#[test]
fn client_certificates_are_checked_by_policy() {
    if !have_tools(&["curl"]) {
        return;
    }
    // Statuses without a certificate, with a certificate of the authority, and with a certificate
    // of another authority.
    for (policy, ca, expected) in [
        ("NoClientCert", false, ["200", "200", "200"]),
        ("RequestClientCert", false, ["200", "200", "200"]),
        ("RequireAnyClientCert", false, ["000", "200", "200"]),
        ("VerifyClientCertIfGiven", true, ["200", "200", "000"]),
        ("RequireAndVerifyClientCert", true, ["000", "200", "000"]),
    ] {
        let files = Files::new();
        let stranger = Authority::new(files.root.path(), "stranger");
        files.authority.sign("known", LOCAL);
        stranger.sign("unknown", LOCAL);
        let ca = if ca { "  client_ca_file: ca.pem\n" } else { "" };
        let scene =
            Scene::with("policy", files, &format!("{TLS}  client_auth_type: {policy}\n{ca}"));
        let without = scene.status("https", "/-/healthy", &[]);
        let got = [without, scene.status_as("known"), scene.status_as("unknown")];
        assert_eq!(got, expected, "{policy}");
    }
}

#[test]
fn only_certificates_with_an_allowed_name_are_accepted() {
    if !have_tools(&["curl"]) {
        return;
    }
    let files = Files::new();
    let clients = [
        ("dns", "prometheus.test"),
        ("mail", "prometheus@test.test"),
        ("uri", "spiffe://test/prometheus"),
        ("ip", "192.0.2.7"),
        ("ip6", "2001:db8::7"),
        ("other", "grafana.test"),
        ("wild", "*.test"),
    ];
    for (client, name) in clients {
        files.authority.sign(client, Subject { names: &["first.test", name], until: 2100 });
    }
    let names: Vec<_> = clients[..5].iter().map(|(_, name)| format!("\"{name}\"")).collect();
    let config = format!(
        "{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n  client_allowed_sans: [{}]\n",
        names.join(", ")
    );
    let scene = Scene::with("sans", files, &config);
    let got = clients.map(|(client, _)| scene.status_as(client));
    assert_eq!(got, ["200", "200", "200", "200", "200", "000", "000"]);
}

#[test]
fn every_page_asks_for_a_password_and_has_the_headers() {
    if !have_tools(&["curl"]) {
        return;
    }
    let config = format!(
        "basic_auth_users:\n  alice: {RIGHT_8}\nhttp_server_config:\n  headers:\n    X-Frame-Options: deny\n    \
         Content-Security-Policy: default-src 'self'\n    X-XSS-Protection: \"\"\n"
    );
    let scene = Scene::new("auth", &config);
    let as_alice = ["-u", "alice:right"];
    for (path, expected) in [
        ("/", "200"),
        ("/metrics", "200"),
        ("/-/healthy", "200"),
        ("/-/ready", "200"),
        ("/x", "404"),
    ] {
        let (status, answer) = scene.curl("http", path, &[]);
        assert_eq!(status, "401", "{path}");
        assert!(answer.contains("www-authenticate: Basic realm="), "{answer}");
        let (status, answer) = scene.curl("http", path, &as_alice);
        assert_eq!(status, expected, "{path}");
        assert!(answer.contains("x-frame-options: deny\r\n"), "{answer}");
        assert!(answer.contains("content-security-policy: default-src 'self'\r\n"), "{answer}");
        assert!(!answer.contains("x-xss-protection"), "{answer}");
    }
    for wrong in ["alice:wrong", "alice:", "bob:right", ":", "alice:right\n"] {
        assert_eq!(scene.status("http", "/metrics", &["-u", wrong]), "401", "{wrong:?}");
    }
    for header in ["Authorization: Bearer x", "Authorization: Basic ?", "Authorization: Basic"] {
        assert_eq!(scene.status("http", "/metrics", &["-H", header]), "401", "{header:?}");
    }
}

#[test]
fn more_requests_than_the_rate_limit_are_refused() {
    if !have_tools(&["curl"]) {
        return;
    }
    let scene = Scene::new("rate", "rate_limit:\n  interval: 1h\n  burst: 3\n");
    let got: Vec<String> = (0..5).map(|_| scene.status("http", "/-/healthy", &[])).collect();
    assert_eq!(got, ["200", "200", "200", "429", "429"]);
}

#[test]
fn good_changes_of_the_file_are_applied_and_bad_ones_are_not() {
    if !have_tools(&["curl"]) {
        return;
    }
    let user = |name: &str| format!("{TLS}basic_auth_users:\n  {name}: {RIGHT_8}\n");
    let mut scene = Scene::new("reload", &user("alice"));
    let [alice, bob] = [["-u", "alice:right"], ["-u", "bob:right"]];
    assert_eq!(scene.reloaded("https", &alice), Some(1.0));
    scene.files.write("web.yml", &user("bob"));
    eventually("bob to be let in", TIMEOUT, || {
        (scene.status("https", "/", &bob) == "200").then_some(())
    });
    assert_eq!(scene.status("https", "/", &alice), "401");
    // Each invalid file is logged once and sets the gauge to 0; then the valid file sets the gauge
    // to 1 again.
    for (bad, words) in [
        (format!("{}hunter2: 1\n", user("alice")), "web.yml:6: unknown key"),
        (user("alice").replace("$2y$", "hunter2"), "web.yml:5: the password of this user"),
        (user("alice").replace("server.key", "hunter2"), "web.yml:3: key_file"),
        (user("alice").replace(TLS, ""), "turning TLS off"),
        (String::new(), "nothing is left"),
    ] {
        scene.files.write("web.yml", &bad);
        eventually(words, TIMEOUT, || (!scene.said(words).is_empty()).then_some(()));
        eventually("the gauge to fall", TIMEOUT, || {
            (scene.reloaded("https", &bob) == Some(0.0)).then_some(())
        });
        assert_eq!(scene.status("https", "/", &alice), "401", "{bad}");
        scene.files.write("web.yml", &user("bob"));
        eventually("the gauge to rise", TIMEOUT, || {
            (scene.reloaded("https", &bob) == Some(1.0)).then_some(())
        });
        assert_eq!(scene.said(words).len(), 1, "{:?}", scene.daemon.log());
    }
    scene.daemon.stop(Signal::TERM);
    let secrets = ["$2y$", "right", "BEGIN"];
    let log = scene.daemon.log();
    assert!(!log.iter().any(|line| secrets.iter().any(|word| line.contains(word))), "{log:#?}");
}

#[test]
fn a_new_certificate_is_served_once_its_key_matches() {
    if !have_tools(&["curl", "openssl"]) {
        return;
    }
    let scene = Scene::new("rotate", TLS);
    let issued_by = |authority: &Authority| {
        let output = scene.s_client(&format!("{}.pem", authority.name()), &[]);
        let issuer = format!("issuer=CN = {}", authority.name());
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains(&issuer)
    };
    let old = fs::read(scene.files.path("server.key")).unwrap();
    let new = Authority::new(scene.files.root.path(), "new");
    new.sign("server", LOCAL);
    let key = fs::read(scene.files.path("server.key")).unwrap();
    fs::write(scene.files.path("server.key"), old).unwrap();
    eventually("the halves not to match", TIMEOUT, || {
        (!scene.said("web.yml:3: this is not the key of the certificate").is_empty()).then_some(())
    });
    assert!(issued_by(&scene.files.authority) && !issued_by(&new));
    fs::write(scene.files.path("server.key"), key).unwrap();
    eventually("the new certificate", TIMEOUT, || issued_by(&new).then_some(()));
    assert!(!issued_by(&scene.files.authority));
}

#[test]
fn an_invalid_file_is_one_line_with_file_and_line() {
    let files = Files::new();
    files.authority.sign("old", Subject { names: &["localhost"], until: 2001 });
    files.authority.sign("other", LOCAL);
    let tls = |more: &str| format!("{TLS}{more}");
    for (text, expected) in [
        (tls("  min_version: TLS10\n"), ":4: TLS10 is no longer supported"),
        (tls("  max_version: TLS14\n"), ":4: \"TLS14\" is not one of TLS12, TLS13"),
        (
            tls("  min_version: TLS13\n  max_version: TLS12\n"),
            ":5: max_version is below min_version",
        ),
        (
            tls("  cipher_suites:\n  - TLS_RSA_WITH_AES_128_CBC_SHA\n"),
            ":5: \"TLS_RSA_WITH_AES_128_CBC_SHA\" is not one of TLS_AES",
        ),
        (
            tls("  curve_preferences: [X25519, CurveP521]\n"),
            ":4: \"CurveP521\" is not one of X25519, CurveP256",
        ),
        (tls("  client_auth_type: Maybe\n"), ":4: \"Maybe\" is not one of NoClientCert"),
        (
            tls("  client_auth_type: RequireAndVerifyClientCert\n"),
            ":4: this client_auth_type needs client_ca",
        ),
        (tls("  client_ca_file: ca.pem\n"), ":4: a client CA needs a client_auth_type"),
        (tls("  client_allowed_sans: [a]\n"), ":4: client_allowed_sans needs client_auth_type"),
        (tls("  cert: x\n"), ":2: cert and cert_file cannot both be given"),
        ("tls_server_config:\n  cert_file: server.pem\n".into(), ":2: key_file or key is missing"),
        ("tls_server_config:\n  min_version: TLS13\n".into(), ":2: cert_file or cert is missing"),
        (TLS.replace("server.pem", "server.key"), ":2: no certificate in PEM"),
        (TLS.replace("server.key", "server.pem"), ":3: no private key in PEM"),
        (TLS.replace("server.key", "other.key"), ":3: this is not the key of the certificate"),
        (TLS.replace("server.", "old."), ":2: this certificate expired on 2001-01-01"),
        (TLS.replace("server.pem", "none.pem"), ":2: cert_file "),
        (TLS.replace("server.key", "."), ":3: key_file "),
        (
            "basic_auth_users:\n  a: plain\n".into(),
            ":2: the password of this user is not a bcrypt hash",
        ),
        (
            format!("basic_auth_users:\n  a: {}\n", RIGHT_8.replace("$08$", "$15$")),
            ":2: the bcrypt cost of this user is 15, not 4 to 14",
        ),
        (
            "http_server_config:\n  headers:\n    Server: x\n".into(),
            ":3: header \"Server\" cannot be set",
        ),
        (
            "http_server_config:\n  headers:\n    X-Frame-Options: x\n".into(),
            ":3: X-Frame-Options can only be deny or sameorigin",
        ),
        ("rate_limit:\n  interval: fast\n  burst: 1\n".into(), ":2: interval is no duration"),
        ("rate_limit:\n  interval: 1s\n  burst: 0\n".into(), ":3: burst must be 1 or more"),
        ("tls_server_confg:\n".into(), ":1: unknown key \"tls_server_confg\""),
    ] {
        let path = files.write("bad.yml", &text);
        let path = path.to_str().unwrap();
        let expected = format!("listenq: {path}{expected}");
        let flag = format!("--web.config.file={path}");
        for args in [&["check-web-config", path][..], &[&flag]] {
            let output = Launch::new(BIN).args(args).run();
            assert!(output.stderr.starts_with(&expected), "{expected}: {}", output.stderr);
            assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
            assert_eq!((output.status.code(), output.stdout.as_str()), (Some(1), ""));
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_one_line_with_its_path() {
    let files = Files::new();
    fs::write(files.path("bytes.yml"), b"rate_limit: \xff\n").unwrap();
    for (name, expected) in [
        ("none.yml", "No such file or directory"),
        (".", "not a regular file"),
        ("bytes.yml", "not UTF-8 text"),
    ] {
        let path = files.path(name);
        let flag = format!("--web.config.file={path}");
        for args in [&["check-web-config", &path][..], &[&flag]] {
            let output = Launch::new(BIN).args(args).run();
            let said = format!("listenq: {path}: {expected}");
            assert!(output.stderr.starts_with(&said), "{said}: {}", output.stderr);
            assert_eq!((output.status.code(), output.stderr.lines().count()), (Some(1), 1));
        }
    }
}

#[test]
fn a_good_file_passes_the_check_in_silence() {
    let files = Files::new();
    for text in [
        "",
        TLS,
        "tls_server_config: {}\n",
        "http_server_config:\n  http2: false\n",
        "rate_limit:\n  interval: 0\n",
        &format!(
            "basic_auth_users: {{a: {RIGHT_8}, b: {RIGHT_10}}}\nrate_limit: {{interval: 1m30s, burst: 20}}\n"
        ),
        &format!(
            "{TLS}  cipher_suites: [TLS_AES_128_GCM_SHA256]\n  prefer_server_cipher_suites: false\n"
        ),
    ] {
        let path = files.write("good.yml", text);
        let output = Launch::new(BIN).args(&["check-web-config", path.to_str().unwrap()]).run();
        let good = format!("{} is good\n", path.display());
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), (&*good, ""), "{text}");
        assert_eq!(output.status.code(), Some(0));
    }
}

/// CPU time of the daemon in ticks of 10 ms. Unlike wall time it does not depend on other programs.
fn cpu_ticks(daemon: &Daemon) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let (_, after_name) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = after_name.split(' ').collect();
    [fields[11], fields[12]].map(|ticks| ticks.parse::<f64>().unwrap()).iter().sum()
}

#[test]
fn unknown_users_are_refused_as_slowly_as_known_ones() {
    if !have_tools(&["curl"]) {
        return;
    }
    // The refusal must not show whether the hash is cheaper or missing. Samples are so rare that
    // their cost does not matter.
    let config = format!("basic_auth_users:\n  cheap: {RIGHT_8}\n  dear: {RIGHT_10}\n");
    let scene = Scene::launch("timing", Files::new(), &config, &["--sample.interval=5s"]);
    assert_eq!(scene.status("http", "/", &["-u", "cheap:right"]), "200");
    let cost = |user: &str| {
        let before = cpu_ticks(&scene.daemon);
        for _ in 0..20 {
            assert_eq!(scene.status("http", "/", &["-u", &format!("{user}:wrong")]), "401");
        }
        cpu_ticks(&scene.daemon) - before
    };
    let [dear, cheap, unknown] = ["dear", "cheap", "unknown"].map(cost);
    println!("20 refusals in ticks: known {dear}, with a cheaper hash {cheap}, unknown {unknown}");
    assert!(dear > 20.0, "{dear}");
    for other in [cheap, unknown] {
        assert!((0.7..1.4).contains(&(other / dear)), "{dear} {cheap} {unknown}");
    }
}

#[test]
fn wrong_passwords_delay_neither_scrapes_nor_samples() {
    if !have_tools(&["curl"]) {
        return;
    }
    let scene = Scene::new("flood", &format!("basic_auth_users:\n  alice: {RIGHT_10}\n"));
    let as_alice = ["-u", "alice:right"];
    let samples = || scene.metrics("http", &as_alice).value("listenq_samples_total", &[]).unwrap();
    let (begin, before) = (Instant::now(), samples());
    let (mut slowest, mut refused) = (Duration::ZERO, Vec::new());
    thread::scope(|scope| {
        let flood = |n: usize| {
            let scene = &scene;
            let wrong = move |i| scene.status("http", "/", &["-u", &format!("alice:{n}-{i}")]);
            move || (0..5).map(wrong).collect::<Vec<_>>()
        };
        let floods: Vec<_> = (0..30).map(|n| scope.spawn(flood(n))).collect();
        while floods.iter().any(|flood| !flood.is_finished()) {
            let begin = Instant::now();
            assert_eq!(scene.status("http", "/metrics", &as_alice), "200");
            slowest = slowest.max(begin.elapsed());
        }
        refused = floods.into_iter().flat_map(|flood| flood.join().unwrap()).collect();
    });
    let rate = (samples() - before) / begin.elapsed().as_secs_f64();
    let busy = refused.iter().filter(|status| *status == "503").count();
    println!("{} refused, {busy} of them unchecked", refused.len());
    println!("the slowest scrape took {slowest:?}; {rate:.1} samples a second");
    assert!(refused.iter().all(|status| status == "401" || status == "503"), "{refused:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    // The configured rate is ten samples per second.
    assert!(rate > 5.0, "{rate}");
}

/// The value of `up` for the only target, from the Prometheus server at this address.
fn up(scene: &Scene) -> Option<String> {
    let url = "http://127.0.0.1:9090/api/v1/query?query=up";
    let output = scene.ns.command("curl").args(["-s", "--max-time", "5", url]).output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    Some(answer["data"]["result"][0]["value"][1].as_str()?.to_owned())
}

#[test]
fn prometheus_scrapes_with_certificate_and_password() {
    if !have_tools(&["curl", "prometheus"]) {
        return;
    }
    for (password, expected) in [("right", "1"), ("wrong", "0")] {
        let files = Files::new();
        files.authority.sign("prometheus", Subject { names: &["prometheus.test"], until: 2100 });
        let config = format!(
            "{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n  \
             client_allowed_sans: [prometheus.test]\nbasic_auth_users:\n  prometheus: {RIGHT_8}\n"
        );
        let scene = Scene::with("prometheus", files, &config);
        let scrape = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: listenq\n  scheme: https\n  \
             tls_config: {{ca_file: ca.pem, cert_file: prometheus.pem, key_file: prometheus.key}}\n  \
             basic_auth: {{username: prometheus, password: {password}}}\n  \
             static_configs: [{{targets: ['{}']}}]\n",
            scene.daemon.address()
        );
        let scrape = scene.files.write("prometheus.yml", &scrape);
        let mut command = scene.ns.command("prometheus");
        command.arg(format!("--config.file={}", scrape.display()));
        command.arg(format!("--storage.tsdb.path={}", scene.files.path("data")));
        command.args(["--web.listen-address=127.0.0.1:9090", "--log.level=error"]);
        let _prometheus = Running::start_as(&mut command, "prometheus");
        let found = eventually("Prometheus to have scraped", 2 * TIMEOUT, || up(&scene));
        assert_eq!(found, expected, "{password}");
    }
}
