//! Paths, and the directories above the mounted ones.
//!
//! A guest is given directories, `/data` or `/etc`, and nothing above them. So that `ls /` shows what there is, the
//! directories above are made up here.

use std::fs;
use std::io;
use std::time::SystemTime;

use crate::platform;

/// What these programs have of Linux's devices; other programs of the pod do not see them.
const DEVICES: [&str; 4] = ["/dev/null", "/dev/random", "/dev/urandom", "/dev/zero"];

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Link,
}

/// What is known of a path.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// What it names.
    pub kind: Kind,
    /// How many bytes it has.
    pub size: u64,
    /// When it was changed last.
    pub modified: SystemTime,
}

/// A path from the root, without `.` and `..`.
pub fn resolve(dir: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{dir}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// A name in a directory.
pub fn join(dir: &str, name: &str) -> String {
    if dir.ends_with('/') { format!("{dir}{name}") } else { format!("{dir}/{name}") }
}

/// The names that mounted directories have in `dir`, which is above them.
fn above(dir: &str, mounts: &[String]) -> Vec<String> {
    let prefix = if dir == "/" { dir.to_owned() } else { format!("{dir}/") };
    let below = mounts.iter().filter_map(|mount| mount.strip_prefix(prefix.as_str()));
    let mut names: Vec<String> =
        below.filter_map(|rest| rest.split('/').next().filter(|name| !name.is_empty()).map(str::to_owned)).collect();
    names.sort();
    names.dedup();
    names
}

/// Whether the path lies in a mounted directory.
pub fn is_mounted(path: &str) -> bool {
    platform::mounts().iter().any(|mount| {
        path.strip_prefix(mount.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// What a path names, the link itself if it is one.
pub fn stat_link(path: &str) -> io::Result<Stat> {
    crate::io::settle()?;
    stat_of(path, fs::symlink_metadata(path))
}

/// What a path names, after all links.
pub fn stat(path: &str) -> io::Result<Stat> {
    crate::io::settle()?;
    stat_of(path, fs::metadata(path))
}

fn stat_of(path: &str, found: io::Result<fs::Metadata>) -> io::Result<Stat> {
    match found {
        Err(_) if DEVICES.contains(&path) => Ok(Stat { kind: Kind::File, size: 0, modified: SystemTime::UNIX_EPOCH }),
        Ok(meta) => {
            let ty = meta.file_type();
            let kind = match (ty.is_dir(), ty.is_symlink()) {
                (true, _) => Kind::Dir,
                (_, true) => Kind::Link,
                _ => Kind::File,
            };
            Ok(Stat { kind, size: meta.len(), modified: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH) })
        }
        Err(_) if path == "/" || !above(path, &platform::mounts()).is_empty() => {
            Ok(Stat { kind: Kind::Dir, size: 0, modified: SystemTime::UNIX_EPOCH })
        }
        Err(_) if !is_mounted(path) => Err(io::ErrorKind::NotFound.into()),
        Err(error) => Err(error),
    }
}

/// Whether the path names a directory.
pub fn is_dir(path: &str) -> bool {
    stat(path).is_ok_and(|stat| stat.kind == Kind::Dir)
}

/// The names in a directory, in order.
pub fn list(path: &str) -> io::Result<Vec<String>> {
    let made_up = above(path, &platform::mounts());
    let found = if is_mounted(path) { fs::read_dir(path) } else { Err(io::ErrorKind::NotFound.into()) };
    let mut names = made_up;
    match found {
        Ok(entries) => {
            for entry in entries {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
        }
        Err(_) if path == "/" || !names.is_empty() => {}
        Err(error) => return Err(error),
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Removes a file, or a directory with everything in it.
pub fn remove_all(path: &str) -> io::Result<()> {
    if stat_link(path)?.kind != Kind::Dir {
        return fs::remove_file(path);
    }
    for name in list(path)? {
        if platform::step() {
            return Err(platform::broken_off());
        }
        remove_all(&join(path, &name))?;
    }
    fs::remove_dir(path)
}

/// What went wrong with a path, in words.
pub fn why(path: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "No such file or directory".to_owned(),
        io::ErrorKind::AlreadyExists => "File exists".to_owned(),
        io::ErrorKind::IsADirectory => "Is a directory".to_owned(),
        io::ErrorKind::NotADirectory => "Not a directory".to_owned(),
        io::ErrorKind::DirectoryNotEmpty => "Directory not empty".to_owned(),
        _ if !is_mounted(path) => "no volume is mounted there: mount one, for example an emptyDir".to_owned(),
        io::ErrorKind::PermissionDenied => "Permission denied (is it mounted read-only?)".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_above_the_mounted_ones_are_made_up() {
        let mounts = ["/data", "/etc", "/var/run/secrets", "/var/log"].map(str::to_owned);
        assert_eq!(above("/", &mounts), ["data", "etc", "var"]);
        assert_eq!(above("/var", &mounts), ["log", "run"]);
        assert_eq!(above("/var/run", &mounts), ["secrets"]);
        assert!(above("/data", &mounts).is_empty() && above("/va", &mounts).is_empty());
    }

    #[test]
    fn paths_are_resolved_by_their_text() {
        for (dir, path, expected) in
            [("/a/b", "../c", "/a/c"), ("/", "x//y/.", "/x/y"), ("/a", "/z/", "/z"), ("/", "../..", "/")]
        {
            assert_eq!(resolve(dir, path), expected);
        }
    }
}
