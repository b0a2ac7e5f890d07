//! Text in, text out.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::time::Duration;

use super::{Cx, Fail, Options, Outcome, basename, each_input, each_line, number};
use crate::io::Input;
use crate::platform;

/// How often a followed file is looked at.
pub(super) const FOLLOW_EVERY: Duration = Duration::from_millis(500);

pub(super) fn echo(cx: &mut Cx, args: &[String]) -> Outcome {
    let (mut newline, mut escapes, mut at) = (true, false, 0);
    while let Some(letters) = args.get(at).and_then(|arg| arg.strip_prefix('-')).filter(|l| !l.is_empty()) {
        if !letters.chars().all(|letter| "neE".contains(letter)) {
            break;
        }
        newline &= !letters.contains('n');
        escapes = letters.contains('e') || (escapes && !letters.contains('E'));
        at += 1;
    }
    let mut text = args[at..].join(" ");
    if escapes {
        let (unescaped, go_on) = unescape(&text);
        text = unescaped;
        newline &= go_on;
    }
    if newline {
        text.push('\n');
    }
    cx.stdout.write_all(text.as_bytes())?;
    Ok(0)
}

/// Resolves `\n` and its like; false if `\c` says that nothing follows.
fn unescape(text: &str) -> (String, bool) {
    let (mut out, mut chars) = (String::new(), text.chars().peekable());
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some('a') => out.push('\x07'),
            Some('b') => out.push('\x08'),
            Some('e') => out.push('\x1b'),
            Some('f') => out.push('\x0c'),
            Some('v') => out.push('\x0b'),
            Some('\\') => out.push('\\'),
            Some('c') => return (out, false),
            Some(first @ '0'..='7') => {
                let mut code = first.to_digit(8).unwrap_or(0);
                while let Some(digit) = chars.peek().and_then(|c| c.to_digit(8)).filter(|_| code < 64) {
                    code = code * 8 + digit;
                    chars.next();
                }
                out.push(char::from(code as u8));
            }
            Some('x') => {
                let mut code = 0;
                for _ in 0..2 {
                    let Some(digit) = chars.peek().and_then(|c| c.to_digit(16)) else { break };
                    code = code * 16 + digit;
                    chars.next();
                }
                out.push(char::from(code as u8));
            }
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    (out, true)
}

pub(super) fn printf(cx: &mut Cx, args: &[String]) -> Outcome {
    let Some((format, mut values)) = args.split_first() else {
        return Err(Fail::Code(2, "usage: printf FORMAT [ARG]...".to_owned()));
    };
    loop {
        let before = values.len();
        let (text, go_on) = format_once(format, &mut values)?;
        cx.stdout.write_all(text.as_bytes())?;
        // The format is used again as long as it takes up values.
        if !go_on || values.is_empty() || values.len() == before {
            return Ok(0);
        }
    }
}

fn format_once(format: &str, values: &mut &[String]) -> Result<(String, bool), Fail> {
    let (mut out, mut rest) = (String::new(), format);
    while let Some(at) = rest.find('%') {
        let (text, go_on) = unescape(&rest[..at]);
        out.push_str(&text);
        if !go_on {
            return Ok((out, false));
        }
        rest = &rest[at + 1..];
        let length = rest.find(|c: char| c.is_ascii_alphabetic() || c == '%').unwrap_or(rest.len());
        let Some(kind) = rest[length..].chars().next() else { return Err(format!("%{rest}: invalid format").into()) };
        let spec = &rest[..length];
        rest = &rest[length + 1..];
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match values.split_first() {
            Some((first, others)) => {
                *values = others;
                first.as_str()
            }
            None => "",
        };
        let (text, go_on) = match kind {
            'b' => unescape(value),
            _ => (convert(kind, value, spec)?, true),
        };
        out.push_str(&pad(&text, spec, kind));
        if !go_on {
            return Ok((out, false));
        }
    }
    let (text, go_on) = unescape(rest);
    out.push_str(&text);
    Ok((out, go_on))
}

fn convert(kind: char, value: &str, spec: &str) -> Result<String, Fail> {
    let integer = || -> Result<i64, Fail> {
        if value.is_empty() {
            return Ok(0);
        }
        if let Some(c) = value.strip_prefix(['\'', '"']) {
            return Ok(c.chars().next().map_or(0, |c| i64::from(u32::from(c))));
        }
        let parsed = match value.strip_prefix("0x") {
            Some(hex) => i64::from_str_radix(hex, 16).ok(),
            None => value.parse().ok(),
        };
        parsed.ok_or_else(|| Fail::Say(format!("invalid number '{value}'")))
    };
    let precision = spec.split_once('.').and_then(|(_, digits)| digits.parse::<usize>().ok());
    Ok(match kind {
        's' => value.chars().take(precision.unwrap_or(usize::MAX)).collect(),
        'c' => value.chars().take(1).collect(),
        'd' | 'i' | 'u' => {
            let number = integer()?;
            if spec.contains('+') && number >= 0 { format!("+{number}") } else { number.to_string() }
        }
        'x' => format!("{:x}", integer()?),
        'X' => format!("{:X}", integer()?),
        'o' => format!("{:o}", integer()?),
        'f' | 'g' | 'e' => {
            let number: f64 = if value.is_empty() { 0.0 } else { number(value)? };
            format!("{number:.*}", precision.unwrap_or(6))
        }
        other => return Err(format!("%{other}: invalid format").into()),
    })
}

fn pad(text: &str, spec: &str, kind: char) -> String {
    let flags = spec.trim_start_matches(['-', '+', ' ', '#', '0']);
    let width: usize = flags.split('.').next().and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let given = &spec[..spec.len() - flags.len()];
    let missing = width.saturating_sub(text.chars().count());
    match (given.contains('-'), given.contains('0') && kind != 's') {
        (true, _) => format!("{text}{}", " ".repeat(missing)),
        (false, true) => match text.strip_prefix('-') {
            Some(digits) => format!("-{}{digits}", "0".repeat(missing)),
            None => format!("{}{text}", "0".repeat(missing)),
        },
        (false, false) => format!("{}{text}", " ".repeat(missing)),
    }
}

pub(super) fn cat(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "nu", &[])?;
    let mut count = 0;
    each_input(cx, "cat", &options.rest, |cx, _, mut input| {
        if options.has('n') {
            return each_line(&input, |line| {
                count += 1;
                write!(cx.stdout, "{count:6}\t")?;
                cx.stdout.write_all(line)?;
                Ok(true)
            });
        }
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match input.read(&mut buffer)? {
                0 => return Ok(()),
                count => cx.stdout.write_all(&buffer[..count])?,
            }
            if input.is_terminal() {
                cx.stdout.flush()?;
            }
        }
    })
}

/// `-5` as `-n 5`, as it has always been.
pub(super) fn with_count(args: &[String]) -> Vec<String> {
    let old = |arg: &String| arg.len() > 1 && arg.starts_with('-') && arg[1..].bytes().all(|b| b.is_ascii_digit());
    args.iter()
        .flat_map(|arg| if old(arg) { vec!["-n".to_owned(), arg[1..].to_owned()] } else { vec![arg.clone()] })
        .collect()
}

pub(super) fn head(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(&with_count(args), "n:c:q", &[("lines", 'n'), ("bytes", 'c')])?;
    let bytes = options.value('c').map(number::<u64>).transpose()?;
    let lines: u64 = options.value('n').map_or(Ok(10), number)?;
    let several = options.rest.len() > 1 && !options.has('q');
    each_input(cx, "head", &options.rest, |cx, path, input| {
        if several {
            cx.line(&format!("==> {path} <=="))?;
        }
        if let Some(bytes) = bytes {
            std::io::copy(&mut input.take(bytes), &mut cx.stdout)?;
            return Ok(());
        }
        let mut left = lines;
        while left > 0 {
            let mut line = Vec::new();
            if input.read_line(&mut line)? == 0 {
                break;
            }
            cx.stdout.write_all(&line)?;
            left -= 1;
        }
        Ok(())
    })
}

pub(super) fn tail(cx: &mut Cx, args: &[String]) -> Outcome {
    let (code, followed) = tail_once(cx, args)?;
    if let Some(mut input) = followed {
        loop {
            if std::io::copy(&mut input, &mut cx.stdout)? == 0 {
                platform::sleep(FOLLOW_EVERY)?;
            }
        }
    }
    Ok(code)
}

/// The ends of the files, and the last one of them if it is to be followed.
pub(super) fn tail_once(cx: &mut Cx, args: &[String]) -> Result<(i32, Option<Input>), Fail> {
    let options = Options::read(&with_count(args), "n:c:fFq", &[("lines", 'n'), ("bytes", 'c'), ("follow", 'f')])?;
    let (in_bytes, count) = match options.value('c') {
        Some(count) => (true, count),
        None => (false, options.value('n').unwrap_or("10")),
    };
    // `+5` is the fifth and what follows, `5` and `-5` are the last five.
    let (from_start, count) = match count.strip_prefix('+') {
        Some(count) => (true, number::<usize>(count)?.saturating_sub(1)),
        None => (false, number::<usize>(count.trim_start_matches('-'))?),
    };
    let several = options.rest.len() > 1 && !options.has('q');
    let mut last = None;
    let code = each_input(cx, "tail", &options.rest, |cx, path, mut input| {
        if several {
            cx.line(&format!("==> {path} <=="))?;
        }
        match (from_start, in_bytes) {
            (true, true) => {
                std::io::copy(&mut (&mut input).take(count as u64), &mut std::io::sink())?;
                std::io::copy(&mut input, &mut cx.stdout)?;
            }
            (true, false) => {
                let mut skip = count;
                each_line(&input, |line| {
                    if skip > 0 {
                        skip -= 1;
                    } else {
                        cx.stdout.write_all(line)?;
                    }
                    Ok(true)
                })?;
            }
            (false, true) => {
                let mut bytes = Vec::new();
                input.read_to_end(&mut bytes)?;
                cx.stdout.write_all(&bytes[bytes.len().saturating_sub(count)..])?;
            }
            (false, false) => {
                let mut lines: VecDeque<Vec<u8>> = VecDeque::new();
                each_line(&input, |line| {
                    lines.push_back(line.to_vec());
                    if lines.len() > count {
                        lines.pop_front();
                    }
                    Ok(true)
                })?;
                lines.iter().try_for_each(|line| cx.stdout.write_all(line))?;
            }
        }
        last = Some(input);
        Ok(())
    })?;
    Ok((code, last.filter(|_| options.has('f') || options.has('F'))))
}

pub(super) fn wc(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "lwcm", &[])?;
    let all = !"lwcm".chars().any(|letter| options.has(letter));
    let mut total = [0_usize; 3];
    let show = |cx: &mut Cx, counts: [usize; 3], name: &str| {
        let wanted = [all || options.has('l'), all || options.has('w'), all || options.has('c') || options.has('m')];
        let shown: Vec<String> =
            counts.iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(count, _)| count.to_string()).collect();
        let name = if name == "-" || name.is_empty() { String::new() } else { format!(" {name}") };
        let text = if shown.len() > 1 {
            shown.iter().map(|count| format!("{count:>9}")).collect::<Vec<_>>().join(" ")
        } else {
            shown.join(" ")
        };
        cx.line(&format!("{text}{name}"))
    };
    let code = each_input(cx, "wc", &options.rest, |cx, path, mut input| {
        let (mut counts, mut in_word, mut buffer) = ([0_usize; 3], false, vec![0; 16 * 1024]);
        loop {
            let count = input.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            counts[2] += count;
            for byte in &buffer[..count] {
                counts[0] += usize::from(*byte == b'\n');
                let space = byte.is_ascii_whitespace();
                counts[1] += usize::from(!space && !in_word);
                in_word = !space;
            }
        }
        total.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
        show(cx, counts, path)
    })?;
    if options.rest.len() > 1 {
        show(cx, total, "total")?;
    }
    Ok(code)
}

pub(super) fn sort(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "nrufk:t:o:", &[("reverse", 'r'), ("unique", 'u'), ("numeric-sort", 'n')])?;
    let mut lines: Vec<String> = Vec::new();
    let code = each_input(cx, "sort", &options.rest, |_, _, input| {
        each_line(&input, |line| {
            lines.push(String::from_utf8_lossy(line).trim_end_matches('\n').to_owned());
            Ok(true)
        })
    })?;
    let field = options.value('k').map(|key| number::<usize>(key.split([',', '.', 'n', 'r']).next().unwrap_or(key)));
    let field = field.transpose()?.map(|field| field.max(1) - 1);
    let by_number = options.has('n') || options.value('k').is_some_and(|key| key.contains('n'));
    let reverse = options.has('r') || options.value('k').is_some_and(|key| key.contains('r'));
    let key = |line: &str| -> String {
        let text = match (field, options.value('t')) {
            (None, _) => line.to_owned(),
            (Some(field), Some(by)) => line.split(by).skip(field).collect::<Vec<_>>().join(by),
            (Some(field), None) => line.split_whitespace().skip(field).collect::<Vec<_>>().join(" "),
        };
        if options.has('f') { text.to_lowercase() } else { text }
    };
    let value = |text: &str| -> f64 {
        let text = text.trim_start();
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-')).unwrap_or(text.len());
        text[..end].parse().unwrap_or(0.0)
    };
    lines.sort_by(|one, other| {
        let (a, b) = (key(one), key(other));
        let order = if by_number {
            value(&a).total_cmp(&value(&b)).then_with(|| one.cmp(other))
        } else {
            a.cmp(&b).then_with(|| one.cmp(other))
        };
        if reverse { order.reverse() } else { order }
    });
    if options.has('u') {
        lines.dedup_by(|one, other| key(one) == key(other));
    }
    let mut out = match options.value('o') {
        Some(path) => cx.create(path, false)?,
        None => cx.stdout.clone(),
    };
    lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    Ok(code)
}

pub(super) fn uniq(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "cdu", &[])?;
    let input = cx.open(options.rest.first().map_or("-", String::as_str))?;
    let mut groups: Vec<(usize, Vec<u8>)> = Vec::new();
    each_line(&input, |line| {
        match groups.last_mut().filter(|(_, last)| last == line) {
            Some((count, _)) => *count += 1,
            None => groups.push((1, line.to_vec())),
        }
        Ok(true)
    })?;
    for (count, line) in groups {
        if (options.has('d') && count == 1) || (options.has('u') && count > 1) {
            continue;
        }
        if options.has('c') {
            write!(cx.stdout, "{count:7} ")?;
        }
        cx.stdout.write_all(&line)?;
    }
    Ok(0)
}

pub(super) fn cut(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "d:f:c:b:s", &[])?;
    let list = options.value('f').or(options.value('c')).or(options.value('b'));
    let list = list.ok_or_else(|| Fail::Say("give a list of fields (-f) or characters (-c)".to_owned()))?;
    let mut ranges = Vec::new();
    for part in list.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let from = if from.is_empty() { 1 } else { number::<usize>(from)? };
        ranges.push((from.max(1), if to.is_empty() { usize::MAX } else { number::<usize>(to)? }));
    }
    let wanted = |at: usize| ranges.iter().any(|(from, to)| (*from..=*to).contains(&(at + 1)));
    let by = options.value('d').unwrap_or("\t").to_owned();
    let fields = options.has('f');
    each_input(cx, "cut", &options.rest, |cx, _, input| {
        each_line(&input, |line| {
            let line = String::from_utf8_lossy(line);
            let line = line.trim_end_matches('\n');
            if !fields {
                let kept: String = line.chars().enumerate().filter(|(at, _)| wanted(*at)).map(|(_, c)| c).collect();
                cx.line(&kept)?;
            } else if line.contains(&by) {
                let kept: Vec<_> = line.split(&by).enumerate().filter(|(at, _)| wanted(*at)).map(|(_, f)| f).collect();
                cx.line(&kept.join(&by))?;
            } else if !options.has('s') {
                cx.line(line)?;
            }
            Ok(true)
        })
    })
}

/// The characters of a set such as `a-z\n` or `[:upper:]`.
fn set_of(text: &str) -> Vec<char> {
    let mut text = unescape(text).0;
    for (class, chars) in [
        ("[:upper:]", "A-Z"),
        ("[:lower:]", "a-z"),
        ("[:digit:]", "0-9"),
        ("[:alpha:]", "A-Za-z"),
        ("[:alnum:]", "A-Za-z0-9"),
        ("[:space:]", " \t\n\r\x0b\x0c"),
        ("[:punct:]", "!-/:-@[-`{-~"),
    ] {
        text = text.replace(class, chars);
    }
    let (chars, mut set, mut at) = (text.chars().collect::<Vec<_>>(), Vec::new(), 0);
    while at < chars.len() {
        match chars.get(at..at + 3) {
            Some([from, '-', to]) if from <= to => {
                set.extend(*from..=*to);
                at += 3;
            }
            _ => {
                set.push(chars[at]);
                at += 1;
            }
        }
    }
    set
}

pub(super) fn tr(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "dsc", &[])?;
    let set = |at: usize| options.rest.get(at).map(|text| set_of(text)).unwrap_or_default();
    let (from, to) = (set(0), set(1));
    let is_in = |c: char| from.contains(&c) != options.has('c');
    let mapped = |c: char| match to.last() {
        Some(end) if options.has('c') => *end,
        Some(end) => {
            let at = from.iter().position(|known| *known == c).unwrap_or(0);
            to.get(at).copied().unwrap_or(*end)
        }
        None => c,
    };
    let (squeeze, mut last) = (options.has('s'), None);
    each_line(&cx.stdin.clone(), |line| {
        let mut text = String::new();
        for c in String::from_utf8_lossy(line).chars() {
            let found = is_in(c);
            if found && options.has('d') {
                continue;
            }
            let c = if found { mapped(c) } else { c };
            if squeeze && found && last == Some(c) {
                continue;
            }
            last = found.then_some(c);
            text.push(c);
        }
        cx.stdout.write_all(text.as_bytes())?;
        Ok(true)
    })?;
    Ok(0)
}

/// The first number of `seq`, its steps, and the last number.
pub(super) fn numbers(args: &[String]) -> Result<(i64, i64, i64), Fail> {
    let numbers: Vec<i64> = args.iter().map(|arg| number(arg)).collect::<Result<_, _>>()?;
    match numbers[..] {
        [to] => Ok((1, 1, to)),
        [from, to] => Ok((from, 1, to)),
        [from, by, to] if by != 0 => Ok((from, by, to)),
        _ => Err(Fail::Say("usage: seq [FIRST [INCREMENT]] LAST".to_owned())),
    }
}

pub(super) fn seq(cx: &mut Cx, args: &[String]) -> Outcome {
    let (mut at, by, to) = numbers(args)?;
    while if by > 0 { at <= to } else { at >= to } {
        cx.line(&at.to_string())?;
        at = at.saturating_add(by);
    }
    Ok(0)
}

pub(super) fn basename_of(cx: &mut Cx, args: &[String]) -> Outcome {
    let path = args.first().ok_or_else(|| Fail::Say("usage: basename PATH [SUFFIX]".to_owned()))?;
    let name = basename(path);
    let cut = args.get(1).and_then(|suffix| name.strip_suffix(suffix.as_str())).filter(|name| !name.is_empty());
    cx.line(cut.unwrap_or(name))?;
    Ok(0)
}

pub(super) fn dirname(cx: &mut Cx, args: &[String]) -> Outcome {
    let path = args.first().ok_or_else(|| Fail::Say("usage: dirname PATH".to_owned()))?;
    let dir = match path.trim_end_matches('/').rsplit_once('/') {
        Some(("", _)) => "/",
        Some((dir, _)) => dir.trim_end_matches('/'),
        None if path.starts_with('/') => "/",
        None => ".",
    };
    cx.line(dir)?;
    Ok(0)
}

/// The line that `yes` repeats.
pub(super) fn line_of_yes(args: &[String]) -> String {
    if args.is_empty() { "y\n".to_owned() } else { format!("{}\n", args.join(" ")) }
}

pub(super) fn yes(cx: &mut Cx, args: &[String]) -> Outcome {
    let line = line_of_yes(args);
    loop {
        cx.stdout.write_all(line.as_bytes())?;
    }
}

pub(super) fn tac(cx: &mut Cx, args: &[String]) -> Outcome {
    let mut lines = Vec::new();
    let code = each_input(cx, "tac", args, |_, _, input| {
        each_line(&input, |line| {
            lines.push(line.to_vec());
            Ok(true)
        })
    })?;
    lines.iter().rev().try_for_each(|line| cx.stdout.write_all(line))?;
    Ok(code)
}

pub(super) fn rev(cx: &mut Cx, args: &[String]) -> Outcome {
    each_input(cx, "rev", args, |cx, _, input| {
        each_line(&input, |line| {
            let text = String::from_utf8_lossy(line);
            let reversed: String = text.trim_end_matches('\n').chars().rev().collect();
            cx.line(&reversed)?;
            Ok(true)
        })
    })
}
