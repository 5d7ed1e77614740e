//! Formats sentences with commands and settings between backticks.

use maud::{Markup, html};

/// The sentence as HTML, with the parts between backticks marked as code.
pub(super) fn with_code(sentence: &str) -> Markup {
    let parts: Vec<&str> = sentence.split('`').collect();
    // A backtick without a partner stays a backtick.
    let rest = usize::from(parts.len().is_multiple_of(2));
    let (paired, rest) = parts.split_at(parts.len() - rest);
    html! {
        @for (place, part) in paired.iter().enumerate() {
            @if place % 2 == 1 { code { (part) } } @else { (part) }
        }
        @for part in rest { "`" (part) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn html(sentence: &str) -> String {
        with_code(sentence).into_string()
    }

    #[test]
    fn text_between_backticks_is_code() {
        assert_eq!(html("Run `ss -l` or `a<b`."), "Run <code>ss -l</code> or <code>a&lt;b</code>.");
        assert_eq!(html("plain"), "plain");
        assert_eq!(html("one ` alone"), "one ` alone");
        assert_eq!(html("`a` and `b"), "<code>a</code> and `b");
    }
}
