//! Parses any text as `/proc/<pid>/cgroup` and as the path of a cgroup. Every name found must be part
//! of the path.

use listenq::owner::cgroup::{Placement, owner_path};

/// Checks the text as a whole file and as one path.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    check(text);
    if let Some(path) = owner_path(text) {
        assert!(path.len() > 1 && text.contains(path) && !path.contains('\n'));
        check(path);
    }
    // The only line of a version 2 hierarchy is returned unchanged.
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
    // The kernel appends " (deleted)" to the path of a removed cgroup.
    let bare = path.strip_suffix(" (deleted)").unwrap_or(path);
    assert_eq!(Placement::of(&format!("{bare} (deleted)")), Placement::of(bare));
}
