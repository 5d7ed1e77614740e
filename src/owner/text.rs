//! Recognizes identifiers inside longer names: container ids and pod uids.

/// Whether `text` is a container id: 64 lower-case hexadecimal digits.
pub(super) fn is_container_id(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

/// Splits `<prefix>-<container id>`.
pub(super) fn split_container_id(text: &str) -> Option<(&str, &str)> {
    text.rsplit_once('-').filter(|(_, id)| is_container_id(id))
}

/// Whether `text` is a pod's uid: a UUID or, for a static pod, the kubelet's hash of its manifest.
pub(super) fn is_pod_uid(text: &str) -> bool {
    is_uuid(text) || text.len() == 32 && is_hex(text)
}

fn is_uuid(text: &str) -> bool {
    let mut lengths = [8, 4, 4, 4, 12].into_iter();
    let fits = |part: &str| lengths.next() == Some(part.len()) && is_hex(part);
    text.len() == 36 && text.split('-').all(fits)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_uid_is_a_uuid_or_a_hash() {
        assert!(is_pod_uid("36b6d6be-73b1-065a-f369-b3985edafa09"));
        assert!(is_pod_uid("36b6d6be73b1065af369b3985edafa09"));
        for other in [
            "",
            "----",
            "36b6d6be-73b1-065a-f369-b3985edafa0",
            "36b6d6be-73b1065a-f369-b398-5edafa09",
            "web",
        ] {
            assert!(!is_pod_uid(other), "{other}");
        }
    }

    #[test]
    fn a_container_id_has_64_digits() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(
            split_container_id(&format!("cri-containerd-{id}")),
            Some(("cri-containerd", &*id))
        );
        assert_eq!(split_container_id(&id), None);
        assert!(
            is_container_id(&id)
                && !is_container_id(&id[1..])
                && !is_container_id(&id.to_uppercase())
        );
    }
}
