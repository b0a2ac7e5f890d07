//! The API server as the agent sees it.

use bytes::Bytes;
use dhow_agent::{PodRef, Written};
use dhow_api::Tree;
use dhow_client::{Client, ClientError, resource_path};
use dhow_types::Chain;
use http::Method;
use serde_json::json;

const JSON: &str = "application/json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// Writes a pod's status.
pub(crate) async fn write_status(client: &Client, pod: &PodRef, status: Tree) -> Written {
    let path = format!("{}/status", pod_path(pod));
    // The uid makes the patch fail on a later pod of the same name.
    let patch = json!({"metadata": {"uid": pod.uid.as_str()}, "status": status});
    let body = Bytes::from(patch.to_string());
    let answer = client.request(Method::PATCH, &path, JSON, Some((STRATEGIC, body))).await;
    written("writing the status", pod, answer)
}

/// Deletes a pod for good, if it still has this uid.
pub(crate) async fn delete_pod(client: &Client, pod: &PodRef) -> Written {
    let options = json!({
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "gracePeriodSeconds": 0,
        "preconditions": {"uid": pod.uid.as_str()},
    });
    let body = Bytes::from(options.to_string());
    let answer = client.request(Method::DELETE, &pod_path(pod), JSON, Some((JSON, body))).await;
    match answer {
        // Another pod has the name.
        Ok(answer) if answer.status.as_u16() == 409 => Written::Gone,
        answer => written("deleting", pod, answer),
    }
}

fn pod_path(pod: &PodRef) -> String {
    resource_path("", "v1", "pods", Some(&pod.namespace), Some(&pod.name))
}

fn written(what: &str, pod: &PodRef, answer: Result<dhow_client::Response, ClientError>) -> Written {
    match answer {
        Ok(answer) if answer.status.is_success() => Written::Ok,
        Ok(answer) if answer.status.as_u16() == 404 => Written::Gone,
        Ok(answer) => {
            let body = String::from_utf8_lossy(&answer.body[..answer.body.len().min(500)]).into_owned();
            let (namespace, name) = (&pod.namespace, &pod.name);
            tracing::warn!(namespace, name, status = answer.status.as_u16(), body, "{what} of a pod was refused");
            Written::Retry
        }
        Err(err) => {
            tracing::debug!(namespace = %pod.namespace, name = %pod.name, err = %Chain(&err), "{what} of a pod failed");
            Written::Retry
        }
    }
}
