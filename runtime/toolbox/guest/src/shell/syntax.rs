//! The language of the shell: what a script is made of, and how it is read.

use std::cell::RefCell;
use std::rc::Rc;

/// Commands one after the other.
pub type List = Vec<AndOr>;

/// `a && b || c`
#[derive(Clone, Debug)]
pub struct AndOr {
    pub first: Pipeline,
    pub rest: Vec<(Joint, Pipeline)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joint {
    And,
    Or,
}

/// `! a | b`
#[derive(Clone, Debug)]
pub struct Pipeline {
    pub negated: bool,
    pub commands: Vec<Command>,
}

#[derive(Clone, Debug)]
pub enum Command {
    Simple { assigned: Vec<(String, Word)>, words: Vec<Word>, redirects: Vec<Redirect> },
    Compound { body: Compound, redirects: Vec<Redirect> },
    Function { name: String, body: Rc<Command> },
}

#[derive(Clone, Debug)]
pub enum Compound {
    Group(List),
    Subshell(List),
    If { branches: Vec<(List, List)>, otherwise: List },
    Loop { until: bool, condition: List, body: List },
    For { name: String, words: Option<Vec<Word>>, body: List },
    Case { word: Word, arms: Vec<(Vec<Word>, List)> },
}

#[derive(Clone, Debug)]
pub struct Redirect {
    pub fd: u8,
    pub to: Target,
}

#[derive(Clone, Debug)]
pub enum Target {
    Read(Word),
    Write(Word),
    Append(Word),
    /// Standard output and error output together.
    Both(Word),
    /// `>&1`, `<&-`
    Same(Word),
    /// What stands between `<<END` and `END`; read when its line has come.
    Here(Rc<RefCell<Word>>),
}

/// A word before it is expanded.
pub type Word = Vec<Part>;

#[derive(Clone, Debug)]
pub enum Part {
    /// As it stands; may be a pattern.
    Plain(String),
    /// As it stands, and means nothing more.
    Quoted(String),
    /// `$name`, `${name…}`
    Param { param: Param, quoted: bool },
    /// `$(…)`
    Output { list: Rc<List>, quoted: bool },
    /// `$((…))`
    Number { text: Word, quoted: bool },
    /// `~`
    Home,
}

#[derive(Clone, Debug)]
pub struct Param {
    pub name: String,
    pub act: Act,
}

#[derive(Clone, Debug)]
pub enum Act {
    Value,
    Length,
    /// `-`, `=`, `?`, `+`; with a colon an empty value counts as none.
    Unless {
        kind: char,
        empty: bool,
        word: Word,
    },
    /// `#`, `##`, `%`, `%%`
    Cut {
        kind: char,
        longest: bool,
        pattern: Word,
    },
}

/// Why a text is no script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It ends where something is still open: more lines may follow.
    Open,
    /// It cannot be read.
    Wrong(String),
}

/// Reads a script.
pub fn parse(text: &str) -> Result<List, Fault> {
    let mut parser = Parser { text: text.chars().collect(), at: 0, here: Vec::new(), depth: 0 };
    let list = parser.list(&[])?;
    if !parser.here.is_empty() {
        return Err(Fault::Open);
    }
    match parser.peek() {
        None => Ok(list),
        Some(_) => Err(parser.unexpected()),
    }
}

/// A word of a here-document that is still to be read.
struct Here {
    end: String,
    tabs: bool,
    raw: bool,
    into: Rc<RefCell<Word>>,
}

/// Commands within commands; a guest's stack is small.
const DEPTH_MAX: usize = 100;
const RESERVED: [&str; 16] =
    ["if", "then", "elif", "else", "fi", "while", "until", "for", "do", "done", "case", "esac", "in", "{", "}", "!"];

struct Parser {
    text: Vec<char>,
    at: usize,
    here: Vec<Here>,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn looking_at(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(i, c)| self.text.get(self.at + i) == Some(&c))
    }

    fn take(&mut self, text: &str) -> bool {
        let found = self.looking_at(text);
        if found {
            self.at += text.chars().count();
        }
        found
    }

    fn unexpected(&self) -> Fault {
        let rest: String =
            self.text[self.at.min(self.text.len())..].iter().take_while(|c| **c != '\n').take(20).collect();
        match rest.as_str() {
            "" if self.at >= self.text.len() => Fault::Open,
            "" => Fault::Wrong("syntax error: unexpected end of line".to_owned()),
            rest => Fault::Wrong(format!("syntax error: unexpected `{rest}`")),
        }
    }

    fn blanks(&mut self) {
        loop {
            match self.peek() {
                Some(' ' | '\t' | '\r') => self.at += 1,
                Some('\\') if self.text.get(self.at + 1) == Some(&'\n') => self.at += 2,
                Some('#') => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    /// Blanks and line ends; what follows a line with a `<<` is that one's.
    fn lines(&mut self) -> Result<(), Fault> {
        loop {
            self.blanks();
            if !self.newline()? {
                return Ok(());
            }
        }
    }

    fn newline(&mut self) -> Result<bool, Fault> {
        if self.peek() != Some('\n') {
            return Ok(false);
        }
        self.at += 1;
        for here in std::mem::take(&mut self.here) {
            self.here_document(here)?;
        }
        Ok(true)
    }

    fn here_document(&mut self, here: Here) -> Result<(), Fault> {
        let mut body = String::new();
        loop {
            if self.at >= self.text.len() {
                return Err(Fault::Open);
            }
            let mut line = String::new();
            while let Some(c) = self.peek().filter(|c| *c != '\n') {
                line.push(c);
                self.at += 1;
            }
            self.at += 1;
            let line = if here.tabs { line.trim_start_matches('\t') } else { &line };
            if line == here.end {
                self.at = self.at.min(self.text.len());
                break;
            }
            body.push_str(line);
            body.push('\n');
        }
        let word = if here.raw {
            vec![Part::Quoted(body)]
        } else {
            let mut inner = Parser { text: body.chars().collect(), at: 0, here: Vec::new(), depth: self.depth };
            inner.inside_quotes(None)?
        };
        *here.into.borrow_mut() = word;
        Ok(())
    }

    /// Whether a reserved word stands here.
    fn at_word(&self, word: &str) -> bool {
        let after = self.text.get(self.at + word.chars().count());
        self.looking_at(word) && after.is_none_or(|c| is_end_of_word(*c))
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.at_word(word);
        if found {
            self.at += word.chars().count();
        }
        found
    }

    fn need(&mut self, word: &str) -> Result<(), Fault> {
        self.lines()?;
        if self.take_word(word) { Ok(()) } else { Err(self.unexpected()) }
    }

    /// Commands up to one of these words.
    fn list(&mut self, ends: &[&str]) -> Result<List, Fault> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Fault::Wrong("commands are nested too deeply".to_owned()));
        }
        let mut list = List::new();
        loop {
            self.lines()?;
            let ended = ends.iter().any(|end| match *end {
                ")" | ";;" => self.looking_at(end),
                end => self.at_word(end),
            });
            if ended || (self.peek().is_none() && ends.is_empty()) {
                break;
            }
            list.push(self.and_or()?);
            self.blanks();
            match self.peek() {
                Some(';') if !self.looking_at(";;") => self.at += 1,
                Some('&') => {
                    let why = "there are no background jobs: everything here runs on one thread";
                    return Err(Fault::Wrong(format!("`&`: {why}")));
                }
                _ => {
                    let go_on = self.newline()? || self.peek().is_none();
                    let closed = ends.iter().any(|end| matches!(*end, ")" | ";;") && self.looking_at(end));
                    if !go_on && !closed {
                        return Err(self.unexpected());
                    }
                    if self.peek().is_none() && !ends.is_empty() {
                        return Err(Fault::Open);
                    }
                }
            }
        }
        self.depth -= 1;
        Ok(list)
    }

    /// The commands of a body, of which there must be one.
    fn body(&mut self, ends: &[&str]) -> Result<List, Fault> {
        let list = self.list(ends)?;
        if list.is_empty() { Err(self.unexpected()) } else { Ok(list) }
    }

    fn and_or(&mut self) -> Result<AndOr, Fault> {
        let (first, mut rest) = (self.pipeline()?, Vec::new());
        loop {
            self.blanks();
            let joint = if self.take("&&") {
                Joint::And
            } else if self.take("||") {
                Joint::Or
            } else {
                return Ok(AndOr { first, rest });
            };
            self.lines()?;
            rest.push((joint, self.pipeline()?));
        }
    }

    fn pipeline(&mut self) -> Result<Pipeline, Fault> {
        let mut negated = false;
        while self.take_word("!") {
            negated = !negated;
            self.blanks();
        }
        let mut commands = vec![self.command()?];
        loop {
            self.blanks();
            if self.looking_at("||") || !self.take("|") {
                return Ok(Pipeline { negated, commands });
            }
            self.lines()?;
            commands.push(self.command()?);
        }
    }

    fn command(&mut self) -> Result<Command, Fault> {
        self.blanks();
        if self.peek().is_none() {
            return Err(Fault::Open);
        }
        let body = if self.take_word("{") {
            let list = self.body(&["}"])?;
            self.need("}")?;
            Compound::Group(list)
        } else if self.take("(") {
            let list = self.body(&[")"])?;
            self.take(")");
            Compound::Subshell(list)
        } else if self.take_word("if") {
            self.if_command()?
        } else if self.at_word("while") || self.at_word("until") {
            let until = self.at_word("until");
            self.at += 5;
            let condition = self.body(&["do"])?;
            Compound::Loop { until, condition, body: self.do_group()? }
        } else if self.take_word("for") {
            self.for_command()?
        } else if self.take_word("case") {
            self.case_command()?
        } else {
            return self.simple();
        };
        let mut redirects = Vec::new();
        loop {
            self.blanks();
            match self.redirect()? {
                Some(redirect) => redirects.extend(redirect),
                None => return Ok(Command::Compound { body, redirects }),
            }
        }
    }

    fn do_group(&mut self) -> Result<List, Fault> {
        self.need("do")?;
        let body = self.body(&["done"])?;
        self.need("done")?;
        Ok(body)
    }

    fn if_command(&mut self) -> Result<Compound, Fault> {
        let (mut branches, mut otherwise) = (Vec::new(), List::new());
        loop {
            let condition = self.body(&["then"])?;
            self.need("then")?;
            branches.push((condition, self.body(&["elif", "else", "fi"])?));
            if self.take_word("elif") {
                continue;
            }
            if self.take_word("else") {
                otherwise = self.body(&["fi"])?;
            }
            self.need("fi")?;
            return Ok(Compound::If { branches, otherwise });
        }
    }

    fn name(&mut self) -> Option<String> {
        let begin = self.at;
        while self.peek().is_some_and(|c| c == '_' || c.is_ascii_alphanumeric()) {
            self.at += 1;
        }
        let name: String = self.text[begin..self.at].iter().collect();
        if is_name(&name) {
            return Some(name);
        }
        self.at = begin;
        None
    }

    fn for_command(&mut self) -> Result<Compound, Fault> {
        self.blanks();
        let name = self.name().ok_or_else(|| self.unexpected())?;
        self.lines()?;
        let mut words = None;
        if self.take_word("in") {
            let mut found = Vec::new();
            loop {
                self.blanks();
                match self.word()? {
                    Some(word) => found.push(word),
                    None => break,
                }
            }
            words = Some(found);
        }
        self.blanks();
        self.take(";");
        Ok(Compound::For { name, words, body: self.do_group()? })
    }

    fn case_command(&mut self) -> Result<Compound, Fault> {
        self.blanks();
        let word = self.word()?.ok_or_else(|| self.unexpected())?;
        self.need("in")?;
        let mut arms = Vec::new();
        loop {
            self.lines()?;
            if self.take_word("esac") {
                return Ok(Compound::Case { word, arms });
            }
            self.take("(");
            let mut patterns = Vec::new();
            loop {
                self.blanks();
                patterns.push(self.word()?.ok_or_else(|| self.unexpected())?);
                self.blanks();
                if !self.take("|") {
                    break;
                }
            }
            if !self.take(")") {
                return Err(self.unexpected());
            }
            let body = self.list(&[";;", "esac"])?;
            self.take(";;");
            arms.push((patterns, body));
        }
    }

    fn simple(&mut self) -> Result<Command, Fault> {
        let (mut assigned, mut words, mut redirects): (Vec<_>, Vec<Word>, _) = (Vec::new(), Vec::new(), Vec::new());
        if RESERVED.iter().any(|word| self.at_word(word)) {
            return Err(self.unexpected());
        }
        loop {
            self.blanks();
            if let Some(found) = self.redirect()? {
                redirects.extend(found);
                continue;
            }
            if words.is_empty() {
                let begin = self.at;
                if let Some(name) = self.name() {
                    if self.take("=") {
                        assigned.push((name, self.word()?.unwrap_or_default()));
                        continue;
                    }
                    self.blanks();
                    if assigned.is_empty() && self.take("(") {
                        return self.function(name);
                    }
                    self.at = begin;
                }
            }
            match self.word()? {
                Some(word) => words.push(word),
                None => break,
            }
        }
        if assigned.is_empty() && words.is_empty() && redirects.is_empty() {
            return Err(self.unexpected());
        }
        Ok(Command::Simple { assigned, words, redirects })
    }

    fn function(&mut self, name: String) -> Result<Command, Fault> {
        self.blanks();
        if !self.take(")") {
            return Err(self.unexpected());
        }
        self.lines()?;
        Ok(Command::Function { name, body: Rc::new(self.command()?) })
    }

    /// A redirection, if one stands here.
    fn redirect(&mut self) -> Result<Option<Vec<Redirect>>, Fault> {
        let begin = self.at;
        let digit = self.peek().filter(char::is_ascii_digit);
        self.at += usize::from(digit.is_some());
        let both = digit.is_none() && self.looking_at("&>");
        if !both && !matches!(self.peek(), Some('<' | '>')) {
            self.at = begin;
            return Ok(None);
        }
        let fd = |default: u8| digit.and_then(|digit| digit.to_digit(10)).map_or(default, |digit| digit as u8);
        let redirect = if self.take("&>") {
            Redirect { fd: 1, to: Target::Both(self.target()?) }
        } else if self.take("<<") {
            let tabs = self.take("-");
            Redirect { fd: fd(0), to: self.here(tabs)? }
        } else if self.take("<&") {
            Redirect { fd: fd(0), to: Target::Same(self.target()?) }
        } else if self.take("<") {
            Redirect { fd: fd(0), to: Target::Read(self.target()?) }
        } else if self.take(">>") {
            Redirect { fd: fd(1), to: Target::Append(self.target()?) }
        } else if self.take(">&") {
            Redirect { fd: fd(1), to: Target::Same(self.target()?) }
        } else {
            self.at += 1;
            self.take("|");
            Redirect { fd: fd(1), to: Target::Write(self.target()?) }
        };
        Ok(Some(vec![redirect]))
    }

    fn target(&mut self) -> Result<Word, Fault> {
        self.blanks();
        self.word()?.ok_or_else(|| self.unexpected())
    }

    fn here(&mut self, tabs: bool) -> Result<Target, Fault> {
        let word = self.target()?;
        let raw = word.iter().any(|part| matches!(part, Part::Quoted(_)));
        let end = word
            .iter()
            .map(|part| match part {
                Part::Plain(text) | Part::Quoted(text) => text.as_str(),
                _ => "",
            })
            .collect();
        let into = Rc::new(RefCell::new(Word::new()));
        self.here.push(Here { end, tabs, raw, into: into.clone() });
        Ok(Target::Here(into))
    }

    // ---- words ----

    /// A word, if one stands here.
    fn word(&mut self) -> Result<Option<Word>, Fault> {
        let (mut word, mut plain, begin) = (Word::new(), String::new(), self.at);
        while let Some(c) = self.peek().filter(|c| !is_end_of_word(*c)) {
            match c {
                '\\' => {
                    self.at += 1;
                    match self.peek() {
                        Some('\n') => self.at += 1,
                        Some(c) => {
                            push(&mut word, &mut plain, Part::Quoted(c.to_string()));
                            self.at += 1;
                        }
                        None => return Err(Fault::Open),
                    }
                }
                '\'' => {
                    self.at += 1;
                    let end = (self.at..self.text.len()).find(|at| self.text[*at] == '\'').ok_or(Fault::Open)?;
                    let text = self.text[self.at..end].iter().collect();
                    push(&mut word, &mut plain, Part::Quoted(text));
                    self.at = end + 1;
                }
                '"' => {
                    self.at += 1;
                    flush(&mut word, &mut plain);
                    let inner = self.inside_quotes(Some('"'))?;
                    // Also nothing at all between quotes is a word.
                    word.push(Part::Quoted(String::new()));
                    word.extend(inner);
                }
                '$' | '`' => {
                    let part = self.dollar(false)?;
                    match part {
                        Some(part) => push(&mut word, &mut plain, part),
                        None => plain.push('$'),
                    }
                }
                '~' if self.at == begin
                    && self.text.get(self.at + 1).is_none_or(|c| *c == '/' || is_end_of_word(*c)) =>
                {
                    self.at += 1;
                    word.push(Part::Home);
                }
                c => {
                    plain.push(c);
                    self.at += 1;
                }
            }
        }
        flush(&mut word, &mut plain);
        Ok((self.at > begin).then_some(word))
    }

    /// What stands between double quotes, or in a here-document.
    fn inside_quotes(&mut self, end: Option<char>) -> Result<Word, Fault> {
        let (mut word, mut text) = (Word::new(), String::new());
        let flush = |word: &mut Word, text: &mut String| {
            if !text.is_empty() {
                word.push(Part::Quoted(std::mem::take(text)));
            }
        };
        loop {
            match self.peek() {
                None if end.is_some() => return Err(Fault::Open),
                None => break,
                Some(c) if Some(c) == end => {
                    self.at += 1;
                    break;
                }
                Some('\\') => {
                    self.at += 1;
                    match self.peek() {
                        Some('\n') => {}
                        Some(c) if matches!(c, '$' | '`' | '\\') || Some(c) == end => text.push(c),
                        Some(c) => text.extend(['\\', c]),
                        None => text.push('\\'),
                    }
                    self.at += 1;
                }
                Some('$' | '`') => match self.dollar(true)? {
                    Some(part) => {
                        flush(&mut word, &mut text);
                        word.push(part);
                    }
                    None => text.push('$'),
                },
                Some(c) => {
                    text.push(c);
                    self.at += 1;
                }
            }
        }
        flush(&mut word, &mut text);
        Ok(word)
    }

    /// What a `$` or a backquote begins; nothing if the `$` is just one.
    fn dollar(&mut self, quoted: bool) -> Result<Option<Part>, Fault> {
        if self.take("`") {
            let mut inner = String::new();
            loop {
                match self.peek().ok_or(Fault::Open)? {
                    '`' => break,
                    '\\' if matches!(self.text.get(self.at + 1), Some('`' | '\\' | '$')) => {
                        inner.push(self.text[self.at + 1]);
                        self.at += 2;
                    }
                    c => {
                        inner.push(c);
                        self.at += 1;
                    }
                }
            }
            self.at += 1;
            let list = parse(&inner).map_err(|fault| match fault {
                Fault::Open => Fault::Wrong("syntax error: something between backquotes is not closed".to_owned()),
                wrong => wrong,
            })?;
            return Ok(Some(Part::Output { list: Rc::new(list), quoted }));
        }
        self.at += 1;
        if self.take("((") {
            let text = self.arithmetic()?;
            return Ok(Some(Part::Number { text, quoted }));
        }
        if self.take("(") {
            let list = self.list(&[")"])?;
            if !self.take(")") {
                return Err(self.unexpected());
            }
            return Ok(Some(Part::Output { list: Rc::new(list), quoted }));
        }
        if self.take("{") {
            return self.braces().map(|param| Some(Part::Param { param, quoted }));
        }
        let name = match self.peek() {
            Some(c) if "?#@*$!-0123456789".contains(c) => {
                self.at += 1;
                c.to_string()
            }
            _ => match self.name() {
                Some(name) => name,
                None => return Ok(None),
            },
        };
        Ok(Some(Part::Param { param: Param { name, act: Act::Value }, quoted }))
    }

    /// The text of `$((…))`, up to its end.
    fn arithmetic(&mut self) -> Result<Word, Fault> {
        let (mut depth, mut word, mut text) = (0, Word::new(), String::new());
        loop {
            match self.peek().ok_or(Fault::Open)? {
                ')' if depth == 0 => {
                    if !self.take("))") {
                        return Err(self.unexpected());
                    }
                    break;
                }
                '$' | '`' => match self.dollar(true)? {
                    Some(part) => {
                        word.push(Part::Quoted(std::mem::take(&mut text)));
                        word.push(part);
                    }
                    None => text.push('$'),
                },
                c => {
                    depth += i32::from(c == '(') - i32::from(c == ')');
                    text.push(c);
                    self.at += 1;
                }
            }
        }
        word.push(Part::Quoted(text));
        Ok(word)
    }

    /// What follows `${`.
    fn braces(&mut self) -> Result<Param, Fault> {
        let length = self.peek() == Some('#') && self.text.get(self.at + 1).is_some_and(|c| *c != '}');
        self.at += usize::from(length);
        let name = match self.peek() {
            Some(c) if c.is_ascii_digit() => {
                let mut digits = String::new();
                while let Some(c) = self.peek().filter(char::is_ascii_digit) {
                    digits.push(c);
                    self.at += 1;
                }
                digits
            }
            Some(c) if "?#@*$!-".contains(c) => {
                self.at += 1;
                c.to_string()
            }
            _ => self.name().ok_or_else(|| self.unexpected())?,
        };
        if length {
            return if self.take("}") { Ok(Param { name, act: Act::Length }) } else { Err(self.unexpected()) };
        }
        let empty = self.take(":");
        let act = match self.peek().ok_or(Fault::Open)? {
            '}' if !empty => {
                self.at += 1;
                return Ok(Param { name, act: Act::Value });
            }
            kind @ ('-' | '=' | '?' | '+') => {
                self.at += 1;
                Act::Unless { kind, empty, word: self.inside_braces()? }
            }
            kind @ ('#' | '%') if !empty => {
                self.at += 1;
                let longest = self.peek() == Some(kind);
                self.at += usize::from(longest);
                Act::Cut { kind, longest, pattern: self.inside_braces()? }
            }
            _ => return Err(Fault::Wrong("bad substitution".to_owned())),
        };
        Ok(Param { name, act })
    }

    fn inside_braces(&mut self) -> Result<Word, Fault> {
        let mut word = Word::new();
        loop {
            match self.peek().ok_or(Fault::Open)? {
                '}' => {
                    self.at += 1;
                    return Ok(word);
                }
                // What would end a word elsewhere is a part of it here.
                c if is_end_of_word(c) => {
                    word.push(Part::Plain(c.to_string()));
                    self.at += 1;
                }
                _ => {
                    let end = self.closing_brace()?;
                    let rest = self.text.split_off(end);
                    let inner = self.word();
                    self.text.extend(rest);
                    word.extend(inner?.unwrap_or_default());
                }
            }
        }
    }

    /// Where the brace is that closes the one that is open here.
    fn closing_brace(&self) -> Result<usize, Fault> {
        let (mut depth, mut at, mut quote) = (0, self.at, None);
        while let Some(c) = self.text.get(at) {
            match (quote, c) {
                (_, '\\') if quote != Some('\'') => at += 1,
                (None, '\'' | '"') => quote = Some(*c),
                (Some(open), c) if open == *c => quote = None,
                (Some('\''), _) => {}
                (_, '{') if at > 0 && self.text[at - 1] == '$' => depth += 1,
                (_, '}') if depth == 0 && quote.is_none() => return Ok(at),
                (_, '}') if depth > 0 => depth -= 1,
                _ => {}
            }
            at += 1;
        }
        Err(Fault::Open)
    }
}

fn is_end_of_word(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n' | ';' | '&' | '|' | '<' | '>' | '(' | ')')
}

/// Whether a text may name a variable.
pub fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c == '_' || c.is_ascii_alphabetic())
        && chars.all(|c| c == '_' || c.is_ascii_alphanumeric())
}

fn flush(word: &mut Word, plain: &mut String) {
    if !plain.is_empty() {
        word.push(Part::Plain(std::mem::take(plain)));
    }
}

fn push(word: &mut Word, plain: &mut String, part: Part) {
    flush(word, plain);
    word.push(part);
}
