//! How a registry asks who one is: `WWW-Authenticate`, read.

use http::{HeaderMap, header};

/// What a registry wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User and password.
    Basic,
    /// A token that the server at `realm` gives.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The strongest way that an answer offers and that is understood here.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let offered: Vec<_> = values.filter_map(Self::parse).collect();
        offered.iter().find(|one| **one != Self::Basic).or(offered.first()).cloned()
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameters = parameters(rest);
        let find = |name: &str| {
            let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
        };
        Some(Self::Bearer { realm: find("realm")?, service: find("service"), scope: find("scope") })
    }
}

/// `key="value, with commas",key=value` as pairs.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',', '\t']).to_owned();
        let (value, left) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        found.push((key, value));
        rest = left;
    }
    found
}

/// The text up to the closing quotation mark, and what follows it.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(character),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let text = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.to_owned(), service: text(service), scope: text(scope) })
    }

    #[test]
    fn challenges_are_read_as_they_are_written() {
        for (values, expected) in [
            (&[r#"Basic realm="Registry Realm""#][..], Some(Challenge::Basic)),
            (&["basic"], Some(Challenge::Basic)),
            (&["Negotiate"], None),
            (&[], None),
            (
                &[r#"Bearer realm="https://a/token",service="r",scope="repository:a/b:pull,push""#],
                bearer("https://a/token", Some("r"), Some("repository:a/b:pull,push")),
            ),
            (&[r#"bearer  scope=x , Realm="https://a/\"t""#], bearer("https://a/\"t", None, Some("x"))),
            (&["Basic realm=x", r#"Bearer realm="https://a""#], bearer("https://a", None, None)),
            (&[r#"Bearer service="r""#], None),
            (&[r#"Bearer realm="unfinished"#], bearer("unfinished", None, None)),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::WWW_AUTHENTICATE, value.parse().unwrap());
            }
            assert_eq!(Challenge::of(&headers), expected, "{values:?}");
        }
    }
}
