//! Answers every HTTP request with a greeting and the name of the pod that gave it.

use std::io::Write as _;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

struct Hello;

wasip2::http::proxy::export!(Hello);

impl wasip2::exports::http::incoming_handler::Guest for Hello {
    fn handle(request: IncomingRequest, response_out: ResponseOutparam) {
        let pod = std::env::var("HOSTNAME").unwrap_or_else(|_| "nobody".to_owned());
        let path = request.path_with_query().unwrap_or_else(|| "/".to_owned());
        let text = format!("Hello from {pod}, you asked for {path}\n");

        let headers = Fields::new();
        headers.append("content-type", b"text/plain; charset=utf-8").expect("a header that a guest may set");
        let response = OutgoingResponse::new(headers);
        let body = response.body().expect("the body is taken once");
        ResponseOutparam::set(response_out, Ok(response));
        let mut out = body.write().expect("the stream is taken once");
        // The client may have gone: then there is nobody to tell.
        let _sent = out.write_all(text.as_bytes());
        let _flushed = out.flush();
        drop(out);
        let _finished = OutgoingBody::finish(body, None);
    }
}
