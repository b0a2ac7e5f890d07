//! The TLS side of both directions: version 1.3 only, both ends show a certificate of the cluster's CA.

use crate::error::QuicError;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The protocol's name and version.
const ALPN: &[u8] = b"dhow/1";

/// Who this side is and whom it trusts.
#[derive(Clone)]
pub struct Tls {
    /// The cluster's CA.
    pub ca_pem: String,
    /// This side's certificate, for use as server and as client.
    pub cert_pem: String,
    /// Its key.
    pub key_pem: String,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

impl Tls {
    pub(crate) fn server(&self) -> Result<QuicServerConfig, QuicError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider.clone())
            .build()
            .map_err(identity)?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(identity)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain()?, self.key()?)
            .map_err(identity)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        QuicServerConfig::try_from(config).map_err(identity)
    }

    pub(crate) fn client(&self) -> Result<QuicClientConfig, QuicError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(identity)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain()?, self.key()?)
            .map_err(identity)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        QuicClientConfig::try_from(config).map_err(identity)
    }

    fn roots(&self) -> Result<RootCertStore, QuicError> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(self.ca_pem.as_bytes()) {
            roots.add(root.map_err(identity)?).map_err(identity)?;
        }
        if roots.is_empty() {
            return Err(QuicError::Identity("no certificate of a CA".to_owned()));
        }
        Ok(roots)
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, QuicError> {
        CertificateDer::pem_slice_iter(self.cert_pem.as_bytes()).collect::<Result<_, _>>().map_err(identity)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, QuicError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(identity)
    }
}

fn identity(error: impl fmt::Display) -> QuicError {
    QuicError::Identity(error.to_string())
}

/// The common name and the organizations in a certificate that TLS has verified.
pub(crate) fn subject(certificate: &[u8]) -> Option<(String, Vec<String>)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    let organizations = certificate.subject().iter_organization().filter_map(|attribute| attribute.as_str().ok());
    Some((name.to_owned(), organizations.map(str::to_owned).collect()))
}
