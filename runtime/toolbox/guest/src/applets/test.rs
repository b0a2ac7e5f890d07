//! `test` and `[`.

use super::{Cx, Fail, Outcome};
use crate::files::{self, Kind};

pub(super) fn bracket(cx: &mut Cx, args: &[String]) -> Outcome {
    match args.split_last() {
        Some((last, words)) if last == "]" => test(cx, words),
        _ => Err(Fail::Code(2, "missing ]".to_owned())),
    }
}

pub(super) fn test(cx: &mut Cx, args: &[String]) -> Outcome {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    decide(cx, &words).map(|holds| i32::from(!holds)).map_err(|text| Fail::Code(2, text))
}

/// The meaning of an expression goes by the number of its words, as POSIX has it; `-a` and `-o` are looked for beyond.
fn decide(cx: &Cx, words: &[&str]) -> Result<bool, String> {
    match words {
        [] => Ok(false),
        [word] => Ok(!word.is_empty()),
        ["!", rest @ ..] if words.len() != 3 || !is_binary(words[1]) => decide(cx, rest).map(|holds| !holds),
        [op, word] => unary(cx, op, word),
        [left, op, right] if is_binary(op) => binary(cx, left, op, right),
        ["(", inner @ .., ")"] => decide(cx, inner),
        _ => {
            for (joint, all) in [("-o", false), ("-a", true)] {
                if let Some(at) = words.iter().rposition(|word| *word == joint).filter(|at| *at > 0) {
                    let (left, right) = (decide(cx, &words[..at])?, decide(cx, &words[at + 1..])?);
                    return Ok(if all { left && right } else { left || right });
                }
            }
            Err(format!("{}: unknown operator", words.get(1).unwrap_or(&"")))
        }
    }
}

fn is_binary(op: &str) -> bool {
    matches!(
        op,
        "=" | "=="
            | "!="
            | "<"
            | ">"
            | "-eq"
            | "-ne"
            | "-lt"
            | "-le"
            | "-gt"
            | "-ge"
            | "-nt"
            | "-ot"
            | "-ef"
            | "-a"
            | "-o"
    )
}

fn unary(cx: &Cx, op: &str, word: &str) -> Result<bool, String> {
    let path = cx.path(word);
    let kind = || files::stat(&path).map(|stat| stat.kind);
    Ok(match op {
        "-n" => !word.is_empty(),
        "-z" => word.is_empty(),
        "-e" | "-r" | "-w" | "-x" => !word.is_empty() && kind().is_ok(),
        "-f" => kind().is_ok_and(|kind| kind == Kind::File),
        "-d" => !word.is_empty() && kind().is_ok_and(|kind| kind == Kind::Dir),
        "-L" | "-h" => files::stat_link(&path).is_ok_and(|stat| stat.kind == Kind::Link),
        "-s" => files::stat(&path).is_ok_and(|stat| stat.size > 0),
        "-t" => word == "0" && cx.stdin.is_terminal(),
        "-b" | "-c" | "-p" | "-S" | "-u" | "-g" | "-k" => false,
        other => return Err(format!("{other}: unknown operator")),
    })
}

fn binary(cx: &Cx, left: &str, op: &str, right: &str) -> Result<bool, String> {
    let number = |text: &str| text.trim().parse::<i64>().map_err(|_| format!("{text}: not a number"));
    let modified = |path: &str| files::stat(&cx.path(path)).map(|stat| stat.modified).ok();
    Ok(match op {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        ">" => left > right,
        "-eq" => number(left)? == number(right)?,
        "-ne" => number(left)? != number(right)?,
        "-lt" => number(left)? < number(right)?,
        "-le" => number(left)? <= number(right)?,
        "-gt" => number(left)? > number(right)?,
        "-ge" => number(left)? >= number(right)?,
        "-nt" => modified(left) > modified(right),
        "-ot" => modified(left) < modified(right),
        "-ef" => cx.path(left) == cx.path(right),
        "-a" => !left.is_empty() && !right.is_empty(),
        _ => !left.is_empty() || !right.is_empty(),
    })
}
