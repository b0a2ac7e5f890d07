//! Who asks.

/// An authenticated (or anonymous) caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name: a certificate's CN, `system:bootstrap:<id>`, or `system:anonymous`.
    pub name: String,
    /// The groups, with `system:authenticated` or `system:unauthenticated` at the end.
    pub groups: Vec<String>,
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
        User { name: name.into(), groups }
    }

    /// A caller without a credential.
    pub fn anonymous() -> User {
        User { name: "system:anonymous".to_owned(), groups: vec![UNAUTHENTICATED.to_owned()] }
    }

    /// A part of the control plane, acting in this process.
    pub fn system(component: &str) -> User {
        User::authenticated(format!("system:{component}"), [MASTERS.to_owned()])
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
