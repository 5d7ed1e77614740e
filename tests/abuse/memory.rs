//! Attacks on memory: clients that request answers and never read them, and crowds that read them.

use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::TURN;
use crate::hostile::{Hostile, Manner};
use crate::scene::{RIGHT, Scene, TLS, USERS, is_possible};

/// How long each attack lasts, unless `ABUSE_SECONDS` says otherwise.
const LASTING: Duration = Duration::from_secs(6);
/// At least one in this many clients must connect. A handshake of a debug build takes ten times as
/// long.
const ONE_IN: usize = if cfg!(debug_assertions) { 4 } else { 2 };
/// The number of threads of an attack: handshakes cost the attacker CPU time, too.
const THREADS: usize = 4;

fn lasting() -> Duration {
    let seconds = std::env::var("ABUSE_SECONDS").ok().map(|text| text.parse().unwrap());
    seconds.map_or(LASTING, Duration::from_secs)
}

fn request(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{RIGHT}\r\n{headers}\r\n")
}

/// Starts `clients` clients that send `bytes`, all from one address.
fn attack(
    scene: &Scene,
    clients: usize,
    bytes: impl Into<Vec<u8>>,
    manner: Manner,
) -> [JoinHandle<usize>; THREADS] {
    let attack = Hostile {
        server: scene.daemon.address(),
        from: Ipv4Addr::LOCALHOST,
        clients: clients / THREADS,
        bytes: Arc::new(bytes.into()),
        tls: (scene.scheme == "https").then(|| tls(scene)),
        manner,
        pause: Duration::ZERO,
        lasting: lasting(),
    };
    [(); THREADS].map(|()| {
        let attack = attack.clone();
        scene.ns.spawn(move || attack.run())
    })
}

/// Runs an attack of `clients` clients, and checks that enough of them connected.
fn endure(scene: &Scene, what: &str, clients: usize, bytes: String, manner: Manner) {
    let made = scene.endure(what, || attack(scene, clients, bytes, manner));
    let made: usize = made.iter().sum();
    println!("  {made} connections");
    assert!(made >= clients / ONE_IN, "{made}");
}

fn tls(scene: &Scene) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(scene.root.path().join("ca.pem")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
}

fn survive(scheme: &'static str, config: &str) {
    if !is_possible() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new(scheme, config, 1000).settled();
    for (clients, requests, path) in [
        (256, 1, "/metrics"),
        (40, 40, "/metrics"),
        (256, 3000, "/-/healthy"),
        (256, 40, "/api/v1/listeners"),
        (256, 40, "/?filter=a"),
    ] {
        let what = format!("{clients} clients x {requests} {path} never read");
        endure(&scene, &what, clients, request(path, "").repeat(requests), Manner::Deaf);
    }
    if scheme == "http" {
        let pages = request("/", "Accept-Encoding: gzip\r\n").repeat(100);
        endure(&scene, "400 clients read /", 400, pages, Manner::Reads);
    }
}

#[test]
fn answers_that_are_never_read_do_not_fill_the_memory() {
    survive("http", "");
}

#[test]
fn answers_that_are_never_read_do_not_fill_the_memory_with_tls_and_a_password() {
    survive("https", &format!("{TLS}{USERS}"));
}
