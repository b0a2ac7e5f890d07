//! The faults of a pod's volumes.

use std::collections::BTreeSet;

use crate::field::{Fault, Faults, Path};
use crate::quantity::Quantity;
use crate::{Tree, meta, validate};

/// Highest file mode: rwx for everyone.
const MODE_MAX: i64 = 0o777;

/// Finds the faults and gives the names of the volumes that mounts may refer to.
pub(super) fn validate<'a>(path: &Path<'_>, spec: &'a Tree, faults: &mut Faults) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for (i, volume) in meta::list(spec, "volumes").iter().enumerate() {
        let path = path.index(i);
        let name = meta::text(volume, "name");
        let before = faults.len();
        if name.is_empty() {
            faults.push(Fault::required(path.field("name"), ""));
        } else {
            validate::push_all(&path.field("name"), name, validate::dns1123_label(name), faults);
        }
        if names.contains(name) {
            faults.push(Fault::duplicate(path.field("name"), name));
        }
        if faults.len() == before {
            names.insert(name);
        }
        source(&path, volume, faults);
    }
    names
}

fn source(path: &Path<'_>, volume: &Tree, faults: &mut Faults) {
    let sources = volume.as_object().into_iter().flatten().filter(|(key, value)| *key != "name" && !value.is_null());
    let mut count = 0;
    for (name, source) in sources {
        count += 1;
        let path = path.field(name);
        if count > 1 {
            faults.push(Fault::forbidden(path, "may not specify more than one volume type"));
            continue;
        }
        match name.as_str() {
            "emptyDir" => empty_dir(&path, source, faults),
            "hostPath" => host_path(&path, source, faults),
            "secret" => files(&path, source, "secretName", faults),
            "configMap" => files(&path, source, "name", faults),
            "downwardAPI" => downward(&path, source, faults),
            "projected" => projected(&path, source, faults),
            "persistentVolumeClaim" => required(&path, source, "claimName", faults),
            "image" => required(&path, source, "reference", faults),
            _ => {}
        }
    }
    if count == 0 {
        faults.push(Fault::required(path, "must specify a volume type"));
    }
}

fn required(path: &Path<'_>, source: &Tree, field: &str, faults: &mut Faults) {
    if meta::text(source, field).is_empty() {
        faults.push(Fault::required(path.field(field), ""));
    }
}

fn empty_dir(path: &Path<'_>, source: &Tree, faults: &mut Faults) {
    let size = Quantity::parse(meta::text(source, "sizeLimit"));
    if size.is_ok_and(|size| size.is_negative()) {
        faults.push(Fault::forbidden(path.field("sizeLimit"), "SizeLimit field must be a valid resource quantity"));
    }
}

/// Finds the faults of a `hostPath`.
pub(in crate::kinds) fn host_path(path: &Path<'_>, source: &Tree, faults: &mut Faults) {
    let host = meta::text(source, "path");
    if host.is_empty() {
        faults.push(Fault::required(path.field("path"), ""));
    } else if host.split('/').any(|part| part == "..") {
        faults.push(Fault::invalid(path.field("path"), host, "must not contain '..'"));
    }
    let types = ["BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    validate::one_of(&path.field("type"), meta::text(source, "type"), &types, faults);
}

fn files(path: &Path<'_>, source: &Tree, name: &str, faults: &mut Faults) {
    required(path, source, name, faults);
    mode(&path.field("defaultMode"), meta::int(source, "defaultMode"), faults);
    key_paths(&path.field("items"), source, faults);
}

fn key_paths(path: &Path<'_>, source: &Tree, faults: &mut Faults) {
    for (i, item) in meta::list(source, "items").iter().enumerate() {
        let path = path.index(i);
        required(&path, item, "key", faults);
        file_path(&path.field("path"), meta::text(item, "path"), faults);
        mode(&path.field("mode"), meta::int(item, "mode"), faults);
    }
}

fn file_path(path: &Path<'_>, file: &str, faults: &mut Faults) {
    if file.is_empty() {
        faults.push(Fault::required(path, ""));
        return;
    }
    relative(path, file, faults);
    if file.starts_with("..") && !file.split('/').any(|part| part == "..") {
        faults.push(Fault::invalid(path, file, "must not start with '..'"));
    }
}

/// A path that must stay below where it is put.
pub(super) fn relative(path: &Path<'_>, file: &str, faults: &mut Faults) {
    if file.starts_with('/') {
        faults.push(Fault::invalid(path, file, "must be a relative path"));
    }
    if file.split('/').any(|part| part == "..") {
        faults.push(Fault::invalid(path, file, "must not contain '..'"));
    }
}

fn mode(path: &Path<'_>, mode: Option<i64>, faults: &mut Faults) {
    if let Some(mode) = mode.filter(|mode| !(0..=MODE_MAX).contains(mode)) {
        let words = "must be a number between 0 and 0777 (octal), both inclusive";
        faults.push(Fault::invalid(path, mode, words));
    }
}

fn downward(path: &Path<'_>, source: &Tree, faults: &mut Faults) {
    const FIELDS: &[&str] =
        &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
    mode(&path.field("defaultMode"), meta::int(source, "defaultMode"), faults);
    let items = path.field("items");
    for (i, item) in meta::list(source, "items").iter().enumerate() {
        let path = items.index(i);
        file_path(&path.field("path"), meta::text(item, "path"), faults);
        match (meta::at(item, "fieldRef"), meta::at(item, "resourceFieldRef")) {
            (Some(_), Some(_)) => {
                let words = "fieldRef and resourceFieldRef can not be specified simultaneously";
                faults.push(Fault::invalid(path, "resource", words));
            }
            (Some(reference), None) => {
                super::container::field_ref(&path.field("fieldRef"), reference, FIELDS, faults);
            }
            (None, Some(_)) => {}
            (None, None) => faults.push(Fault::required(path, "one of fieldRef and resourceFieldRef is required")),
        }
        mode(&path.field("mode"), meta::int(item, "mode"), faults);
    }
}

fn projected(path: &Path<'_>, source: &Tree, faults: &mut Faults) {
    mode(&path.field("defaultMode"), meta::int(source, "defaultMode"), faults);
    let sources = path.field("sources");
    let mut taken = BTreeSet::new();
    for (i, entry) in meta::list(source, "sources").iter().enumerate() {
        let path = sources.index(i);
        let given = entry.as_object().into_iter().flatten().filter(|(_, projection)| !projection.is_null());
        for (count, (name, projection)) in given.enumerate() {
            let path = path.field(name);
            if count > 0 {
                faults.push(Fault::forbidden(path, "may not specify more than 1 volume type per source"));
                continue;
            }
            match name.as_str() {
                "secret" | "configMap" => files(&path, projection, "name", faults),
                "downwardAPI" => downward(&path, projection, faults),
                "serviceAccountToken" => token(&path, projection, faults),
                _ => {}
            }
            for file in chosen_paths(projection) {
                if !taken.insert(file) {
                    let words = "conflicting duplicate paths";
                    faults.push(Fault::invalid(path, file, words));
                }
            }
        }
    }
}

/// The paths that a source names itself; those that follow from the keys of an object are not known yet.
fn chosen_paths(projection: &Tree) -> impl Iterator<Item = &str> {
    let items = meta::list(projection, "items").iter().map(|item| meta::text(item, "path"));
    items.chain([meta::text(projection, "path")]).filter(|path| !path.is_empty())
}

/// How long a token of a ServiceAccount is good for, at the least and at the most.
const TOKEN_SECONDS: (i64, i64) = (600, 1 << 32);

fn token(path: &Path<'_>, source: &Tree, faults: &mut Faults) {
    file_path(&path.field("path"), meta::text(source, "path"), faults);
    let at = path.field("expirationSeconds");
    match meta::int(source, "expirationSeconds") {
        Some(seconds) if seconds < TOKEN_SECONDS.0 => {
            faults.push(Fault::invalid(at, seconds, "may not specify a duration less than 10 minutes"));
        }
        Some(seconds) if seconds > TOKEN_SECONDS.1 => {
            faults.push(Fault::invalid(at, seconds, "may not specify a duration larger than 2^32 seconds"));
        }
        _ => {}
    }
}
