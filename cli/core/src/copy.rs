//! `dhow cp`: what its two arguments mean, and where each file of an archive belongs.

use std::path::{Path, PathBuf};

/// Why something cannot be copied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// Not of the form `[NAMESPACE/]POD:PATH`.
    #[error("`{0}` is neither a local path nor of the form [NAMESPACE/]POD:PATH; write `./{0}` for a local file")]
    Form(String),
    /// Nothing behind the colon.
    #[error("`{0}` names a pod and no path in it")]
    NoPath(String),
    /// Both here.
    #[error("`{from}` and `{to}` are both local: one of them must be of the form [NAMESPACE/]POD:PATH")]
    BothLocal {
        /// The first argument.
        from: String,
        /// The second one.
        to: String,
    },
    /// Both there.
    #[error("`{from}` and `{to}` are both in pods: one of them must be a local path")]
    BothRemote {
        /// The first argument.
        from: String,
        /// The second one.
        to: String,
    },
    /// An archive that holds something else than was asked for.
    #[error("the pod's archive holds `{0}`, which was not asked for")]
    Stray(String),
}

/// A file or directory in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The pod's namespace, if it is named.
    pub namespace: Option<String>,
    /// The pod.
    pub pod: String,
    /// The path, without needless parts.
    pub path: String,
}

/// What is to be copied where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copy {
    /// Into a pod.
    Up {
        /// From here.
        from: PathBuf,
        /// There.
        to: Remote,
    },
    /// Out of a pod.
    Down {
        /// From there.
        from: Remote,
        /// Here.
        to: PathBuf,
    },
}

impl Copy {
    /// Reads the two arguments.
    pub fn parse(from: &str, to: &str) -> Result<Self, CopyError> {
        let both = || (from.to_owned(), to.to_owned());
        match (remote(from)?, remote(to)?) {
            (None, Some(remote)) => Ok(Self::Up { from: from.into(), to: remote }),
            (Some(remote), None) => Ok(Self::Down { from: remote, to: to.into() }),
            (None, None) => Err(CopyError::BothLocal { from: both().0, to: both().1 }),
            (Some(_), Some(_)) => Err(CopyError::BothRemote { from: both().0, to: both().1 }),
        }
    }
}

fn remote(text: &str) -> Result<Option<Remote>, CopyError> {
    let Some((pod, path)) = text.split_once(':') else { return Ok(None) };
    // What is written as a path is one, whatever its name is.
    if ["/", "./", "../"].iter().any(|start| pod.starts_with(start)) {
        return Ok(None);
    }
    if path.is_empty() {
        return Err(CopyError::NoPath(text.to_owned()));
    }
    let (namespace, pod) = match pod.split_once('/') {
        Some((namespace, pod)) => (Some(namespace.to_owned()), pod),
        None => (None, pod),
    };
    if pod.is_empty() || pod.contains('/') || namespace.as_ref().is_some_and(String::is_empty) {
        return Err(CopyError::Form(text.to_owned()));
    }
    Ok(Some(Remote { namespace, pod: pod.to_owned(), path: clean(path) }))
}

/// A path of a pod without needless parts; never empty. A `/` at its end says that it is a directory, and stays.
fn clean(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let root = if path.starts_with('/') { "/" } else { "" };
    let end = if path.ends_with('/') && !parts.is_empty() { "/" } else { "" };
    match (root, parts.is_empty()) {
        ("", true) => ".".to_owned(),
        (root, _) => format!("{root}{}{end}", parts.join("/")),
    }
}

/// Where in a pod an archive is to be unpacked, and under which name its one file or directory stands in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The directory.
    pub dir: String,
    /// The name.
    pub name: String,
}

/// Where something that is called `name` here goes. Into a directory it goes under its own name, as with `cp`.
pub fn target(path: &str, is_dir: bool, name: &str) -> Target {
    if is_dir || path.ends_with('/') {
        return Target { dir: path.to_owned(), name: name.to_owned() };
    }
    match path.rsplit_once('/') {
        Some(("", last)) => Target { dir: "/".to_owned(), name: last.to_owned() },
        Some((dir, last)) => Target { dir: dir.to_owned(), name: last.to_owned() },
        None => Target { dir: ".".to_owned(), name: path.to_owned() },
    }
}

/// The path below what was asked for at which an archive's entry belongs; empty for that itself. An archive comes from a
/// pod, and may say anything: what it names lies below, or is refused.
pub fn below(asked: &str, entry: &Path) -> Result<PathBuf, CopyError> {
    let stray = || CopyError::Stray(entry.display().to_string());
    let text = entry.to_str().ok_or_else(stray)?;
    let (asked, parts) = (parts(asked), parts(text));
    let rest = parts.strip_prefix(asked.as_slice()).ok_or_else(stray)?;
    if rest.contains(&"..") {
        return Err(stray());
    }
    Ok(rest.iter().collect())
}

fn parts(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_two_arguments_names_a_pod() {
        let there = |namespace: Option<&str>, pod: &str, path: &str| Remote {
            namespace: namespace.map(str::to_owned),
            pod: pod.to_owned(),
            path: path.to_owned(),
        };
        for (from, to, want) in [
            ("a", "web:/data", Ok(Copy::Up { from: "a".into(), to: there(None, "web", "/data") })),
            ("a", "x/web:b//./c/", Ok(Copy::Up { from: "a".into(), to: there(Some("x"), "web", "b/c/") })),
            ("web:.", "out", Ok(Copy::Down { from: there(None, "web", "."), to: "out".into() })),
            ("web:/", "./a:b", Ok(Copy::Down { from: there(None, "web", "/"), to: "./a:b".into() })),
            ("a", "b", Err("`a` and `b` are both local")),
            ("a:1", "b:2", Err("`a:1` and `b:2` are both in pods")),
            ("web:", "a", Err("`web:` names a pod and no path in it")),
            (":x", "a", Err("`:x` is neither a local path")),
            ("a/b/c:x", "a", Err("`a/b/c:x` is neither")),
            ("/c:x", "d", Err("`/c:x` and `d` are both local")),
        ] {
            match (Copy::parse(from, to), want) {
                (Ok(found), Ok(want)) => assert_eq!(found, want),
                (Err(error), Err(want)) => assert!(error.to_string().starts_with(want), "{error}"),
                (found, _) => panic!("{from} {to}: {found:?}"),
            }
        }
    }

    #[test]
    fn what_goes_into_a_directory_keeps_its_name() {
        for (path, is_dir, dir, name) in [
            ("/data", true, "/data", "x"),
            ("/data", false, "/", "data"),
            ("/data/", false, "/data/", "x"),
            ("/data/y", false, "/data", "y"),
            ("y", false, ".", "y"),
            (".", true, ".", "x"),
        ] {
            assert_eq!(target(path, is_dir, "x"), Target { dir: dir.to_owned(), name: name.to_owned() }, "{path}");
        }
    }

    #[test]
    fn an_archive_puts_nothing_elsewhere() {
        for (asked, entry, want) in [
            ("/data/x", "data/x", Some("")),
            ("/data/x", "data/x/", Some("")),
            ("/data/x", "data/x/y/z", Some("y/z")),
            ("/data/x", "/data/x/y", Some("y")),
            (".", "./y", Some("y")),
            ("/", "data/y", Some("data/y")),
            ("/data/x", "data/xy", None),
            ("/data/x", "etc/passwd", None),
            ("/data/x", "data/x/../../y", None),
            (".", "../y", None),
        ] {
            assert_eq!(below(asked, Path::new(entry)).ok(), want.map(PathBuf::from), "{asked} {entry}");
        }
    }
}
