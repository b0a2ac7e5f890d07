//! HTTP instances that are used again, and that answer several requests at a time.

use std::time::Duration;

use dhow_runtime_contract::{ContainerSpec, HttpServing};
use futures_util::future::join_all;

use crate::rig::{Net, load, spec, start};

#[tokio::test]
async fn an_instance_is_used_again_if_the_pod_says_so() {
    for program in ["http", "http3"] {
        let net = Net::new();
        let spec = ContainerSpec { http: HttpServing { reuse: 3, concurrency: 1 }, ..spec(&[]) };
        let container = start(&load(program).await, spec, net.pod(2));
        container.running().await.unwrap();
        let count = async || net.request("10.64.0.2:8080", "/count", "").await.1;
        let mut counts = Vec::new();
        for _ in 0..4 {
            counts.push(count().await);
        }
        assert_eq!(counts, ["1", "2", "3", "1"], "{program}: after three requests there is another");
        assert!(container.usage().memory_bytes > 0, "{program}: it waits for the next one");
        assert_eq!(net.request("10.64.0.2:8080", "/panic", "").await.0, 500);
        assert_eq!(count().await, "1", "{program}: what trapped is not used again");
        container.kill();
        container.wait().await;
    }
}

#[tokio::test]
async fn instances_that_wait_leave_room_for_those_that_are_needed() {
    let net = Net::new();
    let http = HttpServing { reuse: 1000, concurrency: 1 };
    let spec = ContainerSpec { http, memory_limit: Some(5 << 20), ..spec(&[]) };
    let container = start(&load("http").await, spec, net.pod(2));
    container.running().await.unwrap();
    // Once one has been seen, it is known how much they need.
    assert_eq!(net.request("10.64.0.2:8080", "/hog?1", "").await.0, 200);
    // Two of them at a time have room: the others wait for those, not for memory that is never given back.
    for _ in 0..4 {
        for (status, text) in join_all((0..8).map(|_| net.request("10.64.0.2:8080", "/hog?1", ""))).await {
            assert_eq!((status, text.as_str()), (200, "1048576"));
        }
    }
    container.kill();
    container.wait().await;
}

#[tokio::test]
async fn an_instance_of_0_3_answers_several_requests_at_a_time_if_the_pod_says_so() {
    let net = Net::new();
    let handler = load("http3").await;
    let together = async |last, http| {
        let container = start(&handler, ContainerSpec { http, ..spec(&[]) }, net.pod(last));
        container.running().await.unwrap();
        let at = format!("10.64.0.{last}:8080");
        let answers = join_all((0..4).map(|_| net.request(&at, "/together", ""))).await;
        let failed = net.request(&at, "/panic", "").await;
        assert_eq!(failed.0, 500);
        let count = net.request(&at, "/count", "").await.1;
        assert!(http.concurrency == 1 || count == "1", "what trapped is not used again, but this is request {count}");
        container.stop(Duration::from_secs(10));
        assert_eq!(container.wait().await.code, 0);
        let mut counts: Vec<String> = answers.into_iter().map(|(_, count)| count).collect();
        counts.sort();
        counts
    };
    assert_eq!(together(2, HttpServing { reuse: 100, concurrency: 4 }).await, ["4"; 4]);
    assert_eq!(together(3, HttpServing { reuse: 100, concurrency: 1 }).await, ["1"; 4]);
    assert_eq!(together(4, HttpServing { reuse: 2, concurrency: 4 }).await, ["2"; 4]);
}
