//! Who this control node is: what its data directory says about it, and the records of members that all of them share.

use crate::{ServerError, pki};
use bytes::Bytes;
use dhow_gate::write::claims;
use dhow_state::{Expect, Key, Object, Op, State};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

/// The resource under which members are kept. No kind has it: they are read and changed under `/dhow/v1/members`.
pub(crate) const MEMBERS: &str = dhow_gate::authorize::MEMBERS;

/// The resource of what the cluster as a whole has: who it is, and the key of its CA.
pub(crate) const CLUSTERS: &str = "clusters.dhow.dev";

/// The form of the file that this version writes, and the newest that it reads.
const VERSION: u32 = 1;

const FILE: &str = "member.json";

/// Tells clusters apart. Its CA does not: a backup that is restored somewhere else has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClusterId(pub(crate) [u8; 16]);

impl ClusterId {
    pub(crate) fn random() -> Result<ClusterId, ServerError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)
            .map_err(|error| ServerError::Refused(format!("the system gives no random numbers: {error}")))?;
        Ok(ClusterId(id))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for ClusterId {
    type Err = String;

    fn from_str(text: &str) -> Result<ClusterId, String> {
        let number = u128::from_str_radix(text, 16).map_err(|_| format!("`{text}` is no cluster's id"))?;
        if text.len() == 32 { Ok(ClusterId(number.to_be_bytes())) } else { Err(format!("`{text}` is no cluster's id")) }
    }
}

/// One control node, as all know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Member {
    /// Its number in consensus; never given twice.
    pub(crate) id: u64,
    pub(crate) name: String,
    /// Where its API listens, over TCP and UDP.
    pub(crate) address: SocketAddr,
    /// It votes and holds the tail of the log, but no objects.
    #[serde(default)]
    pub(crate) witness: bool,
    /// Which version of the program it runs.
    #[serde(default)]
    pub(crate) version: String,
}

impl Member {
    /// `https://ip:port`
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub(crate) fn key(&self) -> Key {
        key_of(self.id)
    }

    fn value(&self) -> Bytes {
        json!({"metadata": {"name": self.id.to_string()}, "spec": self}).to_string().into()
    }

    /// Writes the record.
    pub(crate) fn put(&self, expect: Expect) -> Op {
        Op::Put { key: self.key(), value: self.value(), expect, expires: None }
    }

    /// The names of what no other member may have.
    pub(crate) fn claims(&self) -> [String; 2] {
        [format!("member-name-{}", self.name), format!("member-address-{}", self.address)]
    }

    /// Takes what no other member may have.
    pub(crate) fn claim(&self) -> Vec<Op> {
        self.claims().iter().map(|what| claims::claim(what, &self.id.to_string())).collect()
    }
}

fn key_of(id: u64) -> Key {
    Key::new(MEMBERS, "", id.to_string())
}

/// A record that [`Member::put`] wrote; `None` for one of a version that says it otherwise.
pub(crate) fn read(object: &Object) -> Option<Member> {
    serde_json::from_value(object.tree().get("spec")?.clone()).ok()
}

/// All members, by number.
pub(crate) fn all(state: &State) -> Vec<Member> {
    let mut members: Vec<Member> = state.list(MEMBERS, None).filter_map(|object| read(object)).collect();
    members.sort_by_key(|member| member.id);
    members
}

/// The member that is called so, or has this number.
pub(crate) fn find<'a>(members: &'a [Member], name_or_id: &str) -> Option<&'a Member> {
    let by_name = members.iter().find(|member| member.name == name_or_id);
    by_name.or_else(|| members.iter().find(|member| member.id.to_string() == name_or_id))
}

/// What the cluster as a whole has. It is in the state so that a backup holds it: a restored cluster that had another
/// CA would not be believed by any node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cluster {
    pub(crate) id: String,
    pub(crate) ca_cert: String,
    pub(crate) ca_key: String,
    /// The number of the second member. Later ones are counted in a record of their own: whatever is written goes through
    /// the log, of which a witness holds the end, and the key that is here is not for it.
    pub(crate) next_member: u64,
}

impl Cluster {
    fn key() -> Key {
        Key::new(CLUSTERS, "", "cluster")
    }

    pub(crate) fn of(state: &State) -> Option<(Cluster, Arc<Object>)> {
        let object = state.get(&Cluster::key())?.clone();
        Some((serde_json::from_value(object.tree().get("spec")?.clone()).ok()?, object))
    }

    pub(crate) fn put(&self, expect: Expect) -> Op {
        let value = json!({"metadata": {"name": "cluster"}, "spec": self}).to_string().into();
        Op::Put { key: Cluster::key(), value, expect, expires: None }
    }
}

fn counter() -> Key {
    Key::new(CLUSTERS, "", "members")
}

/// The number that the next member gets, and what [`put_next`] must find.
pub(crate) fn next(state: &State) -> (u64, Expect) {
    let first = Cluster::of(state).map_or(0, |(cluster, _)| cluster.next_member);
    match state.get(&counter()) {
        Some(object) => {
            (object.tree()["spec"]["nextMember"].as_u64().unwrap_or(0).max(first), Expect::At(object.revision))
        }
        None => (first, Expect::Absent),
    }
}

/// Writes down the number that the next member gets.
pub(crate) fn put_next(next: u64, expect: Expect) -> Op {
    let value = json!({"metadata": {"name": "members"}, "spec": {"nextMember": next}}).to_string().into();
    Op::Put { key: counter(), value, expect, expires: None }
}

/// What a data directory says of the member that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MemberFile {
    version: u32,
    pub(crate) cluster: String,
    pub(crate) id: u64,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) witness: bool,
    /// The store has not been opened yet: until then it may be missing.
    #[serde(default)]
    pub(crate) fresh: bool,
    /// All members as they were last known: where a member that was away looks for the others.
    pub(crate) members: Vec<Member>,
}

impl MemberFile {
    pub(crate) fn new(cluster: ClusterId, me: &Member, members: Vec<Member>) -> MemberFile {
        MemberFile {
            version: VERSION,
            cluster: cluster.to_string(),
            id: me.id,
            name: me.name.clone(),
            witness: me.witness,
            fresh: true,
            members,
        }
    }

    /// The file of a data directory, if it has one.
    pub(crate) fn load(dir: &Path) -> Result<Option<MemberFile>, ServerError> {
        let path = dir.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ServerError::Io { path, source }),
        };
        let damaged = |error: serde_json::Error| ServerError::Member { path: path.clone(), why: error.to_string() };
        let tree: serde_json::Value = serde_json::from_str(&text).map_err(damaged)?;
        // A newer version may have other fields: its number is looked at before anything else.
        let found = tree["version"].as_u64().unwrap_or(0);
        if found > u64::from(VERSION) {
            return Err(ServerError::Newer { path, found, known: VERSION });
        }
        serde_json::from_value(tree).map(Some).map_err(damaged)
    }

    pub(crate) fn save(&self, dir: &Path) -> Result<(), ServerError> {
        let text = serde_json::to_string_pretty(self).expect("a member's file is plain data");
        pki::write(&dir.join(FILE), &text, dhow_files::Access::Private)
    }

    pub(crate) fn cluster(&self, dir: &Path) -> Result<ClusterId, ServerError> {
        self.cluster.parse().map_err(|why| ServerError::Member { path: dir.join(FILE), why })
    }
}

/// What there is to do for a member that was removed.
pub(crate) const AFTER_REMOVAL: &str =
    "remove its data directory, or move it away, and start it with `--join` to join anew";

/// What may name a member: as a node, for it may be both.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    match dhow_api::validate::dns1123_subdomain(name).first() {
        Some(why) => Err(format!("`{name}` cannot be a control node's name: {why}")),
        None if name.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(format!("`{name}` cannot be a control node's name: it could be taken for a member's number"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64) -> Member {
        let address = format!("192.0.2.{id}:6443").parse().unwrap();
        Member { id, name: format!("m{id}"), address, witness: false, version: "1".to_owned() }
    }

    #[test]
    fn a_data_directory_remembers_its_member_and_refuses_a_newer_versions() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(MemberFile::load(dir.path()).unwrap(), None);
        let cluster = ClusterId::random().unwrap();
        let file = MemberFile::new(cluster, &member(2), vec![member(1), member(2)]);
        file.save(dir.path()).unwrap();
        let kept = MemberFile::load(dir.path()).unwrap().unwrap();
        assert_eq!((&kept, kept.cluster(dir.path()).unwrap()), (&file, cluster));
        for (text, want) in [
            (r#"{"version": 2, "members": "in another form"}"#, "has format 2, this version reads 1: run a newer dhow"),
            ("{", "is damaged: EOF while parsing"),
            (r#"{"version": 1}"#, "is damaged: missing field `cluster`"),
        ] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            let error = MemberFile::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn members_are_found_by_name_and_number() {
        let members = [member(1), member(12)];
        assert_eq!(find(&members, "m12").map(|member| member.id), Some(12));
        assert_eq!(find(&members, "12").map(|member| member.id), Some(12));
        assert_eq!(find(&members, "m2"), None);
        for (name, good) in [("alpha", true), ("a.b", true), ("A", false), ("7", false), ("", false), ("7a", true)] {
            assert_eq!(check_name(name).is_ok(), good, "{name}");
        }
        assert_eq!("00ff".parse::<ClusterId>().ok(), None);
    }
}
