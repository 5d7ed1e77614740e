//! Attacks on connections: 1,000 of each kind, from three addresses. A client at a fourth address
//! is always served.

use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::hostile::{Hostile, Manner};
use crate::scene::{RIGHT, Scene, TLS, USERS, is_possible};
use crate::{TURN, client_hello};

const ADDRESSES: [Ipv4Addr; 3] =
    [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3), Ipv4Addr::new(127, 0, 0, 4)];
const EACH: usize = 1000 / ADDRESSES.len() + 1;
const LASTING: Duration = Duration::from_secs(6);
/// The time between two connections of one client. Without optimization a handshake takes ten times
/// as long.
const PAUSE: Duration = Duration::from_secs(if cfg!(debug_assertions) { 4 } else { 1 });

fn crowd(scene: &Scene, what: &str, manner: Manner, bytes: impl Into<Vec<u8>>) {
    let bytes = Arc::new(bytes.into());
    let made = scene.endure(&format!("1,000 {what}"), || {
        ADDRESSES.map(|from| {
            let crowd = Hostile {
                server: scene.daemon.address(),
                from,
                clients: EACH,
                bytes: Arc::clone(&bytes),
                manner,
                tls: None,
                pause: PAUSE,
                lasting: LASTING,
            };
            scene.ns.spawn(move || crowd.run())
        })
    });
    println!("  {made:?} connections");
    assert!(made.iter().sum::<usize>() >= 1000, "{made:?}");
}

#[test]
fn crowds_from_three_addresses_block_no_scrape_from_a_fourth() {
    if !is_possible() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new("http", "", 500).settled();
    let head = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n";
    crowd(&scene, "half-open clients", Manner::Deaf, head);
    crowd(&scene, "slow clients", Manner::Slow, "x".repeat(10_000));
    crowd(&scene, "deaf clients", Manner::Deaf, format!("{head}\r\n").repeat(100));
    let gzip = format!("{head}Accept-Encoding: gzip\r\n\r\n");
    crowd(&scene, "deaf clients with gzip", Manner::Deaf, gzip.clone());
    crowd(&scene, "clients with gzip that read", Manner::Reads, gzip);
}

#[test]
fn crowds_from_three_addresses_block_no_scrape_over_tls_from_a_fourth() {
    if !is_possible() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new("https", &format!("{TLS}{USERS}"), 500).settled();
    let hello = client_hello();
    crowd(&scene, "handshakes without an end", Manner::Deaf, hello.clone());
    crowd(&scene, "half handshakes", Manner::Deaf, &hello[..hello.len() / 2]);
    crowd(&scene, "clients that say nothing", Manner::Deaf, "");
    let plain = format!("GET /metrics HTTP/1.1\r\n{RIGHT}\r\n\r\n");
    crowd(&scene, "clients that speak plain HTTP", Manner::Deaf, plain);
}
