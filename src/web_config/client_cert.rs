//! Policies for client certificates: the five of exporter-toolkit, and the allowed names.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};

use super::certificate::Certificate;

/// A value of `client_auth_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Request no certificate.
    NoClientCert,
    /// Request a certificate, and accept any or none.
    RequestClientCert,
    /// Require a certificate, and accept any.
    RequireAnyClientCert,
    /// Request a certificate; a given certificate must be signed by a client CA.
    VerifyClientCertIfGiven,
    /// Require a certificate signed by a client CA.
    RequireAndVerifyClientCert,
}

/// Accepts every certificate for which the client has the key.
#[derive(Debug)]
struct AnyCertificate {
    is_wanted: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Accepts certificates that another verifier accepts and that have one of these names.
#[derive(Debug)]
struct AllowedNames {
    names: Vec<String>,
    inner: Arc<dyn ClientCertVerifier>,
}

// === impl Policy ===

impl Policy {
    /// All policies by name; one policy has two names.
    pub const NAMES: [(&str, Self); 6] = [
        ("NoClientCert", Self::NoClientCert),
        ("RequestClientCert", Self::RequestClientCert),
        ("RequireAnyClientCert", Self::RequireAnyClientCert),
        ("RequireClientCert", Self::RequireAnyClientCert),
        ("VerifyClientCertIfGiven", Self::VerifyClientCertIfGiven),
        ("RequireAndVerifyClientCert", Self::RequireAndVerifyClientCert),
    ];

    /// Whether certificates are verified against the client CAs.
    pub fn verifies(self) -> bool {
        matches!(self, Self::VerifyClientCertIfGiven | Self::RequireAndVerifyClientCert)
    }

    /// Whether a client needs a certificate.
    pub fn requires(self) -> bool {
        matches!(self, Self::RequireAnyClientCert | Self::RequireAndVerifyClientCert)
    }

    /// Returns the verifier of the policy; `None` if no certificate is requested.
    pub fn verifier(
        self,
        provider: &Arc<CryptoProvider>,
        roots: RootCertStore,
        names: Vec<String>,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
        let inner: Arc<dyn ClientCertVerifier> = if self == Self::NoClientCert {
            return Ok(None);
        } else if self.verifies() {
            let roots = Arc::new(roots);
            let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
            let builder = match self.requires() {
                true => builder,
                false => builder.allow_unauthenticated(),
            };
            builder.build().map_err(|error| error.to_string())?
        } else {
            let algorithms = provider.signature_verification_algorithms;
            Arc::new(AnyCertificate { is_wanted: self.requires(), algorithms })
        };
        match names.is_empty() {
            true => Ok(Some(inner)),
            false => Ok(Some(Arc::new(AllowedNames { names, inner }))),
        }
    }
}

// === impl AnyCertificate ===

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        self.is_wanted
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

// === impl AllowedNames ===

impl ClientCertVerifier for AllowedNames {
    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        let certificate = Certificate::parse(end_entity)
            .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        match certificate.names.iter().any(|name| self.names.contains(name)) {
            true => Ok(verified),
            false => {
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
