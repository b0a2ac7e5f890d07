//! What an object is called.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// The name of an object in the whole cluster. Ordered by resource, then namespace, then name, which is the order of
/// every list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// `pods`, `deployments.apps`.
    pub resource: Arc<str>,
    /// Empty for objects of the whole cluster.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl Key {
    /// Takes the parts as they are.
    pub fn new(resource: impl Into<Arc<str>>, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { resource: resource.into(), namespace: namespace.into(), name: name.into() }
    }
}

impl Ord for Key {
    /// Most keys that are compared share the text of their resource and namespace, which is then not looked at.
    fn cmp(&self, other: &Self) -> Ordering {
        let part = |one: &Arc<str>, other: &Arc<str>| match Arc::ptr_eq(one, other) {
            true => Ordering::Equal,
            false => one.cmp(other),
        };
        part(&self.resource, &other.resource)
            .then_with(|| part(&self.namespace, &other.namespace))
            .then_with(|| self.name.cmp(&other.name))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}/{}", self.resource, self.name)
        } else {
            write!(f, "{}/{}/{}", self.resource, self.namespace, self.name)
        }
    }
}
