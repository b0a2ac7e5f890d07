//! Compiled code: made once a digest, kept on disk, mapped into memory.
//!
//! A file's name tells everything about it: digest, the engine's settings, and the entry point. It is native code, so it
//! is only ever written here, in a directory that only the node can write to, and appears under its name when it is
//! complete: a mapped file must never change.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use dhow_files::Access;
use dhow_host::Guest;
use dhow_runtime_contract::EntryPoint;
use wasmtime::component::{Component, Linker};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use crate::adapt;
use crate::program::{self, Linked, LoadError, Pre};

/// The largest program that is read: a guard against filling memory, far above the biggest seen (a JavaScript engine
/// with its program, 13 MiB).
const WASM_BYTES_MAX: u64 = 256 << 20;

/// Counts changes in what is made of a program before it is compiled: code of another generation is not used.
const GENERATION: u32 = 1;

/// The directory of compiled code and the two engines it is for.
pub(crate) struct Cache {
    dir: PathBuf,
    commands: Linker<Guest>,
    http: Linker<Guest>,
}

impl Cache {
    pub(crate) fn open(dir: PathBuf, commands: Linker<Guest>, http: Linker<Guest>) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        dhow_files::remove_unfinished(&dir)?;
        Ok(Self { dir, commands, http })
    }

    /// The program under this digest, if it has been compiled before.
    pub(crate) fn find(&self, digest: &str) -> Option<Linked> {
        [EntryPoint::Command, EntryPoint::Http].into_iter().find_map(|entry| {
            let path = self.path(digest, entry);
            if !path.exists() {
                return None;
            }
            self.open_compiled(&path, digest, entry)
                .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "compiled code is unusable"))
                .ok()
        })
    }

    /// Compiles a program and keeps the code. Takes seconds and hundreds of MiB for a big program: the caller bounds
    /// how many run at once.
    pub(crate) fn compile(&self, wasm: &Path, digest: &str) -> Result<Linked, LoadError> {
        let bytes = read(wasm).map_err(|source| LoadError::Io { path: wasm.to_owned(), source })?;
        let shape = program::inspect(&bytes)?;
        let bytes = if shape.adapt { adapt::adapt(&bytes)? } else { bytes };
        let code = self
            .linker(shape.entry)
            .engine()
            .precompile_component(&bytes)
            .map_err(|e| LoadError::Compile { detail: format!("{e:#}") })?;
        drop(bytes);
        let path = self.path(digest, shape.entry);
        dhow_files::write(&path, &code, Access::Public)
            .map_err(|source| LoadError::Io { path: path.clone(), source })?;
        self.open_compiled(&path, digest, shape.entry)
    }

    fn linker(&self, entry: EntryPoint) -> &Linker<Guest> {
        match entry {
            EntryPoint::Command => &self.commands,
            EntryPoint::Http => &self.http,
        }
    }

    fn path(&self, digest: &str, entry: EntryPoint) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        GENERATION.hash(&mut hasher);
        self.linker(entry).engine().precompile_compatibility_hash().hash(&mut hasher);
        let digest: String = digest.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let entry = match entry {
            EntryPoint::Command => "command",
            EntryPoint::Http => "http",
        };
        self.dir.join(format!("{digest}.{:016x}.{entry}.cwasm", hasher.finish()))
    }

    fn open_compiled(&self, path: &Path, digest: &str, entry: EntryPoint) -> Result<Linked, LoadError> {
        let linker = self.linker(entry);
        // SAFETY: the file was written by this node in its private directory, from the output of this
        // very compiler; nothing writes to it afterwards.
        let component = unsafe { Component::deserialize_file(linker.engine(), path) }
            .map_err(|e| LoadError::Compile { detail: format!("{e:#}") })?;
        let pre = linker
            .instantiate_pre(&component)
            .map_err(|e| LoadError::UnknownImport { names: vec![format!("{e:#}")] })?;
        let pre = match entry {
            EntryPoint::Command => CommandPre::new(pre).map(Pre::Command),
            EntryPoint::Http => ProxyPre::new(pre).map(Pre::Http),
        };
        let pre = pre.map_err(|error| {
            tracing::debug!(%error, "the entry point has another type");
            LoadError::NoEntryPoint
        })?;
        Ok(Linked { digest: digest.to_owned(), pre })
    }
}

fn read(wasm: &Path) -> io::Result<Vec<u8>> {
    let len = fs::metadata(wasm)?.len();
    if len > WASM_BYTES_MAX {
        return Err(io::Error::other(format!("the program has {len} bytes; at most {WASM_BYTES_MAX} are read")));
    }
    fs::read(wasm)
}
