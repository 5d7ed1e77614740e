//! Tests the endpoint under attack: half-open clients, crowds, wrong passwords, garbage and
//! unfinished handshakes do not block a healthy scrape, do not cause missed samples, and leave no
//! open descriptors.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

mod crowded;
mod hostile;
mod memory;
mod passwords;
mod scene;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use listenq_lab::hammer::Outcome;
use rustls::crypto::ring::default_provider;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use scene::{RIGHT, Scene, TLS, USERS, WRONG, is_possible};

/// How long an attack lasts.
const ABUSE: Duration = Duration::from_secs(20);

/// Held by the attack that runs: the load of a second attack would change the measurements.
static TURN: Mutex<()> = Mutex::new(());

fn get(header: &str) -> String {
    format!("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{header}\r\n\r\n")
}

/// The number of clients that got an answer with one of these status lines. Clients without an
/// answer are not counted; any other status line fails the test.
fn answered(outcome: &Outcome, lines: &[&str]) -> u64 {
    let said = outcome.answers.iter().filter(|(line, _)| !line.is_empty());
    said.map(|(line, count)| {
        assert!(lines.contains(&line.as_str()), "{outcome:?}");
        count
    })
    .sum()
}

#[test]
fn a_scrape_is_answered_whatever_others_send() {
    if !is_possible() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new("http", USERS, 500).settled();
    let oversized = format!("GET /{} HTTP/1.1\r\n", "a".repeat(60_000));
    let garbage: Vec<u8> = (0..4096_u32).map(|n| (n * n % 251) as u8).collect();
    let crowd = Duration::from_millis(10);
    let [half_open, wrong, oversized, garbage, crowd] =
        scene.endure("a crowd of every kind", || {
            [
                scene.clients(1000, ABUSE, "GET /metrics HTTP/1.1\r\nHost:"),
                scene.clients(10_000, ABUSE, get(WRONG)),
                scene.clients(1000, ABUSE, oversized),
                scene.clients(1000, ABUSE, garbage),
                scene.clients(50, crowd, get(RIGHT)),
            ]
        });
    for outcome in [&half_open, &wrong, &oversized, &garbage, &crowd] {
        println!("{outcome:?}");
    }
    assert_eq!(half_open.tally.started, 1000);
    assert_eq!(answered(&half_open, &[]), 0);
    let refused = ["HTTP/1.1 401 Unauthorized", "HTTP/1.1 503 Service Unavailable"];
    assert!(answered(&wrong, &refused) > 9_000, "{wrong:?}");
    answered(&oversized, &["HTTP/1.1 431 Request Header Fields Too Large"]);
    assert!(answered(&garbage, &["HTTP/1.1 400 Bad Request"]) > 900, "{garbage:?}");
    // Clients from the attacker's address displace each other. How many of them keep their
    // connection depends on the machine.
    assert!(answered(&crowd, &["HTTP/1.1 200 OK"]) >= 10, "{crowd:?}");
}

/// The first flight of a client that speaks TLS.
fn client_hello() -> Vec<u8> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_scrape_over_tls_is_answered_whatever_handshakes_are_left_half_done() {
    if !is_possible() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new("https", &format!("{TLS}{USERS}"), 500).settled();
    let hello = client_hello();
    let outcomes = scene.endure("half-done handshakes", || {
        [
            scene.clients(1000, ABUSE, &hello),
            scene.clients(1000, ABUSE, &hello[..hello.len() / 2]),
            scene.clients(1000, ABUSE, get(RIGHT)),
            scene.clients(1000, ABUSE, ""),
        ]
    });
    for Outcome { tally, .. } in outcomes {
        println!("{tally}");
        // On a busy machine a few attacking clients time out before they are connected.
        assert!(tally.started == 1000 && tally.connected >= 950, "{tally}");
    }
}
