//! `dhow cp`: copies files and directories into a container and out of it, by the `tar` that every pod has.

use crate::kube::{Global, Session, checked_name};
use crate::output;
use crate::session::{Command, PIECES_MAX, Typed, carry};
use anyhow::{Context as _, bail};
use bytes::Bytes;
use dhow_cli_core::copy::{Copy, Remote, below, target};
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// From where to where.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A local path, or [NAMESPACE/]POD:PATH
    from: String,
    /// The other of the two
    to: String,
    /// The container; needed when the pod has several
    #[arg(short, long)]
    container: Option<String>,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let copy = Copy::parse(&args.from, &args.to)?;
    let session = global.session()?;
    let place = |remote: &Remote| -> anyhow::Result<Place<'_>> {
        Ok(Place {
            session: &session,
            namespace: match &remote.namespace {
                Some(name) => checked_name("namespace", name.clone())?,
                None => session.namespace.clone(),
            },
            pod: checked_name("resource", remote.pod.clone())?,
            container: args.container.as_deref(),
        })
    };
    match copy {
        Copy::Up { from, to } => place(&to)?.put(from, &to.path).await,
        Copy::Down { from, to } => place(&from)?.get(&from.path, to).await,
    }
}

/// A container.
struct Place<'a> {
    session: &'a Session,
    namespace: String,
    pod: String,
    container: Option<&'a str>,
}

impl Place<'_> {
    /// Runs a program to its end.
    async fn run(
        &self,
        words: &[&str],
        typed: Option<mpsc::Receiver<Typed>>,
        out: impl AsyncFnMut(Bytes),
    ) -> anyhow::Result<i32> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let (namespace, pod) = (self.namespace.as_str(), self.pod.as_str());
        let command =
            Command { namespace, pod, container: self.container, words: &words, stdin: typed.is_some(), tty: false };
        let streams = command.start(self.session).await?;
        carry(streams, typed.unwrap_or_else(|| mpsc::channel(1).1), out).await
    }

    async fn put(&self, from: PathBuf, path: &str) -> anyhow::Result<()> {
        // What cannot be read is said before anything is asked of the pod.
        fs::metadata(&from).with_context(|| format!("reading `{}`", from.display()))?;
        let name = from.canonicalize()?.file_name().map(|name| name.to_string_lossy().into_owned());
        let is_dir = self.run(&["test", "-d", path], None, async |_| ()).await? == 0;
        let to = target(path, is_dir, name.as_deref().unwrap_or("root"));
        let (pieces, typed) = mpsc::channel(PIECES_MAX);
        let packing = tokio::task::spawn_blocking(move || pack(&from, &to.name, Pieces(pieces)));
        let code = self.run(&["tar", "-xmf", "-", "-C", &to.dir], Some(typed), async |_| ()).await?;
        ended(code)?;
        packing.await.context("packing broke off")?
    }

    async fn get(&self, path: &str, to: PathBuf) -> anyhow::Result<()> {
        let (pieces, archive) = mpsc::channel::<Bytes>(PIECES_MAX);
        let asked = path.to_owned();
        let unpacking = tokio::task::spawn_blocking(move || unpack(Archive::new(archive), &asked, &to));
        let code = self
            .run(&["tar", "cf", "-", path], None, async |bytes| {
                // Who unpacks has stopped at an error, and tells it.
                let _stopped = pieces.send(bytes).await;
            })
            .await;
        // The end of the archive.
        drop(pieces);
        let unpacked = unpacking.await.context("unpacking broke off")?;
        // What `tar` says is nearer to the cause than a cut archive.
        ended(code?)?;
        unpacked
    }
}

fn ended(code: i32) -> anyhow::Result<()> {
    if code != 0 {
        bail!("`tar` in the pod ended with exit code {code}");
    }
    Ok(())
}

/// Makes an archive with one file or directory. Links below it stay links.
fn pack(from: &Path, name: &str, to: Pieces) -> anyhow::Result<()> {
    let mut builder = tar::Builder::new(io::BufWriter::with_capacity(PACKED_BYTES, to));
    builder.follow_symlinks(false);
    let packed = if fs::metadata(from).is_ok_and(|found| found.is_dir()) {
        builder.append_dir_all(name, from)
    } else {
        fs::File::open(from).and_then(|mut file| builder.append_file(name, &mut file))
    };
    let packed = packed.and_then(|()| builder.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error));
    match packed {
        Ok(to) => to.end(),
        // The command has ended, and says why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => return Err(error).with_context(|| format!("reading `{}`", from.display())),
    }
    Ok(())
}

/// What is sent at a time.
const PACKED_BYTES: usize = 32 << 10;

/// An archive on its way to a command.
struct Pieces(mpsc::Sender<Typed>);

impl Pieces {
    fn end(self) {
        // A command that has ended needs no end.
        let _ended = self.0.blocking_send(Typed::End);
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Typed::Bytes(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An archive that comes from a command.
struct Archive {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Archive {
    fn new(pieces: mpsc::Receiver<Bytes>) -> Self {
        Self { pieces, piece: Bytes::new() }
    }
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

/// Writes the files and directories of an archive to `to`; links are passed over, for a pod could lead us by them.
fn unpack(from: impl Read, asked: &str, to: &Path) -> anyhow::Result<()> {
    let mut archive = tar::Archive::new(from);
    let mut passed_over = 0_usize;
    for entry in archive.entries().context("reading the pod's archive")? {
        let mut entry = entry.context("reading the pod's archive")?;
        let name = entry.path().context("reading the pod's archive")?.into_owned();
        let below = below(asked, &name)?;
        let kind = entry.header().entry_type();
        let is_root = below.as_os_str().is_empty();
        let path = if is_root { to.to_owned() } else { to.join(&below) };
        if kind.is_dir() {
            fs::create_dir_all(&path).with_context(|| format!("making the directory `{}`", path.display()))?;
        } else if kind.is_file() || kind == tar::EntryType::Continuous {
            // A file goes into a directory under its own name.
            let path = match name.file_name() {
                Some(name) if is_root && path.is_dir() => path.join(name),
                _ => path,
            };
            write_file(&mut entry, &path).with_context(|| format!("writing `{}`", path.display()))?;
        } else {
            passed_over += 1;
        }
    }
    if passed_over > 0 {
        output::note(format!("warning: {passed_over} links and special files were not copied"));
    }
    Ok(())
}

fn write_file(entry: &mut impl Read, path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    io::copy(entry, &mut fs::File::create(path)?).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What packing makes, unpacked.
    fn through(from: &Path, name: &str, asked: &str, to: &Path) -> anyhow::Result<()> {
        let (sender, mut typed) = mpsc::channel(PIECES_MAX);
        let (from, name) = (from.to_owned(), name.to_owned());
        let packing = std::thread::spawn(move || pack(&from, &name, Pieces(sender)));
        let mut archive = Vec::new();
        while let Some(Typed::Bytes(bytes)) = typed.blocking_recv() {
            archive.extend_from_slice(&bytes);
        }
        packing.join().unwrap()?;
        unpack(archive.as_slice(), asked, to)
    }

    #[test]
    fn what_is_packed_here_is_unpacked_there() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("deep/er")).unwrap();
        fs::write(from.join("one"), "1").unwrap();
        fs::write(from.join("deep/er/two"), vec![b'x'; 100_000]).unwrap();
        std::os::unix::fs::symlink("/etc", from.join("out")).unwrap();
        let to = dir.path().join("to");
        through(&from, "copy", "/copy", &to).unwrap();
        assert_eq!(fs::read(to.join("deep/er/two")).unwrap().len(), 100_000);
        assert_eq!(fs::read_to_string(to.join("one")).unwrap(), "1");
        assert!(!to.join("out").exists(), "links are passed over");
        // One file, into a directory and under a name of its own.
        through(&from.join("one"), "one", "x/../one", &to).unwrap_err();
        through(&from.join("one"), "one", "/one", &to.join("deep")).unwrap();
        through(&from.join("one"), "one", "one", &to.join("new/name")).unwrap();
        assert_eq!(fs::read_to_string(to.join("deep/one")).unwrap(), "1");
        assert_eq!(fs::read_to_string(to.join("new/name")).unwrap(), "1");
    }

    #[test]
    fn an_archive_that_is_cut_off_or_leads_elsewhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, "data/elsewhere", &b"x"[..]).unwrap();
        let archive = builder.into_inner().unwrap();
        let error = unpack(archive.as_slice(), "/data/x", dir.path()).unwrap_err();
        assert!(error.to_string().contains("`data/elsewhere`, which was not asked for"), "{error}");
        assert!(unpack(&archive[..300], "/data", dir.path()).is_err());
        unpack(archive.as_slice(), "/data", dir.path()).unwrap();
        assert!(dir.path().join("elsewhere").is_file());
    }
}
