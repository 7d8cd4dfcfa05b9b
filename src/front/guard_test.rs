//! The guard in front of hyper: what both make of the same bytes.

use std::convert::Infallible;
use std::sync::Mutex;

use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

impl Reset for DuplexStream {
    fn reset_on_close(&self) {}
}

const REQUESTS: [&str; 5] = [
    "GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\nX: \r\n",
    "POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1c\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n\r\n0\r\n\r\n",
    "POST /d HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n",
    "HEAD /e HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 0\r\n\r\n",
];

/// Lines that somebody may put into a head to move its end.
const LINES: [&str; 8] = [
    "Content-Length: 0\r\n",
    "Content-Length: 30\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding: x,chunked\r\n",
    "X: y\n",
    " Content-Length: 3\r\n",
    "Expect: 100-continue\r\n",
];

/// The heads that the scanner sees complete, and whether it found a violation.
fn heads(bytes: &[u8]) -> (usize, bool) {
    let mut framing = Framing::new();
    let mut heads = 0;
    for byte in bytes {
        let before = framing.in_head();
        if framing.scan(&[*byte]).is_err() {
            return (heads, true);
        }
        // A CR alone may be the start of a blank line between requests, which is no head.
        heads += usize::from(before && !framing.in_head() && *byte == b'\n');
    }
    (heads, false)
}

/// What hyper hands to a service behind the guard, and everything that it answers.
async fn behind_the_guard(bytes: Vec<u8>, piece: usize) -> (Vec<String>, String) {
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let activity = Arc::new(Activity::new());
    let guarded = Guarded::new(server, (), &[], false, activity);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let log = Arc::clone(&log);
        async move {
            let line = format!("{} {}", request.method(), request.uri());
            log.lock().unwrap().push(line);
            let _ = request.into_body().collect().await;
            Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(guarded), service);
    let connection = tokio::spawn(connection.with_upgrades());
    for piece in bytes.chunks(piece) {
        if client.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    // The end of the stream must not come before the answers: hyper would take it for a client that went away.
    let mut answers = Vec::new();
    let quiet = async {
        let mut buffer = [0; 4096];
        while let Ok(Ok(read)) =
            tokio::time::timeout(std::time::Duration::from_millis(5), client.read(&mut buffer)).await
            && read > 0
        {
            answers.extend_from_slice(&buffer[..read]);
        }
    };
    quiet.await;
    drop(client);
    let _ = connection.await;
    let seen = seen.lock().unwrap().clone();
    (seen, String::from_utf8_lossy(&answers).into_owned())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Nothing that hyper takes for a request is hidden from the guard, however the bytes are bent.
    #[test]
    fn hyper_never_sees_a_request_that_the_guard_did_not(
        which in prop::collection::vec(0..REQUESTS.len(), 1..4),
        line in prop::option::of((any::<prop::sample::Index>(), 0..LINES.len())),
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(&b"\r\n :;,0a\0\t"[..])), 0..3),
        piece in 1usize..200,
    ) {
        let mut bytes: Vec<u8> = which.iter().flat_map(|which| REQUESTS[*which].bytes()).collect();
        if let Some((at, line)) = line {
            let ends: Vec<usize> =
                bytes.windows(2).enumerate().filter(|(_, two)| two == b"\r\n").map(|(at, _)| at + 2).collect();
            let at = *at.get(&ends);
            bytes.splice(at..at, LINES[line].bytes());
        }
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (seen, answers) = runtime.block_on(behind_the_guard(bytes.clone(), piece));
        let (heads, violated) = heads(&bytes);
        let refused = answers.contains("HTTP/1.1 4");
        prop_assert!(seen.len() <= heads, "{seen:?}, but {heads} heads in {}", bytes.escape_ascii());
        // After a request of HTTP/1.0 hyper is done, whatever follows.
        let ends_early = bytes.windows(8).any(|eight| eight == b"HTTP/1.0");
        if !violated && !refused && !ends_early {
            prop_assert_eq!(seen.len(), heads, "{} -> {}", bytes.escape_ascii(), answers);
        }
    }
}
