//! What a registry says about an image, in the words of the OCI image specification.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// What is asked for when a manifest is fetched.
pub(crate) const MANIFEST_ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";
/// The configuration of a Wasm artifact, in the layout that the CNCF's working group agreed on.
pub(crate) const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// The layer of that layout.
pub(crate) const WASM_LAYER: &str = "application/wasm";
/// Layers that hold a bare program: the current layout, and those that tools used before it.
pub(crate) const WASM_LAYERS: [&str; 4] = [
    WASM_LAYER,
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];
/// Layers that are archives of files.
const ARCHIVES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];
/// The configuration of a Spin application, each of whose components is a layer.
const SPIN_CONFIG: &str = "application/vnd.fermyon.spin.application.v1+config";
/// Layers that an image of files may have; one has as many as its Dockerfile has lines.
const LAYERS_MAX: usize = 127;
/// The largest manifest that is read, as the distribution specification suggests.
pub(crate) const MANIFEST_BYTES_MAX: usize = 4 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<IndexEntry>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct IndexEntry {
    pub(crate) digest: String,
    #[serde(default)]
    pub(crate) platform: Platform,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn of(media_type: &str, bytes: &[u8]) -> Self {
        let (digest, size) = (digest_of(bytes), bytes.len() as u64);
        Self { media_type: media_type.to_owned(), digest, size, annotations: BTreeMap::new() }
    }
}

/// The configuration of a Wasm artifact.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WasmConfig {
    pub(crate) architecture: &'static str,
    pub(crate) os: &'static str,
    pub(crate) layer_digests: Vec<String>,
}

/// Where an image has its program.
#[derive(Debug)]
pub(crate) enum Content {
    /// One layer is the program.
    Bare(Descriptor),
    /// It is a file in the layers, which lie over each other in this order.
    Files(Vec<Descriptor>),
}

impl Manifest {
    /// Finds the program; an error says what the image holds instead.
    pub(crate) fn content(&self) -> Result<Content, String> {
        let bare: Vec<_> =
            self.layers.iter().filter(|layer| WASM_LAYERS.contains(&layer.media_type.as_str())).collect();
        if self.config.media_type == SPIN_CONFIG && bare.len() > 1 {
            return Err(format!("it is a Spin application of {} components; compose them into one", bare.len()));
        }
        if let Some(layer) = bare.first() {
            return Ok(Content::Bare((*layer).clone()));
        }
        let files: Vec<_> =
            self.layers.iter().filter(|layer| ARCHIVES.contains(&layer.media_type.as_str())).cloned().collect();
        let mut found: Vec<_> = self.layers.iter().map(|layer| format!("`{}`", layer.media_type)).collect();
        found.dedup();
        match files.len() {
            0 => Err(format!("its layers are {}", found.join(", "))),
            n if n > LAYERS_MAX => Err(format!("it has {n} layers; at most {LAYERS_MAX} are read")),
            _ => Ok(Content::Files(files)),
        }
    }
}

impl Index {
    /// The manifest to take: one for WebAssembly, the newest WASI first; else any that is for some platform.
    pub(crate) fn choose(&self) -> Option<&IndexEntry> {
        let rank = |entry: &&IndexEntry| match (entry.platform.architecture.as_str(), entry.platform.os.as_str()) {
            ("wasm", "wasip2") => 0,
            ("wasm", "wasi" | "wasip1") => 1,
            ("wasm", _) => 2,
            // What builders attach to an image: where it comes from, what is in it.
            ("unknown", _) | (_, "unknown") => 4,
            _ => 3,
        };
        self.manifests.iter().min_by_key(rank).filter(|entry| rank(entry) < 4)
    }
}

/// What an image of files says about how it is started.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ImageConfig {
    #[serde(default)]
    config: Option<Start>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Start {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: String,
}

/// How an image wants to be started where its Pod does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Defaults {
    /// The arguments behind the program that belong to it whatever the Pod's `args` are.
    pub entrypoint: Vec<String>,
    /// The arguments behind those, which the Pod's `args` replace.
    pub args: Vec<String>,
    /// The environment, under that of the Pod.
    pub env: Vec<(String, String)>,
}

impl ImageConfig {
    /// The path of the program, if one is named, and what else it says.
    pub(crate) fn start(self) -> (Option<String>, Defaults) {
        let Start { entrypoint, cmd, env, working_dir } = self.config.unwrap_or_default();
        let mut entrypoint = entrypoint.unwrap_or_default();
        let mut args = cmd.unwrap_or_default();
        let first = if entrypoint.is_empty() { &mut args } else { &mut entrypoint };
        let program = (!first.is_empty()).then(|| first.remove(0));
        let program = program.map(|path| match path.strip_prefix('/') {
            Some(absolute) => clean(absolute),
            None => clean(&format!("{working_dir}/{path}")),
        });
        let env = env.unwrap_or_default();
        let env = env.iter().filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned()));
        (program, Defaults { entrypoint, args, env: env.collect() })
    }
}

/// A path as archives have it: without a beginning `/`, and without `.` and `..`.
pub(crate) fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// `sha256:` and the hash in hexadecimal.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    hex_of(&Sha256::digest(bytes))
}

/// The same of a hash that is there already.
pub(crate) fn hex_of(hash: &[u8]) -> String {
    hash.iter().fold(String::from("sha256:"), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn content(config: &str, layers: &[&str]) -> String {
        let layers: Vec<_> = layers
            .iter()
            .enumerate()
            .map(|(n, t)| json!({"mediaType": t, "digest": n.to_string(), "size": 1}))
            .collect();
        let config = json!({"mediaType": config, "digest": "c", "size": 1});
        let manifest: Manifest =
            serde_json::from_value(json!({"schemaVersion": 2, "config": config, "layers": layers})).unwrap();
        match manifest.content() {
            Ok(Content::Bare(layer)) => format!("bare {}", layer.digest),
            Ok(Content::Files(layers)) => layers.iter().map(|layer| format!("file {} ", layer.digest)).collect(),
            Err(why) => why,
        }
    }

    #[test]
    fn the_program_is_found_in_every_form_that_tools_write() {
        const OCI: &str = "application/vnd.oci.image.config.v1+json";
        let spin = "application/vnd.wasm.content.layer.v1+wasm";
        for (config, layers, expected) in [
            (WASM_CONFIG, &[WASM_LAYER][..], "bare 0"),
            (SPIN_CONFIG, &["application/vnd.wasm.content.layer.v1+data", spin], "bare 1"),
            (SPIN_CONFIG, &[spin, spin], "Spin application of 2 components"),
            (OCI, &["application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"], "bare 0"),
            (OCI, &[spin], "bare 0"),
            (
                "application/vnd.wasmcloud.actor.archive.config",
                &["application/vnd.module.wasm.content.layer.v1+wasm"],
                "bare 0",
            ),
            (OCI, &[ARCHIVES[1], ARCHIVES[3]], "file 0 file 1 "),
            (
                OCI,
                &["application/vnd.wasmcloud.provider.archive.layer.v1+par"],
                "its layers are `application/vnd.wasmc",
            ),
            (OCI, &[], "its layers are"),
        ] {
            let found = content(config, layers);
            assert!(found.contains(expected), "{layers:?}: {found}");
        }
    }

    #[test]
    fn an_index_gives_wasm_then_anything_that_runs() {
        let choose = |platforms: &[(&str, &str)]| {
            let entry = |(n, (os, architecture)): (usize, &(&str, &str))| json!({"digest": n.to_string(), "platform": {"os": os, "architecture": architecture}});
            let entries: Vec<_> = platforms.iter().enumerate().map(entry).collect();
            let index: Index = serde_json::from_value(json!({"manifests": entries})).unwrap();
            index.choose().map(|entry| entry.digest.parse::<usize>().unwrap())
        };
        assert_eq!(choose(&[("linux", "amd64"), ("wasip1", "wasm"), ("wasip2", "wasm")]), Some(2));
        assert_eq!(choose(&[("linux", "amd64"), ("wasi", "wasm")]), Some(1));
        assert_eq!(choose(&[("unknown", "unknown"), ("linux", "arm64"), ("linux", "amd64")]), Some(1));
        assert_eq!(choose(&[("unknown", "unknown")]), None);
        assert_eq!(choose(&[]), None);
        let bare: Index = serde_json::from_value(json!({"manifests": [{"digest": "x"}]})).unwrap();
        assert_eq!(bare.choose().unwrap().digest, "x");
    }

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn the_entry_point_is_a_path_in_the_archive() {
        for (config, program, entrypoint, args) in [
            (json!({"Entrypoint": ["/app.wasm", "-v"], "Cmd": ["x"]}), Some("app.wasm"), &["-v"][..], &["x"][..]),
            (json!({"Cmd": ["app.wasm", "x"], "WorkingDir": "/srv/"}), Some("srv/app.wasm"), &[], &["x"]),
            (json!({"Entrypoint": ["../../a/./b.wasm"], "Cmd": null}), Some("a/b.wasm"), &[], &[]),
            (json!({}), None, &[], &[]),
            (json!(null), None, &[], &[]),
        ] {
            let config: ImageConfig = serde_json::from_value(json!({"config": config, "os": "wasi"})).unwrap();
            let (found, defaults) = config.start();
            assert_eq!(found.as_deref(), program);
            assert_eq!((&defaults.entrypoint[..], &defaults.args[..]), (&owned(entrypoint)[..], &owned(args)[..]));
        }
        let config: ImageConfig = serde_json::from_value(json!({"config": {"Env": ["A=1=2", "B"]}})).unwrap();
        assert_eq!(config.start().1.env, [("A".to_owned(), "1=2".to_owned())]);
    }
}
