//! The forms in which `-o` shows objects.

use crate::kube::{Resource, name_of};
use crate::output;
use anyhow::{Context as _, bail};
use dhow_cli_core::columns::Columns;
use dhow_cli_core::goform;
use dhow_cli_core::jsonpath::Template;
use dhow_cli_core::yaml;
use serde_json::{Value as Tree, json};

/// The forms by name, for errors.
const KNOWN: &str = "wide, yaml, json, name, jsonpath=TEMPLATE, jsonpath-as-json=TEMPLATE, jsonpath-file=FILE, \
                     custom-columns=HEADER:PATH,…, custom-columns-file=FILE";

/// What `-o` asks for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Form {
    /// The server's table with all its columns.
    Wide,
    /// The objects themselves.
    Objects(ObjectForm),
}

/// A form that is made of whole objects.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ObjectForm {
    /// YAML.
    Yaml,
    /// JSON.
    Json,
    /// `pod/web`
    Name,
    /// A template's text.
    JsonPath(Template),
    /// A template's results as JSON.
    JsonPathAsJson(Template),
    /// A table whose columns are paths.
    Columns(Columns),
}

impl Form {
    /// Reads the value of `-o`; a file that it names is read at once.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let (name, argument) = text.split_once('=').unwrap_or((text, ""));
        let argument = || match argument {
            "" => bail!("the form `{name}` needs more: one of {KNOWN}"),
            argument => Ok(argument),
        };
        let file = || {
            let path = argument()?;
            std::fs::read_to_string(path).with_context(|| format!("reading `{path}`"))
        };
        Ok(Self::Objects(match name {
            "wide" => return Ok(Self::Wide),
            "yaml" => ObjectForm::Yaml,
            "json" => ObjectForm::Json,
            "name" => ObjectForm::Name,
            "jsonpath" => ObjectForm::JsonPath(Template::parse(argument()?)?),
            "jsonpath-file" => ObjectForm::JsonPath(Template::parse(&file()?)?),
            "jsonpath-as-json" => ObjectForm::JsonPathAsJson(Template::parse(argument()?)?),
            "custom-columns" => ObjectForm::Columns(Columns::parse(argument()?)?),
            "custom-columns-file" => ObjectForm::Columns(Columns::parse_file(&file()?)?),
            _ => bail!("the form `{text}` is not known: one of {KNOWN}"),
        }))
    }
}

/// Whether a table gets its heading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heading {
    /// Above the first row.
    Shown,
    /// Not at all.
    Hidden,
}

/// What is shown of the objects that were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whole {
    /// The one object that was asked for by its name.
    Object,
    /// A `List` of them.
    List,
}

impl ObjectForm {
    /// Shows what was found.
    pub(crate) fn show(&self, found: &[(&Resource, Tree)], whole: Whole, heading: Heading) -> anyhow::Result<()> {
        let tree = || match found {
            [(_, object)] if whole == Whole::Object => object.clone(),
            found => {
                let items: Vec<_> = found.iter().map(|(_, object)| object).collect();
                json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items})
            }
        };
        match self {
            Self::Yaml => output::write_all(yaml::write(&tree()).as_bytes()),
            Self::Json => output::line(goform::json_pretty(&tree())),
            Self::Name => {
                found.iter().for_each(|(resource, object)| output::line(resource.label(name_of(object))));
            }
            Self::JsonPath(template) => output::write_all(template.text(&tree())?.as_bytes()),
            Self::JsonPathAsJson(template) => output::write_all(template.json(&tree())?.as_bytes()),
            Self::Columns(columns) => {
                let mut rows: Vec<_> = (heading == Heading::Shown).then(|| columns.heading()).into_iter().collect();
                for (_, object) in found {
                    rows.push(columns.row(object)?);
                }
                output::table(&rows);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_known_by_name() {
        let objects = |form| Form::Objects(form);
        assert_eq!(Form::parse("wide").unwrap(), Form::Wide);
        assert_eq!(Form::parse("json").unwrap(), objects(ObjectForm::Json));
        assert_eq!(
            Form::parse("jsonpath={.a}=").unwrap(),
            objects(ObjectForm::JsonPath(Template::parse("{.a}=").unwrap()))
        );
        for (text, expected) in [
            ("toml", "the form `toml` is not known: one of wide, yaml"),
            ("jsonpath", "the form `jsonpath` needs more"),
            ("jsonpath={.a", "the jsonpath template `{.a`: unclosed action"),
            ("jsonpath-file=/nowhere/at/all", "reading `/nowhere/at/all`"),
            ("custom-columns=A", "expected HEADER:PATH, got `A`"),
        ] {
            let err = format!("{:#}", Form::parse(text).unwrap_err());
            assert!(err.starts_with(expected), "{err}");
        }
    }
}
