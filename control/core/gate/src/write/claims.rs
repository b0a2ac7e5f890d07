//! Claims: records beside an object that hold what no two objects may have, an address or a port.
//!
//! A claim is written and removed in the transaction of the object that holds it, and expects to find nothing. So two
//! members that plan at the same moment cannot both get the same address: the state refuses the second, whoever planned
//! it, and the plan is made anew.

use super::{Context, service};
use bytes::Bytes;
use dhow_api::Tree;
use dhow_api::kinds::Kind;
use dhow_api::meta;
use dhow_state::{Expect, Key, Object, Op};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The resource under which claims are kept. No kind has it, so that no client sees or writes it.
pub const CLAIMS: &str = "claims.dhow.dev";

/// Claims `what` for the object with the UID `holder`; refused by the state if it is taken.
pub fn claim(what: &str, holder: &str) -> Op {
    let record = json!({"metadata": {"name": what}, "holder": holder});
    Op::Put { key: claim_key(what), value: Bytes::from(record.to_string()), expect: Expect::Absent, expires: None }
}

/// The key of a claim.
pub fn claim_key(what: &str) -> Key {
    Key::new(CLAIMS, "", what)
}

/// What a write of an object does to its claims: takes what the new form needs, gives back what only the old one had.
pub(super) fn changes(ctx: &Context<'_>, kind: &Kind, old: Option<&Tree>, new: Option<&Tree>) -> Vec<Op> {
    if !kind.takes_addresses {
        return Vec::new();
    }
    let needs = |tree: Option<&Tree>| tree.map(service::needs).unwrap_or_default();
    let uid = new.or(old).map(meta::uid).unwrap_or_default();
    let held = |what: &String| ctx.view.get(&claim_key(what)).filter(|record| holder(record) == uid);
    let wanted: BTreeSet<String> = needs(new);
    let given_back = needs(old).into_iter().filter(|what| !wanted.contains(what)).filter_map(|what| {
        let expect = Expect::At(held(&what)?.revision);
        Some(Op::Delete { key: claim_key(&what), expect, last: None })
    });
    let mut ops: Vec<Op> = given_back.collect();
    ops.extend(wanted.iter().filter(|what| held(what).is_none()).map(|what| claim(what, uid)));
    ops
}

fn holder(record: &Arc<Object>) -> String {
    meta::text(&record.tree(), "holder").to_owned()
}
