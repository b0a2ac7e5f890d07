//! The guestbook's front end: an HTTP handler that keeps nothing and calls the back end by its Service's name.
//!
//! `GET /` shows the entries; `GET /sign?text` or `POST /` adds one.

use std::io::{Read as _, Write as _};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam,
    Scheme,
};

/// The longest body that is passed on.
const BODY_BYTES_MAX: u64 = 4096;

struct Frontend;

wasip2::http::proxy::export!(Frontend);

impl wasip2::exports::http::incoming_handler::Guest for Frontend {
    fn handle(request: IncomingRequest, response_out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let outcome = match (request.method(), path.strip_prefix("/sign?")) {
            (Method::Post, _) => read_body(request.consume()).and_then(|entry| sign(&entry)),
            (_, Some(entry)) => sign(entry.replace("%20", " ").as_bytes()),
            _ => call(Method::Get, b""),
        };
        let (status, text) = match outcome {
            Ok(entries) => (200, format!("The guestbook says:\n{}\n", String::from_utf8_lossy(&entries))),
            Err(err) => (502, format!("the guestbook's store does not answer: {err}\n")),
        };
        answer(response_out, status, &text);
    }
}

/// Adds an entry and gives all of them.
fn sign(entry: &[u8]) -> Result<Vec<u8>, String> {
    call(Method::Post, entry)?;
    call(Method::Get, b"")
}

/// One request to the store.
fn call(method: Method, body: &[u8]) -> Result<Vec<u8>, String> {
    let store = std::env::var("STORE").unwrap_or_else(|_| "guestbook-store:7000".to_owned());
    let headers = Fields::new();
    let length = body.len().to_string();
    headers.append("content-length", length.as_bytes()).map_err(|err| err.to_string())?;
    let request = OutgoingRequest::new(headers);
    let refused = |what: &str| format!("{what} was refused");
    request.set_method(&method).map_err(|()| refused("the method"))?;
    request.set_scheme(Some(&Scheme::Http)).map_err(|()| refused("the scheme"))?;
    request.set_authority(Some(&store)).map_err(|()| refused("the authority"))?;
    request.set_path_with_query(Some("/")).map_err(|()| refused("the path"))?;
    let out = request.body().map_err(|()| refused("the body"))?;
    let response = outgoing_handler::handle(request, None).map_err(|err| err.to_string())?;
    let mut stream = out.write().map_err(|()| refused("the body"))?;
    stream.write_all(body).map_err(|err| err.to_string())?;
    stream.flush().map_err(|err| err.to_string())?;
    drop(stream);
    OutgoingBody::finish(out, None).map_err(|err| err.to_string())?;
    response.subscribe().block();
    let response = response
        .get()
        .ok_or("no response")?
        .map_err(|()| refused("the response"))?
        .map_err(|err| err.to_string())?;
    if response.status() >= 300 {
        return Err(format!("it answered {}", response.status()));
    }
    read_body(response.consume())
}

fn read_body(body: Result<IncomingBody, ()>) -> Result<Vec<u8>, String> {
    let body = body.map_err(|()| "the body was taken".to_owned())?;
    let stream = body.stream().map_err(|()| "the body was taken".to_owned())?;
    let mut bytes = Vec::new();
    stream.take(BODY_BYTES_MAX * 256).read_to_end(&mut bytes).map_err(|err| err.to_string())?;
    Ok(bytes)
}

fn answer(response_out: ResponseOutparam, status: u16, text: &str) {
    let response = OutgoingResponse::new(Fields::new());
    response.set_status_code(status).expect("a valid status code");
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(response_out, Ok(response));
    let mut out = body.write().expect("the stream is taken once");
    // The client may have gone: then there is nobody to tell.
    let _sent = out.write_all(text.as_bytes());
    let _flushed = out.flush();
    drop(out);
    let _finished = OutgoingBody::finish(body, None);
}
