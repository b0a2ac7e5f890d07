//! Patterns of the shell: `*`, `?`, `[a-z]`.

/// Whether a text is what a pattern describes.
pub fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    matches_from(&pattern, &text)
}

/// By going back to the last `*` only, so that no pattern takes more than pattern times text.
fn matches_from(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match one(pattern, p, text[t]) {
            Some(next) => (p, t) = (next, t + 1),
            None if pattern.get(p) == Some(&'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            None => match star {
                Some((after, from)) => {
                    star = Some((after, from + 1));
                    (p, t) = (after, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// What follows the part of the pattern that stands for this one character; nothing if it does not.
fn one(pattern: &[char], at: usize, c: char) -> Option<usize> {
    match *pattern.get(at)? {
        '*' => None,
        '?' => Some(at + 1),
        '[' => match class(pattern, at, c) {
            Some((true, next)) => Some(next),
            Some((false, _)) => None,
            None => (c == '[').then_some(at + 1),
        },
        '\\' if at + 1 < pattern.len() => (pattern[at + 1] == c).then_some(at + 2),
        plain => (plain == c).then_some(at + 1),
    }
}

/// Whether a character is of the class that begins at `at`, and where that ends; nothing if it has no end.
fn class(pattern: &[char], at: usize, c: char) -> Option<(bool, usize)> {
    let mut i = at + 1;
    let negated = matches!(pattern.get(i), Some('!' | '^'));
    i += usize::from(negated);
    let (first, mut found) = (i, false);
    loop {
        match *pattern.get(i)? {
            ']' if i > first => return Some((found != negated, i + 1)),
            '[' if pattern.get(i + 1) == Some(&':') => {
                let end = (i + 2..pattern.len()).find(|j| pattern[*j] == ':' && pattern.get(j + 1) == Some(&']'))?;
                let name: String = pattern[i + 2..end].iter().collect();
                found |= match name.as_str() {
                    "alpha" => c.is_alphabetic(),
                    "digit" => c.is_ascii_digit(),
                    "alnum" => c.is_alphanumeric(),
                    "space" => c.is_whitespace(),
                    "upper" => c.is_uppercase(),
                    "lower" => c.is_lowercase(),
                    "punct" => c.is_ascii_punctuation(),
                    _ => false,
                };
                i = end + 2;
            }
            from => {
                let from = if from == '\\' {
                    i += 1;
                    *pattern.get(i)?
                } else {
                    from
                };
                match (pattern.get(i + 1), pattern.get(i + 2)) {
                    (Some('-'), Some(to)) if *to != ']' => {
                        found |= (from..=*to).contains(&c);
                        i += 3;
                    }
                    _ => {
                        found |= from == c;
                        i += 1;
                    }
                }
            }
        }
    }
}

/// A text as a pattern that describes just it.
pub fn escape(text: &str) -> String {
    let special = |c: char| matches!(c, '*' | '?' | '[' | ']' | '\\');
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// Whether anything in a pattern stands for more than itself.
pub fn is_plain(pattern: &str) -> bool {
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '*' | '?' | '[' => return false,
            _ => {}
        }
    }
    true
}

/// A pattern that describes just one text, as that text.
pub fn unescape(pattern: &str) -> String {
    let (mut out, mut chars) = (String::new(), pattern.chars());
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next().or(Some(c)) } else { Some(c) });
    }
    out
}

/// Cuts what a pattern describes off the begin of a text.
pub fn cut_begin<'a>(text: &'a str, pattern: &str, longest: bool) -> &'a str {
    let mut ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    if longest {
        ends.reverse();
    }
    ends.into_iter().find(|end| matches(pattern, &text[..*end])).map_or(text, |end| &text[end..])
}

/// Cuts what a pattern describes off the end of a text.
pub fn cut_end<'a>(text: &'a str, pattern: &str, longest: bool) -> &'a str {
    let mut begins: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    if !longest {
        begins.reverse();
    }
    begins.into_iter().find(|begin| matches(pattern, &text[*begin..])).map_or(text, |begin| &text[..begin])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_describe_texts() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("?", "é", true),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]]", "]", true),
            ("[", "[", true),
            ("[[:digit:]]*", "7up", true),
            (r"\*", "*", true),
            (r"\*", "x", false),
            ("*a*b*a*", "xxaxxbxxa", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
        assert!(!matches(&"*a".repeat(30), &"a".repeat(29)), "and it ends soon");
    }
}
