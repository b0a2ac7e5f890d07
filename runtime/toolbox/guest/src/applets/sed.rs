//! `sed`: `s`, `d`, `p`, `q`, `=`, `a`, `i`, `c` and `y`, with addresses and ranges. There is no second buffer and there
//! are no branches.

use std::collections::VecDeque;
use std::io::Write;

use regex_lite::Regex;

use super::grep::regex;
use super::{Cx, Fail, Options, Outcome, at, each_input};
use crate::io::Input;

/// Which lines a command is for.
enum Address {
    Number(usize),
    Last,
    Match(Regex),
}

enum Act {
    Substitute { wanted: Regex, by: Vec<Part>, nth: usize, all: bool, print: bool },
    Translate(Vec<char>, Vec<char>),
    Append(String),
    Insert(String),
    Change(String),
    Delete,
    Print,
    Number,
    Quit,
}

/// A piece of what takes the place of a match.
enum Part {
    Text(String),
    Group(usize),
}

struct Command {
    from: Option<Address>,
    to: Option<Address>,
    not: bool,
    /// Whether its range has begun and not ended.
    within: bool,
    act: Act,
}

/// A script and where it is.
pub(super) struct Sed {
    commands: Vec<Command>,
    quiet: bool,
    number: usize,
}

pub(super) fn sed(cx: &mut Cx, args: &[String]) -> Outcome {
    let (mut sed, options, paths) = read(args)?;
    if !options.has('i') {
        let mut waiting: VecDeque<Vec<u8>> = VecDeque::new();
        let mut done = false;
        let code = each_input(cx, "sed", &paths, |cx, _, input| {
            while !done {
                let mut line = Vec::new();
                if input.read_line(&mut line)? == 0 {
                    break;
                }
                waiting.push_back(line);
                // The last line of all is only known by the next one.
                if waiting.len() > 1 {
                    let (line, mut out) = (waiting.pop_front().unwrap_or_default(), Vec::new());
                    done = !sed.line(&line, false, &mut out);
                    cx.stdout.write_all(&out)?;
                }
            }
            Ok(())
        })?;
        if let (false, Some(line)) = (done, waiting.pop_front()) {
            let mut out = Vec::new();
            sed.line(&line, true, &mut out);
            cx.stdout.write_all(&out)?;
        }
        return Ok(code);
    }
    for path in &paths {
        let text = cx.read(path)?;
        let (mut out, mut lines) = (Vec::new(), text.split_inclusive(|byte| *byte == b'\n').peekable());
        sed.number = 0;
        while let Some(line) = lines.next() {
            // What follows a `q` is no part of the file any more.
            if !sed.line(line, lines.peek().is_none(), &mut out) {
                break;
            }
        }
        cx.create(path, false)?.write_all(&out).map_err(|error| at(path, &cx.path(path), &error))?;
    }
    Ok(0)
}

/// A script that reads the command's own input, to be pulled a line at a time.
pub(super) fn of_input(args: &[String]) -> Option<Sed> {
    read(args).ok().filter(|(_, options, paths)| paths.is_empty() && !options.has('i')).map(|(sed, ..)| sed)
}

impl Sed {
    /// Works on the next line of `input`, of which `ahead` was read before; false when there is nothing more to do.
    pub(super) fn pull(
        &mut self,
        input: &Input,
        ahead: &mut Option<Vec<u8>>,
        out: &mut Vec<u8>,
    ) -> std::io::Result<bool> {
        let next = || {
            let mut line = Vec::new();
            input.read_line(&mut line).map(|count| (count > 0).then_some(line))
        };
        if ahead.is_none() {
            *ahead = next()?;
        }
        let Some(line) = ahead.take() else { return Ok(false) };
        *ahead = next()?;
        Ok(self.line(&line, ahead.is_none(), out) && ahead.is_some())
    }

    /// False when the script has ended.
    fn line(&mut self, line: &[u8], last: bool, out: &mut Vec<u8>) -> bool {
        self.number += 1;
        let text = String::from_utf8_lossy(line);
        let (mut text, end) = match text.strip_suffix('\n') {
            Some(text) => (text.to_owned(), "\n"),
            None => (text.into_owned(), ""),
        };
        let (mut after, mut shown, mut on) = (String::new(), !self.quiet, true);
        let number = self.number;
        for command in &mut self.commands {
            if !command.is_for(number, last, &text) {
                continue;
            }
            match &command.act {
                Act::Substitute { wanted, by, nth, all, print } => {
                    if let Some(new) = substitute(&text, wanted, by, *nth, *all) {
                        text = new;
                        if *print {
                            out.extend_from_slice(format!("{text}\n").as_bytes());
                        }
                    }
                }
                Act::Translate(from, to) => {
                    let change = |c: char| from.iter().position(|known| *known == c).map_or(c, |at| to[at]);
                    text = text.chars().map(change).collect();
                }
                Act::Append(more) => after.push_str(&format!("{more}\n")),
                Act::Insert(more) => out.extend_from_slice(format!("{more}\n").as_bytes()),
                Act::Change(other) => {
                    // A range is changed as a whole, at its end.
                    if !command.within {
                        out.extend_from_slice(format!("{other}\n").as_bytes());
                    }
                    shown = false;
                    break;
                }
                Act::Delete => {
                    shown = false;
                    break;
                }
                Act::Print => out.extend_from_slice(format!("{text}\n").as_bytes()),
                Act::Number => out.extend_from_slice(format!("{number}\n").as_bytes()),
                Act::Quit => {
                    on = false;
                    break;
                }
            }
        }
        if shown {
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(if after.is_empty() { end } else { "\n" }.as_bytes());
        }
        out.extend_from_slice(after.as_bytes());
        on
    }
}

impl Command {
    fn is_for(&mut self, number: usize, last: bool, text: &str) -> bool {
        let is = |address: &Address| match address {
            Address::Number(wanted) => *wanted == number,
            Address::Last => last,
            Address::Match(wanted) => wanted.is_match(text),
        };
        let found = match (&self.from, &self.to) {
            (None, _) => true,
            (Some(from), None) => is(from),
            (Some(_), Some(to)) if self.within => {
                self.within = match to {
                    Address::Number(end) => number < *end,
                    to => !is(to),
                };
                true
            }
            (Some(from), Some(to)) => {
                let begins = is(from);
                self.within = begins && !matches!(to, Address::Number(end) if *end <= number) && !last;
                begins
            }
        };
        found != self.not
    }
}

fn substitute(text: &str, wanted: &Regex, by: &[Part], nth: usize, all: bool) -> Option<String> {
    let (mut out, mut from, mut count) = (String::new(), 0, 0);
    for groups in wanted.captures_iter(text) {
        let Some(whole) = groups.get(0) else { continue };
        count += 1;
        if count < nth {
            continue;
        }
        out.push_str(&text[from..whole.start()]);
        for part in by {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Group(group) => out.push_str(groups.get(*group).map_or("", |found| found.as_str())),
            }
        }
        from = whole.end();
        if !all {
            break;
        }
    }
    (count >= nth.max(1)).then(|| out + &text[from..])
}

fn read(args: &[String]) -> Result<(Sed, Options, Vec<String>), Fail> {
    let long = [("quiet", 'n'), ("silent", 'n'), ("expression", 'e'), ("regexp-extended", 'E'), ("in-place", 'i')];
    let options = Options::read(args, "nErie:", &long)?;
    let mut paths = options.rest.clone();
    let mut scripts: Vec<String> = options.values('e').map(str::to_owned).collect();
    if scripts.is_empty() {
        if paths.is_empty() {
            return Err(Fail::Say("usage: sed [-nEi] SCRIPT [FILE]...".to_owned()));
        }
        scripts.push(paths.remove(0));
    }
    let commands = parse(&scripts.join("\n"), options.has('E') || options.has('r'))?;
    Ok((Sed { commands, quiet: options.has('n'), number: 0 }, options, paths))
}

fn parse(script: &str, extended: bool) -> Result<Vec<Command>, Fail> {
    let (mut commands, mut rest) = (Vec::new(), script);
    loop {
        rest = rest.trim_start_matches([' ', '\t', ';', '\n']);
        if rest.is_empty() {
            return Ok(commands);
        }
        if rest.starts_with('#') {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
            continue;
        }
        let from = address(&mut rest, extended)?;
        let mut to = None;
        if let Some(after) = rest.strip_prefix(',') {
            rest = after;
            to = Some(address(&mut rest, extended)?.ok_or_else(|| Fail::Say("a range has no end".to_owned()))?);
        }
        rest = rest.trim_start();
        let not = rest.starts_with('!');
        rest = rest.trim_start_matches(['!', ' ']);
        let act = act(&mut rest, extended)?;
        commands.push(Command { from, to, not, within: false, act });
        let after = rest.trim_start_matches([' ', '\t']);
        if !after.is_empty() && !after.starts_with([';', '\n', '}', '#']) {
            return Err(Fail::Say(format!("extra characters after a command: {after}")));
        }
        rest = after;
    }
}

fn address(rest: &mut &str, extended: bool) -> Result<Option<Address>, Fail> {
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    if digits > 0 {
        let (number, after) = rest.split_at(digits);
        *rest = after;
        return Ok(Some(Address::Number(super::number(number)?)));
    }
    if let Some(after) = rest.strip_prefix('$') {
        *rest = after;
        return Ok(Some(Address::Last));
    }
    if let Some(after) = rest.strip_prefix('/') {
        *rest = after;
        let pattern = until(rest, '/')?;
        return Ok(Some(Address::Match(regex(&pattern, extended, false)?)));
    }
    Ok(None)
}

/// What stands before the next `mark`, which is taken too; one behind a backslash is plain.
fn until(rest: &mut &str, mark: char) -> Result<String, Fail> {
    let (mut out, mut chars) = (String::new(), rest.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == mark => {
                *rest = &rest[at + c.len_utf8()..];
                return Ok(out);
            }
            '\\' => match chars.next() {
                Some((_, next)) if next == mark => out.push(next),
                Some((_, next)) => out.extend(['\\', next]),
                None => out.push('\\'),
            },
            c => out.push(c),
        }
    }
    Err(Fail::Say(format!("a `{mark}` is missing")))
}

fn act(rest: &mut &str, extended: bool) -> Result<Act, Fail> {
    let Some(name) = rest.chars().next() else { return Err(Fail::Say("a command is missing".to_owned())) };
    *rest = &rest[name.len_utf8()..];
    Ok(match name {
        'd' => Act::Delete,
        'p' => Act::Print,
        '=' => Act::Number,
        'q' => Act::Quit,
        'a' | 'i' | 'c' => {
            let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
            // `a\` and the text on the next line, or right behind it.
            let (line, after) = match (line.trim(), after) {
                ("\\", after) => after.split_once('\n').unwrap_or((after, "")),
                (line, after) => (line.strip_prefix('\\').unwrap_or(line), after),
            };
            *rest = after;
            let text = line.to_owned();
            match name {
                'a' => Act::Append(text),
                'i' => Act::Insert(text),
                _ => Act::Change(text),
            }
        }
        's' | 'y' => {
            let mark = rest.chars().next().ok_or_else(|| Fail::Say(format!("`{name}` needs two parts")))?;
            *rest = &rest[mark.len_utf8()..];
            let (wanted, by) = (until(rest, mark)?, until(rest, mark)?);
            if name == 'y' {
                let (from, to): (Vec<char>, Vec<char>) = (wanted.chars().collect(), by.chars().collect());
                if from.len() != to.len() {
                    return Err(Fail::Say("the parts of `y` differ in length".to_owned()));
                }
                return Ok(Act::Translate(from, to));
            }
            flags(rest, &wanted, &by, extended)?
        }
        other => return Err(Fail::Say(format!("unknown command: {other}"))),
    })
}

fn flags(rest: &mut &str, wanted: &str, by: &str, extended: bool) -> Result<Act, Fail> {
    let length = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || "gpiI".contains(c)).len();
    let (flags, after) = rest.split_at(length);
    *rest = after;
    let digits: String = flags.chars().filter(char::is_ascii_digit).collect();
    Ok(Act::Substitute {
        wanted: regex(wanted, extended, flags.contains(['i', 'I']))?,
        by: parts(by),
        nth: if digits.is_empty() { 1 } else { super::number(&digits)? },
        all: flags.contains('g'),
        print: flags.contains('p'),
    })
}

fn parts(by: &str) -> Vec<Part> {
    let (mut parts, mut text, mut chars) = (Vec::new(), String::new(), by.chars());
    while let Some(c) = chars.next() {
        let group = match c {
            '&' => 0,
            '\\' => match chars.next() {
                Some(digit @ '0'..='9') => digit as usize - '0' as usize,
                Some('n') => {
                    text.push('\n');
                    continue;
                }
                Some('t') => {
                    text.push('\t');
                    continue;
                }
                other => {
                    text.extend(other);
                    continue;
                }
            },
            c => {
                text.push(c);
                continue;
            }
        };
        parts.push(Part::Text(std::mem::take(&mut text)));
        parts.push(Part::Group(group));
    }
    parts.push(Part::Text(text));
    parts
}
