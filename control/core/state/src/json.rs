//! Finds where `metadata.resourceVersion` stands, or would stand, in the text of an object.

use std::ops::Range;

/// Where the revision goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The value that is there, to be replaced.
    Value(Range<usize>),
    /// Just behind the `{` of `metadata`; `only` tells that nothing else is inside.
    Behind { at: usize, only: bool },
}

/// Walks the text only as far as the end of `metadata`. `None` if it is no object with an object `metadata`; text
/// that is no JSON at all gives `None` or some place, never a panic.
pub(crate) fn revision_place(text: &[u8]) -> Option<Place> {
    let mut scan = Scan { text, at: 0 };
    scan.enter_member("metadata")?;
    scan.space();
    if scan.peek()? != b'{' {
        return None;
    }
    let behind = scan.at + 1;
    let mut inner = Scan { text, at: scan.at };
    if inner.enter_member("resourceVersion").is_some() {
        inner.space();
        let start = inner.at;
        inner.value()?;
        return Some(Place::Value(start..inner.at));
    }
    let mut rest = Scan { text, at: behind };
    rest.space();
    Some(Place::Behind { at: behind, only: rest.peek()? == b'}' })
}

/// The text with `revision` as its `metadata.resourceVersion`; every other byte stays as it was.
pub(crate) fn put_revision(text: &[u8], place: &Place, revision: u64) -> Vec<u8> {
    let (cut, middle) = match place {
        Place::Value(range) => (range.clone(), format!("\"{revision}\"")),
        Place::Behind { at, only } => {
            let comma = if *only { "" } else { "," };
            (*at..*at, format!("\"resourceVersion\":\"{revision}\"{comma}"))
        }
    };
    let mut out = Vec::with_capacity(text.len() - cut.len() + middle.len());
    out.extend_from_slice(&text[..cut.start]);
    out.extend_from_slice(middle.as_bytes());
    out.extend_from_slice(&text[cut.end..]);
    out
}

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> Option<()> {
        self.space();
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// From before a `{` to behind the colon of its member `name`.
    fn enter_member(&mut self, name: &str) -> Option<()> {
        self.eat(b'{')?;
        loop {
            self.space();
            let key = self.string()?;
            self.eat(b':')?;
            if names(&self.text[key], name) {
                return Some(());
            }
            self.value()?;
            self.eat(b',')?;
        }
    }

    /// Passes a string, quotes included, and gives what is between them.
    fn string(&mut self) -> Option<Range<usize>> {
        if self.peek()? != b'"' {
            return None;
        }
        self.at += 1;
        let start = self.at;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(start..self.at - 1);
                }
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
    }

    /// Passes a value of any form without recursion: deep text must not cost stack.
    fn value(&mut self) -> Option<()> {
        self.space();
        let mut depth = 0usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' if depth == 0 => return None,
                b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => self.at += 1,
                _ => self.bare(),
            }
            if depth == 0 {
                return Some(());
            }
        }
    }

    /// Passes a number, `true`, `false` or `null`.
    fn bare(&mut self) {
        while !matches!(self.peek(), None | Some(b',' | b':' | b'}' | b']' | b'"' | b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }
}

/// Whether the inside of a JSON string means `name`; escapes are rare, so they may be slow.
fn names(raw: &[u8], name: &str) -> bool {
    if !raw.contains(&b'\\') {
        return raw == name.as_bytes();
    }
    let quoted = [b"\"", raw, b"\""].concat();
    serde_json::from_slice::<String>(&quoted).is_ok_and(|text| text == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_revision(text: &[u8], revision: u64) -> Option<Vec<u8>> {
        Some(put_revision(text, &revision_place(text)?, revision))
    }

    fn check(text: &str, want: Option<&str>) {
        let got = with_revision(text.as_bytes(), 42).map(|bytes| String::from_utf8(bytes).unwrap());
        assert_eq!(got.as_deref(), want, "{text}");
    }

    #[test]
    fn the_revision_is_put_in_and_the_rest_stays() {
        check(r#"{"metadata":{}}"#, Some(r#"{"metadata":{"resourceVersion":"42"}}"#));
        check(
            r#"{"a":1,"metadata":{"name":"x"},"b":2}"#,
            Some(r#"{"a":1,"metadata":{"resourceVersion":"42","name":"x"},"b":2}"#),
        );
        check(
            r#"{"metadata":{"name":"x","resourceVersion":"7","uid":"u"}}"#,
            Some(r#"{"metadata":{"name":"x","resourceVersion":"42","uid":"u"}}"#),
        );
        check(
            " { \"metadata\" : { \"resourceVersion\" : \"\" } } ",
            Some(" { \"metadata\" : { \"resourceVersion\" : \"42\" } } "),
        );
        check(
            r#"{"x":{"metadata":{"resourceVersion":"1"}},"y":["metadata",{"a":"}\"{"}],"metadata":{"a":{"resourceVersion":"2"}}}"#,
            Some(
                r#"{"x":{"metadata":{"resourceVersion":"1"}},"y":["metadata",{"a":"}\"{"}],"metadata":{"resourceVersion":"42","a":{"resourceVersion":"2"}}}"#,
            ),
        );
        check(
            r#"{"met\u0061data":{"resourceVersio\u006e":null}}"#,
            Some(r#"{"met\u0061data":{"resourceVersio\u006e":"42"}}"#),
        );
        check(
            r#"{"metadata":{"resourceVersion":{"odd":[1,2]},"n":1}}"#,
            Some(r#"{"metadata":{"resourceVersion":"42","n":1}}"#),
        );
    }

    #[test]
    fn what_has_no_metadata_has_no_place() {
        for text in [
            "",
            "{",
            "[]",
            "null",
            "{}",
            r#"{"metadata":1}"#,
            r#"{"metadata":"#,
            r#"{"metadata":{"#,
            r#"{"a\"#,
            "{\"a\":}",
            "{,}",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn any_cut_of_a_text_is_survived() {
        let text = r#"{"k":[1,{"a":"\\\""}],"metadata":{"labels":{"a":"b"},"resourceVersion":"1"},"z":[[[[]]]]}"#;
        for end in 0..=text.len() {
            let _ = with_revision(&text.as_bytes()[..end], 1);
            let _ = with_revision(&text.as_bytes()[end..], 1);
        }
    }
}
