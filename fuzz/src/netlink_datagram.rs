//! Decodes any bytes as the kernel's answer to a dump of listen sockets, and rows with valid headers,
//! which a fuzzer would rarely find. Nothing may panic, and a decoded row must equal its bytes.

use arbitrary::{Arbitrary, Unstructured};
use listenq::kernel::connections::{Walked, decode_connection};
use listenq::kernel::diag_stream::{DumpError, Progress, decode};
use listenq::kernel::inet_diag::decode_row;
use listenq::kernel::unix_diag;

const SEQUENCE: u32 = 7;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;
/// The place of the port, after family, state, timer and retransmissions.
const PORT: std::ops::Range<usize> = 4..6;
const RECV_QUEUE: std::ops::Range<usize> = 56..60;

#[derive(Arbitrary, Debug)]
struct Message {
    kind: Kind,
    interrupted: bool,
    stale: bool,
    /// Added to the true length.
    wrong_by: Option<i8>,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Row(Row),
    Done(i32),
    Error(i32),
    Other(u16, Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct Row {
    v6: bool,
    state: u8,
    rest: [u8; 70],
    attributes: Vec<(Attribute, Vec<u8>)>,
    tail: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Attribute {
    MemInfo,
    /// Attributes within an attribute.
    Nested(u16, Vec<(u8, Vec<u8>)>),
    Other(u16),
}

/// Checks the bytes as a datagram, and the messages that they encode.
pub fn run(bytes: &[u8]) {
    check(bytes);
    if let Ok(messages) = Vec::<Message>::arbitrary(&mut Unstructured::new(bytes)) {
        check(&messages.iter().flat_map(Message::bytes).collect::<Vec<u8>>());
    }
}

fn check(datagram: &[u8]) {
    let mut payloads = 0;
    let end = decode(datagram, SEQUENCE, |payload| {
        payloads += payload.len() + 16;
        // A label is printable whatever bytes the name contains.
        if let Ok(Some(socket)) = unix_diag::decode_row(payload) {
            assert!(!socket.address.name.label().contains(char::is_control));
        }
        // Each client takes four bytes of the payload.
        if let Ok(Some(queue)) = unix_diag::decode_queue(payload) {
            assert!(4 * queue.clients.len() <= payload.len());
        }
        let mut found = Walked::default();
        if decode_connection(payload, &mut found).is_ok() {
            assert!(found.half_open.len() + found.waiting.len() + found.open.len() <= 1);
        }
        check_row(payload)
    });
    assert!(payloads <= datagram.len(), "the rows are larger than the datagram");
    if let Ok(Progress::More) = end {
        // The end of the dump may come in the same datagram.
        let mut longer = datagram.to_vec();
        longer.resize(longer.len().next_multiple_of(4), 0);
        longer.extend(framed(NLMSG_DONE, 2, SEQUENCE, &0i32.to_ne_bytes(), 0));
        assert!(matches!(decode(&longer, SEQUENCE, check_row), Ok(Progress::Done)));
    }
    let _ = check_row(datagram);
}

fn check_row(payload: &[u8]) -> Result<(), DumpError> {
    let Some(row) = decode_row(payload)? else { return Ok(()) };
    assert_eq!(row.socket.address.port.to_be_bytes(), payload[PORT]);
    assert_eq!(row.socket.queue.length.to_ne_bytes(), payload[RECV_QUEUE]);
    assert_eq!(row.socket.address.device, None);
    Ok(())
}

fn framed(kind: u16, flags: u16, sequence: u32, payload: &[u8], wrong_by: i8) -> Vec<u8> {
    let length = (16 + payload.len() as u32).wrapping_add_signed(wrong_by.into());
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(payload);
    message.resize(message.len().next_multiple_of(4), 0);
    message
}

fn put(attributes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    attributes.extend((value.len() as u16).wrapping_add(4).to_ne_bytes());
    attributes.extend(kind.to_ne_bytes());
    attributes.extend(value);
    attributes.resize(attributes.len().next_multiple_of(4), 0);
}

// === impl Message ===

impl Message {
    fn bytes(&self) -> Vec<u8> {
        let (kind, payload) = match &self.kind {
            Kind::Row(row) => (18, row.bytes()),
            Kind::Done(code) => (NLMSG_DONE, code.to_ne_bytes().into()),
            Kind::Error(code) => (2, code.to_ne_bytes().into()),
            Kind::Other(kind, payload) => (*kind, payload.clone()),
        };
        let flags = 2 | u16::from(self.interrupted) << 4;
        let sequence = SEQUENCE - u32::from(self.stale);
        framed(kind, flags, sequence, &payload, self.wrong_by.unwrap_or(0))
    }
}

// === impl Row ===

impl Row {
    fn bytes(&self) -> Vec<u8> {
        let family = if self.v6 { 10 } else { 2 };
        // State 10 is LISTEN; most rows have it.
        let state = if self.state < 16 { self.state } else { 10 };
        let mut row = vec![family, state];
        row.extend(self.rest);
        for (attribute, value) in &self.attributes {
            match attribute {
                Attribute::MemInfo => put(&mut row, 7, value),
                Attribute::Other(kind) => put(&mut row, *kind, value),
                Attribute::Nested(kind, inner) => {
                    let mut nest = Vec::new();
                    inner.iter().for_each(|(kind, value)| put(&mut nest, (*kind).into(), value));
                    put(&mut row, kind | NLA_F_NESTED, &nest);
                }
            }
        }
        row.extend(&self.tail);
        row
    }
}
