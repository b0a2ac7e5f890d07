//! POST to a collection.

use super::{
    Context, Name, Plan, Reply, claims, key_of, pod, put, service, settle_namespace, settle_type, storage,
    strip_server_fields,
};
use dhow_api::Tree;
use dhow_api::kinds::Kind;
use dhow_api::meta;
use dhow_api::status::{ApiError, Cause, Reason};
use dhow_state::{Expect, Key};
use dhow_types::Rng;

/// Plans a new object. `namespace` is the path's; `tree` is typed right already.
pub fn create(ctx: &Context<'_>, kind: &Kind, namespace: &str, mut tree: Tree) -> Result<Plan, ApiError> {
    let mut rng = Rng::new(ctx.seed);
    settle_type(&mut tree, kind)?;
    settle_namespace(&mut tree, kind, namespace)?;
    if !meta::resource_version(&tree).is_empty() {
        return Err(refuse_version());
    }
    settle_new_name(&mut tree, &mut rng);
    check_namespace(ctx, kind, &tree)?;
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "generation", "resourceVersion"] {
        meta::remove(&mut tree, &format!("metadata.{field}"));
    }
    strip_server_fields(&mut tree);
    meta::set_uid(&mut tree, &rng.uuid());
    meta::set_creation_timestamp(&mut tree, ctx.now);
    (kind.default)(&mut tree);
    storage::default_class(ctx, kind, &mut tree);
    (kind.prepare_create)(&mut tree);
    kind.check_create(&tree)?;
    pod::settle_account(ctx, kind, &mut tree, &mut rng)?;
    let key = key_of(kind, Name { namespace: meta::namespace(&tree), name: meta::name(&tree) });
    let exists = ctx.view.get(&key).is_some();
    if exists && meta::generate_name(&tree).is_empty() {
        return Err(ApiError::already_exists(&kind.resource(), &key.name));
    }
    // Only now, so that a Service that is there already is not told that its own address is taken.
    service::allocate(ctx, kind, &mut tree, None, &mut rng)?;
    let claimed = claims::changes(ctx, kind, None, Some(&tree));
    let warnings = (kind.warnings)(&tree);
    let written = Plan::write(put(ctx, kind, key, &tree, Expect::Absent)?, Reply::Stored, 201);
    let plan = Plan { warnings, ..written.with(claimed) };
    Ok(if ctx.dry_run { plan.dry(tree) } else { plan })
}

/// Upstream's store says this as a plain error, which becomes a 500 without a reason.
fn refuse_version() -> ApiError {
    ApiError::new(500, Reason::Unknown, "resourceVersion should not be set on objects to be created")
}

/// How long a generated name may get: a label's 63, less the suffix.
const GENERATED_BASE_MAX: usize = 58;

fn settle_new_name(tree: &mut Tree, rng: &mut Rng) {
    let base = meta::generate_name(tree);
    if !meta::name(tree).is_empty() || base.is_empty() {
        return;
    }
    let end = (0..=base.len().min(GENERATED_BASE_MAX)).rev().find(|&at| base.is_char_boundary(at)).unwrap_or(0);
    let name = format!("{}{}", &base[..end], rng.name_suffix(5));
    meta::set_name(tree, &name);
}

/// New content needs a namespace that exists and stays.
fn check_namespace(ctx: &Context<'_>, kind: &Kind, tree: &Tree) -> Result<(), ApiError> {
    let namespace = meta::namespace(tree);
    if !kind.namespaced || namespace.is_empty() {
        return Ok(());
    }
    let Some(object) = ctx.view.get(&Key::new("namespaces", "", namespace)) else {
        return Err(ApiError::not_found("namespaces", namespace));
    };
    if !object.index.deleting {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut error = ApiError::refused(&kind.resource(), meta::name(tree), &why);
    if let Some(details) = &mut error.details {
        details.causes.push(Cause {
            reason: "NamespaceTerminating".to_owned(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".to_owned(),
        });
    }
    Err(error)
}
