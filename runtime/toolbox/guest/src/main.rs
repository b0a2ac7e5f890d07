//! The command: arguments in, exit code out.

use toolbox::applets::Cx;
use toolbox::platform;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let mut cx = Cx::of_process();
    let code = toolbox::main(&args, &mut cx);
    platform::flush();
    platform::exit(code)
}
