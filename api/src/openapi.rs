//! OpenAPI v3 documents, one a group and version, from the schema table and the table of kinds; and from them the v2
//! document of old clients.
//!
//! `kubectl` reads them before it writes: the `fieldValidation` parameter of a patch tells it that the server checks
//! manifests, the extensions of a list tell it how to merge, and the descriptions are what `explain` prints. The
//! descriptions come from a dependency's sources at build time (`build.rs`).
//!
//! The documents are made once, when someone first asks, and kept packed; a caller gets its own unpacked copy.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::sync::{Arc, LazyLock};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use serde_json::{Map, json};

use crate::Tree;
use crate::kinds::{self, Kind};
use crate::schema::{self, Field, FieldType, ListType, META, Type, table};

mod paths;
mod v2;

/// The descriptions that `build.rs` found.
const DESCRIPTIONS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.z"));

/// The release whose types the documents describe.
const VERSION: &str = "v1.36.0";

static DOCUMENTS: LazyLock<BTreeMap<String, Document>> = LazyLock::new(make_documents);

/// A packed document.
struct Document {
    hash: String,
    packed: Vec<u8>,
}

static V2: LazyLock<V2Document> = LazyLock::new(make_v2);

/// The packed v2 document in its two forms.
struct V2Document {
    json: Vec<u8>,
    protobuf: Vec<u8>,
}

/// The index: each document's URL, whose hash changes with its content.
pub fn v3_index() -> Tree {
    let paths: Map<String, Tree> = DOCUMENTS
        .iter()
        .map(|(path, document)| {
            let url = format!("/openapi/v3/{path}?hash={}", document.hash);
            (path.clone(), json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// The document of a path like `api/v1` or `apis/apps/v1`, as JSON text.
pub fn v3_document(path: &str) -> Option<Arc<[u8]>> {
    let document = DOCUMENTS.get(path)?;
    Some(unpack(&document.packed).into())
}

/// The hash of a document as it stands in the index.
pub fn v3_hash(path: &str) -> Option<&'static str> {
    DOCUMENTS.get(path).map(|document| document.hash.as_str())
}

/// The v2 document of everything as JSON text.
pub fn v2() -> Arc<[u8]> {
    unpack(&V2.json).into()
}

/// The v2 document as gnostic's protobuf message: `application/com.github.proto-openapi.spec.v2@v1.0+protobuf`.
pub fn v2_protobuf() -> Arc<[u8]> {
    unpack(&V2.protobuf).into()
}

fn make_v2() -> V2Document {
    let parsed = DOCUMENTS.values().map(|document| {
        serde_json::from_slice::<Tree>(&unpack(&document.packed)).expect("the documents that we made are JSON")
    });
    let document = v2::document(parsed);
    V2Document { json: pack(document.to_string().as_bytes()), protobuf: pack(&v2::protobuf(&document)) }
}

fn make_documents() -> BTreeMap<String, Document> {
    let descriptions = Descriptions::unpack();
    let mut groups: BTreeMap<String, Vec<&'static Kind>> = BTreeMap::new();
    for kind in kinds::all() {
        let root = if kind.group.is_empty() { "api" } else { "apis" };
        groups.entry(format!("{root}/{}", kind.api_version())).or_default().push(kind);
    }
    groups
        .into_iter()
        .map(|(path, kinds)| {
            let text = make_document(&path, &kinds, &descriptions).to_string();
            (path, Document { hash: hash(text.as_bytes()), packed: pack(text.as_bytes()) })
        })
        .collect()
}

fn make_document(path: &str, kinds: &[&'static Kind], descriptions: &Descriptions) -> Tree {
    let mut schemas = Schemas { descriptions, made: BTreeMap::new(), open: BTreeSet::new() };
    let mut paths = Map::new();
    for kind in kinds {
        paths::add(&mut paths, path, kind, &mut schemas);
        schemas.reference(kind.schema);
    }
    schemas.close();
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": schemas.made.into_iter().collect::<Map<_, _>>(),
            "securitySchemes": {
                "BearerToken": {
                    "type": "apiKey",
                    "description": "Bearer Token authentication",
                    "name": "authorization",
                    "in": "header",
                },
            },
        },
    })
}

// ------------------------------------------------------------------------------------------------------------- schemas

/// The schemas of one document: what was referred to and not yet made is open.
struct Schemas<'a> {
    descriptions: &'a Descriptions,
    made: BTreeMap<String, Tree>,
    open: BTreeSet<String>,
}

impl Schemas<'_> {
    /// A reference to a type, which the document will then hold.
    fn reference(&mut self, name: &str) -> Tree {
        if !self.made.contains_key(name) {
            self.open.insert(name.to_owned());
        }
        json!({"$ref": format!("#/components/schemas/{name}")})
    }

    fn close(&mut self) {
        while let Some(name) = self.open.pop_first() {
            let schema = match table().get(&name) {
                Some(found) => self.object(found),
                None => self.leaf(&name),
            };
            self.made.insert(name, schema);
        }
    }

    fn object(&mut self, found: &'static Type) -> Tree {
        let mut schema = Map::new();
        let kind_of_list = found.kind.and_then(|(_, kind)| kind.strip_suffix("List"));
        match (self.descriptions.get(found.name, ""), kind_of_list) {
            (Some(words), _) => drop(schema.insert("description".to_owned(), words.into())),
            (None, Some(kind)) => {
                let words = format!("{kind}List is a list of {kind} objects.");
                schema.insert("description".to_owned(), words.into());
            }
            (None, None) => {}
        }
        schema.insert("type".to_owned(), "object".into());
        let required: Vec<&str> = found.fields.iter().filter(|field| field.required).map(|field| field.json).collect();
        if !required.is_empty() {
            schema.insert("required".to_owned(), required.into());
        }
        let properties: BTreeMap<&str, Tree> =
            found.fields.iter().map(|field| (field.json, self.property(found, field))).collect();
        if !properties.is_empty() {
            schema.insert("properties".to_owned(), json!(properties));
        }
        if found.atomic {
            schema.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
        }
        if let Some((api_version, kind)) = found.kind.or_else(|| kind_of_options(found)) {
            let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
            let kinds = json!([{"group": group, "kind": kind, "version": version}]);
            schema.insert("x-kubernetes-group-version-kind".to_owned(), kinds);
        }
        Tree::Object(schema)
    }

    fn property(&mut self, owner: &Type, field: &'static Field) -> Tree {
        let mut property = self.value(&field.ty, true);
        let Tree::Object(map) = &mut property else { return property };
        if let Some(words) = self.describe(owner, field) {
            map.shift_insert(0, "description".to_owned(), words.into());
        }
        if let Some(default) = &field.default {
            map.insert("default".to_owned(), default.clone());
        } else if matches!(field.ty, FieldType::Object(_)) && !field.pointer {
            map.insert("default".to_owned(), json!({}));
        }
        let is_list = matches!(field.ty, FieldType::List(_));
        match &field.list_type {
            ListType::Unset => {}
            ListType::Atomic if is_list => drop(map.insert("x-kubernetes-list-type".to_owned(), "atomic".into())),
            ListType::Atomic => drop(map.insert("x-kubernetes-map-type".to_owned(), "atomic".into())),
            ListType::Set => drop(map.insert("x-kubernetes-list-type".to_owned(), "set".into())),
            ListType::Map(keys) => {
                map.insert("x-kubernetes-list-map-keys".to_owned(), json!(keys));
                map.insert("x-kubernetes-list-type".to_owned(), "map".into());
            }
        }
        if let Some(key) = field.patch_merge_key {
            map.insert("x-kubernetes-patch-merge-key".to_owned(), key.into());
        }
        let strategy = match (field.patch_strategy.merge, field.patch_strategy.retain_keys) {
            (true, true) => "merge,retainKeys",
            (true, false) => "merge",
            (false, true) => "retainKeys",
            (false, false) => return property,
        };
        map.insert("x-kubernetes-patch-strategy".to_owned(), strategy.into());
        property
    }

    fn describe(&self, owner: &Type, field: &Field) -> Option<String> {
        let own = self.descriptions.get(owner.name, field.json).map(str::to_owned);
        own.or_else(|| match field.json {
            // All objects have these two; a type whose source names them lends its words.
            "apiVersion" | "kind" => {
                let options = format!("{META}.DeleteOptions");
                self.descriptions.get(&options, field.json).map(str::to_owned)
            }
            "items" => Some("The objects of the list.".to_owned()),
            "metadata" => Some("Standard list metadata.".to_owned()),
            _ => None,
        })
    }

    /// A value's schema. A reference that may get company (a description) is wrapped, since whatever stands beside
    /// `$ref` is ignored.
    fn value(&mut self, ty: &FieldType, wrapped: bool) -> Tree {
        match ty {
            FieldType::String => json!({"type": "string"}),
            FieldType::Bool => json!({"type": "boolean"}),
            FieldType::Int32 => json!({"type": "integer", "format": "int32"}),
            FieldType::Int64 => json!({"type": "integer", "format": "int64"}),
            FieldType::Double => json!({"type": "number", "format": "double"}),
            FieldType::Bytes => json!({"type": "string", "format": "byte"}),
            FieldType::List(entry) => json!({"type": "array", "items": self.value(entry, true)}),
            FieldType::Map(entry) => json!({"type": "object", "additionalProperties": self.value(entry, true)}),
            other => {
                let name = match other {
                    FieldType::Object(name) => (*name).to_owned(),
                    FieldType::Quantity => QUANTITY.to_owned(),
                    FieldType::IntOrString => INT_OR_STRING.to_owned(),
                    FieldType::Raw => RAW_EXTENSION.to_owned(),
                    FieldType::Time => format!("{META}.Time"),
                    FieldType::MicroTime => format!("{META}.MicroTime"),
                    FieldType::Duration => format!("{META}.Duration"),
                    _ => format!("{META}.FieldsV1"),
                };
                let reference = self.reference(&name);
                if wrapped { json!({"allOf": [reference]}) } else { reference }
            }
        }
    }

    /// The types that are no objects of fields.
    fn leaf(&self, name: &str) -> Tree {
        let mut schema = match name {
            QUANTITY => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            INT_OR_STRING => json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
            _ => match schema::short(name) {
                "Time" | "MicroTime" => json!({"type": "string", "format": "date-time"}),
                "Duration" => json!({"type": "string"}),
                _ => json!({"type": "object"}),
            },
        };
        if let (Some(words), Tree::Object(map)) = (self.descriptions.get(name, ""), &mut schema) {
            map.shift_insert(0, "description".to_owned(), words.into());
        }
        schema
    }
}

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW_EXTENSION: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";

fn kind_of_options(found: &Type) -> Option<(&'static str, &'static str)> {
    (found.short_name() == "DeleteOptions").then_some(("v1", "DeleteOptions"))
}

// -------------------------------------------------------------------------------------------------------- descriptions

/// Type name to field name to words; the type's own stand under the empty name.
struct Descriptions(BTreeMap<String, BTreeMap<String, String>>);

impl Descriptions {
    fn unpack() -> Descriptions {
        let text = String::from_utf8(unpack(DESCRIPTIONS)).unwrap_or_default();
        let mut all = BTreeMap::new();
        let mut current: Option<(String, BTreeMap<String, String>)> = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("= ") {
                all.extend(current.replace((name.to_owned(), BTreeMap::new())));
            } else if let (Some((field, words)), Some((_, fields))) = (line.split_once('\t'), &mut current) {
                fields.insert(field.to_owned(), unescape(words));
            }
        }
        all.extend(current);
        Descriptions(all)
    }

    fn get(&self, name: &str, field: &str) -> Option<&str> {
        self.0.get(name)?.get(field).map(String::as_str)
    }
}

fn unescape(words: &str) -> String {
    let mut plain = String::with_capacity(words.len());
    let mut chars = words.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.push(if chars.next() == Some('n') { '\n' } else { '\\' }),
            c => plain.push(c),
        }
    }
    plain
}

// ------------------------------------------------------------------------------------------------------------- packing

fn pack(bytes: &[u8]) -> Vec<u8> {
    let mut packer = ZlibEncoder::new(Vec::new(), Compression::default());
    packer.write_all(bytes).and_then(|()| packer.finish()).expect("packing into memory does not fail")
}

fn unpack(bytes: &[u8]) -> Vec<u8> {
    let mut unpacked = Vec::new();
    ZlibDecoder::new(bytes).read_to_end(&mut unpacked).expect("what we packed can be unpacked");
    unpacked
}

/// FNV-1a with 128 bits: the hash only tells one content from another, so it need not withstand anyone.
fn hash(bytes: &[u8]) -> String {
    let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
    for byte in bytes {
        hash = (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    format!("{hash:032X}")
}

#[cfg(test)]
mod tests;
