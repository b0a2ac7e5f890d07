//! The cluster's CA and this member's key on disk, readable by their owner alone, and who is called what in
//! certificates.

use crate::ServerError;
use dhow_files::Access;
use dhow_gate::user::{CONTROL_NODES, CONTROL_USER_PREFIX, MASTERS, NODE_USER_PREFIX, NODES};
use dhow_gate::write::ServiceRanges;
use dhow_pki::{Ca, Identity, San, Subject};
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
const SERVER_CERT: &str = "server.crt";
const ADMIN_KEY: &str = "admin.key";
const ADMIN_CERT: &str = "admin.crt";

/// What a data directory has of the cluster's keys.
pub(crate) struct Kept {
    pub(crate) ca: Ca,
    /// What a witness was given, which holds no key to make it with.
    pub(crate) given: Option<Given>,
}

/// Certificates that were made elsewhere.
#[derive(Clone)]
pub(crate) struct Given {
    /// The member's own.
    pub(crate) identity: Identity,
    /// The administrator's, for the kubeconfig; `None` if somebody has taken it away.
    pub(crate) admin: Option<Identity>,
}

/// The CA of the cluster, if the data directory has it.
pub(crate) fn load_ca(data_dir: &Path) -> Result<Option<Ca>, ServerError> {
    let dir = data_dir.join(DIR);
    let (cert, key) = (dir.join(CA_CERT), dir.join(CA_KEY));
    if !(cert.exists() && key.exists()) {
        return Ok(None);
    }
    Ok(Some(Ca::load(&read(&cert)?, &read(&key)?)?))
}

/// What a member has, if it has all of it.
pub(crate) fn load(data_dir: &Path, witness: bool) -> Result<Option<Kept>, ServerError> {
    let dir = data_dir.join(DIR);
    let key = dir.join(SERVER_KEY);
    if key.exists() {
        dhow_pki::csr_for(&read(&key)?, "")?;
    }
    if !witness {
        return Ok(load_ca(data_dir)?.map(|ca| Kept { ca, given: None }));
    }
    let [ca, cert, admin_cert, admin_key] = [CA_CERT, SERVER_CERT, ADMIN_CERT, ADMIN_KEY].map(|name| dir.join(name));
    if ![&ca, &cert, &key].iter().all(|path| path.exists()) {
        return Ok(None);
    }
    let read_pair = |cert: &PathBuf, key: &PathBuf| -> Result<Identity, ServerError> {
        let identity = Identity { cert_pem: read(cert)?, key_pem: read(key)? };
        dhow_pki::facts_of_pem(&identity.cert_pem)?;
        Ok(identity)
    };
    let identity = read_pair(&cert, &key)?;
    let has_admin = admin_cert.exists() && admin_key.exists();
    let admin = has_admin.then(|| read_pair(&admin_cert, &admin_key)).transpose()?;
    Ok(Some(Kept { ca: Ca::without_key(&read(&ca)?)?, given: Some(Given { identity, admin }) }))
}

/// Keeps what a newcomer was given.
pub(crate) fn keep(data_dir: &Path, key_pem: &str, kept: &Kept) -> Result<(), ServerError> {
    let dir = data_dir.join(DIR);
    create_dir(&dir)?;
    write(&dir.join(SERVER_KEY), key_pem, Access::Private)?;
    if let Some(given) = &kept.given {
        keep_given(data_dir, given)?;
    }
    keep_ca(data_dir, &kept.ca)
}

/// Keeps the CA.
pub(crate) fn keep_ca(data_dir: &Path, ca: &Ca) -> Result<(), ServerError> {
    let dir = data_dir.join(DIR);
    create_dir(&dir)?;
    // The certificate comes last: with it, the pair is complete.
    if let Some(key_pem) = ca.key_pem() {
        write(&dir.join(CA_KEY), key_pem, Access::Private)?;
    }
    write(&dir.join(CA_CERT), ca.cert_pem(), Access::Public)
}

/// Keeps what a witness was given, now or instead of an older one. The keys stay, so whatever is interrupted fits.
pub(crate) fn keep_given(data_dir: &Path, given: &Given) -> Result<(), ServerError> {
    let dir = data_dir.join(DIR);
    if let Some(admin) = &given.admin {
        write(&dir.join(ADMIN_KEY), &admin.key_pem, Access::Private)?;
        write(&dir.join(ADMIN_CERT), &admin.cert_pem, Access::Public)?;
    }
    write(&dir.join(SERVER_CERT), &given.identity.cert_pem, Access::Public)
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
