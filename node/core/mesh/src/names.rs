//! What a name means to a pod: services, headless endpoints, pods by their address.
//!
//! The search follows a pod's `resolv.conf` in Kubernetes: `<ns>.svc.<domain>`, `svc.<domain>`, `<domain>`, then the
//! name as it stands.

use crate::tables::Tables;
use crate::update::ServiceId;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The answer to a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These addresses. Empty: the name is known, but nobody stands behind it at the moment.
    Addresses(Vec<IpAddr>),
    /// Ask for this name instead (`ExternalName`).
    Alias(String),
    /// A name of the cluster that does not exist.
    NotFound,
    /// Not a name of the cluster: the host's resolver may know it.
    NotOurs,
}

/// A longer text is no name (RFC 1035).
const NAME_LEN_MAX: usize = 253;

impl Tables {
    /// What `name` means to a pod in `namespace`.
    pub fn resolve(&self, name: &str, namespace: &str) -> Answer {
        if let Ok(ip) = name.parse() {
            return Answer::Addresses(vec![ip]);
        }
        let name = name.to_ascii_lowercase();
        let (name, absolute) = match name.strip_suffix('.') {
            Some(name) => (name, true),
            None => (name.as_str(), false),
        };
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            return Answer::NotFound;
        }
        if name == "localhost" || name.ends_with(".localhost") {
            return Answer::Addresses(vec![Ipv4Addr::LOCALHOST.into()]);
        }
        let inside = name.strip_suffix(&self.config.domain).map(|rest| rest.strip_suffix('.').unwrap_or(rest));
        let found = if absolute {
            inside.and_then(|rest| self.lookup(rest))
        } else {
            self.lookup(&format!("{name}.{namespace}.svc"))
                .or_else(|| self.lookup(&format!("{name}.svc")))
                .or_else(|| self.lookup(name))
                .or_else(|| inside.and_then(|rest| self.lookup(rest)))
        };
        match found {
            Some(answer) => answer,
            // A bare word belongs to no zone but ours: the host's resolver must not learn of it.
            None if inside.is_some() || !name.contains('.') => Answer::NotFound,
            None => Answer::NotOurs,
        }
    }

    /// Looks a name without the cluster's domain up: `<svc>.<ns>.svc`, `<host>.<svc>.<ns>.svc`, `<1-2-3-4>.<ns>.pod`.
    fn lookup(&self, name: &str) -> Option<Answer> {
        let labels: Vec<&str> = name.split('.').collect();
        match labels[..] {
            [service, namespace, "svc"] => {
                let entry = self.service(&ServiceId::new(namespace, service))?;
                if let Some(alias) = &entry.spec.external_name {
                    return Some(Answer::Alias(alias.clone()));
                }
                if !entry.spec.addresses.is_empty() {
                    return Some(Answer::Addresses(entry.spec.addresses.clone()));
                }
                Some(Answer::Addresses(self.endpoint_ips(&entry.spec.id, None)))
            }
            [host, service, namespace, "svc"] => {
                let ips = self.endpoint_ips(&ServiceId::new(namespace, service), Some(host));
                (!ips.is_empty()).then_some(Answer::Addresses(ips))
            }
            [dashed, _, "pod"] => {
                let ip = dashed_ip(dashed)?;
                self.in_pod_range(ip).then(|| Answer::Addresses(vec![ip]))
            }
            _ => None,
        }
    }
}

fn dashed_ip(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}
