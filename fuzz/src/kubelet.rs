//! Parses any text as a name in the kubelet's directories. The parts must make up the name, in the same
//! order and with unprintable characters escaped.

use listenq::owner::kubelet::{Container, Pod, parse_container_link, parse_pod_directory};
use listenq::snapshot::printable;

/// Checks each line as a name, alone and with the endings of valid names.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for line in text.lines() {
        check(line);
        check(&format!("{line}_36b6d6be-73b1-065a-f369-b3985edafa09"));
        check(&format!("{line}-{}.log", "9e".repeat(32)));
    }
}

fn check(name: &str) {
    if let Some((uid, Pod { namespace, name: pod })) = parse_pod_directory(name) {
        assert_eq!(format!("{namespace}_{pod}_{uid}"), printable(name));
    }
    if let Some((id, container)) = parse_container_link(name) {
        let Container { pod, name: container } = container;
        let joined = format!("{}_{}_{container}-{id}.log", pod.name, pod.namespace);
        assert_eq!(joined, printable(name));
    }
}
