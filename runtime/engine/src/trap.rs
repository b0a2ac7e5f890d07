//! How a guest came to grief: the trap, and where it happened, in the words of its own source where that is known.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;

use dhow_files::Access;
use wasmtime::{FrameInfo, Store, Trap, WasmBacktrace, WasmCoreDump};

/// Memory above which no dump is written: it would be made in memory once more before it is on the disk.
pub(crate) const CORE_BYTES_MAX: u64 = 512 << 20;
/// Frames of a backtrace that are shown; the innermost ones tell the story.
const FRAMES_MAX: usize = 20;
/// Frames that are looked for: one more tells that there are more.
pub(crate) const FRAMES_FOUND_MAX: NonZeroUsize = NonZeroUsize::new(FRAMES_MAX + 1).expect("it is one more");
/// What stands for those that are not shown.
const REST: &str = "\n  … and more";
/// A container's status has room for 4 KiB of termination message, and others want some of it.
const TEXT_BYTES_MAX: usize = 2048;
/// A symbol of a generic function can have a thousand characters.
const NAME_BYTES_MAX: usize = 160;

/// A trap with its cause and the functions it happened in.
pub(crate) fn describe(error: &wasmtime::Error) -> String {
    let mut text = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    let trace = error.downcast_ref::<WasmBacktrace>().map(WasmBacktrace::frames);
    let frames = trace.or_else(|| error.downcast_ref::<WasmCoreDump>().map(WasmCoreDump::frames)).unwrap_or_default();
    if frames.is_empty() {
        return text;
    }
    text.push_str("\nwasm backtrace:");
    let lines: Vec<String> = frames.iter().flat_map(lines_of).collect();
    for (number, line) in lines.iter().enumerate() {
        let next = format!("\n  {number}: {line}");
        if number >= FRAMES_MAX || text.len() + next.len() + REST.len() > TEXT_BYTES_MAX {
            text.push_str(REST);
            break;
        }
        text.push_str(&next);
    }
    text
}

/// Whether there is something to dump.
pub(crate) fn is_trap(error: &wasmtime::Error) -> bool {
    error.is::<WasmCoreDump>()
}

/// Writes the memory, the globals and the stack of the guest to a file, in the form that Wasm debuggers read
/// (<https://github.com/WebAssembly/tool-conventions/blob/main/Coredump.md>).
pub(crate) fn write_core<T: 'static>(mut store: Store<T>, error: &wasmtime::Error, path: &Path) -> io::Result<()> {
    let Some(dump) = error.downcast_ref::<WasmCoreDump>() else { return Ok(()) };
    let bytes = dump.serialize(&mut store, "program");
    drop(store);
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    dhow_files::write(path, &bytes, Access::Private)
}

/// A frame, and those of the functions that the compiler put into it, innermost first.
fn lines_of(frame: &FrameInfo) -> Vec<String> {
    let own = || frame.func_name().map_or_else(|| format!("function {}", frame.func_index()), name);
    if frame.symbols().is_empty() {
        return vec![own()];
    }
    let symbols = frame.symbols().iter().map(|symbol| {
        let mut line = symbol.name().map_or_else(own, name);
        if let Some(file) = symbol.file() {
            line.push_str(&place(file, symbol.line()));
        }
        line
    });
    symbols.collect()
}

/// ` at src/main.rs:7`. Of a long path its end tells more.
fn place(file: &str, line: Option<u32>) -> String {
    let mut parts = file.rsplit('/');
    let mut short: Vec<&str> = parts.by_ref().take(3).collect();
    if parts.next().is_some_and(|more| !more.is_empty()) {
        short.push("…");
    }
    short.reverse();
    let mut text = format!(" at {}", short.join("/"));
    if let Some(line) = line {
        // Writing to a text does not fail.
        let _written = write!(text, ":{line}");
    }
    text
}

/// A symbol as its author wrote it, without the hash that Rust's have.
fn name(symbol: &str) -> String {
    let mut text = format!("{:#}", rustc_demangle::demangle(symbol));
    if text.len() > NAME_BYTES_MAX {
        let end = (0..=NAME_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmtime::{Engine, Instance, Module, Store};

    /// What is said of a module whose `run` traps.
    fn said(module: &str) -> String {
        let engine =
            Engine::new(&crate::linkers::settings(dhow_host::Wasi::P2, &crate::target::Target::Host).unwrap()).unwrap();
        let module = Module::new(&engine, wat::parse_str(module).unwrap()).unwrap();
        let mut store = Store::new(&engine, ());
        store.set_epoch_deadline(1);
        let instance = Instance::new(&mut store, &module, &[]).unwrap();
        let run = instance.get_typed_func::<(), ()>(&mut store, "run").unwrap();
        describe(&run.call(&mut store, ()).unwrap_err())
    }

    #[test]
    fn a_trap_names_its_kind_and_the_functions_it_happened_in() {
        let text = said(
            r#"(module
                (func $_ZN3app4load17h0123456789abcdefE (drop (i32.div_s (i32.const 1) (i32.const 0))))
                (func $main (call 0))
                (func (export "run") (call $main)))"#,
        );
        assert_eq!(
            text,
            "wasm trap: integer divide by zero\nwasm backtrace:\n  0: app::load\n  1: main\n  2: function 2"
        );
    }

    #[test]
    fn a_long_story_is_cut_to_what_a_status_holds() {
        let text = said(r#"(module (func $f (export "run") (call $f)))"#);
        assert!(text.starts_with("wasm trap: call stack exhausted\nwasm backtrace:\n  0: f\n"), "{text}");
        assert!(text.ends_with("\n  19: f\n  … and more"), "{text}");
        let long = "x".repeat(3000);
        let calls: String = (0..30).map(|n| format!("(func ${long}{n} (call {}))", n + 1)).collect();
        let text = said(&format!("(module {calls} (func ${long} unreachable) (export \"run\" (func 0)))"));
        assert!(text.len() <= TEXT_BYTES_MAX, "{}", text.len());
        assert!(text.contains("xxx…\n") && text.ends_with(REST), "{text}");
    }

    #[test]
    fn places_are_the_ends_of_paths() {
        for (file, line, expected) in [
            ("src/main.rs", Some(7), " at src/main.rs:7"),
            ("/a/src/main.rs", Some(7), " at a/src/main.rs:7"),
            ("/rustc/59807/library/std/src/panicking.rs", None, " at …/std/src/panicking.rs"),
        ] {
            assert_eq!(place(file, line), expected);
        }
    }
}
