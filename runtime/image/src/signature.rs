//! Signatures of images, as `cosign sign --key` makes them.
//!
//! Beside an image with the digest `sha256:<hex>` lies an artifact with the tag `sha256-<hex>.sig`. Each of its layers is
//! a small document that names the image's digest, and an annotation of the layer is a signature of exactly those bytes.
//! Keys are ECDSA P-256 or Ed25519.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::manifest::{Manifest, digest_of};

/// The media type of the signed documents.
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation that holds the signature.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// Signatures of one image that are looked at: one a signer and release, so a handful; many would only cost time.
pub(crate) const SIGNATURES_MAX: usize = 32;
/// A signed document has some 300 bytes.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 << 10;

const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const ED25519_KEY: &str = "1.3.101.112";
/// An uncompressed point of P-256: the only curve whose points are so long.
const P256_POINT_BYTES: usize = 65;

/// A key that signatures are checked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublicKey {
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    P256,
    Ed25519,
}

/// One layer of a signature's artifact.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The digest of the signed document.
    pub(crate) digest: String,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: SignedImage,
}

#[derive(Deserialize)]
struct SignedImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

impl PublicKey {
    /// Reads a key in PEM.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, &'static str> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| "the file holds no public key in PEM")?;
        let (_, info) = SubjectPublicKeyInfo::from_der(&der).map_err(|_| "the public key is malformed")?;
        let bytes = info.subject_public_key.data.to_vec();
        let algorithm = match info.algorithm.algorithm.to_id_string().as_str() {
            EC_PUBLIC_KEY if bytes.len() == P256_POINT_BYTES => Algorithm::P256,
            ED25519_KEY => Algorithm::Ed25519,
            _ => return Err("the public key is neither ECDSA P-256 nor Ed25519"),
        };
        Ok(Self { algorithm, bytes })
    }

    /// A text that tells it from other keys.
    pub(crate) fn fingerprint(&self) -> String {
        digest_of(&self.bytes)
    }

    fn accepts(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn VerificationAlgorithm = match self.algorithm {
            Algorithm::P256 => &ECDSA_P256_SHA256_ASN1,
            Algorithm::Ed25519 => &ED25519,
        };
        UnparsedPublicKey::new(algorithm, &self.bytes).verify(message, signature).is_ok()
    }
}

/// The tag under which the signatures of an image lie.
pub(crate) fn tag(digest: &str) -> String {
    format!("{}.sig", digest.replacen(':', "-", 1))
}

/// The claims of a signature's artifact.
pub(crate) fn claims(manifest: &Manifest) -> Vec<Claim> {
    let signed = manifest.layers.iter().filter(|layer| layer.media_type == PAYLOAD);
    let claim = signed.filter_map(|layer| {
        let signature = STANDARD.decode(layer.annotations.get(SIGNATURE)?.trim()).ok()?;
        Some(Claim { digest: layer.digest.clone(), signature })
    });
    claim.take(SIGNATURES_MAX).collect()
}

/// The fingerprint of the key that signed the document, if one of these did and it speaks of the image `digest`.
pub(crate) fn check(claim: &Claim, payload: &[u8], digest: &str, keys: &[PublicKey]) -> Option<String> {
    let key = keys.iter().find(|key| key.accepts(payload, &claim.signature))?;
    let signed: Payload = serde_json::from_slice(payload).ok()?;
    (signed.critical.image.digest == digest).then(|| key.fingerprint())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};

    const IMAGE: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// A key of each kind in PEM, and what signs with it.
    type Signer = Box<dyn Fn(&[u8]) -> Vec<u8>>;

    fn pem(header: &[u8], key: &[u8]) -> Vec<u8> {
        let body = STANDARD.encode([header, key].concat());
        format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n").into_bytes()
    }

    fn p256() -> (Vec<u8>, Signer) {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let header =
            b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
        let pem = pem(header, pair.public_key().as_ref());
        (pem, Box::new(move |message| pair.sign(&random, message).unwrap().as_ref().to_vec()))
    }

    fn ed25519() -> (Vec<u8>, Signer) {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let header = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
        let pem = pem(header, pair.public_key().as_ref());
        (pem, Box::new(move |message| pair.sign(message).as_ref().to_vec()))
    }

    fn payload(digest: &str) -> Vec<u8> {
        format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"r/x"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
        )
        .into_bytes()
    }

    #[test]
    fn only_the_right_key_over_the_right_digest_is_believed() {
        for (pem, sign) in [p256(), ed25519()] {
            let key = PublicKey::from_pem(&pem).unwrap();
            let stranger = PublicKey::from_pem(&p256().0).unwrap();
            let (good, other) = (payload(IMAGE), payload("sha256:other"));
            let claim = |message: &[u8]| Claim { digest: String::new(), signature: sign(message) };
            let keys = [stranger.clone(), key.clone()];
            assert_eq!(check(&claim(&good), &good, IMAGE, &keys), Some(key.fingerprint()));
            assert_eq!(check(&claim(&good), &good, IMAGE, &[stranger]), None);
            assert_eq!(check(&claim(&other), &other, IMAGE, &keys), None, "signed, but not this image");
            assert_eq!(check(&claim(&other), &good, IMAGE, &keys), None, "another document");
            assert_eq!(check(&claim(b"no json"), b"no json", IMAGE, &keys), None);
            let none = Claim { digest: String::new(), signature: Vec::new() };
            assert_eq!(check(&none, &good, IMAGE, &keys), None);
        }
    }

    #[test]
    fn other_files_are_no_keys() {
        for (text, part) in [
            (&b"text"[..], "no public key"),
            (&pem(b"\x30\x03\x01\x01\xff", b""), "malformed"),
            (&pem(b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x6e\x03\x21\x00", &[7; 32]), "neither"),
        ] {
            let why = PublicKey::from_pem(text).unwrap_err();
            assert!(why.contains(part), "{why}");
        }
    }

    #[test]
    fn claims_are_the_signed_layers() {
        assert_eq!(tag("sha256:ab"), "sha256-ab.sig");
        let manifest = serde_json::json!({"schemaVersion": 2, "config": {"mediaType": "c", "digest": "d", "size": 1}, "layers": [
            {"mediaType": PAYLOAD, "digest": "a", "size": 1, "annotations": {SIGNATURE: "AAE="}},
            {"mediaType": PAYLOAD, "digest": "b", "size": 1, "annotations": {SIGNATURE: "?"}},
            {"mediaType": PAYLOAD, "digest": "c", "size": 1},
            {"mediaType": "other", "digest": "d", "size": 1, "annotations": {SIGNATURE: "AAE="}}]});
        let manifest: Manifest = serde_json::from_value(manifest).unwrap();
        assert_eq!(claims(&manifest), [Claim { digest: "a".to_owned(), signature: vec![0, 1] }]);
    }
}
