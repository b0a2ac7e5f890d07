//! The annotations that say how a pod's HTTP containers serve; nothing of the kind is in Kubernetes' own fields.

use crate::field::{Fault, Faults, Path};
use crate::{Tree, meta};

/// How many requests one instance answers before another takes its place; 1 if the pod does not say.
pub const HTTP_REUSE: &str = "dhow.dev/http-reuse";
/// How many requests one instance answers at a time; 1 if the pod does not say.
pub const HTTP_CONCURRENCY: &str = "dhow.dev/http-concurrency";
/// The largest number that either annotation takes.
pub const HTTP_NUMBER_MAX: u32 = 1_000_000;

/// The faults of these annotations; `path` is `metadata.annotations`, `tree` the pod or the template.
pub(super) fn validate(path: &Path<'_>, tree: &Tree, faults: &mut Faults) {
    for name in [HTTP_REUSE, HTTP_CONCURRENCY] {
        let Some(value) = meta::annotation(tree, name) else { continue };
        if !value.parse().is_ok_and(|number| (1..=HTTP_NUMBER_MAX).contains(&number)) {
            let words = format!("must be a whole number from 1 to {HTTP_NUMBER_MAX}");
            faults.push(Fault::invalid(path.key(name), value, words));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_numbers_that_make_sense_are_taken() {
        let faults = |value: &str| {
            let mut faults = Faults::new();
            let tree = json!({"metadata": {"annotations": {HTTP_REUSE: value, "other": "x"}}});
            validate(&Path::root("metadata.annotations"), &tree, &mut faults);
            faults.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        for good in ["1", "128", "1000000"] {
            assert_eq!(faults(good), [""; 0]);
        }
        for bad in ["0", "-1", "1000001", "many", "", "1.5"] {
            let words = "must be a whole number from 1 to 1000000";
            assert_eq!(faults(bad), [format!("metadata.annotations[{HTTP_REUSE}]: Invalid value: \"{bad}\": {words}")]);
        }
    }
}
