//! Programs that show which files there are.

use std::fs;
use std::time::SystemTime;

use super::{Cx, Fail, Options, Outcome, at, report};
use crate::applets::report::stamp;
use crate::files::{self, Kind, Stat};
use crate::platform;

pub(super) fn ls(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "alA1dRhtrSnF", &[("all", 'a')])?;
    let own = [".".to_owned()];
    let paths = if options.rest.is_empty() { &own[..] } else { &options.rest };
    let (mut code, mut plain, mut dirs) = (0, Vec::new(), Vec::new());
    for path in paths {
        let full = cx.path(path);
        // A link that was named is followed; one that leads nowhere is shown itself.
        let long = options.has('l') || options.has('d');
        let found =
            if long { files::stat_link(&full) } else { files::stat(&full).or_else(|_| files::stat_link(&full)) };
        match found {
            Ok(stat) if stat.kind == Kind::Dir && !options.has('d') => dirs.push((path.clone(), full)),
            Ok(stat) => plain.push((path.clone(), full, stat)),
            Err(error) => code = report(cx, "ls", at(path, &full, &error)),
        }
    }
    let several = paths.len() > 1 || options.has('R');
    show(cx, &options, &mut plain)?;
    let mut first = plain.is_empty();
    dirs.reverse();
    while let Some((path, full)) = dirs.pop() {
        if several {
            cx.line(&format!("{}{path}:", if first { "" } else { "\n" }))?;
        }
        first = false;
        let names = match files::list(&full) {
            Ok(names) => names,
            Err(error) => {
                code = report(cx, "ls", at(&path, &full, &error));
                continue;
            }
        };
        let hidden = options.has('a') || options.has('A');
        let names = names.into_iter().filter(|name| hidden || !name.starts_with('.'));
        let mut entries: Vec<_> = names
            .filter_map(|name| {
                let full = files::join(&full, &name);
                files::stat_link(&full).ok().map(|stat| (name, full, stat))
            })
            .collect();
        if options.has('R') {
            for (name, full, _) in entries.iter().rev().filter(|(_, _, stat)| stat.kind == Kind::Dir) {
                dirs.push((files::join(&path, name), full.clone()));
            }
        }
        if options.has('a') {
            for name in ["..", "."] {
                let full = files::resolve(&full, name);
                if let Ok(stat) = files::stat(&full) {
                    entries.insert(0, (name.to_owned(), full, stat));
                }
            }
        }
        show(cx, &options, &mut entries)?;
    }
    Ok(code)
}

fn show(cx: &mut Cx, options: &Options, entries: &mut [(String, String, Stat)]) -> Result<(), Fail> {
    if options.has('t') {
        entries.sort_by_key(|(_, _, stat)| std::cmp::Reverse(stat.modified));
    }
    if options.has('S') {
        entries.sort_by_key(|(_, _, stat)| std::cmp::Reverse(stat.size));
    }
    if options.has('r') {
        entries.reverse();
    }
    let width = entries.iter().map(|(_, _, stat)| size(options, stat.size).len()).max().unwrap_or(0);
    for (name, full, stat) in entries.iter() {
        let mark = match (options.has('F'), stat.kind) {
            (true, Kind::Dir) => "/",
            (true, Kind::Link) => "@",
            _ => "",
        };
        if !options.has('l') {
            cx.line(&format!("{name}{mark}"))?;
            continue;
        }
        let target = match stat.kind {
            Kind::Link => fs::read_link(full).map(|to| format!(" -> {}", to.display())).unwrap_or_default(),
            _ => String::new(),
        };
        let size = size(options, stat.size);
        // There are no owners and no modes in the sandbox: only what a path is, how large, and how old.
        let kind = match stat.kind {
            Kind::Dir => 'd',
            Kind::Link => 'l',
            Kind::File => '-',
        };
        let when = stamp("%Y-%m-%d %H:%M", stat.modified);
        cx.line(&format!("{kind} {size:>width$} {when} {name}{mark}{target}"))?;
    }
    Ok(())
}

fn size(options: &Options, bytes: u64) -> String {
    if options.has('h') { human(bytes) } else { bytes.to_string() }
}

/// A size in few letters: `1.5M`.
pub(super) fn human(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "");
    for next in ["K", "M", "G", "T"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit.is_empty() { bytes.to_string() } else { format!("{value:.1}{unit}") }
}

pub(super) fn du(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "shkam", &[])?;
    let own = [".".to_owned()];
    for path in if options.rest.is_empty() { &own[..] } else { &options.rest } {
        let full = cx.path(path);
        files::stat_link(&full).map_err(|error| at(path, &full, &error))?;
        let total = add_up(cx, &options, path, &full)?;
        tell(cx, &options, path, total)?;
    }
    Ok(0)
}

fn add_up(cx: &mut Cx, options: &Options, path: &str, full: &str) -> Result<u64, Fail> {
    if platform::step() {
        return Err(Fail::Quiet(130));
    }
    let stat = files::stat_link(full)?;
    if stat.kind != Kind::Dir {
        return Ok(stat.size);
    }
    let mut total = 0;
    for name in files::list(full)? {
        let (path, full) = (files::join(path, &name), files::join(full, &name));
        let size = add_up(cx, options, &path, &full)?;
        let is_dir = files::stat_link(&full).is_ok_and(|stat| stat.kind == Kind::Dir);
        if !options.has('s') && (is_dir || options.has('a')) {
            tell(cx, options, &path, size)?;
        }
        total += size;
    }
    Ok(total)
}

fn tell(cx: &mut Cx, options: &Options, path: &str, bytes: u64) -> Result<(), Fail> {
    let size = if options.has('h') { human(bytes) } else { bytes.div_ceil(1024).to_string() };
    cx.line(&format!("{size}\t{path}"))
}

pub(super) fn readlink(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "fn", &[])?;
    let Some(path) = options.rest.first() else { return Err(Fail::Say("missing operand".to_owned())) };
    let full = cx.path(path);
    match fs::read_link(&full) {
        Ok(target) => cx.line(&target.to_string_lossy())?,
        Err(_) if options.has('f') && files::stat(&full).is_ok() => cx.line(&full)?,
        Err(_) => return Ok(1),
    }
    Ok(0)
}

/// Whether a file is younger than another moment.
pub(super) fn is_newer(stat: &Stat, than: SystemTime) -> bool {
    stat.modified > than
}

/// A path without links and without `..`.
pub(super) fn realpath(cx: &mut Cx, args: &[String]) -> Outcome {
    let mut code = 0;
    for path in args.iter().filter(|arg| !arg.starts_with('-')) {
        let mut full = cx.path(path);
        // As many links as Linux follows.
        for _ in 0..40 {
            let Ok(target) = fs::read_link(&full) else { break };
            full = files::resolve(&files::resolve(&full, ".."), &target.to_string_lossy());
        }
        match files::stat(&full) {
            Ok(_) => cx.line(&full)?,
            Err(error) => code = report(cx, "realpath", at(path, &full, &error)),
        }
    }
    Ok(code)
}

pub(super) fn stat(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "Lc:", &[("format", 'c'), ("dereference", 'L')])?;
    let format = options.value('c').unwrap_or("  File: %n\n  Size: %s\t%F\nModify: %y");
    let mut code = 0;
    for path in &options.rest {
        let full = cx.path(path);
        let found = if options.has('L') { files::stat(&full) } else { files::stat_link(&full) };
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                code = report(cx, "stat", at(path, &full, &error));
                continue;
            }
        };
        let (mut text, mut chars) = (String::new(), format.chars());
        while let Some(c) = chars.next() {
            match (c, if c == '%' { chars.next() } else { None }) {
                ('%', Some('n')) => text.push_str(path),
                ('%', Some('s')) => text.push_str(&found.size.to_string()),
                ('%', Some('F')) => text.push_str(match found.kind {
                    Kind::Dir => "directory",
                    Kind::Link => "symbolic link",
                    Kind::File if found.size == 0 => "regular empty file",
                    Kind::File => "regular file",
                }),
                ('%', Some('y')) => text.push_str(&stamp("%F %T.%N +0000", found.modified)),
                ('%', Some('Y')) => text.push_str(&stamp("%s", found.modified)),
                ('%', Some('%')) => text.push('%'),
                ('%', other) => {
                    let other = other.map(String::from).unwrap_or_default();
                    return Err(Fail::Say(format!("%{other}: only n, s, F, y and Y are known here")));
                }
                (c, _) => text.push(c),
            }
        }
        cx.line(&text)?;
    }
    Ok(code)
}
