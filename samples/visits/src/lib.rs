//! Counts the requests that it has ever answered, in a file on a volume that outlives the pod.
//!
//! An HTTP handler has no memory between requests, and many run at once. So each visit is one byte at the end of a file,
//! which no other visit can overwrite, and the file's length is their number.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

const FILE: &str = "/data/visits";

struct Visits;

wasip2::http::proxy::export!(Visits);

impl wasip2::exports::http::incoming_handler::Guest for Visits {
    fn handle(_request: IncomingRequest, response_out: ResponseOutparam) {
        let (status, text) = match visit() {
            Ok(number) => (200, format!("visit {number}\n")),
            Err(error) => (500, format!("the visit could not be counted: {error}\n")),
        };
        let headers = Fields::new();
        headers.append("content-type", b"text/plain; charset=utf-8").expect("a header that a guest may set");
        let response = OutgoingResponse::new(headers);
        response.set_status_code(status).expect("a status that exists");
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

fn visit() -> io::Result<u64> {
    let mut file = OpenOptions::new().create(true).append(true).open(FILE)?;
    file.write_all(b".")?;
    file.sync_data()?;
    Ok(file.metadata()?.len())
}
