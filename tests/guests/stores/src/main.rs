//! One program with many behaviours, chosen by its arguments, on what a container may import beside WASI.

wit_bindgen::generate!({ path: "../../../wit", world: "dhow:container/extras", generate_all });

use dhow::pod::{identity, lifecycle};
use wasi::blobstore::blobstore;
use wasi::blobstore::types::{IncomingValue, ObjectId, OutgoingValue};
use wasi::config::store as config;
use wasi::logging::logging;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["config", key] => println!("{:?} of {}", config::get(key), config::get_all().expect("all").len()),
        ["log", context, message] => logging::log(logging::Level::Warn, context, message),
        ["get", bucket, key] => println!("{}", get(bucket, key)),
        ["set", bucket, key, value] => println!("{}", set(bucket, key, value)),
        ["store", bucket] => new_draft(bucket),
        ["store-draft", bucket] => old_draft(bucket),
        ["blobs", name] => blobs(name),
        ["blob", name, object] => println!("{:?}", blob(name, object)),
        ["whoami"] => {
            println!("{:?}", identity::get());
            println!("{:?}", identity::labels());
        }
        // Waits until it is asked to stop.
        ["wait", code] => {
            assert!(!lifecycle::stopping() && lifecycle::grace_left_ms().is_none());
            println!("waiting");
            lifecycle::subscribe().block();
            let left = lifecycle::grace_left_ms().expect("it has been asked");
            println!("asked: {}, {} s left", lifecycle::stopping(), left.div_ceil(1000));
            std::process::exit(code.parse().expect("a code"));
        }
        ["ignore"] => {
            assert!(!lifecycle::stopping());
            println!("waiting");
            loop {
                std::thread::sleep(std::time::Duration::from_secs(3600));
            }
        }
        _ => {
            eprintln!("what is {args:?}?");
            std::process::exit(1);
        }
    }
}

fn get(bucket: &str, key: &str) -> String {
    use wasi::keyvalue0_2_0_draft2::store::open;
    match open(bucket).and_then(|bucket| bucket.get(key)) {
        Ok(value) => format!("{:?}", value.map(|value| String::from_utf8_lossy(&value).into_owned())),
        Err(error) => format!("{error:?}"),
    }
}

fn set(bucket: &str, key: &str, value: &str) -> String {
    use wasi::keyvalue0_2_0_draft2::store::open;
    format!("{:?}", open(bucket).and_then(|bucket| bucket.set(key, value.as_bytes())))
}

fn new_draft(bucket: &str) {
    use wasi::keyvalue0_2_0_draft2::{atomics, batch, store};
    let bucket = store::open(bucket).expect("open");
    let pairs: Vec<_> = (0..1001).map(|n| (format!("key/{n:04}"), vec![1])).collect();
    batch::set_many(&bucket, &pairs).expect("set many");
    let first = bucket.list_keys(None).expect("list");
    let rest = bucket.list_keys(first.cursor.as_deref()).expect("list");
    println!("{} and {} keys, then {:?}", first.keys.len(), rest.keys.len(), rest.cursor);
    let keys: Vec<_> = pairs.into_iter().map(|(key, _)| key).collect();
    batch::delete_many(&bucket, &keys[1..]).expect("delete many");
    println!("{:?}", batch::get_many(&bucket, &keys[..2]));
    println!("{:?}", (atomics::increment(&bucket, "n", 5), atomics::increment(&bucket, "n", -2)));
    let (one, two) = (atomics::Cas::new(&bucket, "n").expect("cas"), atomics::Cas::new(&bucket, "n").expect("cas"));
    println!("{:?}", atomics::swap(one, b"10").is_ok());
    match atomics::swap(two, b"20") {
        Err(atomics::CasError::CasFailed(now)) => {
            println!("lost to {:?}", now.current().map(|value| value.map(String::from_utf8)));
            println!("{:?}", atomics::swap(now, b"30").is_ok());
        }
        other => println!("{other:?}"),
    }
    bucket.delete(&keys[0]).expect("delete");
    println!("{:?}, {:?}", bucket.exists(&keys[0]), bucket.list_keys(None).expect("list").keys);
}

fn old_draft(bucket: &str) {
    use wasi::keyvalue0_2_0_draft::{atomics, batch, store};
    let bucket = store::open(bucket).expect("open");
    bucket.set("a", b"1").expect("set");
    println!("{:?}", batch::get_many(&bucket, &["a".to_owned(), "b".to_owned()]));
    println!("{:?}", atomics::increment(&bucket, "a", 41));
    let keys = bucket.list_keys(None).expect("list");
    println!("{:?} {:?}", keys.keys, keys.cursor);
}

fn blobs(name: &str) {
    println!("{:?}", blobstore::container_exists(name));
    let container = blobstore::create_container(name).or_else(|_| blobstore::get_container(name)).expect("container");
    let value = OutgoingValue::new_outgoing_value();
    let body = value.outgoing_value_write_body().expect("once");
    container.write_data("a/b", &value).expect("write");
    // More than one piece of what the host takes at a time.
    for part in [7; 200_000].chunks(4096).chain([&b"end"[..]]) {
        body.blocking_write_and_flush(part).expect("body");
    }
    drop(body);
    println!("before: {:?}", container.has_object("a/b"));
    OutgoingValue::finish(value).expect("finish");
    println!("after: {:?}, {:?}", container.has_object("a/b"), container.object_info("a/b").map(|info| info.size));
    let part = container.get_data("a/b", 199_999, u64::MAX).expect("part");
    println!("{} {:?}", part.size(), IncomingValue::incoming_value_consume_sync(part));
    let all = container.get_data("a/b", 0, u64::MAX).expect("all");
    let stream = IncomingValue::incoming_value_consume_async(all).expect("stream");
    let mut len = 0;
    while let Ok(bytes) = stream.blocking_read(4096) {
        len += bytes.len();
    }
    println!("{len} bytes");
    drop(OutgoingValue::new_outgoing_value());
    let id = |object: &str| ObjectId { container: name.to_owned(), object: object.to_owned() };
    blobstore::copy_object(&id("a/b"), &id("c")).expect("copy");
    blobstore::move_object(&id("a/b"), &id("d")).expect("move");
    println!("{:?}", container.list_objects().and_then(|names| names.read_stream_object_names(10)));
    container.delete_object("c").expect("delete");
    println!("{:?} {:?}", container.has_object("c"), blobstore::copy_object(&id("c"), &id("e")).is_err());
    println!("{:?}", blob(name, "d").map(|text| text.len()));
}

fn blob(name: &str, object: &str) -> Result<String, String> {
    let value = blobstore::get_container(name)?.get_data(object, 0, u64::MAX)?;
    let bytes = IncomingValue::incoming_value_consume_sync(value)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
