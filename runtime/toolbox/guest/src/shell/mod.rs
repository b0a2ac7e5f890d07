//! `sh`: a small POSIX-like shell.
//!
//! [`syntax`] reads a script, [`run`] runs what it says, [`expand`] makes words of `$x` and `*`. What a POSIX shell has
//! and this one has not: background jobs, processes, signals, aliases, more than three file descriptors. A subshell is a
//! copy of the shell's state.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::rc::Rc;

use crate::applets::{self, Cx, Fail, Outcome};
use crate::io::Input;
use crate::platform;

mod arith;
mod builtins;
mod expand;
pub mod pattern;
mod run;
pub mod syntax;

use syntax::{Command, Fault, List};

/// Calls within calls; each takes a part of the guest's stack.
const CALLS_MAX: usize = 60;
/// The code of a script that cannot be read.
const CODE_SYNTAX: i32 = 2;
/// The code of what `^C` ended.
const CODE_INTERRUPTED: i32 = 130;

/// What goes on after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// The next one.
    Next,
    /// Leave so many loops.
    Break(usize),
    /// Begin the next round of the loop so many loops out.
    Continue(usize),
    /// Leave the function, or the file that was read in.
    Return,
    /// Leave the shell.
    Exit,
}

/// The state of a shell.
#[derive(Clone)]
struct Shell {
    cx: Cx,
    /// All variables; those in `exported` are also the environment of commands.
    vars: BTreeMap<String, String>,
    exported: BTreeSet<String>,
    readonly: BTreeSet<String>,
    functions: BTreeMap<String, Rc<Command>>,
    /// `$0`
    name: String,
    /// `$1`, `$2`…
    args: Vec<String>,
    /// `$?`
    code: i32,
    /// `set -e`, `-u`, `-x`, `-f`
    options: BTreeSet<char>,
    /// What `trap … EXIT` said.
    at_exit: Option<String>,
    /// The values that `local` has hidden, for each function that runs.
    hidden: Vec<Vec<(String, Option<String>)>>,
    depth: usize,
    /// Whether `set -e` counts for what runs now.
    checked: bool,
    interactive: bool,
}

/// The applet.
pub fn sh(cx: &mut Cx, args: &[String]) -> Outcome {
    let mut options = BTreeSet::new();
    let (mut script, mut rest, mut interactive) = (false, args, false);
    while let Some((first, others)) = rest.split_first() {
        let Some(letters) = first.strip_prefix('-').filter(|letters| !letters.is_empty()) else { break };
        rest = others;
        for letter in letters.chars() {
            match letter {
                '-' => break,
                'c' => script = true,
                'i' => interactive = true,
                's' | 'l' => {}
                'e' | 'u' | 'x' | 'f' => drop(options.insert(letter)),
                other => return Err(Fail::Code(CODE_SYNTAX, format!("unknown option -{other}"))),
            }
        }
        if letters == "-" {
            break;
        }
    }
    let mut shell = Shell::new(cx.clone(), options);
    let code = match rest.split_first() {
        None if script => return Err(Fail::Code(CODE_SYNTAX, "-c needs a script".to_owned())),
        Some((text, rest)) if script => {
            shell.call_with(rest);
            shell.script(text)
        }
        Some((path, rest)) => {
            let text = cx.read(path).map_err(|fail| match fail {
                Fail::Say(text) => Fail::Code(127, text),
                other => other,
            })?;
            path.clone_into(&mut shell.name);
            rest.clone_into(&mut shell.args);
            shell.script(&String::from_utf8_lossy(&text))
        }
        None => {
            shell.interactive = interactive || cx.stdin.is_terminal();
            shell.lines()
        }
    };
    Ok(shell.finish(code))
}

impl Shell {
    fn new(cx: Cx, options: BTreeSet<char>) -> Self {
        let mut vars = cx.env.clone();
        let exported = vars.keys().cloned().collect();
        vars.insert("IFS".to_owned(), " \t\n".to_owned());
        vars.insert("PWD".to_owned(), cx.dir.clone());
        Self {
            cx,
            vars,
            exported,
            readonly: BTreeSet::new(),
            functions: BTreeMap::new(),
            name: "sh".to_owned(),
            args: Vec::new(),
            code: 0,
            options,
            at_exit: None,
            hidden: Vec::new(),
            depth: 0,
            checked: true,
            interactive: false,
        }
    }

    fn call_with(&mut self, args: &[String]) {
        if let Some((name, args)) = args.split_first() {
            name.clone_into(&mut self.name);
            args.clone_into(&mut self.args);
        }
    }

    /// Runs a whole script.
    fn script(&mut self, text: &str) -> i32 {
        match self.read(text) {
            Ok(list) => drop(self.list(&list, true)),
            Err(fault) => self.wrong(&fault),
        }
        self.code
    }

    fn read(&self, text: &str) -> Result<List, Fault> {
        syntax::parse(text)
    }

    fn wrong(&mut self, fault: &Fault) {
        let text = match fault {
            Fault::Open => "syntax error: unexpected end of file",
            Fault::Wrong(text) => text,
        };
        self.complain(text);
        self.code = CODE_SYNTAX;
    }

    fn complain(&mut self, text: &str) {
        let name = self.name.clone();
        applets::report(&mut self.cx, &name, Fail::Say(text.to_owned()));
    }

    /// Runs what is typed, or comes in, line by line: what follows a command may be its input.
    fn lines(&mut self) -> i32 {
        let input: Input = self.cx.stdin.clone();
        let (mut text, mut line) = (String::new(), Vec::new());
        loop {
            platform::resume();
            self.prompt(text.is_empty());
            line.clear();
            match input.read_line(&mut line) {
                Ok(0) if text.is_empty() => {
                    if self.interactive {
                        self.show("\n");
                    }
                    return self.code;
                }
                Ok(0) => {
                    self.wrong(&Fault::Open);
                    if !self.interactive {
                        return self.code;
                    }
                    text.clear();
                    continue;
                }
                Ok(_) => text.push_str(&String::from_utf8_lossy(&line)),
                Err(_) if platform::interrupted() && self.interactive => {
                    self.code = CODE_INTERRUPTED;
                    text.clear();
                    continue;
                }
                Err(_) => return self.code,
            }
            match self.read(&text) {
                Ok(list) => {
                    text.clear();
                    let flow = self.list(&list, true);
                    platform::flush();
                    if flow == Flow::Exit && !(self.interactive && platform::interrupted()) {
                        return self.code;
                    }
                }
                Err(Fault::Open) => {}
                Err(fault) => {
                    text.clear();
                    self.wrong(&fault);
                    if !self.interactive {
                        return self.code;
                    }
                }
            }
        }
    }

    fn prompt(&mut self, first: bool) {
        if !self.interactive {
            return;
        }
        let prompt = match (first, self.vars.get(if first { "PS1" } else { "PS2" })) {
            (_, Some(prompt)) => prompt.replace("\\w", &self.cx.dir).replace("\\$", "#"),
            (true, None) => format!("{} # ", self.cx.dir),
            (false, None) => "> ".to_owned(),
        };
        self.show(&prompt);
    }

    fn show(&mut self, text: &str) {
        // Whoever looked at it is gone; the input's end comes next.
        let _gone = self.cx.stderr.write_all(text.as_bytes()).and_then(|()| self.cx.stderr.flush());
    }

    /// The end of the shell: what a trap is set for, and the code.
    fn finish(&mut self, code: i32) -> i32 {
        if let Some(text) = self.at_exit.take() {
            self.code = code;
            let (before, after) = (code, self.script(&text));
            // Only `exit` in a trap changes the code; it leaves that in `code`.
            return if text.contains("exit") { after } else { before };
        }
        code & 0xff
    }
}
