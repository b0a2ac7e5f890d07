//! Commands that change the shell itself.

use super::syntax::{self, is_name};
use super::{Flow, Shell};
use crate::applets::{self, Fail, number};

type Done = Result<Flow, Fail>;
pub(super) type Builtin = fn(&mut Shell, &[String]) -> Done;

static BUILTINS: &[(&str, Builtin)] = &[
    (".", source),
    (":", |shell, _| shell.ends(0)),
    ("break", |shell, args| loops(shell, args, Flow::Break)),
    ("cd", cd),
    ("command", command),
    ("continue", |shell, args| loops(shell, args, Flow::Continue)),
    ("eval", eval),
    ("exec", exec),
    ("exit", exit),
    ("export", export),
    ("help", help),
    ("local", local),
    ("read", read),
    ("readonly", readonly),
    ("return", leave_function),
    ("set", set),
    ("shift", shift),
    ("source", source),
    ("trap", trap),
    ("type", type_of),
    ("umask", |shell, _| shell.ends(0)),
    ("unset", unset),
    ("wait", |shell, _| shell.ends(0)),
];

pub(super) fn find(name: &str) -> Option<Builtin> {
    BUILTINS.iter().find(|(known, _)| *known == name).map(|(_, builtin)| *builtin)
}

impl Shell {
    fn ends(&mut self, code: i32) -> Done {
        self.code = code;
        Ok(Flow::Next)
    }

    fn evaluate(&mut self, text: &str) -> Flow {
        match syntax::parse(text) {
            Ok(list) => {
                self.code = 0;
                self.list(&list, self.checked)
            }
            Err(fault) => {
                self.wrong(&fault);
                if self.interactive { Flow::Next } else { Flow::Exit }
            }
        }
    }
}

fn loops(shell: &mut Shell, args: &[String], flow: fn(usize) -> Flow) -> Done {
    shell.code = 0;
    Ok(flow(args.first().map_or(Ok(1), |arg| number::<usize>(arg))?.max(1)))
}

fn cd(shell: &mut Shell, args: &[String]) -> Done {
    let back = args.first().is_some_and(|arg| arg == "-");
    let target = match args.first() {
        None => shell.lookup("HOME").unwrap_or_else(|| "/".to_owned()),
        Some(_) if back => shell.lookup("OLDPWD").ok_or_else(|| Fail::Say("OLDPWD is not set".to_owned()))?,
        Some(path) => path.clone(),
    };
    shell.go(&target)?;
    if back {
        let dir = shell.cx.dir.clone();
        shell.cx.line(&dir)?;
    }
    shell.ends(0)
}

fn code_of(shell: &Shell, args: &[String]) -> Result<i32, Fail> {
    args.first().map_or(Ok(shell.code), |arg| number::<i32>(arg)).map(|code| code & 0xff)
}

fn exit(shell: &mut Shell, args: &[String]) -> Done {
    shell.code = code_of(shell, args)?;
    Ok(Flow::Exit)
}

fn leave_function(shell: &mut Shell, args: &[String]) -> Done {
    shell.code = code_of(shell, args)?;
    Ok(Flow::Return)
}

fn exec(shell: &mut Shell, args: &[String]) -> Done {
    let Some((name, args)) = args.split_first() else { return shell.ends(0) };
    shell.invoke(name, args, Vec::new());
    Ok(Flow::Exit)
}

fn eval(shell: &mut Shell, args: &[String]) -> Done {
    Ok(shell.evaluate(&args.join(" ")))
}

fn source(shell: &mut Shell, args: &[String]) -> Done {
    let path = args.first().ok_or_else(|| Fail::Code(2, "a file is missing".to_owned()))?;
    let text = shell.cx.read(path)?;
    let flow = shell.evaluate(&String::from_utf8_lossy(&text));
    Ok(if flow == Flow::Return { Flow::Next } else { flow })
}

/// `NAME` or `NAME=VALUE`, for each argument.
fn declare(
    shell: &mut Shell,
    args: &[String],
    mut each: impl FnMut(&mut Shell, &str, Option<&str>) -> Result<(), String>,
) -> Done {
    for arg in args.iter().filter(|arg| !arg.starts_with('-')) {
        let (name, value) = arg.split_once('=').map_or((arg.as_str(), None), |(name, value)| (name, Some(value)));
        if !is_name(name) {
            return Err(Fail::Say(format!("{arg}: bad variable name")));
        }
        each(shell, name, value)?;
    }
    shell.ends(0)
}

fn export(shell: &mut Shell, args: &[String]) -> Done {
    if args.iter().all(|arg| arg == "-p") {
        for name in shell.exported.clone() {
            let value = shell.lookup(&name).unwrap_or_default();
            shell.cx.line(&format!("export {name}='{}'", value.replace('\'', r"'\''")))?;
        }
        return shell.ends(0);
    }
    declare(shell, args, |shell, name, value| {
        shell.exported.insert(name.to_owned());
        value.map_or(Ok(()), |value| shell.assign(name, value.to_owned()))
    })
}

fn readonly(shell: &mut Shell, args: &[String]) -> Done {
    declare(shell, args, |shell, name, value| {
        value.map_or(Ok(()), |value| shell.assign(name, value.to_owned()))?;
        shell.readonly.insert(name.to_owned());
        Ok(())
    })
}

fn local(shell: &mut Shell, args: &[String]) -> Done {
    if shell.hidden.is_empty() {
        return Err(Fail::Say("not in a function".to_owned()));
    }
    declare(shell, args, |shell, name, value| {
        let before = shell.vars.get(name).cloned();
        if let Some(hidden) = shell.hidden.last_mut() {
            hidden.push((name.to_owned(), before));
        }
        shell.assign(name, value.unwrap_or_default().to_owned())
    })
}

fn unset(shell: &mut Shell, args: &[String]) -> Done {
    let functions = args.first().is_some_and(|arg| arg == "-f");
    for name in args.iter().filter(|arg| !arg.starts_with('-')) {
        if shell.readonly.contains(name) {
            return Err(Fail::Say(format!("{name}: is read only")));
        }
        if functions || shell.vars.remove(name).is_none() {
            shell.functions.remove(name);
        }
        shell.exported.remove(name);
    }
    shell.ends(0)
}

fn set(shell: &mut Shell, args: &[String]) -> Done {
    if args.is_empty() {
        for (name, value) in shell.vars.clone() {
            shell.cx.line(&format!("{name}='{}'", value.replace('\'', r"'\''")))?;
        }
        return shell.ends(0);
    }
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let (on, letters) = match (arg.strip_prefix('-'), arg.strip_prefix('+')) {
            (Some("-"), _) => {
                shell.args = args.cloned().collect();
                return shell.ends(0);
            }
            (Some("o"), _) | (_, Some("o")) => {
                let letter = match args.next().map(String::as_str) {
                    Some("errexit") => "e",
                    Some("nounset") => "u",
                    Some("xtrace") => "x",
                    Some("noglob") => "f",
                    // Commands of a pipeline run one after the other; there is nothing else to choose.
                    other => return Err(Fail::Say(format!("unknown option -o {}", other.unwrap_or_default()))),
                };
                (arg.starts_with('-'), letter)
            }
            (Some(letters), _) => (true, letters),
            (_, Some(letters)) => (false, letters),
            _ => {
                shell.args = std::iter::once(arg).chain(args).cloned().collect();
                return shell.ends(0);
            }
        };
        for letter in letters.chars() {
            match (letter, on) {
                ('e' | 'u' | 'x' | 'f', true) => drop(shell.options.insert(letter)),
                ('e' | 'u' | 'x' | 'f', false) => drop(shell.options.remove(&letter)),
                (other, _) => return Err(Fail::Say(format!("unknown option -{other}"))),
            }
        }
    }
    shell.ends(0)
}

fn shift(shell: &mut Shell, args: &[String]) -> Done {
    let count = args.first().map_or(Ok(1), |arg| number::<usize>(arg))?;
    if count > shell.args.len() {
        return Err(Fail::Say("there are not so many arguments".to_owned()));
    }
    shell.args.drain(..count);
    shell.ends(0)
}

fn read(shell: &mut Shell, args: &[String]) -> Done {
    let mut args = args.iter().peekable();
    let mut raw = false;
    while let Some(arg) = args.next_if(|arg| arg.starts_with('-')) {
        match arg.as_str() {
            "-r" => raw = true,
            "-p" => {
                let prompt = args.next().cloned().unwrap_or_default();
                shell.show(&prompt);
            }
            other => return Err(Fail::Say(format!("unknown option {other}"))),
        }
    }
    let names: Vec<String> = args.cloned().collect();
    let (mut text, mut ended) = (String::new(), true);
    loop {
        let mut line = Vec::new();
        if shell.cx.stdin.read_line(&mut line)? == 0 {
            break;
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        ended = !line.ends_with('\n');
        text.push_str(line.trim_end_matches('\n'));
        if raw || ended || !text.ends_with('\\') {
            break;
        }
        text.pop();
    }
    let separators = shell.vars.get("IFS").cloned().unwrap_or_else(|| " \t\n".to_owned());
    let blank = |c: char| separators.contains(c) && c.is_ascii_whitespace();
    let names = if names.is_empty() { vec!["REPLY".to_owned()] } else { names };
    let mut rest = text.trim_matches(blank);
    for (at, name) in names.iter().enumerate() {
        let (value, after) = match rest.find(|c| separators.contains(c)).filter(|_| at + 1 < names.len()) {
            Some(end) => {
                let after = rest[end..].trim_start_matches(blank);
                // One separator that is no blank stands between two values.
                let after = if rest[end..].starts_with(blank) { after } else { &rest[end + 1..] };
                (&rest[..end], after)
            }
            None => (rest, ""),
        };
        shell.assign(name, value.to_owned())?;
        rest = after;
    }
    shell.ends(i32::from(ended && text.is_empty()))
}

fn trap(shell: &mut Shell, args: &[String]) -> Done {
    if let [action, signals @ ..] = args
        && signals.iter().any(|signal| matches!(signal.as_str(), "EXIT" | "0"))
    {
        shell.at_exit = (action != "-" && !action.is_empty()).then(|| action.clone());
    }
    // No signal reaches a WebAssembly program, so that the others never come.
    shell.ends(0)
}

fn describe(shell: &Shell, name: &str) -> Option<String> {
    if shell.functions.contains_key(name) {
        return Some(format!("{name} is a function"));
    }
    if find(name).is_some() {
        return Some(format!("{name} is a shell builtin"));
    }
    applets::find(applets::basename(name)).map(|_| format!("{name} is an applet of the toolbox"))
}

fn type_of(shell: &mut Shell, args: &[String]) -> Done {
    let mut code = 0;
    for name in args {
        let text = describe(shell, name);
        code |= i32::from(text.is_none()) * 127;
        shell.cx.line(&text.unwrap_or_else(|| format!("{name}: not found")))?;
    }
    shell.ends(code)
}

fn command(shell: &mut Shell, args: &[String]) -> Done {
    match args {
        [option, names @ ..] if option == "-v" || option == "-V" => {
            let mut code = 0;
            for name in names {
                match describe(shell, name) {
                    Some(text) => shell.cx.line(if option == "-V" { &text } else { name })?,
                    None => code = 127,
                }
            }
            shell.ends(code)
        }
        [name, rest @ ..] => {
            let hidden = shell.functions.remove(name);
            let flow = shell.invoke(name, rest, Vec::new());
            shell.functions.extend(hidden.map(|body| (name.clone(), body)));
            Ok(flow)
        }
        [] => shell.ends(0),
    }
}

fn help(shell: &mut Shell, _args: &[String]) -> Done {
    let builtins: Vec<&str> = BUILTINS.iter().map(|(name, _)| *name).collect();
    shell.cx.line(&format!("builtins: {}", builtins.join(" ")))?;
    shell.cx.line(&format!("applets:  {}", applets::names().join(" ")))?;
    shell.ends(0)
}
