//! `dhow rollout`: follow, show, undo and restart a Deployment's rollouts.

use crate::kube::{Discovery, Global, Session, escape, items, name_of, targets};
use crate::output;
use anyhow::{Context as _, bail};
use clap::Subcommand;
use dhow_client::{Event, PatchType};
use serde_json::{Value as Tree, json};

const REVISION: &str = "deployment.kubernetes.io/revision";
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";

/// What to do with a rollout.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Wait until the rollout is complete
    Status(What),
    /// List the revisions
    History(What),
    /// Go back to an earlier revision
    Undo {
        #[command(flatten)]
        what: What,
        /// The revision; the one before the current by default
        #[arg(long)]
        to_revision: Option<u64>,
    },
    /// Replace all pods by new ones
    Restart(What),
}

#[derive(clap::Args)]
struct What {
    /// deployment/NAME, or deployment NAME
    #[arg(required = true)]
    what: Vec<String>,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let session = global.session()?;
    let (what, to_revision) = match &args.action {
        Action::Undo { what, to_revision } => (what, *to_revision),
        Action::Status(what) | Action::History(what) | Action::Restart(what) => (what, None),
    };
    let discovery = Discovery::fetch(&session.client).await?;
    for (word, name) in targets(&what.what)? {
        let resource = discovery.find(&word)?;
        if resource.plural != "deployments" {
            bail!("rollouts of {} are not known: name a deployment", resource.plural);
        }
        let name = name.context("name the deployment")?;
        let path = resource.path(Some(&session.namespace), Some(&name));
        let label = resource.label(&name);
        match args.action {
            Action::Status(_) => status(&session, &resource.path(Some(&session.namespace), None), &name).await?,
            Action::History(_) => history(&session, &path, &label).await?,
            Action::Undo { .. } => undo(&session, &path, &label, to_revision).await?,
            Action::Restart(_) => restart(&session, &path, &label).await?,
        }
    }
    Ok(())
}

async fn status(session: &Session, collection: &str, name: &str) -> anyhow::Result<()> {
    let mut watcher = session.client.watch(&format!("{collection}?fieldSelector=metadata.name%3D{}", escape(name)));
    let mut said = String::new();
    loop {
        let deployment = match watcher.next().await {
            Event::Restarted(objects) => {
                objects.into_iter().next().with_context(|| format!("deployments.apps \"{name}\" not found"))?
            }
            Event::Applied(object) => object,
            Event::Deleted(_) => bail!("the deployment was deleted"),
        };
        let (done, text) = progress(&deployment, name)?;
        if text != said {
            output::line(&text);
            said = text;
        }
        if done {
            return Ok(());
        }
    }
}

fn progress(deployment: &Tree, name: &str) -> anyhow::Result<(bool, String)> {
    let number = |tree: &Tree| tree.as_i64().unwrap_or(0);
    let status = &deployment["status"];
    if number(&status["observedGeneration"]) < number(&deployment["metadata"]["generation"]) {
        return Ok((false, "Waiting for deployment spec update to be observed...".to_owned()));
    }
    let conditions = status["conditions"].as_array().into_iter().flatten();
    if conditions.clone().any(|condition| condition["reason"] == "ProgressDeadlineExceeded") {
        bail!("deployment \"{name}\" exceeded its progress deadline");
    }
    let wanted = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
    let (all, updated, available) =
        (number(&status["replicas"]), number(&status["updatedReplicas"]), number(&status["availableReplicas"]));
    let waiting = |what: String| Ok((false, format!("Waiting for deployment \"{name}\" rollout to finish: {what}...")));
    if updated < wanted {
        return waiting(format!("{updated} out of {wanted} new replicas have been updated"));
    }
    if all > updated {
        return waiting(format!("{} old replicas are pending termination", all - updated));
    }
    if available < updated {
        return waiting(format!("{available} of {updated} updated replicas are available"));
    }
    Ok((true, format!("deployment \"{name}\" successfully rolled out")))
}

/// A deployment's replica sets with their revisions, oldest first.
async fn revisions(session: &Session, deployment: &Tree) -> anyhow::Result<Vec<(u64, Tree)>> {
    let uid = &deployment["metadata"]["uid"];
    let namespace = deployment["metadata"]["namespace"].as_str().unwrap_or_default();
    let list = session.client.get(&format!("/apis/apps/v1/namespaces/{namespace}/replicasets")).await?;
    let owned = |set: &&Tree| {
        set["metadata"]["ownerReferences"].as_array().into_iter().flatten().any(|owner| owner["uid"] == *uid)
    };
    let mut revisions: Vec<(u64, Tree)> = items(&list)
        .iter()
        .filter(owned)
        .filter_map(|set| Some((set["metadata"]["annotations"][REVISION].as_str()?.parse().ok()?, set.clone())))
        .collect();
    revisions.sort_by_key(|(revision, _)| *revision);
    Ok(revisions)
}

async fn history(session: &Session, path: &str, label: &str) -> anyhow::Result<()> {
    let deployment = session.client.get(path).await?;
    output::line(label);
    let mut rows = vec![vec!["REVISION".to_owned(), "CHANGE-CAUSE".to_owned()]];
    for (revision, set) in revisions(session, &deployment).await? {
        let cause = set["metadata"]["annotations"][CHANGE_CAUSE].as_str().unwrap_or("<none>");
        rows.push(vec![revision.to_string(), cause.to_owned()]);
    }
    output::table(&rows);
    Ok(())
}

async fn undo(session: &Session, path: &str, label: &str, to: Option<u64>) -> anyhow::Result<()> {
    let deployment = session.client.get(path).await?;
    let revisions = revisions(session, &deployment).await?;
    let target = match to {
        Some(number) => revisions.iter().find(|(revision, _)| *revision == number),
        None => revisions.len().checked_sub(2).and_then(|index| revisions.get(index)),
    };
    let (_, set) = target.with_context(|| match to {
        Some(number) => format!("{label} has no revision {number}: see `dhow rollout history {label}`"),
        None => format!("{label} has no earlier revision"),
    })?;
    let mut template = set["spec"]["template"].clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove("pod-template-hash");
    }
    let patch = json!([{"op": "replace", "path": "/spec/template", "value": template}]);
    session.client.patch(path, PatchType::Json, &patch).await?;
    output::line(format!("{label} rolled back to the template of {}", name_of(set)));
    Ok(())
}

async fn restart(session: &Session, path: &str, label: &str) -> anyhow::Result<()> {
    let now = crate::clock::now().to_rfc3339();
    let annotations = json!({"kubectl.kubernetes.io/restartedAt": now});
    let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
    session.client.patch(path, PatchType::Strategic, &patch).await?;
    output::line(format!("{label} restarted"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_kubectls_words() {
        let deployment =
            |status: Tree| json!({"metadata": {"generation": 2}, "spec": {"replicas": 3}, "status": status});
        for (status, done, text) in [
            (json!({"observedGeneration": 1}), false, "Waiting for deployment spec update to be observed..."),
            (
                json!({"observedGeneration": 2, "updatedReplicas": 1}),
                false,
                "Waiting for deployment \"web\" rollout to finish: 1 out of 3 new replicas have been updated...",
            ),
            (
                json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}),
                true,
                "deployment \"web\" successfully rolled out",
            ),
        ] {
            assert_eq!(progress(&deployment(status), "web").unwrap(), (done, text.to_owned()));
        }
    }
}
