//! Preview 1 modules, made components.
//!
//! The standard adapter turns preview 1 calls into WASI 0.2, but its `proc_exit` passes on no more than success or
//! failure. A Pod's status shows the code, and scripts look at it, so that one import goes to an adapter of ours, which
//! calls `exit-with-code`.

use std::borrow::Cow;

use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::program::{ADAPTER, LoadError, PREVIEW1};

/// The import that is redirected, and where to. Both names have one length, so that nothing else in the module moves.
const PROC_EXIT: &[u8] = b"\x16wasi_snapshot_preview1\x09proc_exit";
const PROC_EXIT_OURS: &[u8] = b"\x16dhow_snapshot_preview1\x09proc_exit";
const OURS: &str = "dhow_snapshot_preview1";

/// Our adapter:
/// ```wat
/// (module
///   (import "wasi:cli/exit@0.2.12" "exit-with-code" (func (param i32)))
///   (func (export "proc_exit") (param i32) (call 0 (local.get 0)) unreachable))
/// ```
const EXIT_ADAPTER: &[u8] = b"\0asm\x01\0\0\0\
    \x01\x05\x01\x60\x01\x7f\0\
    \x02\x27\x01\x14wasi:cli/exit@0.2.12\x0eexit-with-code\0\0\
    \x03\x02\x01\0\
    \x07\x0d\x01\x09proc_exit\0\x01\
    \x0a\x09\x01\x07\0\x20\0\x10\0\0\x0b";

/// What our adapter imports, as the published package has it.
const EXIT_WIT: &str = "package wasi:cli@0.2.12;
    interface exit { exit: func(status: result); exit-with-code: func(status-code: u8); }
    world adapter { import exit; }";

/// Makes a component of a preview 1 module.
pub(crate) fn adapt(module: &[u8]) -> Result<Vec<u8>, LoadError> {
    let module = redirect_exit(module);
    let encoder = ComponentEncoder::default().module(&module).map_err(failed)?;
    let mut encoder = encoder.adapter(PREVIEW1, ADAPTER).map_err(failed)?;
    if matches!(module, Cow::Owned(_)) {
        encoder = encoder.adapter(OURS, &exit_adapter()?).map_err(failed)?;
    }
    encoder.validate(true).encode().map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> LoadError {
    LoadError::Compile { detail: format!("adapting the preview 1 module: {error:#}") }
}

/// The module with its `proc_exit` imported from our adapter; as it is if it imports none.
fn redirect_exit(module: &[u8]) -> Cow<'_, [u8]> {
    let imports = Parser::new(0).parse_all(module).find_map(|payload| match payload {
        Ok(Payload::ImportSection(section)) => Some(section.range()),
        _ => None,
    });
    let Some(imports) = imports else { return Cow::Borrowed(module) };
    let found = module[imports.clone()].windows(PROC_EXIT.len()).position(|window| window == PROC_EXIT);
    let Some(at) = found.map(|at| imports.start + at) else { return Cow::Borrowed(module) };
    let mut module = module.to_owned();
    module[at..at + PROC_EXIT_OURS.len()].copy_from_slice(PROC_EXIT_OURS);
    Cow::Owned(module)
}

fn exit_adapter() -> Result<Vec<u8>, LoadError> {
    let mut resolve = Resolve::default();
    let package = resolve.push_str("exit.wit", EXIT_WIT).map_err(failed)?;
    let world = resolve.select_world(&[package], None).map_err(failed)?;
    let mut adapter = EXIT_ADAPTER.to_owned();
    embed_component_metadata(&mut adapter, &resolve, world, StringEncoding::UTF8).map_err(failed)?;
    Ok(adapter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_adapter_is_what_its_text_says() {
        let text = r#"(module
            (import "wasi:cli/exit@0.2.12" "exit-with-code" (func (param i32)))
            (func (export "proc_exit") (param i32) (call 0 (local.get 0)) unreachable))"#;
        assert_eq!(wat::parse_str(text).unwrap(), EXIT_ADAPTER);
    }

    #[test]
    fn only_a_module_that_exits_is_changed() {
        let text =
            |import: &str| format!(r#"(module (import "wasi_snapshot_preview1" "{import}" (func (param i32))))"#);
        let exits = wat::parse_str(text("proc_exit")).unwrap();
        let other = wat::parse_str(text("proc_exot")).unwrap();
        assert!(matches!(redirect_exit(&other), Cow::Borrowed(_)));
        let redirected = redirect_exit(&exits);
        let ours = text("proc_exit").replace("wasi_snapshot", "dhow_snapshot");
        assert_eq!(redirected, wat::parse_str(ours).unwrap());
    }
}
