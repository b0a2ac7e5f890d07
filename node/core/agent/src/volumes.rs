//! What the volumes of a pod hold and where containers see them.

use std::cell::RefCell;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Volume};

use crate::env::{self, ConfigFault, Entries, Objects, Place, References};

mod claims;
mod tokens;

pub use claims::{DATA_FINALIZER, LOCAL_DRIVER, let_go};
use claims::{claim_name, claimed};
pub use tokens::TokenWish;

/// One volume of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumePlan {
    /// Its name in the pod.
    pub name: String,
    /// What it holds.
    pub content: Content,
}

/// What a volume holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Whatever the containers write, as long as the pod exists; or as long as it runs, if it is kept in memory.
    Empty {
        /// Whether it is kept in memory.
        in_memory: bool,
    },
    /// A directory of this node that outlives pods.
    Local {
        /// How its volume names it.
        handle: String,
    },
    /// These files, by relative path; replaced together when one of them changes. Read-only.
    Files(BTreeMap<String, FilePlan>),
    /// A path of the host.
    HostPath {
        /// The path.
        path: String,
        /// `type`: whether it must exist and as what.
        kind: String,
    },
}

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlan {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// One mount of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPlan {
    /// The volume's name in the pod.
    pub volume: String,
    /// The part of the volume that is mounted; empty for all of it.
    pub sub_path: String,
    /// Where the container sees it.
    pub guest: String,
    /// Whether writes fail.
    pub read_only: bool,
}

/// Why a volume cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeFault {
    /// What the volume's content comes from is missing.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {fault}")]
    Source {
        /// The volume's name in the pod.
        volume: String,
        /// What is missing.
        fault: ConfigFault,
    },
    /// A listed key is missing.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : references non-existent {kind} key: {key}")]
    NoKey {
        /// The volume's name in the pod.
        volume: String,
        /// `config` or `secret`.
        kind: &'static str,
        /// The missing key.
        key: String,
    },
    /// The claim does not exist, is not bound, or is not for this pod.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {why}")]
    Claim {
        /// The volume's name in the pod.
        volume: String,
        /// What is wrong with the claim.
        why: String,
    },
    /// The token of the pod's service account is not there.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : no token of the service account \"{account}\"")]
    NoToken {
        /// The volume's name in the pod.
        volume: String,
        /// Whose token it is.
        account: String,
    },
    /// `subPathExpr` names a variable that the container does not have.
    #[error("container cannot mount volume \"{volume}\": missing value for \"{variable}\"")]
    NoVariable {
        /// The volume's name in the pod.
        volume: String,
        /// The missing variable.
        variable: String,
    },
    /// A path that leaves the volume.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : path `{path}` must stay inside of the volume")]
    Path {
        /// The volume's name in the pod.
        volume: String,
        /// The bad path.
        path: String,
    },
    /// A kind of volume that this node does not have.
    #[error(
        "MountVolume.SetUp failed for volume \"{volume}\" : this node has no volumes of this type; use emptyDir, configMap, secret, downwardAPI, projected or persistentVolumeClaim"
    )]
    Unsupported {
        /// The volume's name in the pod.
        volume: String,
    },
    /// A mount names a volume that the pod does not have.
    #[error("container mounts volume \"{0}\", which the pod does not have")]
    NoVolume(String),
}

/// The objects that a pod's volumes need.
pub fn references(pod: &Pod) -> References {
    let mut refs = References::default();
    for volume in volumes(pod) {
        refs.config_maps.extend(volume.config_map.as_ref().map(|s| s.name.clone()));
        refs.secrets.extend(volume.secret.as_ref().and_then(|s| s.secret_name.clone()));
        refs.claims.extend(claim_name(pod, volume));
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            refs.config_maps.extend(source.config_map.as_ref().map(|s| s.name.clone()));
            refs.secrets.extend(source.secret.as_ref().map(|s| s.name.clone()));
            refs.tokens.extend(source.service_account_token.as_ref().map(|s| TokenWish::of(pod, s)));
        }
    }
    refs
}

/// Whether a pod has volumes whose content may change while it runs.
pub fn changeable(pod: &Pod) -> bool {
    volumes(pod)
        .any(|v| v.config_map.is_some() || v.secret.is_some() || v.downward_api.is_some() || v.projected.is_some())
}

/// Whether a pod has volumes that are kept in memory.
pub fn in_memory(pod: &Pod) -> bool {
    volumes(pod).filter_map(|v| v.empty_dir.as_ref()).any(|dir| dir.medium.as_deref() == Some("Memory"))
}

/// What each volume of the pod holds.
pub fn plan(pod: &Pod, place: &Place, objects: &Objects) -> Result<Vec<VolumePlan>, VolumeFault> {
    volumes(pod)
        .map(|volume| Ok(VolumePlan { name: volume.name.clone(), content: content(pod, volume, place, objects)? }))
        .collect()
}

/// Where a container sees which volumes, in the order of its spec.
pub fn mounts(pod: &Pod, container: &Container, env: &[(String, String)]) -> Result<Vec<MountPlan>, VolumeFault> {
    let value = |name: &str| env.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    let mount = |m: &k8s_openapi::api::core::v1::VolumeMount| {
        let volume = volumes(pod).find(|v| v.name == m.name).ok_or_else(|| VolumeFault::NoVolume(m.name.clone()))?;
        let sub_path = match (&m.sub_path, &m.sub_path_expr) {
            (_, Some(expr)) if !expr.is_empty() => expanded(&m.name, expr, value)?,
            (path, _) => path.clone().unwrap_or_default(),
        };
        let Some(sub_path) = plain(&sub_path) else {
            return Err(VolumeFault::Path { volume: m.name.clone(), path: sub_path });
        };
        let files = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some();
        let claimed = volume.persistent_volume_claim.as_ref().is_some_and(|source| source.read_only == Some(true));
        let read_only = files || claimed || m.read_only == Some(true);
        Ok(MountPlan { volume: m.name.clone(), sub_path, guest: m.mount_path.clone(), read_only })
    };
    container.volume_mounts.iter().flatten().map(mount).collect()
}

fn expanded<'a>(volume: &str, expr: &str, value: impl Fn(&str) -> Option<&'a str>) -> Result<String, VolumeFault> {
    let missing = RefCell::new(None);
    let found = env::expand(expr, |name: &str| {
        let found = value(name);
        if found.is_none() {
            missing.borrow_mut().get_or_insert_with(|| name.to_owned());
        }
        found
    });
    match missing.into_inner() {
        None => Ok(found),
        Some(variable) => Err(VolumeFault::NoVariable { volume: volume.to_owned(), variable }),
    }
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

fn content(pod: &Pod, volume: &Volume, place: &Place, objects: &Objects) -> Result<Content, VolumeFault> {
    let mut files = Files { volume: &volume.name, files: BTreeMap::new() };
    if let Some(source) = &volume.config_map {
        let wanted = Wanted::config_map(&source.name, source.items.as_deref(), source.optional, source.default_mode);
        files.add(&wanted, objects.config_maps.get(&source.name).map(|e| &**e))?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.clone().unwrap_or_default();
        let wanted = Wanted::secret(&name, source.items.as_deref(), source.optional, source.default_mode);
        files.add(&wanted, objects.secrets.get(&name).map(|e| &**e))?;
    } else if let Some(source) = &volume.downward_api {
        files.downward(pod, place, source.items.as_deref(), source.default_mode)?;
    } else if let Some(source) = &volume.projected {
        projected(pod, place, objects, source, &mut files)?;
    } else if let Some(source) = &volume.host_path {
        return Ok(Content::HostPath { path: source.path.clone(), kind: source.type_.clone().unwrap_or_default() });
    } else if let Some(source) = &volume.empty_dir {
        return Ok(Content::Empty { in_memory: source.medium.as_deref() == Some("Memory") });
    } else if let Some(name) = claim_name(pod, volume) {
        return claimed(pod, &name, place, objects)
            .map_err(|why| VolumeFault::Claim { volume: volume.name.clone(), why })?
            .ok_or_else(|| VolumeFault::Unsupported { volume: volume.name.clone() });
    } else {
        return Err(VolumeFault::Unsupported { volume: volume.name.clone() });
    }
    Ok(Content::Files(files.files))
}

fn projected(
    pod: &Pod,
    place: &Place,
    objects: &Objects,
    source: &ProjectedVolumeSource,
    files: &mut Files<'_>,
) -> Result<(), VolumeFault> {
    let mode = source.default_mode;
    for source in source.sources.iter().flatten() {
        if let Some(s) = &source.config_map {
            let wanted = Wanted::config_map(&s.name, s.items.as_deref(), s.optional, mode);
            files.add(&wanted, objects.config_maps.get(&s.name).map(|e| &**e))?;
        } else if let Some(s) = &source.secret {
            let wanted = Wanted::secret(&s.name, s.items.as_deref(), s.optional, mode);
            files.add(&wanted, objects.secrets.get(&s.name).map(|e| &**e))?;
        } else if let Some(s) = &source.downward_api {
            files.downward(pod, place, s.items.as_deref(), mode)?;
        } else if let Some(s) = &source.service_account_token {
            let wish = TokenWish::of(pod, s);
            let Some(token) = objects.tokens.get(&wish) else {
                return Err(VolumeFault::NoToken { volume: files.volume.to_owned(), account: wish.account });
            };
            files.put(&s.path, token.clone().into_bytes(), mode)?;
        } else {
            return Err(VolumeFault::Unsupported { volume: files.volume.to_owned() });
        }
    }
    Ok(())
}

/// What a volume takes from a ConfigMap or a Secret.
struct Wanted<'a> {
    kind: &'static str,
    missing: ConfigFault,
    items: &'a [KeyToPath],
    optional: bool,
    mode: Option<i32>,
}

impl<'a> Wanted<'a> {
    fn config_map(name: &str, items: Option<&'a [KeyToPath]>, optional: Option<bool>, mode: Option<i32>) -> Self {
        let missing = ConfigFault::NoConfigMap(name.to_owned());
        Self { kind: "config", missing, items: items.unwrap_or_default(), optional: optional == Some(true), mode }
    }

    fn secret(name: &str, items: Option<&'a [KeyToPath]>, optional: Option<bool>, mode: Option<i32>) -> Self {
        let missing = ConfigFault::NoSecret(name.to_owned());
        Self { kind: "secret", missing, items: items.unwrap_or_default(), optional: optional == Some(true), mode }
    }
}

/// The files of one volume, as they are collected.
struct Files<'a> {
    volume: &'a str,
    files: BTreeMap<String, FilePlan>,
}

impl Files<'_> {
    fn add(&mut self, wanted: &Wanted<'_>, found: Option<&Entries>) -> Result<(), VolumeFault> {
        let Some(found) = found else {
            if wanted.optional {
                return Ok(());
            }
            return Err(VolumeFault::Source { volume: self.volume.to_owned(), fault: wanted.missing.clone() });
        };
        if wanted.items.is_empty() {
            for (key, bytes) in found.data.iter().chain(&found.binary) {
                self.put(key, bytes.clone(), wanted.mode)?;
            }
            return Ok(());
        }
        for item in wanted.items {
            match found.data.get(&item.key).or_else(|| found.binary.get(&item.key)) {
                Some(bytes) => self.put(&item.path, bytes.clone(), item.mode.or(wanted.mode))?,
                None if wanted.optional => {}
                None => {
                    let (volume, key) = (self.volume.to_owned(), item.key.clone());
                    return Err(VolumeFault::NoKey { volume, kind: wanted.kind, key });
                }
            }
        }
        Ok(())
    }

    fn downward(
        &mut self,
        pod: &Pod,
        place: &Place,
        items: Option<&[DownwardAPIVolumeFile]>,
        mode: Option<i32>,
    ) -> Result<(), VolumeFault> {
        for item in items.unwrap_or_default() {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(r), _) => env::field(pod, place, &r.field_path),
                (None, Some(r)) => env::resource(pod, None, r, place),
                (None, None) => Ok(String::new()),
            };
            let text = text.map_err(|fault| VolumeFault::Source { volume: self.volume.to_owned(), fault })?;
            self.put(&item.path, text.into_bytes(), item.mode.or(mode))?;
        }
        Ok(())
    }

    fn put(&mut self, path: &str, bytes: Vec<u8>, mode: Option<i32>) -> Result<(), VolumeFault> {
        if !stays_inside(path) || path.starts_with("..") {
            return Err(VolumeFault::Path { volume: self.volume.to_owned(), path: path.to_owned() });
        }
        let mode = mode.map_or(0o644, |m| u32::try_from(m).unwrap_or(0o644) & 0o777);
        self.files.insert(path.to_owned(), FilePlan { bytes, mode });
        Ok(())
    }
}

/// A relative path of ordinary components; `None` if it is none.
fn plain(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    (!path.starts_with('/') && !parts.contains(&"..")).then(|| parts.join("/"))
}

/// Whether a relative path has only ordinary components.
fn stays_inside(path: &str) -> bool {
    !path.starts_with('/') && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests;
