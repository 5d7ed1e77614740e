//! Tests Unix listeners: each queue equals the output of `ss`, names may contain any bytes, and
//! counters outlive a socket.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use listenq_lab::exposed::Exposed;
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::unix::{Kind, UnixListener};
use listenq_lab::wait::{TIMEOUT, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");

/// A namespace, a directory for sockets, and a daemon in the namespace.
struct Lab {
    daemon: Daemon,
    directory: Rootfs,
    ns: Netns,
}

// === impl Lab ===

impl Lab {
    fn new(hint: &str) -> Option<Self> {
        if !Netns::require_root() {
            return None;
        }
        let ns = Netns::new(hint);
        let daemon = Launch::new(BIN).inside(&ns).start();
        Some(Self { daemon, directory: Rootfs::new(), ns })
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn open(&self, kind: Kind, name: impl AsRef<[u8]> + Send, backlog: i32) -> UnixListener {
        self.ns.run(move || UnixListener::open(kind, name, backlog))
    }

    /// Waits until the series of `label` satisfy the condition.
    #[track_caller]
    fn await_seen(&self, label: &str, wanted: impl Fn(&Exposed) -> bool) -> Exposed {
        await_seen(&self.daemon, label, wanted)
    }
}

#[track_caller]
fn await_seen(daemon: &Daemon, label: &str, wanted: impl Fn(&Exposed) -> bool) -> Exposed {
    let mut last = Exposed::default();
    let answer = listenq_lab::wait::within(TIMEOUT, || {
        let scrape = daemon.scrape();
        scrape.assert_unique();
        last = scrape.unix_listener(label);
        wanted(&last).then_some(last)
    });
    answer.unwrap_or_else(|| panic!("{label}: {last:?}"))
}

/// The expected series of one socket, without the series that grow with time.
fn expected(length: f64, limit: f64) -> Exposed {
    Exposed {
        sockets: Some(1.0),
        length: Some(length),
        limit: Some(limit),
        peak_length: Some(length),
        fullest_ratio: Some(length / (limit + 1.0)),
        ..Exposed::default()
    }
}

fn without_time(seen: Exposed) -> Exposed {
    Exposed { connection_seconds: None, full_seconds: None, ..seen }
}

#[test]
fn every_kind_of_unix_listener_equals_ss() {
    let Some(lab) = Lab::new("kinds") else { return };
    let names = [(Kind::Stream, "s"), (Kind::Packet, "p")].map(|(kind, name)| {
        let abstract_name = format!("lq-{}-{name}", lab.ns.name());
        let path = lab.path(name);
        [
            (kind, path.clone(), path),
            (kind, format!("\0{abstract_name}"), format!("@{abstract_name}")),
        ]
    });
    for (n, (kind, name, label)) in names.into_iter().flatten().enumerate() {
        let (limit, length) = (8 + n as u32, 3 + n as u32);
        let listener = lab.open(kind, name, limit.cast_signed());
        let clients = lab.ns.run(|| listener.fill(length as usize));
        let wanted = expected(f64::from(length), f64::from(limit));
        let seen = lab.await_seen(&label, |seen| seen.length == Some(f64::from(length)));
        // Neither drops nor overflows: the kernel does not count them.
        assert_eq!(without_time(seen), wanted, "{label}");
        let row = lab.ns.ss_unix(&label).unwrap();
        assert_eq!((row.recv_q, row.send_q), (length, limit), "{label}");
        drop(clients);
        assert_eq!(listener.accept_all(), length as usize);
        let seen = lab.await_seen(&label, |seen| seen.length == Some(0.0));
        assert_eq!(seen.peak_length, Some(f64::from(length)));
    }
}

#[test]
fn a_full_queue_counts_its_time_and_nothing_else() {
    let Some(lab) = Lab::new("full") else { return };
    let path = lab.path("full");
    let listener = lab.open(Kind::Stream, &path, 4);
    let clients = listener.fill(100);
    assert_eq!(clients.len(), 5);
    let one = lab.await_seen(&path, |seen| seen.full_seconds > Some(0.5));
    assert_eq!(without_time(one), expected(5.0, 4.0));
    let two = lab.await_seen(&path, |seen| seen.full_seconds > Some(2.0));
    let grown = |of: fn(&Exposed) -> Option<f64>| of(&two).unwrap() - of(&one).unwrap();
    let (full, waiting) = (grown(|e| e.full_seconds), grown(|e| e.connection_seconds));
    assert!((waiting - 5.0 * full).abs() < 1e-6, "{waiting} connection seconds in {full} s");
    assert_eq!(listener.accept_all(), 5);
    let calm = lab.await_seen(&path, |seen| seen.length == Some(0.0));
    std::thread::sleep(Duration::from_secs(2));
    let later = lab.await_seen(&path, |_| true);
    assert_eq!(later.full_seconds, calm.full_seconds);
}

#[test]
fn names_with_arbitrary_bytes_are_distinct() {
    let Some(lab) = Lab::new("bytes") else { return };
    let at =
        |name: &[u8]| [lab.directory.path().as_os_str().as_encoded_bytes(), b"/", name].concat();
    let mark = std::process::id();
    let tail = |label: &str| format!("{}/{label}", lab.directory.path().display());
    let names = [
        (at(b"quote\"'}{=,"), tail("quote\"'}{=,")),
        (at(b"new\nline"), tail("new\\x0Aline")),
        (at(b"back\\slash"), tail("back\\x5Cslash")),
        (at(b"x5C\\x5C"), tail("x5C\\x5Cx5C")),
        (at(b"\xff\xfe"), tail("\\xFF\\xFE")),
        (at("ü€".as_bytes()), tail("ü€")),
        (at(b"@lq"), tail("@lq")),
        (format!("\0lq-{mark}").into_bytes(), format!("@lq-{mark}")),
        (
            [format!("\0lq-{mark}").as_bytes(), b"\0\xff\n"].concat(),
            format!("@lq-{mark}\\x00\\xFF\\x0A"),
        ),
    ];
    let listeners: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(n, (name, _))| lab.open(Kind::Stream, name, 10 + i32::try_from(n).unwrap()))
        .collect();
    assert_eq!(listeners.len(), names.len());
    for (n, (_, label)) in names.iter().enumerate() {
        let seen = lab.await_seen(label, |seen| seen.sockets.is_some());
        assert_eq!(without_time(seen), expected(0.0, (10 + n) as f64), "{label:?}");
    }
}

#[test]
fn a_path_that_begins_with_at_is_not_the_abstract_name() {
    let Some(lab) = Lab::new("at") else { return };
    let name = format!("@lq-{}", std::process::id());
    // Only a relative path can begin with `@`. No other test of this file uses a relative path.
    let here = std::env::current_dir().unwrap();
    std::env::set_current_dir(lab.directory.path()).unwrap();
    let path = lab.open(Kind::Stream, &name, 5);
    std::env::set_current_dir(here).unwrap();
    let abstract_name = lab.open(Kind::Stream, name.replacen('@', "\0", 1), 7);
    let waiting = lab.ns.run(|| abstract_name.fill(3));
    let limits = || {
        let scrape = lab.daemon.scrape();
        scrape.assert_unique();
        let series = scrape.series("listenq_accept_queue_limit").into_iter();
        let unix = series.filter(|(labels, _)| labels["protocol"] == "unix");
        let mut limits: Vec<_> = unix.map(|(l, limit)| (limit, l["address"].clone())).collect();
        limits.sort_by(|a, b| a.0.total_cmp(&b.0));
        (limits.len() == 2).then_some(limits)
    };
    let limits = eventually("two listeners", TIMEOUT, limits);
    assert_eq!((limits[0].0, &limits[1]), (5.0, &(7.0, name.clone())));
    assert_eq!(limits[0].1, name.replacen('@', "\\x40", 1));
    assert_eq!((path.accept_all(), abstract_name.accept_all(), waiting.len()), (0, 3, 3));
}

#[test]
fn a_path_bound_again_keeps_its_name_once_the_old_socket_is_closed() {
    let Some(lab) = Lab::new("rebound") else { return };
    let path = lab.path("rebound");
    let old = lab.open(Kind::Stream, &path, 4);
    let clients = old.fill(2);
    lab.await_seen(&path, |seen| seen.length == Some(2.0));
    // While the old socket lives, the new file is another listener.
    fs::remove_file(&path).unwrap();
    let new = lab.open(Kind::Stream, &path, 9);
    let more = new.fill(1);
    let second = format!("{path}~{}", fs::metadata(&path).unwrap().ino());
    let seen = lab.await_seen(&second, |seen| seen.sockets == Some(1.0));
    assert_eq!((seen.length, seen.limit), (Some(1.0), Some(9.0)));
    let first = lab.await_seen(&path, |seen| seen.sockets == Some(1.0));
    assert_eq!((first.length, first.limit), (Some(2.0), Some(4.0)));
    drop((old, clients, new, more));
    lab.await_seen(&path, |seen| seen.sockets == Some(0.0));
    // The server is restarted. The link keeps the inode of the removed file in use: a file system
    // may give a free inode to the next file.
    fs::hard_link(&path, format!("{path}.kept")).unwrap();
    fs::remove_file(&path).unwrap();
    let again = lab.open(Kind::Stream, &path, 5);
    let waiting = again.fill(1);
    let seen = lab.await_seen(&path, |seen| seen.sockets == Some(1.0));
    assert_eq!((seen.length, seen.limit), (Some(1.0), Some(5.0)));
    drop(waiting);
}

#[test]
fn a_listener_of_the_same_path_in_another_mount_namespace_has_a_name_of_its_own() {
    let Some(lab) = Lab::new("mounts") else { return };
    let path = lab.path("app.sock");
    let stuck = lab.open(Kind::Stream, &path, 4);
    let clients = stuck.fill(3);
    lab.await_seen(&path, |seen| seen.length == Some(3.0));
    let script =
        r#"mount -t tmpfs none "$1" && exec "$2" listen "$1/app.sock" --backlog=7 --for=60"#;
    let mut command = lab.ns.command("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]);
    command.arg(lab.directory.path()).arg(listenq_lab::process::tool());
    let mut other = command.spawn().unwrap();
    let begin = format!("{path}~");
    // An idle new listener gets its series after 15 s.
    let limit = listenq_lab::wait::within(3 * TIMEOUT, || {
        let scrape = lab.daemon.scrape();
        let limits = scrape.series("listenq_accept_queue_limit");
        let mut found = limits.into_iter();
        found.find(|(labels, _)| labels["address"].starts_with(&begin)).map(|(_, limit)| limit)
    });
    let first = lab.daemon.scrape().unix_listener(&path);
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(limit, Some(7.0));
    assert_eq!((first.sockets, first.length, first.limit), (Some(1.0), Some(3.0), Some(4.0)));
    drop(clients);
}

#[test]
fn counters_continue_when_a_listener_closes_and_returns() {
    let Some(lab) = Lab::new("return") else { return };
    let path = lab.path("return");
    let listener = lab.open(Kind::Packet, &path, 1);
    let clients = listener.fill(2);
    lab.await_seen(&path, |seen| seen.full_seconds > Some(1.0));
    drop((listener, clients));
    let gone = lab.await_seen(&path, |seen| seen.sockets == Some(0.0));
    assert!(gone.full_seconds > Some(1.0) && gone.connection_seconds > Some(2.0), "{gone:?}");
    assert_eq!((gone.length, gone.limit, gone.peak_length), (None, None, None));
    fs::remove_file(&path).unwrap();
    let _again = lab.open(Kind::Packet, &path, 6);
    let back = lab.await_seen(&path, |seen| seen.sockets == Some(1.0));
    assert_eq!((back.limit, back.length), (Some(6.0), Some(0.0)));
    assert_eq!(back.full_seconds, gone.full_seconds);
    assert_eq!(back.connection_seconds, gone.connection_seconds);
}

#[test]
fn unix_listeners_of_other_namespaces_are_seen_there() {
    let Some(lab) = Lab::new("elsewhere") else { return };
    let (near, far) = (Netns::new("near"), Netns::new("far"));
    // Only these listeners may have series, so that listeners of other tests take no places.
    let ours = format!("--listener.include=^(host|lq-{}-)", std::process::id());
    let flags = ["--netns=all", "--discovery.interval=1s", &ours];
    let daemon = Launch::new(BIN).args(&flags).inside(&near).start();
    let name = format!("\0lq-{}", lab.ns.name());
    // Two network namespaces have separate listeners with the same abstract name.
    let [here, there] = [(&near, 3), (&far, 6)]
        .map(|(ns, limit)| ns.run(|| UnixListener::open(Kind::Stream, &name, limit)));
    let clients = far.run(|| there.fill(7));
    assert_eq!((clients.len(), here.accept_all()), (7, 0));
    let label = name.replacen('\0', "@", 1);
    eventually("a full queue elsewhere", TIMEOUT, || {
        let scrape = daemon.scrape();
        scrape.assert_unique();
        let [near, far] = ["host", far.name()].map(|ns| scrape.of_netns(ns).unix_listener(&label));
        let is_right = near.length == Some(0.0) && far.full_seconds > Some(0.2);
        is_right.then(|| {
            assert_eq!(without_time(near), expected(0.0, 3.0));
            assert_eq!(without_time(far), expected(7.0, 6.0));
        })
    });
}
