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
use dhow_host::{Guest, Wasi};
use wasmtime::component::{Component, Linker};

use crate::adapt;
use crate::linkers::{Family, Linkers};
use crate::program::{self, Linked, LoadError, Pre};

/// The largest program that is read: a guard against filling memory, far above the biggest seen (a JavaScript engine
/// with its program, 13 MiB).
const WASM_BYTES_MAX: u64 = 256 << 20;

/// Counts changes in what is made of a program before it is compiled: code of another generation is not used.
const GENERATION: u32 = 1;

/// The directory of compiled code and the engines it is for.
pub(crate) struct Cache {
    dir: PathBuf,
    linkers: Linkers,
}

impl Cache {
    pub(crate) fn open(dir: PathBuf, linkers: Linkers) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        dhow_files::remove_unfinished(&dir)?;
        Ok(Self { dir, linkers })
    }

    /// The program under this digest, if it has been compiled before.
    pub(crate) fn find(&self, digest: &str) -> Option<Linked> {
        Family::ALL.into_iter().filter(|family| self.may_have(digest, *family)).find_map(|family| {
            let linker = self.linker(family).ok()?;
            let path = self.path(digest, family, linker);
            if !path.exists() {
                return None;
            }
            self.open_compiled(&path, digest, family)
                .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "compiled code is unusable"))
                .ok()
        })
    }

    /// Whether it is worth looking: engines that come late are not made in vain.
    fn may_have(&self, digest: &str, family: Family) -> bool {
        if family.wasi == Wasi::P2 {
            return true;
        }
        let begin = format!("{}.", file_name(digest));
        let names = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter_map(|name| name.into_string().ok()).any(|n| n.starts_with(&begin) && n.ends_with(family.suffix()))
    }

    /// Compiles a program and keeps the code. Takes seconds and hundreds of MiB for a big program: the caller bounds
    /// how many run at once.
    pub(crate) fn compile(&self, wasm: &Path, digest: &str) -> Result<Linked, LoadError> {
        let bytes = read(wasm).map_err(|source| LoadError::Io { path: wasm.to_owned(), source })?;
        let shape = program::inspect(&bytes)?;
        let bytes = if shape.adapt { adapt::adapt(&bytes)? } else { bytes };
        let linker = self.linker(shape.family)?;
        let code = linker
            .engine()
            .precompile_component(&bytes)
            .map_err(|e| LoadError::Compile { detail: format!("{e:#}") })?;
        drop(bytes);
        let path = self.path(digest, shape.family, linker);
        dhow_files::write(&path, &code, Access::Public)
            .map_err(|source| LoadError::Io { path: path.clone(), source })?;
        self.open_compiled(&path, digest, shape.family)
    }

    fn linker(&self, family: Family) -> Result<&Linker<Guest>, LoadError> {
        self.linkers.get(family).map_err(|detail| LoadError::Compile { detail })
    }

    fn path(&self, digest: &str, family: Family, linker: &Linker<Guest>) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        GENERATION.hash(&mut hasher);
        linker.engine().precompile_compatibility_hash().hash(&mut hasher);
        self.dir.join(format!("{}.{:016x}.{}", file_name(digest), hasher.finish(), family.suffix()))
    }

    fn open_compiled(&self, path: &Path, digest: &str, family: Family) -> Result<Linked, LoadError> {
        let linker = self.linker(family)?;
        // SAFETY: the file was written by this node in its private directory, from the output of this
        // very compiler; nothing writes to it afterwards.
        let component = unsafe { Component::deserialize_file(linker.engine(), path) }
            .map_err(|e| LoadError::Compile { detail: format!("{e:#}") })?;
        let pre = linker
            .instantiate_pre(&component)
            .map_err(|e| LoadError::UnknownImport { names: vec![format!("{e:#}")] })?;
        let pre = Pre::new(pre, family).map_err(|error| {
            tracing::debug!(%error, "the entry point has another type");
            LoadError::NoEntryPoint
        })?;
        Ok(Linked { digest: digest.to_owned(), pre })
    }
}

fn file_name(digest: &str) -> String {
    digest.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

fn read(wasm: &Path) -> io::Result<Vec<u8>> {
    let len = fs::metadata(wasm)?.len();
    if len > WASM_BYTES_MAX {
        return Err(io::Error::other(format!("the program has {len} bytes; at most {WASM_BYTES_MAX} are read")));
    }
    fs::read(wasm)
}
