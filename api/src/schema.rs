//! The schema table: what is known about every built-in type, parsed once from a committed text of facts.
//!
//! `schema/table.txt` is made by `cargo xtask schema`. Decoding, protobuf transcoding, strategic merge and OpenAPI are
//! all driven by it; none of them knows a type by name, except where Kubernetes itself makes an exception.
//!
//! Invariants: the table is complete in itself (each type that a field mentions is there), which a test checks; no
//! description stands in it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::Tree;

/// The committed text; its first lines explain the notation.
const TEXT: &str = include_str!("../schema/table.txt");

/// The package of the types that all groups share.
pub const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    Table::parse(TEXT)
        .unwrap_or_else(|line| panic!("the committed schema table is well-formed, but line {line} is not"))
});

/// The table of built-in types.
pub fn table() -> &'static Table {
    &TABLE
}

/// All types by their full names.
#[derive(Debug)]
pub struct Table {
    types: BTreeMap<&'static str, Type>,
    kinds: BTreeMap<(&'static str, &'static str), &'static str>,
}

/// One type: an object in JSON, a message in protobuf.
#[derive(Debug)]
pub struct Type {
    /// `io.k8s.api.core.v1.PodSpec`
    pub name: &'static str,
    /// `apiVersion` and `kind`, for the types that are objects of their own.
    pub kind: Option<(&'static str, &'static str)>,
    /// Whether server-side apply and merges treat the whole object as one value.
    pub atomic: bool,
    /// The fields in their natural order.
    pub fields: Vec<Field>,
    by_name: BTreeMap<&'static str, usize>,
}

/// One field of a [`Type`].
#[derive(Debug)]
pub struct Field {
    /// Its name in JSON.
    pub json: &'static str,
    /// Its protobuf numbers: one, or a path through embedded messages, or none for what JSON alone has.
    pub numbers: Vec<u32>,
    /// What it holds.
    pub ty: FieldType,
    /// Whether an object without it is incomplete.
    pub required: bool,
    /// Whether an empty value that was sent differs from one that was not (a pointer in Go).
    pub pointer: bool,
    /// The Go type of a scalar that has a name of its own: `v1.PullPolicy`.
    pub go_type: Option<&'static str>,
    /// How a list or map is owned and merged.
    pub list_type: ListType,
    /// What a strategic merge patch does with it.
    pub patch_strategy: PatchStrategy,
    /// The key by which a strategic merge patch pairs the entries of a list of objects.
    pub patch_merge_key: Option<&'static str>,
    /// The value that stands for an absent one in list-map keys and documents.
    pub default: Option<Tree>,
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// Text.
    String,
    /// `true` or `false`.
    Bool,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// A floating-point number.
    Double,
    /// Base64 text.
    Bytes,
    /// An amount with a suffix: `100m`, `1Gi`.
    Quantity,
    /// A whole number or a text.
    IntOrString,
    /// A time in whole seconds.
    Time,
    /// A time with six digits below the second.
    MicroTime,
    /// A span of time as Go writes it: `1h30m`.
    Duration,
    /// Any object, taken as it is.
    Raw,
    /// The set of owned fields in `managedFields`.
    FieldsV1,
    /// An object of the named type.
    Object(&'static str),
    /// A list.
    List(Box<FieldType>),
    /// A map from text.
    Map(Box<FieldType>),
}

/// How the entries of a list are told apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    /// Nothing is said: as [`ListType::Atomic`] for lists, entry by entry for maps and objects.
    #[default]
    Unset,
    /// The list, map or object is one value.
    Atomic,
    /// Each entry is itself the key.
    Set,
    /// These fields of an entry are its key.
    Map(Vec<&'static str>),
}

/// What a strategic merge patch does with a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    /// Lists are merged entry by entry instead of being replaced.
    pub merge: bool,
    /// A `$retainKeys` list may say which fields stay.
    pub retain_keys: bool,
}

impl Table {
    /// The type of a full name.
    pub fn get(&self, name: &str) -> Option<&Type> {
        self.types.get(name)
    }

    /// The type of an object's `apiVersion` and `kind`. `DeleteOptions` and other options are of every group.
    pub fn by_kind(&self, api_version: &str, kind: &str) -> Option<&Type> {
        let name = match kind {
            "DeleteOptions" => "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
            _ => self.kinds.get(&(api_version, kind))?,
        };
        self.get(name)
    }

    /// All types in the order of their names.
    pub fn types(&self) -> impl Iterator<Item = &Type> {
        self.types.values()
    }

    fn parse(text: &'static str) -> Result<Table, usize> {
        let mut table = Table { types: BTreeMap::new(), kinds: BTreeMap::new() };
        let mut package = "";
        let mut current: Option<Type> = None;
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            if line.starts_with('#') || line.is_empty() {
                continue;
            }
            if let Some(name) = line.strip_prefix("package ") {
                package = name;
            } else if let Some(head) = line.strip_prefix("type ") {
                table.add(current.take());
                current = Some(parse_head(package, head));
            } else {
                let owner = current.as_mut().ok_or(number)?;
                let field = parse_field(package, line.trim_start()).ok_or(number)?;
                owner.by_name.insert(field.json, owner.fields.len());
                owner.fields.push(field);
            }
        }
        table.add(current.take());
        Ok(table)
    }

    fn add(&mut self, found: Option<Type>) {
        let Some(found) = found else { return };
        if let Some(kind) = found.kind {
            self.kinds.insert(kind, found.name);
        }
        self.types.insert(found.name, found);
    }
}

impl Type {
    /// The field of a JSON name.
    pub fn field(&self, json: &str) -> Option<&Field> {
        self.fields.get(*self.by_name.get(json)?)
    }

    /// The name without its package: `PodSpec`.
    pub fn short_name(&self) -> &'static str {
        short(self.name)
    }
}

impl FieldType {
    /// The type of a list's or map's entries; itself for all others.
    pub fn entry(&self) -> &FieldType {
        match self {
            FieldType::List(inner) | FieldType::Map(inner) => inner,
            other => other,
        }
    }

    /// The name of the object type here or in the entries.
    pub fn object(&self) -> Option<&'static str> {
        match self {
            FieldType::Object(name) => Some(name),
            FieldType::List(inner) | FieldType::Map(inner) => inner.object(),
            _ => None,
        }
    }
}

/// The last part of a type's name.
pub fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn parse_head(package: &str, head: &'static str) -> Type {
    let mut words = head.split(' ');
    let name = leak(format!("{package}.{}", words.next().unwrap_or("")));
    let mut found = Type { name, kind: None, atomic: false, fields: Vec::new(), by_name: BTreeMap::new() };
    for word in words {
        match word.strip_prefix("kind=").and_then(|kind| kind.rsplit_once('/')) {
            Some(kind) => found.kind = Some(kind),
            None => found.atomic |= word == "atomic",
        }
    }
    found
}

fn parse_field(package: &str, line: &'static str) -> Option<Field> {
    let (line, default) = match line.split_once(" default=") {
        Some((line, default)) => (line, Some(serde_json::from_str(default).ok()?)),
        None => (line, None),
    };
    let mut words = line.split(' ');
    let json = words.next()?;
    let numbers = match words.next()? {
        "-" => Vec::new(),
        path => path.split('/').map(|number| number.parse().ok()).collect::<Option<Vec<u32>>>()?,
    };
    let mut field = Field {
        json,
        numbers,
        ty: parse_type(package, words.next()?),
        required: false,
        pointer: false,
        go_type: None,
        list_type: ListType::Unset,
        patch_strategy: PatchStrategy::default(),
        patch_merge_key: None,
        default,
    };
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("required", _) => field.required = true,
            ("ptr", _) => field.pointer = true,
            ("go", name) => field.go_type = Some(name),
            ("set", _) => field.list_type = ListType::Set,
            ("atomic", _) => field.list_type = ListType::Atomic,
            ("map", keys) => field.list_type = ListType::Map(keys.split(',').collect()),
            ("merge", key) => {
                field.patch_strategy.merge = true;
                field.patch_merge_key = (!key.is_empty()).then_some(key);
            }
            ("retain", _) => field.patch_strategy.retain_keys = true,
            _ => return None,
        }
    }
    Some(field)
}

fn parse_type(package: &str, text: &'static str) -> FieldType {
    if let Some(inner) = text.strip_prefix("[]") {
        return FieldType::List(Box::new(parse_type(package, inner)));
    }
    if let Some(inner) = text.strip_prefix("{}") {
        return FieldType::Map(Box::new(parse_type(package, inner)));
    }
    match text {
        "string" => FieldType::String,
        "bool" => FieldType::Bool,
        "int32" => FieldType::Int32,
        "int64" => FieldType::Int64,
        "double" => FieldType::Double,
        "bytes" => FieldType::Bytes,
        "quantity" => FieldType::Quantity,
        "intorstring" => FieldType::IntOrString,
        "time" => FieldType::Time,
        "microtime" => FieldType::MicroTime,
        "duration" => FieldType::Duration,
        "raw" => FieldType::Raw,
        "fieldsv1" => FieldType::FieldsV1,
        name if name.contains('.') => FieldType::Object(name),
        name => FieldType::Object(leak(format!("{package}.{name}"))),
    }
}

/// The table lives as long as the process, so its names may too.
fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mentioned_type_is_in_the_table() {
        for found in table().types() {
            for field in &found.fields {
                if let Some(name) = field.ty.object() {
                    assert!(table().get(name).is_some(), "{}.{} mentions {name}", found.name, field.json);
                }
            }
        }
    }

    #[test]
    fn each_kind_is_an_object_whose_fields_have_numbers() {
        for found in table().types() {
            for field in &found.fields {
                let of_type_meta = matches!(field.json, "apiVersion" | "kind");
                assert!(!field.numbers.is_empty() || of_type_meta, "{}.{} has no number", found.name, field.json);
            }
        }
        for kind in crate::kinds::all() {
            let found = table().by_kind(&kind.api_version(), kind.kind).unwrap();
            assert_eq!(found.name, kind.schema);
            assert!(found.field("apiVersion").is_some() && found.field("metadata").is_some(), "{}", found.name);
        }
    }

    #[test]
    fn the_exceptions_in_json_names_are_right() {
        let names = [
            ("core.v1.ServiceSpec", "clusterIP"),
            ("core.v1.ServiceSpec", "clusterIPs"),
            ("core.v1.ServiceSpec", "externalIPs"),
            ("core.v1.ServiceSpec", "loadBalancerIP"),
            ("core.v1.PodStatus", "podIPs"),
            ("core.v1.PodStatus", "hostIP"),
            ("core.v1.NodeSpec", "podCIDRs"),
            ("core.v1.NodeSpec", "providerID"),
            ("core.v1.ContainerStatus", "imageID"),
            ("core.v1.PodSpec", "setHostnameAsFQDN"),
        ];
        for (name, field) in names {
            assert!(table().get(&format!("io.k8s.api.{name}")).unwrap().field(field).is_some(), "{name}.{field}");
        }
    }

    #[test]
    fn markers_survive() {
        let container = table().get("io.k8s.api.core.v1.Container").unwrap();
        let ports = container.field("ports").unwrap();
        assert_eq!(ports.list_type, ListType::Map(vec!["containerPort", "protocol"]));
        assert_eq!((ports.patch_strategy.merge, ports.patch_merge_key), (true, Some("containerPort")));
        let volume = table().get("io.k8s.api.core.v1.Volume").unwrap();
        assert_eq!(volume.field("emptyDir").unwrap().numbers, [2, 2]);
        let port = table().get("io.k8s.api.core.v1.ContainerPort").unwrap();
        assert_eq!(port.field("protocol").unwrap().default, Some("TCP".into()));
        let meta = table().get("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap();
        assert_eq!(meta.field("finalizers").unwrap().list_type, ListType::Set);
        let spec = table().get("io.k8s.api.core.v1.PodSpec").unwrap();
        assert!(spec.field("volumes").unwrap().patch_strategy.retain_keys);
        assert!(spec.field("containers").unwrap().required);
    }
}
