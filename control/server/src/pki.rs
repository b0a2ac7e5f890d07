//! The cluster's certificates on disk: made at first start, private keys readable by their owner alone.

use crate::ServerError;
use dhow_gate::user::{MASTERS, NODE_USER_PREFIX, NODES};
use dhow_gate::write::ServiceRanges;
use dhow_pki::{Ca, Identity, San, Subject, Usage};
use dhow_types::Time;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A server's own certificate: renewed at every start.
const SERVER_VALID_MS: u64 = 365 * DAY_MS;
/// The administrator's.
const ADMIN_VALID_MS: u64 = 365 * DAY_MS;
/// A node's; a node that is set up again gets a new one.
const NODE_VALID_MS: u64 = 365 * DAY_MS;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// The server name that agents dial over QUIC.
pub(crate) const QUIC_SERVER_NAME: &str = "dhow-control";

/// The CA of the cluster, from `dir`, or a new one.
pub(crate) fn load_or_create(dir: &Path, now: Time) -> Result<Ca, ServerError> {
    let (cert, key) = (dir.join("ca.crt"), dir.join("ca.key"));
    std::fs::create_dir_all(dir).map_err(|source| ServerError::Io { path: dir.to_owned(), source })?;
    if cert.exists() && key.exists() {
        return Ok(Ca::load(&read(&cert)?, &read(&key)?)?);
    }
    let ca = Ca::create("dhow-ca", now)?;
    // The certificate comes last: with it, the pair is complete.
    write(&key, ca.key_pem(), 0o600)?;
    write(&cert, ca.cert_pem(), 0o644)?;
    Ok(ca)
}

fn read(path: &PathBuf) -> Result<String, ServerError> {
    std::fs::read_to_string(path).map_err(|source| ServerError::Io { path: path.clone(), source })
}

/// Writes all or nothing, and lastingly: the CA cannot be had again.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), ServerError> {
    let fresh = path.with_extension("new");
    let result = (|| {
        let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        if let Some(dir) = path.parent() {
            std::fs::File::open(dir)?.sync_all()?;
        }
        Ok(())
    })();
    result.map_err(|source| ServerError::Io { path: path.to_owned(), source })
}

/// The certificate that the API is served with.
pub(crate) fn server_identity(
    ca: &Ca,
    bind: SocketAddr,
    services: &ServiceRanges,
    now: Time,
) -> Result<Identity, ServerError> {
    let mut names: Vec<String> = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        QUIC_SERVER_NAME,
    ]
    .map(str::to_owned)
    .to_vec();
    names.extend(host_name().filter(|name| name != "localhost"));
    let mut ips: Vec<IpAddr> =
        vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), services.api_address().into()];
    let own = if bind.ip().is_unspecified() { host_ip() } else { Some(bind.ip()) };
    ips.extend(own.filter(|ip| !ips.contains(ip)));
    let sans: Vec<San> = names.into_iter().map(San::Dns).chain(ips.into_iter().map(San::Ip)).collect();
    let subject = Subject { common_name: "dhow-server".to_owned(), organizations: Vec::new() };
    Ok(ca.issue(&subject, &sans, Usage::Server, now, SERVER_VALID_MS)?)
}

/// The administrator's certificate.
pub(crate) fn admin_identity(ca: &Ca, now: Time) -> Result<Identity, ServerError> {
    let subject = Subject { common_name: "kubernetes-admin".to_owned(), organizations: vec![MASTERS.to_owned()] };
    Ok(ca.issue(&subject, &[], Usage::Client, now, ADMIN_VALID_MS)?)
}

fn node_subject(name: &str) -> Subject {
    Subject { common_name: format!("{NODE_USER_PREFIX}{name}"), organizations: vec![NODES.to_owned()] }
}

/// A node's certificate and key.
pub(crate) fn node_identity(ca: &Ca, name: &str, now: Time) -> Result<Identity, ServerError> {
    Ok(ca.issue(&node_subject(name), &[San::Dns(name.to_owned())], Usage::Both, now, NODE_VALID_MS)?)
}

/// A node's certificate for a key that only the node knows.
pub(crate) fn sign_node(ca: &Ca, name: &str, csr_pem: &str, now: Time) -> Result<String, dhow_pki::PkiError> {
    ca.sign_csr(csr_pem, &node_subject(name), &[San::Dns(name.to_owned())], Usage::Both, now, NODE_VALID_MS)
}

fn host_name() -> Option<String> {
    let name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::fs::read_to_string("/etc/hostname"));
    let name = name.ok()?.trim().to_ascii_lowercase();
    dhow_api::validate::dns1123_subdomain(&name).is_empty().then_some(name)
}

/// The address that this host has towards the world: what the kernel would send from. Nothing is sent.
pub(crate) fn host_ip() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    socket.local_addr().ok().map(|addr| addr.ip()).filter(|ip| !ip.is_unspecified())
}
