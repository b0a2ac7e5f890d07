//! Programs in images of files: found in their layers and taken out.
//!
//! Layers are read as streams, twice: to learn which files there are when all lie over each other, and to take one out.
//! Nothing else of them is unpacked. What they claim about sizes is not believed.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use dhow_files::{Access, NewFile};
use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};
use tar::EntryType;

use crate::IMAGE_BYTES_MAX;
use crate::manifest::{clean, hex_of};

/// What an image may ask of the node.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes that its program may have.
    program_bytes: u64,
    /// Bytes that its layers may unpack to: far above what an image that was made for one program has.
    unpacked_bytes: u64,
}

/// The limits of every image.
pub(crate) const LIMITS: Limits = Limits { program_bytes: IMAGE_BYTES_MAX, unpacked_bytes: 4 * IMAGE_BYTES_MAX };
/// Bytes of a header that describes another one: a long name, or extended attributes. They are read into memory.
const HEADER_BYTES_MAX: u64 = 1 << 20;
/// Files that all layers of an image may have.
const FILES_MAX: usize = 100_000;
/// A file of this prefix in a layer takes away the file of the rest of its name from those below it…
const WHITEOUT: &str = ".wh.";
/// …and this one takes away all files of its directory.
const OPAQUE: &str = ".wh..wh..opq";

/// Why there is no program.
#[derive(Debug)]
pub(crate) enum ArchiveError {
    /// The image is not as it should be; the text says how.
    Image(String),
    /// The node's own files failed.
    Io(io::Error),
}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Takes the program out of layers that lie over each other in this order. Gives the finished file, not yet in its place,
/// its digest and its size.
pub(crate) fn extract(
    layers: &[PathBuf],
    program: Option<&str>,
    dir: &Path,
    limits: Limits,
) -> Result<Extracted, ArchiveError> {
    let files = visible(layers, limits)?;
    let path = match program {
        // A name without its ending, as some tools write it, means the one with it.
        Some(path) => [path.to_owned(), format!("{path}.wasm")].into_iter().find(|path| files.contains_key(path)),
        None => None,
    };
    let path = match path {
        Some(path) => path,
        None => only_program(&files, program)?,
    };
    let layer = &layers[files[&path]];
    let mut archive = open(layer, &Budget::new(limits))?;
    for entry in archive.entries().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        if name_of(&entry)? == path && entry.header().entry_type().is_file() {
            return copy(entry, dir, limits);
        }
    }
    Err(ArchiveError::Image(format!("the file `{path}` is gone from its layer")))
}

/// A file that was taken out.
pub(crate) struct Extracted {
    pub(crate) file: NewFile,
    pub(crate) path: PathBuf,
    pub(crate) digest: String,
    pub(crate) size: u64,
}

/// The files that are seen from above, and in which layer each lies.
fn visible(layers: &[PathBuf], limits: Limits) -> Result<BTreeMap<String, usize>, ArchiveError> {
    let mut files = BTreeMap::new();
    let (mut hidden, mut opaque) = (BTreeSet::new(), BTreeSet::new());
    let (mut count, budget) = (0, Budget::new(limits));
    for (at, layer) in layers.iter().enumerate().rev() {
        let (mut hides, mut covers, mut adds) = (Vec::new(), Vec::new(), Vec::new());
        check_headers(layer, &budget)?;
        for entry in open(layer, &budget)?.entries().map_err(broken)? {
            let entry = entry.map_err(broken)?;
            count += 1;
            if count > FILES_MAX {
                return Err(ArchiveError::Image(format!("it has more than {FILES_MAX} files")));
            }
            let path = name_of(&entry)?;
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
            if name == OPAQUE {
                covers.push(parent.to_owned());
            } else if let Some(name) = name.strip_prefix(WHITEOUT) {
                hides.push(clean(&format!("{parent}/{name}")));
            } else if entry.header().entry_type().is_file() {
                adds.push(path);
            } else if !matches!(entry.header().entry_type(), EntryType::Directory) {
                // A link, say: it hides what lies below it and is not followed.
                hides.push(path);
            }
        }
        for path in adds {
            let above = ancestors(&path).any(|dir| hidden.contains(dir) || opaque.contains(dir));
            if !above && !hidden.contains(&path) {
                files.entry(path).or_insert(at);
            }
        }
        hidden.extend(hides);
        opaque.extend(covers);
    }
    Ok(files)
}

/// The directories that a path lies in, the root included.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at]).chain([""])
}

fn only_program(files: &BTreeMap<String, usize>, wanted: Option<&str>) -> Result<String, ArchiveError> {
    let programs: Vec<_> = files.keys().filter(|path| path.ends_with(".wasm")).collect();
    let named =
        wanted.map_or("no entry point".to_owned(), |path| format!("the entry point `/{path}`, which is no file of it"));
    match (programs.as_slice(), wanted) {
        ([one], None) => Ok((*one).clone()),
        ([], _) => Err(ArchiveError::Image(format!(
            "it names {named}, and has no `.wasm` file; Linux container images do not run here"
        ))),
        (some, _) => {
            let some = some.iter().take(5).map(|path| format!("`/{path}`")).collect::<Vec<_>>().join(", ");
            Err(ArchiveError::Image(format!("it names {named}; its programs are {some}")))
        }
    }
}

fn copy(mut from: impl Read, dir: &Path, limits: Limits) -> Result<Extracted, ArchiveError> {
    let path = dir.join("program");
    let mut file = NewFile::create(&path, Access::Public)?;
    let (mut hash, mut size) = (Sha256::new(), 0_u64);
    let mut piece = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut piece).map_err(broken)?;
        if read == 0 {
            break;
        }
        size += read as u64;
        if size > limits.program_bytes {
            return Err(ArchiveError::Image(format!("its program has more than {} bytes", limits.program_bytes)));
        }
        hash.update(&piece[..read]);
        file.write_all(&piece[..read])?;
    }
    Ok(Extracted { file, path, digest: hex_of(&hash.finalize()), size })
}

/// Refuses headers that would fill the memory when they are read.
fn check_headers(layer: &Path, budget: &Budget) -> Result<(), ArchiveError> {
    for entry in open(layer, budget)?.entries().map_err(broken)?.raw(true) {
        let entry = entry.map_err(broken)?;
        let kind = entry.header().entry_type();
        let describes = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if describes && entry.size() > HEADER_BYTES_MAX {
            return Err(ArchiveError::Image(format!("a header of it has {} bytes", entry.size())));
        }
    }
    Ok(())
}

fn open(layer: &Path, budget: &Budget) -> Result<tar::Archive<Bounded>, ArchiveError> {
    let mut file = File::open(layer)?;
    let mut magic = [0; 4];
    let got = file.read(&mut magic)?;
    io::Seek::rewind(&mut file)?;
    let file = BufReader::new(file);
    let inner: Box<dyn Read> = match &magic[..got] {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            return Err(ArchiveError::Image("its layers are compressed by zstd; build it with gzip".to_owned()));
        }
        _ => Box::new(file),
    };
    Ok(tar::Archive::new(Bounded { inner, budget: budget.clone() }))
}

/// What is left to unpack of the layers of one image.
#[derive(Clone)]
struct Budget {
    left: Rc<Cell<u64>>,
    limit: u64,
}

impl Budget {
    /// Layers are read twice before a program is taken out.
    fn new(limits: Limits) -> Self {
        let left = Rc::new(Cell::new(limits.unpacked_bytes.saturating_mul(2)));
        Self { left, limit: limits.unpacked_bytes }
    }
}

/// A reader that gives up where layers unpack to more than any honest ones.
struct Bounded {
    inner: Box<dyn Read>,
    budget: Budget,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let left = self.budget.left.get().checked_sub(read as u64);
        let left =
            left.ok_or_else(|| io::Error::other(format!("it unpacks to more than {} bytes", self.budget.limit)))?;
        self.budget.left.set(left);
        Ok(read)
    }
}

fn name_of<R: Read>(entry: &tar::Entry<'_, R>) -> Result<String, ArchiveError> {
    Ok(clean(&String::from_utf8_lossy(&entry.path_bytes())))
}

fn broken(error: io::Error) -> ArchiveError {
    ArchiveError::Image(format!("a layer cannot be unpacked: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    fn layer(dir: &Path, number: usize, files: &[(&str, &[u8])]) -> PathBuf {
        let path = dir.join(number.to_string());
        let gzip = GzEncoder::new(File::create(&path).unwrap(), Compression::fast());
        let mut archive = tar::Builder::new(gzip);
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, *bytes).unwrap();
        }
        archive.into_inner().unwrap().finish().unwrap();
        path
    }

    fn program(layers: &[&[(&str, &[u8])]], wanted: Option<&str>) -> Result<Vec<u8>, String> {
        let dir = tempfile::tempdir().unwrap();
        let layers: Vec<_> = layers.iter().enumerate().map(|(n, files)| layer(dir.path(), n, files)).collect();
        match extract(&layers, wanted, dir.path(), LIMITS) {
            Ok(Extracted { file, path, digest, size }) => {
                file.commit().unwrap();
                let bytes = std::fs::read(path).unwrap();
                assert_eq!((crate::manifest::digest_of(&bytes), bytes.len() as u64), (digest, size));
                Ok(bytes)
            }
            Err(ArchiveError::Image(why)) => Err(why),
            Err(ArchiveError::Io(error)) => Err(format!("I/O: {error}")),
        }
    }

    #[test]
    fn the_file_that_is_seen_from_above_is_taken() {
        let (a, b): (&[u8], &[u8]) = (b"\0asm a", b"\0asm b");
        for (layers, wanted, expected) in [
            (&[&[("app.wasm", a)][..]][..], Some("app.wasm"), Ok(a)),
            (&[&[("app.wasm", a)]], Some("app"), Ok(a)),
            (&[&[("./srv/app.wasm", a), ("data", b)]], None, Ok(a)),
            (&[&[("app.wasm", a)], &[("app.wasm", b)]], Some("app.wasm"), Ok(b)),
            (&[&[("app", a)]], Some("app"), Ok(a)),
            (&[&[("app.wasm", a)], &[(".wh.app.wasm", b""), ("b.wasm", b)]], None, Ok(b)),
            (&[&[("x/app.wasm", a)], &[(".wh.x", b"")]], Some("x/app.wasm"), Err("has no `.wasm` file")),
            (&[&[("x/app.wasm", a)], &[("x/.wh..wh..opq", b"")]], None, Err("has no `.wasm` file")),
            (&[&[("x/app.wasm", a)], &[("x/.wh..wh..opq", b""), ("x/b.wasm", b)]], None, Ok(b)),
            (
                &[&[("a.wasm", a), ("b.wasm", b)]],
                None,
                Err("names no entry point; its programs are `/a.wasm`, `/b.wasm`"),
            ),
            (&[&[("a.wasm", a)]], Some("bin/sh"), Err("the entry point `/bin/sh`, which is no file of it")),
            (&[&[("bin/sh", a)]], None, Err("Linux container images do not run here")),
        ] {
            let found = program(layers, wanted);
            match expected {
                Ok(bytes) => assert_eq!(found.as_deref(), Ok(bytes), "{layers:?}"),
                Err(part) => assert!(found.as_ref().is_err_and(|why| why.contains(part)), "{layers:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn bombs_and_other_archives_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let why = |path: &PathBuf, limits: Limits| match extract(std::slice::from_ref(path), None, dir.path(), limits) {
            Err(ArchiveError::Image(why)) => why,
            _ => panic!("accepted"),
        };
        let bomb = layer(dir.path(), 0, &[("app.wasm", &vec![0; 2 << 20])]);
        assert!(std::fs::metadata(&bomb).unwrap().len() < 100 << 10);
        let limits = |program_bytes, unpacked_bytes| Limits { program_bytes, unpacked_bytes };
        for (limits, part) in [
            (limits(1 << 20, 4 << 20), "its program has more than 1048576 bytes"),
            (limits(4 << 20, 1 << 20), "unpacks to more than 1048576 bytes"),
        ] {
            let why = why(&bomb, limits);
            assert!(why.contains(part), "{why}");
        }
        let named = dir.path().join("named");
        let mut archive = tar::Builder::new(File::create(&named).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(HEADER_BYTES_MAX + 1);
        let name = vec![b'x'; HEADER_BYTES_MAX as usize + 1];
        archive.append_data(&mut header, "././@LongLink", &name[..]).unwrap();
        archive.into_inner().unwrap();
        assert_eq!(why(&named, LIMITS), "a header of it has 1048577 bytes");
        let zstd = dir.path().join("zstd");
        std::fs::write(&zstd, b"\x28\xb5\x2f\xfd...").unwrap();
        assert!(why(&zstd, LIMITS).contains("zstd"));
        let text = dir.path().join("text");
        std::fs::write(&text, vec![b'x'; 2000]).unwrap();
        assert!(why(&text, LIMITS).contains("cannot be unpacked"));
    }
}
