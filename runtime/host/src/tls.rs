//! TLS for outgoing HTTPS: the certificate authorities that the host trusts.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Where Linux distributions keep the bundle of trusted authorities; the first that exists is read.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The configuration of every outgoing TLS connection, or why there is none. Read once a process.
pub(crate) fn client_config() -> Result<Arc<ClientConfig>, &'static str> {
    static CONFIG: LazyLock<Result<Arc<ClientConfig>, String>> = LazyLock::new(load);
    CONFIG.as_ref().map(Arc::clone).map_err(String::as_str)
}

fn load() -> Result<Arc<ClientConfig>, String> {
    let bundle = BUNDLES
        .iter()
        .find(|path| Path::new(path).exists())
        .ok_or("the node has no bundle of trusted certificate authorities (install `ca-certificates`)")?;
    let certificates = CertificateDer::pem_file_iter(bundle).map_err(|e| format!("reading `{bundle}`: {e}"))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.flatten());
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
