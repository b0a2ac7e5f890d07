//! `grep`.

use std::io::Write;

use regex_lite::{Regex, RegexBuilder};

use super::{Cx, Fail, Options, Outcome, at, each_line, report};
use crate::files::{self, Kind};

const LONG: &[(&str, char)] = &[
    ("ignore-case", 'i'),
    ("invert-match", 'v'),
    ("line-number", 'n'),
    ("count", 'c'),
    ("files-with-matches", 'l'),
    ("quiet", 'q'),
    ("recursive", 'r'),
    ("extended-regexp", 'E'),
    ("fixed-strings", 'F'),
    ("only-matching", 'o'),
    ("word-regexp", 'w'),
    ("regexp", 'e'),
    ("color", '\0'),
];

/// What was found in all files.
#[derive(Default)]
struct Found {
    any: bool,
    failed: bool,
}

pub(super) fn grep(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "ivnclqrREFowxshHe:", LONG).map_err(usage)?;
    let mut paths = options.rest.clone();
    let mut patterns: Vec<String> = options.values('e').map(str::to_owned).collect();
    if patterns.is_empty() {
        if paths.is_empty() {
            return Err(usage(Fail::Say("a pattern is missing".to_owned())));
        }
        patterns.push(paths.remove(0));
    }
    let regex = compile(&patterns, &options).map_err(usage)?;
    let recursive = options.has('r') || options.has('R');
    if paths.is_empty() {
        paths.push(if recursive { "." } else { "-" }.to_owned());
    }
    let named = (paths.len() > 1 || recursive || options.has('H')) && !options.has('h');
    let mut found = Found::default();
    for path in &paths {
        search(cx, &options, &regex, path, named, &mut found)?;
    }
    Ok(match found {
        Found { any: true, failed: false } => 0,
        Found { failed: true, .. } => 2,
        Found { .. } => 1,
    })
}

fn usage(fail: Fail) -> Fail {
    match fail {
        Fail::Say(text) => Fail::Code(2, text),
        other => other,
    }
}

/// One pattern as `sed` has it.
pub(super) fn regex(pattern: &str, is_extended: bool, any_case: bool) -> Result<Regex, Fail> {
    build(&if is_extended { pattern.to_owned() } else { extended(pattern) }, any_case)
}

fn build(whole: &str, any_case: bool) -> Result<Regex, Fail> {
    let whole = whole.replace(r"\<", r"\b").replace(r"\>", r"\b");
    let built = RegexBuilder::new(&whole).case_insensitive(any_case).build();
    built.map_err(|error| Fail::Say(format!("bad pattern: {error}")))
}

fn compile(patterns: &[String], options: &Options) -> Result<Regex, Fail> {
    let translated = patterns.iter().flat_map(|pattern| pattern.split('\n')).map(|pattern| {
        let pattern = match (options.has('F'), options.has('E')) {
            (true, _) => regex_lite::escape(pattern),
            (false, true) => pattern.to_owned(),
            (false, false) => extended(pattern),
        };
        match (options.has('x'), options.has('w')) {
            (true, _) => format!("^(?:{pattern})$"),
            (_, true) => format!(r"\b(?:{pattern})\b"),
            _ => format!("(?:{pattern})"),
        }
    });
    build(&translated.collect::<Vec<_>>().join("|"), options.has('i'))
}

/// A basic regular expression as an extended one: there `+?(){}|` are plain, and special behind a backslash.
fn extended(basic: &str) -> String {
    let (mut out, mut chars, mut in_class) = (String::new(), basic.chars().peekable(), false);
    while let Some(c) = chars.next() {
        match c {
            _ if in_class => {
                in_class = c != ']';
                out.push(c);
            }
            '[' => {
                in_class = true;
                out.push(c);
                // A bracket right at the begin is one of the characters.
                if chars.peek() == Some(&'^') {
                    out.extend(chars.next());
                }
                if chars.peek() == Some(&']') {
                    out.push('\\');
                    out.extend(chars.next());
                }
            }
            '+' | '?' | '(' | ')' | '{' | '}' | '|' => out.extend(['\\', c]),
            '*' if out.is_empty() || out.ends_with(r"\(") => out.push_str(r"\*"),
            '\\' => match chars.next() {
                Some(next @ ('+' | '?' | '(' | ')' | '{' | '}' | '|')) => out.push(next),
                Some(next) => out.extend(['\\', next]),
                None => out.push_str(r"\\"),
            },
            _ => out.push(c),
        }
    }
    out
}

fn search(
    cx: &mut Cx,
    options: &Options,
    regex: &Regex,
    path: &str,
    named: bool,
    found: &mut Found,
) -> Result<(), Fail> {
    let full = cx.path(path);
    let recursive = options.has('r') || options.has('R');
    if path != "-" && recursive && files::is_dir(&full) {
        for name in files::list(&full)? {
            let inner = files::join(path, &name);
            if files::stat_link(&cx.path(&inner)).is_ok_and(|stat| stat.kind != Kind::Link) {
                search(cx, options, regex, &inner, named, found)?;
            }
        }
        return Ok(());
    }
    let input = match cx.open(path) {
        Ok(input) => input,
        Err(fail) => {
            found.failed = true;
            if !options.has('s') {
                report(cx, "grep", fail);
            }
            return Ok(());
        }
    };
    let shown = if path == "-" { "(standard input)" } else { path };
    let quiet = options.has('q') || options.has('l') || options.has('c');
    let (mut count, mut number) = (0, 0);
    each_line(&input, |line| {
        number += 1;
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end_matches('\n');
        if regex.is_match(text) == options.has('v') {
            return Ok(true);
        }
        count += 1;
        found.any = true;
        if !quiet {
            let name = if named { format!("{shown}:") } else { String::new() };
            let at = if options.has('n') { format!("{number}:") } else { String::new() };
            if options.has('o') {
                for part in regex.find_iter(text).filter(|part| !part.is_empty()) {
                    writeln!(cx.stdout, "{name}{at}{}", part.as_str())?;
                }
            } else {
                writeln!(cx.stdout, "{name}{at}{text}")?;
            }
        }
        Ok(!(options.has('q') || options.has('l')))
    })
    .map_err(|fail| match fail {
        Fail::Say(text) => at(path, &full, &std::io::Error::other(text)),
        other => other,
    })?;
    if options.has('l') && count > 0 {
        cx.line(shown)?;
    } else if options.has('c') && !options.has('q') {
        let name = if named { format!("{shown}:") } else { String::new() };
        cx.line(&format!("{name}{count}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_expressions_become_extended_ones() {
        for (basic, expected) in [
            ("a+b", r"a\+b"),
            (r"a\+b", "a+b"),
            (r"\(x\)*", "(x)*"),
            ("*a", r"\*a"),
            ("[]a]b", r"[\]a]b"),
            ("[^+]", "[^+]"),
        ] {
            assert_eq!(extended(basic), expected);
        }
    }
}
