//! Refusals in the words of the specification ("Error Codes").

use http::StatusCode;
use http::header::HeaderName;
use serde_json::json;
use std::io;

/// The digest of what is answered.
pub(crate) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The identity of an upload, for clients that do not follow `Location`.
pub(crate) const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// The specification's codes, as far as they are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    TooManyRequests,
    Unsupported,
}

impl Code {
    fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unsupported => "UNSUPPORTED",
        }
    }
}

/// Why a request is not done.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(crate) fn name_unknown(name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, Code::NameUnknown, format!("the repository `{name}` is not known"))
    }

    pub(crate) fn internal(err: &dyn std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Code::Unsupported, format!("the registry's disk: {err}"))
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        json!({ "errors": [{ "code": self.code.as_str(), "message": self.message }] }).to_string().into_bytes()
    }
}

impl From<io::Error> for Refusal {
    fn from(err: io::Error) -> Self {
        Self::internal(&err)
    }
}
