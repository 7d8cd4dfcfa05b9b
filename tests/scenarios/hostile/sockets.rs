//! WebSockets of clients that break the protocol, compress what nobody agreed on, or only ever send.

use std::time::Instant;

use futures_util::future::join_all;
use usher::model::hello::LONGEST_TOKEN;
use usher::testkit::{RawFrame, RawSocket};

use super::*;

fn frame(fin: bool, rsv: u8, opcode: u8, payload: &[u8]) -> Vec<u8> {
    RawFrame { fin, rsv, opcode, payload: payload.to_vec() }.encode(true)
}

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(true, 0, 8, &[&code.to_be_bytes(), reason].concat())
}

/// The head of a masked text frame that says it is so long.
fn head(length: u64) -> Vec<u8> {
    [&[0x81, 0xff][..], &length.to_be_bytes(), b"mask"].concat()
}

#[tokio::test]
async fn every_violation_of_the_protocol_closes_its_own_socket_with_a_code() {
    let mut stage = Stage::start(|config| config.limits.message = 64 << 10).await;
    let text = br#"{"a":1}"#;
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("compressed", frame(true, 4, 1, &[0xaa, 0x56, 0x4a, 0x54, 0xb2, 0x32, 0xac, 0x05, 0x00]), 1002),
        ("compressed ping", frame(true, 4, 9, b"x"), 1002),
        ("compressed continuation", [frame(false, 0, 1, b"{"), frame(true, 4, 0, b"}")].concat(), 1002),
        ("all reserved bits", frame(true, 7, 1, text), 1002),
        ("opcode 7", frame(true, 0, 7, text), 1002),
        ("opcode 11", frame(true, 0, 11, b""), 1002),
        ("opcode 15", frame(true, 0, 15, b""), 1002),
        ("ping in pieces", frame(false, 0, 9, b"x"), 1002),
        ("close in pieces", frame(false, 0, 8, &1000_u16.to_be_bytes()), 1002),
        ("ping of 126 bytes", frame(true, 0, 9, &[b'x'; 126]), 1002),
        ("pong of 60 KiB", frame(true, 0, 10, &[b'x'; 60 << 10]), 1002),
        ("close of 126 bytes", close(1000, &[b'x'; 124]), 1002),
        ("close of one byte", frame(true, 0, 8, b"\x03"), 1002),
        ("close with 0", close(0, b""), 1002),
        ("close with 999", close(999, b""), 1002),
        ("close with 1004", close(1004, b""), 1002),
        ("close with 1005", close(1005, b""), 1002),
        ("close with 1006", close(1006, b""), 1002),
        ("close with 1015", close(1015, b""), 1002),
        ("close with 2999", close(2999, b""), 1002),
        ("close with 65535", close(65535, b""), 1002),
        ("close with a reason that is no text", close(1000, b"\xff\xfe"), 1007),
        ("continuation of nothing", frame(false, 0, 0, text), 1002),
        (
            "continuation of what is over",
            [frame(false, 0, 1, b"{"), frame(true, 0, 0, b"}"), frame(true, 0, 0, b"")].concat(),
            1002,
        ),
        ("text inside of text", [frame(false, 0, 1, b"{"), frame(true, 0, 1, text)].concat(), 1002),
        ("binary inside of text", [frame(false, 0, 1, b"{"), frame(true, 0, 2, text)].concat(), 1002),
        ("no text in pieces", [frame(false, 0, 1, b"{\"\xc3"), frame(true, 0, 0, b"\x28\"}")].concat(), 1007),
        ("text that ends within a character", frame(true, 0, 1, b"{\"\xf0\x9f"), 1007),
        ("a surrogate in text", frame(true, 0, 1, b"\xed\xa0\x80"), 1007),
        ("unmasked ping", RawFrame { opcode: 9, ..RawFrame::text("") }.encode(false), 1002),
        ("one byte too much", head((64 << 10) + 1), 1009),
        ("2^31", head(1 << 31), 1009),
        ("2^63", head(1 << 63), 1009),
        ("2^64 - 1", head(u64::MAX), 1009),
        (
            "pieces without end",
            [frame(false, 0, 1, b"{"), frame(false, 0, 0, &[b' '; 33 << 10]).repeat(3)].concat(),
            1009,
        ),
        ("too large and incomplete", [head(1 << 20), vec![b'x'; 5000]].concat(), 1009),
    ];
    for (what, bytes, code) in &cases {
        for joined in [true, false] {
            let mut socket = RawSocket::connect(stage.balancer.addr(), "/api/room/x", &[]).await.unwrap();
            if joined {
                socket.send(&RawFrame::text(r#"{"action":"auth","token":"t"}"#)).await.unwrap();
                holds(&stage.a, |state| state.members("x").len() == 1).await;
            }
            // Closed perhaps before everything is sent.
            let _ = socket.send_bytes(bytes).await;
            let got = socket.closed(SOON).await.unwrap();
            // Before its auth a whole message is judged as one.
            let alternatives = if joined { vec![*code] } else { vec![*code, 4004] };
            assert!(alternatives.contains(&got), "{what}, joined: {joined}: {got}");
            holds(&stage.a, |state| state.members("x").is_empty()).await;
        }
    }
    stage.unharmed().await;
    stage.end().await;
}

#[tokio::test]
async fn no_extension_and_no_protocol_is_ever_agreed_on() {
    let stage = Stage::start(|config| config.timeouts.auth = Duration::from_millis(300)).await;
    let offers = [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits; server_no_context_takeover",
        "permessage-deflate, permessage-deflate; client_max_window_bits=15, x-webkit-deflate-frame",
        "permessage-bzip2, foo, bar; baz=7",
    ];
    let requests = offers.map(|offer| {
        format!(
            "GET /api/room/x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Extensions: {offer}\r\nSec-WebSocket-Protocol: chat, superchat\r\n\r\n"
        )
    });
    let addr = stage.balancer.addr();
    for answer in join_all(requests.iter().map(|request| spoken(addr, request.as_bytes()))).await {
        let head = answer.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101"), "{head}");
        assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        assert!(!head.contains("extensions") && !head.contains("protocol:"), "{head}");
    }
    stage.end().await;
}

#[tokio::test]
async fn a_client_that_only_sends_pings_is_read_no_faster_than_it_reads() {
    const MOST: usize = 48 << 20;
    let mut stage = Stage::start(|config| config.heartbeat.interval = Duration::from_secs(60)).await;
    let mut socket = RawSocket::join(stage.balancer.addr(), "x", "flood").await.unwrap();
    holds(&stage.a, |state| state.members("x").len() == 1).await;
    let pings = frame(true, 0, 9, &[b'x'; 125]).repeat(1000);
    let mut sent = 0;
    // What it has to read piles up until the buffers of the kernel are full; from then on its pings are not read either.
    while let Ok(Ok(())) = timeout(Duration::from_secs(3), socket.send_bytes(&pings)).await {
        sent += pings.len();
        assert!(sent < MOST, "{sent} bytes of pings were taken from a client that reads nothing");
    }
    stage.unharmed().await;
    drop(socket);
    holds(&stage.a, |state| state.members("x").is_empty()).await;
    stage.end().await;
}

#[tokio::test]
async fn a_flood_of_frames_that_are_no_auth_puts_off_no_deadline() {
    let mut stage = Stage::start(|config| config.timeouts.auth = Duration::from_millis(400)).await;
    for bytes in [frame(true, 0, 10, b""), frame(true, 0, 10, &[b'x'; 125])] {
        let mut socket = RawSocket::connect(stage.balancer.addr(), "/api/room/x", &[]).await.unwrap();
        let (began, many) = (Instant::now(), bytes.repeat(20_000));
        while socket.send_bytes(&many).await.is_ok() {
            assert!(began.elapsed() < SOON, "still open");
        }
    }
    assert!(stage.a.joins().iter().all(|join| join.room != "x"));
    stage.unharmed().await;
    stage.end().await;
}

#[tokio::test]
async fn a_token_of_any_length_is_no_way_to_fill_the_memory() {
    let mut stage = Stage::start(|_| {}).await;
    let longest = "t".repeat(LONGEST_TOKEN);
    drop(stage.balancer.join("x", &longest).await);
    for length in [LONGEST_TOKEN + 1, 900 << 10] {
        let mut socket = RawSocket::join(stage.balancer.addr(), "x", &"t".repeat(length)).await.unwrap();
        assert_eq!(socket.closed(SOON).await.unwrap(), 4004);
    }
    assert!(stage.a.joins().iter().all(|join| join.token.len() <= LONGEST_TOKEN));
    stage.unharmed().await;
    stage.end().await;
}

#[tokio::test]
async fn noise_after_the_handshake_ends_its_own_socket_only() {
    let mut stage = Stage::start(|config| {
        config.limits.message = 16 << 10;
        config.timeouts.auth = Duration::from_millis(500);
    })
    .await;
    let mut random = random(4);
    for round in 0..60 {
        let mut socket = RawSocket::connect(stage.balancer.addr(), "/api/room/x", &[]).await.unwrap();
        if round % 2 == 0 {
            socket.send(&RawFrame::text(r#"{"action":"auth","token":"noise"}"#)).await.unwrap();
        }
        let noise: Vec<u8> = (0..1 + random.below(3000)).map(|_| random.below(256) as u8).collect();
        let _ = socket.send_bytes(&noise).await;
        // A close frame of one byte, so that a frame that is only incomplete is none any more.
        let _ = socket.send_bytes(&frame(true, 0, 8, b"x").repeat(4000)).await;
        let code = socket.closed(SOON).await.unwrap();
        assert!(code < 4000 || code == 4004, "{code}");
    }
    stage.unharmed().await;
    stage.end().await;
}
