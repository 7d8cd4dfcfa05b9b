//! A graceful stop: clients are told to come back, links are closed, requests end.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use usher::testkit::{Connect, RoomInfo, http};

use super::harness::{Balancer, SOON, eventually, monoliths, quick};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f59_clients_are_closed_with_1001_and_links_closed() {
    let (balancer, world) = Balancer::simple(&["ewr", "cdg"]).await;
    let mut clients = Vec::new();
    for number in 0..45 {
        let room = format!("room-{}", number % 15);
        world.add(RoomInfo::permanent(room.as_str()));
        clients.push(balancer.join(&room, &format!("token-{number}")).await);
    }
    // One that has not said who it is, and one that only listens.
    let silent = Connect::path(balancer.addr, "/api/room/room-1").open().await.unwrap();
    clients.push(silent);
    eventually("all are counted", async || (balancer.metric("balancer_clients").await == 46.0).then_some(())).await;
    let closed = tokio::spawn(async move {
        let mut codes = Vec::new();
        for client in &mut clients {
            codes.push(client.closed(SOON).await.unwrap().code);
        }
        codes
    });
    let addr = balancer.addr;
    balancer.finish().await;
    assert_eq!(closed.await.unwrap(), vec![1001; 46]);
    assert!(TcpStream::connect(addr).await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_under_way_ends_and_an_idle_connection_does_not_delay() {
    let (balancer, _world) = Balancer::simple(&["ewr"]).await;
    let addr = balancer.addr;
    let mut idle = TcpStream::connect(addr).await.unwrap();
    idle.write_all(b"GET /api/status HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let slow = tokio::spawn(async move { http::get(addr, "/slow/600").await });
    balancer.monoliths[0].wait_for(|state| state.http_count() == 1, SOON).await.unwrap();
    let before = std::time::Instant::now();
    balancer.finish().await;
    assert!(before.elapsed() < Duration::from_secs(20));
    assert_eq!(slow.await.unwrap().unwrap().status, 200);
    let mut rest = Vec::new();
    // The end of the connection, with or without an error, is what counts.
    let _ = tokio::time::timeout(SOON, idle.read_to_end(&mut rest)).await.expect("the idle connection was closed");
}

/// With a socket of its own, the admin API tells until the end that the others should go elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_is_lost_while_clients_are_being_closed() {
    let world = usher::testkit::World::new();
    let mut config = quick();
    config.admin_listen = Some("127.0.0.1:0".parse().unwrap());
    config.timeouts.shutdown = Duration::from_secs(3);
    let balancer = Balancer::start(monoliths(&world, &["ewr"]).await, config).await;
    let mut clients = Vec::new();
    for number in 0..20 {
        world.add(RoomInfo::permanent(format!("room-{number}")));
        clients.push(balancer.join(&format!("room-{number}"), "token").await);
    }
    let admin = balancer.admin;
    let stop = tokio::spawn(balancer.finish());
    let ready = eventually("readiness says so", async || {
        let ready = http::get(admin, "/_usher/ready").await.expect("the admin API answers to the end");
        (ready.status == 503).then_some(ready.json())
    })
    .await;
    assert!(ready["reasons"][0].as_str().unwrap().contains("stopping"), "{ready}");
    for client in &mut clients {
        assert_eq!(client.closed(SOON).await.unwrap().code, 1001);
    }
    stop.await.unwrap();
}
