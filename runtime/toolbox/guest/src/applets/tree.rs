//! Programs that change files.

use std::fs::{self, OpenOptions};
use std::io;
use std::time::SystemTime;

use super::{Cx, Fail, Options, Outcome, at, basename, report};
use crate::files::{self, Kind};
use crate::platform;

/// Does something with each path; complains about those that fail, and goes on.
fn each(
    cx: &mut Cx,
    name: &str,
    paths: &[String],
    mut act: impl FnMut(&mut Cx, &str, &str) -> Result<(), Fail>,
) -> Outcome {
    if paths.is_empty() {
        return Err(Fail::Say("missing operand".to_owned()));
    }
    let mut code = 0;
    for path in paths {
        let full = cx.path(path);
        match act(cx, path, &full) {
            Ok(()) => {}
            Err(Fail::Quiet(code)) => return Err(Fail::Quiet(code)),
            Err(fail) => code = report(cx, name, fail),
        }
    }
    Ok(code)
}

pub(super) fn mkdir(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "pm:", &[("parents", 'p'), ("mode", 'm')])?;
    each(cx, "mkdir", &options.rest, |_, path, full| {
        if options.has('p') {
            return make_all(full).map_err(|error| at(path, full, &error));
        }
        if files::stat(full).is_ok() {
            return Err(Fail::Say(format!("{path}: File exists")));
        }
        if !files::is_mounted(full) {
            return Err(at(path, full, &io::ErrorKind::ReadOnlyFilesystem.into()));
        }
        fs::create_dir(full).map_err(|error| at(path, full, &error))
    })
}

/// Makes a directory and those above it. Those above the mounted ones are there without anybody having made them.
pub(super) fn make_all(full: &str) -> io::Result<()> {
    if files::is_dir(full) {
        return Ok(());
    }
    if let Some((parent, _)) = full.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) {
        make_all(parent)?;
    }
    if !files::is_mounted(full) {
        return Err(io::ErrorKind::ReadOnlyFilesystem.into());
    }
    fs::create_dir(full)
}

pub(super) fn rmdir(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "", &[])?;
    each(cx, "rmdir", &options.rest, |_, path, full| fs::remove_dir(full).map_err(|error| at(path, full, &error)))
}

pub(super) fn rm(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "rRfv", &[("recursive", 'r'), ("force", 'f')])?;
    if options.rest.is_empty() && options.has('f') {
        return Ok(0);
    }
    let recursive = options.has('r') || options.has('R');
    each(cx, "rm", &options.rest, |_, path, full| {
        let removed = match files::stat_link(full) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && options.has('f') => return Ok(()),
            Ok(stat) if stat.kind == Kind::Dir && !recursive => {
                return Err(Fail::Say(format!("{path}: Is a directory")));
            }
            Ok(_) => files::remove_all(full),
            Err(error) => Err(error),
        };
        removed.map_err(|error| at(path, full, &error))
    })
}

/// The sources and the target of `cp`, `mv` and `ln`: what lies where in the end.
fn pairs(cx: &Cx, paths: &[String]) -> Result<Vec<(String, String)>, Fail> {
    let Some((target, sources)) = paths.split_last().filter(|(_, sources)| !sources.is_empty()) else {
        return Err(Fail::Say("missing destination".to_owned()));
    };
    let full = cx.path(target);
    let into = files::is_dir(&full);
    if sources.len() > 1 && !into {
        return Err(Fail::Say(format!("{target}: Not a directory")));
    }
    let place = |source: &String| match into {
        true => files::join(&full, basename(&cx.path(source))),
        false => full.clone(),
    };
    Ok(sources.iter().map(|source| (source.clone(), place(source))).collect())
}

pub(super) fn cp(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "rRapfdvLP", &[("recursive", 'r')])?;
    let recursive = ['r', 'R', 'a'].iter().any(|letter| options.has(*letter));
    let mut code = 0;
    for (source, to) in pairs(cx, &options.rest)? {
        let from = cx.path(&source);
        let done = match files::stat(&from) {
            Err(error) => Err(at(&source, &from, &error)),
            Ok(stat) if stat.kind == Kind::Dir && !recursive => {
                Err(Fail::Say(format!("{source}: Is a directory (not copied without -r)")))
            }
            Ok(_) if to == from || to.starts_with(&format!("{from}/")) => {
                Err(Fail::Say(format!("{source}: cannot be copied into itself")))
            }
            Ok(_) => copy(&from, &to, recursive),
        };
        if let Err(fail) = done {
            code = report(cx, "cp", fail);
        }
    }
    Ok(code)
}

fn copy(from: &str, to: &str, keep_links: bool) -> Result<(), Fail> {
    if platform::step() {
        return Err(Fail::Quiet(130));
    }
    let stat = if keep_links { files::stat_link(from) } else { files::stat(from) };
    let done = match stat.map_err(|error| at(from, from, &error))?.kind {
        Kind::Dir => {
            make_all(to).map_err(|error| at(to, to, &error))?;
            for name in files::list(from)? {
                copy(&files::join(from, &name), &files::join(to, &name), keep_links)?;
            }
            Ok(())
        }
        Kind::Link => fs::read_link(from).and_then(|target| {
            // One of that name is replaced.
            let _none = fs::remove_file(to);
            platform::symlink(&target.to_string_lossy(), to)
        }),
        Kind::File => copy_file(from, to),
    };
    done.map_err(|error| at(to, to, &error))
}

/// By reading and writing: copying as the standard library does it also sets permissions, which WASI does not have.
fn copy_file(from: &str, to: &str) -> io::Result<()> {
    let (mut from, mut to) = (fs::File::open(from)?, fs::File::create(to)?);
    io::copy(&mut from, &mut to).map(drop)
}

pub(super) fn mv(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "fvn", &[])?;
    let mut code = 0;
    for (source, to) in pairs(cx, &options.rest)? {
        let from = cx.path(&source);
        let done = match files::stat_link(&from) {
            Err(error) => Err(at(&source, &from, &error)),
            Ok(_) => match fs::rename(&from, &to) {
                Ok(()) => Ok(()),
                // Into another volume.
                Err(_) if !to.starts_with(&format!("{from}/")) => copy(&from, &to, true)
                    .and_then(|()| files::remove_all(&from).map_err(|error| at(&source, &from, &error))),
                Err(error) => Err(at(&source, &from, &error)),
            },
        };
        if let Err(fail) = done {
            code = report(cx, "mv", fail);
        }
    }
    Ok(code)
}

pub(super) fn ln(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "sfn", &[("symbolic", 's'), ("force", 'f')])?;
    let paths = match &options.rest[..] {
        [target] => vec![target.clone(), ".".to_owned()],
        _ => options.rest.clone(),
    };
    for (target, link) in pairs(cx, &paths)? {
        if options.has('f') {
            // Nothing of that name is as good.
            let _none = fs::remove_file(&link);
        }
        let made = match options.has('s') {
            true => platform::symlink(&target, &link),
            false => fs::hard_link(cx.path(&target), &link),
        };
        made.map_err(|error| match target.starts_with('/') && options.has('s') {
            true => Fail::Say(format!(
                "{target}: a link within a volume cannot name a path from the root; use a relative one"
            )),
            false => at(&link, &link, &error),
        })?;
    }
    Ok(0)
}

pub(super) fn touch(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "cam", &[("no-create", 'c')])?;
    each(cx, "touch", &options.rest, |_, path, full| {
        if options.has('c') && files::stat(full).is_err() {
            return Ok(());
        }
        if !files::is_mounted(full) {
            return Err(at(path, full, &io::ErrorKind::ReadOnlyFilesystem.into()));
        }
        let file = OpenOptions::new().create(true).append(true).open(full);
        let touched = file.and_then(|file| file.set_modified(SystemTime::now()));
        touched.map_err(|error| at(path, full, &error))
    })
}
