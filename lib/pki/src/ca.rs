//! The certificate authority and what it signs.

use crate::PkiError;
use dhow_types::Time;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber, SigningKey,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use time::OffsetDateTime;

/// How long a new CA is valid: ten years, as kubeadm's.
const CA_VALID_MS: u64 = 10 * 365 * 24 * 3600 * 1000;

/// Certificates are valid from this much before "now", so that a machine whose clock is a little behind accepts them.
const CLOCK_SKEW_MS: u64 = 3600 * 1000;

/// The cluster's certificate authority (ECDSA P-256).
pub struct Ca {
    cert_pem: String,
    /// Whoever has none can tell what the authority has signed, and sign nothing.
    key_pem: Option<String>,
    cert_der: CertificateDer<'static>,
}

/// Who a certificate speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The user name.
    pub common_name: String,
    /// The groups. Certificates that we issue name at most one.
    pub organizations: Vec<String>,
}

/// A subject alternative name: what a server may be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum San {
    /// A DNS name.
    Dns(String),
    /// An IP address.
    Ip(IpAddr),
}

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// To serve.
    Server,
    /// To call.
    Client,
    /// To serve and to call, as nodes do.
    Both,
}

/// A certificate and its private key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub cert_pem: String,
    /// The PKCS#8 private key.
    pub key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(key elided)")
    }
}

impl Ca {
    /// Makes a new authority that is valid for ten years from `now`.
    pub fn create(common_name: &str, now: Time) -> Result<Self, PkiError> {
        let subject = Subject { common_name: common_name.to_owned(), organizations: Vec::new() };
        let key = KeyPair::generate()?;
        let mut params = params(&subject, &[], now, CA_VALID_MS)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let cert = params.self_signed(&key)?;
        Ok(Self { cert_pem: cert.pem(), key_pem: Some(key.serialize_pem()), cert_der: cert.der().clone() })
    }

    /// Takes an authority from PEM texts, as written by an earlier [`Ca::create`].
    pub fn load(cert_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let cert_der = first_certificate(cert_pem)?;
        let ca = Self { cert_pem: cert_pem.to_owned(), key_pem: Some(key_pem.to_owned()), cert_der };
        ca.issuer()?;
        Ok(ca)
    }

    /// What is known of an authority by those who do not hold its key.
    pub fn without_key(cert_pem: &str) -> Result<Self, PkiError> {
        Ok(Self { cert_pem: cert_pem.to_owned(), key_pem: None, cert_der: first_certificate(cert_pem)? })
    }

    /// The authority's certificate.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The authority's private key, if it is here: whoever has it is the cluster.
    pub fn key_pem(&self) -> Option<&str> {
        self.key_pem.as_deref()
    }

    /// SHA-256 of the certificate's DER form, in hex: what a join token pins.
    pub fn cert_der_sha256_hex(&self) -> String {
        sha256_hex(&self.cert_der)
    }

    /// Makes a key and signs a certificate for it.
    pub fn issue(
        &self,
        subject: &Subject,
        sans: &[San],
        usage: Usage,
        now: Time,
        valid_ms: u64,
    ) -> Result<Identity, PkiError> {
        self.issue_for(&new_key()?, subject, sans, usage, now, valid_ms)
    }

    /// Signs a certificate for a key that exists: who renews keeps the key, and with it all that follows from it.
    pub fn issue_for(
        &self,
        key_pem: &str,
        subject: &Subject,
        sans: &[San],
        usage: Usage,
        now: Time,
        valid_ms: u64,
    ) -> Result<Identity, PkiError> {
        let key = KeyPair::from_pem(key_pem)?;
        let mut params = params(subject, sans, now, valid_ms)?;
        limit_to(&mut params, usage);
        let cert = params.signed_by(&key, &self.issuer()?)?;
        Ok(Identity { cert_pem: cert.pem(), key_pem: key_pem.to_owned() })
    }

    /// Signs the public key of a certificate signing request. Only the key is taken from the request; who it speaks
    /// for is decided by the caller.
    pub fn sign_csr(
        &self,
        csr_pem: &str,
        subject: &Subject,
        sans: &[San],
        usage: Usage,
        now: Time,
        valid_ms: u64,
    ) -> Result<String, PkiError> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        request.params = params(subject, sans, now, valid_ms)?;
        limit_to(&mut request.params, usage);
        Ok(request.signed_by(&self.issuer()?)?.pem())
    }

    /// Signs a text that no certificate could be taken for.
    pub(crate) fn sign(&self, text: &[u8]) -> Result<Vec<u8>, PkiError> {
        let key_pem = self.key_pem.as_deref().ok_or(PkiError::NoKey)?;
        Ok(KeyPair::from_pem(key_pem)?.sign(text)?)
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, PkiError> {
        let key_pem = self.key_pem.as_deref().ok_or(PkiError::NoKey)?;
        Ok(Issuer::from_ca_cert_der(&self.cert_der, KeyPair::from_pem(key_pem)?)?)
    }
}

/// A new private key, PEM.
pub fn new_key() -> Result<String, PkiError> {
    Ok(KeyPair::generate()?.serialize_pem())
}

/// A new private key and a certificate signing request for it: `(request PEM, key PEM)`.
pub fn new_csr(common_name: &str) -> Result<(String, String), PkiError> {
    let key_pem = new_key()?;
    Ok((csr_for(&key_pem, common_name)?, key_pem))
}

/// A certificate signing request for a key that exists.
pub fn csr_for(key_pem: &str, common_name: &str) -> Result<String, PkiError> {
    let key = KeyPair::from_pem(key_pem)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params.serialize_request(&key)?.pem()?)
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Who it speaks for.
    pub subject: Subject,
    /// What it may be used for; `None` for an authority.
    pub usage: Option<Usage>,
    /// From when it is valid.
    pub not_before: Time,
    /// Until when it is valid.
    pub not_after: Time,
}

impl Facts {
    /// When a fresh certificate should be asked for: after two thirds of its life, so that many attempts may fail.
    pub fn renew_after(&self) -> Time {
        self.not_before + self.not_after.ms_since(self.not_before) / 3 * 2
    }

    /// How long it was made for. It is valid a little before that, for clocks that are behind.
    pub fn life_ms(&self) -> u64 {
        self.not_after.ms_since(self.not_before).saturating_sub(CLOCK_SKEW_MS)
    }

    /// Whether it is over.
    pub fn is_expired(&self, now: Time) -> bool {
        self.not_after < now
    }
}

/// What the first certificate in a PEM text says. Says nothing about whether it can be trusted.
pub fn facts_of_pem(cert_pem: &str) -> Result<Facts, PkiError> {
    facts_of(&first_certificate(cert_pem)?)
}

/// What a DER certificate says. Says nothing about whether it can be trusted.
pub fn facts_of(cert_der: &[u8]) -> Result<Facts, PkiError> {
    let (_, cert) =
        x509_parser::parse_x509_certificate(cert_der).map_err(|err| PkiError::Malformed(err.to_string()))?;
    let extended = cert.extended_key_usage().map_err(|err| PkiError::Malformed(err.to_string()))?;
    let usage = extended.and_then(|usage| match (usage.value.server_auth, usage.value.client_auth) {
        (true, true) => Some(Usage::Both),
        (true, false) => Some(Usage::Server),
        (false, true) => Some(Usage::Client),
        (false, false) => None,
    });
    let validity = cert.validity();
    Ok(Facts {
        subject: subject_of(cert_der)?,
        usage,
        not_before: Time::from_secs(validity.not_before.timestamp()),
        not_after: Time::from_secs(validity.not_after.timestamp()),
    })
}

/// Who a DER certificate speaks for. Says nothing about whether it can be trusted.
pub fn subject_of(cert_der: &[u8]) -> Result<Subject, PkiError> {
    let (_, cert) =
        x509_parser::parse_x509_certificate(cert_der).map_err(|err| PkiError::Malformed(err.to_string()))?;
    let text = |attr: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attr.as_str().map(str::to_owned).map_err(|err| PkiError::Malformed(err.to_string()))
    };
    let common_name = match cert.subject().iter_common_name().next() {
        Some(attr) => text(attr)?,
        None => String::new(),
    };
    let organizations = cert.subject().iter_organization().map(text).collect::<Result<_, _>>()?;
    Ok(Subject { common_name, organizations })
}

pub(crate) fn first_certificate(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| PkiError::Pem { what: "certificate" })
}

/// SHA-256 of the DER form of the first certificate in a PEM text, in hex: what a join token pins.
pub fn certificate_sha256_hex(cert_pem: &str) -> Result<String, PkiError> {
    Ok(sha256_hex(&first_certificate(cert_pem)?))
}

/// SHA-256 in lower-case hex.
fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn params(subject: &Subject, sans: &[San], now: Time, valid_ms: u64) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.not_before = date(now - CLOCK_SKEW_MS)?;
    params.not_after = date(now + valid_ms)?;
    let mut serial = [0u8; 16];
    getrandom::fill(&mut serial).map_err(PkiError::Random)?;
    serial[0] &= 0x7f; // a positive number, as RFC 5280 §4.1.2.2 wants it
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    params.distinguished_name = DistinguishedName::new();
    // rcgen keeps one value per attribute type: a second group would silently replace the first.
    if subject.organizations.len() > 1 {
        return Err(PkiError::Malformed("more than one organization in a subject".to_owned()));
    }
    for organization in &subject.organizations {
        params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
    }
    params.distinguished_name.push(DnType::CommonName, subject.common_name.as_str());
    for san in sans {
        params.subject_alt_names.push(match san {
            San::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
            San::Ip(ip) => SanType::IpAddress(*ip),
        });
    }
    Ok(params)
}

fn limit_to(params: &mut CertificateParams, usage: Usage) {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match usage {
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    };
}

fn date(time: Time) -> Result<OffsetDateTime, PkiError> {
    OffsetDateTime::from_unix_timestamp(time.as_ms().div_euclid(1000))
        .map_err(|err| PkiError::Malformed(format!("the time {time} does not fit a certificate: {err}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_secs(1_780_000_000);

    #[test]
    fn a_loaded_ca_issues_what_the_created_one_would() {
        let created = Ca::create("dhow", NOW).unwrap();
        let ca = Ca::load(created.cert_pem(), created.key_pem().unwrap()).unwrap();
        assert_eq!(ca.cert_der_sha256_hex(), created.cert_der_sha256_hex());
        let known = Ca::without_key(created.cert_pem()).unwrap();
        assert_eq!((known.cert_pem(), known.key_pem()), (created.cert_pem(), None));
        let refused =
            known.issue(&super::Subject { common_name: "x".into(), organizations: vec![] }, &[], Usage::Client, NOW, 1);
        assert!(matches!(refused, Err(PkiError::NoKey)));
        let subject = Subject { common_name: "system:node:n1".into(), organizations: vec!["system:nodes".into()] };
        let identity = ca.issue(&subject, &[San::Dns("n1".into())], Usage::Both, NOW, 1000).unwrap();
        let der = first_certificate(&identity.cert_pem).unwrap();
        assert_eq!(subject_of(&der).unwrap(), subject);
        let two = Subject { organizations: vec!["a".into(), "b".into()], ..subject };
        assert!(matches!(ca.issue(&two, &[], Usage::Both, NOW, 1000), Err(PkiError::Malformed(_))));
    }

    #[test]
    fn a_certificate_says_what_it_is_and_when_to_renew_it() {
        let ca = Ca::create("dhow", NOW).unwrap();
        let subject = Subject { common_name: "system:node:n1".into(), organizations: vec!["system:nodes".into()] };
        let valid_ms = 299 * 3600 * 1000;
        let identity = ca.issue(&subject, &[], Usage::Both, NOW, valid_ms).unwrap();
        let facts = facts_of_pem(&identity.cert_pem).unwrap();
        assert_eq!((&facts.subject, facts.usage), (&subject, Some(Usage::Both)));
        assert_eq!((facts.not_before, facts.not_after), (NOW - CLOCK_SKEW_MS, NOW + valid_ms));
        assert_eq!(facts.renew_after(), NOW + 199 * 3600 * 1000);
        assert_eq!(facts.life_ms(), valid_ms);
        assert!(!facts.is_expired(NOW + valid_ms) && facts.is_expired(NOW + valid_ms + 1));
        let renewed = ca.issue_for(&identity.key_pem, &subject, &[], Usage::Server, NOW + valid_ms, valid_ms).unwrap();
        assert_eq!(renewed.key_pem, identity.key_pem);
        assert_eq!(facts_of_pem(&renewed.cert_pem).unwrap().usage, Some(Usage::Server));
        assert_eq!(facts_of_pem(ca.cert_pem()).unwrap().usage, None);
        let signed = ca.sign_csr(&csr_for(&identity.key_pem, "x").unwrap(), &subject, &[], Usage::Both, NOW, valid_ms);
        assert!(crate::server_config(&Identity { cert_pem: signed.unwrap(), ..identity }, None, &[]).is_ok());
    }

    #[test]
    fn a_request_cannot_choose_its_subject() {
        let ca = Ca::create("dhow", NOW).unwrap();
        let (csr, _key) = new_csr("system:admin").unwrap();
        let subject = Subject { common_name: "system:node:n2".into(), organizations: vec![] };
        let cert = ca.sign_csr(&csr, &subject, &[], Usage::Client, NOW, 1000).unwrap();
        assert_eq!(subject_of(&first_certificate(&cert).unwrap()).unwrap(), subject);
        assert!(ca.sign_csr("no request", &subject, &[], Usage::Client, NOW, 1000).is_err());
    }
}
