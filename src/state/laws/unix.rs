//! Tests that Unix listeners with the same path stay separate listeners.

use super::*;
use crate::snapshot::{UnixAddress, UnixFile, UnixName};

fn unix(cookie: u64, device: u32, inode: u32, length: u32) -> ListenSocket<UnixAddress> {
    let name = UnixName::new(b"/run/php.sock").expect("a short path");
    ListenSocket {
        cookie: Cookie(cookie),
        address: UnixAddress { name, file: Some(UnixFile { device, inode }) },
        queue: AcceptQueue { length, limit: Some(4) },
        drops: None,
        origin: Origin::default(),
    }
}

/// The listeners, by name, with their queue lengths after dumps of these sockets; `None` for closed
/// listeners.
fn listeners(dumps: &[&[ListenSocket<UnixAddress>]]) -> BTreeMap<String, Option<u64>> {
    let mut story = Story::new();
    // The last dump is repeated until every listener has had time to get its series.
    let last = dumps.last().into_iter().cycle().take(20);
    for sockets in dumps.iter().chain(last) {
        let sockets = sockets.to_vec();
        let dump = Dump { interval: INTERVAL, is_same: false, part: None, sockets };
        story.snapshot.namespaces[0].unix = Some(dump);
        story.tick(&[], 0);
    }
    let listeners = story.netns().listeners;
    let all = listeners.iter().map(|listener| {
        let length = listener.queue.map(|queue| queue.length);
        (listener.name.address.clone(), length)
    });
    let names: BTreeMap<_, _> = all.collect();
    assert_eq!(names.len(), listeners.len(), "no name is shown twice");
    names
}

fn names(expected: &[(&str, Option<u64>)]) -> BTreeMap<String, Option<u64>> {
    expected.iter().map(|(name, length)| (name.to_string(), *length)).collect()
}

#[test]
fn two_socket_files_with_one_path_are_two_listeners() {
    let both = [unix(1, 26, 7, 0), unix(2, 61, 9, 5)];
    let expected = names(&[("/run/php.sock", Some(0)), ("/run/php.sock~9", Some(5))]);
    assert_eq!(listeners(&[&both[..1], &both, &both]), expected);
    // The result does not depend on which one the kernel shows first later.
    let turned = [both[1], both[0]];
    assert_eq!(listeners(&[&both[..1], &turned, &turned]), expected);
}

#[test]
fn a_third_listener_with_a_reused_inode_has_its_own_name() {
    let three = [unix(1, 26, 7, 0), unix(2, 61, 2, 1), unix(3, 62, 2, 2)];
    let expected = names(&[
        ("/run/php.sock", Some(0)),
        ("/run/php.sock~2", Some(1)),
        ("/run/php.sock~2.62", Some(2)),
    ]);
    assert_eq!(listeners(&[&three, &three]), expected);
}

#[test]
fn a_server_that_recreates_its_socket_file_keeps_its_name() {
    let (before, after) = (unix(1, 26, 7, 2), unix(2, 26, 8, 3));
    let expected = names(&[("/run/php.sock", Some(3))]);
    // In the next dump, and after some dumps without it.
    assert_eq!(listeners(&[&[before], &[before], &[after], &[after], &[after]]), expected);
    assert_eq!(listeners(&[&[before], &[], &[], &[], &[after], &[after]]), expected);
}

#[test]
fn a_socket_with_a_removed_file_is_another_listener_than_the_new_file() {
    let (old, new) = (unix(1, 26, 7, 5), unix(2, 26, 8, 0));
    let expected = names(&[("/run/php.sock", Some(5)), ("/run/php.sock~8", Some(0))]);
    assert_eq!(listeners(&[&[old], &[old, new], &[old, new]]), expected);
    // One dump that misses the old socket decides nothing.
    assert_eq!(listeners(&[&[old], &[new], &[old, new], &[old, new]]), expected);
}

#[test]
fn a_file_on_another_filesystem_never_gets_the_name_of_a_closed_listener() {
    let (real, forged) = (unix(1, 26, 7, 0), unix(2, 61, 9, 5));
    let gone = names(&[("/run/php.sock", None), ("/run/php.sock~9", Some(5))]);
    assert_eq!(listeners(&[&[real], &[], &[], &[forged], &[forged]]), gone);
    let back = unix(3, 26, 8, 1);
    let expected = names(&[("/run/php.sock", Some(1)), ("/run/php.sock~9", Some(5))]);
    assert_eq!(
        listeners(&[&[real], &[], &[], &[forged], &[forged, back], &[forged, back]]),
        expected
    );
}

#[test]
fn a_server_that_makes_its_file_again_is_not_forgotten_before_the_next_dump() {
    let mut story = Story::begun_with(&[]);
    let mut unix_dump = |sockets: Option<&[ListenSocket<UnixAddress>]>| {
        let dump = |sockets: &[_]| Dump {
            interval: INTERVAL,
            is_same: false,
            part: None,
            sockets: sockets.to_vec(),
        };
        story.snapshot.namespaces[0].unix = sockets.map(dump);
        story.tick(&[], 0);
    };
    // The first dumps are a baseline, whose listeners get series at once.
    (0..4).for_each(|_| unix_dump(Some(&[])));
    // Each server runs for a shorter time than it takes to get series. Samples without a Unix dump
    // follow each dump.
    for n in 1..9 {
        let (now, before) = (unix(n, 26, n as u32, 0), unix(n - 1, 26, n as u32 - 1, 0));
        let dumps: [&[_]; 4] = [&[before], &[now], &[now], &[now]];
        for sockets in dumps {
            unix_dump(Some(sockets));
            (0..5).for_each(|_| unix_dump(None));
        }
    }
}
