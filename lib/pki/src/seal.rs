//! Secrets that only those can read who hold the authority's key: they may lie in places where others look, as in a log
//! of which a witness holds the end.
//!
//! The key is HKDF-SHA256 of the authority's private key and of the purpose; the cipher is AES-256-GCM with a random nonce,
//! which stands in front. A seal is made a few times in the life of a cluster, so that nonces never meet.

use crate::{Ca, PkiError};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

/// Tells these keys from whatever else may be made of the authority's one day.
const SALT: &[u8] = b"dhow sealed by the CA, 1";

impl Ca {
    /// Makes a secret unreadable for all who do not hold this authority's key. It can be opened for the same purpose only.
    pub fn seal(&self, purpose: &str, secret: &[u8]) -> Result<Vec<u8>, PkiError> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(PkiError::Random)?;
        let mut sealed = secret.to_vec();
        self.sealing_key(purpose)?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed)
            .map_err(|_| PkiError::Sealed)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Reads what [`Ca::seal`] made for this purpose.
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Vec<u8>, PkiError> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(PkiError::Sealed)?;
        let mut secret = sealed.to_vec();
        let opened =
            self.sealing_key(purpose)?.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::empty(), &mut secret);
        opened.map(|secret| secret.to_vec()).map_err(|_| PkiError::Sealed)
    }

    fn sealing_key(&self, purpose: &str) -> Result<LessSafeKey, PkiError> {
        let pem = self.key_pem().ok_or(PkiError::NoKey)?;
        let private =
            PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| PkiError::Pem { what: "private key" })?;
        let made = Salt::new(HKDF_SHA256, SALT).extract(private.secret_der());
        let made = made.expand(&[purpose.as_bytes()], &AES_256_GCM).map(UnboundKey::from);
        made.map(LessSafeKey::new).map_err(|_| PkiError::Sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_types::Time;

    #[test]
    fn only_the_same_authority_opens_a_seal_and_only_for_its_purpose() {
        let now = Time::from_secs(1_780_000_000);
        let (ca, other) = (Ca::create("dhow", now).unwrap(), Ca::create("dhow", now).unwrap());
        let sealed = ca.seal("a", b"secret").unwrap();
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_ne!(sealed, ca.seal("a", b"secret").unwrap());
        let again = Ca::load(ca.cert_pem(), ca.key_pem().unwrap()).unwrap();
        assert_eq!(again.open("a", &sealed).unwrap(), b"secret");
        assert!(matches!(ca.open("b", &sealed), Err(PkiError::Sealed)));
        assert!(matches!(other.open("a", &sealed), Err(PkiError::Sealed)));
        assert!(matches!(ca.open("a", &sealed[..20]), Err(PkiError::Sealed)));
        assert!(matches!(ca.open("a", b""), Err(PkiError::Sealed)));
        let witness = Ca::without_key(ca.cert_pem()).unwrap();
        assert!(matches!(witness.open("a", &sealed), Err(PkiError::NoKey)));
    }
}
