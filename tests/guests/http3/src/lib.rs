//! An HTTP handler of WASI 0.3 whose behaviour the path chooses.

use std::sync::atomic::{AtomicU32, Ordering};

use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Method, Request, Response, Scheme};
use wasip3::{clocks::monotonic_clock, wit_bindgen, wit_future, wit_stream};

struct Handler;

wasip3::http::service::export!(Handler);

impl wasip3::exports::http::handler::Guest for Handler {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static NOW: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
        let path = request.get_path_with_query().unwrap_or_default();
        let (path, query) = path.split_once('?').unwrap_or((&path, ""));
        match path {
            "/" => Ok(respond("hello\n".to_owned())),
            "/count" => Ok(respond(count.to_string())),
            // How many requests this instance is working on, told after a while.
            "/together" => {
                NOW.fetch_add(1, Ordering::Relaxed);
                monotonic_clock::wait_for(200_000_000).await;
                let now = NOW.load(Ordering::Relaxed);
                Ok(respond(now.to_string()))
            }
            "/panic" => panic!("as I was told"),
            "/refuse" => Err(ErrorCode::HttpRequestDenied),
            "/upper" => Ok(respond(read_request(request).await.to_uppercase())),
            // Calls `query`, such as `web:80/path`, and answers with what it says.
            "/fetch" => Ok(respond(fetch(query).await)),
            _ => Ok(respond("no such path\n".to_owned())),
        }
    }
}

fn respond(text: String) -> Response {
    let (mut body, contents) = wit_stream::new();
    let (trailers, trailers_read) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(contents), trailers_read);
    drop(trailers);
    wit_bindgen::spawn_local(async move {
        // The client may have gone: then there is nobody to tell.
        let _rest = body.write_all(text.into_bytes()).await;
    });
    response
}

async fn read_request(request: Request) -> String {
    let (done, result) = wit_future::new(|| Ok(()));
    let (body, _trailers) = Request::consume_body(request, result);
    let text = body.collect().await;
    drop(done);
    String::from_utf8_lossy(&text).into_owned()
}

async fn fetch(target: &str) -> String {
    let (authority, path) = target.split_at(target.find('/').unwrap_or(target.len()));
    let (trailers, trailers_read) = wit_future::new(|| Ok(None));
    let (request, _sent) = Request::new(Fields::new(), None, trailers_read, None);
    drop(trailers);
    request.set_method(&Method::Get).expect("a method");
    request.set_scheme(Some(&Scheme::Http)).expect("a scheme");
    request.set_authority(Some(authority)).expect("an authority");
    request.set_path_with_query(Some(path)).expect("a path");
    match client::send(request).await {
        Ok(response) => {
            let status = response.get_status_code();
            let (done, result) = wit_future::new(|| Ok(()));
            let (body, _trailers) = Response::consume_body(response, result);
            let text = body.collect().await;
            drop(done);
            format!("{status} {}", String::from_utf8_lossy(&text))
        }
        Err(code) => format!("{code:?}"),
    }
}
