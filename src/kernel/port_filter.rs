//! Byte-code that limits `inet_diag` dumps to sockets of given local ports
//! (`INET_DIAG_REQ_BYTECODE`; `include/uapi/linux/inet_diag.h`: `inet_diag_bc_op`).
//!
//! Each operation contains one jump distance for a match and one for a mismatch. A jump exactly to
//! the end accepts the socket; a jump beyond the end rejects it. The kernel's audit follows the
//! jumps of matches, so an explicit jump leaves each alternative.

/// `INET_DIAG_BC_JMP`: always takes the jump for a mismatch.
const JUMP: u8 = 1;
/// `INET_DIAG_BC_S_GE`: the local port is at least the port of the next operation.
const AT_LEAST: u8 = 2;
/// `INET_DIAG_BC_S_LE`: the local port is at most the port of the next operation.
const AT_MOST: u8 = 3;
/// Size of an operation and its operand.
const COMPARISON: usize = 8;
/// Size of two comparisons and the jump to the end.
const ALTERNATIVE: usize = 2 * COMPARISON + 4;
/// Maximum number of alternatives. Jumps are 16 bits wide, and the kernel tries every socket
/// against every alternative: beyond this number a dump of all rows is cheaper.
const MOST_ALTERNATIVES: usize = 128;

/// Builds a filter that accepts exactly these local ports; `None` if the filter would cost more
/// than it saves.
pub fn only_ports(ports: &[u16]) -> Option<Vec<u8>> {
    let ranges = ranges(ports);
    if ranges.len() > MOST_ALTERNATIVES {
        return None;
    }
    // The last alternative needs no jump, because it ends at the end of the code.
    let length = (ranges.len() * ALTERNATIVE).saturating_sub(4);
    let mut code = Vec::with_capacity(length);
    for (nth, (low, high)) in ranges.iter().enumerate() {
        let is_last = nth + 1 == ranges.len();
        let to_end = |code: &Vec<u8>| length - code.len();
        let otherwise = |code: &Vec<u8>, next| if is_last { to_end(code) + 4 } else { next };
        let next = otherwise(&code, ALTERNATIVE);
        compare(&mut code, AT_LEAST, *low, next);
        let next = otherwise(&code, ALTERNATIVE - COMPARISON);
        compare(&mut code, AT_MOST, *high, next);
        if !is_last {
            let end = to_end(&code);
            operation(&mut code, JUMP, 4, end);
        }
    }
    Some(code)
}

fn compare(code: &mut Vec<u8>, comparison: u8, port: u16, otherwise: usize) {
    operation(code, comparison, COMPARISON as u8, otherwise);
    operation(code, 0, 0, usize::from(port));
}

fn operation(code: &mut Vec<u8>, kind: u8, holds: u8, otherwise: usize) {
    code.extend([kind, holds]);
    code.extend((otherwise as u16).to_ne_bytes());
}

/// Sorts the ports and merges adjacent ports into ranges.
fn ranges(ports: &[u16]) -> Vec<(u16, u16)> {
    let mut sorted = ports.to_vec();
    sorted.sort_unstable();
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in sorted {
        match ranges.last_mut() {
            Some((_, high)) if port <= high.saturating_add(1) => *high = port,
            _ => ranges.push((port, port)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the byte-code as the kernel does (`inet_diag_bc_run`).
    fn accepts(code: &[u8], port: u16) -> bool {
        let (mut at, mut left) = (0, code.len() as i64);
        while left > 0 {
            let word = |at: usize| u16::from_ne_bytes([code[at], code[at + 1]]);
            let holds = match code[at] {
                AT_LEAST => port >= word(at + 6),
                AT_MOST => port <= word(at + 6),
                _ => false,
            };
            let step = if holds { usize::from(code[at + 1]) } else { usize::from(word(at + 2)) };
            at += step;
            left -= step as i64;
        }
        left == 0
    }

    #[test]
    fn neighbours_are_one_range() {
        assert_eq!(ranges(&[81, 80, 443, 80, 65535]), [(80, 81), (443, 443), (65535, 65535)]);
        assert_eq!(ranges(&[]), []);
    }

    #[test]
    fn the_code_accepts_exactly_the_ports() {
        for ports in [&[80][..], &[80, 81], &[1, 443, 8080, 65535], &[0, 2, 4, 6]] {
            let code = only_ports(ports).unwrap();
            for port in 0..=u16::MAX {
                assert_eq!(accepts(&code, port), ports.contains(&port), "{ports:?}: {port}");
            }
        }
    }

    #[test]
    fn too_many_ports_are_not_filtered() {
        let ports: Vec<u16> = (0..300).map(|nth| nth * 2).collect();
        assert_eq!(only_ports(&ports), None);
        assert!(only_ports(&ports[..MOST_ALTERNATIVES]).is_some());
    }
}
