//! A fast 64-bit hash with a fixed definition: it goes to disk and is compared between members, so it may never depend
//! on a library's version. It finds accidents, not attacks.

/// Collects bytes eight at a time.
pub(crate) struct Hasher(u64);

const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher {
    pub(crate) fn new() -> Self {
        Self(0x243f_6a88_85a3_08d3)
    }

    pub(crate) fn word(&mut self, word: u64) {
        self.0 = mix(self.0.rotate_left(23) ^ word);
    }

    /// The length goes in first, so that two neighbouring texts cannot trade letters.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.word(u64::from_le_bytes(last));
    }

    pub(crate) fn finish(self) -> u64 {
        mix(self.0)
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 32)).wrapping_mul(SPREAD);
    z ^ (z >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: &[&str]) -> u64 {
        let mut hasher = Hasher::new();
        parts.iter().for_each(|part| hasher.bytes(part.as_bytes()));
        hasher.finish()
    }

    #[test]
    fn the_definition_does_not_change() {
        assert_eq!(of(&["pods", "default", "web"]), of(&["pods", "default", "web"]));
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["a\0"]), of(&["a"]));
        assert_eq!(
            of(&["a database on disk holds this number"]),
            13_897_916_691_246_217_030,
            "changing the hash needs a new format version"
        );
    }
}
