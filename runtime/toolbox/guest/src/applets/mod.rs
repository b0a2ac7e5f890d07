//! The programs beside the shell.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use crate::files;
use crate::io::{Input, Output, settle};
use crate::{platform, shell};

mod archive;
mod find;
mod flow;
mod grep;
mod list;
mod net;
mod pod;
mod report;
mod sed;
pub mod stream;
mod sums;
mod test;
mod text;
mod tree;

/// How much is read of a device at a time.
const DEVICE_BYTES: usize = 4096;
/// Programs that look at no file: what is written to files may wait until one does.
const APART: [&str; 6] = ["[", "echo", "false", "printf", "test", "true"];

/// What a command sees of the world.
#[derive(Clone)]
pub struct Cx {
    /// What it reads.
    pub stdin: Input,
    /// What it writes.
    pub stdout: Output,
    /// Where it complains.
    pub stderr: Output,
    /// The directory that its paths begin at.
    pub dir: String,
    /// Its environment.
    pub env: BTreeMap<String, String>,
}

impl Cx {
    /// That of the program itself.
    pub fn of_process() -> Self {
        let mut env: BTreeMap<String, String> = std::env::vars().collect();
        let dir = files::resolve("/", &platform::initial_dir().unwrap_or_default());
        for (name, value) in [("PATH", "/bin"), ("HOME", "/"), ("PWD", dir.as_str())] {
            env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
        Self { stdin: Input::process(), stdout: Output::Stdout, stderr: Output::Stderr, dir, env }
    }

    /// A path from the root.
    pub fn path(&self, path: &str) -> String {
        files::resolve(&self.dir, path)
    }

    /// Opens something to read; `-` is the command's own input.
    pub fn open(&self, path: &str) -> Result<Input, Fail> {
        match path {
            "-" | "/dev/stdin" => return Ok(self.stdin.clone()),
            "/dev/null" => return Ok(Input::bytes(Vec::new())),
            "/dev/zero" | "/dev/random" | "/dev/urandom" => {
                let random = path != "/dev/zero";
                return Ok(Input::stream(move |out| {
                    out.resize(DEVICE_BYTES, 0);
                    if random { platform::random(out) } else { Ok(()) }.map(|()| true)
                }));
            }
            _ => {}
        }
        let full = self.path(path);
        settle()?;
        if files::is_dir(&full) {
            return Err(Fail::Say(format!("{path}: Is a directory")));
        }
        File::open(&full).map(Input::file).map_err(|error| at(path, &full, &error))
    }

    /// Reads a whole file.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, Fail> {
        let mut bytes = Vec::new();
        self.open(path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Opens something to write.
    pub fn create(&self, path: &str, append: bool) -> Result<Output, Fail> {
        match path {
            "/dev/null" | "/dev/zero" => return Ok(Output::Nowhere),
            "/dev/stdout" => return Ok(self.stdout.clone()),
            "/dev/stderr" => return Ok(self.stderr.clone()),
            _ => {}
        }
        let full = self.path(path);
        settle()?;
        if !files::is_mounted(&full) {
            return Err(at(path, &full, &io::ErrorKind::ReadOnlyFilesystem.into()));
        }
        let mut options = OpenOptions::new();
        options.create(true).write(!append).append(append).truncate(!append);
        options.open(&full).map(Output::file).map_err(|error| at(path, &full, &error))
    }

    /// Writes a line.
    pub fn line(&mut self, text: &str) -> Result<(), Fail> {
        Ok(writeln!(self.stdout, "{text}")?)
    }
}

/// Why a command ends before its end.
#[derive(Debug)]
pub enum Fail {
    /// With this complaint, and code 1.
    Say(String),
    /// With this complaint and code.
    Code(i32, String),
    /// Without a word: its output is gone, or it was broken off.
    Quiet(i32),
}

impl From<io::Error> for Fail {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            _ if platform::interrupted() => Fail::Quiet(130),
            io::ErrorKind::BrokenPipe => Fail::Quiet(1),
            _ => Fail::Say(error.to_string()),
        }
    }
}

impl From<String> for Fail {
    fn from(text: String) -> Self {
        Fail::Say(text)
    }
}

/// What went wrong with a path.
pub fn at(path: &str, full: &str, error: &io::Error) -> Fail {
    Fail::Say(format!("{path}: {}", files::why(full, error)))
}

/// What becomes of a command: its exit code.
pub type Outcome = Result<i32, Fail>;

type Applet = fn(&mut Cx, &[String]) -> Outcome;

/// All programs, by name.
static APPLETS: &[(&str, Applet)] = &[
    ("[", test::bracket),
    ("base64", sums::base64),
    ("basename", text::basename_of),
    ("cat", text::cat),
    ("cp", tree::cp),
    ("cut", text::cut),
    ("date", report::date),
    ("dirname", text::dirname),
    ("du", list::du),
    ("echo", text::echo),
    ("env", report::env),
    ("false", |_, _| Ok(1)),
    ("find", find::find),
    ("grep", grep::grep),
    ("head", text::head),
    ("hostname", report::hostname),
    ("id", report::id),
    ("ln", tree::ln),
    ("ls", list::ls),
    ("md5sum", sums::md5sum),
    ("mkdir", tree::mkdir),
    ("mv", tree::mv),
    ("nc", net::nc),
    ("nslookup", net::nslookup),
    ("printenv", report::printenv),
    ("printf", text::printf),
    ("ps", pod::ps),
    ("pwd", report::pwd),
    ("readlink", list::readlink),
    ("realpath", list::realpath),
    ("rev", text::rev),
    ("rm", tree::rm),
    ("rmdir", tree::rmdir),
    ("sed", sed::sed),
    ("seq", text::seq),
    ("sh", shell::sh),
    ("sha1sum", sums::sha1sum),
    ("sha256sum", sums::sha256sum),
    ("sha512sum", sums::sha512sum),
    ("sleep", flow::sleep),
    ("sort", text::sort),
    ("stat", list::stat),
    ("tac", text::tac),
    ("tail", text::tail),
    ("tar", archive::tar),
    ("tee", flow::tee),
    ("test", test::test),
    ("top", pod::top),
    ("touch", tree::touch),
    ("tr", text::tr),
    ("true", |_, _| Ok(0)),
    ("uname", report::uname),
    ("uniq", text::uniq),
    ("wc", text::wc),
    ("wget", net::wget),
    ("which", report::which),
    ("whoami", report::whoami),
    ("xargs", flow::xargs),
    ("yes", text::yes),
];

/// The names of all programs.
pub fn names() -> Vec<&'static str> {
    APPLETS.iter().map(|(name, _)| *name).collect()
}

/// The program of that name.
pub fn find(name: &str) -> Option<fn(&mut Cx, &[String]) -> Outcome> {
    APPLETS.iter().find(|(known, _)| *known == name).map(|(_, applet)| *applet)
}

/// The last part of a path.
pub fn basename(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

/// Runs a program; gives its exit code.
pub fn run(cx: &mut Cx, name: &str, args: &[String]) -> i32 {
    let Some(applet) = find(name) else { return 127 };
    let apart = APART.contains(&name);
    let before = if apart { Ok(()) } else { settle() };
    let done = before.map_err(Fail::from).and_then(|()| applet(cx, args));
    let done = match done {
        Ok(code) if !apart => settle().map(|()| code).map_err(Fail::from),
        done => done,
    };
    match done {
        Ok(code) => code,
        Err(fail) => report(cx, name, fail),
    }
}

/// Complains; gives the exit code.
pub fn report(cx: &mut Cx, name: &str, fail: Fail) -> i32 {
    let (code, text) = match fail {
        Fail::Quiet(code) => return code,
        _ if platform::interrupted() => return 130,
        Fail::Say(text) => (1, text),
        Fail::Code(code, text) => (code, text),
    };
    // Nobody is left to be told if that fails.
    let _gone = writeln!(cx.stderr, "{name}: {text}");
    code
}

/// The options of a command, by their letters, and what follows them.
pub struct Options {
    given: Vec<(char, String)>,
    /// The arguments that are no options.
    pub rest: Vec<String>,
}

impl Options {
    /// Reads options as `getopt` does. `known` has the letters; one with a `:` after it takes a value. `long` tells which
    /// letter a long option stands for, `\0` for one that means nothing here.
    pub fn read(args: &[String], known: &str, long: &[(&str, char)]) -> Result<Self, Fail> {
        let takes = |letter: char| known.split_once(letter).map(|(_, after)| after.starts_with(':'));
        let (mut given, mut rest, mut at) = (Vec::new(), Vec::new(), 0);
        while let Some(arg) = args.get(at) {
            at += 1;
            if arg == "--" {
                rest.extend_from_slice(&args[at..]);
                break;
            }
            if let Some(name) = arg.strip_prefix("--") {
                let (name, value) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
                let letter = long.iter().find(|(known, _)| *known == name).map(|(_, letter)| *letter);
                let letter = letter.ok_or_else(|| Fail::Say(format!("unrecognized option: --{name}")))?;
                let value = match (value, takes(letter)) {
                    (Some(value), _) => value.to_owned(),
                    (None, Some(true)) => following(args, &mut at, &format!("--{name}"))?,
                    _ => String::new(),
                };
                given.push((letter, value));
                continue;
            }
            let Some(letters) = arg.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
                rest.push(arg.clone());
                continue;
            };
            for (index, letter) in letters.char_indices() {
                match takes(letter) {
                    Some(false) if letter != ':' => given.push((letter, String::new())),
                    Some(true) => {
                        let after = &letters[index + letter.len_utf8()..];
                        let value = match after {
                            "" => following(args, &mut at, &format!("-{letter}"))?,
                            after => after.to_owned(),
                        };
                        given.push((letter, value));
                        break;
                    }
                    _ => return Err(Fail::Say(format!("unrecognized option: -{letter}"))),
                }
            }
        }
        Ok(Self { given, rest })
    }

    /// Whether an option was given.
    pub fn has(&self, letter: char) -> bool {
        self.given.iter().any(|(given, _)| *given == letter)
    }

    /// The value of an option, the last one if there are several.
    pub fn value(&self, letter: char) -> Option<&str> {
        self.given.iter().rev().find(|(given, _)| *given == letter).map(|(_, value)| value.as_str())
    }

    /// All values of an option.
    pub fn values(&self, letter: char) -> impl Iterator<Item = &str> {
        self.given.iter().filter(move |(given, _)| *given == letter).map(|(_, value)| value.as_str())
    }
}

fn following(args: &[String], at: &mut usize, option: &str) -> Result<String, Fail> {
    *at += 1;
    args.get(*at - 1).cloned().ok_or_else(|| Fail::Say(format!("option needs a value: {option}")))
}

/// A number, or a complaint.
pub fn number<T: std::str::FromStr>(text: &str) -> Result<T, Fail> {
    text.trim().parse().map_err(|_| Fail::Say(format!("invalid number '{text}'")))
}

/// Calls `each` with every line of an input, its end included.
pub fn each_line(input: &Input, mut each: impl FnMut(&[u8]) -> Result<bool, Fail>) -> Result<(), Fail> {
    let mut line = Vec::new();
    while input.read_line(&mut line)? > 0 {
        if !each(&line)? {
            break;
        }
        line.clear();
    }
    Ok(())
}

/// Does something with every file that is named, or with the command's input. A file that cannot be read is complained
/// about, and the others have their turn.
pub fn each_input(
    cx: &mut Cx,
    name: &str,
    paths: &[String],
    mut each: impl FnMut(&mut Cx, &str, Input) -> Result<(), Fail>,
) -> Outcome {
    let own = ["-".to_owned()];
    let mut code = 0;
    for path in if paths.is_empty() { &own[..] } else { paths } {
        let done = cx.open(path).and_then(|input| each(cx, path, input));
        match done {
            Ok(()) => {}
            Err(Fail::Quiet(code)) => return Err(Fail::Quiet(code)),
            Err(fail) => code = report(cx, name, fail),
        }
    }
    Ok(code)
}
