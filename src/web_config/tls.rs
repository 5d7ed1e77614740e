//! Converts `tls_server_config` to a rustls configuration.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::ring::{ALL_CIPHER_SUITES, ALL_KX_GROUPS, default_provider};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WantsServerCert;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ConfigBuilder, NamedGroup, RootCertStore, ServerConfig, SupportedCipherSuite,
    SupportedProtocolVersion,
};
use serde_saphyr::Spanned;

use super::certificate::{Certificate, Time};
use super::client_cert::Policy;
use super::file::{Fault, Tls, shown};
use super::sources::Sources;

/// The TLS versions by their names in Go.
const VERSIONS: [(&str, Option<&SupportedProtocolVersion>); 4] =
    [("TLS13", Some(&TLS13)), ("TLS12", Some(&TLS12)), ("TLS11", None), ("TLS10", None)];
/// The curves by their names in Go.
const CURVES: [(&str, NamedGroup); 3] = [
    ("X25519", NamedGroup::X25519),
    ("CurveP256", NamedGroup::secp256r1),
    ("CurveP384", NamedGroup::secp384r1),
];

/// Reads the files that the configuration references, relative to the configuration's directory.
pub struct Loader<'a> {
    /// The directory of the configuration file.
    pub directory: &'a Path,
    pub sources: &'a mut Sources,
}

/// A value, or a file that contains it.
type Given<'a> = Option<&'a Spanned<String>>;

/// PEM text, and the configuration line that gives it.
struct Pem {
    text: Vec<u8>,
    line: u64,
}

// === impl Loader ===

impl Loader<'_> {
    /// Returns `None` if TLS is not configured.
    pub fn server_config(&mut self, tls: &Spanned<Tls>) -> Result<Option<ServerConfig>, Fault> {
        let (line, tls) = (tls.referenced.line(), &tls.value);
        if tls.is_blank() {
            return Ok(None);
        }
        let cert = self.pem("cert", tls.cert.as_ref(), tls.cert_file.as_ref())?;
        let key = self.pem("key", tls.key.as_ref(), tls.key_file.as_ref())?;
        let cert = cert.ok_or_else(|| Fault::new(line, "cert_file or cert is missing"))?;
        let key = key.ok_or_else(|| Fault::new(line, "key_file or key is missing"))?;
        let chain = chain(&cert)?;
        check_expiry(&cert, &chain)?;
        let signer = PrivateKeyDer::from_pem_slice(&key.text).map_err(|_| {
            Fault::new(key.line, "no private key in PEM here (an encrypted one is not read)")
        })?;
        let builder = self.with_clients(tls, line)?;
        let mut config = builder.with_single_cert(chain, signer).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                Fault::new(key.line, "this is not the key of the certificate")
            }
            error => Fault::new(key.line, format!("certificate or key cannot be used: {error}")),
        })?;
        config.ignore_client_order = tls.prefer_server_cipher_suites.unwrap_or(true);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(config))
    }

    /// Sets versions, cipher suites, curves and the client policy.
    fn with_clients(
        &mut self,
        tls: &Tls,
        line: u64,
    ) -> Result<ConfigBuilder<ServerConfig, WantsServerCert>, Fault> {
        let provider = Arc::new(provider(tls)?);
        let policy = policy(tls)?;
        let given = self.pem("client_ca", tls.client_ca.as_ref(), tls.client_ca_file.as_ref())?;
        let type_line = tls.client_auth_type.as_ref().map_or(line, |name| name.referenced.line());
        let roots = match given {
            Some(pem) if policy == Policy::NoClientCert => {
                return Err(Fault::new(pem.line, "a client CA needs a client_auth_type"));
            }
            Some(pem) => roots(&pem)?,
            None if policy.verifies() => {
                let what = "this client_auth_type needs client_ca_file or client_ca";
                return Err(Fault::new(type_line, what));
            }
            None => RootCertStore::empty(),
        };
        let names = allowed_names(tls, policy)?;
        let verifier = policy.verifier(&provider, roots, names);
        let verifier = verifier.map_err(|what| Fault::new(type_line, what))?;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions(tls)?)
            .map_err(|error| Fault::new(line, error.to_string()))?;
        Ok(match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        })
    }

    /// Returns text from the configuration, or from the referenced file.
    fn pem(&mut self, name: &str, text: Given<'_>, file: Given<'_>) -> Result<Option<Pem>, Fault> {
        let is_given = |value: &&Spanned<String>| !value.value.is_empty();
        match (text.filter(is_given), file.filter(is_given)) {
            (None, None) => Ok(None),
            (Some(_), Some(file)) => {
                Err(Fault::of(file, format!("{name} and {name}_file cannot both be given")))
            }
            (Some(text), None) => {
                let line = text.referenced.line();
                Ok(Some(Pem { text: text.value.clone().into_bytes(), line }))
            }
            (None, Some(file)) => {
                let path = self.directory.join(&file.value);
                let text = self.sources.read(&path).map_err(|error| {
                    Fault::of(file, format!("{name}_file {}: {error}", path.display()))
                })?;
                Ok(Some(Pem { text, line: file.referenced.line() }))
            }
        }
    }
}

impl Tls {
    /// Whether no key is set.
    fn is_blank(&self) -> bool {
        let Self {
            cert: None,
            key: None,
            client_ca: None,
            cert_file: None,
            key_file: None,
            client_ca_file: None,
            client_auth_type: None,
            client_allowed_sans: None,
            min_version: None,
            max_version: None,
            cipher_suites: None,
            prefer_server_cipher_suites: None,
            curve_preferences: None,
        } = self
        else {
            return false;
        };
        true
    }
}

fn chain(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem.text).collect();
    match read {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(Fault::new(pem.line, "no certificate in PEM here")),
    }
}

/// Refuses an expired certificate. A certificate that is not valid yet is accepted: the clock may
/// be wrong after a boot.
fn check_expiry(pem: &Pem, chain: &[CertificateDer<'_>]) -> Result<(), Fault> {
    let leaf = chain.first().and_then(|leaf| Certificate::parse(leaf));
    let leaf = leaf.ok_or_else(|| Fault::new(pem.line, "this certificate cannot be read"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match leaf.not_after < Time::from_unix(now.as_secs()) {
        true => {
            let what = format!("this certificate expired on {}", leaf.not_after.date());
            Err(Fault::new(pem.line, what))
        }
        false => Ok(()),
    }
}

fn roots(pem: &Pem) -> Result<RootCertStore, Fault> {
    let mut roots = RootCertStore::empty();
    for authority in chain(pem)? {
        let added = roots.add(authority);
        added.map_err(|_| Fault::new(pem.line, "the certificate of a client CA cannot be read"))?;
    }
    Ok(roots)
}

fn policy(tls: &Tls) -> Result<Policy, Fault> {
    let given = tls.client_auth_type.as_ref().filter(|name| !name.value.is_empty());
    let Some(name) = given else { return Ok(Policy::NoClientCert) };
    let known = Policy::NAMES.iter().find(|(known, _)| *known == name.value);
    known
        .map(|(_, policy)| *policy)
        .ok_or_else(|| not_one_of(name, Policy::NAMES.map(|(name, _)| name)))
}

/// The allowed names, which need a policy that requires a certificate.
fn allowed_names(tls: &Tls, policy: Policy) -> Result<Vec<String>, Fault> {
    match &tls.client_allowed_sans {
        None => Ok(Vec::new()),
        Some(names) if !policy.requires() => Err(Fault::of(
            names,
            "client_allowed_sans needs client_auth_type RequireAnyClientCert or RequireAndVerifyClientCert",
        )),
        Some(names) if names.value.is_empty() => {
            Err(Fault::of(names, "client_allowed_sans is empty: no client could connect"))
        }
        Some(names) => Ok(names.value.clone()),
    }
}

fn versions(tls: &Tls) -> Result<Vec<&'static SupportedProtocolVersion>, Fault> {
    let least = version(tls.min_version.as_ref())?.unwrap_or(&TLS12);
    let most = version(tls.max_version.as_ref())?.unwrap_or(&TLS13);
    match (least == &TLS13, most == &TLS13) {
        (false, true) => Ok(vec![&TLS13, &TLS12]),
        (false, false) => Ok(vec![&TLS12]),
        (true, true) => Ok(vec![&TLS13]),
        (true, false) => {
            let line = tls.max_version.as_ref().map_or(0, |name| name.referenced.line());
            Err(Fault::new(line, "max_version is below min_version"))
        }
    }
}

fn version(name: Given<'_>) -> Result<Option<&'static SupportedProtocolVersion>, Fault> {
    let Some(name) = name.filter(|name| !name.value.is_empty()) else { return Ok(None) };
    match VERSIONS.iter().find(|(known, _)| *known == name.value) {
        Some((_, Some(version))) => Ok(Some(version)),
        Some((known, None)) => {
            Err(Fault::of(name, format!("{known} is no longer supported: use TLS12 or TLS13")))
        }
        None => Err(not_one_of(name, ["TLS12", "TLS13"])),
    }
}

/// The crypto provider. As in Go, the cipher suites of TLS 1.2 are configurable; the suites of TLS
/// 1.3 are always enabled.
fn provider(tls: &Tls) -> Result<CryptoProvider, Fault> {
    let mut provider = default_provider();
    if let Some(names) = tls.cipher_suites.as_ref().filter(|names| !names.is_empty()) {
        let chosen: Result<Vec<_>, _> = names.iter().map(cipher_suite).collect();
        let chosen = chosen?.into_iter().filter(|suite| suite.tls13().is_none());
        provider.cipher_suites.retain(|suite| suite.tls13().is_some());
        provider.cipher_suites.extend(chosen);
    }
    if let Some(names) = tls.curve_preferences.as_ref().filter(|names| !names.is_empty()) {
        let chosen: Result<Vec<_>, _> = names.iter().map(curve).collect();
        provider.kx_groups = chosen?;
    }
    Ok(provider)
}

fn cipher_suite(name: &Spanned<String>) -> Result<SupportedCipherSuite, Fault> {
    let suite = ALL_CIPHER_SUITES.iter().find(|suite| go_name(suite) == name.value);
    suite.copied().ok_or_else(|| not_one_of(name, ALL_CIPHER_SUITES.iter().map(go_name)))
}

/// The name in Go: rustls writes TLS13_ instead of the TLS_ of Go and the registry.
fn go_name(suite: &SupportedCipherSuite) -> String {
    suite.suite().as_str().unwrap_or_default().replace("TLS13_", "TLS_")
}

fn curve(name: &Spanned<String>) -> Result<&'static dyn SupportedKxGroup, Fault> {
    let group = CURVES.iter().find(|(known, _)| *known == name.value).map(|(_, group)| group);
    let found = ALL_KX_GROUPS.iter().find(|known| Some(&known.name()) == group);
    found.copied().ok_or_else(|| not_one_of(name, CURVES.map(|(name, _)| name)))
}

fn not_one_of<T: AsRef<str>>(name: &Spanned<String>, known: impl IntoIterator<Item = T>) -> Fault {
    let known: Vec<T> = known.into_iter().collect();
    let known: Vec<&str> = known.iter().map(AsRef::as_ref).collect();
    Fault::of(name, format!("{} is not one of {}", shown(&name.value), known.join(", ")))
}
