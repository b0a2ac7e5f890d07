//! An HTTP handler of WASI 0.3: while one request waits, the same instance answers others.

use std::sync::atomic::{AtomicU32, Ordering};

use wasip3::clocks::monotonic_clock;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::{wit_bindgen, wit_future, wit_stream};

struct Hello;

wasip3::http::service::export!(Hello);

impl wasip3::exports::http::handler::Guest for Hello {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        static PRESENT: AtomicU32 = AtomicU32::new(0);
        let present = PRESENT.fetch_add(1, Ordering::Relaxed) + 1;
        let path = request.get_path_with_query().unwrap_or_else(|| "/".to_owned());
        if path == "/slow" {
            monotonic_clock::wait_for(1_000_000_000).await;
        }
        PRESENT.fetch_sub(1, Ordering::Relaxed);
        let pod = std::env::var("HOSTNAME").unwrap_or_else(|_| "nobody".to_owned());
        Ok(respond(format!("Hello from {pod}, you asked for {path} as one of {present} at a time\n")))
    }
}

fn respond(text: String) -> Response {
    let headers = Fields::new();
    headers.append("content-type", b"text/plain; charset=utf-8").expect("a header that a guest may set");
    let (mut body, contents) = wit_stream::new();
    let (trailers, trailers_read) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(headers, Some(contents), trailers_read);
    drop(trailers);
    wit_bindgen::spawn_local(async move {
        // The client may have gone: then there is nobody to tell.
        let _rest = body.write_all(text.into_bytes()).await;
    });
    response
}
