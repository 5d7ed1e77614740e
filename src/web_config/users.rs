//! Users and the bcrypt hashes of their passwords.

use std::collections::{BTreeMap, HashMap};

use bcrypt::HashParts;
use serde_saphyr::Spanned;

use super::file::Fault;

/// Maximum bcrypt cost: one check takes about a second, also for a wrong password.
const MOST_COST: u32 = 14;
/// Minimum cost that bcrypt allows.
const LEAST_COST: u32 = 4;
/// Bytes of a password that bcrypt uses.
const MOST_BYTES: usize = 72;

/// The users of a web configuration.
#[derive(Debug, Default)]
pub struct Users {
    hashes: HashMap<String, Hash>,
    /// The most expensive hash, which is checked for unknown users.
    dearest: Option<Hash>,
}

/// A hash in its text form, and its cost.
#[derive(Clone, Debug)]
struct Hash {
    text: String,
    cost: u32,
}

/// A name, a password, and the hash it must match.
#[derive(Debug)]
pub struct Credentials {
    user: String,
    password: Vec<u8>,
    hash: Hash,
    is_known: bool,
    /// The cost of the most expensive hash.
    most_cost: u32,
}

// === impl Users ===

impl Users {
    /// Parses and validates the hashes.
    pub fn parse(users: &BTreeMap<String, Spanned<String>>) -> Result<Self, Fault> {
        let mut parsed = Self::default();
        for (name, text) in users {
            let hash = Hash::parse(text)?;
            if parsed.dearest.as_ref().is_none_or(|dearest| dearest.cost < hash.cost) {
                parsed.dearest = Some(hash.clone());
            }
            parsed.hashes.insert(name.clone(), hash);
        }
        Ok(parsed)
    }

    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there are no users, so that no password is required.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Creates the check of this name and password; `None` if there are no users.
    pub fn credentials(&self, user: &[u8], password: &[u8]) -> Option<Credentials> {
        let dearest = self.dearest.as_ref()?;
        let user = String::from_utf8_lossy(user).into_owned();
        let hash = self.hashes.get(&user);
        Some(Credentials {
            is_known: hash.is_some(),
            hash: hash.unwrap_or(dearest).clone(),
            most_cost: dearest.cost,
            password: password[..password.len().min(MOST_BYTES)].to_vec(),
            user,
        })
    }
}

// === impl Hash ===

impl Hash {
    fn parse(text: &Spanned<String>) -> Result<Self, Fault> {
        let Ok(parts) = text.value.parse::<HashParts>() else {
            let what = "the password of this user is not a bcrypt hash, as htpasswd -nB prints it";
            return Err(Fault::of(text, what));
        };
        let cost = parts.get_cost();
        match cost {
            LEAST_COST..=MOST_COST => Ok(Self { text: text.value.clone(), cost }),
            _ => {
                let what = format!(
                    "the bcrypt cost of this user is {cost}, not {LEAST_COST} to {MOST_COST}: one check would take too long"
                );
                Err(Fault::of(text, what))
            }
        }
    }
}

// === impl Credentials ===

impl Credentials {
    /// Whether the user exists.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// The parts that identify the credentials: equal only for the same user, password and hash. Do
    /// not remember credentials of unknown users: their hash belongs to another user.
    pub fn parts(&self) -> [&[u8]; 3] {
        [self.hash.text.as_bytes(), self.user.as_bytes(), &self.password]
    }

    /// Checks the password. A refusal takes the same time for known and unknown users and for every
    /// cost.
    pub fn is_true(&self) -> bool {
        let matches = bcrypt::verify(&self.password, &self.hash.text).unwrap_or(false);
        if matches && self.is_known {
            return true;
        }
        // Costs are powers of two: c + c + (c + 1) + ... + (n - 1) is n.
        for cost in self.hash.cost..self.most_cost {
            let _ = bcrypt::hash_with_salt_bytes(&self.password, cost, [0; 16]);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    fn users(given: &[(&str, u32)]) -> Users {
        let hash = |cost| {
            let parts = bcrypt::hash_with_salt(b"right", cost, [7; 16]).unwrap();
            Hash { text: parts.to_string(), cost }
        };
        let hashes: HashMap<_, _> =
            given.iter().map(|(name, cost)| ((*name).to_owned(), hash(*cost))).collect();
        let dearest = hashes.values().max_by_key(|hash| hash.cost).cloned();
        Users { hashes, dearest }
    }

    fn is_true(users: &Users, name: &str, password: &str) -> bool {
        users.credentials(name.as_bytes(), password.as_bytes()).unwrap().is_true()
    }

    #[test]
    fn only_the_right_password_of_a_known_user_is_true() {
        let users = users(&[("a", 4), ("b", 5)]);
        assert!(is_true(&users, "a", "right") && is_true(&users, "b", "right"));
        // The hash used for unknown users also has a password.
        for (name, password) in [("a", "wrong"), ("a", ""), ("c", "right"), ("", "right")] {
            assert!(!is_true(&users, name, password), "{name} {password}");
        }
        assert!(Users::default().credentials(b"a", b"right").is_none());
    }

    #[test]
    fn a_refusal_takes_the_same_time_for_every_hash_cost() {
        let users = users(&[("cheap", 6), ("dear", 10)]);
        let now = || clock_gettime(ClockId::ThreadCPUTime);
        let cost = |name| {
            let before = now();
            assert!(!is_true(&users, name, "wrong"));
            let after = now();
            (after.tv_sec - before.tv_sec) as f64 + (after.tv_nsec - before.tv_nsec) as f64 / 1e9
        };
        let [dear, cheap, unknown] = ["dear", "cheap", "unknown"].map(cost);
        for other in [cheap, unknown] {
            assert!((0.6..1.6).contains(&(other / dear)), "{dear} {cheap} {unknown}");
        }
    }
}
