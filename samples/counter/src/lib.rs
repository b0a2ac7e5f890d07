//! Counts the visits of each path in a key-value store that lies on a volume, and says which pod counted.

use std::io::Write as _;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

wit_bindgen::generate!({
    path: ["../../wit/deps/io.wit", "../../wit/deps/keyvalue.wit", "../../wit/deps/pod.wit"],
    inline: "
        package sample:counter;
        world counter {
            import wasi:keyvalue/store@0.2.0-draft2;
            import wasi:keyvalue/atomics@0.2.0-draft2;
            import dhow:pod/identity@0.1.0;
        }
    ",
    generate_all,
});

use dhow::pod::identity;
use wasi::keyvalue::{atomics, store};

/// The bucket is the volume that the pod mounts under this name.
const BUCKET: &str = "counts";

struct Counter;

wasip2::http::proxy::export!(Counter);

impl wasip2::exports::http::incoming_handler::Guest for Counter {
    fn handle(request: IncomingRequest, response_out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_else(|| "/".to_owned());
        let count = store::open(BUCKET).and_then(|bucket| atomics::increment(&bucket, &path, 1));
        let (status, text) = match count {
            Ok(count) => (200, format!("{path} was asked for {count} times, now from {}\n", identity::get().name)),
            Err(error) => (500, format!("the bucket `{BUCKET}`: {error}\n")),
        };

        let headers = Fields::new();
        headers.append("content-type", b"text/plain; charset=utf-8").expect("a header that a guest may set");
        let response = OutgoingResponse::new(headers);
        response.set_status_code(status).expect("a valid status");
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
