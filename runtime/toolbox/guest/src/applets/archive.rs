//! `tar`: what `kubectl cp` speaks, and what a hand types. The format is the `tar` crate's; which files are read and
//! written is decided here, since WASI has neither owners nor modes.

use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, UNIX_EPOCH};

use tar::{Archive, Builder, EntryType, Header};

use super::{Cx, Fail, Options, Outcome, at, report, tree};
use crate::files::{self, Kind, Stat};
use crate::platform;

const LONG: &[(&str, char)] = &[
    ("create", 'c'),
    ("extract", 'x'),
    ("list", 't'),
    ("file", 'f'),
    ("directory", 'C'),
    ("verbose", 'v'),
    ("touch", 'm'),
    ("to-stdout", 'O'),
    ("strip-components", 's'),
    // There is nothing that these could change.
    ("no-same-permissions", '\0'),
    ("no-same-owner", '\0'),
    ("same-permissions", '\0'),
    ("numeric-owner", '\0'),
    ("overwrite", '\0'),
];

pub(super) fn tar(cx: &mut Cx, args: &[String]) -> Outcome {
    // The first word may leave out its dash.
    let mut args = args.to_vec();
    if let Some(first) = args.first_mut().filter(|first| !first.starts_with('-')) {
        *first = format!("-{first}");
    }
    let options = Options::read(&args, "cxtf:C:vmpozOhs:", LONG)?;
    if options.has('z') {
        return Err(Fail::Say("compressed archives are not supported: leave out `z`".to_owned()));
    }
    let mut inner = cx.clone();
    if let Some(dir) = options.value('C') {
        inner.dir = cx.path(dir);
        if !files::is_dir(&inner.dir) {
            return Err(Fail::Say(format!("{dir}: No such directory")));
        }
    }
    let file = options.value('f').unwrap_or("-");
    match (options.has('c'), options.has('x'), options.has('t')) {
        (true, false, false) => {
            let out = if file == "-" { cx.stdout.clone() } else { cx.create(file, false)? };
            create(&mut inner, &options, out)
        }
        (false, true, false) | (false, false, true) => {
            let input = cx.open(file)?;
            extract(&mut inner, &options, input)
        }
        _ => Err(Fail::Say("give one of c (create), x (extract) and t (list)".to_owned())),
    }
}

fn create(cx: &mut Cx, options: &Options, out: impl Write) -> Outcome {
    if options.rest.is_empty() {
        return Err(Fail::Say("nothing to put into the archive".to_owned()));
    }
    let (mut builder, mut code) = (Builder::new(out), 0);
    for path in &options.rest {
        let full = cx.path(path);
        match files::stat_link(&full) {
            // As everywhere: names in an archive have no root.
            Ok(stat) => {
                let name = path.trim_start_matches('/').trim_end_matches('/');
                let name = if name.is_empty() { "." } else { name };
                add(cx, options, &mut builder, name, &full, stat)?;
            }
            Err(error) => code = report(cx, "tar", at(path, &full, &error)),
        }
    }
    builder.finish()?;
    Ok(if code == 0 { 0 } else { 2 })
}

fn add(
    cx: &mut Cx,
    options: &Options,
    builder: &mut Builder<impl Write>,
    name: &str,
    full: &str,
    stat: Stat,
) -> Result<(), Fail> {
    if platform::step() {
        return Err(Fail::Quiet(130));
    }
    if options.has('v') {
        writeln!(cx.stderr, "{name}")?;
    }
    let stat = if options.has('h') { files::stat(full)? } else { stat };
    let mut header = Header::new_gnu();
    header.set_mtime(stat.modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    match stat.kind {
        Kind::Dir => {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            builder.append_data(&mut header, format!("{name}/"), std::io::empty())?;
            for child in files::list(full)? {
                let (name, full) = (files::join(name, &child), files::join(full, &child));
                let stat = files::stat_link(&full)?;
                add(cx, options, builder, &name, &full, stat)?;
            }
        }
        Kind::Link => {
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            builder.append_link(&mut header, name, fs::read_link(full)?)?;
        }
        Kind::File => {
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o644);
            header.set_size(stat.size);
            let file = fs::File::open(full).map_err(|error| at(name, full, &error))?;
            // What grows meanwhile must not spoil the archive.
            builder.append_data(&mut header, name, Padded { file: file.take(stat.size), left: stat.size })?;
        }
    }
    Ok(())
}

/// A file with as many bytes as its header says, whatever becomes of it meanwhile.
struct Padded {
    file: std::io::Take<fs::File>,
    left: u64,
}

impl Read for Padded {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if platform::step() {
            return Err(platform::broken_off());
        }
        let mut count = self.file.read(buffer)?;
        if count == 0 {
            count = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            buffer[..count].fill(0);
        }
        self.left -= count as u64;
        Ok(count)
    }
}

fn extract(cx: &mut Cx, options: &Options, input: impl Read) -> Outcome {
    let mut archive = Archive::new(input);
    let strip: usize = options.value('s').map_or(Ok(0), super::number)?;
    let mut code = 0;
    for entry in archive.entries()? {
        let mut entry = entry.map_err(|error| Fail::Say(format!("this is not a tar archive: {error}")))?;
        let name = entry.path()?.to_string_lossy().into_owned();
        if !wanted(&name, &options.rest) {
            continue;
        }
        if options.has('t') {
            cx.line(&name)?;
            continue;
        }
        if options.has('v') {
            cx.line(&name)?;
        }
        if options.has('O') {
            std::io::copy(&mut entry, &mut cx.stdout)?;
            continue;
        }
        if name.split('/').any(|part| part == "..") {
            code = report(cx, "tar", Fail::Say(format!("{name}: left out, for it leads out of the directory")));
            continue;
        }
        let stripped: Vec<&str> = name.split('/').filter(|part| !part.is_empty()).skip(strip).collect();
        if stripped.is_empty() || stripped == ["."] {
            continue;
        }
        let full = cx.path(&stripped.join("/"));
        if let Err(fail) = unpack(&mut entry, &name, &full, options.has('m')) {
            if platform::interrupted() {
                return Err(Fail::Quiet(130));
            }
            code = report(cx, "tar", fail);
        }
    }
    Ok(if code == 0 { 0 } else { 2 })
}

fn wanted(name: &str, members: &[String]) -> bool {
    let inside = |member: &String| {
        let member = member.trim_end_matches('/');
        name.strip_prefix(member).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    members.is_empty() || members.iter().any(inside)
}

fn unpack(entry: &mut tar::Entry<'_, impl Read>, name: &str, full: &str, now: bool) -> Result<(), Fail> {
    let failed = |error: std::io::Error| at(name, full, &error);
    let kind = entry.header().entry_type();
    if let Some((parent, _)) = full.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) {
        tree::make_all(parent).map_err(|error| at(parent, parent, &error))?;
    }
    match kind {
        EntryType::Directory => tree::make_all(full).map_err(failed),
        EntryType::Symlink => {
            let target = entry.link_name()?.map(|target| target.to_string_lossy().into_owned()).unwrap_or_default();
            // One of that name is replaced.
            let _none = fs::remove_file(full);
            platform::symlink(&target, full).map_err(failed)
        }
        EntryType::Regular | EntryType::Continuous => {
            // A link in its place is replaced, not followed.
            if files::stat_link(full).is_ok_and(|stat| stat.kind == Kind::Link) {
                fs::remove_file(full).map_err(failed)?;
            }
            let mut file = fs::File::create(full).map_err(failed)?;
            let mut buffer = vec![0; 64 * 1024];
            loop {
                match entry.read(&mut buffer)? {
                    0 => break,
                    count => file.write_all(&buffer[..count]).map_err(failed)?,
                }
            }
            if let (false, Ok(seconds)) = (now, entry.header().mtime()) {
                // A time that cannot be kept is no reason to refuse the file.
                let _kept = file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds));
            }
            Ok(())
        }
        _ => Err(Fail::Say(format!("{name}: left out, for it is neither file nor directory nor symbolic link"))),
    }
}
