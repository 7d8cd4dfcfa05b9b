//! The simulated Monolith says what the real one said: the same messages in the same order with the same keys, as the
//! recordings show; and recorded runs can be played again.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use usher::testkit::monolith::{Monolith, UnloadReason};
use usher::testkit::playback::{Playback, Script, perform};
use usher::testkit::recording::{Direction, Event, Kind};
use usher::testkit::{RawLink, Received, RoomInfo, World};

const SOON: Duration = Duration::from_secs(10);

/// The keys of a message, all the way down; what the values are does not count.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(object) => object.iter().map(|(key, value)| (key.clone(), shape(value))).collect(),
        Value::Array(array) => array.first().map(|first| json!([shape(first)])).unwrap_or_else(|| json!([])),
        _ => Value::Null,
    }
}

fn recorded_frames<'a>(events: impl IntoIterator<Item = &'a Event>) -> Vec<Value> {
    let from_monolith = |event: &&Event| event.direction == Some(Direction::M2b);
    let frames = events.into_iter().filter(from_monolith).filter_map(Event::frame);
    frames.map(|text| serde_json::from_str(text).unwrap()).collect()
}

fn shapes(frames: &[Value]) -> Vec<Value> {
    frames.iter().map(|frame| json!([frame["type"], frame["payload"]["payload"]["action"], shape(frame)])).collect()
}

/// The frames on a link until everything that was asked for is answered.
async fn said(link: &mut RawLink) -> Vec<Value> {
    let received = link.until_pong(SOON).await.unwrap();
    let frame = |received| match received {
        Received::Frame(frame) => frame,
        other => panic!("no frame: {other:?}"),
    };
    received.into_iter().map(frame).collect()
}

fn check(simulated: &[Value], recorded: &[Value]) {
    assert!(!recorded.is_empty(), "the recording shows nothing");
    pretty(&shapes(simulated), &shapes(recorded));
}

fn pretty(simulated: &[Value], recorded: &[Value]) {
    let text = |shapes: &[Value]| shapes.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    assert_eq!(text(simulated), text(recorded));
}

async fn with_room(name: &str) -> (World, Monolith, RawLink) {
    let world = World::new();
    let builder = Monolith::builder(&world).load_delay(Duration::ZERO);
    let monolith = builder.start().await.unwrap();
    world.add(RoomInfo::permanent(name));
    let link = RawLink::linked(monolith.link_addr()).await.unwrap();
    (world, monolith, link)
}

/// The Monolith's frames of a recorded step that are about this room.
fn about<'a>(events: &'a [Event], conn: &'a str, room: &'a str) -> impl Iterator<Item = &'a Event> {
    let named = move |event: &&Event| {
        let Some((_, payload)) = event.link_message() else { return false };
        [&payload["room"], &payload["room"]["name"], &payload["name"]].iter().any(|name| *name == room)
    };
    events.iter().filter(move |event| event.conn == conn).filter(named)
}

#[tokio::test]
async fn link_start_is_as_recorded() {
    let recording = support::recording("m-raw-link");
    let link = |event: &&Event| event.conn == "balancer-monolith:0" && event.generation == 1;
    let recorded = recorded_frames(recording.events().iter().filter(link));
    let (_, monolith, _link) = with_room("room").await;
    monolith.load("room");
    let mut link = RawLink::open(monolith.link_addr()).await.unwrap();
    check(&said(&mut link).await, &recorded[..2]);
}

#[tokio::test]
async fn a_join_of_a_loaded_room_is_answered_as_recorded() {
    let recorded = recorded_frames(support::recording("m-raw-link").step("join"));
    let (_, monolith, mut link) = with_room("room").await;
    monolith.load("room");
    link.join("room", "c1", "t").await;
    check(&said(&mut link).await[1..], &recorded);
}

#[tokio::test]
async fn a_join_of_an_unloaded_room_is_answered_as_recorded() {
    let recording = support::recording("f-keepalive-unload");
    let recorded = recorded_frames(about(recording.step("F2"), "balancer-monolith:0", "f-perm"));
    let (_, _monolith, mut link) = with_room("f-perm").await;
    link.join("f-perm", "c1", "t").await;
    // What follows in the recording is the room's own tick.
    check(&said(&mut link).await, &recorded[..7]);
}

#[tokio::test]
async fn a_join_of_an_unknown_room_is_answered_as_recorded() {
    let recording = support::recording("f-keepalive-unload");
    let step = recording.step("F2").iter().filter(|event| event.conn == "balancer-monolith:1");
    let recorded = recorded_frames(step);
    let (_, _monolith, mut link) = with_room("room").await;
    link.join("f-temp", "c1", "t").await;
    let simulated = said(&mut link).await;
    check(&simulated, &recorded);
    assert_eq!(simulated[0]["payload"]["reason"], recorded[0]["payload"]["reason"]);
}

#[tokio::test]
async fn a_leave_a_chat_and_a_kickme_are_answered_as_recorded() {
    let raw = support::recording("m-raw-link");
    let (_, monolith, mut link) = with_room("room").await;
    monolith.load("room");
    for client in ["c1", "c2", "c3"] {
        link.join("room", client, "t").await;
    }
    said(&mut link).await;
    let chat = json!({"action": "req", "request": {"type": 11, "text": "raw"}});
    link.send("client_msg", json!({"client_id": "c1", "payload": chat})).await;
    check(&said(&mut link).await, &recorded_frames(raw.step("chat")));
    link.send("leave", json!({"client": "c1"})).await;
    check(&said(&mut link).await, &recorded_frames(raw.step("leave of c1")));
    let room = support::recording("a-one-room-chat");
    let kicked = recorded_frames(room.step("kickme").iter().filter(|event| event.conn == "balancer-monolith:1"));
    link.send("client_msg", json!({"client_id": "c2", "payload": {"action": "kickme", "reason": 4005}})).await;
    // What follows in the recording is about a vote that was going on.
    check(&said(&mut link).await, &kicked[..3]);
}

#[tokio::test]
async fn an_unload_reaches_the_recorded_clients() {
    let recording = support::recording("f-keepalive-unload");
    for count in [1, 2, 3, 5, 7] {
        let room = format!("f3-room-{count}");
        let members: Vec<String> = recording
            .events()
            .iter()
            .filter_map(Event::link_message)
            .filter(|(kind, payload)| kind == "join" && payload["room"] == room.as_str())
            .map(|(_, payload)| payload["client"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(members.len(), count);
        let end = |(kind, payload): &(String, Value)| match kind.as_str() {
            "kick" => members.iter().any(|member| payload["client_id"] == member.as_str()),
            kind => kind == "unloaded" && payload["name"] == room.as_str(),
        };
        let recorded: Vec<_> = recording.events().iter().filter_map(Event::link_message).filter(end).collect();
        let (_, monolith, mut link) = with_room(&room).await;
        for member in &members {
            link.join(&room, member, "t").await;
        }
        said(&mut link).await;
        assert!(monolith.unload(&room, UnloadReason::Admin));
        let simulated: Vec<_> = said(&mut link)
            .await
            .into_iter()
            .map(|frame| (frame["type"].as_str().unwrap().to_owned(), frame["payload"].clone()))
            .collect();
        assert_eq!(simulated, recorded, "{count} clients");
    }
}

#[tokio::test]
async fn a_commanded_unload_is_answered_as_recorded() {
    let recording = support::recording("m-raw-link");
    let (_, monolith, mut link) = with_room("RawPerm").await;
    monolith.load("RawPerm");
    link.join("RawPerm", "c1", "t").await;
    link.join("RawPerm", "c2", "t").await;
    said(&mut link).await;
    link.send("unload", json!({"room": "RawPerm"})).await;
    let simulated = said(&mut link).await;
    let recorded = recorded_frames(recording.step("unload of a loaded room"));
    check(&simulated, &recorded);
    assert_eq!(simulated[0]["payload"]["reason"], recorded[0]["payload"]["reason"]);
    assert_eq!(simulated[1], recorded[1]);
}

#[tokio::test]
async fn a_graceful_shutdown_is_as_recorded() {
    let recording = support::recording("c-sigterm-one-monolith");
    let link = |generation| {
        let mine = move |event: &&Event| event.conn == "balancer-monolith:0" && event.generation == generation;
        recording.events().iter().filter(mine)
    };
    let from_monolith: Vec<_> = link(0).filter(|event| event.direction == Some(Direction::M2b)).collect();
    let Some(Kind::Close { code: Some(code), reason }) = from_monolith.last().map(|event| &event.kind) else {
        panic!("the last thing that was said is the close frame");
    };
    assert!(recorded_frames(link(1)).is_empty(), "the next link heard nothing");

    let (_, monolith, mut old) = with_room("room").await;
    monolith.load("room");
    old.join("room", "c1", "t").await;
    said(&mut old).await;
    monolith.begin_shutdown(Duration::from_secs(1));
    assert_eq!(old.next(SOON).await.unwrap(), Received::Close(*code, reason.clone()));
    let mut new = RawLink::open(monolith.link_addr()).await.unwrap();
    assert_eq!(new.next(SOON).await.unwrap(), Received::End);
}

#[tokio::test]
async fn what_kills_the_real_one_kills_the_simulated_one() {
    let recording = support::recording("m-raw-link");
    for name in ["unload of a room that is not loaded", "client_msg payload null"] {
        let step = recording.step(name);
        let fatal = step.iter().find_map(Event::frame).unwrap();
        assert!(recorded_frames(step).is_empty());
        let (_, monolith, mut link) = with_room("room").await;
        monolith.load("room");
        let client = serde_json::from_str::<Value>(fatal).unwrap()["payload"]["client_id"].clone();
        if let Some(client) = client.as_str() {
            link.join("room", client, "t").await;
        }
        said(&mut link).await;
        assert_eq!(monolith.died(), None, "{name}");
        link.send_text(fatal).await;
        assert_eq!(link.next(SOON).await.unwrap(), Received::End);
        assert!(monolith.died().is_some());
    }
}

#[test]
fn every_fixture_can_be_read_and_holds_no_real_token() {
    let names = [
        "a-one-room-chat",
        "b-forty-rooms",
        "c-sigterm-one-monolith",
        "d-kill9-one-monolith",
        "direct-http-ws",
        "e-duplicate-room-load",
        "f-keepalive-unload",
        "g-balancer-restart",
        "h-hostile-client",
        "i-concurrent-join-unloaded-rooms",
        "k-unload-of-room-not-loaded",
        "m-raw-link",
    ];
    for name in names {
        let recording = support::recording(name);
        assert!(recording.events().len() > 100, "{name}");
        for (kind, payload) in recording.events().iter().filter_map(Event::link_message) {
            if let (true, Some(token)) = (kind == "join", payload["token"].as_str()) {
                assert!(token.starts_with("token-") || token.len() < 10, "{name}: a token of {} bytes", token.len());
            }
        }
    }
}

/// Plays a recorded link through the plain balancer; every client must be delivered what the link had for it.
async fn plays(name: &str, monolith: u32, generation: u32, at_least: usize) {
    let script = Script::new(&support::recording(name), monolith, generation);
    let clients = script.clients().len();
    assert!(clients >= at_least, "{name}: {clients} clients");
    let playback = Playback::start(script, 80).await.unwrap();
    let balancer = support::PlainBalancer::start(playback.link_addr()).await;
    let deadline = Duration::from_secs(60);
    let performances =
        futures_util::future::join_all((0..clients).map(|index| perform(&playback, index, balancer.addr, deadline)));
    let performances = performances.await;
    for (performance, client) in performances.into_iter().zip(playback.script().clients()) {
        let performance = performance.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(performance.delivered, client.expected, "{name}: {}", client.recorded_id);
        assert_eq!(performance.closed.is_some(), client.kicked.is_some());
    }
    playback.finished(deadline).await.unwrap();
    assert_eq!(playback.surprises(), [""; 0]);
}

#[tokio::test]
async fn one_room_can_be_played_again() {
    plays("a-one-room-chat", 1, 0, 5).await;
}

#[tokio::test]
async fn four_busy_rooms_can_be_played_again() {
    plays("b-forty-rooms", 0, 0, 40).await;
    plays("b-forty-rooms", 1, 0, 15).await;
}

#[tokio::test]
async fn crossing_joins_and_unloads_can_be_played_again() {
    plays("i-concurrent-join-unloaded-rooms", 0, 1, 10).await;
    plays("f-keepalive-unload", 1, 0, 15).await;
}
