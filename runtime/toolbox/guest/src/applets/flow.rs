//! Programs that wait, branch, and call others.

use std::io::{Read, Write};
use std::time::Duration;

use super::{Cx, Fail, Options, Outcome, basename, number};
use crate::{applets, platform};

/// Arguments of one call by `xargs` when nobody says how many.
const ARGS_MAX: usize = 5_000;

pub(super) fn sleep(_cx: &mut Cx, args: &[String]) -> Outcome {
    let mut total = 0.0;
    for arg in args {
        let (digits, unit) = match arg.char_indices().last() {
            Some((at, 's')) => (&arg[..at], 1.0),
            Some((at, 'm')) => (&arg[..at], 60.0),
            Some((at, 'h')) => (&arg[..at], 3600.0),
            Some((at, 'd')) => (&arg[..at], 86_400.0),
            _ if arg == "infinity" => ("1", f64::from(u32::MAX)),
            _ => (arg.as_str(), 1.0),
        };
        total += number::<f64>(digits)? * unit;
    }
    let time = Duration::try_from_secs_f64(total).map_err(|_| Fail::Say("invalid time".to_owned()))?;
    platform::sleep(time)?;
    Ok(0)
}

pub(super) fn tee(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "ai", &[("append", 'a')])?;
    let files: Result<Vec<_>, Fail> = options.rest.iter().map(|path| cx.create(path, options.has('a'))).collect();
    let (mut outputs, mut buffer, mut input) = (files?, vec![0; 16 * 1024], cx.stdin.clone());
    outputs.push(cx.stdout.clone());
    loop {
        let count = input.read(&mut buffer)?;
        if count == 0 {
            return Ok(0);
        }
        for output in &mut outputs {
            output.write_all(&buffer[..count])?;
        }
    }
}

pub(super) fn xargs(cx: &mut Cx, args: &[String]) -> Outcome {
    // Options end where the command begins.
    let mut at = 0;
    while args.get(at).is_some_and(|arg| arg.starts_with('-')) {
        at += if matches!(args[at].as_str(), "-n" | "-I") { 2 } else { 1 };
    }
    let at = at.min(args.len());
    let options = Options::read(&args[..at], "0rn:I:", &[("null", '0'), ("no-run-if-empty", 'r')])?;
    let echo = ["echo".to_owned()];
    let command = if at == args.len() { &echo[..] } else { &args[at..] };
    let mut bytes = Vec::new();
    cx.stdin.clone().read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let items: Vec<String> = if options.has('0') {
        text.split('\0').filter(|item| !item.is_empty()).map(str::to_owned).collect()
    } else if options.has('I') {
        text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
    } else {
        text.split_whitespace().map(str::to_owned).collect()
    };
    if items.is_empty() && options.has('r') {
        return Ok(0);
    }
    let calls: Vec<Vec<String>> = match options.value('I') {
        Some(mark) => items.iter().map(|item| command.iter().map(|word| word.replace(mark, item)).collect()).collect(),
        None if items.is_empty() => vec![command.to_vec()],
        None => {
            let count = options.value('n').map_or(Ok(ARGS_MAX), number::<usize>)?.max(1);
            items.chunks(count).map(|chunk| command.iter().chain(chunk).cloned().collect()).collect()
        }
    };
    let mut code = 0;
    for words in calls {
        let mut inner = cx.clone();
        inner.stdin = crate::io::Input::bytes(Vec::new());
        let name = basename(&words[0]);
        if applets::find(name).is_none() {
            return Err(Fail::Code(127, format!("{}: not found", words[0])));
        }
        if applets::run(&mut inner, name, &words[1..]) != 0 {
            code = 123;
        }
        if platform::interrupted() {
            return Err(Fail::Quiet(130));
        }
    }
    Ok(code)
}
