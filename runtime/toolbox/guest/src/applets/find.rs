//! `find`.

use std::time::SystemTime;

use super::{Cx, Fail, Outcome, at, list, number, report};
use crate::files::{self, Kind, Stat};
use crate::shell::pattern;
use crate::{applets, platform};

/// What is asked of each path, in order; the first `no` ends it.
enum Test {
    Name(String),
    NameAnyCase(String),
    Path(String),
    Type(Kind),
    Newer(SystemTime),
    Empty,
    Not(Box<Test>),
    Print { end: char },
    Delete,
    Exec(Vec<String>),
}

struct Search {
    tests: Vec<Test>,
    depth_min: usize,
    depth_max: usize,
    /// What is deleted is visited before the directory that it lies in.
    inside_first: bool,
    code: i32,
}

pub(super) fn find(cx: &mut Cx, args: &[String]) -> Outcome {
    let begin = args.iter().position(|arg| arg.starts_with('-') || arg == "!").unwrap_or(args.len());
    let (paths, rest) = args.split_at(begin);
    let own = [".".to_owned()];
    let mut search = read(cx, rest)?;
    for path in if paths.is_empty() { &own[..] } else { paths } {
        let full = cx.path(path);
        match files::stat_link(&full) {
            Ok(stat) => search.visit(cx, path, &full, stat, 0)?,
            Err(error) => search.code = report(cx, "find", at(path, &full, &error)),
        }
    }
    Ok(search.code)
}

fn read(cx: &Cx, args: &[String]) -> Result<Search, Fail> {
    let mut search = Search { tests: Vec::new(), depth_min: 0, depth_max: usize::MAX, inside_first: false, code: 0 };
    let (mut args, mut not, mut acts) = (args.iter(), false, false);
    while let Some(arg) = args.next() {
        let mut value = || args.next().cloned().ok_or_else(|| Fail::Say(format!("{arg} needs a value")));
        let test = match arg.as_str() {
            "!" | "-not" => {
                not = true;
                continue;
            }
            "-a" | "-and" => continue,
            "-name" => Test::Name(value()?),
            "-iname" => Test::NameAnyCase(value()?.to_lowercase()),
            "-path" | "-wholename" => Test::Path(value()?),
            "-type" => Test::Type(match value()?.as_str() {
                "f" => Kind::File,
                "d" => Kind::Dir,
                "l" => Kind::Link,
                other => return Err(Fail::Say(format!("-type {other}: there are f, d and l"))),
            }),
            "-newer" => {
                let path = value()?;
                let full = cx.path(&path);
                Test::Newer(files::stat(&full).map_err(|error| at(&path, &full, &error))?.modified)
            }
            "-empty" => Test::Empty,
            "-maxdepth" => {
                search.depth_max = number(&value()?)?;
                continue;
            }
            "-mindepth" => {
                search.depth_min = number(&value()?)?;
                continue;
            }
            "-depth" => {
                search.inside_first = true;
                continue;
            }
            "-print" => Test::Print { end: '\n' },
            "-print0" => Test::Print { end: '\0' },
            "-delete" => {
                search.inside_first = true;
                Test::Delete
            }
            "-exec" => {
                Test::Exec(args.by_ref().take_while(|arg| !matches!(arg.as_str(), ";" | "+")).cloned().collect())
            }
            other => return Err(Fail::Say(format!("{other} is not known here"))),
        };
        acts |= matches!(test, Test::Print { .. } | Test::Delete | Test::Exec(_));
        search.tests.push(if std::mem::take(&mut not) { Test::Not(Box::new(test)) } else { test });
    }
    if !acts {
        search.tests.push(Test::Print { end: '\n' });
    }
    Ok(search)
}

impl Search {
    fn visit(&mut self, cx: &mut Cx, path: &str, full: &str, stat: Stat, depth: usize) -> Result<(), Fail> {
        if platform::step() {
            return Err(Fail::Quiet(130));
        }
        if !self.inside_first && depth >= self.depth_min {
            self.ask(cx, path, full, &stat)?;
        }
        if stat.kind == Kind::Dir && depth < self.depth_max {
            match files::list(full) {
                Ok(names) => {
                    for name in names {
                        let (path, full) = (files::join(path, &name), files::join(full, &name));
                        if let Ok(stat) = files::stat_link(&full) {
                            self.visit(cx, &path, &full, stat, depth + 1)?;
                        }
                    }
                }
                Err(error) => self.code = report(cx, "find", at(path, full, &error)),
            }
        }
        if self.inside_first && depth >= self.depth_min {
            self.ask(cx, path, full, &stat)?;
        }
        Ok(())
    }

    fn ask(&mut self, cx: &mut Cx, path: &str, full: &str, stat: &Stat) -> Result<(), Fail> {
        for test in &self.tests {
            if !holds(cx, test, path, full, stat, &mut self.code)? {
                break;
            }
        }
        Ok(())
    }
}

fn holds(cx: &mut Cx, test: &Test, path: &str, full: &str, stat: &Stat, code: &mut i32) -> Result<bool, Fail> {
    let name = applets::basename(path);
    Ok(match test {
        Test::Name(wanted) => pattern::matches(wanted, name),
        Test::NameAnyCase(wanted) => pattern::matches(wanted, &name.to_lowercase()),
        Test::Path(wanted) => pattern::matches(wanted, path),
        Test::Type(kind) => stat.kind == *kind,
        Test::Newer(than) => list::is_newer(stat, *than),
        Test::Empty => match stat.kind {
            Kind::Dir => files::list(full).is_ok_and(|names| names.is_empty()),
            _ => stat.size == 0,
        },
        Test::Not(test) => !holds(cx, test, path, full, stat, code)?,
        Test::Print { end } => {
            use std::io::Write as _;
            write!(cx.stdout, "{path}{end}")?;
            true
        }
        Test::Delete => {
            let removed = match stat.kind {
                Kind::Dir => std::fs::remove_dir(full),
                _ => std::fs::remove_file(full),
            };
            if let Err(error) = removed {
                *code = report(cx, "find", at(path, full, &error));
            }
            true
        }
        Test::Exec(words) => {
            let words: Vec<String> = words.iter().map(|word| word.replace("{}", path)).collect();
            let Some((program, args)) = words.split_first() else { return Ok(false) };
            applets::run(&mut cx.clone(), applets::basename(program), args) == 0
        }
    })
}
