//! From words to arguments: parameters, output of commands, numbers, fields, and names of files.

use super::syntax::{Act, Param, Part, Word};
use super::{Shell, arith, pattern};
use crate::files;

/// A field while it is made: a pattern in which everything quoted is escaped.
#[derive(Default)]
struct Fields {
    done: Vec<String>,
    open: Option<String>,
}

impl Fields {
    fn push(&mut self, text: &str) {
        self.open.get_or_insert_default().push_str(text);
    }

    fn next(&mut self) {
        self.done.extend(self.open.take());
    }
}

/// Why an expansion ends the command.
pub(super) type Expanded<T> = Result<T, String>;

impl Shell {
    /// The arguments that some words become.
    pub(super) fn expand_all(&mut self, words: &[Word]) -> Expanded<Vec<String>> {
        let mut all = Vec::new();
        for word in words {
            all.extend(self.expand(word)?);
        }
        Ok(all)
    }

    fn expand(&mut self, word: &Word) -> Expanded<Vec<String>> {
        let mut fields = Fields::default();
        self.parts(word, &mut fields)?;
        fields.next();
        let mut out = Vec::new();
        for field in fields.done {
            if pattern::is_plain(&field) || self.options.contains(&'f') {
                out.push(pattern::unescape(&field));
                continue;
            }
            let found = self.glob(&field);
            // What describes no file stands for itself.
            if found.is_empty() { out.push(pattern::unescape(&field)) } else { out.extend(found) }
        }
        Ok(out)
    }

    /// The one text that a word becomes where it is not split.
    pub(super) fn text(&mut self, word: &Word) -> Expanded<String> {
        self.pattern(word).map(|text| pattern::unescape(&text))
    }

    /// The pattern that a word becomes: what is quoted stands for itself.
    pub(super) fn pattern(&mut self, word: &Word) -> Expanded<String> {
        let mut out = String::new();
        for part in word {
            match part {
                Part::Plain(text) => out.push_str(text),
                Part::Quoted(text) => out.push_str(&pattern::escape(text)),
                Part::Home => out.push_str(&pattern::escape(&self.home())),
                Part::Param { param, quoted } => {
                    let value = self.value_joined(param)?;
                    out.push_str(&if *quoted { pattern::escape(&value) } else { value });
                }
                Part::Output { list, quoted } => {
                    let value = self.output_of(list);
                    out.push_str(&if *quoted { pattern::escape(&value) } else { value });
                }
                Part::Number { text, .. } => out.push_str(&self.number(text)?),
            }
        }
        Ok(out)
    }

    fn parts(&mut self, word: &Word, fields: &mut Fields) -> Expanded<()> {
        for part in word {
            match part {
                Part::Plain(text) => fields.push(text),
                Part::Quoted(text) => fields.push(&pattern::escape(text)),
                Part::Home => fields.push(&pattern::escape(&self.home())),
                Part::Param { param, quoted } => self.param(param, *quoted, fields)?,
                Part::Output { list, quoted } => {
                    let text = self.output_of(list);
                    self.put(&text, *quoted, fields);
                }
                Part::Number { text, quoted } => {
                    let text = self.number(text)?;
                    self.put(&text, *quoted, fields);
                }
            }
        }
        Ok(())
    }

    fn home(&self) -> String {
        self.vars.get("HOME").cloned().unwrap_or_else(|| "/".to_owned())
    }

    fn number(&mut self, text: &Word) -> Expanded<String> {
        let text = self.text(text)?;
        let number = arith::evaluate(&text, &mut |name, value| {
            if let Some(value) = value {
                self.vars.insert(name.to_owned(), value.to_string());
            }
            self.vars.get(name).cloned().unwrap_or_default()
        });
        number.map(|number| number.to_string())
    }

    /// Puts a value into the fields; one that is not quoted is split.
    fn put(&self, text: &str, quoted: bool, fields: &mut Fields) {
        if quoted {
            return fields.push(&pattern::escape(text));
        }
        let separators = self.vars.get("IFS").map_or(" \t\n", String::as_str);
        let blank = |c: char| separators.contains(c) && matches!(c, ' ' | '\t' | '\n');
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            if !separators.contains(c) {
                // A backslash in a value is one, also before what would be a pattern.
                let mut bytes = [0; 4];
                fields.push(if c == '\\' { "\\\\" } else { c.encode_utf8(&mut bytes) });
                continue;
            }
            let mut marks = usize::from(!blank(c));
            while let Some(next) =
                chars.peek().copied().filter(|next| blank(*next) || (marks == 0 && separators.contains(*next)))
            {
                marks += usize::from(!blank(next));
                chars.next();
            }
            if marks > 0 {
                fields.open.get_or_insert_default();
            }
            fields.next();
        }
    }

    fn param(&mut self, param: &Param, quoted: bool, fields: &mut Fields) -> Expanded<()> {
        if matches!(param.act, Act::Value) && matches!(param.name.as_str(), "@" | "*") {
            if quoted && param.name == "*" {
                let text = self.args.join(&self.separator());
                fields.push(&pattern::escape(&text));
                return Ok(());
            }
            for (at, arg) in self.args.clone().iter().enumerate() {
                if at > 0 {
                    fields.next();
                }
                self.put(arg, quoted, fields);
            }
            // `"$@"` of nothing is nothing, also between quotes.
            if quoted && self.args.is_empty() && fields.open.as_deref() == Some("") {
                fields.open = None;
            }
            return Ok(());
        }
        if let Act::Unless { word, .. } = &param.act
            && self.takes_word(param)
        {
            self.assign_default(param)?;
            if quoted {
                let text = self.text(word)?;
                fields.push(&pattern::escape(&text));
                return Ok(());
            }
            return self.parts(word, fields);
        }
        let value = self.value_joined(param)?;
        self.put(&value, quoted, fields);
        Ok(())
    }

    /// What stands between the arguments in `"$*"`.
    fn separator(&self) -> String {
        self.vars.get("IFS").map_or(" ".to_owned(), |ifs| ifs.chars().take(1).collect())
    }

    /// Whether `${x:-word}` and its like become their word.
    fn takes_word(&self, param: &Param) -> bool {
        let Act::Unless { kind, empty, .. } = &param.act else { return false };
        let missing = self.lookup(&param.name).is_none_or(|value| *empty && value.is_empty());
        if *kind == '+' { !missing } else { missing }
    }

    /// `${x:=word}` and `${x:?word}` do more than to become their word.
    fn assign_default(&mut self, param: &Param) -> Expanded<()> {
        let Act::Unless { kind, word, .. } = &param.act else { return Ok(()) };
        match kind {
            '=' => {
                let text = self.text(word)?;
                self.assign(&param.name, text)
            }
            '?' => {
                let text = self.text(word)?;
                Err(format!("{}: {}", param.name, if text.is_empty() { "parameter not set" } else { &text }))
            }
            _ => Ok(()),
        }
    }

    /// The value of a parameter as one text.
    fn value_joined(&mut self, param: &Param) -> Expanded<String> {
        let value = self.lookup(&param.name);
        match &param.act {
            Act::Unless { word, .. } if self.takes_word(param) => {
                self.assign_default(param)?;
                self.text(word)
            }
            Act::Unless { kind: '+', .. } => Ok(String::new()),
            _ if value.is_none() && self.options.contains(&'u') && !matches!(param.name.as_str(), "@" | "*") => {
                Err(format!("{}: parameter not set", param.name))
            }
            Act::Value | Act::Unless { .. } => Ok(value.unwrap_or_default()),
            Act::Length => Ok(match param.name.as_str() {
                "@" | "*" => self.args.len().to_string(),
                _ => value.unwrap_or_default().chars().count().to_string(),
            }),
            Act::Cut { kind, longest, pattern } => {
                let (value, pattern) = (value.unwrap_or_default(), self.pattern(pattern)?);
                let cut = if *kind == '#' { pattern::cut_begin } else { pattern::cut_end };
                Ok(cut(&value, &pattern, *longest).to_owned())
            }
        }
    }

    /// The value of a parameter, if it has one.
    pub(super) fn lookup(&self, name: &str) -> Option<String> {
        match name {
            "?" => Some(self.code.to_string()),
            "#" => Some(self.args.len().to_string()),
            "@" | "*" => Some(self.args.join(&self.separator())),
            "$" => Some("1".to_owned()),
            "-" => Some(self.options.iter().collect()),
            "!" => None,
            "0" => Some(self.name.clone()),
            _ => match name.parse::<usize>() {
                Ok(at) => self.args.get(at - 1).cloned(),
                Err(_) => self.vars.get(name).cloned(),
            },
        }
    }

    /// Gives a variable its value.
    pub(super) fn assign(&mut self, name: &str, value: String) -> Expanded<()> {
        if self.readonly.contains(name) {
            return Err(format!("{name}: is read only"));
        }
        self.vars.insert(name.to_owned(), value);
        Ok(())
    }

    /// The files that a pattern describes, in order.
    fn glob(&self, field: &str) -> Vec<String> {
        let (absolute, only_dirs) = (field.starts_with('/'), field.ends_with('/'));
        let mut found = vec![if absolute { "/".to_owned() } else { String::new() }];
        let parts: Vec<&str> = field.split('/').filter(|part| !part.is_empty()).collect();
        for (at, part) in parts.iter().enumerate() {
            let mut next = Vec::new();
            for dir in &found {
                let place = |name: &str| if dir.is_empty() { name.to_owned() } else { files::join(dir, name) };
                if pattern::is_plain(part) {
                    let path = place(&pattern::unescape(part));
                    if files::stat_link(&self.cx.path(&path)).is_ok() {
                        next.push(path);
                    }
                    continue;
                }
                let full = self.cx.path(if dir.is_empty() { "." } else { dir });
                let names = files::list(&full).unwrap_or_default();
                let names = names.iter().filter(|name| part.starts_with('.') || !name.starts_with('.'));
                let last = at + 1 == parts.len() && !only_dirs;
                let fits = |path: &String| last || files::is_dir(&self.cx.path(path));
                next.extend(names.filter(|name| pattern::matches(part, name)).map(|name| place(name)).filter(fits));
            }
            found = next;
        }
        if only_dirs {
            found.iter_mut().for_each(|path| path.push('/'));
        }
        found
    }
}
