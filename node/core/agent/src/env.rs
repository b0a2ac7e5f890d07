//! The environment of a container: `env`, `envFrom`, service links, `$(VAR)`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use dhow_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{
    Container, EnvVarSource, PersistentVolume, PersistentVolumeClaim, Pod, ResourceFieldSelector,
};
use serde_json::Value;

use crate::volumes::TokenWish;

/// The entries of a ConfigMap or a Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// `data`, of a Secret decoded.
    pub data: BTreeMap<String, Vec<u8>>,
    /// `binaryData` of a ConfigMap, decoded: for volumes only.
    pub binary: BTreeMap<String, Vec<u8>>,
}

/// Names of ConfigMaps, Secrets and claims in the pod's namespace, and the tokens that it wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// ConfigMaps.
    pub config_maps: BTreeSet<String>,
    /// Secrets.
    pub secrets: BTreeSet<String>,
    /// PersistentVolumeClaims.
    pub claims: BTreeSet<String>,
    /// Tokens of its service account.
    pub tokens: BTreeSet<TokenWish>,
}

/// The objects that were asked for and exist.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// ConfigMaps by name.
    pub config_maps: BTreeMap<String, Arc<Entries>>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, Arc<Entries>>,
    /// PersistentVolumeClaims by name, with their volumes.
    pub claims: BTreeMap<String, Claimed>,
    /// Tokens of the pod's service account.
    pub tokens: BTreeMap<TokenWish, String>,
}

/// A claim and the volume that it names.
#[derive(Clone, Debug, Default)]
pub struct Claimed {
    /// The claim.
    pub claim: PersistentVolumeClaim,
    /// Its volume, if it has one that exists.
    pub volume: Option<PersistentVolume>,
}

/// Where a pod runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// `spec.nodeName`.
    pub node_name: String,
    /// `status.hostIP`.
    pub host_ip: IpAddr,
    /// `status.podIP`.
    pub pod_ip: IpAddr,
    /// What `limits.cpu` says where there is no limit, in thousandths.
    pub allocatable_cpu_m: i64,
    /// What `limits.memory` says where there is no limit, in bytes.
    pub allocatable_memory: i64,
}

/// What a service link needs to know of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceLink {
    namespace: String,
    name: String,
    ip: String,
    ports: Vec<LinkPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct LinkPort {
    name: String,
    protocol: String,
    port: u64,
}

/// Why the environment of a container cannot be made; in a kubelet's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigFault {
    /// No such ConfigMap.
    #[error("configmap \"{0}\" not found")]
    NoConfigMap(String),
    /// No such Secret.
    #[error("secret \"{0}\" not found")]
    NoSecret(String),
    /// The object has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The missing key.
        key: String,
    },
    /// A field path that has no value for a container.
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    /// A resource that cannot be named.
    #[error("unsupported container resource : {0}")]
    Resource(String),
    /// A source that this agent does not know.
    #[error("environment variable `{0}` has a source that this node does not support")]
    Source(String),
}

impl ServiceLink {
    /// From a Service object; `None` if it has no address to link to.
    pub fn of(service: &Value) -> Option<Self> {
        let text = |path: &str| service.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let ip = text("/spec/clusterIP");
        if ip.is_empty() || ip == "None" || text("/spec/type") == "ExternalName" {
            return None;
        }
        let ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
        let ports: Vec<_> = ports
            .filter_map(|port| {
                let text = |key: &str| port.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                let protocol = text("protocol");
                Some(LinkPort {
                    name: text("name"),
                    protocol: if protocol.is_empty() { "TCP".to_owned() } else { protocol },
                    port: port.get("port")?.as_u64()?,
                })
            })
            .collect();
        (!ports.is_empty()).then(|| Self {
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
            ip,
            ports,
        })
    }

    /// Whether every pod gets it, of whatever namespace.
    fn is_api(&self) -> bool {
        self.namespace == "default" && self.name == "kubernetes"
    }

    fn variables(&self, env: &mut BTreeMap<String, String>) {
        let word = |text: &str| text.to_ascii_uppercase().replace('-', "_");
        let service = word(&self.name);
        let Some(first) = self.ports.first() else { return };
        env.insert(format!("{service}_SERVICE_HOST"), self.ip.clone());
        env.insert(format!("{service}_SERVICE_PORT"), first.port.to_string());
        for port in self.ports.iter().filter(|p| !p.name.is_empty()) {
            env.insert(format!("{service}_SERVICE_PORT_{}", word(&port.name)), port.port.to_string());
        }
        let host = if self.ip.contains(':') { format!("[{}]", self.ip) } else { self.ip.clone() };
        let url = |p: &LinkPort| format!("{}://{host}:{}", p.protocol.to_ascii_lowercase(), p.port);
        env.insert(format!("{service}_PORT"), url(first));
        for port in &self.ports {
            let prefix = format!("{service}_PORT_{}_{}", port.port, port.protocol);
            env.insert(prefix.clone(), url(port));
            env.insert(format!("{prefix}_PROTO"), port.protocol.to_ascii_lowercase());
            env.insert(format!("{prefix}_PORT"), port.port.to_string());
            env.insert(format!("{prefix}_ADDR"), self.ip.clone());
        }
    }
}

/// The ConfigMaps and Secrets that a container's environment needs.
pub fn references(container: &Container) -> References {
    let mut refs = References::default();
    for source in container.env_from.iter().flatten() {
        refs.config_maps.extend(source.config_map_ref.as_ref().map(|r| r.name.clone()));
        refs.secrets.extend(source.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
        refs.config_maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        refs.secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    refs
}

/// The environment of a container: `HOSTNAME`, then `envFrom`, then `env` in order, then the service links that none
/// of them names.
pub fn environment(
    pod: &Pod,
    container: &Container,
    place: &Place,
    objects: &Objects,
    services: &[Arc<ServiceLink>],
) -> Result<Vec<(String, String)>, ConfigFault> {
    let mut env = Ordered::default();
    env.set("HOSTNAME".to_owned(), hostname(pod));
    from_objects(container, objects, &mut env)?;
    let links = service_links(pod, services);
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(text), _) if !text.is_empty() => {
                expand(text, |name| env.get(name).or_else(|| links.get(name).map(String::as_str)))
            }
            (_, Some(source)) => match from_source(pod, container, &variable.name, source, place, objects)? {
                Some(value) => value,
                None => continue,
            },
            _ => String::new(),
        };
        env.set(variable.name.clone(), value);
    }
    for (name, value) in links {
        if env.get(&name).is_none() {
            env.set(name, value);
        }
    }
    Ok(env.0)
}

/// The name that a pod's programs see as their host's.
pub fn hostname(pod: &Pod) -> String {
    let named = pod.spec.as_ref().and_then(|s| s.hostname_override.clone().or_else(|| s.hostname.clone()));
    let name = named.filter(|n| !n.is_empty()).or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// Puts variables into a text: `$(NAME)` becomes its value if `value` knows it and stays as it is otherwise; `$$`
/// is one `$`.
pub fn expand<'a>(text: &str, value: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
            continue;
        }
        let name = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        match name {
            Some((name, after)) => {
                match value(name) {
                    Some(value) => result.push_str(value),
                    None => result.push_str(&format!("$({name})")),
                }
                rest = after;
            }
            None => result.push('$'),
        }
    }
    result.push_str(rest);
    result
}

/// What a `fieldRef` stands for.
pub fn field(pod: &Pod, place: &Place, path: &str) -> Result<String, ConfigFault> {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let key = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']").map(str::to_owned);
    if let Some(key) = key("metadata.labels['") {
        return Ok(meta.labels.as_ref().and_then(|map| map.get(&key)).cloned().unwrap_or_default());
    }
    if let Some(key) = key("metadata.annotations['") {
        return Ok(meta.annotations.as_ref().and_then(|map| map.get(&key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => map_text(meta.labels.as_ref()),
        "metadata.annotations" => map_text(meta.annotations.as_ref()),
        "spec.nodeName" => place.node_name.clone(),
        "spec.serviceAccountName" => {
            pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_else(|| "default".to_owned())
        }
        "status.hostIP" | "status.hostIPs" => place.host_ip.to_string(),
        "status.podIP" | "status.podIPs" => place.pod_ip.to_string(),
        _ => return Err(ConfigFault::Field(path.to_owned())),
    })
}

/// What a `resourceFieldRef` stands for, in units of its divisor, rounded up.
pub fn resource(
    pod: &Pod,
    container: Option<&Container>,
    selector: &ResourceFieldSelector,
    place: &Place,
) -> Result<String, ConfigFault> {
    let unknown = || ConfigFault::Resource(selector.resource.clone());
    let named = selector.container_name.as_ref().filter(|n| !n.is_empty()).map(|name| {
        let spec = pod.spec.as_ref()?;
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == *name)
    });
    let container = named.unwrap_or(container).ok_or_else(unknown)?;
    let (list, resource) = selector.resource.split_once('.').ok_or_else(unknown)?;
    let resources = container.resources.as_ref();
    let find = |map: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
        Quantity::parse(&map?.get(resource)?.0).ok()
    };
    let limit = find(resources.and_then(|r| r.limits.as_ref()));
    let request = find(resources.and_then(|r| r.requests.as_ref()));
    let all = match resource {
        "cpu" => Quantity::from_milli(place.allocatable_cpu_m),
        "memory" => Quantity::from_bytes(place.allocatable_memory),
        "ephemeral-storage" => Quantity::ZERO,
        _ => return Err(unknown()),
    };
    let amount = match list {
        "limits" => limit.unwrap_or(all),
        "requests" => request.or(limit).unwrap_or(Quantity::ZERO),
        _ => return Err(unknown()),
    };
    let divisor = selector.divisor.as_ref().and_then(|d| Quantity::parse(&d.0).ok()).map_or(0, |d| d.milli());
    let divisor = if divisor <= 0 { 1000 } else { divisor };
    Ok(((amount.milli() + divisor - 1) / divisor).to_string())
}

fn from_objects(container: &Container, objects: &Objects, env: &mut Ordered) -> Result<(), ConfigFault> {
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (found, optional, missing) = if let Some(r) = &source.config_map_ref {
            (objects.config_maps.get(&r.name), r.optional, ConfigFault::NoConfigMap(r.name.clone()))
        } else if let Some(r) = &source.secret_ref {
            (objects.secrets.get(&r.name), r.optional, ConfigFault::NoSecret(r.name.clone()))
        } else {
            continue;
        };
        let Some(found) = found else {
            if optional == Some(true) {
                continue;
            }
            return Err(missing);
        };
        for (key, value) in &found.data {
            let name = format!("{prefix}{key}");
            // What cannot be the name of a variable is left out, as a kubelet does.
            if !name.is_empty() && !name.contains(['=', '\0']) {
                env.set(name, String::from_utf8_lossy(value).into_owned());
            }
        }
    }
    Ok(())
}

/// The value of `valueFrom`; `None` if what it names is missing and may be.
fn from_source(
    pod: &Pod,
    container: &Container,
    name: &str,
    source: &EnvVarSource,
    place: &Place,
    objects: &Objects,
) -> Result<Option<String>, ConfigFault> {
    if let Some(r) = &source.field_ref {
        return field(pod, place, &r.field_path).map(Some);
    }
    if let Some(r) = &source.resource_field_ref {
        return resource(pod, Some(container), r, place).map(Some);
    }
    let (kind, found, object, key, optional, missing) = if let Some(r) = &source.config_map_key_ref {
        let missing = ConfigFault::NoConfigMap(r.name.clone());
        ("ConfigMap", objects.config_maps.get(&r.name), &r.name, &r.key, r.optional, missing)
    } else if let Some(r) = &source.secret_key_ref {
        let missing = ConfigFault::NoSecret(r.name.clone());
        ("Secret", objects.secrets.get(&r.name), &r.name, &r.key, r.optional, missing)
    } else {
        return Err(ConfigFault::Source(name.to_owned()));
    };
    let value = found.map(|entries| entries.data.get(key));
    match value {
        Some(Some(value)) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        _ if optional == Some(true) => Ok(None),
        None => Err(missing),
        Some(None) => {
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            Err(ConfigFault::NoKey { kind, namespace, name: object.clone(), key: key.clone() })
        }
    }
}

fn service_links(pod: &Pod, services: &[Arc<ServiceLink>]) -> BTreeMap<String, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let wanted = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let mut env = BTreeMap::new();
    // The pod's own namespace wins over the API server's service.
    for link in services.iter().filter(|s| s.is_api()) {
        link.variables(&mut env);
    }
    for link in services.iter().filter(|s| wanted && s.namespace == namespace) {
        link.variables(&mut env);
    }
    env
}

/// Labels or annotations as a file of the downward API has them.
fn map_text(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", Value::from(value.as_str())));
    lines.collect::<Vec<_>>().join("\n")
}

/// Variables in the order in which they were first set.
#[derive(Default)]
struct Ordered(Vec<(String, String)>);

impl Ordered {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: String, value: String) {
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }
}

#[cfg(test)]
mod tests;
