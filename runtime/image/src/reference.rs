//! Names of images: `hello`, `team/hello:1.0`, `registry.example.com/hello@sha256:…`.

use std::fmt;
use std::str::FromStr;

/// The tag that is meant when a name has neither tag nor digest.
const TAG_DEFAULT: &str = "latest";
/// As the distribution specification has them.
const REPOSITORY_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// The name of an image, in parts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// The registry's host; `None` is the cluster's own registry.
    pub registry: Option<String>,
    /// The path in the registry.
    pub repository: String,
    /// The tag, if one is named.
    pub tag: Option<String>,
    /// The manifest's digest, if one is named.
    pub digest: Option<String>,
}

/// A text that names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a valid image name: {why}")]
pub struct InvalidReference {
    /// The text.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Reference {
    /// Reads a name. The part before the first `/` is a registry's host if it has a `.` or a `:` or is `localhost`, as
    /// every container tool reads it.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        read(text).map_err(|why| InvalidReference { name: text.to_owned(), why })
    }

    /// What to ask the registry for: the digest, or else the tag, or else `latest`.
    pub fn wanted(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or(TAG_DEFAULT)
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        Self::parse(text)
    }
}

impl fmt::Display for Reference {
    /// The full name; a missing tag is written out, so that equal images have equal texts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(registry) = &self.registry {
            write!(f, "{registry}/")?;
        }
        f.write_str(&self.repository)?;
        match (&self.tag, &self.digest) {
            (Some(tag), _) => write!(f, ":{tag}")?,
            (None, None) => write!(f, ":{TAG_DEFAULT}")?,
            (None, Some(_)) => {}
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

fn read(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err("after `@` stands a digest, `sha256:` and 64 hexadecimal digits");
    }
    let (registry, rest) = match rest.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), rest),
        _ => (None, rest),
    };
    if registry.is_some_and(|host| !is_host(host)) {
        return Err("the part before the first `/` is neither a repository nor a host with a port");
    }
    let (repository, tag) = match rest.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("a tag has letters, digits, `_`, `.` and `-`, at most 128 of them");
    }
    if repository.len() > REPOSITORY_BYTES_MAX {
        return Err("the repository is longer than 255 characters");
    }
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("the repository must be in lower case");
    }
    if !repository.split('/').all(is_component) {
        return Err("the parts of a repository are lower-case letters and digits, separated by `.`, `_` or `-`");
    }
    Ok(Reference {
        registry: registry.map(str::to_owned),
        repository: repository.to_owned(),
        tag: tag.map(str::to_owned),
        digest: digest.map(str::to_owned),
    })
}

/// Whether a text is a SHA-256 digest in the form that registries use.
pub(crate) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

fn is_host(host: &str) -> bool {
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let named =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'));
    named && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=TAG_BYTES_MAX).contains(&tag.len())
        && tag.bytes().enumerate().all(|(at, byte)| word(byte) || (at > 0 && matches!(byte, b'.' | b'-')))
}

fn is_component(part: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends = bytes.first().zip(bytes.last()).is_some_and(|(&first, &last)| word(first) && word(last));
    // Between words stands one `.`, one or two `_`, or any number of `-`.
    let separated = bytes.split(|&byte| word(byte)).all(|separator| {
        separator.is_empty()
            || matches!(separator, [b'.'] | [b'_'] | [b'_', b'_'])
            || separator.iter().all(|&byte| byte == b'-')
    });
    ends && separated
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_are_read_in_parts_and_written_in_full() {
        let with_digest = format!("team/hello@{DIGEST}");
        let with_all = format!("localhost/hello:1@{DIGEST}");
        for (text, registry, repository, wanted, full) in [
            ("hello", None, "hello", "latest", "hello:latest"),
            ("hello:1.0", None, "hello", "1.0", "hello:1.0"),
            ("team/hello-http__x.y", None, "team/hello-http__x.y", "latest", "team/hello-http__x.y:latest"),
            ("ghcr.io/a/b:v1", Some("ghcr.io"), "a/b", "v1", "ghcr.io/a/b:v1"),
            ("host:5000/a", Some("host:5000"), "a", "latest", "host:5000/a:latest"),
            (&with_digest, None, "team/hello", DIGEST, &with_digest),
            (&with_all, Some("localhost"), "hello", DIGEST, &with_all),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!((reference.registry.as_deref(), reference.repository.as_str()), (registry, repository));
            assert_eq!((reference.wanted(), reference.to_string().as_str()), (wanted, full));
            assert_eq!(Reference::parse(full).unwrap().to_string(), full);
        }
    }

    #[test]
    fn what_names_no_image_is_refused() {
        for (text, why) in [
            ("", "empty"),
            ("Hello", "lower case"),
            ("a b", "lower-case letters"),
            ("-a", "lower-case letters"),
            ("a/../b", "lower-case letters"),
            ("a//b", "lower-case letters"),
            ("/a", "lower-case letters"),
            ("a:", "a tag has"),
            ("a:.x", "a tag has"),
            ("a:b/c", "neither a repository nor a host"),
            ("a@sha256:12", "a digest"),
            ("a@md5:x", "a digest"),
            ("ü", "lower-case letters"),
        ] {
            let error = Reference::parse(text).unwrap_err();
            assert!(error.why.contains(why), "{text}: {error}");
        }
        assert!(Reference::parse(&"a".repeat(300)).is_err());
    }
}
