//! Makes `api/schema/table.txt`: the facts about every Kubernetes type that Dhow speaks, without any prose.
//!
//! Three sources are joined. `k8s-openapi` knows the true JSON names, the JSON types and what is required. `k8s-pb`
//! knows the protobuf field numbers, and its doc comments keep the markers of the Go sources (`+listType`,
//! `+patchMergeKey`, …). `api/schema/go.txt` knows which fields are pointers in Go. The first two are read as text from
//! the places where cargo unpacked them.
//!
//! The Go types embed some structs: `Volume` embeds `VolumeSource`, which protobuf sends as a message of its own and
//! JSON does not show. Such fields get a path as their number: `emptyDir 2/2`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The release of `k8s-openapi`'s modules that the table is made from.
const RELEASE: &str = "v1_36";

/// The types that the table starts from; everything that they mention follows. To serve more kinds, add lines here.
const ROOTS: &[&str] = &[
    "io.k8s.api.core.v1.Pod",
    "io.k8s.api.core.v1.Node",
    "io.k8s.api.core.v1.Namespace",
    "io.k8s.api.core.v1.Service",
    "io.k8s.api.core.v1.Endpoints",
    "io.k8s.api.discovery.v1.EndpointSlice",
    "io.k8s.api.core.v1.ConfigMap",
    "io.k8s.api.core.v1.Secret",
    "io.k8s.api.core.v1.ServiceAccount",
    "io.k8s.api.core.v1.PersistentVolume",
    "io.k8s.api.core.v1.PersistentVolumeClaim",
    "io.k8s.api.storage.v1.StorageClass",
    "io.k8s.api.core.v1.Event",
    "io.k8s.api.events.v1.Event",
    "io.k8s.api.coordination.v1.Lease",
    "io.k8s.api.apps.v1.ReplicaSet",
    "io.k8s.api.apps.v1.Deployment",
    "io.k8s.api.autoscaling.v1.Scale",
    "io.k8s.api.core.v1.Binding",
    "io.k8s.api.policy.v1.Eviction",
    "io.k8s.api.authentication.v1.TokenRequest",
    "io.k8s.api.authentication.v1.TokenReview",
    "io.k8s.api.authentication.v1.SelfSubjectReview",
    "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
    "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    "io.k8s.api.authorization.v1.SubjectAccessReview",
    "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
];

/// Fields of `k8s-pb`'s older release that are gone from [`RELEASE`]: alpha ones, by type and protobuf name.
const GONE: &[(&str, &str)] = &[("io.k8s.api.core.v1.PodSpec", "workload_ref")];

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// The path of the committed table, from the root of the workspace.
const TABLE: &str = "api/schema/table.txt";
const GO_FACTS: &str = "api/schema/go.txt";

/// Writes a fresh table into the work tree.
pub fn write() -> Result<String> {
    let fresh = generate()?;
    let path = root().join(TABLE);
    fs::write(&path, &fresh).with_context(|| format!("writing {}", path.display()))?;
    Ok(format!("wrote {TABLE}: {} lines", fresh.lines().count()))
}

/// Compares the committed table with a fresh one.
pub fn check() -> Result<String> {
    let fresh = generate()?;
    let committed = fs::read_to_string(root().join(TABLE)).with_context(|| format!("reading {TABLE}"))?;
    for (number, (ours, theirs)) in committed.lines().zip(fresh.lines()).enumerate() {
        ensure!(
            ours == theirs,
            "{TABLE}:{}: `{ours}` should be `{theirs}`\nhint: run `cargo xtask schema`",
            number + 1
        );
    }
    ensure!(committed == fresh, "{TABLE} differs in length\nhint: run `cargo xtask schema`");
    Ok(format!("{TABLE} is up to date"))
}

/// Makes the table's text.
pub fn generate() -> Result<String> {
    let sources = Sources::locate()?;
    let json = JsonTypes::read(&sources.openapi)?;
    let wire = WireTypes::read(&sources.protobuf)?;
    let go = read_go_facts(&root().join(GO_FACTS))?;
    render(&json, &wire, &go)
}

fn root() -> PathBuf {
    let mut dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    dir.pop();
    dir
}

// ---------------------------------------------------------------------------------------------- where the sources are

/// Cargo cannot give us the sources: they are not on this machine, and there is no network to bring them.
#[derive(Debug)]
pub struct NoSources(String);

impl std::fmt::Display for NoSources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cargo metadata: {}", self.0)
    }
}

impl std::error::Error for NoSources {}

struct Sources {
    openapi: PathBuf,
    protobuf: PathBuf,
}

impl Sources {
    fn locate() -> Result<Sources> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let run = |offline: bool| {
            let mut command = Command::new(&cargo);
            command.args(["metadata", "--format-version", "1", "--locked"]).current_dir(root());
            if offline {
                command.arg("--offline");
            }
            command.output()
        };
        let mut output = run(true).context("running cargo metadata")?;
        if !output.status.success() {
            output = run(false).context("running cargo metadata")?;
        }
        if !output.status.success() {
            bail!(NoSources(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("parsing cargo metadata")?;
        let find = |name: &str| -> Result<PathBuf> {
            let package = metadata["packages"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|package| package["name"] == name)
                .with_context(|| format!("the crate `{name}` is not among the workspace's dependencies"))?;
            let manifest = package["manifest_path"].as_str().context("a package without manifest_path")?;
            Ok(Path::new(manifest).parent().context("a manifest without folder")?.join("src"))
        };
        Ok(Sources { openapi: find("k8s-openapi")?.join(RELEASE), protobuf: find("k8s-pb")? })
    }
}

/// All files below `dir`, with their folders relative to it as a module path (`api::core::v1`).
fn modules(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let mut open = vec![(Vec::<String>::new(), dir.to_owned())];
    while let Some((module, dir)) = open.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() {
                let mut inner = module.clone();
                inner.push(name);
                open.push((inner, entry.path()));
            } else if name.ends_with(".rs") {
                found.push((module.join("::"), entry.path()));
            }
        }
    }
    found.sort();
    Ok(found)
}

// ------------------------------------------------------------------------------------------------------- JSON's side

/// The types as `k8s-openapi` has them.
struct JsonTypes {
    by_name: BTreeMap<String, JsonType>,
    /// `api::core::v1::PodSpec` to `io.k8s.api.core.v1.PodSpec`.
    names: BTreeMap<String, String>,
}

struct JsonType {
    /// The module that it was found in, the key to the wire's side.
    module: String,
    rust_name: String,
    fields: Vec<JsonField>,
    /// `apps/v1 Deployment` for what is an object of its own.
    kind: Option<String>,
}

struct JsonField {
    name: String,
    rust_type: String,
}

impl JsonTypes {
    fn read(dir: &Path) -> Result<JsonTypes> {
        let mut types = JsonTypes { by_name: BTreeMap::new(), names: BTreeMap::new() };
        for (module, path) in modules(dir)? {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let Some(name) = text.lines().next().and_then(|line| line.strip_prefix("// Generated from definition "))
            else {
                continue;
            };
            let Some(found) = read_json_type(&module, &text) else { continue };
            types.names.insert(format!("{module}::{}", found.rust_name), name.to_owned());
            types.by_name.insert(name.to_owned(), found);
        }
        ensure!(types.by_name.len() > 300, "only {} types found in k8s-openapi", types.by_name.len());
        Ok(types)
    }
}

fn read_json_type(module: &str, text: &str) -> Option<JsonType> {
    let start = text.find("\npub struct ")? + "\npub struct ".len();
    let rust_name: String = text[start..].chars().take_while(|c| c.is_alphanumeric()).collect();
    // Newtypes (`Quantity`) and empty structs have no block; they are leaves.
    let after = text[start + rust_name.len()..].trim_start();
    let block = match after.strip_prefix('{') {
        Some(block) => block.split("\n}").next().unwrap_or(""),
        None => "",
    };
    let mut json_names = BTreeMap::new();
    for line in text.lines() {
        if let Some((quoted, key)) = line.trim().split_once(" => Field::Key_") {
            json_names.insert(key.trim_end_matches(','), quoted.trim_matches('"'));
        }
    }
    let mut fields = Vec::new();
    for line in block.lines() {
        let Some((ident, rust_type)) = line.trim().strip_prefix("pub ").and_then(|rest| rest.split_once(": ")) else {
            continue;
        };
        let name = json_names.get(ident.trim_start_matches("r#"))?;
        fields.push(JsonField { name: (*name).to_owned(), rust_type: rust_type.trim_end_matches(',').to_owned() });
    }
    let constant = |name: &str| {
        let rest = text.split(&format!("const {name}: &'static str = \"")).nth(1)?;
        rest.split('"').next()
    };
    let resource = text.contains(&format!("impl crate::Resource for {rust_name} "));
    let kind = match (constant("API_VERSION"), constant("KIND")) {
        (Some(version), Some(kind)) if resource => Some(format!("{version} {kind}")),
        _ => None,
    };
    Some(JsonType { module: module.to_owned(), rust_name, fields, kind })
}

// ------------------------------------------------------------------------------------------------- protobuf's side

/// The messages as `k8s-pb` has them, by module and lower-case name (`prost` changes the case of names).
struct WireTypes(BTreeMap<String, WireType>);

struct WireType {
    fields: Vec<WireField>,
    markers: Vec<String>,
}

struct WireField {
    ident: String,
    number: u32,
    /// The key of the message in [`WireTypes`], if it is a single message.
    message: Option<String>,
    markers: Vec<String>,
}

impl WireTypes {
    fn read(dir: &Path) -> Result<WireTypes> {
        let mut types = BTreeMap::new();
        for (module, path) in modules(dir)? {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            read_wire_types(&module, &text, &mut types);
        }
        ensure!(types.len() > 300, "only {} messages found in k8s-pb", types.len());
        Ok(WireTypes(types))
    }

    fn get(&self, module: &str, rust_name: &str) -> Option<&WireType> {
        self.0.get(&wire_key(module, rust_name))
    }
}

fn wire_key(module: &str, rust_name: &str) -> String {
    format!("{module}::{}", rust_name.to_lowercase())
}

fn read_wire_types(module: &str, text: &str, types: &mut BTreeMap<String, WireType>) {
    let mut markers = Vec::new();
    let mut prost = String::new();
    let mut current: Option<(String, WireType)> = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let trimmed = line.trim();
        if let Some(doc) = trimmed.strip_prefix("///") {
            if let Some(marker) = doc.trim().strip_prefix('+') {
                markers.push(marker.to_owned());
            }
        } else if trimmed.starts_with("#[prost(") {
            prost = trimmed.to_owned();
        } else if let Some(name) = trimmed.strip_prefix("pub struct ") {
            let name = name.trim_end_matches(['{', '}', ' ']);
            let found = WireType { fields: Vec::new(), markers: std::mem::take(&mut markers) };
            if trimmed.ends_with("{}") {
                types.insert(wire_key(module, name), found);
            } else {
                current = Some((wire_key(module, name), found));
            }
        } else if let Some(rest) = trimmed.strip_prefix("pub ")
            && let Some((_, found)) = current.as_mut()
            && let Some((ident, rust_type)) = rest.split_once(':')
        {
            let mut rust_type = rust_type.trim().to_owned();
            while !rust_type.ends_with(',') {
                let Some(more) = lines.next() else { break };
                rust_type.push_str(more.trim());
                if rust_type.matches('<').count() > rust_type.matches('>').count() && rust_type.ends_with(',') {
                    rust_type.push(' ');
                }
            }
            let number = prost
                .split("tag = \"")
                .nth(1)
                .and_then(|rest| rest.split('"').next())
                .and_then(|number| number.parse().ok())
                .unwrap_or(0);
            let single = prost.contains("(message, optional") || prost.contains("(message, required");
            let message = single.then(|| resolve(module, &rust_type)).flatten();
            let ident = ident.trim_start_matches("r#").to_owned();
            found.fields.push(WireField { ident, number, message, markers: std::mem::take(&mut markers) });
        } else if trimmed == "}" && line == "}" {
            if let Some((key, found)) = current.take() {
                types.insert(key, found);
            }
            markers.clear();
        } else if !trimmed.starts_with("#[") {
            markers.clear();
        }
    }
}

/// The key of the message that a Rust type names from inside `module`.
fn resolve(module: &str, rust_type: &str) -> Option<String> {
    let inner = rust_type.rsplit('<').next()?.trim_end_matches([',', '>', ' ']);
    let mut path: Vec<&str> = module.split("::").collect();
    let mut parts: Vec<&str> = inner.split("::").collect();
    let name = parts.pop()?;
    for part in parts {
        match part {
            "super" => {
                path.pop()?;
            }
            other => path.push(other),
        }
    }
    Some(wire_key(&path.join("::"), name))
}

// ---------------------------------------------------------------------------------------------------------- Go's side

#[derive(Default, Clone)]
struct GoFact {
    pointer: bool,
    type_name: Option<String>,
    number: Option<String>,
}

/// Type name to field name to fact.
type GoFacts = BTreeMap<String, BTreeMap<String, GoFact>>;

fn read_go_facts(path: &Path) -> Result<GoFacts> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let mut facts = GoFacts::new();
    let mut package = "";
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("package ") {
            package = name;
            continue;
        }
        let mut words = line.split(' ');
        let Some(name) = words.next() else { continue };
        let fields = words
            .map(|word| {
                let pointer = word.starts_with('*');
                let word = word.trim_start_matches('*');
                let (word, number) = match word.split_once('#') {
                    Some((word, number)) => (word, Some(number.to_owned())),
                    None => (word, None),
                };
                let (field, type_name) = match word.split_once(':') {
                    Some((field, go)) => (field, Some(go.to_owned())),
                    None => (word, None),
                };
                (field.to_owned(), GoFact { pointer, type_name, number })
            })
            .collect();
        facts.insert(format!("{package}.{name}"), fields);
    }
    Ok(facts)
}

// ---------------------------------------------------------------------------------------------------------- the table

fn render(json: &JsonTypes, wire: &WireTypes, go: &GoFacts) -> Result<String> {
    let mut rendered = BTreeMap::<(String, String), String>::new();
    let mut open: Vec<String> = ROOTS.iter().map(|name| (*name).to_owned()).collect();
    let mut seen: BTreeSet<String> = open.iter().cloned().collect();
    let mut faults = Vec::new();
    while let Some(name) = open.pop() {
        let Some(found) = json.by_name.get(&name) else { bail!("k8s-openapi has no type `{name}`") };
        let (package, short) = name.rsplit_once('.').context("a type without package")?;
        let join = Join { name: &name, package, go: go.get(&name), json, wire };
        let text = join.render(short, found, &mut faults)?;
        rendered.insert((package.to_owned(), short.to_owned()), text);
        for field in &found.fields {
            let (_, mentioned) = json_type(&field.rust_type, json)?;
            if let Some(mentioned) = mentioned
                && seen.insert(mentioned.clone())
            {
                open.push(mentioned);
            }
        }
        // A list type exists for each kind that protobuf has one for.
        if found.kind.is_some() && wire.get(&found.module, &format!("{}List", found.rust_name)).is_some() {
            let list = format!("{short}List");
            let (version, kind) = found.kind.as_deref().and_then(|kind| kind.split_once(' ')).unwrap_or_default();
            let text = format!(
                "type {list} kind={version}/{kind}List\n\tapiVersion - string\n\tkind - string\n\tmetadata 1 {META}.ListMeta\n\titems 2 []{short} required\n"
            );
            rendered.insert((package.to_owned(), list), text);
            if seen.insert(format!("{META}.ListMeta")) {
                open.push(format!("{META}.ListMeta"));
            }
        }
    }
    ensure!(faults.is_empty(), "the sources disagree:\n{}", faults.join("\n"));

    let mut out = String::from(
        "# Made by `cargo xtask schema`; do not edit. One type a block, one field a line:\n\
         #   json-name field-number type [required] [ptr] [go=GO-TYPE] [set | map=KEYS | atomic] [merge[=KEY]] [retain] [default=JSON]\n\
         # Numbers with `/` lie in an embedded message, `-` is in JSON only. A name without dots is of the same package.\n",
    );
    let mut package = String::new();
    for ((its_package, _), text) in &rendered {
        if *its_package != package {
            package.clone_from(its_package);
            writeln!(out, "package {package}")?;
        }
        out.push_str(text);
    }
    Ok(out)
}

/// One type's three sides.
struct Join<'a> {
    name: &'a str,
    package: &'a str,
    go: Option<&'a BTreeMap<String, GoFact>>,
    json: &'a JsonTypes,
    wire: &'a WireTypes,
}

struct Numbered<'a> {
    path: String,
    markers: &'a [String],
}

impl<'a> Join<'a> {
    fn render(&self, short: &str, found: &JsonType, faults: &mut Vec<String>) -> Result<String> {
        let wire = self.wire.get(&found.module, &found.rust_name);
        let mut numbered = Vec::new();
        if let Some(wire) = wire {
            let by_key: BTreeMap<String, &JsonField> =
                found.fields.iter().map(|field| (field.name.to_lowercase(), field)).collect();
            self.number(wire, "", &by_key, &mut numbered, &mut |ident| {
                faults.push(format!("{}: no JSON name for `{ident}`", self.name))
            });
        }
        let mut head = format!("type {short}");
        if let Some((version, kind)) = found.kind.as_deref().and_then(|kind| kind.split_once(' ')) {
            write!(head, " kind={version}/{kind}")?;
        }
        if wire.is_some_and(|wire| wire.markers.iter().any(|marker| marker == "structType=atomic")) {
            head.push_str(" atomic");
        }
        let mut lines = vec![head];
        if found.kind.is_some() && !found.fields.iter().any(|field| field.name == "kind") {
            lines.extend(["apiVersion - string".to_owned(), "kind - string".to_owned()]);
        }
        for (field, at) in &numbered {
            lines.push(self.line(field, &at.path, at.markers)?);
        }
        for field in found.fields.iter().rev() {
            if !numbered.iter().any(|(other, _)| other.name == field.name) {
                let fact = self.go.and_then(|go| go.get(&field.name));
                let number = fact.and_then(|fact| fact.number.as_deref()).unwrap_or("-");
                // What JSON alone has is what names the type: it comes first.
                let at = if number == "-" { 1 } else { lines.len() };
                lines.insert(at, self.line(field, number, &[])?);
            }
        }
        Ok(lines.join("\n\t") + "\n")
    }

    /// Pairs the wire's fields with JSON's, going into embedded messages.
    fn number<'f>(
        &self,
        wire: &'a WireType,
        prefix: &str,
        by_key: &BTreeMap<String, &'f JsonField>,
        numbered: &mut Vec<(&'f JsonField, Numbered<'a>)>,
        fault: &mut dyn FnMut(&str),
    ) {
        for field in &wire.fields {
            if GONE.contains(&(self.name, field.ident.as_str())) {
                continue;
            }
            let path = format!("{prefix}{}", field.number);
            let key = field.ident.replace('_', "").to_lowercase();
            if let Some(json) = by_key.get(&key) {
                numbered.push((json, Numbered { path, markers: &field.markers }));
                continue;
            }
            match field.message.as_ref().and_then(|message| self.wire.0.get(message)) {
                Some(embedded) => self.number(embedded, &format!("{path}/"), by_key, numbered, fault),
                None => fault(&field.ident),
            }
        }
    }

    fn line(&self, field: &JsonField, number: &str, markers: &[String]) -> Result<String> {
        let (type_text, mentioned) = json_type(&field.rust_type, self.json)?;
        let local = mentioned.as_deref().and_then(|name| name.strip_prefix(self.package)?.strip_prefix('.'));
        let type_text = match (local, &mentioned) {
            (Some(local), Some(full)) if !local.contains('.') => type_text.replace(full.as_str(), local),
            _ => type_text,
        };
        let mut line = format!("{} {number} {type_text}", field.name);
        let of_meta = type_text.ends_with(".ObjectMeta") || type_text.ends_with(".ListMeta");
        // What has a default is never an `Option` there, and yet not required.
        let optional = markers.iter().any(|marker| marker == "optional");
        if !field.rust_type.starts_with("Option<") && !of_meta && !optional {
            line.push_str(" required");
        }
        if let Some(fact) = self.go.and_then(|go| go.get(&field.name)) {
            if fact.pointer {
                line.push_str(" ptr");
            }
            if let Some(go) = &fact.type_name {
                write!(line, " go={go}")?;
            }
        }
        let value = |name: &str| {
            markers
                .iter()
                .find_map(|marker| marker.strip_prefix(name)?.strip_prefix('='))
                .map(|text| text.trim_matches('"'))
        };
        match value("listType") {
            Some("map") => {
                let keys: Vec<&str> = markers.iter().filter_map(|marker| marker.strip_prefix("listMapKey=")).collect();
                write!(line, " map={}", keys.join(","))?;
            }
            Some("set") => line.push_str(" set"),
            Some("atomic") => line.push_str(" atomic"),
            _ if value("mapType") == Some("atomic") || value("structType") == Some("atomic") => {
                line.push_str(" atomic")
            }
            _ => {}
        }
        let strategies: Vec<&str> = value("patchStrategy").map(|text| text.split(',').collect()).unwrap_or_default();
        if strategies.contains(&"merge") {
            match value("patchMergeKey") {
                Some(key) => write!(line, " merge={key}")?,
                None => line.push_str(" merge"),
            }
        }
        if strategies.contains(&"retainKeys") {
            line.push_str(" retain");
        }
        if let Some(default) = markers.iter().find_map(|marker| marker.strip_prefix("default=")) {
            // `ref(…)` names a Go constant; the few there are have no meaning before their kinds are served.
            if serde_json::from_str::<serde_json::Value>(default).is_ok() {
                write!(line, " default={default}")?;
            }
        }
        Ok(line)
    }
}

/// A Rust type in the table's notation, and the type that it mentions.
fn json_type(rust_type: &str, json: &JsonTypes) -> Result<(String, Option<String>)> {
    let inside = |prefix: &str| rust_type.strip_prefix(prefix).and_then(|rest| rest.strip_suffix('>'));
    if let Some(inner) = inside("Option<").or_else(|| inside("std::boxed::Box<")) {
        return json_type(inner, json);
    }
    if let Some(inner) = inside("std::vec::Vec<") {
        let (text, mentioned) = json_type(inner, json)?;
        return Ok((format!("[]{text}"), mentioned));
    }
    if let Some(inner) = inside("std::collections::BTreeMap<std::string::String, ") {
        let (text, mentioned) = json_type(inner, json)?;
        return Ok((format!("{{}}{text}"), mentioned));
    }
    let leaf = match rust_type {
        "std::string::String" => "string",
        "bool" => "bool",
        "i32" => "int32",
        "i64" => "int64",
        "f64" => "double",
        "crate::ByteString" => "bytes",
        "crate::apimachinery::pkg::api::resource::Quantity" => "quantity",
        "crate::apimachinery::pkg::util::intstr::IntOrString" => "intorstring",
        "crate::apimachinery::pkg::apis::meta::v1::Time" => "time",
        "crate::apimachinery::pkg::apis::meta::v1::MicroTime" => "microtime",
        "crate::apimachinery::pkg::apis::meta::v1::Duration" => "duration",
        "crate::apimachinery::pkg::apis::meta::v1::FieldsV1" => "fieldsv1",
        "crate::apimachinery::pkg::runtime::RawExtension" => "raw",
        other => {
            let path = other.strip_prefix("crate::").with_context(|| format!("an unknown Rust type `{other}`"))?;
            let name = json.names.get(path).with_context(|| format!("no definition for `{other}`"))?;
            return Ok((name.clone(), Some(name.clone())));
        }
    };
    Ok((leaf.to_owned(), None))
}
