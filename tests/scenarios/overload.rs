//! More than there is room for: refused early, and whoever is in does not notice.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use usher::testkit::client::ConnectError;
use usher::testkit::raw::RawSocket;
use usher::testkit::{Client, Connect, RoomInfo, World, http};

use crate::harness::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f15_a_storm_of_joins_with_one_monolith_stalled_leaves_everybody_else_alone() {
    const JOINS: usize = 5000;
    let rooms: Vec<String> = (0..100).map(|number| format!("room-{number}")).collect();
    let world = world_with(rooms.iter().map(String::as_str).chain(["calm"]));
    let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
    let balancer = Balancer::start_with(&[&a, &b], |config| {
        config.heartbeat.interval = Duration::from_secs(2);
        config.heartbeat.missed = 100;
        // The other one has much to do at once.
        config.limits.place_attempts = 10;
    })
    .await;
    let mut calm = balancer.join("calm", "t").await;
    let (slow, fast) = if a.members("calm").is_empty() { (&a, &b) } else { (&b, &a) };
    slow.stall();
    let addr = balancer.addr();
    let storm: Vec<_> = (0..JOINS)
        .map(|number| {
            let room = rooms[number % rooms.len()].clone();
            tokio::spawn(async move {
                let mut client = Client::join(addr, &room, &format!("t{number}")).await.unwrap();
                client.synced(SOON * 3).await.map(|_| client)
            })
        })
        .collect();
    // While they wait for the one that says nothing, everything else goes on, in turn.
    let (began, mut rounds) = (Instant::now(), 0_usize);
    while rounds < 20 || !storm.iter().all(tokio::task::JoinHandle::is_finished) {
        assert_eq!(http::get(addr, "/api/status").await.unwrap().text(), "OK");
        assert_eq!(http::get(addr, "/api/status/metrics").await.unwrap().status, 200);
        let text = format!(r#"{{"round":{rounds}}}"#);
        fast.say("calm", None, &text);
        calm.recv_until(SOON, |got| got == text).await.unwrap();
        if rounds == 10 {
            drop(balancer.join("calm", "late").await);
        }
        rounds += 1;
        assert!(began.elapsed() < SOON * 12, "the storm does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut clients = Vec::new();
    for client in storm {
        clients.push(client.await.unwrap().unwrap());
    }
    assert!(slow.joins().is_empty(), "it reads nothing");
    assert_eq!(fast.members("room-0").len(), JOINS / rooms.len());
    let ready = balancer.get("/_usher/ready").await;
    assert!(ready.text().contains("misses heartbeats"), "readiness tells of the trouble: {}", ready.text());
    slow.resume();
    balancer.linked(2).await;
    drop((clients, calm));
    nobody_left(&balancer, &[&a, &b]).await;
}

/// What a balancer answers to requests on one connection, without the runtime that this balancer may be keeping busy.
fn answers(balancer: &Balancer, requests: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(balancer.addr()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(requests.as_bytes()).unwrap();
    let mut answers = Vec::new();
    let read = stream.read_to_end(&mut answers);
    let answers = String::from_utf8_lossy(&answers).into_owned();
    assert!(read.is_ok(), "{read:?} after {answers:?}");
    answers
}

fn get(path: &str, connection: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: {connection}\r\n\r\n")
}

#[tokio::test]
async fn f15_how_the_balancer_is_doing_is_answered_while_every_worker_is_busy() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start(&[&a]).await;
    let free = balancer.block_workers().await;
    for path in ["/api/status", "/api/status/metrics", "/_usher/ready"] {
        let answer = answers(&balancer, &get(path, "close"));
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{path}: {answer}");
    }
    drop(free);
    assert_eq!(balancer.get("/api/status").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_that_asked_how_the_balancer_is_doing_may_go_on_to_anything_else() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start(&[&a]).await;
    let requests =
        [get("/api/status", "keep-alive"), get("/api/status", "keep-alive"), get("/api/room/x", "keep-alive")];
    let answers = answers(&balancer, &requests.concat());
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
    // Its next one is to begin where it belongs.
    assert!(answers.contains("connection: close"), "{answers}");
    assert_eq!(balancer.metric("usher_http_proxied_total").await as usize, 1);
    // And so may one that wanted into a room and was refused.
    let upgrade = "GET /api/room/x HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let answers = self::answers(&balancer, &[upgrade, &get("/api/room/x", "close")].concat());
    assert!(answers.starts_with("HTTP/1.1 400") && answers.contains("HTTP/1.1 200 OK"), "{answers}");
    assert_eq!(balancer.metric("usher_http_proxied_total").await as usize, 2);
}

#[tokio::test]
async fn f35_a_listener_that_does_not_read_the_event_stream_delays_nobody() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start(&[&a]).await;
    let key = format!("authorization: Bearer {KEY}");
    let listener = RawSocket::connect(balancer.addr(), "/api/state/stream", &[&key]).await.unwrap();
    let mut client = balancer.join("x", "t").await;
    // Far more than its queue and the sockets on the way hold.
    for number in 0..60_000 {
        a.say("x", None, &format!(r#"{{"number":{number}}}"#));
        if number % 100 == 99 {
            let last = format!(r#"{{"number":{number}}}"#);
            client.recv_until(SOON, |text| text == last).await.unwrap();
        }
    }
    drop((listener, client));
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn an_address_that_connects_too_often_is_closed_at_once_and_a_trusted_proxy_is_not() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let fast = |trusted: bool| {
        move |config: &mut usher::config::Config| {
            config.limits.connections_per_second = 5;
            // So that the tests' own questions are no part of it.
            config.admin_listen = Some("127.0.0.1:0".parse().unwrap());
            if !trusted {
                config.trusted = Vec::new();
            }
        }
    };
    for trusted in [true, false] {
        let balancer = Balancer::start_with(&[&a], fast(trusted)).await;
        let mut served = 0;
        let mut closed = 0;
        for _ in 0..60 {
            let mut stream = TcpStream::connect(balancer.addr()).await.unwrap();
            // A connection that is closed at once may break while it is written to.
            let _ = stream.write_all(b"GET /api/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            if answer.starts_with(b"HTTP/1.1 200") { served += 1 } else { closed += 1 }
        }
        if trusted {
            assert_eq!((served, closed), (60, 0));
        } else {
            assert!(served >= 5 && closed > 0, "{served} served, {closed} closed");
            let counted = balancer.metric("usher_refused_rate_total").await as usize;
            assert!(counted >= closed, "{counted} counted");
        }
    }
}

#[tokio::test]
async fn sockets_that_do_not_say_who_they_are_are_bounded_and_nobody_else_is_kept_out_by_them_for_long() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start_with(&[&a], |config| config.limits.handshakes = 3).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(Connect::room(balancer.addr(), "x", "t").silent().open().await.unwrap());
    }
    let refused = Connect::room(balancer.addr(), "x", "t").open().await.err();
    assert!(matches!(refused, Some(ConnectError::Refused { status: 503, .. })), "{refused:?}");
    let ready = balancer.get("/_usher/ready").await;
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("at a limit: limits.handshakes"), "{}", ready.text());
    // Who has said it does not count any more.
    silent.pop();
    eventually("there is room", async || match balancer.metric("usher_handshakes").await as usize {
        2 => Ok(()),
        count => Err(count),
    })
    .await;
    let clients = [balancer.join("x", "t1").await, balancer.join("x", "t2").await];
    assert_eq!(balancer.get("/_usher/ready").await.status, 200);
    drop((silent, clients));
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn at_the_limit_of_clients_readiness_says_so_and_the_next_one_is_refused_before_its_upgrade() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start_with(&[&a], |config| config.limits.clients = 2).await;
    let clients = [balancer.join("x", "t1").await, balancer.join("x", "t2").await];
    let refused = Connect::room(balancer.addr(), "x", "t3").open().await.err();
    let Some(ConnectError::Refused { status: 503, headers, .. }) = refused else { panic!("{refused:?}") };
    assert!(headers.iter().any(|(name, _)| name == "retry-after"), "{headers:?}");
    let ready = balancer.get("/_usher/ready").await;
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("at a limit: limits.clients"), "{}", ready.text());
    assert_eq!(http::get(balancer.addr(), "/api/status").await.unwrap().text(), "OK");
    drop(clients);
    eventually("it is ready again", async || match balancer.get("/_usher/ready").await.status {
        200 => Ok(()),
        status => Err(status),
    })
    .await;
}

#[tokio::test]
async fn f16_monoliths_that_take_joins_and_never_answer_make_readiness_say_that_joins_stall() {
    let world = World::new();
    let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
    let balancer = Balancer::start_with(&[&a, &b], |config| config.timeouts.load = Duration::from_millis(300)).await;
    a.freeze_loads();
    b.freeze_loads();
    let mut waiting = Vec::new();
    let stalled = eventually("readiness says so", async || {
        let room = format!("room-{}", waiting.len());
        world.add(RoomInfo::permanent(&room));
        waiting.push(Client::join(balancer.addr(), &room, "t").await.unwrap());
        let ready = balancer.get("/_usher/ready").await;
        if ready.status == 503 { Ok(ready.text()) } else { Err(ready.text()) }
    })
    .await;
    assert!(stalled.contains("joins stall"), "{stalled}");
    assert_eq!(http::get(balancer.addr(), "/api/status").await.unwrap().text(), "OK");
    drop(waiting);
    a.thaw_loads();
    b.thaw_loads();
    drop(balancer.join("room-0", "t").await);
    eventually("it is ready again", async || match balancer.get("/_usher/ready").await.status {
        200 => Ok(()),
        status => Err(status),
    })
    .await;
    nobody_left(&balancer, &[&a, &b]).await;
}

#[tokio::test]
async fn readiness_names_the_limit_of_those_who_wait() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start_with(&[&a], |config| config.limits.pending_joins = 2).await;
    a.freeze_loads();
    let mut clients = Vec::new();
    // The first is at the Monolith, two wait for what becomes of it.
    for token in ["t1", "t2", "t3"] {
        clients.push(Client::join(balancer.addr(), "x", token).await.unwrap());
    }
    let reason = "at a limit: limits.pending_joins: 2 joins and requests wait";
    eventually("readiness says so", async || {
        let ready = balancer.get("/_usher/ready").await;
        if ready.status == 503 && ready.text().contains(reason) { Ok(()) } else { Err(ready.text()) }
    })
    .await;
    a.thaw_loads();
    for client in &mut clients {
        client.synced(SOON).await.unwrap();
    }
    eventually("it is ready again", async || match balancer.get("/_usher/ready").await.status {
        200 => Ok(()),
        status => Err(status),
    })
    .await;
    drop(clients);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn a_control_thread_that_does_not_come_round_makes_readiness_say_that_it_is_late() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start(&[&a]).await;
    let (release, held) = std::sync::mpsc::channel::<()>();
    let control = balancer.app().control().clone();
    let busy = tokio::spawn(async move { control.query(move |_| held.recv_timeout(SOON).is_err()).await });
    eventually("readiness says so", async || {
        let ready = balancer.get("/_usher/ready").await;
        let late = ready.status == 503 && ready.text().contains("the control thread is late");
        if late { Ok(()) } else { Err(ready.text()) }
    })
    .await;
    drop(release);
    assert!(busy.await.unwrap().unwrap());
    eventually("it is ready again", async || match balancer.get("/_usher/ready").await.status {
        200 => Ok(()),
        status => Err(status),
    })
    .await;
}

#[tokio::test]
async fn a_body_that_stops_is_the_clients_fault_and_no_monolith_is_blamed() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start_with(&[&a], |config| {
        config.timeouts.http_response = Duration::from_millis(300);
    })
    .await;
    let mut stream = TcpStream::connect(balancer.addr()).await.unwrap();
    stream.write_all(b"POST /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nab").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    let errors = balancer.app().control().query(|cluster| cluster.view().rows()[0].errors).await.unwrap();
    assert_eq!(errors.to_bits(), 0.0_f64.to_bits());
}
