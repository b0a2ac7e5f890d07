//! DELETE: at once, gracefully, or as soon as nobody's finalizer keeps the object.

use super::{Context, Name, Plan, Reply, claims, details, encode, existing, is_held, put};
use crate::options::{DeleteOptions, Propagation};
use dhow_api::Tree;
use dhow_api::kinds::Kind;
use dhow_api::meta;
use dhow_api::status::{ApiError, success};
use dhow_state::{Expect, Object, Op};
use dhow_types::Uid;
use serde_json::json;

/// Plans a deletion.
pub fn delete(ctx: &Context<'_>, kind: &Kind, name: Name<'_>, options: &DeleteOptions) -> Result<Plan, ApiError> {
    if let Some(why) = (kind.keeps)(name.name) {
        return Err(ApiError::refused(&kind.resource(), name.name, why));
    }
    let old = existing(ctx, kind, name)?;
    check_preconditions(kind, name, &old, options)?;
    let old_tree = old.tree();
    let mut new = old_tree.clone();
    set_propagation_finalizers(&mut new, options.propagation);
    let grace_s = grace_s(kind, &old_tree, options.grace_s);
    if meta::is_deleting(&old_tree) {
        let running_s = meta::int(&old_tree, "metadata.deletionGracePeriodSeconds").unwrap_or(0);
        // Only a shorter time may be asked for, and only by those who say one.
        if options.grace_s.is_some() && grace_s < running_s {
            shorten(&mut new, running_s, grace_s);
        }
    } else {
        mark(ctx, kind, &mut new, grace_s);
    }
    let is_over = meta::int(&new, "metadata.deletionGracePeriodSeconds").unwrap_or(0) == 0;
    if is_over && !is_held(kind, &new) {
        return removal(ctx, kind, &old, new);
    }
    if new == old_tree {
        return Ok(Plan::answer(Reply::Tree(new), 200));
    }
    let plan = Plan::write(put(ctx, kind, old.key.clone(), &new, Expect::At(old.revision))?, Reply::Stored, 200);
    Ok(if ctx.dry_run { plan.dry(new) } else { plan })
}

/// Plans the last step of a deletion whose finalizers are done, for the controllers.
pub fn remove(ctx: &Context<'_>, kind: &Kind, name: Name<'_>, uid: &Uid) -> Result<Plan, ApiError> {
    let old = existing(ctx, kind, name)?;
    let tree = old.tree();
    if meta::uid(&tree) != uid.as_str() {
        return Err(ApiError::uid_mismatch(&kind.qualified(), name.name, uid.as_str(), meta::uid(&tree)));
    }
    if is_held(kind, &tree) {
        return Err(ApiError::conflict(&kind.resource(), name.name, "the object still has finalizers"));
    }
    removal(ctx, kind, &old, tree)
}

fn check_preconditions(kind: &Kind, name: Name<'_>, old: &Object, options: &DeleteOptions) -> Result<(), ApiError> {
    let found = &old.index.uid;
    if let Some(wanted) = options.uid.as_ref().filter(|wanted| *wanted != found) {
        return Err(ApiError::uid_mismatch(&kind.qualified(), name.name, wanted, found));
    }
    let found = old.revision.to_string();
    if let Some(wanted) = options.resource_version.as_ref().filter(|wanted| **wanted != found) {
        return Err(ApiError::version_mismatch(&kind.qualified(), name.name, wanted, &found));
    }
    Ok(())
}

/// The longest time to end, some 68 years; what ends later than RFC 3339 can write could not be read again.
const GRACE_S_MAX: i64 = i32::MAX as i64;

/// How long the object has to end.
fn grace_s(kind: &Kind, tree: &Tree, asked: Option<i64>) -> i64 {
    let Some(own_s) = (kind.grace_s)(tree) else { return 0 };
    match asked.unwrap_or(own_s) {
        // Kubernetes reads a negative time as "almost at once".
        negative if negative < 0 => 1,
        grace_s => grace_s.min(GRACE_S_MAX),
    }
}

fn mark(ctx: &Context<'_>, kind: &Kind, tree: &mut Tree, grace_s: i64) {
    let end = ctx.now + u64::try_from(grace_s).unwrap_or(0).saturating_mul(1000);
    meta::set(tree, "metadata.deletionTimestamp", end.to_rfc3339());
    meta::set(tree, "metadata.deletionGracePeriodSeconds", grace_s);
    let generation = meta::generation(tree);
    if generation > 0 {
        meta::set_generation(tree, generation + 1);
    }
    (kind.mark_deleting)(tree);
}

fn shorten(tree: &mut Tree, running_s: i64, grace_s: i64) {
    if let Some(end) = meta::deletion_timestamp(tree) {
        let saved_ms = u64::try_from(running_s - grace_s).unwrap_or(0).saturating_mul(1000);
        meta::set(tree, "metadata.deletionTimestamp", (end - saved_ms).to_rfc3339());
    }
    meta::set(tree, "metadata.deletionGracePeriodSeconds", grace_s);
}

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// A propagation policy is kept as a finalizer, which the garbage collector takes off when it has done its part.
fn set_propagation_finalizers(tree: &mut Tree, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    let wanted = match propagation {
        Propagation::Background => None,
        Propagation::Foreground => Some(FOREGROUND),
        Propagation::Orphan => Some(ORPHAN),
    };
    let before = meta::finalizers(tree);
    let mut finalizers: Vec<&str> =
        before.iter().copied().filter(|name| Some(*name) == wanted || ![ORPHAN, FOREGROUND].contains(name)).collect();
    finalizers.extend(wanted.filter(|wanted| !finalizers.contains(wanted)));
    if finalizers == before {
        return;
    }
    if finalizers.is_empty() {
        meta::remove(tree, "metadata.finalizers");
    } else {
        let finalizers = json!(finalizers);
        meta::set(tree, "metadata.finalizers", finalizers);
    }
}

fn removal(ctx: &Context<'_>, kind: &Kind, old: &Object, last: Tree) -> Result<Plan, ApiError> {
    let reply =
        if kind.returns_deleted { Reply::Tree(last.clone()) } else { Reply::Tree(success(&details(kind, &last))) };
    if ctx.dry_run {
        return Ok(Plan::answer(reply, 200));
    }
    let given_back = claims::changes(ctx, kind, Some(&last), None);
    let op = Op::Delete { key: old.key.clone(), expect: Expect::At(old.revision), last: Some(encode(&last)?) };
    Ok(Plan::write(op, reply, 200).with(given_back))
}
