//! Checks passwords: one at a time and away from the thread that answers, so that nobody who sends wrong ones
//! keeps others waiting. Those found right are remembered, as a keyed hash that is worth nothing elsewhere.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::HeaderValue;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac::{HMAC_SHA256, Key, sign};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::Semaphore;

use super::users::{Credentials, Users};

/// Requests that may wait for the check of their password; more are told to come again.
const MOST_WAITING: usize = 16;
/// Passwords found right that are remembered.
const MOST_KNOWN: usize = 64;
/// A longer header holds no name and password of this world.
const MOST_HEADER: usize = 1024;

type Tag = [u8; 32];

/// The checker.
#[derive(Debug)]
pub struct Passwords {
    places: Arc<Semaphore>,
    turn: Arc<Semaphore>,
    key: Key,
    known: Mutex<VecDeque<Tag>>,
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// May ask.
    Granted,
    /// Not the right name and password, or none.
    Denied,
    /// Too many are waiting for their check.
    Busy,
}

// === impl Passwords ===

impl Passwords {
    /// A checker that knows nobody yet.
    pub fn new() -> Result<Self, ring::error::Unspecified> {
        let mut secret = Tag::default();
        SystemRandom::new().fill(&mut secret)?;
        Ok(Self {
            places: Arc::new(Semaphore::new(1 + MOST_WAITING)),
            turn: Arc::new(Semaphore::new(1)),
            key: Key::new(HMAC_SHA256, &secret),
            known: Mutex::default(),
        })
    }

    /// Whether the `Authorization` header is that of one of the users.
    pub async fn check(&self, users: &Users, header: Option<&HeaderValue>) -> Verdict {
        if users.is_empty() {
            return Verdict::Granted;
        }
        let claim = header.and_then(|header| claim(users, header.as_bytes()));
        let Some(claim) = claim else { return Verdict::Denied };
        let tag = self.tag(&claim);
        if claim.is_known() && self.known().contains(&tag) {
            return Verdict::Granted;
        }
        let verdict = self.hash(claim).await;
        if verdict == Verdict::Granted {
            self.remember(tag);
        }
        verdict
    }

    async fn hash(&self, claim: Credentials) -> Verdict {
        let Ok(_place) = self.places.try_acquire() else { return Verdict::Busy };
        let Ok(turn) = self.turn.clone().acquire_owned().await else { return Verdict::Busy };
        // The turn goes along: it ends with the work, not with a client that hangs up.
        let work = move || (claim.is_true(), turn);
        match tokio::task::spawn_blocking(work).await {
            Ok((true, _)) => Verdict::Granted,
            _ => Verdict::Denied,
        }
    }

    fn tag(&self, claim: &Credentials) -> Tag {
        let mut text = Vec::new();
        for part in claim.parts() {
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

/// Name and password of a `Basic` header, to be checked.
fn claim(users: &Users, header: &[u8]) -> Option<Credentials> {
    let (scheme, credentials) = header.split_at_checked(6)?;
    if header.len() > MOST_HEADER || !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let text = STANDARD.decode(credentials.trim_ascii()).ok()?;
    let colon = text.iter().position(|byte| *byte == b':')?;
    users.claim(&text[..colon], &text[colon + 1..])
}
