//! A token bucket for all requests together, as in exporter-toolkit.

use std::time::{Duration, Instant};

use serde_saphyr::Spanned;

use super::file::{self, Fault};

/// The rate and burst of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Time in which one token is added.
    pub interval: Duration,
    /// Maximum number of tokens.
    pub burst: u32,
}

/// The remaining tokens.
#[derive(Debug, Default)]
pub struct Bucket {
    /// The number of tokens at an earlier time; `None` while the bucket is still full.
    left: Option<(f64, Instant)>,
}

// === impl RateLimit ===

impl RateLimit {
    /// Returns `None` for an interval of 0, which limits nothing.
    pub fn parse(limit: &file::RateLimit) -> Result<Option<Self>, Fault> {
        let Some(interval) = &limit.interval else {
            return match &limit.burst {
                Some(burst) => Err(Fault::of(burst, "rate_limit has a burst and no interval")),
                None => Ok(None),
            };
        };
        let every = go_duration(&interval.value).ok_or_else(|| {
            Fault::of(interval, "interval is no duration such as 1s, 100ms or 1m30s")
        })?;
        if every.is_zero() {
            return Ok(None);
        }
        let line = |burst: &Spanned<i64>| burst.referenced.line();
        let line = limit.burst.as_ref().map_or(interval.referenced.line(), line);
        let burst = limit.burst.as_ref().and_then(|burst| u32::try_from(burst.value).ok());
        match burst {
            Some(burst) if burst > 0 => Ok(Some(Self { interval: every, burst })),
            _ => Err(Fault::new(line, "burst must be 1 or more: with 0 no request is answered")),
        }
    }
}

// === impl Bucket ===

impl Bucket {
    /// Takes a token; returns whether there was one.
    pub fn take(&mut self, limit: RateLimit, now: Instant) -> bool {
        let burst = f64::from(limit.burst);
        let left = self.left.map_or(burst, |(left, at)| {
            let back = now.saturating_duration_since(at).as_secs_f64();
            (left + back / limit.interval.as_secs_f64()).min(burst)
        });
        let is_there = left >= 1.0;
        self.left = Some((left - f64::from(u8::from(is_there)), now));
        is_there
    }
}

/// Parses a Go duration: numbers with units, such as `1m30s`, or 0.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..end] {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[end..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_syntax_of_go() {
        for (text, millis) in
            [("0", 0), ("0s", 0), ("1s", 1000), ("1m30s", 90_000), ("1.5s", 1500), ("100ms", 100)]
        {
            assert_eq!(go_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "1", "s", "1d", "-1s", "1 s", "1e400s", "99999999999999999999999h", "1..2s"]
        {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }

    #[test]
    fn a_bucket_grants_its_burst_and_then_one_per_interval() {
        let limit = RateLimit { interval: Duration::from_secs(1), burst: 3 };
        let (mut bucket, begin) = (Bucket::default(), Instant::now());
        let mut taken = |millis| {
            let now = begin + Duration::from_millis(millis);
            (0..10).filter(|_| bucket.take(limit, now)).count()
        };
        let given = [taken(0), taken(500), taken(1000), taken(2999), taken(3000), taken(99_000)];
        assert_eq!(given, [3, 0, 1, 1, 1, 3]);
    }
}
