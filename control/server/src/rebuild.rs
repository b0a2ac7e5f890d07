//! A member whose data is damaged or gone: what it says, and how its place is made free for the newcomer that it becomes.
//!
//! Nothing is repaired and nothing deleted. Its vote is worth nothing any more, so it must not go on as the member that it
//! was; the others have all that it held.

use crate::member::Member;
use crate::{ServerError, pki};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tracing::warn;

/// What makes a data directory a member's, in the order in which it is moved away: whatever is interrupted in between
/// is a loss to the next start too, and never passes for a cluster of its own.
const MEMBER_PARTS: [&str; 3] = ["store", "pki", "member.json"];

/// What the former parts are moved to, with the next free number.
const ASIDE: &str = "damaged";

/// How a member comes back that lost its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuild {
    /// What it is called; `None` if nothing is left that says so.
    pub name: Option<String>,
    /// It votes and holds no objects.
    pub witness: bool,
    /// Another control node that holds all of its data, if any is known.
    pub other: Option<String>,
    /// It still has the certificate that it is known by, so it needs no token.
    pub has_certificate: bool,
}

impl Rebuild {
    pub(crate) fn new(name: &str, witness: bool, id: u64, members: &[Member]) -> Rebuild {
        let other = members.iter().find(|member| member.id != id && !member.witness);
        Rebuild { name: Some(name.to_owned()), witness, other: other.map(Member::url), has_certificate: false }
    }

    /// For a member of which nothing is known but what it was started with.
    pub(crate) fn unknown(name: Option<String>, witness: bool) -> Rebuild {
        Rebuild { name, witness, other: None, has_certificate: false }
    }

    /// What there is to do, with the one command that does it, for a control node that is started with this directory and
    /// address.
    pub fn hint(&self, data_dir: &Path, bind: SocketAddr) -> String {
        let Rebuild { name, witness, other, has_certificate } = self;
        let mut command = format!("dhow server --data-dir {} --bind {bind}", data_dir.display());
        if *witness {
            command.push_str(" --witness");
        }
        command.push_str(&format!(" --join {}", other.as_deref().unwrap_or("https://IP:PORT")));
        let mut token = String::new();
        if !has_certificate {
            let shown = name.as_deref().unwrap_or("NAME");
            command.push_str(&format!(" --name {shown} --token TOKEN"));
            let first = if name.is_none() { "`dhow member list` shows there which name is not reached, " } else { "" };
            token = format!(" ({first}`dhow member add {shown}` prints a token there)");
        }
        format!(
            "rebuild it from another control node with `{command}`{token}; if there is no other, restore a backup with \
             `dhow restore`"
        )
    }
}

/// Moves what made the directory a member's out of the way, to where the answer says; `None` if there was nothing.
pub(crate) fn set_aside(dir: &Path) -> Result<Option<PathBuf>, ServerError> {
    pki::create_dir(dir)?;
    let store = dir.join("store");
    // Whoever runs on it goes on doing so.
    let lock = if store.exists() { Some(dhow_store::lock(&store)?) } else { None };
    let parts: Vec<&str> = MEMBER_PARTS.into_iter().filter(|part| dir.join(part).exists()).collect();
    if parts.is_empty() {
        return Ok(None);
    }
    let free = (1..).map(|number: u32| dir.join(format!("{ASIDE}-{number}"))).find(|path| !path.exists());
    let aside = free.expect("a directory has fewer entries than there are numbers");
    let failed = |path: &Path, source| ServerError::Io { path: path.to_owned(), source };
    std::fs::create_dir(&aside).map_err(|source| failed(&aside, source))?;
    for part in parts {
        let (from, to) = (dir.join(part), aside.join(part));
        std::fs::rename(&from, &to).map_err(|source| failed(&from, source))?;
    }
    drop(lock);
    warn!(to = %aside.display(), "the former data of this control node was moved away; delete it when nothing in it is needed");
    Ok(Some(aside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_made_a_member_is_moved_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (data, at) = (dir.path(), |path: &str| dir.path().join(path));
        assert_eq!(set_aside(data).unwrap(), None);
        for round in 1..=2 {
            for part in ["store", "pki", "backups"] {
                std::fs::create_dir_all(at(part)).unwrap();
                std::fs::write(at(part).join("file"), part).unwrap();
            }
            std::fs::write(at("member.json"), "{").unwrap();
            let aside = at(&format!("damaged-{round}"));
            assert_eq!(set_aside(data).unwrap(), Some(aside.clone()));
            for part in ["store/file", "pki/file", "member.json"] {
                assert!(aside.join(part).exists() && !at(part).exists(), "{part}");
            }
            assert!(at("backups/file").exists());
        }
        std::fs::create_dir_all(at("store")).unwrap();
        let _held = dhow_files::Lock::take(&at("store")).unwrap();
        assert!(set_aside(data).unwrap_err().is_in_use());
    }

    #[test]
    fn the_hint_is_the_command() {
        let bind = "192.0.2.3:6443".parse().unwrap();
        let rebuild = Rebuild {
            name: Some("m3".to_owned()),
            witness: false,
            other: Some("https://192.0.2.1:6443".to_owned()),
            has_certificate: true,
        };
        let hint = rebuild.hint(Path::new("/d"), bind);
        let command = "`dhow server --data-dir /d --bind 192.0.2.3:6443 --join https://192.0.2.1:6443`;";
        assert!(hint.contains(command), "{hint}");
        let bare = Rebuild { witness: true, has_certificate: false, ..rebuild };
        let hint = bare.hint(Path::new("/d"), bind);
        let command = "--witness --join https://192.0.2.1:6443 --name m3 --token TOKEN` (`dhow member add m3` prints";
        assert!(hint.contains(command), "{hint}");
        // A name that was made up would be a new member's, beside the one that is lost.
        let hint = Rebuild::unknown(None, false).hint(Path::new("/d"), bind);
        let command = "--join https://IP:PORT --name NAME --token TOKEN` (`dhow member list` shows there which";
        assert!(hint.contains(command), "{hint}");
    }
}
