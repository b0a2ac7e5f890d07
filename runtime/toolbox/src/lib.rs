//! The built-in toolbox image: a shell and the small programs that people expect beside it, as one WebAssembly
//! component that every node has without a pull.
//!
//! `guest/` is the program; `build.sh` builds it into `toolbox.wasm`, which is committed with a record of the sources
//! that it was built from. A container names it as the image [`IMAGE`]; a command that is executed in any container
//! finds it by the names in [`APPLETS`].
//!
//! Invariants: data only. Whoever starts the program gives it a sandbox; nothing here does.

/// The name of the image. No registry has it: each node finds it in itself.
pub const IMAGE: &str = "dhow.dev/toolbox:latest";

/// The program.
pub static WASM: &[u8] = include_bytes!("../toolbox.wasm");

/// What `ps` and `top` read: a directory that the node mounts, and the file in it that the node writes again and again, a
/// line a container: name, state, milliseconds of CPU time, bytes of memory, image, with a tab between each two.
pub const STATE_DIR: &str = "/run/dhow";
/// The name of that file.
pub const STATE_FILE: &str = "containers";

/// The record that the build left: a line a file.
const RECORD: &str = include_str!("../built.txt");

/// The digest of [`WASM`], `sha256:…`.
pub fn digest() -> String {
    let line = RECORD.lines().find(|line| line.ends_with("  toolbox.wasm"));
    let hash = line.and_then(|line| line.split(' ').next()).expect("the build records its program");
    format!("sha256:{hash}")
}

/// The programs in it, by the names that they are called by.
pub const APPLETS: [&str; 59] = [
    "[",
    "base64",
    "basename",
    "cat",
    "cp",
    "cut",
    "date",
    "dirname",
    "du",
    "echo",
    "env",
    "false",
    "find",
    "grep",
    "head",
    "hostname",
    "id",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mv",
    "nc",
    "nslookup",
    "printenv",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "realpath",
    "rev",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "sh",
    "sha1sum",
    "sha256sum",
    "sha512sum",
    "sleep",
    "sort",
    "stat",
    "tac",
    "tail",
    "tar",
    "tee",
    "test",
    "top",
    "touch",
    "tr",
    "true",
    "uname",
    "uniq",
    "wc",
    "wget",
    "which",
    "whoami",
    "xargs",
    "yes",
];

/// The directories that people expect programs in, though there are none.
const DIRS: [&str; 5] = ["/bin", "/usr/bin", "/sbin", "/usr/sbin", "/usr/local/bin"];

/// The applet that the first word of a command names: `ls`, `/bin/ls`.
pub fn applet(word: &str) -> Option<&'static str> {
    let name = match word.rsplit_once('/') {
        None => word,
        Some((dir, name)) if DIRS.contains(&dir) => name,
        Some(_) => return None,
    };
    APPLETS.into_iter().find(|known| *known == name)
}

/// Whether the name of an image is the toolbox's, with or without its tag.
pub fn is_image(name: &str) -> bool {
    name == IMAGE || IMAGE.strip_prefix(name) == Some(":latest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_names_an_applet_by_itself_or_in_a_directory_of_programs() {
        for (word, expected) in [
            ("sh", Some("sh")),
            ("/bin/sh", Some("sh")),
            ("/usr/bin/wget", Some("wget")),
            ("./sh", None),
            ("/data/ls", None),
            ("tool", None),
            ("", None),
        ] {
            assert_eq!(applet(word), expected, "{word}");
        }
    }

    #[test]
    fn the_image_has_one_name() {
        for (name, expected) in [
            ("dhow.dev/toolbox:latest", true),
            ("dhow.dev/toolbox", true),
            ("dhow.dev/toolbox:1.0", false),
            ("toolbox", false),
            ("", false),
        ] {
            assert_eq!(is_image(name), expected, "{name}");
        }
    }
}
