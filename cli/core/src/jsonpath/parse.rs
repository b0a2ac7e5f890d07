//! Reads a template. The reader goes by characters and never back, as the one of `kubectl` does: what it takes for
//! the end of a list or a filter is the first `]` or `)` outside of the first quotes.

use super::{Fault, Operator, Segment, Slice, Step, fault};
use serde_json::Value as Tree;

/// The segments of a template.
pub(super) fn template(text: &str) -> Result<Vec<Segment>, Fault> {
    let mut reader = Reader { rest: text };
    let mut pieces = Vec::new();
    while !reader.rest.is_empty() {
        let outside = reader.take_until(|c| c == '{').to_owned();
        if !outside.is_empty() {
            pieces.push(Piece::Text(outside));
        }
        if reader.skip("{") {
            pieces.push(reader.action()?);
        }
    }
    let mut pieces = pieces.into_iter();
    let segments = nest(&mut pieces, Place::Outside)?;
    Ok(segments)
}

/// What stands between two braces, or outside of them, before ranges are nested.
enum Piece {
    Text(String),
    Path(Vec<Step>),
    Range(Vec<Step>),
    End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Outside,
    InRange,
}

/// A range without its end goes to the end of the template.
fn nest(pieces: &mut std::vec::IntoIter<Piece>, place: Place) -> Result<Vec<Segment>, Fault> {
    let mut segments = Vec::new();
    while let Some(piece) = pieces.next() {
        segments.push(match piece {
            Piece::Text(text) => Segment::Text(text),
            Piece::Path(steps) => Segment::Path(steps),
            Piece::Range(over) => Segment::Range { over, body: nest(pieces, Place::InRange)? },
            Piece::End if place == Place::InRange => return Ok(segments),
            Piece::End => return Err(fault!("`{{end}}` without a `{{range}}` before it")),
        });
    }
    Ok(segments)
}

struct Reader<'t> {
    rest: &'t str,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.chars().next()?;
        self.rest = &self.rest[next.len_utf8()..];
        Some(next)
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn skip(&mut self, prefix: &str) -> bool {
        let rest = self.rest.strip_prefix(prefix);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn take_until(&mut self, stop: impl Fn(char) -> bool) -> &'t str {
        let (taken, rest) = self.rest.split_at(self.rest.find(stop).unwrap_or(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// What follows a left brace, with the right one.
    fn action(&mut self) -> Result<Piece, Fault> {
        let mut steps = Vec::new();
        let mut range = false;
        loop {
            if self.skip("}") {
                return Ok(if range { Piece::Range(steps) } else { Piece::Path(steps) });
            }
            match self.word() {
                None => self.step(&mut steps)?,
                Some("range") if steps.is_empty() && !range => range = true,
                Some("end") if steps.is_empty() && !range => {
                    if !self.skip("}") {
                        return Err(fault!("`end` stands alone in its braces"));
                    }
                    return Ok(Piece::End);
                }
                Some("true") => steps.push(Step::Constant(Tree::Bool(true))),
                Some("false") => steps.push(Step::Constant(Tree::Bool(false))),
                Some(word) => return Err(fault!("unrecognized identifier `{word}`: a field begins with a dot")),
            }
        }
    }

    /// A word that is no field: a keyword or a truth value.
    fn word(&mut self) -> Option<&'t str> {
        let begins = self.peek().is_some_and(|c| c == '_' || (c.is_alphanumeric() && !c.is_numeric()));
        begins.then(|| self.take_until(ends_word))
    }

    /// One step, or blanks between steps.
    fn step(&mut self, steps: &mut Vec<Step>) -> Result<(), Fault> {
        if self.skip("[?(") {
            steps.push(self.filter()?);
        } else if self.skip("..") {
            if steps.last() == Some(&Step::Recursive) {
                return Err(fault!("`..` twice in a row"));
            }
            steps.push(Step::Recursive);
            if self.peek().is_some_and(|c| c == '_' || c.is_alphanumeric()) {
                steps.push(self.field());
            }
        } else if self.peek().is_some_and(|c| c == '+' || c == '-' || c.is_numeric()) {
            steps.push(Step::Constant(self.number()?));
        } else {
            match self.next() {
                None | Some('\r' | '\n') => return Err(fault!("unclosed action: a `}}` is missing")),
                // The object itself: what every path begins with.
                Some(' ' | '@' | '$') => {}
                Some('[') => steps.extend(self.list()?),
                Some(quote @ ('"' | '\'')) => steps.push(Step::Text(self.quoted(quote)?)),
                Some('.') => steps.push(self.field()),
                Some(other) => return Err(fault!("unrecognized character `{other}` in braces")),
            }
        }
        Ok(())
    }

    /// What follows a dot.
    fn field(&mut self) -> Step {
        let mut name = String::new();
        while let Some(next) = self.peek() {
            if next == '\\' {
                self.next();
                name.extend(self.next());
            } else if ends_word(next) {
                break;
            } else {
                name.push(next);
                self.next();
            }
        }
        if name == "*" { Step::Wildcard } else { Step::Field(name) }
    }

    fn number(&mut self) -> Result<Tree, Fault> {
        let sign = if self.skip("-") { "-" } else { "" };
        let _plus = self.skip("+");
        let text = format!("{sign}{}", self.take_until(|c| c != '.' && !c.is_ascii_digit()));
        if let Ok(whole) = text.parse::<i64>() {
            return Ok(Tree::from(whole));
        }
        text.parse::<f64>().map(Tree::from).map_err(|_| fault!("cannot parse the number `{text}`"))
    }

    /// What follows a left bracket, with the right one.
    fn list(&mut self) -> Result<Vec<Step>, Fault> {
        let text = self.take_until(|c| c == ']' || c == '\n');
        if !self.skip("]") {
            return Err(fault!("unterminated list: a `]` is missing"));
        }
        let entries: Vec<&str> = text.split(',').collect();
        let [entry] = entries[..] else {
            let paths = entries.iter().map(|entry| list_entry(entry.trim_matches(' '))).collect::<Result<_, _>>()?;
            return Ok(vec![Step::Union(paths)]);
        };
        list_entry(entry)
    }

    /// What follows `[?(`, with the brackets that close it.
    fn filter(&mut self) -> Result<Step, Fault> {
        let text = self.rest;
        let (mut quote, mut closed, mut before) = (None, false, ' ');
        loop {
            let Some(next) = self.next().filter(|next| *next != '\n') else {
                return Err(fault!("unterminated filter: a `)]` is missing"));
            };
            match (next, quote) {
                ('"' | '\'', None) => quote = Some(next),
                ('"' | '\'', Some(open)) => closed |= before != '\\' && next == open,
                (')', _) if quote.is_some() == closed => break,
                _ => {}
            }
            before = next;
        }
        let text = &text[..text.len() - self.rest.len() - 1];
        if !self.skip("]") {
            return Err(fault!("unclosed filter: a `]` is missing after `)`"));
        }
        let is_operator = |c: char| matches!(c, '!' | '<' | '>' | '=');
        let at = text.find(is_operator).unwrap_or(text.len());
        let (left, rest) = text.split_at(at);
        let (operator, right) = rest.split_at(rest.find(|c| !is_operator(c)).unwrap_or(rest.len()));
        if operator.is_empty() {
            return Ok(Step::Filter { left: path(text)?, compared: None });
        }
        if left.is_empty() || right.is_empty() {
            return Err(fault!("the filter `{text}` lacks a side of its `{operator}`"));
        }
        let operator = match operator {
            "==" => Operator::Equal,
            "!=" => Operator::NotEqual,
            "<" => Operator::Less,
            "<=" => Operator::LessOrEqual,
            ">" => Operator::Greater,
            ">=" => Operator::GreaterOrEqual,
            other => return Err(fault!("unrecognized filter operator `{other}`")),
        };
        Ok(Step::Filter { left: path(left)?, compared: Some((operator, path(right)?)) })
    }

    /// What follows a quote, with the one that closes it.
    fn quoted(&mut self, quote: char) -> Result<String, Fault> {
        let mut text = String::new();
        loop {
            match self.next() {
                None | Some('\n') => return Err(fault!("unterminated quoted text")),
                Some('\\') => text.push(self.escaped(quote)?),
                Some(c) if c == quote => return Ok(text),
                Some(c) => text.push(c),
            }
        }
    }

    /// What follows a backslash, as Go has it.
    fn escaped(&mut self, quote: char) -> Result<char, Fault> {
        let escape = self.rest.chars().next();
        let found = match escape {
            Some('n') => Some('\n'),
            Some('t') => Some('\t'),
            Some('r') => Some('\r'),
            Some('a') => Some('\u{7}'),
            Some('b') => Some('\u{8}'),
            Some('f') => Some('\u{c}'),
            Some('v') => Some('\u{b}'),
            Some('\\') => Some('\\'),
            Some(c) if c == quote => Some(c),
            Some(kind @ ('x' | 'u' | 'U')) => {
                self.rest = &self.rest[1..];
                let digits = if kind == 'x' {
                    2
                } else if kind == 'u' {
                    4
                } else {
                    8
                };
                return self.code(digits).ok_or_else(|| fault!("`\\{kind}` needs {digits} digits of a character"));
            }
            _ => None,
        };
        let found = found.ok_or_else(|| fault!("unknown escape `\\{}`", escape.map_or(String::new(), String::from)))?;
        self.next();
        Ok(found)
    }

    /// A character by its number in hex.
    fn code(&mut self, digits: usize) -> Option<char> {
        let hex = self.rest.get(..digits).filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        self.rest = &self.rest[digits..];
        u32::from_str_radix(hex, 16).ok().and_then(char::from_u32)
    }
}

/// A path that stands alone: an entry of a list, a side of a filter.
fn path(text: &str) -> Result<Vec<Step>, Fault> {
    let braced = format!("{text}}}");
    let mut reader = Reader { rest: &braced };
    match reader.action()? {
        Piece::Path(steps) if reader.rest.is_empty() => Ok(steps),
        _ => Err(fault!("`{text}` is not a path")),
    }
}

fn list_entry(text: &str) -> Result<Vec<Step>, Fault> {
    if text == "*" {
        return Ok(vec![Step::Slice(Slice::Between { start: None, end: None, step: None })]);
    }
    let key = text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).filter(|key| !key.contains('\''));
    if let Some(key) = key {
        return path(&format!(".{key}"));
    }
    let number = |part: &str| match part {
        "" => Ok(None),
        part if part.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit()) => {
            part.parse::<i64>().map(Some).map_err(|_| fault!("the list index `{part}` is not a number"))
        }
        _ => Err(fault!("`{text}` is not a list index: a key is written with single quotes, as in `['name']`")),
    };
    let parts = text.split(':').map(number).collect::<Result<Vec<_>, _>>()?;
    let slice = match parts[..] {
        [Some(at)] => Slice::At(at),
        [None] => Slice::At(0),
        [start, end] => Slice::Between { start, end, step: None },
        [start, end, step] => Slice::Between { start, end, step },
        _ => return Err(fault!("`{text}` is not a list index")),
    };
    Ok(vec![Step::Slice(slice)])
}

fn ends_word(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n' | '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}')
}
