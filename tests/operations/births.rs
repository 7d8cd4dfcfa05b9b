//! Answers to creations in shapes that the simulated Monolith does not give: in chunks, and longer than anybody reads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use usher::testkit::http;
use usher::testkit::monolith::InitStyle;
use usher::testkit::{Monolith, World};

use super::harness::{Balancer, quick};

/// An HTTP server that answers each request with these pieces, a flush behind each, and closes.
async fn answering(pieces: Vec<String>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let pieces = Arc::new(pieces);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, pieces.clone()));
        }
    });
    addr
}

async fn answer(mut stream: TcpStream, pieces: Arc<Vec<String>>) {
    stream.set_nodelay(true).unwrap();
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    for piece in pieces.iter() {
        stream.write_all(piece.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    stream.shutdown().await.unwrap();
}

/// A balancer with one Monolith, whose link says nothing more and whose HTTP is `pieces`.
async fn balancer(pieces: Vec<String>) -> Balancer {
    let port = answering(pieces).await.port();
    let init = json!({"type": "init", "payload": {"port": port, "region": "ewr", "id": "m1"}}).to_string();
    let world = World::new();
    let monolith = Monolith::builder(&world).id("m1").region("ewr").init(InitStyle::Text(init)).start().await.unwrap();
    let mut config = quick();
    // Nothing may depend on a choice running out.
    config.timeouts.load = Duration::from_secs(120);
    let balancer = Balancer::start(vec![monolith], config).await;
    balancer.monoliths[0].stall();
    balancer
}

fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

const HEAD: &str =
    "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_birth_that_is_told_in_chunks_is_pinned() {
    let pieces = [HEAD.into(), chunk(r#"{"success":true,"#), chunk(r#""room":"Born-"#), chunk(r#"in-pieces"}"#)];
    let balancer = balancer(pieces.into_iter().chain([chunk("")]).collect()).await;
    let answer = http::post(balancer.addr, "/api/room/generate", "{}").await.unwrap();
    assert_eq!((answer.status, answer.json()["room"].as_str()), (201, Some("Born-in-pieces")));
    assert_eq!(balancer.owner("born-in-pieces").await, "m1");
    balancer.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_birth_whose_answer_is_too_long_to_read_is_passed_on_whole() {
    // More than the 64 KiB that are read for the name, which stands in front of them.
    let filler = "x".repeat(40 << 10);
    let start = format!(r#"{{"room":"long","filler":["{filler}","#);
    let rest = format!(r#""{filler}"]}}"#);
    let whole = format!("{start}{rest}{rest}");
    let pieces = vec![HEAD.into(), chunk(&start), chunk(&rest), chunk(&rest), chunk("")];
    let balancer = balancer(pieces).await;
    // The name that was asked for is known without the answer.
    let asked = http::post(balancer.addr, "/api/room/create", r#"{"name":"Asked"}"#).await.unwrap();
    assert_eq!((asked.status, asked.text() == whole), (201, true));
    assert_eq!(balancer.owner("asked").await, "m1");
    let generated = http::post(balancer.addr, "/api/room/generate", "{}").await.unwrap();
    assert_eq!((generated.status, generated.text().len(), generated.text() == whole), (201, whole.len(), true));
    // Nobody can say what it is called, so nothing stays behind that would count for ever.
    super::harness::eventually("nothing is pending for it", async || {
        let monoliths = balancer.document("/_usher/v1/monoliths").await;
        (monoliths["monoliths"][0]["pending"] == 1).then_some(())
    })
    .await;
    balancer.app.stop().await;
}
