//! The proxy's way to a Monolith and back, over real sockets, with Monoliths that follow a script.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::testing::*;
use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &[u8] = b"GET /a?b=c HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

fn get() -> Request<RequestBody> {
    Request::get("/").header("host", "a").body(RequestBody::empty()).unwrap()
}

fn post(bytes: &'static str) -> Request<RequestBody> {
    Request::post("/").header("host", "a").body(RequestBody::full(Bytes::from_static(bytes.as_bytes()))).unwrap()
}

async fn text(response: Response<UpstreamBody>) -> Result<String, BodyError> {
    let bytes = soon(http_body_util::BodyExt::collect(response.into_body())).await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test]
async fn a_request_goes_through_and_the_connection_is_used_again() {
    let target = monolith(|number, mut stream| async move {
        for request in 0.. {
            if read_head(&mut stream).await.is_empty() {
                return;
            }
            let body = format!("{number}.{request}");
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let pool = Pool::new(timeouts());
    for request in 0..5 {
        let response = soon(pool.send(target, get(), None)).await.unwrap();
        assert_eq!(text(response).await.unwrap(), format!("0.{request}"));
        assert_eq!(pool.idle(), 1);
    }
    let both = tokio::join!(pool.send(target, get(), None), pool.send(target, post("x"), None));
    assert_eq!(text(both.0.unwrap()).await.unwrap(), "0.5");
    // The Monolith reads heads only: "x" and the next head make it answer late, so only the number matters here.
    assert!(text(both.1.unwrap()).await.unwrap().starts_with("1."));
}

#[tokio::test]
async fn the_head_that_a_monolith_sees_is_the_clients_with_the_proxys_changes() {
    let (heads, mut seen) = tokio::sync::mpsc::channel(4);
    let target = monolith(move |_, mut stream| {
        let heads = heads.clone();
        async move {
            heads.send(read_head(&mut stream).await).await.unwrap();
            stream.write_all(OK).await.unwrap();
        }
    })
    .await;
    let running = proxy(target, timeouts(), settings());
    let answer = running.exchange(GET).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
    let head = soon(seen.recv()).await.unwrap();
    assert_eq!(
        head,
        "GET /a?b=c HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\nx-forwarded-host: a\r\n\r\n"
    );
}

#[tokio::test]
async fn a_refused_connection_gives_the_request_back() {
    let target = TcpStream::connect(answering(OK).await).await.unwrap().local_addr().unwrap();
    let error = Pool::new(timeouts()).send(target, post("x"), None).await.unwrap_err();
    assert_eq!(error.kind, SendErrorKind::Connect);
    assert_eq!(error.request.unwrap().method(), Method::POST);
}

#[tokio::test]
async fn a_dead_idle_connection_is_replaced_whatever_the_method() {
    let target = monolith(|_, mut stream| async move {
        let head = read_head(&mut stream).await;
        if head.starts_with("POST") {
            read_exact(&mut stream, 1).await;
        }
        // Answers once, says nothing of closing, and closes.
        stream.write_all(OK).await.unwrap();
    })
    .await;
    let pool = Pool::new(timeouts());
    for _ in 0..3 {
        assert_eq!(text(soon(pool.send(target, post("x"), None)).await.unwrap()).await.unwrap(), "ok");
        // Until the close has arrived the connection may count as alive; a POST would then be lost.
        let dead = || pool.0.lock().by_target.values_mut().flatten().all(|wire| !wire.is_ready());
        until(dead).await;
    }
}

/// A Monolith whose first connection answers one request and dies at the second without a word.
async fn dies_at_the_second_request() -> SocketAddr {
    monolith(|number, mut stream| async move {
        loop {
            let head = read_head(&mut stream).await;
            if head.is_empty() {
                return;
            }
            if head.starts_with("POST") {
                read_exact(&mut stream, 1).await;
            }
            stream.write_all(OK).await.unwrap();
            if number == 0 {
                read_head(&mut stream).await;
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_request_that_may_be_repeated_is_when_its_connection_dies_unanswered() {
    let target = dies_at_the_second_request().await;
    let pool = Pool::new(timeouts());
    for _ in 0..2 {
        assert_eq!(text(soon(pool.send(target, get(), None)).await.unwrap()).await.unwrap(), "ok");
    }
}

#[tokio::test]
async fn a_request_that_may_not_be_repeated_fails() {
    let target = dies_at_the_second_request().await;
    let pool = Pool::new(timeouts());
    text(soon(pool.send(target, post("x"), None)).await.unwrap()).await.unwrap();
    let error = soon(pool.send(target, post("x"), None)).await.unwrap_err();
    assert_eq!(error.kind, SendErrorKind::Broken);
    assert!(error.request.is_none());
}

#[tokio::test]
async fn idle_connections_are_closed_before_the_monolith_would() {
    let closed = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&closed);
    let target = monolith(move |_, mut stream| {
        let count = Arc::clone(&count);
        async move {
            while !read_head(&mut stream).await.is_empty() {
                stream.write_all(OK).await.unwrap();
            }
            count.fetch_add(1, Ordering::Relaxed);
        }
    })
    .await;
    let pool = Pool::new(PoolTimeouts { idle: Duration::from_millis(100), ..timeouts() });
    text(pool.send(target, get(), None).await.unwrap()).await.unwrap();
    assert_eq!(pool.idle(), 1);
    until(|| closed.load(Ordering::Relaxed) == 1 && pool.idle() == 0).await;
}

#[tokio::test]
async fn a_monolith_that_never_answers_is_a_504() {
    let target = monolith(|_, mut stream| async move {
        read_head(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let running = proxy(target, PoolTimeouts { response: Duration::from_millis(200), ..timeouts() }, settings());
    let answer = running.exchange(GET).await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert_eq!(running.in_flight(), 0);
}

#[tokio::test]
async fn nonsense_and_unasked_upgrades_are_a_502() {
    for answer in
        [&b"SSH-2.0-x\r\n\r\n"[..], b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"]
    {
        let running = proxy(answering(answer).await, timeouts(), settings());
        let got = running.exchange(GET).await;
        assert!(got.starts_with("HTTP/1.1 502 "), "{got}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_for_the_client_too() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        // The client has to get this part first: an answer that breaks at once is a 502.
        let arrived = Arc::new(tokio::sync::Notify::new());
        let go = Arc::clone(&arrived);
        let target = monolith(move |_, mut stream| {
            let go = Arc::clone(&go);
            async move {
                read_head(&mut stream).await;
                stream.write_all(answer).await.unwrap();
                go.notified().await;
            }
        })
        .await;
        let running = proxy(target, timeouts(), settings());
        for request in [GET, b"GET / HTTP/1.0\r\n\r\n"] {
            let mut client = running.client().await;
            client.write_all(request).await.unwrap();
            let head = read_head(&mut client).await;
            assert!(head.contains(" 200 OK\r\n"), "{head}");
            let mut half = Vec::new();
            while !half.ends_with(b"half") {
                half.extend(read_exact(&mut client, 1).await);
            }
            arrived.notify_one();
            let (rest, clean) = read_all(&mut client).await;
            assert!(!rest.contains("0\r\n\r\n"), "{rest}");
            // Where neither a length nor chunks show that something is missing, only a reset does.
            assert!(!clean || head.contains("content-length: 10") || head.contains("chunked"), "{head}");
        }
    }
}

#[tokio::test]
async fn a_body_that_stalls_ends_the_connection() {
    let target = monolith(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let running = proxy(target, PoolTimeouts { response: Duration::from_millis(200), ..timeouts() }, settings());
    assert!(running.exchange(GET).await.ends_with("half"));
    until(|| running.in_flight() == 0).await;
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_request_with_it() {
    let (gone, mut seen) = tokio::sync::mpsc::channel(1);
    let target = monolith(move |_, mut stream| {
        let gone = gone.clone();
        async move {
            read_head(&mut stream).await;
            stream.read_u8().await.unwrap_err();
            gone.send(()).await.unwrap();
        }
    })
    .await;
    let running = proxy(target, timeouts(), settings());
    let mut client = running.client().await;
    client.write_all(GET).await.unwrap();
    until(|| running.in_flight() == 1).await;
    drop(client);
    soon(seen.recv()).await.unwrap();
    until(|| running.in_flight() == 0).await;
}

#[tokio::test]
async fn f34_a_client_that_does_not_read_holds_back_the_monolith() {
    const SIZE: u64 = 256 << 20;
    let sent = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = Arc::clone(&sent);
    let target = monolith(move |_, mut stream| {
        let count = Arc::clone(&count);
        async move {
            read_head(&mut stream).await;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let piece = vec![b'x'; 64 << 10];
            while count.load(Ordering::Relaxed) < SIZE {
                stream.write_all(&piece).await.unwrap();
                count.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
        }
    })
    .await;
    let running = proxy(target, timeouts(), settings());
    let mut client = running.client().await;
    client.write_all(GET).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.contains(&format!("content-length: {SIZE}")));
    // Nothing is read: the Monolith comes to a halt once the buffers of two sockets and our own are full.
    let mut before = 0;
    soon(async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = sent.load(Ordering::Relaxed);
            if now == before && now > 0 {
                return;
            }
            before = now;
        }
    })
    .await;
    assert!(before < 32 << 20, "{before} bytes were taken from the Monolith");
    let mut left = SIZE;
    let mut piece = vec![0; 256 << 10];
    tokio::time::timeout(PATIENCE * 6, async {
        while left > 0 {
            left -= client.read(&mut piece).await.unwrap() as u64;
        }
    })
    .await
    .unwrap();
    until(|| running.in_flight() == 0).await;
}

#[tokio::test]
async fn f34_a_monolith_that_does_not_read_holds_back_the_client() {
    let target = monolith(|_, stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let running = proxy(target, timeouts(), settings());
    let mut client = running.client().await;
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 268435456\r\n\r\n").await.unwrap();
    let piece = vec![b'x'; 64 << 10];
    let mut sent = 0;
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(500), client.write(&piece)).await {
        sent += written.unwrap();
        assert!(sent < 32 << 20, "{sent} bytes were taken from the client");
    }
}

#[tokio::test]
async fn uploads_arrive_whole_with_length_and_chunked() {
    let target = monolith(|_, mut stream| async move {
        while let head = read_head(&mut stream).await
            && !head.is_empty()
        {
            if head.contains("content-length: 300000") {
                assert!(read_exact(&mut stream, 300_000).await.iter().all(|byte| *byte == b'x'));
            } else {
                assert!(head.contains("transfer-encoding: chunked"), "{head}");
                let mut body = Vec::new();
                while !body.ends_with(b"0\r\n\r\n") {
                    body.extend(read_exact(&mut stream, 1).await);
                }
                assert!(body.windows(5).any(|five| five == b"hello"));
            }
            stream.write_all(OK).await.unwrap();
        }
    })
    .await;
    let running = proxy(target, timeouts(), settings());
    let mut client = running.client().await;
    let mut upload = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n".to_vec();
    upload.resize(upload.len() + 300_000, b'x');
    let chunked = b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    for request in [&upload[..], chunked, &upload] {
        client.write_all(request).await.unwrap();
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(read_exact(&mut client, 2).await, b"ok");
    }
    // All on one connection, which the upload did not spoil.
    until(|| running.proxy.pool.idle() == 1).await;
}

#[tokio::test]
async fn a_client_that_expects_100_gets_it() {
    let target = monolith(|_, mut stream| async move {
        let head = read_head(&mut stream).await;
        assert!(!head.contains("expect"), "{head}");
        assert_eq!(read_exact(&mut stream, 5).await, b"hello");
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n").await.unwrap();
        stream.write_all(OK).await.unwrap();
    })
    .await;
    let running = proxy(target, timeouts(), settings());
    let mut client = running.client().await;
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await.unwrap();
    assert_eq!(read_head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"hello").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn an_answer_may_come_before_the_upload_is_over() {
    let target = monolith(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 3\r\n\r\n").await.unwrap();
        // The body of the answer comes only after more of the upload: it has to go on meanwhile.
        read_exact(&mut stream, 1 << 20).await;
        stream.write_all(b"big").await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let running = proxy(target, timeouts(), settings());
    let mut client = running.client().await;
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 268435456\r\n\r\n").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 413 "));
    soon(client.write_all(&vec![b'x'; (1 << 20) + 1])).await.unwrap();
    assert_eq!(read_exact(&mut client, 3).await, b"big");
    until(|| running.in_flight() == 0).await;
}

#[tokio::test]
async fn answers_without_a_body_have_none_and_leave_the_connection_usable() {
    let target = monolith(|number, mut stream| async move {
        assert_eq!(number, 0, "the connection was not used again");
        loop {
            let head = read_head(&mut stream).await;
            let answer = match head.split(' ').nth(1) {
                Some("/head") => "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
                Some("/204") => "HTTP/1.1 204 No Content\r\n\r\n",
                Some("/304") => "HTTP/1.1 304 Not Modified\r\nETag: W/\"1\"\r\nContent-Length: 5\r\n\r\n",
                Some("/empty") => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                _ => return,
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let running = proxy(target, timeouts(), settings());
    let mut client = running.client().await;
    for (method, path, status, field) in [
        ("HEAD", "/head", "200", "content-length: 1234"),
        ("GET", "/204", "204", "date: "),
        ("GET", "/304", "304", "etag: W/\"1\""),
        ("GET", "/empty", "200", "content-length: 0"),
        ("HEAD", "/head", "200", "content-length: 1234"),
    ] {
        client.write_all(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let head = read_head(&mut client).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")) && head.contains(field), "{head}");
        assert!(!head.contains("transfer-encoding"), "{head}");
        until(|| running.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn trailers_reach_a_client_that_accepts_them() {
    let target = answering(
        b"HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n",
    )
    .await;
    let running = proxy(target, timeouts(), settings());
    let with = b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n";
    let answer = running.exchange(with).await;
    assert!(answer.ends_with("2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n"), "{answer}");
    let answer = running.exchange(GET).await;
    assert!(answer.ends_with("2\r\nok\r\n0\r\n\r\n"), "{answer}");
}
