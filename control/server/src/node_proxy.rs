//! `/api/v1/nodes/<name>/proxy/…`: what a node says of itself (`stats/summary`, `metrics`…), passed on as it is.

use crate::answer::{self, Answer, BodyError};
use crate::kubelet::{ask, escape, pod_of};
use crate::route::Call;
use dhow_api::status::ApiError;
use dhow_gate::write::Name;
use futures_util::StreamExt;
use http::header::CONTENT_TYPE;
use http_body_util::BodyStream;

/// GET.
pub(crate) async fn get(call: &Call<'_>, query: Option<&str>) -> Result<Answer, ApiError> {
    // A port may stand behind the name; a node has one place where it answers.
    let node = call.target.name.split(':').next().unwrap_or_default();
    pod_of(call.app, call.kind, Name { namespace: "", name: node }).await?;
    let mut path: String = call.target.rest.split('/').map(|part| format!("/{}", escape(part))).collect();
    if let Some(query) = query {
        path.push('?');
        path.push_str(query);
    }
    let said = ask(call.app, node, &path, None).await?;
    let (status, content_type) = (said.status().as_u16(), said.headers().get(CONTENT_TYPE).cloned());
    let stop = call.app.stop.clone();
    let pieces = BodyStream::new(said.into_body())
        .filter_map(|frame| {
            std::future::ready(match frame {
                Ok(frame) => frame.into_data().ok().map(Ok),
                Err(error) => Some(Err(BodyError::from(error))),
            })
        })
        .take_until(async move { stop.stopped().await });
    let mut passed = answer::answer(status, "text/plain; charset=utf-8", answer::streamed(pieces));
    if let Some(content_type) = content_type {
        passed.headers_mut().insert(CONTENT_TYPE, content_type);
    }
    Ok(passed)
}
