//! Clients that misbehave or ask for too much: each one alone bears the consequence, with the code that the web client
//! understands.

use std::time::Duration;

use serde_json::Value;
use usher::testkit::client::ConnectError;
use usher::testkit::{Client, Connect, Monolith, RawFrame, RawSocket, World};

use crate::harness::*;

async fn one(change: impl FnOnce(&mut usher::config::Config)) -> (Monolith, Balancer) {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start_with(&[&a], change).await;
    (a, balancer)
}

/// The status of a refused upgrade, and whether it says when to come back: after one to four seconds, drawn at random.
async fn refusal(balancer: &Balancer) -> (u16, bool) {
    match Connect::room(balancer.addr(), "x", "t").open().await {
        Err(ConnectError::Refused { status, headers, .. }) => {
            let retry = headers.into_iter().find(|(name, _)| name == "retry-after");
            (status, retry.is_some_and(|(_, value)| matches!(value.parse(), Ok(1..=4))))
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("upgraded"),
    }
}

#[tokio::test]
async fn without_a_monolith_the_upgrade_is_refused() {
    let world = World::new();
    let a = monolith(&world).start().await.unwrap();
    a.refuse(true);
    let balancer = Balancer::start_unlinked(&[&a], |config| config.timeouts.hold = Duration::from_millis(300)).await;
    assert_eq!(refusal(&balancer).await, (503, true));
}

#[tokio::test]
async fn beyond_limits_clients_the_upgrade_is_refused() {
    let (a, balancer) = one(|config| config.limits.clients = 3).await;
    let mut clients = Vec::new();
    for n in 0..3 {
        clients.push(balancer.join("x", &format!("t{n}")).await);
    }
    assert_eq!(refusal(&balancer).await, (503, true));
    clients.pop();
    let another = eventually("there is room again", async || Client::join(balancer.addr(), "x", "t").await).await;
    drop((clients, another));
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn the_first_frame_is_an_auth_with_a_token_or_the_last() {
    let (a, balancer) = one(|config| config.timeouts.auth = Duration::from_millis(300)).await;
    let cases = [
        (RawFrame::text(r#"{"action":"auth"}"#), 4004),
        (RawFrame::text(r#"{"action":"auth","token":""}"#), 4004),
        (RawFrame::text(r#"{"action":"auth","token":null}"#), 4004),
        (RawFrame::text(r#"{"action":"auth","token":17}"#), 4004),
        (RawFrame::text(r#"{"action":"req","request":{"type":1}}"#), 4004),
        (RawFrame::text("{}"), 4004),
        (RawFrame::text("[]"), 4004),
        (RawFrame::text("null"), 4004),
        (RawFrame::text("no json"), 1002),
        (RawFrame::text(""), 1002),
        (RawFrame::text(r#"{"action":"auth","token":"t"} more"#), 1002),
        (RawFrame::binary(br#"{"action":"auth","token":"t"}"#), 1003),
    ];
    for (frame, code) in cases {
        let mut socket = RawSocket::connect(balancer.addr(), "/api/room/x", &[]).await.unwrap();
        socket.send(&frame).await.unwrap();
        assert_eq!(socket.closed(SOON).await.unwrap(), code, "{:?}", String::from_utf8_lossy(&frame.payload));
    }
    // Nothing at all; a ping is no auth either.
    let mut socket = RawSocket::connect(balancer.addr(), "/api/room/x", &[]).await.unwrap();
    socket.send(&RawFrame { opcode: 9, ..RawFrame::text("") }).await.unwrap();
    assert_eq!(socket.closed(SOON).await.unwrap(), 4004);
    assert!(a.joins().is_empty());
    // An auth in pieces is an auth.
    let mut socket = RawSocket::connect(balancer.addr(), "/api/room/x", &[]).await.unwrap();
    socket.send_fragmented(r#"{"token":"t","action":"auth"}"#, 4).await.unwrap();
    holds(&a, |state| state.members("x").len() == 1).await;
    drop(socket);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn names_that_are_no_rooms_close_with_4001() {
    let (a, balancer) = one(|_| {}).await;
    let long = "x".repeat(65);
    for name in ["list", "create", "generate", "LIST", "a%20b", "caf%C3%A9", "a.b", "a~b", long.as_str()] {
        let mut socket = RawSocket::connect(balancer.addr(), &format!("/api/room/{name}"), &[]).await.unwrap();
        assert_eq!(socket.closed(SOON).await.unwrap(), 4001, "{name}");
    }
    assert!(a.joins().is_empty());
    // The longest name is one; nobody has this room.
    let mut client = Client::join(balancer.addr(), &long[1..], "t").await.unwrap();
    assert_eq!(client.closed(SOON).await.unwrap().code, 4002);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn f30_a_broken_frame_closes_its_own_connection_with_a_code() {
    let (a, balancer) = one(|config| config.limits.message = 64 << 10).await;
    let mut witness = balancer.join("x", "witness").await;
    let text = |rsv| RawFrame { rsv, ..RawFrame::text(r#"{"a":1}"#) };
    let cases: [(&str, Vec<u8>, u16); 8] = [
        ("rsv1", text(4).encode(true), 1002),
        ("rsv2", text(2).encode(true), 1002),
        ("rsv3", text(1).encode(true), 1002),
        ("opcode 3", RawFrame { opcode: 3, ..RawFrame::text("") }.encode(true), 1002),
        ("unmasked", RawFrame::text("{}").encode(false), 1002),
        ("stray continuation", RawFrame { opcode: 0, ..RawFrame::text("{}") }.encode(true), 1002),
        ("no utf-8", RawFrame { payload: vec![0xff, 0xfe], ..RawFrame::text("") }.encode(true), 1007),
        ("too large", RawFrame { payload: vec![b' '; 65 << 10], ..RawFrame::text("") }.encode(true), 1009),
    ];
    for (what, bytes, code) in cases {
        let mut socket = RawSocket::join(balancer.addr(), "x", "broken").await.unwrap();
        holds(&a, |state| state.members("x").len() == 2).await;
        socket.send_bytes(&bytes).await.unwrap();
        assert_eq!(socket.closed(SOON).await.unwrap(), code, "{what}");
        holds(&a, |state| state.members("x").len() == 1).await;
    }
    // The head alone of a message of 64 MiB is enough to know.
    let mut socket = RawSocket::join(balancer.addr(), "x", "huge").await.unwrap();
    holds(&a, |state| state.members("x").len() == 2).await;
    let mut head = vec![0x81, 0xff];
    head.extend((64_u64 << 20).to_be_bytes());
    head.extend([1, 2, 3, 4]);
    socket.send_bytes(&head).await.unwrap();
    assert_eq!(socket.closed(SOON).await.unwrap(), 1009);
    // Many fragments that are too much together.
    let mut socket = RawSocket::join(balancer.addr(), "x", "pieces").await.unwrap();
    let long = format!(r#"{{"text":"{}"}}"#, "x".repeat(100 << 10));
    // The other side may close before the last piece.
    let _ = socket.send_fragmented(&long, 8 << 10).await;
    assert_eq!(socket.closed(SOON).await.unwrap(), 1009);
    a.say("x", None, r#"{"still":"here"}"#);
    witness.recv_until(SOON, |text| text == r#"{"still":"here"}"#).await.unwrap();
    drop(witness);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn f51_only_objects_reach_the_monolith() {
    let (a, balancer) = one(|_| {}).await;
    let mut client = balancer.join("x", "t").await;
    let odd = ["null", " null ", "1", "-0.5", "true", "\"text\"", "[]", "[{}]", "", "{", "{}}", "nul", "{\"a\":}"];
    for text in odd {
        client.send(text).await;
        client.send_binary(text.as_bytes().to_vec()).await;
    }
    client.send_binary(vec![0xff, 0x00]).await;
    let objects = [r#"{}"#, r#" { "spaces" : 1 } "#, r#"{"a":[null,1.50,"\u00e9"]}"#];
    for text in objects {
        client.send(text).await;
    }
    client.send_binary(br#"{"binary":true}"#.to_vec()).await;
    client.send(r#"{"action":"echo","end":true}"#).await;
    client.recv_until(SOON, |text| text.contains(r#""end":true"#)).await.unwrap();
    let forwarded: Vec<String> = a
        .frames()
        .iter()
        .filter(|frame| frame.text.contains("client_msg"))
        .map(|frame| {
            let value: Value = serde_json::from_str(&frame.text).unwrap();
            assert!(value["payload"]["payload"].is_object(), "{}", frame.text);
            frame.text.to_string()
        })
        .collect();
    assert_eq!(forwarded.len(), 5, "{forwarded:?}");
    for (frame, text) in forwarded.iter().zip(objects) {
        assert!(frame.contains(text.trim()), "{frame} holds {text} byte for byte");
    }
    assert_eq!(balancer.metric("usher_client_dropped_frames_total").await, (2 * odd.len() + 1) as f64);
    assert_eq!(a.died(), None);
    // An object with a null inside goes on; what becomes of it is the Monolith's affair.
    client.send(r#"{"action":"req","request":null}"#).await;
    assert_eq!(client.closed(SOON).await.unwrap().code, 4000);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn tokens_reach_the_monolith_as_they_are() {
    let (a, balancer) = one(|_| {}).await;
    for token in ["plain", "with \"quotes\" and \\", "ünïcödé\u{1f600}", "a\nb\u{0}c"] {
        drop(balancer.join("x", token).await);
        assert_eq!(a.joins().last().unwrap().token, token);
    }
    nobody_left(&balancer, &[&a]).await;
}
