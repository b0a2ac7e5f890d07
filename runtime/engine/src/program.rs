//! What a file of WebAssembly is, told from its outside before anything is compiled.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use dhow_host::{Guest, is_known_import};
use dhow_runtime_contract::EntryPoint;
use wasmparser::{Encoding, Parser, Payload};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use crate::adapt::{ADAPTER, PREVIEW1};

/// A program that is ready to be started: compiled, linked, and shared by all its containers.
#[derive(Clone)]
pub struct Program {
    pub(crate) inner: Arc<Linked>,
}

pub(crate) struct Linked {
    pub(crate) digest: String,
    pub(crate) pre: Pre,
}

pub(crate) enum Pre {
    Command(CommandPre<Guest>),
    Http(ProxyPre<Guest>),
}

impl Program {
    /// How it is entered.
    pub fn entry(&self) -> EntryPoint {
        match self.inner.pre {
            Pre::Command(_) => EntryPoint::Command,
            Pre::Http(_) => EntryPoint::Http,
        }
    }

    /// The digest that it was loaded under.
    pub fn digest(&self) -> &str {
        &self.inner.digest
    }
}

/// Why a file cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is something else, or is cut off.
    #[error("the image is not a WebAssembly program: {detail}")]
    NotWasm {
        /// What was found.
        detail: String,
    },
    /// The program needs what no node offers.
    #[error(
        "the program imports what no node offers: {}; a container may import the interfaces of WASI 0.2 \
         (or preview 1, as a core module)",
        list(.names)
    )]
    UnknownImport {
        /// All missing imports, sorted.
        names: Vec<String>,
    },
    /// The program has no way in.
    #[error(
        "the program exports no entry point: a container exports `wasi:cli/run` or `wasi:http/incoming-handler` of \
         WASI 0.2, or is a preview 1 module with `_start`; was it built as a library?"
    )]
    NoEntryPoint,
    /// The program is invalid or uses a WebAssembly feature that is off.
    #[error("compiling the program failed: {detail}")]
    Compile {
        /// What the compiler said.
        detail: String,
    },
    /// A file could not be read or written.
    #[error("reading or writing `{}` failed", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// A program's outside, with everything it imports known to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) entry: EntryPoint,
    /// A preview 1 module, to be made a component first.
    pub(crate) adapt: bool,
}

/// Reads the outside of a program and refuses what cannot run.
pub(crate) fn inspect(wasm: &[u8]) -> Result<Shape, LoadError> {
    if let Some(detail) = foreign(wasm) {
        return Err(LoadError::NotWasm { detail });
    }
    let outside = Outside::read(wasm).map_err(|e| LoadError::NotWasm { detail: damaged(&e, wasm.len()) })?;
    match outside.encoding {
        Encoding::Component => {
            refuse_unknown(outside.imports.iter().filter(|name| !is_known_import(name)).cloned())?;
            let exports = |interface: &str| outside.exports.iter().any(|name| name.starts_with(interface));
            let entry = if exports("wasi:http/incoming-handler@0.2.") {
                EntryPoint::Http
            } else if exports("wasi:cli/run@0.2.") {
                EntryPoint::Command
            } else {
                return Err(LoadError::NoEntryPoint);
            };
            Ok(Shape { entry, adapt: false })
        }
        Encoding::Module => {
            refuse_unknown(outside.imports.iter().filter(|name| !preview1_functions().contains(*name)).cloned())?;
            if !outside.exports.contains("_start") {
                return Err(LoadError::NoEntryPoint);
            }
            Ok(Shape { entry: EntryPoint::Command, adapt: true })
        }
    }
}

fn refuse_unknown(names: impl Iterator<Item = String>) -> Result<(), LoadError> {
    let names: BTreeSet<String> = names.collect();
    if names.is_empty() { Ok(()) } else { Err(LoadError::UnknownImport { names: names.into_iter().collect() }) }
}

/// What the file is instead of WebAssembly, if it is something else.
fn foreign(wasm: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&wasm[..wasm.len().min(64)]);
    let text = text.trim_start();
    Some(match wasm {
        [] => "the file is empty".to_owned(),
        [0, b'a', b's', b'm', ..] => return None,
        [0x7f, b'E', b'L', b'F', ..] => "it is a Linux executable; build it for the target `wasm32-wasip2`".to_owned(),
        [0x1f, 0x8b, ..] => "it is a gzip archive; the layer of an image is the bare `.wasm` file".to_owned(),
        _ if text.starts_with("(module") || text.starts_with("(component") => {
            "it is WebAssembly text; translate it to binary first (`wasm-tools parse`)".to_owned()
        }
        _ => format!("it begins with the bytes {:02x?} and not with `\\0asm`", &wasm[..wasm.len().min(8)]),
    })
}

fn damaged(error: &wasmparser::BinaryReaderError, len: usize) -> String {
    if error.message().starts_with("unexpected end") {
        format!("the file is cut off after {len} bytes; build or push it again")
    } else {
        format!("{error}")
    }
}

/// The names on the outermost level of a module or component. Imports of a module are `module.name`.
struct Outside {
    encoding: Encoding,
    imports: BTreeSet<String>,
    exports: BTreeSet<String>,
}

impl Outside {
    fn read(wasm: &[u8]) -> Result<Self, wasmparser::BinaryReaderError> {
        let mut outside = Self { encoding: Encoding::Module, imports: BTreeSet::new(), exports: BTreeSet::new() };
        let mut depth = 0_u32;
        for payload in Parser::new(0).parse_all(wasm) {
            match payload? {
                Payload::Version { encoding, .. } if depth == 0 => outside.encoding = encoding,
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ImportSection(section) if depth == 0 => {
                    for import in section.into_imports() {
                        let import = import?;
                        outside.imports.insert(format!("{}.{}", import.module, import.name));
                    }
                }
                Payload::ExportSection(section) if depth == 0 => {
                    for export in section {
                        outside.exports.insert(export?.name.to_owned());
                    }
                }
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        outside.imports.insert(import?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        outside.exports.insert(export?.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(outside)
    }
}

/// What a preview 1 module may import, as the adapter itself says.
fn preview1_functions() -> &'static BTreeSet<String> {
    static NAMES: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let adapter = Outside::read(ADAPTER).expect("the adapter is a valid module");
        adapter.exports.iter().map(|name| format!("{PREVIEW1}.{name}")).collect()
    });
    &NAMES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(wasm: &[u8]) -> String {
        match inspect(wasm) {
            Ok(shape) => panic!("{shape:?} was accepted"),
            Err(error) => error.to_string(),
        }
    }

    fn wat(text: &str) -> Vec<u8> {
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn what_is_not_wasm_is_told_apart() {
        let whole = wat("(module (func (export \"_start\")))");
        for (bytes, part) in [
            (&b""[..], "the file is empty"),
            (b"\x7fELF\x02\x01", "wasm32-wasip2"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"  (module)", "wasm-tools parse"),
            (b"<!doctype html>", "begins with the bytes [3c, 21"),
            (&whole[..whole.len() - 3], "cut off after"),
            (b"\0asm\x09\0\0\0", "unknown binary version"),
        ] {
            let message = refusal(bytes);
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn all_missing_imports_are_named() {
        let module = wat(r#"(module (import "env" "b" (func)) (import "env" "a" (func))
                (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
                (import "wasi_snapshot_preview1" "sock_open" (func)) (func (export "_start")))"#);
        let Err(LoadError::UnknownImport { names }) = inspect(&module) else { panic!("accepted") };
        assert_eq!(names, ["env.a", "env.b", "wasi_snapshot_preview1.sock_open"]);
        let component = wat(r#"(component (import "wasi:nn/graph@0.2.0" (instance)) (import "acme" (func)))"#);
        let Err(LoadError::UnknownImport { names }) = inspect(&component) else { panic!("accepted") };
        assert_eq!(names, ["acme", "wasi:nn/graph@0.2.0"]);
    }

    #[test]
    fn the_entry_point_is_told_from_the_exports() {
        let start = wat("(module (func (export \"_start\")))");
        assert_eq!(inspect(&start).unwrap(), Shape { entry: EntryPoint::Command, adapt: true });
        for library in ["(module (func (export \"_initialize\")))", "(component)"] {
            assert!(matches!(inspect(&wat(library)), Err(LoadError::NoEntryPoint)));
        }
        let both = wat(r#"(component (instance $i)
                (export "wasi:cli/run@0.2.3" (instance $i)) (export "wasi:http/incoming-handler@0.2.0" (instance $i)))"#);
        assert_eq!(inspect(&both).unwrap(), Shape { entry: EntryPoint::Http, adapt: false });
    }
}
