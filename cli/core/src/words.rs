//! Types and names of resources as people write them on a command line.

/// Why words name nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// There are none.
    #[error("name a type, such as `pods`, or a type and a name, such as `deployment/web`")]
    Nothing,
    /// Both forms at once.
    #[error("`{0}` mixes the form TYPE/NAME with the form TYPE NAME")]
    Mixed(String),
    /// Nothing before the slash, or another slash.
    #[error("`{0}` is not of the form TYPE/NAME")]
    Form(String),
    /// No object has an empty name; to take it for none would mean all objects of the type.
    #[error("{0} name may not be empty")]
    Empty(&'static str),
    /// A part of a path with another meaning.
    #[error("{0} name `{1}` is invalid: it may not contain `/` or `%`, nor be `.` or `..`")]
    Name(&'static str, String),
    /// A manifest is for another namespace than the command line.
    #[error(
        "the namespace from the provided object \"{0}\" does not match the namespace \"{1}\". You must pass \
         '--namespace={0}' to perform this operation."
    )]
    Namespace(String, String),
}

/// The namespace that is meant when a manifest names none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The kubeconfig's; a manifest may name another.
    Default(String),
    /// That of the command line; a manifest must not name another.
    Given(String),
}

impl Scope {
    /// The namespace's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Default(name) | Self::Given(name) => name,
        }
    }

    /// The namespace of an object whose manifest names this one.
    pub fn of<'a>(&'a self, named: Option<&'a str>) -> Result<&'a str, WordError> {
        match (self, named.filter(|name| !name.is_empty())) {
            (Self::Given(given), Some(named)) if given != named => {
                Err(WordError::Namespace(named.to_owned(), given.clone()))
            }
            (_, Some(named)) => Ok(named),
            (_, None) => Ok(self.name()),
        }
    }
}

/// `TYPE NAME…` or `TYPE/NAME…`: the type's word and the names with it.
pub fn targets(words: &[String]) -> Result<Vec<(String, Option<String>)>, WordError> {
    let one = |kind: &str, name: &str| Ok((kind.to_owned(), Some(checked_name("resource", name.to_owned())?)));
    match words {
        [] => Err(WordError::Nothing),
        words if words.iter().all(|word| word.contains('/')) => words
            .iter()
            .map(|word| match word.split_once('/') {
                Some((kind, name)) if !kind.is_empty() && !name.contains('/') => one(kind, name),
                _ => Err(WordError::Form(word.clone())),
            })
            .collect(),
        [kind] if kind.is_empty() => Err(WordError::Nothing),
        [kind] => Ok(vec![(kind.clone(), None)]),
        [kind, names @ ..] => {
            if let Some(mixed) = words.iter().find(|word| word.contains('/')) {
                return Err(WordError::Mixed(mixed.clone()));
            }
            names.iter().map(|name| one(kind, name)).collect()
        }
    }
}

/// A name that is no more than one part of a path, as `kubectl` demands it; what else it must be the server knows.
pub fn checked_name(what: &'static str, name: String) -> Result<String, WordError> {
    match name.as_str() {
        "" => Err(WordError::Empty(what)),
        "." | ".." => Err(WordError::Name(what, name)),
        text if text.contains(['/', '%']) => Err(WordError::Name(what, name)),
        _ => Ok(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_of_another_namespace_than_that_of_the_command_line_is_refused() {
        let (default, given) = (Scope::Default("a".to_owned()), Scope::Given("a".to_owned()));
        for (scope, named, expected) in [
            (&default, None, Some("a")),
            (&default, Some(""), Some("a")),
            (&default, Some("b"), Some("b")),
            (&given, None, Some("a")),
            (&given, Some("a"), Some("a")),
            (&given, Some("b"), None),
        ] {
            assert_eq!(scope.of(named).ok(), expected, "{scope:?} {named:?}");
        }
        let words = "the namespace from the provided object \"b\" does not match the namespace \"a\". You must pass \
                     '--namespace=b' to perform this operation.";
        assert_eq!(given.of(Some("b")).unwrap_err().to_string(), words);
    }

    #[test]
    fn both_forms_of_targets_are_understood_and_nothing_else() {
        type Found = Result<&'static [(&'static str, &'static str)], &'static str>;
        let cases: &[(&[&str], Found)] = &[
            (&["pods"], Ok(&[("pods", "")])),
            (&["pod", "a", "b"], Ok(&[("pod", "a"), ("pod", "b")])),
            (&["pod/a", "svc/b"], Ok(&[("pod", "a"), ("svc", "b")])),
            (&[], Err("name a type")),
            (&[""], Err("name a type")),
            (&["pod", "a/b"], Err("`a/b` mixes")),
            (&["/a"], Err("`/a` is not of the form")),
            (&["pod/a/b"], Err("`pod/a/b` is not of the form")),
            (&["pod/"], Err("resource name may not be empty")),
            (&["pod", ""], Err("resource name may not be empty")),
            (&["pod", "a", ""], Err("resource name may not be empty")),
            (&["pod", ".."], Err("resource name `..` is invalid")),
            (&["pod", "a%20"], Err("resource name `a%20` is invalid")),
        ];
        for (words, expected) in cases {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            match (targets(&words), expected) {
                (Ok(found), Ok(expected)) => {
                    let found: Vec<_> =
                        found.iter().map(|(kind, name)| (kind.as_str(), name.as_deref().unwrap_or(""))).collect();
                    assert_eq!(found, *expected, "{words:?}");
                }
                (Err(error), Err(expected)) => assert!(error.to_string().starts_with(expected), "{words:?}: {error}"),
                (found, _) => panic!("{words:?}: {found:?}"),
            }
        }
    }
}
