//! What a file of WebAssembly is, told from its outside before anything is compiled.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use dhow_host::{Guest, Wasi, hears_of_its_end, is_known_import};
use dhow_runtime_contract::EntryPoint;
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
};
use wasmparser::{Encoding, Parser, Payload};
use wasmtime::component::InstancePre;
use wasmtime_wasi::{p2::bindings as p2, p3::bindings as p3};
use wasmtime_wasi_http::handler::ProxyPre;
use wasmtime_wasi_http::{p2::bindings as http_p2, p3::bindings as http_p3};

use crate::linkers::Family;
use crate::target::Code;

/// The module that preview 1 functions are imported from.
pub(crate) const PREVIEW1: &str = WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME;
/// The adapter of all of them.
pub(crate) const ADAPTER: &[u8] = WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER;

/// A program that is ready to be started: compiled, linked, and shared by all its containers.
#[derive(Clone)]
pub struct Program {
    pub(crate) inner: Arc<Linked>,
}

pub(crate) struct Linked {
    pub(crate) digest: String,
    pub(crate) pre: Pre,
}

/// A program by how it is entered.
pub(crate) enum Pre {
    Command(Command),
    Http(ProxyPre<Guest>),
}

/// A command, and whether it wants to be told of its end.
pub(crate) struct Command {
    pub(crate) pre: CommandPre,
    pub(crate) hears_of_its_end: bool,
}

/// A command of either WASI.
#[derive(Clone)]
pub(crate) enum CommandPre {
    P2(p2::CommandPre<Guest>),
    P3(p3::CommandPre<Guest>),
}

impl CommandPre {
    pub(crate) fn engine(&self) -> &wasmtime::Engine {
        match self {
            Self::P2(pre) => pre.engine(),
            Self::P3(pre) => pre.engine(),
        }
    }
}

impl Pre {
    /// Fails if the entry point is of another type than its name says.
    pub(crate) fn new(pre: InstancePre<Guest>, family: Family) -> wasmtime::Result<Self> {
        let ty = pre.component().component_type();
        let hears_of_its_end = hears_of_its_end(ty.imports(pre.engine()).map(|(name, _)| name));
        let command = |pre| Self::Command(Command { pre, hears_of_its_end });
        Ok(match (family.entry, family.wasi) {
            (EntryPoint::Command, Wasi::P2) => command(CommandPre::P2(p2::CommandPre::new(pre)?)),
            // What imports something of 0.3 may still be entered as of 0.2.
            (EntryPoint::Command, Wasi::P3) => command(match p3::CommandPre::new(pre.clone()) {
                Ok(pre) => CommandPre::P3(pre),
                Err(_) => CommandPre::P2(p2::CommandPre::new(pre)?),
            }),
            (EntryPoint::Http, Wasi::P2) => Self::Http(ProxyPre::P2(http_p2::ProxyPre::new(pre)?)),
            (EntryPoint::Http, Wasi::P3) => Self::Http(match http_p3::ServicePre::new(pre.clone()) {
                Ok(pre) => ProxyPre::P3(pre),
                Err(_) => ProxyPre::P2(http_p2::ProxyPre::new(pre)?),
            }),
        })
    }
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
         and 0.3 (or preview 1, as a core module)",
        list(.names)
    )]
    UnknownImport {
        /// All missing imports, sorted.
        names: Vec<String>,
    },
    /// The program has no way in.
    #[error(
        "the program exports no entry point: a container exports `wasi:cli/run`, `wasi:http/incoming-handler` (0.2) \
         or `wasi:http/handler` (0.3), or is a preview 1 module with `_start`; was it built as a library?"
    )]
    NoEntryPoint,
    /// The program is invalid or uses a WebAssembly feature that is off.
    #[error("compiling the program failed: {detail}")]
    Compile {
        /// What the compiler said.
        detail: String,
    },
    /// The program is small to ship, or not, and takes more to compile than a node gives.
    #[error("the module needs more than {needs} to compile")]
    TooCostly {
        /// The limit that it hit.
        needs: String,
    },
    /// The program has not been compiled, and this node cannot do it.
    #[error(
        "the program has to be compiled, and this node has no compiler and nobody to ask for its code: build it with the \
         feature `compiler`, or let its control node compile"
    )]
    NoCompiler,
    /// Who compiles for this node has not done so.
    #[error("the program has to be compiled, and this node has no compiler: {why}")]
    NotDelivered {
        /// What went wrong, and what to do.
        why: String,
    },
    /// Code was compiled for another engine, for other settings, or for another processor.
    #[error("the code that was compiled for this node does not fit it: {detail}")]
    Unfit {
        /// What the engine said.
        detail: String,
    },
    /// Another compiler is needed for such code.
    #[error("this compiler does not make the code of `{settings}`: {why}")]
    OtherSettings {
        /// What was asked for.
        settings: String,
        /// What it does, and what to do.
        why: String,
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
    /// Of this machine's own code.
    pub(crate) family: Family,
    /// A preview 1 module, to be made a component first.
    pub(crate) adapt: bool,
}

/// Reads the outside of a program and refuses what cannot run.
pub(crate) fn inspect(wasm: &[u8]) -> Result<Shape, LoadError> {
    let outside = Outside::read_program(wasm)?;
    let names = missing(&outside);
    if !names.is_empty() {
        return Err(LoadError::UnknownImport { names });
    }
    let family = family_of(&outside).ok_or(LoadError::NoEntryPoint)?;
    Ok(Shape { family, adapt: outside.encoding == Encoding::Module })
}

/// The imports that no node offers, sorted.
pub(crate) fn missing(outside: &Outside) -> Vec<String> {
    let known = |name: &str| match outside.encoding {
        Encoding::Component => is_known_import(name),
        Encoding::Module => preview1_functions().contains(name),
    };
    outside.imports.iter().filter(|name| !known(name)).cloned().collect()
}

fn family_of(outside: &Outside) -> Option<Family> {
    match outside.encoding {
        Encoding::Component => outside.family(),
        Encoding::Module => {
            let command = Family { entry: EntryPoint::Command, wasi: Wasi::P2, code: Code::Native };
            outside.exports.contains("_start").then_some(command)
        }
    }
}

/// How the program is entered, if it can be.
pub(crate) fn entry_of(outside: &Outside) -> Option<EntryPoint> {
    family_of(outside).map(|family| family.entry)
}

/// What the file is instead of WebAssembly, if it is something else.
pub(crate) fn foreign(wasm: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&wasm[..wasm.len().min(64)]);
    let text = text.trim_start();
    Some(match wasm {
        [] => "the file is empty".to_owned(),
        [0, b'a', b's', b'm', ..] => return None,
        // Wasmtime's compiled code is an ELF file of an operating system that it has given a number of its own.
        [0x7f, b'E', b'L', b'F', _, _, _, 200, ..] => {
            "it is code compiled ahead of time (`.cwasm`), which fits one engine and one processor; push the `.wasm` \
             that it was made from"
                .to_owned()
        }
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
pub(crate) struct Outside {
    pub(crate) encoding: Encoding,
    pub(crate) imports: BTreeSet<String>,
    pub(crate) exports: BTreeSet<String>,
}

impl Outside {
    /// How a component is entered, and what it must be linked with: WASI 0.3 as soon as anything of it is mentioned. One
    /// that can be entered in several ways is an HTTP program before a command, and of 0.3 before 0.2.
    fn family(&self) -> Option<Family> {
        // A draft of a version, `0.3.0-rc-1`, is something else than the version.
        let released = |patch: &str| !patch.contains('-');
        let exports = |interface: &str| self.exports.iter().any(|n| n.strip_prefix(interface).is_some_and(released));
        let (entry, of) = [
            ("wasi:http/handler@0.3.", EntryPoint::Http, Wasi::P3),
            ("wasi:http/incoming-handler@0.2.", EntryPoint::Http, Wasi::P2),
            ("wasi:cli/run@0.3.", EntryPoint::Command, Wasi::P3),
            ("wasi:cli/run@0.2.", EntryPoint::Command, Wasi::P2),
        ]
        .into_iter()
        .find_map(|(interface, entry, wasi)| exports(interface).then_some((entry, wasi)))?;
        let imported = self.imports.iter().filter_map(|name| Wasi::of(name)).max();
        Some(Family { entry, wasi: imported.map_or(of, |imported| imported.max(of)), code: Code::Native })
    }

    /// Reads a file that may be anything.
    pub(crate) fn read_program(wasm: &[u8]) -> Result<Self, LoadError> {
        match foreign(wasm) {
            Some(detail) => Err(LoadError::NotWasm { detail }),
            None => Self::read(wasm).map_err(|e| LoadError::NotWasm { detail: damaged(&e, wasm.len()) }),
        }
    }

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
        let shape = |entry, wasi, adapt| Shape { family: Family { entry, wasi, code: Code::Native }, adapt };
        assert_eq!(inspect(&start).unwrap(), shape(EntryPoint::Command, Wasi::P2, true));
        for library in ["(module (func (export \"_initialize\")))", "(component)"] {
            assert!(matches!(inspect(&wat(library)), Err(LoadError::NoEntryPoint)));
        }
        let (command, http) = ("wasi:cli/run@", "wasi:http/incoming-handler@");
        for (exports, entry, wasi) in [
            (vec![format!("{command}0.2.3")], EntryPoint::Command, Wasi::P2),
            (vec![format!("{command}0.2.3"), format!("{http}0.2.0")], EntryPoint::Http, Wasi::P2),
            (vec![format!("{command}0.3.0")], EntryPoint::Command, Wasi::P3),
            (vec![format!("{command}0.2.0"), format!("{command}0.3.1")], EntryPoint::Command, Wasi::P3),
            (vec!["wasi:http/handler@0.3.0".to_owned()], EntryPoint::Http, Wasi::P3),
        ] {
            let exports: String = exports.iter().map(|name| format!("(export \"{name}\" (instance $i))")).collect();
            let component = wat(&format!("(component (instance $i) {exports})"));
            assert_eq!(inspect(&component).unwrap(), shape(entry, wasi, false), "{exports}");
        }
        assert!(matches!(
            inspect(&wat(r#"(component (instance $i) (export "wasi:cli/run@0.3.0-rc-1" (instance $i)))"#)),
            Err(LoadError::NoEntryPoint)
        ));
    }
}
