//! TLS settings for rustls, made of PEM texts.

use crate::{Identity, PkiError, facts_of};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// The certificate that a server shows, exchanged while it serves. Clones share it.
#[derive(Clone, Debug)]
pub struct ServerCert(Arc<RwLock<Arc<CertifiedKey>>>);

impl ServerCert {
    /// Begins with `identity`.
    pub fn new(identity: &Identity) -> Result<Self, PkiError> {
        Ok(Self(Arc::new(RwLock::new(certified(identity)?))))
    }

    /// Shows `identity` to whoever connects from now on.
    pub fn replace(&self, identity: &Identity) -> Result<(), PkiError> {
        let fresh = certified(identity)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

impl ResolvesServerCert for ServerCert {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn certified(identity: &Identity) -> Result<Arc<CertifiedKey>, PkiError> {
    let (chain, key) = chain_and_key(identity)?;
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider())?))
}

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
        Some(pem) => builder.with_client_cert_verifier(client_verifier(pem)?),
    };
    let (chain, key) = chain_and_key(identity)?;
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = protocols(alpn);
    Ok(config)
}

/// Settings for the API server: its certificate can be exchanged, and a client certificate that was good but is over
/// is let through. Whoever uses them looks at [`Facts::is_expired`](crate::Facts::is_expired) at every request: a node
/// that was off for months may ask for a fresh certificate, and nothing else.
pub fn api_server_config(cert: &ServerCert, client_ca_pem: &str, alpn: &[&str]) -> Result<ServerConfig, PkiError> {
    let verifier = TolerantOfAge { strict: client_verifier(client_ca_pem)? };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(cert.clone()));
    config.alpn_protocols = protocols(alpn);
    Ok(config)
}

fn client_verifier(ca_pem: &str) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca_pem)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|err| PkiError::Malformed(err.to_string()))
}

/// Verifies a client certificate that is over as of its last moment.
#[derive(Debug)]
struct TolerantOfAge {
    strict: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for TolerantOfAge {
    fn offer_client_auth(&self) -> bool {
        self.strict.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.strict.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.strict.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let refusal = match self.strict.verify_client_cert(end_entity, intermediates, now) {
            Ok(verified) => return Ok(verified),
            Err(refusal) => refusal,
        };
        let is_over = matches!(
            refusal,
            rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })
        );
        let last = facts_of(end_entity).ok().and_then(|facts| u64::try_from(facts.not_after.as_ms() / 1000).ok());
        match last {
            Some(last) if is_over && last < now.as_secs() => {
                let then = UnixTime::since_unix_epoch(Duration::from_secs(last));
                self.strict.verify_client_cert(end_entity, intermediates, then)
            }
            _ => Err(refusal),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.strict.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.strict.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.strict.supported_verify_schemes()
    }
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

    #[test]
    fn a_certificate_that_is_over_is_let_through_and_a_strange_one_is_not() {
        let now = Time::from_secs(1_780_000_000);
        let (ca, other) = (Ca::create("dhow", now).unwrap(), Ca::create("dhow", now).unwrap());
        let verifier = TolerantOfAge { strict: client_verifier(ca.cert_pem()).unwrap() };
        let subject = Subject { common_name: "system:node:n1".into(), organizations: vec![] };
        let day_s = 24 * 3600;
        let at = |days: u64| UnixTime::since_unix_epoch(Duration::from_secs(1_780_000_000 + days * day_s));
        let verify = |ca: &Ca, usage: Usage, days: u64| {
            let identity = ca.issue(&subject, &[], usage, now, 30 * day_s * 1000).unwrap();
            verifier.verify_client_cert(&crate::ca::first_certificate(&identity.cert_pem).unwrap(), &[], at(days))
        };
        assert!(verify(&ca, Usage::Client, 1).is_ok());
        assert!(verifier.strict.root_hint_subjects().len() == 1);
        assert!(verify(&ca, Usage::Both, 300).is_ok());
        assert!(verify(&ca, Usage::Server, 300).is_err(), "not for clients");
        assert!(verify(&other, Usage::Both, 1).is_err());
        assert!(verify(&other, Usage::Both, 300).is_err());
    }

    #[test]
    fn a_servers_certificate_is_exchanged_while_it_serves() {
        let now = Time::from_secs(1_780_000_000);
        let ca = Ca::create("dhow", now).unwrap();
        let subject = Subject { common_name: "x".into(), organizations: vec![] };
        let issue = || ca.issue(&subject, &[], Usage::Both, now, 1000).unwrap();
        let (first, second) = (issue(), issue());
        let cert = ServerCert::new(&first).unwrap();
        assert!(api_server_config(&cert, ca.cert_pem(), &["h2"]).is_ok());
        let shown = |cert: &ServerCert| cert.0.read().unwrap().cert[0].to_vec();
        let before = shown(&cert);
        assert!(cert.replace(&Identity { key_pem: String::new(), ..first }).is_err());
        assert_eq!(shown(&cert), before);
        cert.replace(&second).unwrap();
        assert_eq!(shown(&cert), crate::ca::first_certificate(&second.cert_pem).unwrap().to_vec());
    }
}
