//! Programs that tell something about where they run.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Cx, Fail, Options, Outcome, basename};
use crate::{applets, files};

const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

pub(super) fn pwd(cx: &mut Cx, _args: &[String]) -> Outcome {
    let dir = cx.dir.clone();
    cx.line(&dir)?;
    Ok(0)
}

pub(super) fn env(cx: &mut Cx, args: &[String]) -> Outcome {
    let mut inner = cx.clone();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match (arg.as_str(), arg.split_once('=')) {
            ("-i" | "-", _) => inner.env.clear(),
            ("-u", _) => drop(args.next().and_then(|name| inner.env.remove(name))),
            (_, Some((name, value))) => drop(inner.env.insert(name.to_owned(), value.to_owned())),
            (program, None) => {
                let name = basename(program);
                if applets::find(name).is_none() {
                    return Err(Fail::Code(127, format!("{program}: not found")));
                }
                let rest: Vec<String> = args.cloned().collect();
                return Ok(applets::run(&mut inner, name, &rest));
            }
        }
    }
    for (name, value) in &inner.env {
        cx.line(&format!("{name}={value}"))?;
    }
    Ok(0)
}

pub(super) fn hostname(cx: &mut Cx, _args: &[String]) -> Outcome {
    let name = match cx.env.get("HOSTNAME") {
        Some(name) => name.clone(),
        None => String::from_utf8_lossy(&cx.read("/etc/hostname")?).trim().to_owned(),
    };
    cx.line(&name)?;
    Ok(0)
}

/// There are no users in a sandbox: whoever asks is told of the one who may everything that the sandbox lets.
pub(super) fn id(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "ugnG", &[])?;
    let short = options.has('u') || options.has('g') || options.has('G');
    cx.line(match (short, options.has('n')) {
        (true, true) => "root",
        (true, false) => "0",
        (false, _) => "uid=0(root) gid=0(root) groups=0(root)",
    })?;
    Ok(0)
}

pub(super) fn whoami(cx: &mut Cx, _args: &[String]) -> Outcome {
    cx.line("root")?;
    Ok(0)
}

pub(super) fn printenv(cx: &mut Cx, args: &[String]) -> Outcome {
    if args.is_empty() {
        return env(cx, args);
    }
    let mut code = 0;
    for name in args {
        match cx.env.get(name).cloned() {
            Some(value) => cx.line(&value)?,
            None => code = 1,
        }
    }
    Ok(code)
}

pub(super) fn which(cx: &mut Cx, args: &[String]) -> Outcome {
    let mut code = 0;
    for name in args {
        if applets::find(name).is_some() { cx.line(&format!("/bin/{name}"))? } else { code = 1 }
    }
    Ok(code)
}

pub(super) fn uname(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "asnrmo", &[("all", 'a')])?;
    let host = cx.env.get("HOSTNAME").cloned().unwrap_or_else(|| "localhost".to_owned());
    let parts = [('s', "WASI"), ('n', host.as_str()), ('r', "0.2"), ('m', "wasm32")];
    let plain = !parts.iter().any(|(letter, _)| options.has(*letter)) && !options.has('a');
    let shown =
        parts.iter().filter(|(letter, _)| options.has('a') || options.has(*letter) || (plain && *letter == 's'));
    let text = shown.map(|(_, text)| *text).collect::<Vec<_>>().join(" ");
    cx.line(&text)?;
    Ok(0)
}

pub(super) fn date(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "uIRd:r:", &[("utc", 'u')])?;
    let when = match (options.value('d').and_then(|text| text.strip_prefix('@')), options.value('r')) {
        (Some(seconds), _) => UNIX_EPOCH + std::time::Duration::from_secs(applets::number(seconds)?),
        (None, Some(path)) => files::stat(&cx.path(path))?.modified,
        _ if options.has('d') => return Err(Fail::Say("-d knows only @SECONDS".to_owned())),
        _ => SystemTime::now(),
    };
    let format = match options.rest.first().and_then(|arg| arg.strip_prefix('+')) {
        Some(format) => format,
        None if options.has('I') => "%Y-%m-%d",
        None if options.has('R') => "%a, %d %b %Y %H:%M:%S +0000",
        None => "%a %b %e %H:%M:%S UTC %Y",
    };
    cx.line(&stamp(format, when))?;
    Ok(0)
}

/// A moment in UTC, by a format of `date`.
pub(super) fn stamp(format: &str, when: SystemTime) -> String {
    let since = when.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let text = match chars.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('s') => seconds.to_string(),
            Some('N') => format!("{:09}", since.subsec_nanos()),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('R') => format!("{hour:02}:{minute:02}"),
            Some('a') => DAYS[((days + 4) % 7) as usize].to_owned(),
            Some('b' | 'h') => MONTHS[(month - 1) as usize].to_owned(),
            Some('j') => format!("{:03}", days - days_before(year) + 1),
            Some('u') => ((days + 3) % 7 + 1).to_string(),
            Some('z') => "+0000".to_owned(),
            Some('Z') => "UTC".to_owned(),
            Some('n') => "\n".to_owned(),
            Some('t') => "\t".to_owned(),
            Some(other) => other.to_string(),
            None => "%".to_owned(),
        };
        out.push_str(&text);
    }
    out
}

/// The days from 1970 to the first of a year.
fn days_before(year: u64) -> u64 {
    let before = year - 1;
    365 * (year - 1970) + (before / 4 - before / 100 + before / 400) - 477
}

/// Year, month, and day of a day since 1970.
fn civil(days: u64) -> (u64, u64, u64) {
    let mut year = 1970 + days / 366;
    while days_before(year + 1) <= days {
        year += 1;
    }
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut day = days - days_before(year);
    for (at, length) in [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31].into_iter().enumerate()
    {
        if day < length {
            return (year, at as u64 + 1, day + 1);
        }
        day -= length;
    }
    (year + 1, 1, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn moments_are_shown_in_utc() {
        for (seconds, expected) in [
            (0, "Thu 1970-01-01 00:00:00 001"),
            (951_782_400, "Tue 2000-02-29 00:00:00 060"),
            (1_709_251_199, "Thu 2024-02-29 23:59:59 060"),
            (1_735_689_600, "Wed 2025-01-01 00:00:00 001"),
            (4_107_542_399, "Sun 2100-02-28 23:59:59 059"),
        ] {
            let when = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(stamp("%a %F %T %j", when), expected, "{seconds}");
        }
    }
}
