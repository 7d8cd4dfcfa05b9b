//! `admit` over real sockets: in, refused with a status or a close code, held, and everything that ends a hold.

use std::fs;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use usher::config::{Config, PolicySource};
use usher::testkit::client::ConnectError;
use usher::testkit::http::{self, Answer};
use usher::testkit::{Client, RoomInfo, World};

use super::harness::{Balancer, SOON, eventually, monoliths, quick};

/// A balancer with one Monolith and this policy. All rooms that are asked for exist.
async fn with_policy(text: &str, change: impl FnOnce(&mut Config)) -> Balancer {
    let world = World::new();
    for room in ["movie", "broken"] {
        world.add(RoomInfo::permanent(room));
    }
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("policy.lua"), text).unwrap();
    let mut config = quick();
    config.policy.source = PolicySource::File(folder.path().join("policy.lua"));
    change(&mut config);
    Balancer::start_in(folder, monoliths(&world, &["ewr"]).await, config).await
}

/// A policy that always holds.
fn holding(delay: &str) -> String {
    format!("return {{ admit = function() return usher.hold({delay:?}) end }}")
}

const UPGRADE: [(&str, &str); 4] = [
    ("connection", "upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// The answer to an upgrade that is refused.
async fn refused(balancer: &Balancer, room: &str) -> Answer {
    http::request(balancer.addr, "GET", &format!("/api/room/{room}"), &UPGRADE, "").await.unwrap()
}

/// A client that asks for a room and says nothing more.
async fn asks(balancer: &Balancer, room: &str) -> TcpStream {
    let mut stream = TcpStream::connect(balancer.addr).await.unwrap();
    let headers: String = UPGRADE.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("GET /api/room/{room} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn held(balancer: &Balancer, count: f64) {
    eventually(&format!("{count} clients are held"), async || {
        (balancer.metric("usher_admit_held").await == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_is_a_status_before_the_upgrade_or_a_close_after_it() {
    let balancer = with_policy(
        r#"
        local says = {
          status = function() return usher.reject(403, "members only") end,
          busy = function() return usher.reject(429, "slowly") end,
          full = function() return usher.reject(503) end,
          close = function() return usher.reject(4321, "the house is full") end,
          later = function() return usher.reject(1013) end,
          broken = function() error("oops") end,
          movie = function() return true end,
        }
        return { admit = function(call) return says[call.room.name] and says[call.room.name]() end }"#,
        |_| {},
    )
    .await;
    for (room, status, message, retry) in [
        ("status", 403, "members only", None),
        ("busy", 429, "slowly", Some("1")),
        ("full", 503, "not admitted", Some("1")),
    ] {
        let answer = refused(&balancer, room).await;
        assert_eq!((answer.status, answer.header("retry-after")), (status, retry), "{room}");
        assert_eq!(answer.json()["error"]["message"], message, "{room}");
        assert_eq!(answer.json()["error"]["code"], "policy", "{room}");
    }
    for (room, code, reason) in [("close", 4321, "the house is full"), ("later", 1013, "try again later")] {
        let closed = Client::join(balancer.addr, room, "token").await.unwrap().closed(SOON).await.unwrap();
        assert_eq!((closed.code, closed.reason.as_str()), (code, reason));
    }
    // Nothing of them is left, and no Monolith has heard of them.
    eventually("no client is open", async || (balancer.metric("balancer_clients").await == 0.0).then_some(())).await;
    assert_eq!(balancer.monoliths[0].joins().len(), 0);
    balancer.join("movie", "token-1").await;
    // A policy that fails keeps nobody out.
    balancer.join("broken", "token-2").await;
    for (metric, value) in [
        ("usher_admit_admitted_total", 2.0),
        ("usher_admit_rejected_total", 5.0),
        ("usher_admit_fallbacks_total", 1.0),
        (r#"usher_policy_faults_total{hook="admit",kind="error"}"#, 1.0),
    ] {
        assert_eq!(balancer.metric(metric).await, value, "{metric}");
    }
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_client_is_asked_again_with_the_next_attempt() {
    let balancer = with_policy(
        r#"return { admit = function(call)
            if call.client.attempt < 3 then return usher.hold("150ms") end
        end }"#,
        |_| {},
    )
    .await;
    let started = Instant::now();
    let client = balancer.join("movie", "token").await;
    assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
    assert_eq!(balancer.metric("usher_admit_holds_total").await, 2.0);
    assert_eq!(balancer.metric("usher_admit_held").await, 0.0);
    drop(client);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_ends_with_503_when_its_time_is_over() {
    for delay in ["120ms", "30s"] {
        let balancer = with_policy(&holding(delay), |config| config.timeouts.hold = Duration::from_millis(300)).await;
        let started = Instant::now();
        let answer = refused(&balancer, "movie").await;
        let retry = answer.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
        assert!(answer.status == 503 && matches!(retry, Some(1..=4)), "{delay}: {} {retry:?}", answer.status);
        assert!(started.elapsed() >= Duration::from_millis(300), "{delay}");
        assert_eq!(balancer.metric("usher_admit_hold_timeouts_total").await, 1.0, "{delay}");
        assert_eq!(balancer.metric("balancer_clients").await, 0.0, "{delay}");
        balancer.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_clients_count_as_clients_and_one_that_goes_frees_its_place() {
    let balancer = with_policy(&holding("1m"), |config| {
        config.limits.clients = 1;
        config.timeouts.hold = Duration::from_secs(60);
    })
    .await;
    let first = asks(&balancer, "movie").await;
    held(&balancer, 1.0).await;
    assert_eq!(refused(&balancer, "movie").await.status, 503);
    assert_eq!(balancer.metric("usher_refused_clients_total").await, 1.0);
    drop(first);
    held(&balancer, 0.0).await;
    eventually("its place is free", async || (balancer.metric("balancer_clients").await == 0.0).then_some(())).await;
    let second = asks(&balancer, "movie").await;
    held(&balancer, 1.0).await;
    drop(second);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_a_hold() {
    let balancer = with_policy(&holding("1m"), |config| config.timeouts.hold = Duration::from_secs(60)).await;
    let addr = balancer.addr;
    let client = tokio::spawn(async move { Client::join(addr, "movie", "token").await.map(|_| ()) });
    held(&balancer, 1.0).await;
    balancer.finish().await;
    match client.await.unwrap() {
        Err(ConnectError::Refused { status: 503, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_without_the_hook_lets_everybody_in_who_is_held() {
    let balancer = with_policy(&holding("150ms"), |config| config.timeouts.hold = Duration::from_secs(60)).await;
    let addr = balancer.addr;
    let client = tokio::spawn(async move { Client::join(addr, "movie", "token").await });
    held(&balancer, 1.0).await;
    let answer = balancer.api("POST", "/_usher/v1/policy/use", r#"{"policy":"default"}"#).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut client = client.await.unwrap().unwrap();
    client.synced(SOON).await.unwrap();
    balancer.finish().await;
}
