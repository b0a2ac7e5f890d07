//! An HTTP handler whose behaviour the path chooses.

use std::io::{Read as _, Write as _};

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam,
    Scheme,
};

struct Handler;

wasip2::http::proxy::export!(Handler);

impl wasip2::exports::http::incoming_handler::Guest for Handler {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let (path, query) = path.split_once('?').unwrap_or((&path, ""));
        match path {
            "/" => respond(out, "hello\n"),
            "/env" => respond(out, &std::env::var(query).unwrap_or_else(|_| "unset".to_owned())),
            // How many requests this instance has been asked.
            "/count" => {
                static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
                let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
                respond(out, &count.to_string());
            }
            "/log" => {
                println!("to stdout: {query}");
                eprintln!("to stderr: {query}");
                respond(out, "logged\n");
            }
            "/panic" => panic!("as I was told"),
            "/silent" => {}
            "/spin" => loop {
                std::hint::spin_loop();
            },
            "/hog" => {
                let bytes = vec![1_u8; query.parse::<usize>().expect("a number") << 20];
                respond(out, &bytes.len().to_string());
            }
            "/upper" => {
                let text = read(request.consume().expect("the body is read once"));
                respond(out, &text.to_uppercase());
            }
            // Calls `query`, such as `web:80/path`, and answers with what it says.
            "/fetch" => respond(out, &fetch(query)),
            _ => respond(out, "no such path\n"),
        }
    }
}

fn respond(out: ResponseOutparam, text: &str) {
    let headers = Fields::new();
    headers.append("content-length", text.len().to_string().as_bytes()).expect("a header that a guest may set");
    let response = OutgoingResponse::new(headers);
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(out, Ok(response));
    let mut stream = body.write().expect("the stream is taken once");
    // The client may have gone: then there is nobody to tell.
    let _sent = stream.write_all(text.as_bytes());
    drop(stream);
    let _finished = OutgoingBody::finish(body, None);
}

fn read(body: IncomingBody) -> String {
    let mut text = String::new();
    let mut stream = body.stream().expect("the stream is taken once");
    let _read = stream.read_to_string(&mut text);
    text
}

fn fetch(target: &str) -> String {
    let (authority, path) = target.split_at(target.find('/').unwrap_or(target.len()));
    let request = OutgoingRequest::new(Fields::new());
    request.set_method(&Method::Get).expect("a method");
    request.set_scheme(Some(&Scheme::Http)).expect("a scheme");
    request.set_authority(Some(authority)).expect("an authority");
    request.set_path_with_query(Some(path)).expect("a path");
    let future = match outgoing_handler::handle(request, None) {
        Ok(future) => future,
        Err(code) => return format!("{code:?}"),
    };
    future.subscribe().block();
    match future.get().expect("it is there").expect("it is taken once") {
        Ok(response) => format!("{} {}", response.status(), read(response.consume().expect("the body"))),
        Err(code) => format!("{code:?}"),
    }
}
