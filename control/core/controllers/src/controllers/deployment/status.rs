//! What a deployment's status says: numbers, availability, progress.

use super::Rollout;
use crate::controllers::{condition, set_condition};
use crate::views::{Counts, Truth};
use crate::wish::Write;
use dhow_api::{Tree, meta};
use dhow_types::Time;
use serde_json::json;

/// Between two status writes while a rollout moves; the last one is not held back.
const STATUS_INTERVAL_MS: u64 = 100;

/// What a condition is to say.
struct Says {
    status: Truth,
    reason: &'static str,
    message: String,
}

impl Rollout<'_> {
    /// All replicas are of the present template and available, and no old pod is left.
    pub(super) fn is_complete(&self) -> bool {
        let counts = self.counts();
        let replicas = self.deployment.replicas;
        counts.updated == replicas && counts.replicas == replicas && counts.available == replicas
    }

    fn counts(&self) -> Counts {
        let sum = |number: fn(&Counts) -> i64| self.sets.iter().map(|set| number(&set.status)).sum::<i64>();
        let available = sum(|counts| counts.available);
        Counts {
            observed: self.deployment.generation,
            replicas: sum(|counts| counts.replicas),
            fully_labeled: 0,
            updated: self.new_set().map_or(0, |set| set.status.replicas),
            ready: sum(|counts| counts.ready),
            available,
            unavailable: (self.sets.iter().map(|set| set.replicas).sum::<i64>() - available).max(0),
        }
    }

    pub(super) fn write_status(&mut self) {
        let collided = self.plan.writes.iter().any(|planned| matches!(planned.write, Write::UpdateStatus { .. }));
        if collided {
            return;
        }
        let old = self.deployment.object.tree();
        let mut tree = old.clone();
        let counts = self.counts();
        write_counts(&mut tree, &counts);
        self.say(&mut tree, "Available", Some(self.availability(&counts)), Touch::OnChange);
        self.say_failure(&mut tree);
        self.say_progress(&mut tree, &counts);
        if tree == old {
            return;
        }
        let news = self.is_complete() || self.deployment.status.observed != self.deployment.generation;
        if !news && let Some(ms) = self.ctx.hold_ms(STATUS_INTERVAL_MS) {
            self.plan.again_in(ms);
            return;
        }
        self.plan.write(Write::UpdateStatus { tree });
    }

    fn availability(&self, counts: &Counts) -> Says {
        let enough = counts.available >= self.deployment.replicas - self.deployment.max_unavailable;
        if enough {
            let message = "Deployment has minimum availability.".to_owned();
            Says { status: Truth::True, reason: "MinimumReplicasAvailable", message }
        } else {
            let message = "Deployment does not have minimum availability.".to_owned();
            Says { status: Truth::False, reason: "MinimumReplicasUnavailable", message }
        }
    }

    /// A replica set that cannot make pods is the deployment's trouble too.
    fn say_failure(&self, tree: &mut Tree) {
        let failing = self.new_set().into_iter().chain(&self.sets).find_map(|set| {
            let tree = set.object.tree();
            let failure = condition(&tree, "ReplicaFailure")?;
            Some(meta::text(failure, "message").to_owned())
        });
        let says = failing.map(|message| Says { status: Truth::True, reason: "FailedCreate", message });
        self.say(tree, "ReplicaFailure", says, Touch::OnChange);
    }

    fn say_progress(&mut self, tree: &mut Tree, counts: &Counts) {
        const KIND: &str = "Progressing";
        let deployment = self.deployment;
        let Some(deadline_s) = deployment.deadline_s else {
            self.say(tree, KIND, None, Touch::OnChange);
            return;
        };
        let now_is = condition(tree, KIND).map(|condition| {
            let at = meta::time(condition, "lastUpdateTime").unwrap_or(self.ctx.now);
            (meta::text(condition, "reason").to_owned(), at)
        });
        let reason = now_is.as_ref().map_or("", |(reason, _)| reason.as_str());
        if deployment.paused {
            if reason != "DeploymentPaused" && reason != "ProgressDeadlineExceeded" {
                let message = "Deployment is paused".to_owned();
                let says = Says { status: Truth::Unknown, reason: "DeploymentPaused", message };
                self.say(tree, KIND, Some(says), Touch::OnChange);
            }
            return;
        }
        if reason == "DeploymentPaused" {
            let message = "Deployment is resumed".to_owned();
            let says = Says { status: Truth::Unknown, reason: "DeploymentResumed", message };
            self.say(tree, KIND, Some(says), Touch::OnChange);
            return;
        }
        if counts.replicas == counts.updated && reason == "NewReplicaSetAvailable" {
            return;
        }
        let (what, name) = self.subject();
        let before = &deployment.status;
        let progressing = counts.updated > before.updated
            || counts.replicas - counts.updated < before.replicas - before.updated
            || counts.ready > before.ready
            || counts.available > before.available;
        if self.is_complete() {
            let message = format!("{what} {name:?} has successfully progressed.");
            let says = Says { status: Truth::True, reason: "NewReplicaSetAvailable", message };
            self.say(tree, KIND, Some(says), Touch::OnChange);
        } else if progressing || matches!(reason, "" | "DeploymentResumed" | "NewReplicaSetAvailable") {
            let message = format!("{what} {name:?} is progressing.");
            let says = Says { status: Truth::True, reason: "ReplicaSetUpdated", message };
            self.say(tree, KIND, Some(says), Touch::Always);
            self.plan.again_in(deadline_s.saturating_mul(1000));
        } else if reason != "ProgressDeadlineExceeded" {
            let since = now_is.map_or(self.ctx.now, |(_, at)| at);
            let left = (since + deadline_s.saturating_mul(1000)).ms_since(self.ctx.now);
            if left > 0 {
                self.plan.again_in(left);
                return;
            }
            let message = format!("{what} {name:?} has timed out progressing.");
            let says = Says { status: Truth::False, reason: "ProgressDeadlineExceeded", message };
            self.say(tree, KIND, Some(says), Touch::OnChange);
        }
    }

    fn subject(&self) -> (&'static str, String) {
        match self.new_set() {
            Some(set) => ("ReplicaSet", set.name().to_owned()),
            None => ("Deployment", self.deployment.object.key.name.to_string()),
        }
    }

    /// Puts a condition in, or takes it away. The time of transition is kept while the status stays the same.
    fn say(&self, tree: &mut Tree, kind: &str, says: Option<Says>, touch: Touch) {
        let Some(says) = says else {
            if let Some(list) = meta::at_mut(tree, "status.conditions").and_then(Tree::as_array_mut) {
                list.retain(|condition| meta::text(condition, "type") != kind);
            }
            return;
        };
        let old = condition(tree, kind);
        let same_status = old.is_some_and(|old| meta::text(old, "status") == says.status.as_str());
        let same_reason = old.is_some_and(|old| meta::text(old, "reason") == says.reason);
        if same_status && same_reason && touch == Touch::OnChange {
            return;
        }
        let transition =
            old.filter(|_| same_status).and_then(|old| meta::time(old, "lastTransitionTime")).unwrap_or(self.ctx.now);
        set_condition(tree, condition_tree(kind, &says, self.ctx.now, transition));
    }
}

/// When a condition that says the same is written again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Touch {
    OnChange,
    Always,
}

fn condition_tree(kind: &str, says: &Says, updated: Time, transition: Time) -> Tree {
    json!({
        "type": kind,
        "status": says.status.as_str(),
        "lastUpdateTime": updated.to_rfc3339(),
        "lastTransitionTime": transition.to_rfc3339(),
        "reason": says.reason,
        "message": says.message,
    })
}

fn write_counts(tree: &mut Tree, counts: &Counts) {
    for (field, number) in [
        ("status.observedGeneration", counts.observed),
        ("status.replicas", counts.replicas),
        ("status.updatedReplicas", counts.updated),
        ("status.readyReplicas", counts.ready),
        ("status.availableReplicas", counts.available),
        ("status.unavailableReplicas", counts.unavailable),
    ] {
        if number == 0 {
            meta::remove(tree, field);
        } else if meta::int(tree, field) != Some(number) {
            meta::set(tree, field, number);
        }
    }
}
