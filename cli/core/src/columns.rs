//! Tables whose columns are paths into the objects: `-o custom-columns=NAME:.metadata.name`.

use crate::goform;
use crate::jsonpath::{Template, TemplateError};
use serde_json::Value as Tree;

/// Why columns cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ColumnsError {
    /// A column has no path.
    #[error("expected HEADER:PATH, got `{0}`")]
    Column(String),
    /// The two lines of a file do not fit each other.
    #[error("a file of columns has a line of headers and a line with as many paths, not {headers} and {paths}")]
    File {
        /// How many headers.
        headers: usize,
        /// How many paths.
        paths: usize,
    },
    /// A path is none.
    #[error(transparent)]
    Path(#[from] TemplateError),
}

/// The columns of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Columns(Vec<(String, Template)>);

impl Columns {
    /// Reads `HEADER:PATH,…`.
    pub fn parse(text: &str) -> Result<Self, ColumnsError> {
        let column = |text: &str| {
            let (header, path) = text.split_once(':').ok_or_else(|| ColumnsError::Column(text.to_owned()))?;
            // A column without a path is empty, as with `kubectl`.
            let path = if path.is_empty() { Template::parse("")? } else { Template::parse_relaxed(path)? };
            Ok((header.to_owned(), path))
        };
        text.split(',').map(column).collect::<Result<_, ColumnsError>>().map(Self)
    }

    /// Reads a line of headers and a line of paths, both separated by blanks.
    pub fn parse_file(text: &str) -> Result<Self, ColumnsError> {
        let mut lines = text.lines();
        let mut words = || lines.next().map(|line| line.split_whitespace().collect::<Vec<_>>()).unwrap_or_default();
        let (headers, paths) = (words(), words());
        if headers.is_empty() || headers.len() != paths.len() {
            return Err(ColumnsError::File { headers: headers.len(), paths: paths.len() });
        }
        let column = |(header, path): (&str, &str)| Ok((header.to_owned(), Template::parse_relaxed(path)?));
        headers.into_iter().zip(paths).map(column).collect::<Result<_, ColumnsError>>().map(Self)
    }

    /// The heads of the columns.
    pub fn heading(&self) -> Vec<String> {
        self.0.iter().map(|(header, _)| header.clone()).collect()
    }

    /// The cells of one object.
    pub fn row(&self, object: &Tree) -> Result<Vec<String>, TemplateError> {
        let cell = |(_, path): &(String, Template)| {
            let values = path.values(object)?;
            if values.is_empty() {
                return Ok("<none>".to_owned());
            }
            Ok(values.iter().map(goform::value).collect::<Vec<_>>().join(","))
        };
        self.0.iter().map(cell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_are_what_the_paths_lead_to() {
        let object = json!({"a": "x", "list": [{"n": 1}, {"n": 2}], "map": {"k": "v"}});
        let columns = Columns::parse("A:.a,N:list[*].n,MAP:{.map},NONE:.nope,EMPTY:").unwrap();
        assert_eq!(columns.heading(), ["A", "N", "MAP", "NONE", "EMPTY"]);
        assert_eq!(columns.row(&object).unwrap(), ["x", "1,2", "map[k:v]", "<none>", "<none>"]);
        assert_eq!(Columns::parse_file("A N\n.a list[*].n\n").unwrap().row(&object).unwrap(), ["x", "1,2"]);
        for bad in ["", "A", "A:.a,", "A:{.a}{.b}"] {
            assert!(Columns::parse(bad).is_err(), "{bad}");
        }
        assert!(Columns::parse_file("A B\n.a").is_err());
    }
}
