//! `kubectl`'s JSONPath templates: text, and in braces paths, literals and `{range …}…{end}`.
//!
//! The dialect is older than RFC 9535 and differs from it: several paths make one text, results are joined by a
//! space, a slice past the end is an error, a missing field is nothing, a dot in a key is written `\.`. `parse` reads
//! a template, `eval` follows it through an object; both are pure. What they do is `kubectl`'s answer to the same
//! template on the same object, and the tests hold them to that.

mod eval;
mod parse;

use crate::goform;
use serde_json::Value as Tree;
use std::borrow::Cow;
use std::fmt;

/// Why a template cannot be read, or cannot be followed through an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is not a template.
    #[error("the jsonpath template `{template}`: {why}")]
    Malformed {
        /// The template.
        template: String,
        /// What is wrong with it.
        why: Fault,
    },
    /// The object is not of the form that it expects.
    #[error("following the jsonpath template `{template}`: {why}")]
    Unfit {
        /// The template.
        template: String,
        /// Where it went wrong.
        why: Fault,
    },
    /// It leads nowhere in any of the objects.
    #[error("none of the objects has a field at `{template}`")]
    Absent {
        /// The template.
        template: String,
    },
}

/// What is wrong, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! fault {
    ($($words:tt)*) => { $crate::jsonpath::Fault(format!($($words)*)) };
}
use fault;

/// A template that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    text: String,
    segments: Vec<Segment>,
}

/// A part of a template: what stands between two braces, or outside of them.
#[derive(Clone, Debug, PartialEq)]
enum Segment {
    /// Stands as it is.
    Text(String),
    /// `{…}`: the results of a path.
    Path(Vec<Step>),
    /// `{range …}…{end}`: the body once for each result.
    Range { over: Vec<Step>, body: Vec<Segment> },
}

/// A step of a path: makes new results from those of the step before.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// A quoted text: one result, whatever came before.
    Text(String),
    /// A number or truth value in place of each result.
    Constant(Tree),
    /// `.name`, `['name']`
    Field(String),
    /// `.*`
    Wildcard,
    /// `..`: each value and all that is below it, except numbers, truth values and what is empty.
    Recursive,
    /// `[1]`, `[-1]`, `[1:3]`, `[::2]`, `[*]`
    Slice(Slice),
    /// `[?(@.a=="b")]`, `[?(@.a)]`
    Filter { left: Vec<Step>, compared: Option<(Operator, Vec<Step>)> },
    /// `[0,2]`, `['a','b']`
    Union(Vec<Vec<Step>>),
}

/// Which entries of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slice {
    /// One, from the end if negative.
    At(i64),
    /// From one to before another, in steps.
    Between { start: Option<i64>, end: Option<i64>, step: Option<i64> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let segments =
            parse::template(text).map_err(|why| TemplateError::Malformed { template: text.to_owned(), why })?;
        Ok(Self { text: text.to_owned(), segments })
    }

    /// Reads one path, for which the braces and the first dot may be left out: `metadata.name`.
    pub fn parse_relaxed(path: &str) -> Result<Self, TemplateError> {
        let inner = path.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(path);
        let inner = inner.strip_prefix('.').unwrap_or(inner);
        if inner.is_empty() || inner.contains(['{', '}']) {
            let why = fault!("it is no path such as `.metadata.name`");
            return Err(TemplateError::Malformed { template: path.to_owned(), why });
        }
        Self::parse(&format!("{{.{inner}}}"))
    }

    /// The results for one object: a list for each text and path of the template, in order.
    fn results<'a>(&self, object: &'a Tree) -> Result<Vec<eval::Values<'a>>, TemplateError> {
        let mut found = Vec::new();
        eval::segments(&self.segments, object, &mut found)
            .map_err(|why| TemplateError::Unfit { template: self.text.clone(), why })?;
        Ok(found)
    }

    /// The text that the template makes of an object.
    pub fn text(&self, object: &Tree) -> Result<String, TemplateError> {
        let texts =
            |values: eval::Values<'_>| values.iter().map(|value| goform::print(value)).collect::<Vec<_>>().join(" ");
        Ok(self.results(object)?.into_iter().map(texts).collect())
    }

    /// The results as JSON lists, one for each text and path of the template.
    pub fn json(&self, object: &Tree) -> Result<String, TemplateError> {
        let list = |values: eval::Values<'_>| {
            let list = values.into_iter().map(Cow::into_owned).collect();
            goform::json_pretty(&Tree::Array(list)) + "\n"
        };
        Ok(self.results(object)?.into_iter().map(list).collect())
    }

    /// That it leads nowhere.
    pub(crate) fn absent(&self) -> TemplateError {
        TemplateError::Absent { template: self.text.clone() }
    }

    /// All results of a path, without their places in the text.
    pub fn values(&self, object: &Tree) -> Result<Vec<Tree>, TemplateError> {
        Ok(self.results(object)?.into_iter().flatten().map(Cow::into_owned).collect())
    }
}

#[cfg(test)]
mod tests;
