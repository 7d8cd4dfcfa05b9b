//! Client connections over real sockets: protocols, refusals, time-outs, bounds, upgrades, the stop.

use http_body_util::{BodyExt, Empty};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::testing::*;
use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const LAST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

fn statuses(answers: &str) -> Vec<&str> {
    answers.match_indices("HTTP/1.1 ").map(|(at, _)| &answers[at + 9..at + 12]).collect()
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let target = monolith(|_, mut stream| async move {
        while let head = read_head(&mut stream).await
            && !head.is_empty()
        {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let running = proxy(target, timeouts(), settings());
    let request = |at: usize| format!("GET /n{at}. HTTP/1.1\r\nHost: a\r\n\r\n");
    let requests: String = (0..20).map(request).collect();
    let answers = running.exchange(format!("{requests}{}", String::from_utf8_lossy(LAST)).as_bytes()).await;
    let places: Vec<_> = (0..20).map(|at| answers.find(&format!("/n{at}.")).unwrap()).collect();
    assert!(places.is_sorted());
}

#[tokio::test]
async fn a_bad_request_is_answered_400_after_the_good_ones_before_it_and_ends_the_connection() {
    let running = proxy(answering(OK).await, timeouts(), settings());
    for bad in [
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        "\u{1}\u{2}\u{3}",
    ] {
        let handled = || running.proxy.handled.load(Ordering::Relaxed);
        let before = handled();
        assert_eq!(statuses(&running.exchange(bad.as_bytes()).await), ["400"], "{}", bad.escape_debug());
        assert_eq!(handled(), before, "{} reached the handler", bad.escape_debug());
        let mut all = [GET, GET].concat();
        all.extend_from_slice(bad.as_bytes());
        all.extend_from_slice(GET);
        assert_eq!(statuses(&running.exchange(&all).await), ["200", "200", "400"], "{}", bad.escape_debug());
        assert_eq!(handled(), before + 2);
        // In pieces, too.
        let mut client = running.client().await;
        for byte in bad.bytes() {
            let _ = client.write_all(&[byte]).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(statuses(&read_all(&mut client).await.0), ["400"], "{}", bad.escape_debug());
    }
}

#[tokio::test]
async fn a_malformed_chunk_ends_request_and_connection() {
    for chunks in ["zz\r\n", "5\r\nhelloX\r\n0\r\n\r\n", "5\nhello", "0\r\nContent-Length: 3\r\n\r\n"] {
        let target = monolith(|_, mut stream| async move {
            read_head(&mut stream).await;
            let (all, _) = read_all(&mut stream).await;
            assert!(!all.ends_with("0\r\n\r\n"), "{all} looks complete");
        })
        .await;
        let running = proxy(target, timeouts(), settings());
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        let answer = running.exchange(&[request.as_bytes(), GET].concat()).await;
        assert_eq!(statuses(&answer), ["400"], "{}", chunks.escape_debug());
    }
}

#[tokio::test]
async fn a_head_over_the_limit_is_431_and_the_client_can_read_it() {
    let running = proxy(answering(OK).await, timeouts(), settings());
    let fits = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: {}\r\n\r\n", "x".repeat(7 << 10));
    assert_eq!(statuses(&running.exchange(fits.as_bytes()).await), ["200"]);
    for size in [9 << 10, 100 << 10] {
        let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(size));
        let mut client = running.client().await;
        client.write_all(large.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(statuses(&read_all(&mut client).await.0), ["431"], "{size}");
    }
}

#[tokio::test]
async fn an_upload_that_nobody_wants_does_not_destroy_the_answer() {
    let target = answering(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno").await;
    let running = proxy(target, timeouts(), settings());
    let mut client = running.client().await;
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n").await.unwrap();
    client.write_all(&vec![b'x'; 60_000]).await.unwrap();
    let mut answer = read_head(&mut client).await;
    answer.push_str(&read_all(&mut client).await.0);
    assert_eq!(statuses(&answer), ["403"], "{answer}");
}

#[tokio::test]
async fn prior_knowledge_http2_works_end_to_end() {
    let target = monolith(|_, mut stream| async move {
        while let head = read_head(&mut stream).await
            && !head.is_empty()
        {
            assert!(head.contains("\r\nhost: example.org:81\r\n") && head.contains("GET /x?y HTTP/1.1"), "{head}");
            let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\nKeep-Alive: timeout=5\r\n\r\n\
                          2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let running = proxy(target, timeouts(), settings());
    let stream = TokioIo::new(running.client().await);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, stream).await.unwrap();
    let client = tokio::spawn(connection);
    let requests = (0..50).map(|_| {
        let mut sender = sender.clone();
        async move {
            let request = Request::get("http://example.org:81/x?y").body(Empty::<bytes::Bytes>::new()).unwrap();
            let response = soon(sender.send_request(request)).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = soon(response.into_body().collect()).await.unwrap();
            assert_eq!(body.trailers().unwrap()["x-sum"], "1");
            assert_eq!(body.to_bytes(), "ok");
        }
    });
    futures_util::future::join_all(requests).await;
    drop(sender);
    soon(client).await.unwrap().unwrap();
}

#[tokio::test]
async fn something_like_the_preface_is_a_bad_request() {
    let running = proxy(answering(OK).await, timeouts(), settings());
    for preface in ["PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "PRI * HTTP/1.1\nHost: a\r\n\r\n"] {
        assert_eq!(statuses(&running.exchange(preface.as_bytes()).await), ["400"], "{}", preface.escape_debug());
    }
}

#[tokio::test]
async fn a_slow_head_is_cut_off_and_an_idle_connection_closed() {
    let fast = Settings { head: Duration::from_millis(150), keep_alive: Duration::from_millis(400), ..settings() };
    let running = proxy(answering(OK).await, timeouts(), fast);
    // Nothing at all.
    let mut silent = running.client().await;
    assert_eq!(read_all(&mut silent).await.0, "");
    // A request, then silence.
    let mut idle = running.client().await;
    idle.write_all(GET).await.unwrap();
    assert_eq!(statuses(&read_all(&mut idle).await.0), ["200"]);
    // A head that never ends, a byte at a time: what arrives in between must not prolong it.
    for start in [&b""[..], GET] {
        let mut slow = running.client().await;
        slow.write_all(start).await.unwrap();
        let cut = soon(async {
            for byte in b"GET / HTTP/1.1\r\nHost: a\r\nX-A: ".iter().chain(std::iter::repeat(&b'x')) {
                if slow.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        cut.await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_dropped() {
    let target = monolith(|_, mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n").await;
        while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
    })
    .await;
    let running = proxy(target, timeouts(), Settings { stall: Duration::from_millis(300), ..settings() });
    let mut client = running.client().await;
    client.write_all(GET).await.unwrap();
    until(|| running.in_flight() == 1).await;
    until(|| running.in_flight() == 0).await;
}

#[tokio::test]
async fn over_the_bound_connections_are_closed_at_once() {
    let running = proxy(answering(OK).await, timeouts(), Settings { connections: 2, ..settings() });
    let mut first = running.client().await;
    let mut second = running.client().await;
    for client in [&mut first, &mut second] {
        client.write_all(GET).await.unwrap();
        assert!(read_head(client).await.starts_with("HTTP/1.1 200 "));
        read_exact(client, 2).await;
    }
    assert_eq!(running.exchange(b"").await, "");
    drop(first);
    // Its place becomes free once the close is seen.
    soon(async {
        while !running.exchange(LAST).await.starts_with("HTTP/1.1 200 ") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_stop_lets_requests_finish_and_closes_what_is_idle() {
    let (go, gate) = tokio::sync::watch::channel(false);
    let target = monolith(move |_, mut stream| {
        let mut gate = gate.clone();
        async move {
            read_head(&mut stream).await;
            gate.wait_for(|open| *open).await.unwrap();
            stream.write_all(OK).await.unwrap();
        }
    })
    .await;
    let running = proxy(target, timeouts(), settings());
    let mut idle = running.client().await;
    let mut busy = running.client().await;
    busy.write_all(GET).await.unwrap();
    until(|| running.in_flight() == 1).await;
    running.stop.trigger();
    assert_eq!(read_all(&mut idle).await.0, "");
    soon(async {
        while TcpStream::connect(running.addr).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    go.send(true).unwrap();
    let answer = read_all(&mut busy).await.0;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
    assert_eq!(soon(running.task).await.unwrap(), 0);
}

#[tokio::test]
async fn a_stop_ends_in_time_whatever_hangs() {
    let target = monolith(|_, stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let listener = Listener::bind_loopback().unwrap();
    let addr = listener.addr();
    let other = proxy(target, timeouts(), settings());
    let stop = Stop::new();
    let grace = Duration::from_millis(100);
    let task = tokio::spawn(listener.serve(
        Arc::clone(&other.proxy),
        Bounds::Fixed(settings()),
        threads(),
        stop.clone(),
        grace,
    ));
    let mut client = TcpStream::connect(addr).await.unwrap();
    client.write_all(GET).await.unwrap();
    until(|| other.in_flight() == 1).await;
    stop.trigger();
    assert_eq!(soon(task).await.unwrap(), 1);
    assert_eq!(read_all(&mut client).await.0, "");
    assert_eq!(other.in_flight(), 0);
}

const UPGRADE: &[u8] = b"GET /other HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo\r\n\r\n";

#[tokio::test]
async fn an_upgrade_is_tunnelled_both_ways_until_either_end_closes() {
    let target = monolith(|_, mut stream| async move {
        let head = read_head(&mut stream).await;
        assert!(head.contains("connection: upgrade\r\n") && head.contains("upgrade: echo\r\n"), "{head}");
        let early =
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\nX-Key: 1\r\n\r\nearly";
        stream.write_all(early).await.unwrap();
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await.unwrap();
        to.write_all(b"bye").await.unwrap();
    })
    .await;
    let running = proxy(target, timeouts(), settings());
    let mut client = running.client().await;
    client.write_all(UPGRADE).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: echo") && head.contains("x-key: 1"), "{head}");
    assert_eq!(read_exact(&mut client, 5).await, b"early");
    // Bytes that no HTTP parser would let pass.
    let binary: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let (mut from, mut to) = client.into_split();
    let write = tokio::spawn(async move {
        to.write_all(&(0..=255).cycle().take(100_000).collect::<Vec<u8>>()).await.unwrap();
        // Half of the connection closes; the other half still works.
        to.shutdown().await.unwrap();
        to
    });
    let mut back = Vec::new();
    soon(from.read_to_end(&mut back)).await.unwrap();
    assert_eq!(back.len(), 100_003);
    assert!(back.starts_with(&binary) && back.ends_with(b"bye"));
    drop(soon(write).await.unwrap());
    until(|| running.in_flight() == 0).await;
}

#[tokio::test]
async fn an_upgrade_that_is_refused_leaves_a_connection_for_requests() {
    let running =
        proxy(answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno").await, timeouts(), settings());
    let mut client = running.client().await;
    for request in [UPGRADE, GET, UPGRADE] {
        client.write_all(request).await.unwrap();
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 404 "));
        assert_eq!(read_exact(&mut client, 2).await, b"no");
    }
    // The guard still watches.
    client.write_all(b"GET / HTTP/1.1\nHost: a\r\n\r\n").await.unwrap();
    assert_eq!(statuses(&read_all(&mut client).await.0), ["400"]);
    until(|| running.in_flight() == 0).await;
}

#[tokio::test]
async fn connection_upgrade_alone_is_a_plain_request() {
    let running = proxy(answering(OK).await, timeouts(), settings());
    let mut client = running.client().await;
    for _ in 0..3 {
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n").await.unwrap();
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(read_exact(&mut client, 2).await, b"ok");
    }
    assert_eq!(running.proxy.pool.idle(), 1);
}

/// Answers an upgrade itself and hands the stream over.
struct Taker(tokio::sync::mpsc::Sender<(TcpStream, bytes::Bytes, Slot)>);

impl Handler for Taker {
    fn is_probe(&self, _: &Request<Incoming>) -> bool {
        false
    }

    fn is_newcomer(&self, _: &Request<Incoming>) -> bool {
        true
    }

    async fn handle(&self, mut request: Request<Incoming>, _: &Peer) -> Response<Body> {
        let upgrade = hyper::upgrade::on(&mut request);
        let to = self.0.clone();
        tokio::spawn(async move {
            if let Ok(parts) = into_tcp(upgrade.await.unwrap()) {
                to.send(parts).await.unwrap();
            }
        });
        let answer = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "echo");
        answer.body(Body::Empty).unwrap()
    }
}

#[tokio::test]
async fn an_upgraded_connection_is_handed_out_as_plain_tcp_and_keeps_its_place() {
    let listener = Listener::bind_loopback().unwrap();
    let addr = listener.addr();
    let (to, mut taken) = tokio::sync::mpsc::channel(1);
    let stop = Stop::new();
    let settings = Settings { connections: 1, ..settings() };
    let (taker, grace) = (Arc::new(Taker(to)), Duration::from_secs(5));
    let task = tokio::spawn(listener.serve(taker, Bounds::Fixed(settings), threads(), stop.clone(), grace));
    let mut client = TcpStream::connect(addr).await.unwrap();
    client.write_all(UPGRADE).await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 101 "));
    client.write_all(b"\0\x01\n").await.unwrap();
    let (mut stream, read, slot) = soon(taken.recv()).await.unwrap();
    assert!(read.is_empty());
    assert_eq!(read_exact(&mut stream, 3).await, b"\0\x01\n");
    assert_eq!(read_all(&mut TcpStream::connect(addr).await.unwrap()).await.0, "");
    drop(slot);
    let mut next = TcpStream::connect(addr).await.unwrap();
    next.write_all(UPGRADE).await.unwrap();
    assert!(read_head(&mut next).await.starts_with("HTTP/1.1 101 "));
    stop.trigger();
    assert_eq!(soon(task).await.unwrap(), 0);
}

#[tokio::test]
async fn ipv4_reaches_the_socket_for_all_addresses() {
    let listener = Listener::bind_any(0).unwrap();
    let port = listener.addr().port();
    let accept = tokio::spawn(async move { listener.socket.accept().await.unwrap().1 });
    let client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let peer = Peer::new(soon(accept).await.unwrap());
    assert_eq!(peer.addr, client.local_addr().unwrap());
    assert_eq!(peer.text, "127.0.0.1");
}

#[tokio::test]
async fn who_leaves_answers_once_more_on_every_connection() {
    let running = proxy(answering(OK).await, timeouts(), settings());
    let mut kept = running.client().await;
    kept.write_all(GET).await.unwrap();
    assert!(!read_head(&mut kept).await.to_lowercase().contains("connection: close"));
    assert_eq!(read_exact(&mut kept, 2).await, b"ok");
    let silent = running.client().await;
    // Connections are accepted in turn, so the one before this has been.
    assert_eq!(statuses(&running.exchange(LAST).await), ["200"]);
    running.stop.leave();
    let refused = async {
        while let Ok(stream) = TcpStream::connect(running.addr).await {
            drop(stream);
            tokio::task::yield_now().await;
        }
    };
    soon(refused).await;
    for mut client in [kept, silent] {
        assert!(!running.task.is_finished());
        client.write_all(GET).await.unwrap();
        let (answer, clean) = read_all(&mut client).await;
        assert_eq!((statuses(&answer), clean), (vec!["200"], true));
        assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    }
    // The last of them was the end.
    assert_eq!(soon(running.task).await.unwrap(), 0);
}

#[tokio::test]
async fn a_stop_may_say_how_long_requests_may_take() {
    let (asked, mut heard) = tokio::sync::mpsc::channel(1);
    let target = monolith(move |_, mut stream| {
        let asked = asked.clone();
        async move {
            read_head(&mut stream).await;
            asked.send(()).await.unwrap();
            // Never an answer.
            read_head(&mut stream).await;
        }
    })
    .await;
    let running = proxy(target, timeouts(), settings());
    let mut client = running.client().await;
    client.write_all(GET).await.unwrap();
    soon(heard.recv()).await.unwrap();
    // The listener's own grace is 5 s.
    let before = std::time::Instant::now();
    running.stop.trigger_within(Duration::ZERO);
    assert_eq!(soon(running.task).await.unwrap(), 1);
    assert!(before.elapsed() < Duration::from_secs(5));
}
