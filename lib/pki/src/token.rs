//! Join tokens: what a new node needs to know to trust a cluster and be trusted by it once.
//!
//! A token is `dhow1.<SHA-256 of the CA>.<id>.<secret>`. The hash lets the node recognise the cluster before it
//! sends the secret; id and secret are a Kubernetes bootstrap token
//! (<https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>), kept in the cluster as a Secret.

use crate::{PkiError, certificate_sha256_hex};
use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "dhow1";
const HASH_LEN: usize = 64;
const ID_LEN: usize = 6;
const SECRET_LEN: usize = 16;

/// A token for `dhow agent --token`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the CA certificate's DER form, in hex.
    pub ca_sha256_hex: String,
    /// The public part, `[a-z0-9]{6}`.
    pub id: String,
    /// The secret part, `[a-z0-9]{16}`.
    pub secret: String,
}

/// A text that is no join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a join token: expected `dhow1.<64 hex digits>.<6 letters>.<16 letters>`, as `dhow token create` prints it"
)]
pub struct TokenError;

impl JoinToken {
    /// A new random token for the cluster whose CA has this hash.
    pub fn random(ca_sha256_hex: &str) -> Result<Self, PkiError> {
        Ok(Self {
            ca_sha256_hex: ca_sha256_hex.to_owned(),
            id: random_letters(ID_LEN)?,
            secret: random_letters(SECRET_LEN)?,
        })
    }

    /// Whether `ca_pem` is the CA that this token was made for.
    pub fn accepts(&self, ca_pem: &str) -> Result<bool, PkiError> {
        Ok(certificate_sha256_hex(ca_pem)? == self.ca_sha256_hex)
    }

    /// What the node sends as its bearer token: `<id>.<secret>`.
    pub fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}.{}", self.ca_sha256_hex, self.id, self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, secret elided)", self.id)
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [prefix, hash, id, secret] = parts[..] else { return Err(TokenError) };
        let letters = |part: &str, len: usize| {
            part.len() == len && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        let hex = hash.len() == HASH_LEN && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if prefix != PREFIX || !hex || !letters(id, ID_LEN) || !letters(secret, SECRET_LEN) {
            return Err(TokenError);
        }
        Ok(Self { ca_sha256_hex: hash.to_owned(), id: id.to_owned(), secret: secret.to_owned() })
    }
}

fn random_letters(len: usize) -> Result<String, PkiError> {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut text = String::with_capacity(len);
    while text.len() < len {
        let mut byte = [0u8; 1];
        getrandom::fill(&mut byte).map_err(PkiError::Random)?;
        // 252 is the largest multiple of 36 in a byte: taking the rest as well would favour the first letters.
        if byte[0] < 252 {
            text.push(char::from(LETTERS[usize::from(byte[0] % 36)]));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ca;
    use dhow_types::Time;

    #[test]
    fn a_token_is_read_back_and_knows_its_cluster() {
        let ca = Ca::create("dhow", Time::from_secs(1_780_000_000)).unwrap();
        let other = Ca::create("dhow", Time::from_secs(1_780_000_000)).unwrap();
        let token = JoinToken::random(&ca.cert_der_sha256_hex()).unwrap();
        assert_eq!(token.to_string().parse(), Ok(token.clone()));
        assert!(token.accepts(ca.cert_pem()).unwrap());
        assert!(!token.accepts(other.cert_pem()).unwrap());
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let hash = "0".repeat(64);
        for text in
            ["", "dhow1", &format!("dhow2.{hash}.abcdef.0123456789abcdef"), &format!("dhow1.{hash}.abcdef.short")]
        {
            assert_eq!(text.parse::<JoinToken>(), Err(TokenError));
        }
    }
}
