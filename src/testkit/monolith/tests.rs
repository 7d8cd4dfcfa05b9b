//! Each handle does what it says, seen from a link that a test drives.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::super::balancer::{RawLink, Received};
use super::super::http;
use super::super::raw::RawFrame;
use super::*;

const SOON: Duration = Duration::from_secs(10);

async fn started(builder: Builder) -> (Monolith, RawLink) {
    let monolith = builder.start().await.unwrap();
    let link = RawLink::linked(monolith.link_addr()).await.unwrap();
    (monolith, link)
}

fn kinds(received: &[Received]) -> Vec<&str> {
    received.iter().map(Received::kind).collect()
}

fn payload(received: &Received) -> &Value {
    let Received::Frame(frame) = received else { panic!("no frame: {received:?}") };
    &frame["payload"]
}

async fn next(link: &mut RawLink) -> Received {
    link.next(SOON).await.unwrap()
}

/// Joins a loaded room and takes the six answers.
async fn join(link: &mut RawLink, room: &str, client: &str) -> Vec<Received> {
    link.join(room, client, "token").await;
    link.take(6, SOON).await.unwrap()
}

#[tokio::test]
async fn it_introduces_itself_and_then_lists_its_rooms() {
    let monolith = Monolith::builder(&World::new()).region("cdg").id("m1").token("secret").start().await.unwrap();
    monolith.load("Movie");
    let mut link = RawLink::open(monolith.link_addr()).await.unwrap();
    let init = next(&mut link).await;
    let expected = json!({"port": monolith.http_addr().port(), "region": "cdg", "id": "m1", "token": "secret"});
    assert_eq!(payload(&init), &expected);
    let gossip = next(&mut link).await;
    assert_eq!(payload(&gossip)["rooms"][0]["room"]["name"], "Movie");
    assert_eq!(payload(&gossip)["rooms"][0]["load_epoch"], 1);
}

#[tokio::test]
async fn without_an_init_it_closes_the_link() {
    let builder = Monolith::builder(&World::new()).init_timeout(Duration::from_millis(50));
    let monolith = builder.start().await.unwrap();
    let mut link = RawLink::dial(monolith.link_addr()).await.unwrap();
    assert_eq!(next(&mut link).await.kind(), "init");
    assert_eq!(next(&mut link).await, Received::Close(1002, "Balancer did not send init message".to_owned()));
}

#[tokio::test]
async fn spellings_differ_only_for_rooms_that_are_not_loaded() {
    let world = World::new();
    world.add(RoomInfo::permanent("Movie"));
    let (monolith, mut link) = started(Monolith::builder(&world)).await;
    link.join("movie", "c1", "t").await;
    assert_eq!(payload(&next(&mut link).await), &json!({"client_id": "c1", "reason": 4002}));
    link.join("Movie", "c2", "t").await;
    assert_eq!(next(&mut link).await.kind(), "loaded");
    link.take(6, SOON).await.unwrap();
    let answers = join(&mut link, "mOVIE", "c3").await;
    assert!(answers.iter().all(|answer| payload(answer)["room"] == "Movie"), "{answers:?}");
    assert_eq!(monolith.members("MOVIE"), ["c2", "c3"]);
    link.join("Movie", "c4", "").await;
    assert_eq!(payload(&next(&mut link).await)["reason"], 4004);
}

#[tokio::test]
async fn joins_that_cross_load_a_room_twice() {
    let world = World::new();
    world.add(RoomInfo::permanent("room"));
    let (monolith, mut link) = started(Monolith::builder(&world)).await;
    monolith.freeze_loads();
    link.join("room", "c1", "t").await;
    link.join("room", "c2", "t").await;
    monolith.wait_for(|state| state.frozen_loads() == 2, SOON).await.unwrap();
    monolith.thaw_loads();
    let all = link.until_pong(SOON).await.unwrap();
    let loaded: Vec<_> = all.iter().filter(|received| received.kind() == "loaded").collect();
    assert_eq!(loaded.len(), 2);
    assert_eq!(payload(loaded[0])["load_epoch"], payload(loaded[1])["load_epoch"]);
    assert_eq!((monolith.loads(), monolith.loads_of("ROOM"), world.epoch()), (2, 2, 3));
    monolith.gossip_now();
    assert_eq!(payload(&next(&mut link).await)["rooms"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_load_takes_its_time_and_is_asked_for_once() {
    let world = World::new();
    world.add(RoomInfo::permanent("room"));
    let (monolith, mut link) = started(Monolith::builder(&world).load_delay(Duration::from_millis(20))).await;
    link.send("load", json!({"room": "unknown"})).await;
    link.send("load", json!({"room": "room"})).await;
    assert!(link.until_pong(SOON).await.unwrap().is_empty());
    assert_eq!(next(&mut link).await.kind(), "loaded");
    link.send("load", json!({"room": "ROOM"})).await;
    assert!(link.until_pong(SOON).await.unwrap().is_empty());
    assert_eq!(monolith.loads(), 1);
}

#[tokio::test]
async fn a_client_id_that_joins_twice_must_leave_twice() {
    let (monolith, mut link) = started(Monolith::builder(&World::new())).await;
    monolith.load("room");
    next(&mut link).await;
    join(&mut link, "room", "c1").await;
    join(&mut link, "room", "c1").await;
    link.send("leave", json!({"client": "c1"})).await;
    let left = link.take(2, SOON).await.unwrap();
    assert_eq!(payload(&left[0])["payload"]["request"]["type"], 1);
    assert_eq!(payload(&left[1])["payload"]["update"]["kind"], "remove");
    assert_eq!(monolith.members("room"), ["c1"]);
    link.send("leave", json!({"client": "c1"})).await;
    link.send("leave", json!({"client": "c1"})).await;
    assert!(link.until_pong(SOON).await.unwrap().is_empty(), "nobody is left to hear it");
    let known: Vec<_> = monolith.leaves().iter().map(|leave| leave.known).collect();
    assert_eq!(known, [true, true, false]);
}

#[tokio::test]
async fn messages_of_clients_have_their_effects() {
    let (monolith, mut link) = started(Monolith::builder(&World::new())).await;
    monolith.load("room");
    next(&mut link).await;
    join(&mut link, "room", "c1").await;
    let message = |payload: Value| json!({"client_id": "c1", "payload": payload});
    let chat = json!({"action": "req", "request": {"type": 11, "text": "h\"i"}});
    link.send("client_msg", message(chat)).await;
    assert_eq!(payload(&next(&mut link).await)["payload"]["text"], "h\"i");
    for ignored in [json!(5), json!("x"), json!([1]), json!({"action": "zzz"})] {
        link.send("client_msg", message(ignored)).await;
    }
    link.send("client_msg", json!({"client_id": "nobody", "payload": null})).await;
    link.send_text("garbage").await;
    link.send("zzz", json!({})).await;
    assert!(link.until_pong(SOON).await.unwrap().is_empty());
    link.send("client_msg", message(json!({"action": "kickme", "reason": {"any": "json"}}))).await;
    assert_eq!(payload(&next(&mut link).await), &json!({"client_id": "c1", "reason": {"any": "json"}}));
    assert!(monolith.members("room").is_empty());
    assert_eq!(monolith.died(), None);
}

#[tokio::test]
async fn a_null_message_kills_it_and_it_comes_back_with_another_id() {
    let (monolith, mut link) = started(Monolith::builder(&World::new())).await;
    let id = monolith.id();
    monolith.load("room");
    next(&mut link).await;
    join(&mut link, "room", "c1").await;
    link.send("client_msg", json!({"client_id": "c1", "payload": null})).await;
    assert_eq!(next(&mut link).await, Received::End);
    monolith.stopped().await;
    assert!(monolith.died().unwrap().contains("null"));
    assert!(RawLink::dial(monolith.link_addr()).await.is_err());
    assert!(http::get(monolith.http_addr(), "/api/status").await.is_err());
    monolith.restart().await.unwrap();
    let mut link = RawLink::open(monolith.link_addr()).await.unwrap();
    assert_ne!(payload(&next(&mut link).await)["id"], id);
    assert_eq!(payload(&next(&mut link).await)["rooms"], json!([]));
    assert!(monolith.died().is_some(), "a death is not forgotten");
}

#[tokio::test]
async fn an_unload_of_a_room_that_is_not_loaded_kills_it() {
    let (monolith, mut link) = started(Monolith::builder(&World::new())).await;
    link.send("unload", json!({"room": "nothing"})).await;
    assert_eq!(next(&mut link).await, Received::End);
    assert!(monolith.died().unwrap().contains("nothing"));
    assert!(!monolith.unloads()[0].loaded);
}

#[tokio::test]
async fn an_unload_kicks_every_other_client() {
    let (monolith, mut link) = started(Monolith::builder(&World::new())).await;
    monolith.load("room");
    next(&mut link).await;
    for client in ["c1", "c2", "c3"] {
        join(&mut link, "room", client).await;
        link.until_pong(SOON).await.unwrap();
    }
    assert!(monolith.unload("ROOM", UnloadReason::Admin));
    let all = link.until_pong(SOON).await.unwrap();
    assert_eq!(kinds(&all), ["kick", "kick", "unloaded"]);
    let kicked: Vec<_> = all[..2].iter().map(|kick| payload(kick)["client_id"].as_str().unwrap()).collect();
    assert_eq!(kicked, ["c1", "c3"]);
    assert_eq!(payload(&all[2]), &json!({"name": "room", "reason": "Admin"}));
    assert_eq!(monolith.look(State::ghosts), ["c2"]);
    link.send("leave", json!({"client": "c2"})).await;
    monolith.wait_for(|state| state.ghosts().is_empty(), SOON).await.unwrap();
}

#[tokio::test]
async fn idle_rooms_go_and_take_temporary_ones_out_of_the_store() {
    let world = World::new();
    world.set_flush_after(Duration::ZERO);
    world.add(RoomInfo::permanent("perm"));
    let (monolith, mut link) = started(Monolith::builder(&world).keep_alive(Duration::from_millis(500))).await;
    monolith.load("perm");
    monolith.load("temp");
    link.take(2, SOON).await.unwrap();
    join(&mut link, "temp", "c1").await;
    assert_eq!(payload(&next(&mut link).await), &json!({"name": "perm", "reason": "Keepalive"}));
    assert_eq!(monolith.look(State::rooms), ["temp"], "a room with users stays");
    link.send("leave", json!({"client": "c1"})).await;
    assert_eq!(payload(&next(&mut link).await)["name"], "temp");
    assert!(world.find("perm").is_some() && world.find("temp").is_none());
}

#[tokio::test]
async fn a_stall_stops_the_link_until_it_is_resumed() {
    let (monolith, mut link) = started(Monolith::builder(&World::new())).await;
    monolith.stall();
    monolith.load("room");
    link.send("load", json!({"room": "x"})).await;
    link.next(Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(monolith.look(State::frame_count), 1, "only the init was read");
    monolith.resume();
    assert_eq!(next(&mut link).await.kind(), "loaded");
    monolith.wait_for(|state| state.frame_count() == 2, SOON).await.unwrap();
}

#[tokio::test]
async fn links_can_be_dropped_refused_and_closed() {
    let (monolith, mut link) = started(Monolith::builder(&World::new())).await;
    monolith.load("room");
    next(&mut link).await;
    join(&mut link, "room", "c1").await;
    monolith.stall();
    monolith.drop_links();
    assert_eq!(next(&mut link).await, Received::End);
    monolith.resume();
    assert_eq!(monolith.look(State::client_count), 0, "its clients go with a link");
    monolith.refuse(true);
    assert!(RawLink::dial(monolith.link_addr()).await.is_err());
    monolith.refuse(false);
    let mut link = RawLink::linked(monolith.link_addr()).await.unwrap();
    monolith.close_links(1012, "why");
    assert_eq!(next(&mut link).await, Received::Close(1012, "why".to_owned()));
}

#[tokio::test]
async fn its_init_can_be_late_wrong_or_missing() {
    let monolith = Monolith::start(&World::new()).await.unwrap();
    monolith.set_init(InitStyle::Text("garbage".to_owned()));
    let mut link = RawLink::open(monolith.link_addr()).await.unwrap();
    assert_eq!(next(&mut link).await, Received::Text("garbage".to_owned()));
    monolith.set_init(InitStyle::Binary);
    let mut link = RawLink::open(monolith.link_addr()).await.unwrap();
    assert_eq!(next(&mut link).await.kind(), "binary");
    monolith.set_init(InitStyle::Never);
    let mut link = RawLink::open(monolith.link_addr()).await.unwrap();
    assert_eq!(next(&mut link).await.kind(), "gossip");
    monolith.set_init(InitStyle::Delayed(Duration::from_millis(500)));
    let mut link = RawLink::open(monolith.link_addr()).await.unwrap();
    assert_eq!(kinds(&link.take(2, SOON).await.unwrap()), ["init", "gossip"]);
}

#[tokio::test]
async fn it_says_what_it_is_told() {
    let (monolith, mut link) = started(Monolith::builder(&World::new())).await;
    monolith.load("Room");
    next(&mut link).await;
    monolith.answer_joins(false);
    link.join("room", "c1", "t").await;
    monolith.wait_for(|state| state.client_count() == 1, SOON).await.unwrap();
    monolith.say("room", None, r#"{"n": 1}"#);
    monolith.say("room", Some("c1"), "2");
    monolith.say("other", Some("stranger"), "3");
    monolith.say_raw("as it stands");
    monolith.say_bytes(RawFrame::text(r#"{"type":"x"}"#).encode(false));
    assert!(!monolith.kick("stranger", 4005));
    assert!(monolith.kick("c1", json!("odd")));
    let all = link.until_pong(SOON).await.unwrap();
    assert_eq!(all[0], Received::Frame(json!({"type":"room_msg","payload":{"room":"Room","payload":{"n":1}}})));
    assert_eq!(payload(&all[1]), &json!({"room":"Room","client_id":"c1","payload":2}));
    assert_eq!(payload(&all[2]), &json!({"room":"other","client_id":"stranger","payload":3}));
    assert_eq!(all[3], Received::Text("as it stands".to_owned()));
    assert_eq!(all[4].kind(), "x");
    assert_eq!(payload(&all[5]), &json!({"client_id":"stranger","reason":4005}));
    assert_eq!(payload(&all[6]), &json!({"client_id":"c1","reason":"odd"}));
}

#[tokio::test]
async fn a_graceful_shutdown_is_one_close_frame_and_a_deaf_second() {
    let (monolith, mut link) = started(Monolith::builder(&World::new())).await;
    monolith.load("room");
    next(&mut link).await;
    join(&mut link, "room", "c1").await;
    monolith.begin_shutdown(Duration::from_secs(1));
    monolith.say("room", None, "1");
    assert_eq!(next(&mut link).await, Received::Close(1001, "Server shutting down".to_owned()));
    let mut deaf = RawLink::open(monolith.link_addr()).await.unwrap();
    assert_eq!(deaf.next(SOON).await.unwrap(), Received::End, "no init, until the process ends");
    monolith.stopped().await;
    assert!(RawLink::dial(monolith.link_addr()).await.is_err());
    assert_eq!(monolith.died(), None);
}

#[tokio::test]
async fn a_killed_or_dropped_monolith_leaves_nothing_behind() {
    let (monolith, mut link) = started(Monolith::builder(&World::new())).await;
    monolith.load("young");
    next(&mut link).await;
    monolith.kill().await;
    assert_eq!(next(&mut link).await, Received::End);
    assert!(monolith.look(State::rooms).is_empty());
    monolith.restart().await.unwrap();
    let mut link = RawLink::linked(monolith.link_addr()).await.unwrap();
    let addr = monolith.link_addr();
    drop(monolith);
    assert_eq!(next(&mut link).await, Received::End);
    assert!(RawLink::dial(addr).await.is_err());
}

#[tokio::test]
async fn two_links_with_one_id_share_their_fate() {
    let monolith = Monolith::start(&World::new()).await.unwrap();
    monolith.load("room");
    let mut old = RawLink::dial(monolith.link_addr()).await.unwrap();
    old.send("init", json!({"id": "b"})).await;
    old.take(2, SOON).await.unwrap();
    let mut new = RawLink::dial(monolith.link_addr()).await.unwrap();
    new.send("init", json!({"id": "b"})).await;
    new.take(2, SOON).await.unwrap();
    new.join("room", "c1", "t").await;
    let own = new.until_pong(SOON).await.unwrap();
    assert_eq!(own.len(), 3, "the unicasts come on its own link");
    assert_eq!(old.take(3, SOON).await.unwrap().len(), 3, "the broadcasts on the older one");
    drop(old);
    monolith.wait_for(|state| state.client_count() == 0, SOON).await.unwrap();
}

#[tokio::test]
async fn two_balancers_hear_a_room_once_each() {
    let (monolith, mut first) = started(Monolith::builder(&World::new())).await;
    let mut second = RawLink::linked(monolith.link_addr()).await.unwrap();
    monolith.load("room");
    assert_eq!((next(&mut first).await.kind(), next(&mut second).await.kind()), ("loaded", "loaded"));
    join(&mut first, "room", "c1").await;
    join(&mut second, "room", "c2").await;
    first.take(3, SOON).await.unwrap();
    monolith.say("room", None, "1");
    assert_eq!(payload(&next(&mut first).await)["payload"], 1);
    assert_eq!(payload(&next(&mut second).await)["payload"], 1);
    drop(second);
    assert_eq!(payload(&first.take(2, SOON).await.unwrap()[1])["payload"]["update"]["value"], "c2");
}

#[tokio::test]
async fn http_creates_loads_lists_and_deletes_rooms() {
    let world = World::new();
    world.add(RoomInfo::permanent("Stored"));
    let (monolith, mut link) = started(Monolith::builder(&world)).await;
    let addr = monolith.http_addr();
    let created = http::post(addr, "/api/room/generate", "{}").await.unwrap();
    // It was queued before the answer, so it is here.
    let loaded = next(&mut link).await;
    assert_eq!((created.status, loaded.kind()), (201, "loaded"));
    assert_eq!(created.json()["room"], payload(&loaded)["room"]["name"]);
    let body = r#"{"name":"movie","isTemporary":true,"visibility":"public"}"#;
    assert_eq!(http::post(addr, "/api/room/create", body).await.unwrap().status, 201);
    let taken = http::post(addr, "/api/room/create", r#"{"name":"MOVIE"}"#).await.unwrap();
    assert_eq!((taken.status, taken.json()["error"]["name"].as_str()), (400, Some("RoomNameTakenException")));
    let big = format!(r#"{{"name":"{}"}}"#, "x".repeat(200_000));
    assert_eq!(http::post(addr, "/api/room/create", &big).await.unwrap().status, 413);
    assert_eq!(http::get(addr, "/api/room/stored").await.unwrap().status, 404);
    assert_eq!(http::get(addr, "/api/room/Stored").await.unwrap().json()["name"], "Stored");
    assert_eq!(http::get(addr, "/api/room/stored").await.unwrap().status, 200, "loaded now: any spelling");
    let key = [("apikey", "test-key")];
    let all = http::get_with(addr, "/api/room/list", &key).await.unwrap().json();
    assert_eq!(all.as_array().unwrap().len(), 3);
    assert_eq!(http::get(addr, "/api/room/list").await.unwrap().json().as_array().unwrap().len(), 2);
    assert_eq!(http::get_with(addr, "/api/room/list", &[("apikey", "x")]).await.unwrap().status, 401);
    let deleted = http::request(addr, "DELETE", "/api/room/movie", &key, "").await.unwrap();
    assert_eq!((deleted.status, monolith.look(State::rooms).len()), (200, 2));
}

#[tokio::test]
async fn http_tries_the_patience_of_a_proxy() {
    let monolith = Monolith::start(&World::new()).await.unwrap();
    let addr = monolith.http_addr();
    let headers = [("x-forwarded-for", "10.0.0.1, 203.0.113.9")];
    let echo = http::request(addr, "PUT", "/echo/x?a=b", &headers, "body").await.unwrap().json();
    assert_eq!(
        (&echo["method"], &echo["target"], &echo["body"]),
        (&json!("PUT"), &json!("/echo/x?a=b"), &json!("body"))
    );
    assert_eq!(monolith.requests()[0].rate_limit_key(), Some("203.0.113.9"));
    assert_eq!(http::post(addr, "/upload", &"x".repeat(300_000)).await.unwrap().json()["bytes"], 300_000);
    let streamed = http::get(addr, "/stream/100000").await.unwrap();
    assert_eq!((streamed.body.len(), streamed.header("content-length")), (100_000, None));
    let sized = http::request(addr, "HEAD", "/sized/100000", &[], "").await.unwrap();
    assert_eq!((sized.body.len(), sized.header("content-length")), (0, Some("100000")));
    assert_eq!(http::get(addr, "/drip/3/1").await.unwrap().text(), "...");
    assert_eq!(http::get(addr, "/status/204").await.unwrap().status, 204);
    assert_eq!(http::get(addr, "/status/304").await.unwrap().status, 304);
    assert!(http::get(addr, "/raw/truncated").await.is_err());
    assert!(http::get(addr, "/raw/garbage").await.is_err());
    assert!(http::get(addr, "/raw/reset").await.is_err());
    assert_eq!(http::get(addr, "/raw/early-hints").await.unwrap().text(), "hello");
    let hints = http::raw(addr, b"GET /raw/early-hints HTTP/1.1\r\nhost: x\r\n\r\n", SOON).await.unwrap();
    assert!(hints.starts_with(b"HTTP/1.1 103 "));
    let trailers = b"GET /trailers HTTP/1.1\r\nhost: x\r\nte: trailers\r\nconnection: close\r\n\r\n";
    let trailers = http::raw(addr, trailers, SOON).await.unwrap();
    assert!(trailers.ends_with(b"0\r\nx-sum: 42\r\n\r\n"), "{}", String::from_utf8_lossy(&trailers));
    let hang =
        http::raw(addr, b"GET /hang-body HTTP/1.1\r\nhost: x\r\n\r\n", Duration::from_millis(100)).await.unwrap();
    assert!(String::from_utf8_lossy(&hang).contains("hello"));
}

#[tokio::test]
async fn an_idle_http_connection_is_closed() {
    let monolith = Monolith::builder(&World::new()).http_idle(Duration::from_millis(50)).start().await.unwrap();
    let answer = http::raw(monolith.http_addr(), b"GET /api/status HTTP/1.1\r\nhost: x\r\n\r\n", SOON);
    let answer = tokio::time::timeout(SOON / 2, answer).await.unwrap().unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test]
async fn it_reads_pings_and_binary_frames() {
    let (monolith, mut link) = started(Monolith::builder(&World::new())).await;
    link.send_message(Message::Binary(br#"{"type":"join","payload":{"room":"x","client":"c1"}}"#.as_slice().into()))
        .await;
    let all = link.until_pong(SOON).await.unwrap();
    assert_eq!(payload(&all[0]), &json!({"client_id": "c1", "reason": 4004}));
    assert_eq!(monolith.joins()[0].token, "");
}
