//! HTTP that goes through: nothing is lost, added or misunderstood on the way, and who asks stays visible.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use usher::testkit::{World, http};

use super::harness::{Balancer, SOON, eventually, monoliths, quick};

/// What comes back for bytes as they stand; the connection is to be closed by the balancer.
async fn raw(addr: SocketAddr, bytes: &str) -> String {
    String::from_utf8_lossy(&http::raw(addr, bytes.as_bytes(), SOON).await.unwrap()).into_owned()
}

/// One request from an address of the loopback network.
async fn from(source: &str, addr: SocketAddr, head: &str, body: &str) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(source.parse::<IpAddr>().unwrap(), 0)).unwrap();
    let mut stream = socket.connect(addr).await.unwrap();
    let length = body.len();
    let text = format!("{head}\r\nhost: usher\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn with_trusted(trusted: Vec<ipnet::IpNet>) -> Balancer {
    let world = World::new();
    let mut config = quick();
    config.trusted = trusted;
    Balancer::start(monoliths(&world, &["ewr"]).await, config).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f60_each_client_keeps_its_own_address() {
    let balancer = with_trusted(Vec::new()).await;
    for number in 1..=20 {
        let source = format!("127.0.0.{number}");
        // What a client says of itself is not believed: the last entry is the address that it has.
        let head = "POST /api/room/generate HTTP/1.1\r\nx-forwarded-for: 9.9.9.9";
        let answer = from(&source, balancer.addr, head, "{}").await;
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
    let seen: BTreeSet<String> =
        balancer.monoliths[0].requests().iter().map(|r| r.rate_limit_key().unwrap().to_string()).collect();
    assert_eq!(seen, (1..=20).map(|number| format!("127.0.0.{number}")).collect());
    let asked = balancer.monoliths[0].requests().pop().unwrap();
    assert_eq!(asked.header("x-forwarded-proto").collect::<Vec<_>>(), ["http"]);
    assert_eq!(asked.header("x-forwarded-host").collect::<Vec<_>>(), ["usher"]);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f60_a_trusted_proxy_is_believed() {
    let balancer = with_trusted(vec!["127.0.0.1/32".parse().unwrap()]).await;
    for (source, given, key) in [
        ("127.0.0.1", "x-forwarded-for: 203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "x-forwarded-for: 9.9.9.9, 203.0.113.8", "203.0.113.8"),
        ("127.0.0.1", "x-forwarded-for: 9.9.9.9\r\nx-forwarded-for: 2001:db8::1", "2001:db8::1"),
        ("127.0.0.1", "x-nothing: 1", "127.0.0.1"),
        ("127.0.0.2", "x-forwarded-for: 203.0.113.7", "127.0.0.2"),
        // A client cannot have it removed either.
        ("127.0.0.2", "connection: x-forwarded-for", "127.0.0.2"),
    ] {
        let answer = from(source, balancer.addr, &format!("GET /echo HTTP/1.1\r\n{given}"), "").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{given}: {answer}");
        let asked = balancer.monoliths[0].requests().pop().unwrap();
        assert_eq!(asked.rate_limit_key(), Some(key), "{source} {given}");
    }
    let head = "GET /echo HTTP/1.1\r\nx-forwarded-proto: https\r\nx-forwarded-host: ott.example";
    from("127.0.0.1", balancer.addr, head, "").await;
    from("127.0.0.2", balancer.addr, head, "").await;
    let asked = balancer.monoliths[0].requests();
    let [.., trusted, other] = asked.as_slice() else { panic!("two requests") };
    assert_eq!(trusted.header("x-forwarded-proto").collect::<Vec<_>>(), ["https"]);
    assert_eq!(trusted.header("x-forwarded-host").collect::<Vec<_>>(), ["ott.example"]);
    assert_eq!(other.header("x-forwarded-proto").collect::<Vec<_>>(), ["http"]);
    assert_eq!(other.header("x-forwarded-host").collect::<Vec<_>>(), ["usher"]);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_names_no_room_goes_to_the_own_region_first() {
    let (balancer, _world) = Balancer::simple(&["cdg", "ewr", "ewr"]).await;
    for number in 0..12 {
        assert_eq!(balancer.get(&format!("/api/data/previewAdd?n={number}")).await.status, 404);
    }
    assert_eq!(balancer.monoliths[0].look(|state| state.http_count()), 0);
    for at in [2, 1] {
        balancer.monoliths[at].kill().await;
    }
    eventually("the other region serves", async || (balancer.get("/echo").await.status == 200).then_some(())).await;
    assert!(balancer.monoliths[0].look(|state| state.http_count()) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_bodies_and_ends_pass_unchanged() {
    let (balancer, _world) = Balancer::simple(&["ewr"]).await;
    let headers = [("x-Custom", "a, b"), ("cookie", "token=abc"), ("authorization", "Bearer t"), ("x-empty", "")];
    let answer = http::request(balancer.addr, "PUT", "/echo/%2e%2e/a%20b?q=%2F&q=2", &headers, "body").await.unwrap();
    let echo = answer.json();
    assert_eq!((&echo["method"], &echo["target"]), (&"PUT".into(), &"/echo/%2e%2e/a%20b?q=%2F&q=2".into()));
    assert_eq!((&echo["body"], &echo["version"]), (&"body".into(), &"HTTP/1.1".into()));
    let arrived = echo["headers"].to_string();
    for (name, value) in headers {
        assert!(arrived.contains(&format!(r#"["{}","{value}"]"#, name.to_lowercase())), "{name}: {arrived}");
    }
    let head = http::request(balancer.addr, "HEAD", "/sized/5000", &[], "").await.unwrap();
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("5000"), 0));
    for status in [204, 304] {
        let answer = balancer.get(&format!("/status/{status}")).await;
        assert_eq!((answer.status, answer.body.len(), answer.header("etag")), (status, 0, Some("W/\"1-test\"")));
        assert_eq!(answer.header("transfer-encoding"), None);
    }
    for status in [200, 301, 400, 418, 429, 500, 503] {
        assert_eq!(balancer.get(&format!("/status/{status}")).await.status, status, "the Monolith's own answer");
    }
    assert_eq!(balancer.get("/raw/early-hints").await.text(), "hello");
    assert_eq!(balancer.get("/raw/garbage").await.status, 502);
    let te = "GET /trailers HTTP/1.1\r\nhost: x\r\nte: trailers\r\nconnection: te, close\r\n\r\n";
    let answer = raw(balancer.addr, te).await;
    assert!(answer.to_lowercase().contains("x-sum: 42") && answer.contains("hello"), "{answer}");
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_stream_in_both_directions() {
    let (balancer, _world) = Balancer::simple(&["ewr"]).await;
    let size = 8 << 20;
    let answer = http::request(balancer.addr, "POST", "/upload", &[], vec![b'x'; size]).await.unwrap();
    assert_eq!(answer.json()["bytes"], size);
    for path in [format!("/stream/{size}"), format!("/sized/{size}")] {
        assert_eq!(balancer.get(&path).await.body.len(), size, "{path}");
    }
    // The first piece is here while the rest is not: nothing is collected on the way.
    let mut stream = TcpStream::connect(balancer.addr).await.unwrap();
    stream.write_all(b"GET /hang-body HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut read = Vec::new();
    while !read.windows(5).any(|part| part == b"hello") {
        let count = tokio::time::timeout(SOON, stream.read_buf(&mut read)).await.unwrap().unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&read));
    }
    drop(stream);
    // An upload whose Monolith gets it piece by piece: its request is there before its body is.
    let mut stream = TcpStream::connect(balancer.addr).await.unwrap();
    let before = balancer.monoliths[0].look(|state| state.http_count());
    stream
        .write_all(b"POST /upload HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        .await
        .unwrap();
    balancer.monoliths[0].wait_for(|state| state.http_count() == before + 1, SOON).await.unwrap();
    stream.write_all(b"2\r\nde\r\n0\r\n\r\n").await.unwrap();
    let mut read = Vec::new();
    while !read.windows(11).any(|part| part == b"{\"bytes\":5}") {
        let count = tokio::time::timeout(SOON, stream.read_buf(&mut read)).await.unwrap().unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&read));
    }
    drop(stream);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f34_a_hanging_monolith_gives_504() {
    let world = World::new();
    let mut config = quick();
    config.timeouts.http_response = Duration::from_millis(400);
    let balancer = Balancer::start(monoliths(&world, &["ewr"]).await, config).await;
    let answer = balancer.get("/hang").await;
    assert_eq!((answer.status, answer.json()["error"]["code"].is_string()), (504, true));
    // In the middle of a body there is no status left to send: the connection ends without the last chunk.
    let text = raw(balancer.addr, "GET /hang-body HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(text.contains("hello") && !text.contains("0\r\n\r\n"), "{text}");
    // Each piece has the time for itself.
    assert_eq!(balancer.get("/drip/8/100").await.body.len(), 8);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_upgrade_alone_is_a_plain_request() {
    let (balancer, world) = Balancer::simple(&["ewr"]).await;
    world.add(usher::testkit::RoomInfo::permanent("movie"));
    for path in ["/echo", "/api/room/movie", "/api/room/list", "/api/status"] {
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n\r\n");
        let mut stream = TcpStream::connect(balancer.addr).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        tokio::time::timeout(SOON, stream.read_exact(&mut first)).await.unwrap().unwrap();
        assert_eq!(&first, b"HTTP/1.1 200", "{path}");
    }
    let asked = balancer.monoliths[0].requests();
    assert!(asked.iter().all(|request| request.header("upgrade").next().is_none()));
    for head in
        ["CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443", "CONNECT usher:80 HTTP/1.1\r\nhost: usher:80"]
    {
        let answer = raw(balancer.addr, &format!("{head}\r\nconnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
        assert!(answer.to_lowercase().contains("\r\nallow: "), "{answer}");
    }
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_websockets_are_tunnelled() {
    let (balancer, world) = Balancer::simple(&["ewr"]).await;
    world.add(usher::testkit::RoomInfo::permanent("movie"));
    let url = format!("ws://{}/ws/other?x=1", balancer.addr);
    let stream = TcpStream::connect(balancer.addr).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    for size in [1, 1000, 300_000] {
        let text = "x".repeat(size);
        socket.send(Message::text(text.clone())).await.unwrap();
        let back = tokio::time::timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(back.into_text().unwrap().as_str(), text);
    }
    assert_eq!(balancer.monoliths[0].requests().pop().unwrap().target, "/ws/other?x=1");
    // Over a tunnel the Monolith says itself how it closes.
    let mut client = usher::testkit::Connect::path(balancer.addr, "/api/foo").open().await.unwrap();
    assert_eq!(client.closed(SOON).await.unwrap().code, 4001);
    balancer.app.stop().await;
    let end = tokio::time::timeout(SOON, async { while let Some(Ok(_)) = socket.next().await {} }).await;
    assert!(end.is_ok(), "a stop ends tunnels");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_with_prior_knowledge_is_spoken() {
    let (balancer, world) = Balancer::simple(&["ewr"]).await;
    world.add(usher::testkit::RoomInfo::permanent("movie"));
    let stream = TcpStream::connect(balancer.addr).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let send = async |method: &str, path: &str, body: &'static [u8]| {
        let uri = format!("http://usher.example{path}");
        let request = hyper::Request::builder().method(method).uri(uri).body(Full::new(Bytes::from(body))).unwrap();
        let answer = sender.clone().send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.into_body().collect().await.unwrap().to_bytes())
    };
    let (status, body) = send("GET", "/echo", b"").await;
    let echo: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &echo["version"]), (200, &"HTTP/1.1".into()));
    assert!(echo["headers"].to_string().contains(r#"["host","usher.example"]"#), "{echo}");
    let all = futures_util::future::join_all((0..20).map(|_| send("POST", "/upload", b"12345"))).await;
    assert!(all.iter().all(|(status, body)| *status == 200 && body.as_ref() == b"{\"bytes\":5}"));
    assert_eq!(send("GET", "/api/room/movie", b"").await.0, 200);
    assert_eq!(send("GET", "/api/room/list", b"").await.0, 200);
    assert_eq!(send("GET", "/api/status", b"").await.1.as_ref(), b"OK");
    assert_eq!(send("POST", "/api/room/generate", b"{}").await.0, 201);
    driver.abort();
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smuggled_requests_are_refused() {
    let (balancer, _world) = Balancer::simple(&["ewr"]).await;
    for head in [
        "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\nhello",
        "GET /echo HTTP/1.1\r\nhost: x\r\nx: a\r\n folded: b\r\n\r\n",
        "GET /echo HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        "GET /echo HTTP/1.1\r\nconnection: close\r\n\r\n",
    ] {
        let answer = raw(balancer.addr, head).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head:?}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "nothing after it is answered: {answer}");
    }
    let long = format!("GET /echo HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(64 << 10));
    assert!(raw(balancer.addr, &long).await.starts_with("HTTP/1.1 431"));
    assert_eq!(balancer.monoliths[0].look(|state| state.http_count()), 0, "nothing of it was passed on");
    balancer.finish().await;
}
