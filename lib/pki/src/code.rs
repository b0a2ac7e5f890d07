//! Signatures under compiled code.
//!
//! An agent that cannot compile runs machine code that a control node made. What may run there is said by the cluster's
//! CA, whoever hands the code over: so the signature is under all that the code's use depends on, not only its bytes.

use std::fmt;

use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::ca::first_certificate;
use crate::{Ca, PkiError};

/// What is said of compiled code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeStatement<'a> {
    /// The digest of the program that it was made of, `sha256:…`.
    pub program: &'a str,
    /// The engine, its settings and the target that it was made for.
    pub settings: &'a str,
    /// Which entry point it has.
    pub kind: &'a str,
    /// The digest of the code, `sha256:…`.
    pub code: &'a str,
}

impl fmt::Display for CodeStatement<'_> {
    /// The text that is signed. Its first line is that of nothing else, and no field has a line break of its own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, settings, kind, code } = self;
        f.write_str("dhow compiled code 1\n")?;
        for field in [program, settings, kind, code] {
            writeln!(f, "{}", field.escape_default())?;
        }
        Ok(())
    }
}

impl Ca {
    /// Vouches for compiled code: a signature (ECDSA P-256), in hex.
    pub fn sign_code(&self, statement: &CodeStatement<'_>) -> Result<String, PkiError> {
        let signature = self.sign(statement.to_string().as_bytes())?;
        Ok(signature.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Whether the authority with this certificate has vouched for compiled code.
pub fn verify_code(ca_pem: &str, statement: &CodeStatement<'_>, signature: &str) -> Result<(), PkiError> {
    let der = first_certificate(ca_pem)?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| PkiError::Malformed(error.to_string()))?;
    let signature = from_hex(signature).ok_or(PkiError::Signature)?;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &certificate.public_key().subject_public_key.data);
    key.verify(statement.to_string().as_bytes(), &signature).map_err(|_| PkiError::Signature)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use dhow_types::Time;

    use super::*;

    #[test]
    fn only_what_the_authority_has_vouched_for_is_believed() {
        let ca = Ca::create("one", Time::from_secs(0)).unwrap();
        let statement =
            CodeStatement { program: "sha256:a", settings: "48-1-x86_64", kind: "command", code: "sha256:b" };
        let signature = ca.sign_code(&statement).unwrap();
        let verify = |ca: &Ca, statement: CodeStatement<'_>, signature: &str| {
            verify_code(ca.cert_pem(), &statement, signature).map_err(|error| error.to_string())
        };
        assert_eq!(verify(&ca, statement, &signature), Ok(()));
        let refused = Err(PkiError::Signature.to_string());
        for other in [
            CodeStatement { program: "sha256:c", ..statement },
            CodeStatement { settings: "48-1-pulley64", ..statement },
            CodeStatement { kind: "http", ..statement },
            CodeStatement { code: "sha256:c", ..statement },
            // The same text, but other fields.
            CodeStatement { program: "sha256:a\n48-1-x86_64", settings: "command", kind: "sha256:b", code: "" },
        ] {
            assert_eq!(verify(&ca, other, &signature), refused, "{other:?}");
        }
        for broken in ["", "zz", &signature[1..], &signature[2..], "ä"] {
            assert_eq!(verify(&ca, statement, broken), refused, "{broken}");
        }
        let other = Ca::create("one", Time::from_secs(0)).unwrap();
        assert_eq!(verify(&other, statement, &signature), refused);
        let keyless = Ca::without_key(ca.cert_pem()).unwrap();
        assert!(matches!(keyless.sign_code(&statement), Err(PkiError::NoKey)));
    }
}
