//! Makes names safe to print. A name may hold any bytes. Terminal control characters, invisible
//! characters, and characters that reverse or join adjacent text are written as `\xHH`, byte by
//! byte.

/// Blank letters and symbols that the standard library counts as printable: the Hangul fillers, the
/// blank Braille pattern, the object replacement character and the null notehead.
const BLANK: [char; 7] =
    ['\u{115f}', '\u{1160}', '\u{2800}', '\u{3164}', '\u{ffa0}', '\u{fffc}', '\u{1d159}'];

/// Escapes every invisible character and every backslash in a name. Different names stay different,
/// and no name hides a character.
pub fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            push(&mut text, character, character != '\\' && is_visible(character));
        }
        escape_into(&mut text, chunk.invalid());
    }
    text
}

/// Escapes every invisible character in a text that may contain escaped names. Backslashes stay.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        push(&mut shown, character, is_visible(character));
    }
    shown
}

/// Whether a character is visible by itself. For `Debug`, the standard library escapes controls,
/// format characters, spaces other than the common one, unassigned and private characters, and
/// combining marks.
fn is_visible(character: char) -> bool {
    match character {
        ' '..='~' => true,
        _ => character.escape_debug().len() == 1 && !BLANK.contains(&character),
    }
}

fn push(text: &mut String, character: char, is_plain: bool) {
    match is_plain {
        true => text.push(character),
        false => escape_into(text, character.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

fn escape_into(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        text.push_str(&format!("\\x{byte:02X}"));
    }
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use proptest::prelude::*;

    use super::*;

    /// Characters that must not be printed: ranges of Unicode's `Default_Ignorable_Code_Point`,
    /// `Bidi_Control`, `White_Space`, `Cc`, `Co` and noncharacters, and of the combining marks.
    const HIDDEN: [RangeInclusive<u32>; 33] = [
        0x00..=0x1f,
        0x7f..=0xa0,
        0xad..=0xad,
        0x300..=0x36f,
        0x61c..=0x61c,
        0x115f..=0x1160,
        0x1680..=0x1680,
        0x17b4..=0x17b5,
        0x180b..=0x180f,
        0x1ab0..=0x1abd,
        0x1dc0..=0x1dff,
        0x2000..=0x200f,
        0x2028..=0x202f,
        0x205f..=0x206f,
        0x20d0..=0x20ef,
        0x2800..=0x2800,
        0x3000..=0x3000,
        0x3164..=0x3164,
        0xe000..=0xe0ff,
        0xf8ff..=0xf8ff,
        0xfdd0..=0xfdef,
        0xfe00..=0xfe0f,
        0xfe20..=0xfe2f,
        0xfeff..=0xfeff,
        0xffa0..=0xffa0,
        0xfff0..=0xfffc,
        0x1bca0..=0x1bca3,
        0x1d159..=0x1d159,
        0x1d173..=0x1d17a,
        0xe0000..=0xe0fff,
        0xf0000..=0xf00ff,
        0x1fffe..=0x1ffff,
        0x10_fffe..=0x10_ffff,
    ];

    #[test]
    fn unprintable_characters_are_escaped() {
        for character in HIDDEN.into_iter().flatten().filter_map(char::from_u32) {
            let text = format!("a{character}b");
            for shown in [escaped(text.as_bytes()), printable(&text)] {
                assert!(shown.starts_with("a\\x") && shown.is_ascii(), "{shown} for {character:?}");
            }
        }
    }

    #[test]
    fn visible_characters_stay() {
        for text in ["/run/a b.sock", "\"ü€\"", "Ж中あ한नअ", "a'{}$%~`"] {
            assert_eq!((escaped(text.as_bytes()), printable(text)), (text.into(), text.into()));
        }
        assert_eq!(escaped(b"a\\x1B\xff"), "a\\x5Cx1B\\xFF");
        assert_eq!(printable("a\\x1B\u{1b}"), "a\\x1B\\x1B");
    }

    proptest! {
        #[test]
        fn different_names_stay_different(
            one in prop::collection::vec(any::<u8>(), 0..8),
            other in prop::collection::vec(any::<u8>(), 0..8),
        ) {
            prop_assert_eq!(escaped(&one) == escaped(&other), one == other);
            prop_assert_eq!(printable(&escaped(&one)), escaped(&one));
        }
    }
}
