//! Commands of a pipeline that are pulled by the next one, a piece at a time, so that what goes through them has no
//! limit and may have no end: `yes | head`, `tail -f log | grep error`. The other commands run to their end before the
//! next one begins, and what they write is kept meanwhile.

use super::{Cx, Fail, Options, number, sed};
use crate::io::{Input, Output};
use crate::{applets, platform};

/// How much is pulled at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// The output of a command that can be pulled; `None` of one that has to run to its end.
pub fn of(cx: &Cx, name: &str, args: &[String]) -> Option<Input> {
    match name {
        "cat" => cat(cx, args),
        "yes" => {
            let line = super::text::line_of_yes(args).into_bytes();
            Some(Input::stream(move |out| {
                while out.len() < PIECE_BYTES {
                    out.extend_from_slice(&line);
                }
                Ok(true)
            }))
        }
        "seq" => {
            let (mut at, by, to) = super::text::numbers(args).ok()?;
            Some(Input::stream(move |out| {
                while out.len() < PIECE_BYTES && if by > 0 { at <= to } else { at >= to } {
                    out.extend_from_slice(format!("{at}\n").as_bytes());
                    at = at.saturating_add(by);
                }
                Ok(!out.is_empty())
            }))
        }
        "head" => {
            let options = Options::read(args, "c:", &[("bytes", 'c')]).ok()?;
            let mut left = number::<usize>(options.value('c')?).ok()?;
            let input = options.rest.is_empty().then(|| cx.stdin.clone())?;
            Some(Input::stream(move |out| {
                out.resize(left.min(PIECE_BYTES), 0);
                let count = if left == 0 { 0 } else { std::io::Read::read(&mut input.clone(), out)? };
                out.truncate(count);
                left -= count;
                Ok(count > 0)
            }))
        }
        "tail" => tail(cx, args),
        "sed" => {
            let (mut sed, input, mut ahead) = (sed::of_input(args)?, cx.stdin.clone(), None);
            let mut on = true;
            Some(Input::stream(move |out| {
                while on && out.is_empty() {
                    on = sed.pull(&input, &mut ahead, out)?;
                }
                Ok(!out.is_empty())
            }))
        }
        // What these make of a line does not depend on the lines before.
        "tr" if args.first().is_none_or(|arg| !arg.starts_with('-') || !arg.contains('s')) => {
            Some(by_lines(cx, name, args))
        }
        "cut" => {
            let options = Options::read(args, "d:f:c:b:s", &[]).ok()?;
            options.rest.is_empty().then(|| by_lines(cx, name, args))
        }
        "grep" => {
            let options = Options::read(args, "ivEFowxshe:", &[]).ok()?;
            let patterns = usize::from(options.value('e').is_none());
            (options.rest.len() == patterns).then(|| by_lines(cx, name, args))
        }
        _ => None,
    }
}

fn cat(cx: &Cx, args: &[String]) -> Option<Input> {
    if args.iter().any(|arg| arg.starts_with('-') && arg.len() > 1) {
        return None;
    }
    let paths = if args.is_empty() { vec!["-".to_owned()] } else { args.to_vec() };
    let (mut cx, mut paths, mut open) = (cx.clone(), paths.into_iter(), None::<Input>);
    Some(Input::stream(move |out| {
        loop {
            if let Some(input) = &mut open {
                out.resize(PIECE_BYTES, 0);
                let count = std::io::Read::read(input, out)?;
                out.truncate(count);
                if count > 0 {
                    return Ok(true);
                }
            }
            let Some(path) = paths.next() else { return Ok(false) };
            open = match cx.open(&path) {
                Ok(input) => Some(input),
                Err(fail) => {
                    applets::report(&mut cx, "cat", fail);
                    None
                }
            };
        }
    }))
}

/// What `tail -f` writes: the end of the file first, then what is added.
fn tail(cx: &Cx, args: &[String]) -> Option<Input> {
    let options = Options::read(&super::text::with_count(args), "n:c:fF", &[]).ok()?;
    let [path] = &options.rest[..] else { return None };
    if !(options.has('f') || options.has('F')) || path == "-" {
        return None;
    }
    let (cx, args, mut followed) = (cx.clone(), args.to_vec(), None::<Input>);
    Some(Input::stream(move |out| {
        let Some(input) = &mut followed else {
            let ((stdout, kept), mut inner) = (Output::kept(), cx.clone());
            inner.stdout = stdout;
            followed = match super::text::tail_once(&mut inner, &args) {
                Ok((_, input)) => input,
                Err(fail) => {
                    applets::report(&mut inner, "tail", fail);
                    None
                }
            };
            *out = kept.take();
            return Ok(followed.is_some());
        };
        out.resize(PIECE_BYTES, 0);
        loop {
            match std::io::Read::read(input, out)? {
                0 => platform::sleep(super::text::FOLLOW_EVERY)?,
                count => {
                    out.truncate(count);
                    return Ok(true);
                }
            }
        }
    }))
}

/// Runs a command on a few lines after the other, as they come.
fn by_lines(cx: &Cx, name: &str, args: &[String]) -> Input {
    let (cx, name, args) = (cx.clone(), name.to_owned(), args.to_vec());
    Input::stream(move |out| {
        while out.is_empty() {
            let mut lines = Vec::new();
            while lines.len() < PIECE_BYTES && cx.stdin.read_line(&mut lines)? > 0 {
                if !cx.stdin.is_at_hand() {
                    break;
                }
            }
            if lines.is_empty() {
                return Ok(false);
            }
            let ((stdout, kept), mut inner) = (Output::kept(), cx.clone());
            (inner.stdin, inner.stdout) = (Input::bytes(lines), stdout);
            let code = applets::run(&mut inner, &name, &args);
            *out = kept.take();
            // It has complained: it will not do better with the other lines.
            if code > 1 {
                return Ok(!out.is_empty());
            }
        }
        Ok(true)
    })
}

/// So that `Fail` can leave a stream as an error of its reader.
impl From<Fail> for std::io::Error {
    fn from(fail: Fail) -> Self {
        match fail {
            Fail::Say(text) | Fail::Code(_, text) => std::io::Error::other(text),
            Fail::Quiet(_) => platform::broken_off(),
        }
    }
}
