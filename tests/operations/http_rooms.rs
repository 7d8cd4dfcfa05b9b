//! HTTP that is about rooms: it goes to the Monolith that has the room, places rooms that nobody has, and pins those
//! that are born.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpSocket;
use usher::testkit::http;
use usher::testkit::monolith::InitStyle;
use usher::testkit::{Client, Monolith, RoomInfo, World};

use super::harness::{Balancer, SOON, eventually, monoliths, quick};

/// A Monolith whose link works and whose HTTP port nobody listens on, and what keeps that port.
async fn deaf(world: &World, id: &str, region: &str) -> (Monolith, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let init = json!({"type": "init", "payload": {"port": port, "region": region, "id": id}}).to_string();
    let builder = Monolith::builder(world).id(id).region(region).init(InitStyle::Text(init));
    (builder.start().await.unwrap(), socket)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_a_bound_room_go_to_its_monolith() {
    let (balancer, world) = Balancer::simple(&["ewr", "cdg"]).await;
    world.add(RoomInfo::permanent("Movie"));
    // The farther Monolith has it, so nobody would choose it by preference.
    balancer.monoliths[1].load("Movie");
    eventually("the room is known", async || {
        (balancer.api("GET", "/_usher/v1/rooms/movie", "").await.status == 200).then_some(())
    })
    .await;
    for (method, path) in [
        ("GET", "/api/room/Movie"),
        ("GET", "/api/room/mOVIE?x=%2F%20y"),
        ("PATCH", "/api/room/movie"),
        ("POST", "/api/room/movie/queue"),
        ("DELETE", "/api/room/movie/queue"),
        ("HEAD", "/api/room/movie"),
    ] {
        let answer = http::request(balancer.addr, method, path, &[], "{}").await.unwrap();
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text());
        let last = balancer.monoliths[1].requests().pop().unwrap();
        assert_eq!((last.method.as_str(), last.target.as_str()), (method, path));
    }
    assert_eq!(balancer.monoliths[0].look(|state| state.http_count()), 0);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_an_unbound_room_waits_like_a_join_and_binds_it() {
    let (balancer, world) = Balancer::simple(&["ewr", "ewr"]).await;
    world.add(RoomInfo::permanent("movie"));
    for monolith in &balancer.monoliths {
        monolith.freeze_loads();
    }
    let addr = balancer.addr;
    let requests: Vec<_> =
        (0..4).map(|_| tokio::spawn(async move { http::get(addr, "/api/room/movie").await.unwrap() })).collect();
    eventually("the first one has started the load", async || {
        (balancer.monoliths.iter().map(|m| m.look(|state| state.frozen_loads())).sum::<usize>() > 0).then_some(())
    })
    .await;
    let mut client = Client::join(addr, "Movie", "token").await.unwrap();
    eventually("everybody waits", async || (balancer.metric("usher_waiting").await >= 4.0).then_some(())).await;
    assert_eq!(balancer.monoliths.iter().map(|m| m.look(|state| state.join_count())).sum::<u64>(), 0);
    for monolith in &balancer.monoliths {
        monolith.thaw_loads();
    }
    for request in requests {
        assert_eq!(request.await.unwrap().status, 200);
    }
    client.synced(SOON).await.unwrap();
    // Two loads of one room within milliseconds are two copies: there was one.
    assert_eq!(balancer.monoliths.iter().map(|m| m.loads_of("movie")).sum::<u64>(), 1);
    assert_eq!(balancer.document("/_usher/v1/rooms/movie").await["state"], "active");
    drop(client);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_404_drops_the_binding_and_a_2xx_keeps_it() {
    let (balancer, world) = Balancer::simple(&["ewr", "cdg"]).await;
    world.add(RoomInfo::permanent("there"));
    for _ in 0..3 {
        assert_eq!(balancer.get("/api/room/missing").await.status, 404);
    }
    eventually("nothing but its story is left of it", async || {
        let room = balancer.document("/_usher/v1/rooms/missing").await;
        (room["state"] == "absent"
            && room["monolith"].is_null()
            && room["clients"] == 0
            && !room["story"].as_array().unwrap().is_empty())
        .then_some(())
    })
    .await;
    assert_eq!(balancer.get("/api/room/there").await.status, 200);
    assert_eq!(balancer.owner("there").await, balancer.monoliths[0].id());
    let monoliths = balancer.document("/_usher/v1/monoliths").await;
    for row in monoliths["monoliths"].as_array().unwrap() {
        assert_eq!(row["pending"], 0, "{row}");
    }
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f07_a_birth_is_pinned_before_its_answer_is_released() {
    let (balancer, _world) = Balancer::simple(&["ewr", "ewr", "cdg"]).await;
    // Nothing comes on the links, so all that is known of the rooms is what the answers said.
    for monolith in &balancer.monoliths {
        monolith.stall();
    }
    let mut born = Vec::new();
    for number in 0..10 {
        let answer = http::post(balancer.addr, "/api/room/generate", "{}").await.unwrap();
        assert_eq!(answer.status, 201);
        let generated = answer.json()["room"].as_str().unwrap().to_string();
        let named = format!("Named-{number}");
        let body = json!({"name": named, "isTemporary": true, "visibility": "public"}).to_string();
        let answer = http::post(balancer.addr, "/api/room/create", &body).await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (201, r#"{"success":true}"#));
        for name in [generated, named] {
            let owner = balancer.owner(&name).await;
            let at = balancer.monoliths.iter().find(|monolith| monolith.id() == owner);
            assert!(at.is_some_and(|monolith| monolith.look(|state| state.room_epoch(&name)).is_some()), "{name}");
            born.push((name, owner));
        }
    }
    // What is on its way counts at once, so the two of the own region took turns.
    for monolith in &balancer.monoliths[..2] {
        assert_eq!(born.iter().filter(|(_, owner)| *owner == monolith.id()).count(), 10);
    }
    let mut clients = Vec::new();
    for (name, _) in &born {
        clients.push(Client::join(balancer.addr, name, "token").await.unwrap());
    }
    for monolith in &balancer.monoliths {
        monolith.resume();
    }
    for ((name, owner), client) in born.iter().zip(&mut clients) {
        client.synced(SOON).await.unwrap();
        let monolith = balancer.monoliths.iter().find(|monolith| monolith.id() == *owner).unwrap();
        assert_eq!((monolith.members(name).len(), monolith.loads_of(name)), (1, 1), "{name}");
    }
    assert_eq!(balancer.monoliths.iter().map(Monolith::loads).sum::<u64>(), 20);
    drop(clients);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_birth_that_fails_or_cannot_be_read_pins_nothing() {
    let world = World::new();
    world.add(RoomInfo::permanent("taken"));
    let mut config = quick();
    // Long: nothing that follows may depend on a choice running out.
    config.timeouts.load = Duration::from_secs(120);
    let balancer = Balancer::start(monoliths(&world, &["ewr"]).await, config).await;
    let answer = http::post(balancer.addr, "/api/room/create", r#"{"name":"taken"}"#).await.unwrap();
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("RoomNameTakenException"));
    for body in ["", "{", "[]", r#"{"name":7}"#, r#"{"name":"not a name"}"#] {
        let answer = http::post(balancer.addr, "/api/room/create", body).await.unwrap();
        assert_eq!(answer.status, 400, "{body}");
    }
    // Over the Monolith's own limit: passed on unread, and refused there.
    let large = format!(r#"{{"name":"large","title":"{}"}}"#, "x".repeat(200 << 10));
    let answer = http::post(balancer.addr, "/api/room/create", &large).await.unwrap();
    assert_eq!((answer.status, answer.text().contains("Payload Too Large")), (413, true));
    assert_eq!(balancer.api("GET", "/_usher/v1/rooms/large", "").await.status, 404);
    // The choice for a name that was asked for goes with the answer.
    eventually("nothing is left", async || {
        let rooms = balancer.document("/_usher/v1/rooms").await;
        let monoliths = balancer.document("/_usher/v1/monoliths").await;
        (rooms["rooms"] == json!([]) && monoliths["monoliths"][0]["pending"] == 0).then_some(())
    })
    .await;
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monolith_that_cannot_be_reached_is_passed_over_unless_it_has_the_room() {
    let world = World::new();
    for name in ["one", "two", "held"] {
        world.add(RoomInfo::permanent(name));
    }
    // Its id sorts first and its region is ours: everything goes there first.
    let (broken, _port) = deaf(&world, "00000000-0000-4000-8000-000000000000", "ewr").await;
    broken.load("held");
    let mut fleet = vec![broken];
    fleet.extend(monoliths(&world, &["cdg"]).await);
    let balancer = Balancer::start(fleet, quick()).await;
    eventually("the room is known", async || {
        (balancer.api("GET", "/_usher/v1/rooms/held", "").await.status == 200).then_some(())
    })
    .await;
    let working = balancer.monoliths[1].id();
    for _ in 0..5 {
        assert_eq!(balancer.get("/echo").await.status, 200, "route goes on to the next");
    }
    for name in ["one", "two"] {
        assert_eq!(balancer.get(&format!("/api/room/{name}")).await.status, 200);
        assert_eq!(balancer.owner(name).await, working);
    }
    let answer = http::post(balancer.addr, "/api/room/generate", "{}").await.unwrap();
    assert_eq!(answer.status, 201);
    assert_eq!(balancer.owner(answer.json()["room"].as_str().unwrap()).await, working);
    let body = r#"{"name":"made","isTemporary":true}"#;
    assert_eq!(http::post(balancer.addr, "/api/room/create", body).await.unwrap().status, 201);
    assert_eq!(balancer.owner("made").await, working);
    // A bound room is there and nowhere else.
    let answer = balancer.get("/api/room/held").await;
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some());
    assert_eq!(balancer.monoliths[1].loads_of("held"), 0);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_load_ends_with_504_and_leaves_nothing() {
    let world = World::new();
    world.add(RoomInfo::permanent("slow"));
    let mut config = quick();
    config.timeouts.http_response = Duration::from_millis(400);
    let balancer = Balancer::start(monoliths(&world, &["ewr"]).await, config).await;
    balancer.monoliths[0].freeze_loads();
    assert_eq!(balancer.get("/api/room/slow").await.status, 504);
    balancer.monoliths[0].thaw_loads();
    eventually("the room can be had", async || (balancer.get("/api/room/slow").await.status == 200).then_some(()))
        .await;
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_is_changed_over_http_all_the_time_is_not_quiet() {
    let world = World::new();
    world.add(RoomInfo::permanent("movie"));
    let mut config = quick();
    let quiet = Duration::from_millis(500);
    config.handover.quiet = quiet;
    let balancer = Balancer::start(monoliths(&world, &["ewr", "ewr"]).await, config).await;
    let mut client = balancer.join("movie", "a").await;
    loop {
        let from = balancer.owner("movie").await;
        let target = balancer.monoliths.iter().map(|monolith| monolith.id().to_string()).find(|id| *id != from);
        let to = json!({"to": target.unwrap()}).to_string();
        let lossy = balancer.metric("usher_handover_lossy_total").await;
        eventually("the move begins", async || {
            (balancer.api("POST", "/_usher/v1/rooms/movie/move", &to).await.status == 200).then_some(())
        })
        .await;
        // Nobody says anything in the room itself, so it would go after half a second.
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        eventually("the room has moved", async || {
            let answer = http::request(balancer.addr, "PATCH", "/api/room/movie", &[], "{}").await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            longest = longest.max(last.elapsed());
            last = Instant::now();
            (balancer.owner("movie").await != from).then_some(())
        })
        .await;
        client.synced(SOON).await.unwrap();
        // On a machine that stood still in between it may have been quiet after all.
        if longest < quiet {
            assert_eq!(balancer.metric("usher_handover_lossy_total").await, lossy + 1.0);
            break;
        }
    }
    drop(client);
    balancer.finish().await;
}
