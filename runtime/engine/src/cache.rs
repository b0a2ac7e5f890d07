//! Compiled code: made once a digest, kept on disk, mapped into memory.
//!
//! A file's name tells everything about it: digest, the engine's settings, the entry point, and for whom the code is. It
//! is only ever written here, in a directory that only the node can write to, and appears under its name when it is
//! complete and fits: a mapped file must never change.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use dhow_host::Guest;
use wasmtime::component::{Component, Linker};

use crate::compile::Compiler;
use crate::linkers::{Family, Linkers};
use crate::program::{Linked, LoadError, Pre};
use crate::target::Code;

/// What code is called whose engine is not known yet.
const UNNAMED: &str = "unnamed";

/// The directory of compiled code and the engines it is for.
pub(crate) struct Cache {
    dir: PathBuf,
    linkers: Linkers,
    compiler: Compiler,
    /// What the node runs, the best first.
    codes: Vec<Code>,
}

impl Cache {
    pub(crate) fn open(dir: PathBuf, linkers: Linkers, compiler: Compiler, code: Code) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        dhow_files::remove_unfinished(&dir)?;
        let codes = match (&compiler, code) {
            // Who compiles elsewhere may do so on another processor.
            (Compiler::Elsewhere(_), Code::Native) => vec![Code::Native, Code::Pulley],
            _ => vec![code],
        };
        let cache = Self { dir, linkers, compiler, codes };
        cache.remove_outdated()?;
        Ok(cache)
    }

    /// Removes code that no engine of this node will use again: of another version, or of other settings.
    fn remove_outdated(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name().into_string().unwrap_or_default();
            let family = Family::ALL.into_iter().find(|family| name.ends_with(&format!(".{}", family.suffix())));
            let outdated = match family {
                // Engines that come late are not made for this.
                Some(family) if self.linkers.is_late(family) => false,
                Some(family) => self.linker(family).is_ok_and(|linker| {
                    let digest = name.split('.').next().unwrap_or_default();
                    self.path(digest, family, linker) != self.dir.join(&name)
                }),
                None => name.ends_with(UNNAMED),
            };
            if outdated {
                fs::remove_file(self.dir.join(name))?;
            }
        }
        Ok(())
    }

    /// What there is, by digest: bytes, and when it was made.
    pub(crate) fn list(&self) -> io::Result<BTreeMap<String, (u64, SystemTime)>> {
        let mut found: BTreeMap<String, (u64, SystemTime)> = BTreeMap::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().into_string().unwrap_or_default();
            let Some((digest, _)) = name.strip_suffix(".cwasm").and_then(|name| name.split_once('.')) else { continue };
            let meta = match entry.metadata() {
                // It went meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                meta => meta?,
            };
            let made = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let one = found.entry(digest.replacen('-', ":", 1)).or_insert((0, made));
            *one = (one.0 + meta.len(), one.1.max(made));
        }
        Ok(found)
    }

    /// Removes what was made of a program. Who runs it keeps it until its end.
    pub(crate) fn remove(&self, digest: &str) -> io::Result<()> {
        let begin = format!("{}.", file_name(digest));
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(&begin)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Who compiles.
    pub(crate) fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// What the node runs, the best first.
    pub(crate) fn codes(&self) -> &[Code] {
        &self.codes
    }

    /// The program under this digest, if it has been compiled before.
    pub(crate) fn find(&self, digest: &str) -> Option<Linked> {
        let families = self.codes.iter().flat_map(|code| Family::ALL.into_iter().filter(|family| family.code == *code));
        families.filter(|family| self.may_have(digest, *family)).find_map(|family| {
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
        if !self.linkers.is_late(family) {
            return true;
        }
        let (begin, end) = (format!("{}.", file_name(digest)), format!(".{}", family.suffix()));
        let names = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter_map(|name| name.into_string().ok()).any(|name| name.starts_with(&begin) && name.ends_with(&end))
    }

    /// Compiles a program and keeps the code. Takes seconds and hundreds of MiB for a big program: the caller bounds
    /// how many run at once.
    pub(crate) fn compile(&self, wasm: &Path, digest: &str) -> Result<Linked, LoadError> {
        let unnamed = self.unnamed(digest);
        let family = self.compiler.compile(wasm, &unnamed, self.codes[0])?;
        self.install(&unnamed, digest, family)
    }

    /// Where code is put before it has its name: what it is to be called is known when it is there, for the engine
    /// depends on what the program is.
    pub(crate) fn unnamed(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{}.{UNNAMED}", file_name(digest)))
    }

    /// Keeps code that lies there, if it fits; else it is removed.
    pub(crate) fn install(&self, unnamed: &Path, digest: &str, family: Family) -> Result<Linked, LoadError> {
        let installed = self.open_compiled(unnamed, digest, family).and_then(|linked| {
            let path = self.path(digest, family, self.linker(family)?);
            fs::rename(unnamed, &path).map_err(|source| LoadError::Io { path, source })?;
            Ok(linked)
        });
        if installed.is_err() {
            // What cannot be removed is replaced by the next attempt.
            let _removed = fs::remove_file(unnamed);
        }
        installed
    }

    fn linker(&self, family: Family) -> Result<&Linker<Guest>, LoadError> {
        self.linkers.get(family).map_err(|detail| LoadError::Compile { detail })
    }

    fn path(&self, digest: &str, family: Family, linker: &Linker<Guest>) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        family.code.settings().to_string().hash(&mut hasher);
        hash_details(linker.engine(), &mut hasher);
        self.dir.join(format!("{}.{:016x}.{}", file_name(digest), hasher.finish(), family.suffix()))
    }

    fn open_compiled(&self, path: &Path, digest: &str, family: Family) -> Result<Linked, LoadError> {
        let linker = self.linker(family)?;
        // SAFETY: the file was written by this node in its private directory, from the output of this very compiler or of
        // one that `Elsewhere::new` vouches for; nothing writes to it afterwards.
        let component = unsafe { Component::deserialize_file(linker.engine(), path) }
            .map_err(|e| LoadError::Unfit { detail: format!("{e:#}") })?;
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

/// What the compiler of an engine takes into account, such as what the processor can do.
#[cfg(feature = "compiler")]
fn hash_details(engine: &wasmtime::Engine, hasher: &mut impl Hasher) {
    engine.precompile_compatibility_hash().hash(hasher);
}

/// Without a compiler there is nothing to take into account; whether code fits is seen when it is loaded.
#[cfg(not(feature = "compiler"))]
fn hash_details(_: &wasmtime::Engine, _: &mut impl Hasher) {}

fn file_name(digest: &str) -> String {
    digest.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}
