//! What a program is, for whoever wants to know before it runs: what it imports and exports, what made it, and what a
//! Pod has to give it.

use dhow_runtime_contract::EntryPoint;
use serde::Serialize;
use wasmparser::{Encoding, KnownCustom, Parser, Payload, Validator, WasmFeatures};

use crate::program::{self, LoadError, Outside};

/// Bytes of one page of memory, unless the module says otherwise.
const PAGE_BYTES_LOG2: u32 = 16;
/// Producers that are listed: each tool of a chain leaves one, in each module of a component.
const PRODUCERS_MAX: usize = 100;

/// What a file of WebAssembly is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    /// `component`, or `module` of preview 1.
    pub kind: &'static str,
    /// The bytes of the file.
    pub size: u64,
    /// How it is entered; `None` if it cannot be.
    pub entry: Option<EntryPoint>,
    /// What it imports on its outermost level, sorted.
    pub imports: Vec<String>,
    /// Those imports that no node offers.
    pub missing: Vec<String>,
    /// What it exports on its outermost level, sorted.
    pub exports: Vec<String>,
    /// The tools that made it, as it says itself: `processed-by: rustc 1.95.0`.
    pub producers: Vec<String>,
    /// The bytes of memory that it cannot start without.
    pub memory_min: u64,
    /// Whether it has the names of its functions, so that a backtrace shows them.
    pub has_names: bool,
    /// Whether it has DWARF, so that a backtrace shows lines.
    pub has_dwarf: bool,
}

/// Describes a program. One that cannot run is described as well, if only it is WebAssembly.
pub fn describe(wasm: &[u8]) -> Result<Description, LoadError> {
    let outside = Outside::read_program(wasm)?;
    let component = outside.encoding == Encoding::Component;
    let mut description = Description {
        kind: if component { "component" } else { "module" },
        size: wasm.len() as u64,
        entry: program::entry_of(&outside),
        imports: outside.imports.iter().cloned().collect(),
        missing: program::missing(&outside),
        exports: outside.exports.iter().cloned().collect(),
        producers: Vec::new(),
        memory_min: 0,
        has_names: false,
        has_dwarf: false,
    };
    for payload in Parser::new(0).parse_all(wasm) {
        // The outermost level was read already; what is wrong further in, the compiler says.
        let Ok(payload) = payload else { break };
        description.note(&payload);
    }
    description.producers.sort();
    description.producers.dedup();
    Ok(description)
}

/// Finds out whether a file is a whole and valid program, before it is shipped. Every feature of WebAssembly is taken for
/// allowed, since other nodes may have another version.
pub fn check(wasm: &[u8]) -> Result<(), LoadError> {
    if let Some(detail) = program::foreign(wasm) {
        return Err(LoadError::NotWasm { detail });
    }
    let checked = Validator::new_with_features(WasmFeatures::all()).validate_all(wasm);
    checked.map(drop).map_err(|error| {
        let (what, at, len) = (error.message(), error.offset(), wasm.len());
        LoadError::NotWasm { detail: format!("{what} at byte {at} of {len}") }
    })
}

impl Description {
    fn note(&mut self, payload: &Payload<'_>) {
        match payload {
            Payload::MemorySection(section) => {
                for memory in section.clone().into_iter().flatten() {
                    let page = memory.page_size_log2.unwrap_or(PAGE_BYTES_LOG2).min(PAGE_BYTES_LOG2);
                    self.memory_min = self.memory_min.saturating_add(memory.initial.saturating_mul(1 << page));
                }
            }
            Payload::CustomSection(section) => match section.as_known() {
                KnownCustom::Producers(fields) => {
                    for field in fields.into_iter().flatten() {
                        for value in field.values.into_iter().flatten() {
                            if self.producers.len() < PRODUCERS_MAX {
                                let line = format!("{}: {} {}", field.name, value.name, value.version);
                                self.producers.push(line.trim_end().to_owned());
                            }
                        }
                    }
                }
                KnownCustom::Name(_) => self.has_names = true,
                _ => self.has_dwarf |= section.name() == ".debug_info",
            },
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_described_with_what_it_needs_and_lacks() {
        let module = r#"(module $app
            (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
            (import "env" "magic" (func))
            (memory (export "memory") 17)
            (func $main (export "_start"))
            (@producers (language "Rust" "1") (processed-by "rustc" "1.95.0")))"#;
        let wasm = wat::parse_str(module).unwrap();
        let found = describe(&wasm).unwrap();
        assert_eq!((found.kind, found.size, found.entry), ("module", wasm.len() as u64, Some(EntryPoint::Command)));
        assert_eq!(found.imports, ["env.magic", "wasi_snapshot_preview1.fd_write"]);
        assert_eq!(found.missing, ["env.magic"]);
        assert_eq!(found.exports, ["_start", "memory"]);
        assert_eq!(found.producers, ["language: Rust 1", "processed-by: rustc 1.95.0"]);
        assert_eq!((found.memory_min, found.has_names, found.has_dwarf), (17 << 16, true, false));

        let component = r#"(component
            (import "wasi:nn/graph@0.2.0" (instance)) (import "wasi:cli/environment@0.2.3" (instance))
            (core module (memory 2) (@custom ".debug_info" "")) (instance $i)
            (export "wasi:http/incoming-handler@0.2.0" (instance $i)))"#;
        let found = describe(&wat::parse_str(component).unwrap()).unwrap();
        assert_eq!((found.kind, found.entry), ("component", Some(EntryPoint::Http)));
        assert_eq!(found.missing, ["wasi:nn/graph@0.2.0"]);
        assert_eq!((found.memory_min, found.has_names, found.has_dwarf), (2 << 16, false, true));

        assert_eq!(describe(&wat::parse_str("(component)").unwrap()).unwrap().entry, None);
        assert!(matches!(describe(b"text"), Err(LoadError::NotWasm { .. })));
    }

    #[test]
    fn a_file_that_is_cut_off_or_wrong_further_in_is_told_from_a_program() {
        let whole = wat::parse_str("(component (core module (func (result i32) i32.const 1)))").unwrap();
        check(&whole).unwrap();
        let detail = |wasm: &[u8]| match check(wasm) {
            Err(LoadError::NotWasm { detail }) => detail,
            other => panic!("{other:?}"),
        };
        let cut = detail(&whole[..whole.len() - 3]);
        assert!(cut.contains(&format!(" of {}", whole.len() - 3)) && cut.contains("at byte"), "{cut}");
        let wrong = wat::parse_str("(component (core module (func (result i32) i64.const 1)))").unwrap();
        assert!(detail(&wrong).starts_with("type mismatch: expected i32, found i64 at byte "));
        assert!(!detail(b"text").is_empty());
        for cut in 0..whole.len() {
            // Where a section ends, the file is a smaller program; nowhere does it panic.
            let _checked = check(&whole[..cut]);
        }
    }
}
