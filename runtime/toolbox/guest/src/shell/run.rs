//! Runs what a script says.

use std::rc::Rc;

use super::syntax::{AndOr, Command, Compound, Joint, List, Part, Pipeline, Redirect, Target, Word};
use super::{CALLS_MAX, CODE_INTERRUPTED, Flow, Shell, builtins, pattern};
use crate::applets::{self, Cx, Fail};
use crate::io::{Input, Output, settle};
use crate::{files, platform};

impl Shell {
    /// Runs commands one after the other. `checked` says whether `set -e` counts here; it does not in conditions.
    pub(super) fn list(&mut self, list: &List, checked: bool) -> Flow {
        for item in list {
            let flow = self.and_or(item, checked);
            if flow != Flow::Next {
                return flow;
            }
        }
        Flow::Next
    }

    fn and_or(&mut self, item: &AndOr, checked: bool) -> Flow {
        let last = item.rest.len();
        let flow = self.pipeline(&item.first, checked && last == 0);
        if flow != Flow::Next {
            return flow;
        }
        for (at, (joint, pipeline)) in item.rest.iter().enumerate() {
            if (*joint == Joint::And) != (self.code == 0) {
                continue;
            }
            let flow = self.pipeline(pipeline, checked && at + 1 == last);
            if flow != Flow::Next {
                return flow;
            }
        }
        Flow::Next
    }

    fn pipeline(&mut self, pipeline: &Pipeline, checked: bool) -> Flow {
        if platform::step() {
            self.code = CODE_INTERRUPTED;
            return Flow::Exit;
        }
        let checked = checked && !pipeline.negated;
        let flow = match &pipeline.commands[..] {
            [command] => self.command(command, checked),
            commands => {
                self.pipe(commands);
                Flow::Next
            }
        };
        if platform::interrupted() {
            self.code = CODE_INTERRUPTED;
            return Flow::Exit;
        }
        if pipeline.negated {
            self.code = i32::from(self.code == 0);
        }
        match flow {
            Flow::Next if checked && self.code != 0 && self.options.contains(&'e') && fails(pipeline) => Flow::Exit,
            flow => flow,
        }
    }

    /// One command after the other, each in a shell of its own; what one has written is what the next one reads.
    fn pipe(&mut self, commands: &[Command]) {
        let mut input = self.cx.stdin.clone();
        for (at, command) in commands.iter().enumerate() {
            let mut inner = self.subshell();
            inner.cx.stdin = input.clone();
            if at + 1 == commands.len() {
                inner.command(command, true);
                self.code = inner.finish(inner.code);
                return;
            }
            if let Some(pulled) = inner.pulled(command) {
                input = pulled;
                continue;
            }
            let (output, kept) = Output::kept();
            inner.cx.stdout = output.clone();
            inner.command(command, true);
            inner.finish(inner.code);
            if platform::interrupted() {
                return;
            }
            // The others would work on a part and call it the whole.
            if output.is_overfull() {
                self.code = 1;
                return;
            }
            input = Input::bytes(kept.take());
        }
    }

    /// What a command writes that the next one of its pipeline can pull.
    fn pulled(&mut self, command: &Command) -> Option<Input> {
        let Command::Simple { assigned, words, redirects } = command else { return None };
        // What is expanded here must not be expanded again, with all that it does, if nothing comes of it.
        let [Part::Plain(name)] = &words.first()?[..] else { return None };
        let plain = |part: &Part| !matches!(part, Part::Output { .. } | Part::Number { .. });
        let known = self.functions.contains_key(name) || builtins::find(name).is_some() || self.options.contains(&'x');
        if known || !assigned.is_empty() || !redirects.is_empty() || !words.iter().flatten().all(plain) {
            return None;
        }
        let words = self.expand_all(words).ok()?;
        let (name, args) = words.split_first()?;
        applets::stream::of(&self.context(), name, args)
    }

    /// A copy of this shell, in which nothing that happens matters here.
    pub(super) fn subshell(&self) -> Self {
        Self { interactive: false, at_exit: None, depth: self.depth + 1, ..self.clone() }
    }

    /// What some commands write, without the line ends at its end.
    pub(super) fn output_of(&mut self, list: &List) -> String {
        let mut inner = self.subshell();
        let (output, kept) = Output::kept();
        inner.cx.stdout = output.clone();
        if inner.too_deep() {
            self.code = 1;
            return String::new();
        }
        inner.list(list, true);
        self.code = inner.finish(inner.code);
        if output.is_overfull() {
            self.code = 1;
        }
        let text = String::from_utf8_lossy(&kept.borrow()).into_owned();
        text.trim_end_matches('\n').to_owned()
    }

    fn too_deep(&mut self) -> bool {
        let deep = self.depth > CALLS_MAX;
        if deep {
            self.complain("too many calls within calls");
            self.code = 1;
        }
        deep
    }

    fn command(&mut self, command: &Command, checked: bool) -> Flow {
        match command {
            Command::Simple { assigned, words, redirects } => {
                self.checked = checked;
                self.simple(assigned, words, redirects)
            }
            Command::Function { name, body } => {
                self.functions.insert(name.clone(), body.clone());
                self.code = 0;
                Flow::Next
            }
            Command::Compound { body, redirects } => {
                let before = self.cx.clone();
                if let Err(why) = self.redirect(redirects) {
                    self.complain(&why);
                    self.code = 1;
                    return Flow::Next;
                }
                let flow = self.compound(body, checked);
                self.settle(redirects);
                let Cx { stdin, stdout, stderr, .. } = before;
                (self.cx.stdin, self.cx.stdout, self.cx.stderr) = (stdin, stdout, stderr);
                flow
            }
        }
    }

    fn compound(&mut self, body: &Compound, checked: bool) -> Flow {
        match body {
            Compound::Group(list) => self.list(list, checked),
            Compound::Subshell(list) => {
                let mut inner = self.subshell();
                if inner.too_deep() {
                    self.code = 1;
                    return Flow::Next;
                }
                inner.list(list, checked);
                self.code = inner.finish(inner.code);
                Flow::Next
            }
            Compound::If { branches, otherwise } => self.choose(branches, otherwise, checked),
            Compound::Loop { until, condition, body } => self.repeat(*until, condition, body, checked),
            Compound::For { name, words, body } => self.each(name, words.as_ref(), body, checked),
            Compound::Case { word, arms } => self.case(word, arms, checked),
        }
    }

    fn choose(&mut self, branches: &[(List, List)], otherwise: &List, checked: bool) -> Flow {
        for (condition, body) in branches {
            let flow = self.list(condition, false);
            if flow != Flow::Next {
                return flow;
            }
            if self.code == 0 {
                return self.list(body, checked);
            }
        }
        self.code = 0;
        self.list(otherwise, checked)
    }

    fn repeat(&mut self, until: bool, condition: &List, body: &List, checked: bool) -> Flow {
        let mut code = 0;
        loop {
            let flow = self.list(condition, false);
            if let Some(flow) = leaves(flow) {
                return flow;
            }
            if (self.code == 0) == until {
                self.code = code;
                return Flow::Next;
            }
            if let Some(flow) = leaves(self.list(body, checked)) {
                return flow;
            }
            code = self.code;
        }
    }

    fn each(&mut self, name: &str, words: Option<&Vec<Word>>, body: &List, checked: bool) -> Flow {
        let values = match words {
            Some(words) => self.expand_all(words),
            None => Ok(self.args.clone()),
        };
        let values = match values {
            Ok(values) => values,
            Err(why) => return self.broken(&why),
        };
        self.code = 0;
        for value in values {
            if let Err(why) = self.assign(name, value) {
                return self.broken(&why);
            }
            if let Some(flow) = leaves(self.list(body, checked)) {
                return flow;
            }
        }
        Flow::Next
    }

    fn case(&mut self, word: &Word, arms: &[(Vec<Word>, List)], checked: bool) -> Flow {
        let text = match self.text(word) {
            Ok(text) => text,
            Err(why) => return self.broken(&why),
        };
        for (patterns, body) in arms {
            for wanted in patterns {
                match self.pattern(wanted) {
                    Ok(wanted) if pattern::matches(&wanted, &text) => {
                        self.code = 0;
                        return self.list(body, checked);
                    }
                    Ok(_) => {}
                    Err(why) => return self.broken(&why),
                }
            }
        }
        self.code = 0;
        Flow::Next
    }

    /// An expansion that cannot be made ends a script, but not a shell that somebody types into.
    fn broken(&mut self, why: &str) -> Flow {
        self.complain(why);
        self.code = 1;
        if self.interactive { Flow::Next } else { Flow::Exit }
    }

    fn simple(&mut self, assigned: &[(String, Word)], words: &[Word], redirects: &[Redirect]) -> Flow {
        let before = self.code;
        let words = match self.expand_all(words) {
            Ok(words) => words,
            Err(why) => return self.broken(&why),
        };
        let mut values = Vec::new();
        // A command substitution in an assignment gives the code of the whole.
        self.code = 0;
        for (name, word) in assigned {
            match self.text(word) {
                Ok(value) => values.push((name.clone(), value)),
                Err(why) => return self.broken(&why),
            }
        }
        let code = std::mem::replace(&mut self.code, before);
        if self.options.contains(&'x') {
            let shown: Vec<String> =
                values.iter().map(|(name, value)| format!("{name}={value}")).chain(words.iter().cloned()).collect();
            self.show(&format!("+ {}\n", shown.join(" ")));
        }
        let io = (self.cx.stdin.clone(), self.cx.stdout.clone(), self.cx.stderr.clone());
        let flow = match (self.redirect(redirects), words.split_first()) {
            (Err(why), _) => {
                self.complain(&why);
                self.code = 1;
                Flow::Next
            }
            (Ok(()), None) => {
                self.code = code;
                for (name, value) in values {
                    if let Err(why) = self.assign(&name, value) {
                        return self.broken(&why);
                    }
                }
                Flow::Next
            }
            // What `exec` redirects stays so.
            (Ok(()), Some((name, []))) if name == "exec" => {
                self.code = 0;
                return Flow::Next;
            }
            (Ok(()), Some((name, args))) => {
                let flow = self.invoke(name, args, values);
                self.settle(redirects);
                flow
            }
        };
        (self.cx.stdin, self.cx.stdout, self.cx.stderr) = io;
        flow
    }

    /// Runs a function, a builtin, or an applet, with these variables set for it alone.
    pub(super) fn invoke(&mut self, name: &str, args: &[String], values: Vec<(String, String)>) -> Flow {
        if let Some(body) = self.functions.get(name).cloned() {
            let _ = values.into_iter().try_for_each(|(name, value)| self.assign(&name, value));
            return self.call(&body, args);
        }
        if let Some(builtin) = builtins::find(name) {
            let _ = values.into_iter().try_for_each(|(name, value)| self.assign(&name, value));
            return match builtin(self, args) {
                Ok(flow) => flow,
                Err(fail) => {
                    self.code = applets::report(&mut self.cx, name, fail);
                    Flow::Next
                }
            };
        }
        let mut cx = self.context();
        cx.env.extend(values);
        self.code = self.program(&mut cx, name, args);
        Flow::Next
    }

    /// What a command sees: the exported variables are its environment.
    fn context(&self) -> Cx {
        let exported = self.exported.iter();
        let env = exported.filter_map(|name| Some((name.clone(), self.vars.get(name)?.clone()))).collect();
        Cx { env, ..self.cx.clone() }
    }

    fn program(&mut self, cx: &mut Cx, name: &str, args: &[String]) -> i32 {
        let plain = match name.rsplit_once('/') {
            None => name,
            Some(("/bin" | "/usr/bin" | "/sbin" | "/usr/sbin" | "/usr/local/bin", plain)) => plain,
            Some(_) => return self.file(cx, name, args),
        };
        if plain == "sh" && self.too_deep() {
            return 1;
        }
        if applets::find(plain).is_some() {
            return applets::run(cx, plain, args);
        }
        applets::report(cx, &self.name.clone(), Fail::Code(127, format!("{name}: not found")))
    }

    /// A file that is called by its path: a script.
    fn file(&mut self, cx: &mut Cx, path: &str, args: &[String]) -> i32 {
        let fail = match cx.read(path) {
            Err(Fail::Say(text)) => Fail::Code(127, text),
            Err(fail) => fail,
            Ok(bytes) if bytes.starts_with(b"\0asm") => Fail::Code(
                126,
                format!("{path}: a shell cannot start another program; give its path to `kubectl exec` itself"),
            ),
            Ok(bytes) => {
                let mut inner = self.subshell();
                if inner.too_deep() {
                    return 1;
                }
                inner.cx = cx.clone();
                inner.vars.extend(cx.env.clone());
                path.clone_into(&mut inner.name);
                args.clone_into(&mut inner.args);
                let code = inner.script(&String::from_utf8_lossy(&bytes));
                return inner.finish(code);
            }
        };
        let name = self.name.clone();
        applets::report(cx, &name, fail)
    }

    fn call(&mut self, body: &Rc<Command>, args: &[String]) -> Flow {
        self.depth += 1;
        if self.too_deep() {
            self.depth -= 1;
            return Flow::Exit;
        }
        let before = std::mem::replace(&mut self.args, args.to_vec());
        self.hidden.push(Vec::new());
        let flow = self.command(body, self.checked);
        for (name, value) in self.hidden.pop().unwrap_or_default().into_iter().rev() {
            match value {
                Some(value) => drop(self.vars.insert(name, value)),
                None => drop(self.vars.remove(&name)),
            }
        }
        self.args = before;
        self.depth -= 1;
        if flow == Flow::Return { Flow::Next } else { flow }
    }

    /// Sets the shell's own input and outputs.
    fn redirect(&mut self, redirects: &[Redirect]) -> Result<(), String> {
        for Redirect { fd, to } in redirects {
            let open = |cx: &Cx, path: &str| cx.open(path).map_err(said);
            match to {
                Target::Read(word) => {
                    let path = self.text(word)?;
                    self.cx.stdin = open(&self.cx, &path)?;
                }
                Target::Here(word) => {
                    let text = self.text(&word.borrow().clone())?;
                    self.cx.stdin = Input::bytes(text.into_bytes());
                }
                Target::Write(word) | Target::Append(word) | Target::Both(word) => {
                    let path = self.text(word)?;
                    let output = self.cx.create(&path, matches!(to, Target::Append(_))).map_err(said)?;
                    self.set(*fd, output.clone())?;
                    if matches!(to, Target::Both(_)) {
                        self.set(2, output)?;
                    }
                }
                Target::Same(word) => match (fd, self.text(word)?.as_str()) {
                    (0, "-") => self.cx.stdin = Input::bytes(Vec::new()),
                    (0, "0") => {}
                    (_, "-") => self.set(*fd, Output::Nowhere)?,
                    (_, "1") => self.set(*fd, self.cx.stdout.clone())?,
                    (_, "2") => self.set(*fd, self.cx.stderr.clone())?,
                    (_, other) => return Err(format!("{other}: only the file descriptors 0, 1 and 2 are there")),
                },
            }
        }
        Ok(())
    }

    /// A command with redirections has ended: what it wrote is in its files now, or it has failed.
    fn settle(&mut self, redirects: &[Redirect]) {
        if redirects.iter().any(|redirect| !matches!(redirect.to, Target::Read(_) | Target::Here(_) | Target::Same(_)))
            && let Err(error) = settle()
        {
            self.complain(&format!("writing failed: {error}"));
            self.code = 1;
        }
    }

    fn set(&mut self, fd: u8, output: Output) -> Result<(), String> {
        match fd {
            1 => self.cx.stdout = output,
            2 => self.cx.stderr = output,
            other => return Err(format!("{other}: only the file descriptors 0, 1 and 2 are there")),
        }
        Ok(())
    }

    /// Another working directory.
    pub(super) fn go(&mut self, path: &str) -> Result<(), Fail> {
        let full = self.cx.path(path);
        if !files::is_dir(&full) {
            let why = if files::stat(&full).is_ok() { "Not a directory" } else { "No such file or directory" };
            return Err(Fail::Say(format!("can't cd to {path}: {why}")));
        }
        let before = std::mem::replace(&mut self.cx.dir, full.clone());
        self.vars.insert("OLDPWD".to_owned(), before);
        self.vars.insert("PWD".to_owned(), full);
        Ok(())
    }
}

fn said(fail: Fail) -> String {
    match fail {
        Fail::Say(text) | Fail::Code(_, text) => text,
        Fail::Quiet(_) => "broken off".to_owned(),
    }
}

/// Whether `set -e` looks at a pipeline: what a group or a loop ends with was looked at inside.
fn fails(pipeline: &Pipeline) -> bool {
    !matches!(
        &pipeline.commands[..],
        [Command::Compound {
            body: Compound::Group(_)
                | Compound::If { .. }
                | Compound::Loop { .. }
                | Compound::For { .. }
                | Compound::Case { .. },
            ..
        }]
    )
}

/// Whether a loop is left, and how things go on then.
fn leaves(flow: Flow) -> Option<Flow> {
    match flow {
        Flow::Next | Flow::Continue(0 | 1) => None,
        Flow::Break(0 | 1) => Some(Flow::Next),
        Flow::Break(loops) => Some(Flow::Break(loops - 1)),
        Flow::Continue(loops) => Some(Flow::Continue(loops - 1)),
        other => Some(other),
    }
}
