//! The cluster's keys: its certificate authority, the certificates that it issues, TLS settings made of them, join
//! tokens, the key that signs the tokens of service accounts, and signatures under compiled code.
//!
//! One CA signs control nodes, agents and administrators. Who somebody is stands in the certificate's subject, as in
//! Kubernetes: the common name is the user, the organizations are the groups.
//!
//! Invariants: private keys leave this crate only as PEM text that the caller asked for. Times come from the caller;
//! randomness comes from the operating system. Nothing here touches a disk or a socket.

mod ca;
mod code;
mod jwt;
mod seal;
mod tls;
pub mod token;

pub use ca::{
    Ca, Facts, Identity, San, Subject, Usage, certificate_sha256_hex, csr_for, facts_of, facts_of_pem, new_csr,
    new_key, subject_of,
};
pub use code::{CodeStatement, verify_code};
pub use jwt::{PublicKey, TokenKey};
pub use tls::{ServerCert, api_server_config, client_config, pinned_client_config, server_config};

/// Why a certificate, a key, or TLS settings could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A PEM text holds no such thing, or not exactly one.
    #[error("the PEM text holds no {what}")]
    Pem {
        /// `certificate`, `private key`, …
        what: &'static str,
    },
    /// The authority's key is not here.
    #[error("the key of the cluster's CA is not here")]
    NoKey,
    /// A certificate, a request, or a key could not be made or understood.
    #[error("making a certificate")]
    Certificate(#[from] rcgen::Error),
    /// A DER certificate could not be read.
    #[error("a certificate is malformed: {0}")]
    Malformed(String),
    /// A signature is not the cluster's, or is under something else.
    #[error("the signature is not one of the cluster's CA, or is under something else")]
    Signature,
    /// TLS settings were refused.
    #[error("making TLS settings")]
    Tls(#[from] rustls::Error),
    /// What was sealed with another key, for another purpose, or is damaged.
    #[error("what was sealed cannot be opened with this key")]
    Sealed,
    /// A token could not be signed.
    #[error("signing a token")]
    Token(#[from] jsonwebtoken::errors::Error),
    /// The operating system gave no randomness.
    #[error("the operating system gave no random bytes: {0}")]
    Random(getrandom::Error),
}
