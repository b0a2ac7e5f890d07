//! The few forms that our binary encodings are made of: bytes, varints, and length-prefixed bytes.

use bytes::{Buf, Bytes};
use std::sync::Arc;

/// Bytes that are not what this version writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a version that this one does not know.
    #[error("the record has format {0}, this version knows 1")]
    Version(u8),
    /// The bytes end in the middle.
    #[error("the record ends too early")]
    Short,
    /// A tag that no version wrote.
    #[error("the record has the unknown tag {0}")]
    Tag(u8),
    /// A name that is not UTF-8.
    #[error("a name in the record is not UTF-8")]
    Text,
    /// More bytes than the record needs.
    #[error("the record has {0} bytes too many")]
    Rest(usize),
}

/// LEB128.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) struct Reader(Bytes);

impl Reader {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, DecodeError> {
        self.0.try_get_u8().map_err(|_| DecodeError::Short)
    }

    pub(crate) fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Short)
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let len = usize::try_from(self.varint()?).map_err(|_| DecodeError::Short)?;
        if len > self.0.len() {
            return Err(DecodeError::Short);
        }
        Ok(self.0.split_to(len))
    }

    pub(crate) fn text(&mut self) -> Result<Arc<str>, DecodeError> {
        let bytes = self.bytes()?;
        std::str::from_utf8(&bytes).map(Arc::from).map_err(|_| DecodeError::Text)
    }

    pub(crate) fn end(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Rest(self.0.len())) }
    }
}
