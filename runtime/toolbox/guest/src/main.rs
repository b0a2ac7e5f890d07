//! The command: arguments in, exit code out.

use toolbox::applets::Cx;
use toolbox::platform;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let mut cx = Cx::of_process();
    let mut code = toolbox::main(&args, &mut cx);
    if let Err(error) = toolbox::io::settle() {
        code = toolbox::applets::report(&mut cx, "toolbox", error.into());
    }
    platform::flush();
    platform::exit(code)
}
