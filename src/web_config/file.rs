//! The file format: the keys of exporter-toolkit, each value with its line.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde_saphyr::{Error, MergeKeyPolicy, Spanned, from_str_with_options};

/// The web configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    pub tls_server_config: Option<Spanned<Tls>>,
    pub http_server_config: Option<Http>,
    /// Users and the bcrypt hashes of their passwords.
    pub basic_auth_users: Option<BTreeMap<String, Spanned<String>>>,
    pub rate_limit: Option<RateLimit>,
}

/// Certificate, key, and the accepted clients and protocols.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(
    missing_docs,
    reason = "the fields are exporter-toolkit's keys, explained in docs/web-config.md"
)]
pub struct Tls {
    pub cert: Option<Spanned<String>>,
    pub key: Option<Spanned<String>>,
    pub client_ca: Option<Spanned<String>>,
    pub cert_file: Option<Spanned<String>>,
    pub key_file: Option<Spanned<String>>,
    pub client_ca_file: Option<Spanned<String>>,
    pub client_auth_type: Option<Spanned<String>>,
    pub client_allowed_sans: Option<Spanned<Vec<String>>>,
    pub min_version: Option<Spanned<String>>,
    pub max_version: Option<Spanned<String>>,
    pub cipher_suites: Option<Vec<Spanned<String>>>,
    pub prefer_server_cipher_suites: Option<bool>,
    pub curve_preferences: Option<Vec<Spanned<String>>>,
}

/// HTTP options.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Accepted and ignored: listenq serves HTTP/1.1 only.
    pub http2: Option<bool>,
    /// Headers of every response.
    pub headers: Option<BTreeMap<String, Spanned<String>>>,
}

/// A token bucket.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// Time in which one token is added, in Go's syntax of durations.
    pub interval: Option<Spanned<String>>,
    /// Maximum number of tokens.
    pub burst: Option<Spanned<i64>>,
}

/// An error in a line. It never contains a value that may be a secret.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line, from 1; 0 if the line is unknown.
    pub line: u64,
    pub what: String,
}

/// An error in a web configuration, with its file and line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The web configuration file.
    pub path: PathBuf,
    pub fault: Fault,
}

// === impl File ===

impl File {
    /// Parses the text of the file.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        if let Some(line) = lone_return(text) {
            return Err(Fault::new(line, "a carriage return without a line feed stands here"));
        }
        let options = serde_saphyr::options! {
            with_snippet: false,
            merge_keys: MergeKeyPolicy::Error,
        };
        // An empty file configures nothing; YAML parses it as null.
        let file: Result<Option<Self>, Error> = from_str_with_options(text, options);
        file.map(Option::unwrap_or_default).map_err(|error| Fault::from_yaml(&error))
    }
}

/// The line of the first carriage return without a line feed. YAML counts it as a line end and
/// editors do not, so that all later line numbers would be wrong.
fn lone_return(text: &str) -> Option<u64> {
    let mut returns = text.match_indices('\r').map(|(at, _)| text.split_at(at));
    let (above, _) = returns.find(|(_, rest)| !rest.starts_with("\r\n"))?;
    Some(above.matches('\n').count() as u64 + 1)
}

// === impl Fault ===

impl Fault {
    /// Creates a fault in this line.
    pub fn new(line: u64, what: impl Into<String>) -> Self {
        Self { line, what: what.into() }
    }

    /// Creates a fault at this value.
    pub fn of<T>(value: &Spanned<T>, what: impl Into<String>) -> Self {
        Self::new(value.referenced.line(), what)
    }

    /// Creates a fault from a YAML error. It contains only what the parser expected: the text found
    /// may be a secret.
    fn from_yaml(error: &Error) -> Self {
        let line = error.location().map_or(0, |location| location.line());
        Self::new(line, describe(error))
    }
}

fn describe(error: &Error) -> String {
    match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            format!("unknown key {}: not one of {}", shown(field), expected.join(", "))
        }
        Error::DuplicateMappingKey { .. } => "this key stands here twice".into(),
        Error::SerdeInvalidType { expected, .. } | Error::SerdeInvalidValue { expected, .. } => {
            format!("this is not {expected}")
        }
        Error::InvalidScalar { ty, .. } => format!("this is not of type {ty}"),
        Error::Unexpected { expected, .. } => format!("expected {expected} here"),
        Error::MergeKeyNotAllowed { .. } => "the merge key << is not read".into(),
        Error::MultipleDocuments { .. } => "more than one YAML document".into(),
        Error::AliasError { error, .. } | Error::WithSnippet { error, .. } => describe(error),
        _ => "not valid YAML for a web configuration".into(),
    }
}

/// Returns a word of the file for an error, if the word looks like a name and not like a secret.
pub fn shown(word: &str) -> String {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    match word.len() <= 48 && word.bytes().all(is_name) {
        true => format!("{word:?}"),
        false => "(not shown)".into(),
    }
}

// === impl ConfigError ===

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, fault: Fault { line, what } } = self;
        match line {
            0 => write!(f, "{}: {what}", path.display()),
            line => write!(f, "{}:{line}: {what}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> (u64, String) {
        let Fault { line, what } = File::parse(text).unwrap_err();
        (line, what)
    }

    #[test]
    fn every_key_of_exporter_toolkit_is_known() {
        let text = "\
tls_server_config:
  cert: c
  key: k
  client_ca: a
  cert_file: c.pem
  key_file: k.pem
  client_ca_file: a.pem
  client_auth_type: NoClientCert
  client_allowed_sans: [a, b]
  min_version: TLS12
  max_version: TLS13
  cipher_suites: [TLS_AES_128_GCM_SHA256]
  prefer_server_cipher_suites: false
  curve_preferences: [X25519]
http_server_config:
  http2: true
  headers: {X-Frame-Options: deny}
basic_auth_users:
  alice: hash
rate_limit:
  interval: 1s
  burst: 20
";
        let file = File::parse(text).unwrap();
        let tls = file.tls_server_config.unwrap().value;
        assert_eq!(tls.client_auth_type.as_ref().unwrap().referenced.line(), 8);
        assert_eq!(tls.curve_preferences.unwrap()[0].value, "X25519");
        assert_eq!(file.basic_auth_users.unwrap()["alice"].referenced.line(), 19);
        assert_eq!(file.rate_limit.unwrap().burst.unwrap().value, 20);
    }

    #[test]
    fn an_empty_file_configures_nothing() {
        for text in ["", "\n", "# nothing\n", "---\n", "tls_server_config:\nbasic_auth_users:\n"] {
            let file = File::parse(text).unwrap_or_else(|fault| panic!("{text:?}: {fault:?}"));
            assert!(file.tls_server_config.is_none() && file.basic_auth_users.is_none());
        }
    }

    #[test]
    fn a_fault_names_its_line_and_no_value() {
        let secret = "hunter2 hunter2";
        for (text, line, what) in [
            ("a: 1\n".into(), 1, "unknown key \"a\": not one of tls_server_config"),
            ("rate_limit:\n  rate: 1\n".into(), 2, "unknown key \"rate\": not one of interval"),
            (format!("rate_limit:\n  burst: {secret}\n"), 2, "this is not of type"),
            (format!("basic_auth_users: {secret}\n"), 1, ""),
            (format!("tls_server_config:\n  key: [{secret}]\n"), 2, ""),
            (format!("tls_server_config:\n  key: x\n  key: {secret}\n"), 3, "twice"),
            (format!("{secret}\n"), 1, ""),
            (format!("{secret}: 1\n"), 1, "unknown key (not shown)"),
            (format!("tls_server_config:\n  key: \"{secret}\n"), 0, ""),
            (format!("tls_server_config:\n\t{secret}\n"), 2, ""),
            (format!("a: *{secret}\n"), 1, ""),
            ("rate_limit: {}\n---\nrate_limit: {}\n".into(), 3, "more than one"),
            ("a: &x {b: 1}\nrate_limit: {<<: *x}\n".into(), 1, ""),
            (format!("http_server_config:\n  http2: {secret}\n"), 2, ""),
            // Found by fuzzing: YAML counts each of these as a line.
            (format!("rate_limit:\r\n  \r\r\r{secret}\n"), 2, "a carriage return"),
            (format!("rate_limit:\r\n  burst: {secret}\r\n"), 2, "this is not of type"),
        ] {
            let (at, said) = fault(&text);
            assert!(line == 0 || at == line, "{text:?} at {at}: {said}");
            assert!(at > 0 && said.contains(what) && !said.contains("hunter2"), "{text:?}: {said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
}
