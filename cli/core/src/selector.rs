//! Which pods an object means.

use dhow_api::selector::LabelSelector;
use serde_json::{Value as Tree, json};

/// The selector of what owns or serves pods: a `LabelSelector`, or plain labels as a Service has them. Nothing if it
/// has none, or one that is not understood.
pub fn of_pods(owner: &Tree) -> Option<LabelSelector> {
    let selector = owner["spec"].get("selector").filter(|selector| selector.is_object())?;
    let is_label_selector = selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some();
    let selector = if is_label_selector { selector } else { &json!({"matchLabels": selector}) };
    LabelSelector::from_tree(selector).ok().filter(|selector| !selector.is_everything())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_understood_in_both_forms() {
        for (selector, expected) in [
            (json!({"app": "web", "tier": "x"}), Some("app=web,tier=x")),
            (json!({"matchLabels": {"app": "web"}}), Some("app=web")),
            (
                json!({"matchLabels": {"app": "web"}, "matchExpressions": [
                    {"key": "tier", "operator": "In", "values": ["b", "a"]}, {"key": "old", "operator": "DoesNotExist"}]}),
                Some("app=web,!old,tier in (a,b)"),
            ),
            (json!({"matchExpressions": [{"key": "tier", "operator": "Near"}]}), None),
            (json!({"matchLabels": {}}), None),
            (json!({}), None),
            (Tree::Null, None),
        ] {
            let found = of_pods(&json!({"spec": {"selector": selector}}));
            assert_eq!(found.map(|selector| selector.to_string()).as_deref(), expected);
        }
    }
}
