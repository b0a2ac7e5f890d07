//! Secret: settings that not everyone may read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::configmap::{BYTES_MAX, decoded_len, immutable_data};
use super::pod::defaults::set_text;
use super::{Column, Kind, plain};
use crate::field::{Fault, Faults, Path};
use crate::{Tree, meta, validate};

const ACCOUNT_ANNOTATION: &str = "kubernetes.io/service-account.name";

/// Secret.
pub static SECRET: Kind = Kind {
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    schema: "io.k8s.api.core.v1.Secret",
    default,
    validate: validate_data,
    validate_update: |new, old, faults| {
        validate::immutable(&Path::root("type"), new.get("type"), old.get("type"), faults);
        immutable_data(new, old, &["data"], faults);
    },
    columns: &[
        Column::name(),
        Column::new("Type", "What the secret is for."),
        Column::new("Data", "How many entries there are."),
        Column::age(),
    ],
    cells: |tree, now| {
        let entries = meta::map(tree, "data").map_or(0, |map| map.len());
        let name = meta::name(tree).into();
        vec![name, meta::text(tree, "type").into(), entries.to_string().into(), crate::table::age(tree, now)]
    },
    field_labels: &["type"],
    fields: |tree| vec![("type", meta::text(tree, "type").to_owned())],
    ..plain()
};

/// `stringData` is a way to write only: it goes over into `data`.
fn default(tree: &mut Tree) {
    set_text(tree, "type", "Opaque");
    let Some(Tree::Object(texts)) = meta::remove(tree, "stringData") else { return };
    let data = meta::map_of(meta::map_of(tree).entry("data").or_insert(Tree::Null));
    for (key, text) in texts {
        data.insert(key, STANDARD.encode(text.as_str().unwrap_or("")).into());
    }
}

fn validate_data(tree: &Tree, faults: &mut Faults) {
    let path = Path::root("data");
    let mut bytes = 0;
    for (key, value) in meta::texts(tree, "data") {
        validate::push_all(&path.key(key), key, validate::config_key(key), faults);
        bytes += decoded_len(value);
    }
    if bytes > BYTES_MAX {
        faults.push(Fault::too_long(path, BYTES_MAX));
    }
    let has = |key: &str| meta::map(tree, "data").is_some_and(|data| data.contains_key(key));
    let needs = |key: &str, faults: &mut Faults| {
        if !has(key) {
            faults.push(Fault::required(path.key(key), ""));
        }
    };
    match meta::text(tree, "type") {
        "kubernetes.io/service-account-token"
            if meta::annotation(tree, ACCOUNT_ANNOTATION).is_none_or(str::is_empty) =>
        {
            let path = Path::root("metadata.annotations");
            faults.push(Fault::required(path.key(ACCOUNT_ANNOTATION), ""));
        }
        "kubernetes.io/dockercfg" => json_entry(&path, tree, ".dockercfg", faults),
        "kubernetes.io/dockerconfigjson" => json_entry(&path, tree, ".dockerconfigjson", faults),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            needs("username", faults);
            needs("password", faults);
        }
        "kubernetes.io/ssh-auth" => needs("ssh-privatekey", faults),
        "kubernetes.io/tls" => {
            needs("tls.crt", faults);
            needs("tls.key", faults);
        }
        _ => {}
    }
}

fn json_entry(path: &Path<'_>, tree: &Tree, key: &str, faults: &mut Faults) {
    let Some(text) = meta::map(tree, "data").and_then(|data| data.get(key)) else {
        faults.push(Fault::required(path.key(key), ""));
        return;
    };
    let bytes = STANDARD.decode(text.as_str().unwrap_or("")).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<serde_json::Map<String, Tree>>(&bytes) {
        faults.push(Fault::invalid(path.key(key), "<secret contents redacted>", error.to_string()));
    }
}
