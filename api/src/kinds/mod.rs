//! The one table of kinds. Routing, discovery, storage, watches, printing and generic tests loop over it and match on
//! none; all that a kind adds by hand stands in its one file.

use dhow_types::Time;

use crate::Tree;
use crate::field::{Fault, Faults};
use crate::status::ApiError;
use crate::{meta, validate};

mod configmap;
mod deployment;
mod endpoints;
mod endpointslice;
mod event;
mod lease;
mod namespace;
mod node;
mod persistentvolume;
mod persistentvolumeclaim;
mod pod;
mod replicaset;
mod secret;
mod service;
mod serviceaccount;
mod storageclass;
mod volumes;
mod workload;

pub use configmap::CONFIG_MAP;
pub use deployment::DEPLOYMENT;
pub use endpoints::ENDPOINTS;
pub use endpointslice::ENDPOINT_SLICE;
pub use event::EVENT;
pub use lease::LEASE;
pub use namespace::NAMESPACE;
pub use node::NODE;
pub use persistentvolume::PERSISTENT_VOLUME;
pub use persistentvolumeclaim::PERSISTENT_VOLUME_CLAIM;
pub use pod::{POD, annotations as pod_annotations, serving as http_serving};
pub use replicaset::REPLICA_SET;
pub use secret::SECRET;
pub use service::SERVICE;
pub use serviceaccount::SERVICE_ACCOUNT;
pub use storageclass::{STORAGE_CLASS, is_default as is_default_class};

/// Everything that is particular to one kind of object.
pub struct Kind {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The API version within the group.
    pub version: &'static str,
    /// `Deployment`
    pub kind: &'static str,
    /// `deployments`
    pub plural: &'static str,
    /// `deployment`
    pub singular: &'static str,
    /// `deploy`
    pub short_names: &'static [&'static str],
    /// `all`
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// The type's name in the schema table.
    pub schema: &'static str,
    /// What can be done with the resource, in discovery's order.
    pub verbs: &'static [&'static str],
    /// What hangs below an object.
    pub subresources: &'static [Subresource],
    /// Whether the server keeps `metadata.generation` for this kind.
    pub has_generation: bool,
    /// Whether an update without a `resourceVersion` is taken as it is.
    pub allow_unconditional_update: bool,
    /// Whether a PUT to a name that is not there creates the object.
    pub allow_create_on_update: bool,
    /// The sentence that warns everyone who still uses the kind, if there is a better one.
    pub deprecation: Option<&'static str>,
    /// Whether addresses and node ports are given to the objects when they are written.
    pub takes_addresses: bool,
    /// Whether a deletion answers with the object; the others answer with a `Status`, as upstream does.
    pub returns_deleted: bool,
    /// How many seconds the object has to end if a deletion names no time; nothing if it goes at once in any case.
    pub grace_s: fn(&Tree) -> Option<i64>,
    /// Shows in the object that its deletion has begun, beside `metadata.deletionTimestamp`.
    pub mark_deleting: fn(&mut Tree),
    /// Whether something beside `metadata.finalizers` keeps a deleted object.
    pub is_held: fn(&Tree) -> bool,
    /// Why an object of this name may never be deleted, if so: the cluster cannot do without it.
    pub keeps: fn(&str) -> Option<&'static str>,
    /// What is wrong with a name, in words; nothing if it is right.
    pub name_faults: fn(&str) -> Vec<String>,
    /// Fills what upstream fills when it is left out.
    pub default: fn(&mut Tree),
    /// Puts a new object in order: drops its status, sets its first generation.
    pub prepare_create: fn(&mut Tree),
    /// Puts an update in order: keeps the old status, bumps the generation if the wish has changed.
    pub prepare_update: fn(new: &mut Tree, old: &Tree),
    /// Puts a status update in order: keeps everything but the status.
    pub prepare_status: fn(new: &mut Tree, old: &Tree),
    /// Puts an update of `/ephemeralcontainers` in order: keeps everything but those.
    pub prepare_ephemeral: fn(new: &mut Tree, old: &Tree),
    /// Finds the faults that only an update of `/ephemeralcontainers` can have.
    pub validate_ephemeral: fn(new: &Tree, old: &Tree, &mut Faults),
    /// Finds the faults that only a new object can have.
    pub validate_create: fn(&Tree, &mut Faults),
    /// Finds all faults below `spec` and its like; metadata is checked by [`Kind::check_create`].
    pub validate: fn(&Tree, &mut Faults),
    /// What to tell whoever writes the object, though it is taken as it is.
    pub warnings: fn(&Tree) -> Vec<String>,
    /// Finds the faults that only an update can have (immutable fields).
    pub validate_update: fn(new: &Tree, old: &Tree, &mut Faults),
    /// The columns of `kubectl get`.
    pub columns: &'static [Column],
    /// The cells of one object, one a column.
    pub cells: fn(&Tree, now: Time) -> Vec<Tree>,
    /// The field labels that a selector may use beside `metadata.name` and `metadata.namespace`.
    pub field_labels: &'static [&'static str],
    /// The values of those fields.
    pub fields: fn(&Tree) -> Vec<(&'static str, String)>,
}

/// One column of a table.
pub struct Column {
    /// The head, as in `Nominated Node`.
    pub name: &'static str,
    /// `string`, `integer`, …
    pub ty: &'static str,
    /// `name` for the first column, else mostly empty.
    pub format: &'static str,
    /// What the column shows.
    pub description: &'static str,
    /// 0 = always shown; above = only with `-o wide`.
    pub priority: i32,
}

impl Column {
    /// A column that is always shown.
    pub const fn new(name: &'static str, description: &'static str) -> Column {
        Column { name, ty: "string", format: "", description, priority: 0 }
    }

    /// The column of names.
    pub const fn name() -> Column {
        Column {
            name: "Name",
            ty: "string",
            format: "name",
            description: "The name of the object, unique in its namespace and kind.",
            priority: 0,
        }
    }

    /// The column of ages.
    pub const fn age() -> Column {
        Column::new("Age", "How long ago the object was created.")
    }

    /// The same column, shown only with `-o wide`.
    pub const fn wide(mut self) -> Column {
        self.priority = 1;
        self
    }

    /// The same column, of numbers.
    pub const fn integer(mut self) -> Column {
        self.ty = "integer";
        self
    }
}

/// Something that hangs below an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// `/status`
    Status,
    /// `/scale`
    Scale,
    /// `/log`
    Log,
    /// `/exec`
    Exec,
    /// `/attach`
    Attach,
    /// `/portforward`
    PortForward,
    /// `/proxy`
    Proxy,
    /// `/binding`
    Binding,
    /// `/eviction`
    Eviction,
    /// `/ephemeralcontainers`
    EphemeralContainers,
    /// `/token`
    Token,
    /// `/finalize`
    Finalize,
}

impl Subresource {
    /// The last part of the path.
    pub fn name(self) -> &'static str {
        match self {
            Subresource::Status => "status",
            Subresource::Scale => "scale",
            Subresource::Log => "log",
            Subresource::Exec => "exec",
            Subresource::Attach => "attach",
            Subresource::PortForward => "portforward",
            Subresource::Proxy => "proxy",
            Subresource::Binding => "binding",
            Subresource::Eviction => "eviction",
            Subresource::EphemeralContainers => "ephemeralcontainers",
            Subresource::Token => "token",
            Subresource::Finalize => "finalize",
        }
    }

    /// What can be done with it, in discovery's order.
    pub fn verbs(self) -> &'static [&'static str] {
        match self {
            Subresource::Status | Subresource::Scale | Subresource::EphemeralContainers => &["get", "patch", "update"],
            Subresource::Log => &["get"],
            Subresource::Exec | Subresource::Attach | Subresource::PortForward => &["create", "get"],
            Subresource::Proxy => &["create", "delete", "get", "patch", "update"],
            Subresource::Binding | Subresource::Eviction | Subresource::Token => &["create"],
            Subresource::Finalize => &["update"],
        }
    }

    /// Group, version and kind of what is read and written there.
    pub fn response(self, parent: &Kind) -> (&'static str, &'static str, &'static str) {
        match self {
            Subresource::Scale => ("autoscaling", "v1", "Scale"),
            Subresource::Eviction => ("policy", "v1", "Eviction"),
            Subresource::Token => ("authentication.k8s.io", "v1", "TokenRequest"),
            Subresource::Binding => ("", "v1", "Binding"),
            Subresource::Exec => ("", "v1", "PodExecOptions"),
            Subresource::Attach => ("", "v1", "PodAttachOptions"),
            Subresource::PortForward => ("", "v1", "PodPortForwardOptions"),
            Subresource::Proxy if parent.plural == "nodes" => ("", "v1", "NodeProxyOptions"),
            Subresource::Proxy if parent.plural == "services" => ("", "v1", "ServiceProxyOptions"),
            Subresource::Proxy => ("", "v1", "PodProxyOptions"),
            Subresource::Status | Subresource::Log | Subresource::EphemeralContainers | Subresource::Finalize => {
                (parent.group, parent.version, parent.kind)
            }
        }
    }
}

/// What can be done with most resources.
pub const ALL_VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Kind {
    /// The resource with its group: `pods`, `deployments.apps`.
    pub fn resource(&self) -> String {
        with_group(self.plural, self.group)
    }

    /// The kind with its group, as messages name it: `Pod`, `Deployment.apps`.
    pub fn qualified(&self) -> String {
        with_group(self.kind, self.group)
    }

    /// `v1`, `apps/v1`
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `DeploymentList`
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// Whether the kind has this subresource.
    pub fn has(&self, subresource: Subresource) -> bool {
        self.subresources.contains(&subresource)
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<Subresource> {
        self.subresources.iter().copied().find(|subresource| subresource.name() == name)
    }

    /// Whether a field selector of this kind may use `label`.
    pub fn knows_field(&self, label: &str) -> bool {
        label == "metadata.name"
            || (self.namespaced && label == "metadata.namespace")
            || self.field_labels.contains(&label)
    }

    /// The values of all selectable fields.
    pub fn field_values(&self, tree: &Tree) -> Vec<(&'static str, String)> {
        let mut values = vec![("metadata.name", meta::name(tree).to_owned())];
        if self.namespaced {
            values.push(("metadata.namespace", meta::namespace(tree).to_owned()));
        }
        values.extend((self.fields)(tree));
        values
    }

    /// Refuses a new object that has any fault; it has its name, its defaults and went through `prepare_create`.
    pub fn check_create(&self, tree: &Tree) -> Result<(), ApiError> {
        let mut faults = Faults::new();
        validate::object_meta(self, tree, &mut faults);
        (self.validate)(tree, &mut faults);
        (self.validate_create)(tree, &mut faults);
        self.verdict(tree, &faults)
    }

    /// Refuses other ephemeral containers that have any fault, or change those that are there.
    pub fn check_ephemeral(&self, new: &Tree, old: &Tree) -> Result<(), ApiError> {
        let mut faults = Faults::new();
        validate::object_meta_update(new, old, &mut faults);
        (self.validate)(new, &mut faults);
        (self.validate_ephemeral)(new, old, &mut faults);
        self.verdict(new, &faults)
    }

    /// Refuses a new form of an object that has any fault or changes what may not change.
    pub fn check_update(&self, new: &Tree, old: &Tree) -> Result<(), ApiError> {
        let mut faults = Faults::new();
        validate::object_meta_update(new, old, &mut faults);
        (self.validate)(new, &mut faults);
        (self.validate_update)(new, old, &mut faults);
        self.verdict(new, &faults)
    }

    fn verdict(&self, tree: &Tree, faults: &[Fault]) -> Result<(), ApiError> {
        if faults.is_empty() { Ok(()) } else { Err(ApiError::invalid(&self.qualified(), meta::name(tree), faults)) }
    }
}

fn with_group(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

/// All kinds, core group first, in discovery's order.
pub fn all() -> &'static [&'static Kind] {
    static ALL: [&Kind; 16] = [
        &CONFIG_MAP,
        &ENDPOINTS,
        &EVENT,
        &NAMESPACE,
        &NODE,
        &PERSISTENT_VOLUME_CLAIM,
        &PERSISTENT_VOLUME,
        &POD,
        &SECRET,
        &SERVICE_ACCOUNT,
        &SERVICE,
        &DEPLOYMENT,
        &REPLICA_SET,
        &LEASE,
        &ENDPOINT_SLICE,
        &STORAGE_CLASS,
    ];
    &ALL
}

/// The kind that is served at `/apis/<group>/<version>/…/<plural>`.
pub fn by_resource(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    all().iter().copied().find(|kind| kind.plural == plural && kind.group == group && kind.version == version)
}

/// The kind of a resource like `deployments.apps`.
pub fn by_group_resource(resource: &str) -> Option<&'static Kind> {
    let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
    all().iter().copied().find(|kind| kind.plural == plural && kind.group == group)
}

/// The kind of an object's `apiVersion` and `kind`.
pub fn by_kind(api_version: &str, name: &str) -> Option<&'static Kind> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    all().iter().copied().find(|kind| kind.kind == name && kind.group == group && kind.version == version)
}

const NAME_AND_AGE: &[Column] = &[Column::name(), Column::age()];

/// Builds a kind that has nothing particular; kinds overwrite what differs.
const fn plain() -> Kind {
    Kind {
        group: "",
        version: "v1",
        kind: "",
        plural: "",
        singular: "",
        short_names: &[],
        categories: &[],
        namespaced: true,
        schema: "",
        verbs: ALL_VERBS,
        subresources: &[],
        has_generation: false,
        allow_unconditional_update: true,
        allow_create_on_update: false,
        deprecation: None,
        takes_addresses: false,
        returns_deleted: false,
        grace_s: |_| None,
        mark_deleting: |_| {},
        is_held: |_| false,
        keeps: |_| None,
        name_faults: validate::dns1123_subdomain,
        default: |_| {},
        prepare_create: |_| {},
        prepare_update: |_, _| {},
        prepare_status: status_only,
        prepare_ephemeral: |_, _| {},
        validate_ephemeral: |_, _, _| {},
        validate_create: |_, _| {},
        validate: |_, _| {},
        warnings: |_| Vec::new(),
        validate_update: |_, _, _| {},
        columns: NAME_AND_AGE,
        cells: |tree, now| vec![meta::name(tree).into(), crate::table::age(tree, now)],
        field_labels: &[],
        fields: |_| Vec::new(),
    }
}

/// The rule of new objects with a `spec` and a `status`: no status yet, generation one.
fn begin(tree: &mut Tree) {
    meta::remove(tree, "status");
    meta::set_generation(tree, 1);
}

/// The rule of updates: the status stays as it was; another `spec` is another generation.
fn keep_status(new: &mut Tree, old: &Tree) {
    restore(new, old, "status");
    let bump = i64::from(new.get("spec") != old.get("spec"));
    meta::set_generation(new, meta::generation(old) + bump);
}

/// The rule of status updates: all but the status stays as it was. Metadata may change too, as upstream lets it, except
/// for what the rest of the system relies on.
fn status_only(new: &mut Tree, old: &Tree) {
    let fields: Vec<String> = meta::map_of(new).keys().filter(|field| !kept_by_status(field)).cloned().collect();
    for field in fields {
        meta::remove(new, &field);
    }
    for (field, value) in old.as_object().into_iter().flatten() {
        if !kept_by_status(field) {
            meta::set(new, field, value.clone());
        }
    }
    for field in ["generation", "ownerReferences"] {
        let path = format!("metadata.{field}");
        match meta::at(old, &path) {
            Some(value) => meta::set(new, &path, value.clone()),
            None => drop(meta::remove(new, &path)),
        }
    }
}

fn kept_by_status(field: &str) -> bool {
    matches!(field, "apiVersion" | "kind" | "metadata" | "status")
}

/// Makes a top-level field as it was.
fn restore(new: &mut Tree, old: &Tree, field: &str) {
    match old.get(field) {
        Some(value) => meta::set(new, field, value.clone()),
        None => drop(meta::remove(new, field)),
    }
}
