//! The key that signs the tokens of service accounts: JSON Web Tokens with ECDSA P-256 (`ES256`), which every verifier
//! knows. What the tokens say, and whether it is still so, is decided elsewhere (`dhow_gate::token`).
//!
//! The crate `jsonwebtoken` reads and writes the form; it takes its cryptography from whoever uses it, and gets ring's.

use crate::PkiError;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{self, Signer, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PublicKeyData as _};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// The longest token that is looked at; ours have some 1,200 bytes.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// The bytes before the two coordinates of a point that is not compressed.
const POINT_PREFIX: u8 = 4;

/// A coordinate of P-256.
const COORDINATE_BYTES: usize = 32;

/// A key pair that signs tokens.
pub struct TokenKey {
    signs: EncodingKey,
    verifies: DecodingKey,
    public: PublicKey,
}

/// What verifiers must know of a key, as a JSON Web Key names it (RFC 7517): a point on P-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// `kid`: by which a token says who signed it.
    pub id: String,
    /// `x`, in URL-safe base64.
    pub x: String,
    /// `y`, in URL-safe base64.
    pub y: String,
}

impl TokenKey {
    /// Takes a private key of P-256, as [`crate::new_key`] makes it.
    pub fn from_pem(key_pem: &str) -> Result<TokenKey, PkiError> {
        CRYPTO.install_default().ok();
        let key = KeyPair::from_pem(key_pem)?;
        let point = key.public_key_raw();
        let coordinates = match point.split_first() {
            Some((&POINT_PREFIX, rest)) if rest.len() == 2 * COORDINATE_BYTES => rest,
            _ => return Err(PkiError::Malformed("the key of tokens is not one of P-256".to_owned())),
        };
        let (x, y) = coordinates.split_at(COORDINATE_BYTES);
        let public = PublicKey {
            // As upstream names its keys.
            id: URL_SAFE_NO_PAD.encode(Sha256::digest(key.subject_public_key_info())),
            x: URL_SAFE_NO_PAD.encode(x),
            y: URL_SAFE_NO_PAD.encode(y),
        };
        let (signs, verifies) = (EncodingKey::from_ec_der(key.serialized_der()), DecodingKey::from_ec_der(point));
        Ok(TokenKey { signs, verifies, public })
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Makes a token that says this.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, PkiError> {
        let header = Header { typ: None, kid: Some(self.public.id.clone()), ..Header::new(Algorithm::ES256) };
        Ok(jsonwebtoken::encode(&header, claims, &self.signs)?)
    }

    /// What a token says that this key has signed; `None` for every other text. Whether it is over is for the caller to
    /// see, who knows the time.
    pub fn verify<T: DeserializeOwned>(&self, token: &str) -> Option<T> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.required_spec_claims.clear();
        (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
        jsonwebtoken::decode(token, &self.verifies, &validation).ok().map(|data| data.claims)
    }
}

static CRYPTO: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| match algorithm {
        Algorithm::ES256 => Ok(Box::new(RingSigner::new(key)?)),
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    },
    verifier_factory: |algorithm, key| match algorithm {
        Algorithm::ES256 => Ok(Box::new(RingVerifier(key.try_get_as_bytes()?.to_vec()))),
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    },
    key_utils: KeyUtils::new_unimplemented(),
};

struct RingSigner(EcdsaKeyPair, SystemRandom);

impl RingSigner {
    fn new(key: &EncodingKey) -> Result<Self, Error> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.as_bytes(), &random);
        Ok(Self(pair.map_err(|_| ErrorKind::InvalidEcdsaKey)?, random))
    }
}

impl Signer<Vec<u8>> for RingSigner {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        let signed = self.0.sign(&self.1, message).map_err(|_| signature::Error::new())?;
        Ok(signed.as_ref().to_vec())
    }
}

impl JwtSigner for RingSigner {
    fn algorithm(&self) -> Algorithm {
        Algorithm::ES256
    }
}

struct RingVerifier(Vec<u8>);

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signed: &Vec<u8>) -> Result<(), signature::Error> {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.0);
        key.verify(message, signed).map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        Algorithm::ES256
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn part(token: &str, at: usize) -> Value {
        let text = token.split('.').nth(at).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap()
    }

    #[test]
    fn a_token_is_believed_by_its_key_alone() {
        let pem = crate::new_key().unwrap();
        let (key, other) = (TokenKey::from_pem(&pem).unwrap(), TokenKey::from_pem(&crate::new_key().unwrap()).unwrap());
        let claims = json!({"sub": "system:serviceaccount:a:b", "exp": 1, "aud": ["x"]});
        let token = key.sign(&claims).unwrap();
        assert_eq!(part(&token, 0), json!({"alg": "ES256", "kid": key.public().id}));
        assert_eq!(part(&token, 1), claims);
        assert_eq!(key.verify::<Value>(&token), Some(claims.clone()), "its time is not looked at here");
        assert_eq!(TokenKey::from_pem(&pem).unwrap().verify::<Value>(&token), Some(claims.clone()));
        assert_eq!(other.verify::<Value>(&token), None);

        let [head, body, signature]: [&str; 3] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let more = encode(json!({"sub": "system:serviceaccount:kube-system:b"}));
        let none = encode(json!({"alg": "none"}));
        let hmac = encode(json!({"alg": "HS256"}));
        for forged in [
            format!("{head}.{more}.{signature}"),
            format!("{none}.{body}."),
            format!("{none}.{body}.{signature}"),
            format!("{hmac}.{body}.{signature}"),
            format!("{head}.{body}.{}", &signature[1..]),
            format!("{head}.{body}"),
            format!("{token}.{signature}"),
            "..".to_owned(),
            String::new(),
        ] {
            assert_eq!(key.verify::<Value>(&forged), None, "{forged}");
        }
    }

    #[test]
    fn the_public_half_is_a_point() {
        let key = TokenKey::from_pem(&crate::new_key().unwrap()).unwrap();
        let PublicKey { id, x, y } = key.public();
        assert_eq!([id, x, y].map(|text| URL_SAFE_NO_PAD.decode(text).unwrap().len()), [32; 3]);
        assert!(TokenKey::from_pem("no key").is_err());
    }
}
