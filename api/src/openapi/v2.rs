//! The OpenAPI v2 document of everything served, for clients that know no v3: `kubectl` up to 1.28, Argo CD, old helm.
//!
//! It is derived from the v3 documents. Clients ask for it as a protobuf message (gnostic's `openapi.v2.Document`), so
//! the JSON form is only the way there and the answer to who asks for JSON.

use serde_json::{Map, json};

use super::{INT_OR_STRING, QUANTITY, VERSION};
use crate::Tree;
use crate::protobuf::Writer;
use crate::schema;

/// Makes the document from the v3 documents.
pub(super) fn document(v3: impl IntoIterator<Item = Tree>) -> Tree {
    let (mut paths, mut definitions) = (Map::new(), Map::new());
    for mut document in v3 {
        if let Some(Tree::Object(found)) = document.pointer_mut("/components/schemas") {
            definitions.extend(std::mem::take(found).into_iter().map(|(name, schema)| {
                let schema = definition(&name, schema);
                (name, schema)
            }));
        }
        if let Some(Tree::Object(found)) = document.get_mut("paths") {
            paths.extend(std::mem::take(found).into_iter().map(|(path, item)| (path, path_item(item))));
        }
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths,
        "definitions": definitions,
    })
}

// ----------------------------------------------------------------------------------------------------- from v3 to v2

fn definition(name: &str, schema: Tree) -> Tree {
    let Tree::Object(mut map) = schema else { return schema };
    match name {
        QUANTITY => {
            map.remove("oneOf");
            map.insert("type".to_owned(), "string".into());
        }
        INT_OR_STRING => {
            map.remove("oneOf");
            map.insert("type".to_owned(), "string".into());
        }
        // Without a type, clients take any content.
        _ if schema::short(name) == "JSON" => drop(map.remove("type")),
        _ => {}
    }
    schema_of(Tree::Object(map))
}

/// A schema with v2's references, which stand beside a description.
fn schema_of(schema: Tree) -> Tree {
    let Tree::Object(map) = schema else { return schema };
    let mut made = Map::new();
    for (key, value) in map {
        match (key.as_str(), value) {
            ("$ref", Tree::String(target)) => {
                made.insert(key, target.replace("#/components/schemas/", "#/definitions/").into());
            }
            ("allOf", Tree::Array(mut all)) => {
                if let Some(Tree::Object(only)) = all.pop().map(schema_of) {
                    made.extend(only);
                }
            }
            ("default", _) => {}
            ("properties", Tree::Object(properties)) => {
                let properties: Map<_, _> =
                    properties.into_iter().map(|(name, property)| (name, schema_of(property))).collect();
                made.insert(key, properties.into());
            }
            ("items" | "additionalProperties", value) => drop(made.insert(key, schema_of(value))),
            (_, value) => drop(made.insert(key, value)),
        }
    }
    Tree::Object(made)
}

fn path_item(item: Tree) -> Tree {
    let Tree::Object(map) = item else { return item };
    let made = map.into_iter().map(|(key, value)| {
        let value = if key == "parameters" { parameters(value) } else { operation(value) };
        (key, value)
    });
    Tree::Object(made.collect())
}

fn operation(operation: Tree) -> Tree {
    let Tree::Object(mut map) = operation else { return operation };
    let mut all = match map.remove("parameters").map(parameters) {
        Some(Tree::Array(all)) => all,
        _ => Vec::new(),
    };
    let media = |content: &Tree| -> Tree {
        content.as_object().into_iter().flatten().map(|(media, _)| media.as_str()).collect()
    };
    let schema = |content: &Tree| {
        let first = content.as_object().and_then(|content| content.values().next());
        first.and_then(|first| first.get("schema")).cloned().map(schema_of)
    };
    if let Some(body) = map.remove("requestBody") {
        map.insert("consumes".to_owned(), media(&body["content"]));
        let mut parameter = json!({"in": "body", "name": "body"});
        if let (Some(schema), Tree::Object(map)) = (schema(&body["content"]), &mut parameter) {
            if body["required"] == true {
                map.insert("required".to_owned(), true.into());
            }
            map.insert("schema".to_owned(), schema);
        }
        all.push(parameter);
    }
    if !all.is_empty() {
        map.insert("parameters".to_owned(), all.into());
    }
    if let Some(Tree::Object(responses)) = map.get_mut("responses") {
        let mut produces = None;
        for response in responses.values_mut() {
            let Tree::Object(response) = response else { continue };
            if let Some(content) = response.remove("content") {
                produces.get_or_insert_with(|| media(&content));
                response.extend(schema(&content).map(|schema| ("schema".to_owned(), schema)));
            }
        }
        map.extend(produces.map(|produces| ("produces".to_owned(), produces)));
    }
    Tree::Object(map)
}

fn parameters(parameters: Tree) -> Tree {
    let Tree::Array(list) = parameters else { return parameters };
    let flat = list.into_iter().map(|parameter| match parameter {
        Tree::Object(mut map) => {
            if let Some(Tree::Object(schema)) = map.remove("schema") {
                map.extend(schema);
            }
            Tree::Object(map)
        }
        other => other,
    });
    flat.collect()
}

// ---------------------------------------------------------------------------------------------------------- protobuf

/// The document as gnostic's message. Only what [`document`] makes is known here.
pub(super) fn protobuf(document: &Tree) -> Vec<u8> {
    let mut out = Writer::default();
    text(&mut out, 1, &document["swagger"]);
    out.message(2, |info| {
        text(info, 1, &document["info"]["title"]);
        text(info, 2, &document["info"]["version"]);
    });
    out.message(8, |paths| {
        for (path, item) in fields(&document["paths"]) {
            named(paths, 2, path, |out| write_path_item(out, item));
        }
    });
    out.message(9, |definitions| {
        for (name, schema) in fields(&document["definitions"]) {
            named(definitions, 1, name, |out| write_schema(out, schema));
        }
    });
    out.into_bytes()
}

fn write_schema(out: &mut Writer, schema: &Tree) {
    text(out, 1, &schema["$ref"]);
    text(out, 2, &schema["format"]);
    text(out, 4, &schema["description"]);
    for name in schema["required"].as_array().into_iter().flatten() {
        text(out, 19, name);
    }
    if schema["additionalProperties"].is_object() {
        out.message(21, |item| item.message(1, |out| write_schema(out, &schema["additionalProperties"])));
    }
    if schema["type"].is_string() {
        out.message(22, |types| text(types, 1, &schema["type"]));
    }
    if schema["items"].is_object() {
        out.message(23, |items| items.message(1, |out| write_schema(out, &schema["items"])));
    }
    if schema["properties"].is_object() {
        out.message(25, |properties| {
            for (name, property) in fields(&schema["properties"]) {
                named(properties, 1, name, |out| write_schema(out, property));
            }
        });
    }
    write_extensions(out, 31, schema);
}

fn write_path_item(out: &mut Writer, item: &Tree) {
    for (number, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if item[method].is_object() {
            out.message(number, |out| write_operation(out, &item[method]));
        }
    }
    write_parameters(out, 9, &item["parameters"]);
}

fn write_operation(out: &mut Writer, operation: &Tree) {
    texts(out, 1, &operation["tags"]);
    text(out, 5, &operation["operationId"]);
    texts(out, 6, &operation["produces"]);
    texts(out, 7, &operation["consumes"]);
    write_parameters(out, 8, &operation["parameters"]);
    out.message(9, |responses| {
        for (code, response) in fields(&operation["responses"]) {
            named(responses, 1, code, |value| {
                value.message(1, |out| {
                    text(out, 1, &response["description"]);
                    if response["schema"].is_object() {
                        out.message(2, |item| item.message(1, |out| write_schema(out, &response["schema"])));
                    }
                });
            });
        }
    });
    write_extensions(out, 13, operation);
}

fn write_parameters(out: &mut Writer, number: u32, parameters: &Tree) {
    for parameter in parameters.as_array().into_iter().flatten() {
        // An item is a parameter (1) or a reference; a parameter has a body (1) or none (2); one without a body stands
        // in the header, a form, the query (3) or the path (4).
        out.message(number, |item| {
            item.message(1, |item| match parameter["in"].as_str() {
                Some("body") => item.message(1, |out| {
                    text(out, 2, &parameter["name"]);
                    text(out, 3, &parameter["in"]);
                    flag(out, 4, &parameter["required"]);
                    out.message(5, |out| write_schema(out, &parameter["schema"]));
                }),
                Some("path") => item.message(2, |item| item.message(4, |out| write_simple(out, parameter, 5))),
                _ => item.message(2, |item| item.message(3, |out| write_simple(out, parameter, 6))),
            });
        });
    }
}

fn write_simple(out: &mut Writer, parameter: &Tree, type_number: u32) {
    flag(out, 1, &parameter["required"]);
    text(out, 2, &parameter["in"]);
    text(out, 3, &parameter["description"]);
    text(out, 4, &parameter["name"]);
    text(out, type_number, &parameter["type"]);
}

fn write_extensions(out: &mut Writer, number: u32, of: &Tree) {
    for (key, value) in fields(of).filter(|(key, _)| key.starts_with("x-")) {
        // The value is YAML text, and JSON is YAML.
        named(out, number, key, |any| any.bytes(2, format!("{value}\n").as_bytes()));
    }
}

fn named(out: &mut Writer, number: u32, name: &str, value: impl FnOnce(&mut Writer)) {
    out.message(number, |entry| {
        entry.bytes(1, name.as_bytes());
        entry.message(2, value);
    });
}

fn fields(of: &Tree) -> impl Iterator<Item = (&str, &Tree)> {
    of.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

fn text(out: &mut Writer, number: u32, value: &Tree) {
    if let Some(value) = value.as_str() {
        out.bytes(number, value.as_bytes());
    }
}

fn texts(out: &mut Writer, number: u32, values: &Tree) {
    for value in values.as_array().into_iter().flatten() {
        text(out, number, value);
    }
}

fn flag(out: &mut Writer, number: u32, value: &Tree) {
    if *value == true {
        out.varint(number, 1);
    }
}
