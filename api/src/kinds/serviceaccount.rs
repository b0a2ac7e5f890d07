//! ServiceAccount: who a pod is to the API server.

use super::{Column, Kind, Subresource, plain};
use crate::meta;

/// ServiceAccount.
pub static SERVICE_ACCOUNT: Kind = Kind {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    schema: "io.k8s.api.core.v1.ServiceAccount",
    subresources: &[Subresource::Token],
    returns_deleted: true,
    columns: &[Column::name(), Column::new("Secrets", "How many secrets are listed."), Column::age()],
    cells: |tree, now| {
        let secrets = meta::list(tree, "secrets").len();
        vec![meta::name(tree).into(), secrets.to_string().into(), crate::table::age(tree, now)]
    },
    ..plain()
};
