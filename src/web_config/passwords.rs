//! Checks passwords one at a time, off the serving thread, and for client addresses in turn: a
//! client that sends wrong passwords delays other clients by one hash. A correct password is
//! remembered as a keyed hash, which is useless elsewhere.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use axum::http::HeaderValue;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac::{HMAC_SHA256, Key, sign};
use ring::rand::{SecureRandom, SystemRandom};

use super::client_address::ClientAddress;
use super::fair_turns::{FairTurn, FairTurns};
use super::users::{Credentials, Users};

/// Requests that may wait for a password check; further requests of the client address with the
/// most waiting requests get 503. At the usual cost of 10 the wait is at most 5 s, half of a scrape
/// timeout.
const MOST_WAITING: usize = 64;
/// Maximum number of remembered correct passwords.
const MOST_KNOWN: usize = 64;
/// Maximum bytes of the header; a longer header is refused.
const MOST_HEADER: usize = 1024;

type Tag = [u8; 32];

#[derive(Debug)]
pub struct Passwords {
    turns: FairTurns,
    key: Key,
    known: Mutex<VecDeque<Tag>>,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The user and the password are correct.
    Granted,
    /// The user or the password is wrong or missing.
    Denied,
    /// Too many requests of this client wait for a check.
    Busy,
}

// === impl Passwords ===

impl Passwords {
    /// Creates a checker without remembered passwords.
    pub fn new() -> Result<Self, ring::error::Unspecified> {
        let mut secret = Tag::default();
        SystemRandom::new().fill(&mut secret)?;
        Ok(Self {
            turns: FairTurns::new(MOST_WAITING),
            key: Key::new(HMAC_SHA256, &secret),
            known: Mutex::default(),
        })
    }

    /// Whether the `Authorization` header matches one of the users.
    pub async fn check(
        &self,
        users: &Users,
        client: ClientAddress,
        header: Option<HeaderValue>,
    ) -> Verdict {
        if users.is_empty() {
            return Verdict::Granted;
        }
        let given = header.and_then(|header| credentials(users, header.as_bytes()));
        let Some(given) = given else { return Verdict::Denied };
        let tag = self.tag(&given);
        if self.remembers(&given, &tag) {
            return Verdict::Granted;
        }
        let Some(turn) = self.turns.take(client).await else { return Verdict::Busy };
        // Another request with the same password may have been checked in the meantime.
        if self.remembers(&given, &tag) {
            return Verdict::Granted;
        }
        let verdict = hash(turn, given).await;
        if verdict == Verdict::Granted {
            self.remember(tag);
        }
        verdict
    }

    fn remembers(&self, given: &Credentials, tag: &Tag) -> bool {
        given.is_known() && self.known().contains(tag)
    }

    fn tag(&self, given: &Credentials) -> Tag {
        let mut text = Vec::new();
        for part in given.parts() {
            text.extend((part.len() as u64).to_be_bytes());
            text.extend(part);
        }
        let mut tag = Tag::default();
        tag.copy_from_slice(sign(&self.key, &text).as_ref());
        tag
    }

    fn known(&self) -> std::sync::MutexGuard<'_, VecDeque<Tag>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, tag: Tag) {
        let mut known = self.known();
        if !known.contains(&tag) {
            known.truncate(MOST_KNOWN - 1);
            known.push_front(tag);
        }
    }
}

async fn hash(turn: FairTurn, given: Credentials) -> Verdict {
    // The turn ends with the hash, even if the client disconnects first.
    let work = move || {
        let is_true = given.is_true();
        drop(turn);
        is_true
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(true) => Verdict::Granted,
        _ => Verdict::Denied,
    }
}

/// Parses the name and password of a `Basic` header for the check.
fn credentials(users: &Users, header: &[u8]) -> Option<Credentials> {
    let (scheme, encoded) = header.split_at_checked(6)?;
    if header.len() > MOST_HEADER || !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let text = STANDARD.decode(encoded.trim_ascii()).ok()?;
    let colon = text.iter().position(|byte| *byte == b':')?;
    users.credentials(&text[..colon], &text[colon + 1..])
}
