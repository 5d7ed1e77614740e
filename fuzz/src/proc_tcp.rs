//! Parses any text as `/proc/net/tcp` and `tcp6`. Every socket read must be in the text, and nothing
//! after the first connection may be read.

use listenq::kernel::proc_tcp::parse;
use listenq::snapshot::ListenSocket;

const HEADER: &str = "  sl  local_address\n";

/// Checks the text as a file, and as the rows of a file.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    check(text);
    check(&format!("{HEADER}{text}"));
}

fn check(text: &str) {
    let mut sockets = Vec::new();
    let result = parse(text, &mut sockets);
    let rows: Vec<&str> = text.lines().skip(1).collect();
    assert!(sockets.len() <= rows.len());
    for (socket, row) in sockets.iter().zip(&rows) {
        assert_eq!((socket.queue.limit, socket.drops), (None, None));
        assert_eq!(socket.cookie.0, u64::from(socket.origin.inode));
        let column = row.split_ascii_whitespace().nth(9).and_then(|inode| inode.parse().ok());
        assert_eq!(column, Some(socket.origin.inode), "{row:?}");
    }
    match result {
        Ok(()) => check_again(text, &sockets),
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
}

/// Checks that the text after the rows that were read changes nothing.
fn check_again(text: &str, sockets: &[ListenSocket]) {
    let kept = text.lines().take(1 + sockets.len()).map(|line| format!("{line}\n"));
    let mut again = Vec::new();
    assert!(parse(&kept.collect::<String>(), &mut again).is_ok());
    assert_eq!(again, sockets);
}
