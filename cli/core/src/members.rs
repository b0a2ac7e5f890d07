//! What `dhow member`, `dhow status` and `dhow certificate` show of the server's answers.

use dhow_api::table::human_duration;
use dhow_types::Time;
use serde_json::Value as Tree;

/// One row a member: name, API address, role, how many entries it is behind, its version or that nobody reaches it.
pub fn member_rows(answer: &Tree) -> Vec<Vec<String>> {
    list(&answer["members"]).iter().map(|member| row(member, text(&member["version"]))).collect()
}

/// The cluster's state: a line with the leader's API address first, then one a fact, then one a member.
pub fn status_lines(answer: &Tree, now: Time) -> (Vec<String>, Vec<Vec<String>>) {
    let leader = &answer["leader"];
    let leader = match leader["address"].as_str() {
        Some(address) => format!("leader: {address} ({})", text(&leader["name"])),
        None => "leader: none, so nothing can be written until most members reach each other".to_owned(),
    };
    let members = list(&answer["members"]);
    // All members that hold objects hold the same ones: the leader's size stands for the cluster's.
    let sizes =
        members.iter().filter_map(|member| Some((member["role"] == "leader", member["databaseBytes"].as_u64()?)));
    let database = sizes.max().map_or("unknown".to_owned(), |(_, size)| bytes(size));
    let lines = vec![
        leader,
        format!("term: {}", number(&answer["term"])),
        format!("revision: {}", number(&answer["revision"])),
        format!("database: {database}"),
        format!("last backup: {}", backup(&answer["lastBackup"], now)),
    ];
    let size =
        |member: &Tree, what: &str, field: &str| member[field].as_u64().map(|size| format!("{what} {}", bytes(size)));
    let rows = members.iter().map(|member| {
        let sizes = [size(member, "database", "databaseBytes"), size(member, "log", "logBytes")];
        row(member, sizes.into_iter().flatten().collect::<Vec<_>>().join(", "))
    });
    (lines, rows.collect())
}

fn row(member: &Tree, last: String) -> Vec<String> {
    let unreachable = member["reachable"] == false;
    let lag = format!("lag {}", number(&member["lag"]));
    let last = if unreachable { "unreachable".to_owned() } else { last };
    vec![text(&member["name"]), text(&member["address"]), text(&member["role"]), lag, last]
}

fn backup(backup: &Tree, now: Time) -> String {
    if backup.is_null() {
        return "never".to_owned();
    }
    // One that was fetched is wherever its client has put it.
    let file = backup["file"].as_str().unwrap_or("by `dhow backup`");
    let time = text(&backup["time"]);
    let age = Time::parse(&time)
        .map_or(String::new(), |then| format!(" ({} ago)", human_duration(now.as_ms() - then.as_ms())));
    let size = backup["bytes"].as_u64().map_or(String::new(), |size| format!(", {}", bytes(size)));
    format!("{time}{age}, {file}{size}")
}

/// A table of certificates: who holds one, for what, and until when.
pub fn certificate_rows(answer: &Tree, now: Time) -> Vec<Vec<String>> {
    let mut rows =
        vec![["NAME", "HOLDER", "SUBJECT", "USAGE", "EXPIRES", "LEFT", "RENEWS"].map(str::to_owned).to_vec()];
    for certificate in list(&answer["certificates"]) {
        let expires = text(&certificate["notAfter"]);
        let left = match Time::parse(&expires).ok().map(|end| end.as_ms() - now.as_ms()) {
            Some(ms) if ms > 0 => human_duration(ms),
            Some(_) => "expired".to_owned(),
            None => "unknown".to_owned(),
        };
        let field = |name: &str| match text(&certificate[name]) {
            empty if empty.is_empty() => "<none>".to_owned(),
            text => text,
        };
        let renews = field("renewAfter");
        rows.push(vec![field("name"), field("holder"), field("subject"), field("usage"), expires, left, renews]);
    }
    rows
}

fn list(tree: &Tree) -> &[Tree] {
    tree.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(tree: &Tree) -> String {
    tree.as_str().unwrap_or_default().to_owned()
}

fn number(tree: &Tree) -> String {
    tree.as_u64().map_or("unknown".to_owned(), |number| number.to_string())
}

/// A size as people read it: `512 B`, `1.5 MiB`.
pub fn bytes(size: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if size < 1024 {
        return format!("{size} B");
    }
    let power = (size.ilog2() / 10).min(4);
    // One digit after the point, by whole numbers: a size has more bits than a float.
    let tenths = (u128::from(size) * 10) >> (10 * power);
    format!("{}.{} {}", tenths / 10, tenths % 10, units[power as usize - 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(text: &str) -> Time {
        Time::parse(text).unwrap()
    }

    fn answer() -> Tree {
        json!({
            "leader": {"id": 1, "name": "a", "address": "https://10.0.0.1:6443"}, "term": 3, "revision": 812,
            "members": [
                {"id": 1, "name": "a", "address": "https://10.0.0.1:6443", "role": "leader", "reachable": true, "lag": 0,
                 "version": "0.1.0", "databaseBytes": 3 << 20, "logBytes": 1536},
                {"id": 2, "name": "b", "address": "https://10.0.0.2:6443", "role": "voter", "reachable": false, "lag": 17},
                {"id": 3, "name": "w", "address": "https://10.0.0.3:6443", "role": "witness", "reachable": true, "lag": 0,
                 "version": "0.1.0", "logBytes": 10},
            ],
            "lastBackup": {"time": "2026-05-01T10:00:00Z", "file": "/b/1.dhow", "bytes": 2048},
        })
    }

    #[test]
    fn a_member_is_a_row_with_address_role_and_lag() {
        assert_eq!(
            member_rows(&answer()),
            [
                ["a", "https://10.0.0.1:6443", "leader", "lag 0", "0.1.0"],
                ["b", "https://10.0.0.2:6443", "voter", "lag 17", "unreachable"],
                ["w", "https://10.0.0.3:6443", "witness", "lag 0", "0.1.0"],
            ]
        );
    }

    #[test]
    fn the_status_begins_with_the_leader() {
        let (lines, rows) = status_lines(&answer(), at("2026-05-01T13:00:00Z"));
        assert_eq!(
            lines,
            [
                "leader: https://10.0.0.1:6443 (a)",
                "term: 3",
                "revision: 812",
                "database: 3.0 MiB",
                "last backup: 2026-05-01T10:00:00Z (3h ago), /b/1.dhow, 2.0 KiB",
            ]
        );
        assert_eq!(rows[0][4], "database 3.0 MiB, log 1.5 KiB");
        assert_eq!(rows[1][4], "unreachable");
        let mut alone = answer();
        alone["leader"] = Tree::Null;
        alone["lastBackup"] = json!({"time": "2026-05-01T10:00:00Z", "bytes": 2048});
        assert_eq!(
            backup(&alone["lastBackup"], at("2026-05-01T13:00:00Z")),
            "2026-05-01T10:00:00Z (3h ago), by `dhow backup`, 2.0 KiB"
        );
        alone["lastBackup"] = Tree::Null;
        let (lines, _) = status_lines(&alone, at("2026-05-01T13:00:00Z"));
        assert!(lines[0].starts_with("leader: none") && lines[4] == "last backup: never", "{lines:?}");
    }

    #[test]
    fn certificates_tell_how_long_they_last() {
        let answer = json!({"certificates": [
            {"name": "apiserver", "subject": "CN=x", "usage": "server", "notAfter": "2026-05-03T10:00:00Z",
             "renewAfter": "2026-05-02T00:00:00Z", "holder": "a"},
            {"name": "old", "notAfter": "2026-04-01T00:00:00Z"},
        ]});
        let rows = certificate_rows(&answer, at("2026-05-01T10:00:00Z"));
        assert_eq!(rows[1], ["apiserver", "a", "CN=x", "server", "2026-05-03T10:00:00Z", "2d", "2026-05-02T00:00:00Z"]);
        assert_eq!(rows[2], ["old", "<none>", "<none>", "<none>", "2026-04-01T00:00:00Z", "expired", "<none>"]);
    }

    #[test]
    fn sizes_have_one_digit_after_the_point() {
        for (size, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1 << 20, "1.0 MiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(bytes(size), expected);
        }
    }
}
