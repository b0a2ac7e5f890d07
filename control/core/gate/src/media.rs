//! Media types: what a body is written in, and what a client wants to read.

use dhow_api::decode::Media;
use dhow_api::status::ApiError;

/// What is understood and written, as errors list it.
pub const MEDIA_TYPES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
/// The patches that are understood, as errors list them.
pub const PATCH_TYPES: &str =
    "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// JSON, the usual.
    Json,
    /// YAML, when only that is accepted.
    Yaml,
    /// Kubernetes' protobuf envelope, when only that is accepted.
    Protobuf,
}

impl Encoding {
    /// The media type of the answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// In which shape objects are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// As they are.
    Object,
    /// As rows (`as=Table`).
    Table,
    /// Only their metadata (`as=PartialObjectMetadata` or its list).
    Metadata,
    /// Discovery of all groups in one document (`as=APIGroupDiscoveryList`).
    Discovery(DiscoveryVersion),
}

/// The versions of aggregated discovery; a client must get the very one it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscoveryVersion {
    /// kubectl 1.30 and newer.
    V2,
    /// kubectl up to 1.29.
    V2Beta1,
}

impl DiscoveryVersion {
    /// `v2` or `v2beta1`.
    pub fn as_str(self) -> &'static str {
        match self {
            DiscoveryVersion::V2 => "v2",
            DiscoveryVersion::V2Beta1 => "v2beta1",
        }
    }
}

/// What a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The encoding.
    pub encoding: Encoding,
    /// The shape.
    pub shape: Shape,
}

/// What an endpoint can show beside plain objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Objects and lists: also as table and as metadata.
    Objects,
    /// A watch: as objects, but not in protobuf.
    Watch,
    /// `/api` and `/apis`.
    Discovery,
    /// Anything that has one shape.
    Plain,
}

/// Chooses the first entry of an `Accept` header that can be had. JSON and YAML go before protobuf, since every client
/// that asks for protobuf also reads JSON, and JSON is how objects are kept.
pub fn negotiate(accept: Option<&str>, endpoint: Endpoint) -> Result<Accepted, ApiError> {
    let accept = accept.map(str::trim).filter(|text| !text.is_empty()).unwrap_or("*/*");
    let entries: Vec<Accepted> = accept.split(',').filter_map(|entry| read_entry(entry, endpoint)).collect();
    entries
        .iter()
        .find(|entry| entry.encoding != Encoding::Protobuf)
        .or_else(|| entries.iter().find(|_| endpoint != Endpoint::Watch))
        .copied()
        .ok_or_else(|| ApiError::not_acceptable(MEDIA_TYPES))
}

fn read_entry(entry: &str, endpoint: Endpoint) -> Option<Accepted> {
    let mut parts = entry.split(';').map(str::trim);
    let encoding = match parts.next()?.to_ascii_lowercase().as_str() {
        "*/*" | "application/*" | "application/json" => Encoding::Json,
        "application/yaml" => Encoding::Yaml,
        "application/vnd.kubernetes.protobuf" => Encoding::Protobuf,
        _ => return None,
    };
    let (mut shape, mut group, mut version) = ("", "", "");
    for (key, value) in parts.filter_map(|part| part.split_once('=')) {
        match key.trim() {
            "as" => shape = value.trim(),
            "g" => group = value.trim(),
            "v" => version = value.trim(),
            "q" if value.trim().parse() == Ok(0.0) => return None,
            _ => {}
        }
    }
    let meta = (group, version) == ("meta.k8s.io", "v1") && matches!(endpoint, Endpoint::Objects | Endpoint::Watch);
    let shape = match shape {
        "" => Shape::Object,
        "Table" if meta => Shape::Table,
        "PartialObjectMetadata" | "PartialObjectMetadataList" if meta => Shape::Metadata,
        "APIGroupDiscoveryList" if endpoint == Endpoint::Discovery && group == "apidiscovery.k8s.io" => match version {
            "v2" => Shape::Discovery(DiscoveryVersion::V2),
            "v2beta1" => Shape::Discovery(DiscoveryVersion::V2Beta1),
            _ => return None,
        },
        _ => return None,
    };
    // Only plain objects have a protobuf form here.
    (encoding != Encoding::Protobuf || shape == Shape::Object).then_some(Accepted { encoding, shape })
}

/// What a body is written in; without a word it is JSON.
pub fn body_media(content_type: Option<&str>) -> Result<Media, ApiError> {
    match essence(content_type) {
        "" | "application/json" | "text/json" => Ok(Media::Json),
        "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(Media::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Media::Protobuf),
        _ => Err(ApiError::unsupported_media_type(MEDIA_TYPES)),
    }
}

/// A patch's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own: merges lists by their keys.
    Strategic,
}

/// The kind of patch that a body is.
pub fn patch_type(content_type: Option<&str>) -> Result<PatchType, ApiError> {
    match essence(content_type) {
        "application/json-patch+json" => Ok(PatchType::Json),
        "application/merge-patch+json" => Ok(PatchType::Merge),
        "application/strategic-merge-patch+json" => Ok(PatchType::Strategic),
        "application/apply-patch+yaml" | "application/apply-patch+cbor" => {
            let mut error = ApiError::unsupported_media_type(PATCH_TYPES);
            error.message = format!(
                "server-side apply is not supported by this server yet, use client-side apply - accepted media types \
                 include: {PATCH_TYPES}"
            );
            Err(error)
        }
        _ => Err(ApiError::unsupported_media_type(PATCH_TYPES)),
    }
}

fn essence(content_type: Option<&str>) -> &str {
    content_type.unwrap_or("").split(';').next().unwrap_or("").trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_lists() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,\
                       application/json";
        let discovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        let old = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        let client_go = "application/vnd.kubernetes.protobuf,application/json";
        let (json, yaml, protobuf) = (Encoding::Json, Encoding::Yaml, Encoding::Protobuf);
        use Endpoint::{Discovery, Objects, Plain, Watch};
        for (accept, endpoint, want) in [
            (None, Objects, Some((json, Shape::Object))),
            (Some("*/*"), Objects, Some((json, Shape::Object))),
            (Some("application/json, */*"), Plain, Some((json, Shape::Object))),
            (Some(kubectl), Objects, Some((json, Shape::Table))),
            (Some(kubectl), Plain, Some((json, Shape::Object))),
            (Some(client_go), Watch, Some((json, Shape::Object))),
            (Some("application/vnd.kubernetes.protobuf"), Objects, Some((protobuf, Shape::Object))),
            (Some("application/vnd.kubernetes.protobuf"), Watch, None),
            (Some("application/yaml"), Objects, Some((yaml, Shape::Object))),
            (Some("application/json;as=Table;v=v9;g=meta.k8s.io"), Objects, None),
            (Some("application/cbor"), Objects, None),
            (Some("application/json;q=0, application/yaml"), Objects, Some((yaml, Shape::Object))),
            (Some(discovery), Discovery, Some((json, Shape::Discovery(DiscoveryVersion::V2)))),
            (Some(old), Discovery, Some((json, Shape::Discovery(DiscoveryVersion::V2Beta1)))),
        ] {
            let got = negotiate(accept, endpoint).ok().map(|a| (a.encoding, a.shape));
            assert_eq!(got, want, "{accept:?} {endpoint:?}");
        }
    }

    #[test]
    fn unknown_bodies_are_refused_in_the_usual_words() {
        let error = body_media(Some("application/cbor")).unwrap_err();
        assert_eq!(
            error.message,
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/yaml, application/vnd.kubernetes.protobuf"
        );
        assert_eq!(patch_type(Some("application/json")).unwrap_err().code, 415);
        assert!(patch_type(Some("application/apply-patch+yaml")).unwrap_err().message.contains("server-side apply"));
        assert_eq!(patch_type(Some("application/merge-patch+json; charset=utf-8")).ok(), Some(PatchType::Merge));
    }
}
