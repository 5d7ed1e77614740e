//! Attacks on the password check: many wrong passwords do not lock out the right one.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::scene::{Scene, WRONG, is_possible};
use crate::{TURN, get};

/// The number of scrapes. Each has the right password of another user, so none is cached.
const SCRAPES: usize = 14;
const CLIENTS: usize = 40;
/// bcrypt of "right" with cost 8, made by crypt(3): even on a busy machine the check of the whole
/// queue takes less time than the scrape timeout.
const HASH: &str = "$2y$08$abcdefghijklmnopqrstuuM7WmALSPQG/ubL8NksTdR4H7Y2WXZ..";
/// The default scrape timeout of Prometheus.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);

/// The HTTP status of one request from the address `from`.
fn status(server: SocketAddr, from: Ipv4Addr, header: &str) -> Option<String> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
    socket.bind(&SocketAddr::from((from, 0)).into()).ok()?;
    socket.connect(&server.into()).ok()?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SCRAPE_TIMEOUT)).ok()?;
    stream.write_all(get(header).as_bytes()).ok()?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer[9..]).into_owned())
}

/// The header with the right password of user `n`.
fn right(n: usize) -> String {
    const ENCODED: [&str; SCRAPES] = [
        "dXNlcmE6cmlnaHQ=",
        "dXNlcmI6cmlnaHQ=",
        "dXNlcmM6cmlnaHQ=",
        "dXNlcmQ6cmlnaHQ=",
        "dXNlcmU6cmlnaHQ=",
        "dXNlcmY6cmlnaHQ=",
        "dXNlcmc6cmlnaHQ=",
        "dXNlcmg6cmlnaHQ=",
        "dXNlcmk6cmlnaHQ=",
        "dXNlcmo6cmlnaHQ=",
        "dXNlcms6cmlnaHQ=",
        "dXNlcmw6cmlnaHQ=",
        "dXNlcm06cmlnaHQ=",
        "dXNlcm46cmlnaHQ=",
    ];
    format!("Authorization: Basic {}\r\n", ENCODED[n])
}

/// Scrapes from `from` with right passwords while 127.0.0.2 sends wrong passwords; returns the
/// statuses and the longest time.
fn scrapes(
    scene: &Scene,
    from: Ipv4Addr,
    which: std::ops::Range<usize>,
) -> (Vec<Option<String>>, Duration) {
    let (server, is_over) = (scene.daemon.address(), AtomicBool::new(false));
    let (refused, mut slowest) = (AtomicUsize::new(0), Duration::ZERO);
    let statuses = thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                scene.ns.run(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        let wrong =
                            status(server, Ipv4Addr::new(127, 0, 0, 2), &format!("{WRONG}\r\n"));
                        refused.fetch_add(usize::from(wrong.is_some()), Ordering::Relaxed);
                    }
                });
            });
        }
        // After a second the queue of wrong passwords is long.
        thread::sleep(Duration::from_secs(1));
        let one = |n| {
            let begin = Instant::now();
            let status = scene.ns.run(|| status(server, from, &right(n)));
            slowest = slowest.max(begin.elapsed());
            status
        };
        let statuses = which.map(one).collect();
        is_over.store(true, Ordering::Relaxed);
        statuses
    });
    println!("{from}: {statuses:?}, slowest {slowest:?}, {} refused", refused.into_inner());
    (statuses, slowest)
}

#[test]
fn wrong_passwords_do_not_lock_the_right_one_out() {
    if !is_possible() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);

    let users = (0..SCRAPES).map(|n| format!("  user{}: {HASH}\n", char::from(b'a' + n as u8)));
    let config = format!("basic_auth_users:\n  alice: {HASH}\n{}", users.collect::<String>());
    let scene = Scene::new("http", &config, 5);
    // From another address: the daemon alternates between this address and the crowd's.
    let (statuses, slowest) = scrapes(&scene, Ipv4Addr::new(127, 0, 0, 9), 0..10);
    assert!(statuses.iter().all(|status| status.as_deref() == Some("200")), "{statuses:?}");
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    // From the address of the crowd: the scrape waits behind the crowd.
    let (statuses, slowest) = scrapes(&scene, Ipv4Addr::new(127, 0, 0, 2), 10..SCRAPES);
    assert!(statuses.iter().all(|status| status.as_deref() == Some("200")), "{statuses:?}");
    assert!(slowest < SCRAPE_TIMEOUT, "{slowest:?}");
}
