//! Formats numbers for people: counts, times, rates and shares.

/// Formats a count: `3,436`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a time: `0.4 s`, `13 s`, `4 min`, `3 h`.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s < 0.0005 => "0 s".into(),
        s if s < 0.0995 => format!("{:.0} ms", s * 1_000.0),
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 119.5 => format!("{s:.0} s"),
        s if s < 7_170.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3_600.0),
    }
}

/// Formats a rate: `9.8 per second`, `5,000 per second`.
pub fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate < 9.95 => format!("{rate:.1} per second"),
        rate => format!("{} per second", count(rate.round() as u64)),
    }
}

/// Formats a number of things: `1 socket`, `4 sockets`.
pub fn many(number: u64, one: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        _ => format!("{} {one}s", count(number)),
    }
}

/// Quotes a word for a shell unless it is harmless. Any process may choose the name of its socket.
pub fn quoted(word: &str) -> String {
    let is_harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._@:%+,".contains(&byte);
    match !word.is_empty() && word.bytes().all(is_harmless) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [0, 12, 999, 1_000, 65_535, 1_234_567].map(count),
            ["0", "12", "999", "1,000", "65,535", "1,234,567"]
        );
        assert_eq!(
            [0.0, 0.004, 0.25, 9.94, 9.96, 59.6, 119.0, 120.0, 7_200.0, 90_000.0].map(time),
            ["0 s", "4 ms", "0.2 s", "9.9 s", "10 s", "60 s", "119 s", "2 min", "2 h", "25 h"]
        );
        assert_eq!(
            [0.25, 9.8, 1_234.5].map(rate),
            ["0.2 per second", "9.8 per second", "1,235 per second"]
        );
        assert_eq!([0, 1, 4].map(|n| many(n, "socket")), ["0 sockets", "1 socket", "4 sockets"]);
    }

    #[test]
    fn any_name_is_quoted_as_one_shell_word() {
        assert_eq!(quoted("/run/php/www.sock"), "/run/php/www.sock");
        assert_eq!(quoted("@$(reboot)"), "'@$(reboot)'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
