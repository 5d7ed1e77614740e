//! A certificate authority, and the keys and certificates that it creates.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType,
    date_time_ymd,
};

/// An authority that stores its certificate and the signed certificates as files in one directory.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
    name: String,
}

/// The names and the last year of a certificate.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// DNS names and IP addresses; a name with `@` is an e-mail address, a name with colon and
    /// slashes a URI.
    pub names: &'a [&'a str],
    /// The year in which the certificate expires, on the first of January.
    pub until: i32,
}

// === impl Authority ===

impl Authority {
    /// Creates an authority; its certificate is `<name>.pem`.
    ///
    /// # Panics
    ///
    /// When the file cannot be written.
    #[must_use]
    pub fn new(directory: &Path, name: &str) -> Self {
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        fs::write(directory.join(format!("{name}.pem")), issuer.pem()).expect("a file");
        Self { issuer, directory: directory.to_owned(), name: name.to_owned() }
    }

    /// Signs a new certificate: `<name>.pem`, and its key `<name>.key`. Its issuer is the
    /// authority's name.
    ///
    /// # Panics
    ///
    /// When the files cannot be written.
    pub fn sign(&self, name: &str, subject: Subject<'_>) {
        let mut params = params(name);
        params.not_after = date_time_ymd(subject.until, 1, 1);
        params.subject_alt_names = subject.names.iter().map(|name| alt_name(name)).collect();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let write = |kind: &str, text: String| {
            fs::write(self.directory.join(format!("{name}.{kind}")), text).expect("a file");
        };
        write("pem", certificate.pem());
        write("key", key.serialize_pem());
    }

    /// The name of the authority.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn alt_name(name: &str) -> SanType {
    let text = || name.try_into().expect("ASCII");
    match name.parse() {
        Ok(ip) => SanType::IpAddress(ip),
        Err(_) if name.contains('@') => SanType::Rfc822Name(text()),
        Err(_) if name.contains("://") => SanType::URI(text()),
        Err(_) => SanType::DnsName(text()),
    }
}
