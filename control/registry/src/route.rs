//! What a path under `/v2/` names.

use crate::disk::Digest;
use crate::error::{Code, Refusal};
use http::StatusCode;

/// The longest repository name, as Docker's registry allows.
const NAME_LEN_MAX: usize = 255;

/// The longest tag, as the specification says.
const TAG_LEN_MAX: usize = 128;

/// What a request is about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Base,
    Catalog,
    Tags { name: String },
    Manifest { name: String, reference: Reference },
    Blob { digest: Digest },
    Uploads { name: String },
    Upload { name: String, upload: String },
}

/// How a manifest is named.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    Tag(String),
    Digest(Digest),
}

impl Route {
    pub(crate) fn parse(path: &str) -> Result<Self, Refusal> {
        let unknown = || Refusal::new(StatusCode::NOT_FOUND, Code::NameUnknown, format!("`{path}` names nothing"));
        let rest = path.strip_prefix("/v2").ok_or_else(unknown)?.trim_matches('/');
        if rest.is_empty() {
            return Ok(Self::Base);
        }
        if rest == "_catalog" {
            return Ok(Self::Catalog);
        }
        let parts: Vec<&str> = rest.split('/').collect();
        match parts[..] {
            [ref name @ .., "tags", "list"] => Ok(Self::Tags { name: repository(name)? }),
            [ref name @ .., "blobs", "uploads"] => Ok(Self::Uploads { name: repository(name)? }),
            [ref name @ .., "blobs", "uploads", upload] => {
                Ok(Self::Upload { name: repository(name)?, upload: upload.to_owned() })
            }
            [ref name @ .., "manifests", reference] => {
                Ok(Self::Manifest { name: repository(name)?, reference: self::reference(reference)? })
            }
            [ref name @ .., "blobs", digest] => {
                repository(name)?;
                Ok(Self::Blob { digest: digest.parse()? })
            }
            _ => Err(unknown()),
        }
    }
}

/// The value of a key in a query, percent-decoded as far as digests need it.
pub(crate) fn query_value(query: &str, key: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.replace("%3A", ":").replace("%3a", ":"))
}

/// A repository's name: lower-case parts with `.`, `_`, `-` between letters and digits.
fn repository(parts: &[&str]) -> Result<String, Refusal> {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let part_fits = |part: &&str| {
        let bytes = part.as_bytes();
        let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(byte);
        edge(bytes.first().copied()) && edge(bytes.last().copied()) && bytes.iter().all(inner) && !part.contains("..")
    };
    let name = parts.join("/");
    if parts.is_empty() || name.len() > NAME_LEN_MAX || !parts.iter().all(part_fits) {
        let message = format!(
            "`{name}` is no repository name: lower-case letters, digits, `.`, `_` and `-`, in parts divided by `/`"
        );
        return Err(Refusal::new(StatusCode::BAD_REQUEST, Code::NameInvalid, message));
    }
    Ok(name)
}

fn reference(text: &str) -> Result<Reference, Refusal> {
    if text.contains(':') {
        return Ok(Reference::Digest(text.parse()?));
    }
    let first = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let rest = |byte: u8| first(byte) || byte == b'.' || byte == b'-';
    let fits = text.len() <= TAG_LEN_MAX && text.bytes().next().is_some_and(first) && text.bytes().all(rest);
    if !fits {
        let message = format!("`{text}` is neither a tag nor a digest");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, Code::ManifestInvalid, message));
    }
    Ok(Reference::Tag(text.to_owned()))
}
