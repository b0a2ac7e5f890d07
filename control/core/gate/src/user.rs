//! Who asks.

use dhow_api::Tree;
use serde_json::{Map, json};
use std::collections::BTreeMap;

/// An authenticated (or anonymous) caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name: a certificate's CN, `system:serviceaccount:<namespace>:<name>`, `system:bootstrap:<id>`, or
    /// `system:anonymous`.
    pub name: String,
    /// What tells this caller from an earlier one of the same name; empty for those who have no such thing.
    pub uid: String,
    /// The groups, with `system:authenticated` or `system:unauthenticated` at the end.
    pub groups: Vec<String>,
    /// What else is known of the caller, such as the pod that a token was made for.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// May do everything.
pub const MASTERS: &str = "system:masters";
/// Node agents.
pub const NODES: &str = "system:nodes";
/// Node agents whose certificate is over.
pub const EXPIRED_NODES: &str = "dhow:expired-nodes";
/// Control nodes whose certificate is over.
pub const EXPIRED_CONTROL_NODES: &str = "dhow:expired-control-nodes";
/// Control nodes, by their certificate.
pub const CONTROL_NODES: &str = "dhow:control-nodes";
/// What the name of a control node's user starts with; its member's number follows.
pub const CONTROL_USER_PREFIX: &str = "dhow:control:";
/// Holders of a join token.
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";
/// Holders of a join token with which a control node may join.
pub const CONTROL_BOOTSTRAPPERS: &str = "system:bootstrappers:dhow:control-nodes";
/// Service accounts; those of one namespace are also in the group of that name behind a colon.
pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
/// What the name of a service account's user starts with; its namespace, a colon and its name follow.
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// Everyone with a valid credential.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Everyone without.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// What the name of a node's user starts with.
pub const NODE_USER_PREFIX: &str = "system:node:";

impl User {
    /// A caller with a verified name and groups.
    pub fn authenticated(name: impl Into<String>, groups: impl IntoIterator<Item = String>) -> User {
        let mut groups: Vec<String> = groups.into_iter().collect();
        groups.push(AUTHENTICATED.to_owned());
        User { name: name.into(), uid: String::new(), groups, extra: BTreeMap::new() }
    }

    /// A caller without a credential.
    pub fn anonymous() -> User {
        let groups = vec![UNAUTHENTICATED.to_owned()];
        User { name: "system:anonymous".to_owned(), uid: String::new(), groups, extra: BTreeMap::new() }
    }

    /// A part of the control plane, acting in this process.
    pub fn system(component: &str) -> User {
        User::authenticated(format!("system:{component}"), [MASTERS.to_owned()])
    }

    /// The caller as `authentication.k8s.io/v1` writes it (`UserInfo`).
    pub fn info(&self) -> Tree {
        let mut info = Map::from_iter([("username".to_owned(), json!(self.name))]);
        if !self.uid.is_empty() {
            info.insert("uid".to_owned(), json!(self.uid));
        }
        info.insert("groups".to_owned(), json!(self.groups));
        if !self.extra.is_empty() {
            info.insert("extra".to_owned(), json!(self.extra));
        }
        Tree::Object(info)
    }

    /// Whether the caller is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node that the caller is the agent of.
    pub fn node(&self) -> Option<&str> {
        self.is_in(NODES).then(|| self.name.strip_prefix(NODE_USER_PREFIX)).flatten()
    }

    /// The node that the caller was the agent of until its certificate was over.
    pub fn expired_node(&self) -> Option<&str> {
        self.is_in(EXPIRED_NODES).then(|| self.name.strip_prefix(NODE_USER_PREFIX)).flatten()
    }

    /// What is left of this caller once its certificate is over: a node, or a control node that cannot make its own, may
    /// still ask for a fresh one; others are nobody.
    pub fn expired(self) -> Option<User> {
        let group = match (self.node(), self.member()) {
            (Some(_), _) => EXPIRED_NODES,
            (None, Some(_)) => EXPIRED_CONTROL_NODES,
            (None, None) => return None,
        };
        Some(User { groups: vec![group.to_owned()], ..self })
    }

    /// The control node that the caller is, by its member's number.
    pub fn member(&self) -> Option<u64> {
        self.member_in(CONTROL_NODES)
    }

    /// The control node that the caller was until its certificate was over.
    pub fn expired_member(&self) -> Option<u64> {
        self.member_in(EXPIRED_CONTROL_NODES)
    }

    fn member_in(&self, group: &str) -> Option<u64> {
        self.is_in(group).then(|| self.name.strip_prefix(CONTROL_USER_PREFIX)?.parse().ok()).flatten()
    }
}
