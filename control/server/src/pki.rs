//! The cluster's CA and this member's key on disk, readable by their owner alone, and who is called what in
//! certificates.

use crate::ServerError;
use dhow_files::Access;
use dhow_gate::user::{CONTROL_NODES, CONTROL_USER_PREFIX, MASTERS, NODE_USER_PREFIX, NODES};
use dhow_gate::write::ServiceRanges;
use dhow_pki::{Ca, San, Subject};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// How long certificates are valid: a year, as everywhere. They are renewed after two thirds of it.
pub(crate) const VALID_MS: u64 = 365 * DAY_MS;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// The server name that agents and control nodes dial over QUIC.
pub(crate) const QUIC_SERVER_NAME: &str = "dhow-control";

/// Where a data directory keeps the CA and this member's key.
const DIR: &str = "pki";
const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const SERVER_KEY: &str = "server.key";

/// The CA of the cluster, if the data directory has it.
pub(crate) fn load_ca(data_dir: &Path) -> Result<Option<Ca>, ServerError> {
    let dir = data_dir.join(DIR);
    let (cert, key) = (dir.join(CA_CERT), dir.join(CA_KEY));
    if !(cert.exists() && key.exists()) {
        return Ok(None);
    }
    Ok(Some(Ca::load(&read(&cert)?, &read(&key)?)?))
}

/// Keeps the CA.
pub(crate) fn keep_ca(data_dir: &Path, ca: &Ca) -> Result<(), ServerError> {
    let dir = data_dir.join(DIR);
    create_dir(&dir)?;
    // The certificate comes last: with it, the pair is complete.
    write(&dir.join(CA_KEY), ca.key_pem(), Access::Private)?;
    write(&dir.join(CA_CERT), ca.cert_pem(), Access::Public)
}

/// This member's private key, made at first. It outlives its certificates: what a peer of QUIC recognises a node by that
/// has come back follows from it.
pub(crate) fn server_key(data_dir: &Path) -> Result<String, ServerError> {
    let dir = data_dir.join(DIR);
    create_dir(&dir)?;
    let path = dir.join(SERVER_KEY);
    if path.exists() {
        return read(&path);
    }
    let key = dhow_pki::new_key()?;
    write(&path, &key, Access::Private)?;
    Ok(key)
}

pub(crate) fn create_dir(dir: &Path) -> Result<(), ServerError> {
    std::fs::create_dir_all(dir).map_err(|source| ServerError::Io { path: dir.to_owned(), source })
}

fn read(path: &PathBuf) -> Result<String, ServerError> {
    std::fs::read_to_string(path).map_err(|source| ServerError::Io { path: path.clone(), source })
}

/// Writes all or nothing, and lastingly: the CA cannot be had again.
pub(crate) fn write(path: &Path, text: &str, access: Access) -> Result<(), ServerError> {
    dhow_files::write(path, text.as_bytes(), access).map_err(|source| ServerError::Io { path: path.to_owned(), source })
}

/// Who a control node is, to clients, agents and the other control nodes.
pub(crate) fn member_subject(id: u64) -> Subject {
    Subject { common_name: format!("{CONTROL_USER_PREFIX}{id}"), organizations: vec![CONTROL_NODES.to_owned()] }
}

/// What a control node is called by those who dial it.
pub(crate) fn member_names(address: SocketAddr, services: &ServiceRanges) -> Vec<San> {
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
    let own = if address.ip().is_unspecified() { host_ip() } else { Some(address.ip()) };
    ips.extend(own.filter(|ip| !ips.contains(ip)));
    names.into_iter().map(San::Dns).chain(ips.into_iter().map(San::Ip)).collect()
}

/// The administrator.
pub(crate) fn admin_subject() -> Subject {
    Subject { common_name: "kubernetes-admin".to_owned(), organizations: vec![MASTERS.to_owned()] }
}

/// An agent.
pub(crate) fn node_subject(name: &str) -> Subject {
    Subject { common_name: format!("{NODE_USER_PREFIX}{name}"), organizations: vec![NODES.to_owned()] }
}

pub(crate) fn host_name() -> Option<String> {
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
