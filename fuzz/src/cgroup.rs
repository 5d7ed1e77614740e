//! `/proc/<pid>/cgroup` and paths of cgroups with any text: what is found stands in the path.

use listenq::owner::cgroup::{Placement, owner_path};

/// Text as a whole file, and as one path.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    check(text);
    if let Some(path) = owner_path(text) {
        assert!(path.len() > 1 && text.contains(path) && !path.contains('\n'));
        check(path);
    }
    // As the only line of version 2 it is chosen as it is.
    let line = text.lines().next().unwrap_or_default().trim_end_matches('\r');
    let file = format!("0::{line}\n");
    assert_eq!(owner_path(&file), (line.len() > 1).then_some(line));
}

fn check(path: &str) {
    let Placement { unit, container_id, pod_uid } = Placement::of(path);
    for name in [&unit, &container_id].into_iter().flatten() {
        assert!(!name.is_empty() && !name.contains('/') && path.contains(&**name), "{name:?}");
    }
    if let Some(uid) = &pod_uid {
        let is_uid = |c: char| c.is_ascii_hexdigit() || c == '-';
        assert!(matches!(uid.len(), 32 | 36) && uid.chars().all(is_uid), "{uid:?}");
    }
    // A cgroup that was removed is called as it was.
    let bare = path.strip_suffix(" (deleted)").unwrap_or(path);
    assert_eq!(Placement::of(&format!("{bare} (deleted)")), Placement::of(bare));
}
