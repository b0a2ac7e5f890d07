//! The toolbox: a small shell and the small programs that people expect beside it, as one WebAssembly command.
//!
//! The program is told by its first argument: `sh`, `/bin/ls`, or `toolbox ls`. Everything runs in one instance, on one
//! thread: the commands of a pipeline that can be are pulled by the next one ([`applets::stream`]), the others run one after
//! the other with their output kept between ([`io::PIPE_BYTES_MAX`]); there are no background jobs, and no other program can be started. The instance lives in its pod's sandbox, so that
//! what it shows of files, names, and connections is what the pod's own containers see.
//!
//! Everything but [`platform`] also runs natively, which is how the tests run it.

pub mod applets;
pub mod files;
pub mod io;
pub mod platform;
pub mod shell;

use applets::{Cx, Fail};

/// Runs the program that the arguments name; gives its exit code.
pub fn main(args: &[String], cx: &mut Cx) -> i32 {
    let name = args.first().map_or("", |name| name.rsplit('/').next().unwrap_or_default());
    if applets::find(name).is_some() {
        return applets::run(cx, name, &args[1..]);
    }
    // Called by the name of its image: the first argument may name an applet, and without any it is a shell.
    match args.get(1..) {
        None | Some([]) => applets::run(cx, "sh", &[]),
        Some([first, rest @ ..]) if applets::find(applets::basename(first)).is_some() => {
            applets::run(cx, applets::basename(first), rest)
        }
        Some([first, ..]) => {
            let why = Fail::Say(format!("there is no `{first}`; there are {}", applets::names().join(", ")));
            applets::report(cx, "toolbox", why);
            127
        }
    }
}
