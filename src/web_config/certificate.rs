//! Reads the fields of an X.509 certificate that rustls does not expose: expiry and alternative
//! names. rustls checks everything else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const SEQUENCE: u8 = 0x30;
const OBJECT_ID: u8 = 0x06;
const OCTET_STRING: u8 = 0x04;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]` of a `TBSCertificate`: its version.
const VERSION: u8 = 0xa0;
/// `[3]` of a `TBSCertificate`.
const EXTENSIONS: u8 = 0xa3;
/// 2.5.29.17.
const SUBJECT_ALT_NAME: [u8; 3] = [0x55, 0x1d, 0x11];
/// `[1]`, `[2]`, `[6]` and `[7]` of a `GeneralName`.
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
const IP: u8 = 0x87;

/// The fields of a certificate that listenq reads.
#[derive(Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The end of its validity.
    pub not_after: Time,
    /// DNS names, e-mail addresses, IP addresses and URIs of its subject.
    pub names: Vec<String>,
}

/// A time in UTC: year, month, day, hour, minute, second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time([u16; 6]);

/// Unread DER.
struct Der<'a>(&'a [u8]);

// === impl Certificate ===

impl Certificate {
    /// Parses a certificate; `None` when it is malformed.
    pub fn parse(der: &[u8]) -> Option<Self> {
        let mut certificate = Der(Der(der).take(SEQUENCE)?);
        let mut tbs = Der(certificate.take(SEQUENCE)?);
        let (tag, _) = tbs.next()?;
        // The serial number, or the version before it; then the algorithm and the issuer.
        for _ in 0..if tag == VERSION { 3 } else { 2 } {
            tbs.next()?;
        }
        let mut validity = Der(tbs.take(SEQUENCE)?);
        validity.next()?;
        let (tag, text) = validity.next()?;
        let not_after = Time::parse(tag, text)?;
        let mut names = Vec::new();
        while let Some((tag, content)) = tbs.next() {
            if tag == EXTENSIONS {
                names = alt_names(Der(content).take(SEQUENCE)?)?;
            }
        }
        Some(Self { not_after, names })
    }
}

/// The alternative names in these extensions.
fn alt_names(extensions: &[u8]) -> Option<Vec<String>> {
    let (mut extensions, mut found) = (Der(extensions), Vec::new());
    while let Some((tag, extension)) = extensions.next() {
        let mut extension = Der(extension);
        if tag != SEQUENCE || extension.take(OBJECT_ID)? != SUBJECT_ALT_NAME {
            continue;
        }
        // A critical flag may precede the value.
        let value = extension.take(OCTET_STRING).or_else(|| extension.take(OCTET_STRING))?;
        let mut names = Der(Der(value).take(SEQUENCE)?);
        while let Some((tag, name)) = names.next() {
            found.extend(alt_name(tag, name));
        }
    }
    Some(found)
}

fn alt_name(tag: u8, name: &[u8]) -> Option<String> {
    match tag {
        EMAIL | DNS | URI => String::from_utf8(name.into()).ok(),
        IP => {
            let v4 = |octets: [u8; 4]| IpAddr::from(Ipv4Addr::from(octets));
            let v6 = |octets: [u8; 16]| IpAddr::from(Ipv6Addr::from(octets)).to_canonical();
            let ip = name.try_into().map(v4).or_else(|_| name.try_into().map(v6));
            ip.ok().map(|ip| ip.to_string())
        }
        _ => None,
    }
}

// === impl Der ===

impl<'a> Der<'a> {
    /// The tag and content of the next element.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let mut length = usize::from(first);
        if first >= 0x80 {
            let (bytes, after) = rest.split_at_checked(length - 0x80)?;
            if bytes.is_empty() || bytes.len() > 4 {
                return None;
            }
            length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            rest = after;
        }
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The content of the next element if the element has this tag. The element is consumed in
    /// either case.
    fn take(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.next().filter(|(tag, _)| *tag == wanted).map(|(_, content)| content)
    }
}

// === impl Time ===

impl Time {
    /// Parses `YYMMDDHHMMSSZ`, or the form with four digits for the year.
    fn parse(tag: u8, text: &[u8]) -> Option<Self> {
        let digits = text.strip_suffix(b"Z")?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let number = |pair: &[u8]| pair.iter().fold(0, |n, digit| n * 10 + u16::from(digit - b'0'));
        let (year, rest) = match (tag, digits.len()) {
            (UTC_TIME, 12) => {
                let year = number(&digits[..2]);
                (year + if year < 50 { 2000 } else { 1900 }, &digits[2..])
            }
            (GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
            _ => return None,
        };
        let mut time = [year, 0, 0, 0, 0, 0];
        for (place, pair) in time[1..].iter_mut().zip(rest.chunks(2)) {
            *place = number(pair);
        }
        Some(Self(time))
    }

    /// The time that is `seconds` after 1970-01-01.
    pub fn from_unix(seconds: u64) -> Self {
        let (mut days, second) = (seconds / 86_400, seconds % 86_400);
        let is_leap = |year: u64| {
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
        };
        let mut year = 1970;
        // With a wrong clock the loop must not run for long: the last supported year stands for all
        // later years.
        while days >= 365 + u64::from(is_leap(year)) && year < 9999 {
            days -= 365 + u64::from(is_leap(year));
            year += 1;
        }
        let february = 28 + u64::from(is_leap(year));
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        let parts = [year, month, days.min(30) + 1, second / 3600, second / 60 % 60, second % 60];
        Self(parts.map(|part| part as u16))
    }

    /// The date as year, month and day.
    pub fn date(&self) -> String {
        format!("{:04}-{:02}-{:02}", self.0[0], self.0[1], self.0[2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsed_times_equal_computed_times() {
        for (tag, text, seconds, date) in [
            (UTC_TIME, &b"700101000000Z"[..], 0, "1970-01-01"),
            (UTC_TIME, b"000229235959Z", 951_868_799, "2000-02-29"),
            (UTC_TIME, b"491231235959Z", 2_524_607_999, "2049-12-31"),
            (GENERALIZED_TIME, b"20500301000000Z", 2_529_705_600, "2050-03-01"),
            (GENERALIZED_TIME, b"21000228120000Z", 4_107_499_200, "2100-02-28"),
        ] {
            let time = Time::parse(tag, text).unwrap();
            assert_eq!(time, Time::from_unix(seconds), "{date}");
            assert_eq!(time.date(), date);
        }
        assert!(Time::from_unix(u64::MAX) > Time::from_unix(4_107_499_200));
        for (tag, text) in
            [(UTC_TIME, &b"700101000000"[..]), (GENERALIZED_TIME, b"x0500301000000Z")]
        {
            assert_eq!(Time::parse(tag, text), None);
        }
    }
}
