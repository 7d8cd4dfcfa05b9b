//! The simulated clients, against the WebSocket that a simulated Monolith echoes on.

use std::time::Duration;

use super::client::{Closed, ConnectError, RecvError};
use super::reconnect::Policy;
use super::*;

const SOON: Duration = Duration::from_secs(10);
/// A hundred times as fast as the web client.
const FAST: Policy = Policy { scale: 0.01, seed: 3 };

async fn monolith() -> Monolith {
    Monolith::start(&World::new()).await.unwrap()
}

fn code(code: u16) -> Closed {
    Closed { code, reason: String::new() }
}

#[tokio::test]
async fn a_client_authenticates_and_collects_what_it_gets() {
    let monolith = monolith().await;
    let addr = monolith.http_addr();
    let mut client = Connect::path(addr, "/ws").header("fly-region", "cdg").open().await.unwrap();
    for number in 0..3 {
        client.send(&format!("{number}")).await;
    }
    assert_eq!(client.recv(SOON).await.unwrap().as_str(), "0");
    assert_eq!(client.recv_until(SOON, |text| text == "2").await.unwrap().as_str(), "2");
    assert!(matches!(client.recv(Duration::from_millis(20)).await, Err(RecvError::TimedOut(_))));
    assert_eq!(monolith.requests()[0].header("fly-region").next(), Some("cdg"));
    client.close(4321).await;
    assert_eq!(client.closed(SOON).await.unwrap(), code(4321));
    assert_eq!(client.recv(SOON).await, Err(RecvError::Closed(code(4321))));
}

#[tokio::test]
async fn a_client_says_why_it_could_not_connect() {
    let monolith = monolith().await;
    let addr = monolith.http_addr();
    monolith.kill().await;
    assert!(matches!(Client::join(addr, "room", "t").await, Err(ConnectError::Failed(_))));
    // A server that knows no WebSocket: an answer, but no upgrade.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let answer = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 3\r\ncontent-length: 4\r\n\r\nfull";
        tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.unwrap();
        // It reads on, so that the answer is not lost in a reset.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    });
    let Err(ConnectError::Refused { status, headers, .. }) = Client::join(addr, "room", "t").await else {
        panic!("it must be refused");
    };
    assert_eq!((status, headers.contains(&("retry-after".to_owned(), "3".to_owned()))), (503, true));
}

#[tokio::test]
async fn a_client_notices_how_its_connection_ends() {
    let monolith = monolith().await;
    let mut cut = Connect::path(monolith.http_addr(), "/ws").open().await.unwrap();
    let mut closed = Client::join(monolith.http_addr(), "room", "t").await.unwrap();
    assert_eq!(closed.closed(SOON).await.unwrap().code, 4001);
    assert!(monolith.requests()[1].target.ends_with("/api/room/room"));
    monolith.kill().await;
    assert_eq!(cut.closed(SOON).await.unwrap(), code(1006));
}

#[tokio::test]
async fn a_client_comes_back_below_4000_and_never_above() {
    let monolith = monolith().await;
    let back = ReconnectingClient::spawn_with(Connect::path(monolith.http_addr(), "/ws"), FAST);
    let gone = ReconnectingClient::spawn(monolith.http_addr(), "room", "t", FAST);
    let progress = gone.wait_for(|progress| progress.given_up, SOON).await.unwrap();
    assert_eq!((progress.codes.as_slice(), progress.connections), ([4001].as_slice(), 1));
    back.wait_for(|progress| progress.connected, SOON).await.unwrap();
    monolith.kill().await;
    back.wait_for(|progress| progress.refused > 0, SOON).await.unwrap();
    monolith.restart().await.unwrap();
    let progress = back.wait_for(|progress| progress.connections == 2, SOON).await.unwrap();
    assert_eq!((progress.codes.as_slice(), progress.given_up), ([1006].as_slice(), false));
    let targets: Vec<_> = monolith.requests().into_iter().map(|request| request.target).collect();
    assert_eq!(targets.last().unwrap(), "/ws?reconnect=true");
}

#[tokio::test]
async fn a_raw_socket_breaks_the_rules_it_is_told_to() {
    let monolith = monolith().await;
    let addr = monolith.http_addr();
    let mut raw = RawSocket::connect(addr, "/ws", &["x-test: 1"]).await.unwrap();
    raw.send_fragmented("in pieces", 4).await.unwrap();
    assert_eq!(raw.read(SOON).await.unwrap(), RawFrame::text("in pieces"));
    raw.send(&RawFrame::binary(&[0; 70_000])).await.unwrap();
    assert_eq!(raw.read(SOON).await.unwrap().payload.len(), 70_000);
    raw.send(&RawFrame { rsv: 2, ..RawFrame::text("x") }).await.unwrap();
    assert!(matches!(raw.closed(SOON).await.unwrap(), 1002 | 1006));
    let mut open = RawSocket::connect(addr, "/ws", &[]).await.unwrap();
    open.closed(Duration::from_millis(20)).await.unwrap_err();
    open.half_close().await.unwrap();
    assert_eq!(open.closed(SOON).await.unwrap(), 1006);
    let mut joined = RawSocket::join(addr, "room", "t").await.unwrap();
    assert_eq!(joined.closed(SOON).await.unwrap(), 4001);
}
