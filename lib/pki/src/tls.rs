//! TLS settings for rustls, made of PEM texts.

use crate::{Identity, PkiError};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::sync::Arc;

/// Settings for a server that shows `identity`. With a `client_ca_pem` it asks for a client certificate, refuses one
/// of another CA, and lets a caller without one through: those authenticate by token, or are anonymous.
pub fn server_config(
    identity: &Identity,
    client_ca_pem: Option<&str>,
    alpn: &[&str],
) -> Result<ServerConfig, PkiError> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match client_ca_pem {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pem)?), provider())
                .allow_unauthenticated()
                .build()
                .map_err(|err| PkiError::Malformed(err.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let (chain, key) = chain_and_key(identity)?;
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = protocols(alpn);
    Ok(config)
}

/// Settings for a client that trusts `ca_pem` alone and shows `identity` if it has one.
pub fn client_config(ca_pem: &str, identity: Option<&Identity>, alpn: &[&str]) -> Result<ClientConfig, PkiError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca_pem)?);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let (chain, key) = chain_and_key(identity)?;
            builder.with_client_auth_cert(chain, key)?
        }
    };
    config.alpn_protocols = protocols(alpn);
    Ok(config)
}

/// Settings for the one call that a joining node makes before it knows the cluster's CA: any server is accepted,
/// and no secret may be sent. The caller fetches the CA and compares it with its token by
/// [`JoinToken::accepts`](crate::token::JoinToken::accepts).
pub fn pinned_client_config(alpn: &[&str]) -> Result<ClientConfig, PkiError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny(provider())))
        .with_no_client_auth();
    config.alpn_protocols = protocols(alpn);
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn protocols(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.as_bytes().to_vec()).collect()
}

fn roots(ca_pem: &str) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(cert.map_err(|_| PkiError::Pem { what: "certificate" })?)?;
    }
    if roots.is_empty() { Err(PkiError::Pem { what: "certificate" }) } else { Ok(roots) }
}

fn chain_and_key(identity: &Identity) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
    let chain = CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| PkiError::Pem { what: "certificate" })?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())
        .map_err(|_| PkiError::Pem { what: "private key" })?;
    Ok((chain, key))
}

/// Accepts every server certificate, but checks that the server holds its key.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ca, Subject, Usage};
    use dhow_types::Time;

    #[test]
    fn settings_are_made_from_what_the_ca_issued() {
        let now = Time::from_secs(1_780_000_000);
        let ca = Ca::create("dhow", now).unwrap();
        let subject = Subject { common_name: "x".into(), organizations: vec![] };
        let identity = ca.issue(&subject, &[], Usage::Both, now, 1000).unwrap();
        assert!(server_config(&identity, Some(ca.cert_pem()), &["h2"]).is_ok());
        assert!(client_config(ca.cert_pem(), Some(&identity), &["h2"]).is_ok());
        assert!(matches!(client_config("", None, &[]), Err(PkiError::Pem { what: "certificate" })));
        assert!(matches!(
            server_config(&Identity { cert_pem: identity.cert_pem, key_pem: String::new() }, None, &[]),
            Err(PkiError::Pem { what: "private key" })
        ));
    }
}
