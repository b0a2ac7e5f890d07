//! PUT and PATCH, of whole objects and of their status.

use super::{
    Context, Name, Plan, Reply, claims, create, existing, is_heartbeat, is_held, key_of, put, service,
    settle_namespace, settle_type, strip_server_fields,
};
use crate::media::PatchType;
use dhow_api::Tree;
use dhow_api::decode::{self, Validation};
use dhow_api::field::Fault;
use dhow_api::kinds::Kind;
use dhow_api::meta;
use dhow_api::status::ApiError;
use dhow_state::{Expect, Object, Op};
use dhow_types::Rng;

/// What of an object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All but the status.
    Main,
    /// Only the status.
    Status,
    /// A namespace's `spec.finalizers`.
    Finalize,
    /// A pod's `spec.ephemeralContainers`.
    Ephemeral,
}

/// Plans the replacement of an object; a kind that allows it is created if it is not there.
pub fn update(ctx: &Context<'_>, kind: &Kind, name: Name<'_>, mut tree: Tree) -> Result<Plan, ApiError> {
    settle(&mut tree, kind, name)?;
    if kind.allow_create_on_update && ctx.view.get(&key_of(kind, name)).is_none() {
        if !meta::resource_version(&tree).is_empty() || !meta::uid(&tree).is_empty() {
            return Err(ApiError::not_found(&kind.resource(), name.name));
        }
        return create(ctx, kind, name.namespace, tree);
    }
    let old = existing(ctx, kind, name)?;
    check_version(kind, &tree, &old)?;
    write(ctx, kind, &old, &old.tree(), tree, Part::Main)
}

/// Plans the replacement of an object's status.
pub fn update_status(ctx: &Context<'_>, kind: &Kind, name: Name<'_>, mut tree: Tree) -> Result<Plan, ApiError> {
    settle(&mut tree, kind, name)?;
    let old = existing(ctx, kind, name)?;
    check_version(kind, &tree, &old)?;
    write(ctx, kind, &old, &old.tree(), tree, Part::Status)
}

/// Plans the replacement of a pod's ephemeral containers, to which only new ones may be added.
pub fn update_ephemeral(ctx: &Context<'_>, kind: &Kind, name: Name<'_>, mut tree: Tree) -> Result<Plan, ApiError> {
    settle(&mut tree, kind, name)?;
    let old = existing(ctx, kind, name)?;
    check_version(kind, &tree, &old)?;
    write(ctx, kind, &old, &old.tree(), tree, Part::Ephemeral)
}

/// Plans the replacement of a namespace's `spec.finalizers`; without any, a deleted namespace goes.
pub fn finalize(ctx: &Context<'_>, kind: &Kind, name: Name<'_>, mut tree: Tree) -> Result<Plan, ApiError> {
    settle(&mut tree, kind, name)?;
    let old = existing(ctx, kind, name)?;
    check_version(kind, &tree, &old)?;
    write(ctx, kind, &old, &old.tree(), tree, Part::Finalize)
}

/// A patch as it came.
#[derive(Clone, Copy, Debug)]
pub struct Patch<'a> {
    /// Its kind.
    pub ty: PatchType,
    /// Its content.
    pub body: &'a Tree,
    /// What to do about unknown fields in the result.
    pub validation: Validation,
    /// What of the object it may change.
    pub of: Part,
}

/// Plans a patch of an object or of a part of it.
pub fn patch(ctx: &Context<'_>, kind: &Kind, name: Name<'_>, patch: Patch<'_>) -> Result<Plan, ApiError> {
    let old = existing(ctx, kind, name)?;
    let old_tree = old.tree();
    let mut new = apply(&patch, &old_tree, kind.schema)?;
    if meta::name(&new) != name.name {
        return Err(name_mismatch(meta::name(&new), name.name));
    }
    decode::normalize(&mut new, kind.schema);
    let warnings = decode::check_patched(&new, &old_tree, patch.body, kind.schema, patch.validation)?;
    settle_type(&mut new, kind)?;
    settle_namespace(&mut new, kind, name.namespace)?;
    check_version(kind, &new, &old)?;
    let mut plan = write(ctx, kind, &old, &old_tree, new, patch.of)?;
    plan.warnings.extend(warnings);
    Ok(plan)
}

/// The tree after a patch.
pub(super) fn apply(patch: &Patch<'_>, old: &Tree, type_name: &str) -> Result<Tree, ApiError> {
    if patch.ty != PatchType::Json && !patch.body.is_object() {
        return Err(ApiError::bad_request("error decoding patch: the patch is not an object"));
    }
    match patch.ty {
        PatchType::Json => dhow_api::patch::json(old, patch.body),
        PatchType::Merge => Ok(dhow_api::patch::merge(old, patch.body)),
        PatchType::Strategic => dhow_api::patch::strategic(old, patch.body, type_name),
    }
}

fn settle(tree: &mut Tree, kind: &Kind, name: Name<'_>) -> Result<(), ApiError> {
    settle_type(tree, kind)?;
    match meta::name(tree) {
        "" => meta::set_name(tree, name.name),
        same if same == name.name => {}
        other => return Err(name_mismatch(other, name.name)),
    }
    settle_namespace(tree, kind, name.namespace)
}

fn name_mismatch(object: &str, url: &str) -> ApiError {
    ApiError::bad_request(format!("the name of the object ({object}) does not match the name on the URL ({url})"))
}

/// An update says which version it was made from, unless the kind takes updates blindly; and which life.
fn check_version(kind: &Kind, tree: &Tree, old: &Object) -> Result<(), ApiError> {
    let name = meta::name(tree);
    let uid = meta::uid(tree);
    let version = meta::resource_version(tree);
    if version.is_empty() && !kind.allow_unconditional_update {
        let fault = Fault::invalid("metadata.resourceVersion", 0, "must be specified for an update");
        return Err(ApiError::invalid(&kind.resource(), name, &[fault]));
    }
    if !version.is_empty() && version != "0" && version != old.revision.to_string() {
        return Err(ApiError::modified(&kind.resource(), name));
    }
    if !uid.is_empty() && uid != old.index.uid && version.is_empty() {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", old.index.uid);
        return Err(ApiError::conflict(&kind.resource(), name, &why));
    }
    Ok(())
}

/// Brings a new form of an object in order, checks it, and plans to store it, or to remove the object if nothing keeps
/// it any more.
fn write(
    ctx: &Context<'_>,
    kind: &Kind,
    old: &Object,
    old_tree: &Tree,
    mut new: Tree,
    part: Part,
) -> Result<Plan, ApiError> {
    strip_server_fields(&mut new);
    meta::set_resource_version(&mut new, &old.revision.to_string());
    for field in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        inherit(&mut new, old_tree, &format!("metadata.{field}"));
    }
    inherit_always(&mut new, old_tree, "metadata.generation");
    match part {
        Part::Main => {
            (kind.default)(&mut new);
            (kind.prepare_update)(&mut new, old_tree);
            kind.check_update(&new, old_tree)?;
            service::allocate(ctx, kind, &mut new, Some(old_tree), &mut Rng::new(ctx.seed))?;
        }
        Part::Status => {
            (kind.default)(&mut new);
            (kind.prepare_status)(&mut new, old_tree);
            kind.check_update(&new, old_tree)?;
        }
        Part::Ephemeral => {
            (kind.prepare_ephemeral)(&mut new, old_tree);
            (kind.default)(&mut new);
            (kind.prepare_update)(&mut new, old_tree);
            kind.check_ephemeral(&new, old_tree)?;
        }
        Part::Finalize => {
            let finalizers = meta::at(&new, "spec.finalizers").cloned();
            new = old_tree.clone();
            match finalizers {
                Some(finalizers) => meta::set(&mut new, "spec.finalizers", finalizers),
                None => drop(meta::remove(&mut new, "spec.finalizers")),
            }
        }
    }
    let warnings = if part == Part::Main { (kind.warnings)(&new) } else { Vec::new() };
    Ok(Plan { warnings, ..store(ctx, kind, old, old_tree, new)? })
}

/// Plans to store what has changed.
fn store(ctx: &Context<'_>, kind: &Kind, old: &Object, old_tree: &Tree, new: Tree) -> Result<Plan, ApiError> {
    let is_over = meta::is_deleting(&new) && meta::int(&new, "metadata.deletionGracePeriodSeconds").unwrap_or(0) == 0;
    if is_over && !is_held(kind, &new) {
        let op =
            Op::Delete { key: old.key.clone(), expect: Expect::At(old.revision), last: Some(super::encode(&new)?) };
        let given_back = claims::changes(ctx, kind, Some(old_tree), None);
        let plan = Plan::write(op, Reply::Tree(new.clone()), 200).with(given_back);
        return Ok(if ctx.dry_run { plan.dry(new) } else { plan });
    }
    if new == *old_tree {
        return Ok(Plan::answer(Reply::Tree(new), 200));
    }
    let claimed = claims::changes(ctx, kind, Some(old_tree), Some(&new));
    let op = put(ctx, kind, old.key.clone(), &new, Expect::At(old.revision))?;
    let plan = Plan { lazy: is_heartbeat(kind, old_tree, &new), ..Plan::write(op, Reply::Stored, 200).with(claimed) };
    Ok(if ctx.dry_run { plan.dry(new) } else { plan })
}

/// Takes an old value over where the new object has none.
fn inherit(new: &mut Tree, old: &Tree, path: &str) {
    if meta::at(new, path).is_none() {
        inherit_always(new, old, path);
    }
}

fn inherit_always(new: &mut Tree, old: &Tree, path: &str) {
    match meta::at(old, path) {
        Some(value) => meta::set(new, path, value.clone()),
        None => drop(meta::remove(new, path)),
    }
}

/// Plans to store an object that another sub-resource has changed in place.
pub(super) fn store_changed(
    ctx: &Context<'_>,
    kind: &Kind,
    old: &Object,
    mut new: Tree,
    reply: Reply,
    code: u16,
) -> Result<Plan, ApiError> {
    let old_tree = old.tree();
    inherit_always(&mut new, &old_tree, "metadata.generation");
    (kind.prepare_update)(&mut new, &old_tree);
    kind.check_update(&new, &old_tree)?;
    if new == old_tree {
        return Ok(Plan::answer(plain_reply(reply, new), code));
    }
    let plan = Plan::write(put(ctx, kind, old.key.clone(), &new, Expect::At(old.revision))?, reply, code);
    Ok(if ctx.dry_run { plan.dry(new) } else { plan })
}

fn plain_reply(reply: Reply, tree: Tree) -> Reply {
    match reply {
        Reply::Stored => Reply::Tree(tree),
        Reply::StoredScale => Reply::Tree(super::scale_of(&tree)),
        other => other,
    }
}
