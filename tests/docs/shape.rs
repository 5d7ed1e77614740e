//! Compares the output of a program with a page: the output must contain the words of the page in
//! the same order; numbers may differ.

use regex::Regex;

/// Stands for omitted output.
const ELLIPSIS: &str = "...";

/// The words, with every number replaced by `#`.
fn words(text: &str) -> Vec<String> {
    let number = Regex::new(r"[0-9]+([.,:][0-9]+)*").unwrap();
    text.split_whitespace().map(|word| number.replace_all(word, "#").into_owned()).collect()
}

/// The first word of the page that the output does not contain after the words before it; `None`
/// when the output contains all words.
pub(crate) fn missing(shown: &str, printed: &str) -> Option<String> {
    let printed = words(printed);
    let mut rest = printed.iter();
    words(shown).into_iter().find(|word| word != ELLIPSIS && !rest.any(|other| other == word))
}

#[test]
fn numbers_may_differ_and_words_may_not() {
    assert_eq!(missing("queue 129 of 128 ... end", "queue 5 of 6,000\n and\n the end"), None);
    assert_eq!(missing("queue of end", "end of queue"), Some("of".into()));
    assert_eq!(missing("LENGTH LIMIT", "LIMIT LENGTH"), Some("LIMIT".into()));
    assert_eq!(missing("17 s", "1.5 min"), Some("s".into()));
}
