//! One cause after another for which a room changes its Monolith, with few clients and a close look.

use std::time::{Duration, Instant};

use serde_json::json;
use usher::config::QueueLimit;
use usher::testkit::monolith::UnloadReason;
use usher::testkit::{Client, Monolith, RoomInfo, World, http};

use super::{all_handed_over, drained, echo, seamless};
use crate::harness::*;

/// Two Monoliths, of which the first gets every room.
async fn pair(world: &World) -> (Monolith, Monolith, Balancer, PolicyFile) {
    let a = monolith(world).id("00000000-0000-4000-8000-00000000000a").start().await.unwrap();
    let b = monolith(world).id("00000000-0000-4000-8000-00000000000b").start().await.unwrap();
    let policy = PolicyFile::new("return { place = function(call) return call.monoliths[1] end }");
    let balancer = Balancer::start_with(&[&a, &b], |config| {
        policy.set(config);
        config.policy.budget = Duration::from_secs(1);
        seamless(config);
    })
    .await;
    (a, b, balancer, policy)
}

/// The client is in the room on this Monolith: it has had its full state, and what it says comes back.
async fn arrived(client: &mut Client, at: &Monolith, room: &str, members: usize) {
    holds(at, |state| state.members(room).len() == members).await;
    client.synced(SOON).await.unwrap();
    echo(client, "are you there").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_moves_a_room_and_its_clients_go_along() {
    let (a, b, balancer, _policy) = pair(&world_with(["Movie"])).await;
    // The first Monolith has loaded it under its own name; the next one knows it under no other.
    a.load("Movie");
    let (mut one, mut two) = (balancer.join("movie", "one").await, balancer.join("MOVIE", "two").await);
    let answer = balancer.post("/_usher/v1/rooms/movie/move", &json!({"to": b.id()})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    arrived(&mut one, &b, "Movie", 2).await;
    arrived(&mut two, &b, "Movie", 2).await;
    assert!(b.joins().iter().all(|join| join.room == "Movie"), "{:?}", b.joins());
    // A Monolith that still knew a client by its old id would take the new join for it.
    let clients = |monolith: &Monolith| monolith.joins().into_iter().map(|join| join.client).collect::<Vec<_>>();
    assert!(clients(&b).iter().all(|client| !clients(&a).contains(client)));
    assert_eq!((a.unloads().len(), a.loads_of("movie"), b.loads_of("movie")), (1, 1, 1));
    // The real one kicks every other client; each of the others is owed a leave, once.
    holds(&a, |state| state.leave_count() == 1 && state.ghosts().is_empty()).await;
    drop((one, two));
    nobody_left(&balancer, &[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_in_which_somebody_talks_is_moved_later_and_loses_nothing() {
    let (a, b, balancer, _policy) = pair(&world_with(["x"])).await;
    let mut client = balancer.join("x", "t").await;
    assert_eq!(balancer.post("/_usher/v1/rooms/x/move", &json!({"to": b.id()})).await.status, 200);
    // It never stops, so the room is never quiet.
    let (began, mut sent) = (Instant::now(), Vec::new());
    while b.members("x").is_empty() {
        assert!(began.elapsed() < SOON * 6, "it is never moved");
        let message = json!({"action": "echo", "number": sent.len()}).to_string();
        client.send(&message).await;
        sent.push(message);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for message in &sent {
        let got = client.recv_until(SOON, |text| text.starts_with(r#"{"action":"echo""#)).await.unwrap();
        assert_eq!(got.as_str(), message);
    }
    assert_eq!(balancer.metric("usher_handover_lossy_total").await, 1.0);
    drop(client);
    nobody_left(&balancer, &[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f12_f24_a_monolith_that_announces_its_shutdown_hands_over_and_gets_nothing_new() {
    let (a, b, balancer, _policy) = pair(&world_with(["x", "y", "z"])).await;
    let (mut x, mut y) = (balancer.join("x", "t").await, balancer.join("y", "t").await);
    // The first of its rooms goes.
    a.unload("x", UnloadReason::Shutdown);
    arrived(&mut x, &b, "x", 1).await;
    let z = balancer.join("z", "t").await;
    assert_eq!((b.members("z").len(), a.members("y").len()), (1, 1));
    // What it still has goes on there until it goes.
    echo(&mut y, "still here").await;
    a.begin_designed_shutdown(Duration::from_millis(50));
    arrived(&mut y, &b, "y", 1).await;
    assert_eq!((b.loads_of("x"), b.loads_of("y"), b.loads_of("z")), (1, 1, 1));
    drop((x, y, z));
    nobody_left(&balancer, &[&b]).await;
    alive(&[&a]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f13_clients_of_a_duplicate_that_lost_go_to_the_other_one() {
    let world = world_with(["x"]);
    let (a, b, balancer, _policy) = pair(&world).await;
    world.set_epoch(100);
    let mut client = balancer.join("x", "t").await;
    world.set_epoch(50);
    b.load("x");
    arrived(&mut client, &b, "x", 1).await;
    holds(&a, |state| state.unload_count() == 1 && state.rooms().is_empty()).await;
    assert_eq!(balancer.metric("usher_duplicates_total").await, 1.0);
    drop(client);
    nobody_left(&balancer, &[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f14_a_monolith_that_dies_closes_nobody() {
    let (a, b, balancer, _policy) = pair(&world_with(["x"])).await;
    let mut client = balancer.join("x", "t").await;
    a.kill().await;
    arrived(&mut client, &b, "x", 1).await;
    let state = balancer.get("/api/state").await.json();
    assert!(state["waiting"].is_null(), "nobody waits any more: {state}");
    for _ in 0..10 {
        assert_eq!(http::get(balancer.addr(), "/echo").await.unwrap().status, 200);
    }
    drop(client);
    nobody_left(&balancer, &[&b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f54_the_other_region_serves_everybody_and_closes_nobody() {
    for graceful in [true, false] {
        let rooms = ["r0", "r1", "r2", "r3"];
        let world = world_with(rooms);
        let here = monolith(&world).start().await.unwrap();
        let there = monolith(&world).region(THERE).start().await.unwrap();
        let balancer = Balancer::start_with(&[&here, &there], seamless).await;
        let mut clients = Vec::new();
        for n in 0..40 {
            clients.push(balancer.join(rooms[n % 4], &format!("t{n}")).await);
        }
        assert_eq!(here.look(|state| state.client_count()), 40);
        if graceful {
            here.begin_shutdown(Duration::from_millis(300));
        } else {
            here.kill().await;
        }
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(http::get(balancer.addr(), "/api/auth/grant").await.unwrap().status, 200);
            arrived(client, &there, rooms[n % 4], 10).await;
        }
        here.stopped().await;
        for room in rooms {
            assert_eq!(there.loads_of(room), 1, "{room}");
        }
        drop(clients);
        nobody_left(&balancer, &[&there]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f53_the_only_monolith_restarts_and_its_clients_wait_for_it() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start_with(&[&a], |config| {
        seamless(config);
        config.handover.window = SOON;
    })
    .await;
    let mut client = balancer.join("x", "t").await;
    a.kill().await;
    balancer.linked(0).await;
    // It waits, and so does what it says.
    client.send(r#"{"action":"echo","text":"meanwhile"}"#).await;
    let state = balancer.get("/api/state").await.json();
    assert_eq!(
        (&state["waiting"][0]["name"], state["monoliths"].as_array().unwrap().len()),
        (&json!("x"), 0),
        "{state}"
    );
    a.restart().await.unwrap();
    client.recv_until(SOON, |text| text.contains("meanwhile")).await.unwrap();
    all_handed_over(&balancer).await;
    assert_eq!(balancer.metric("usher_handover_held_frames_total").await, 1.0);
    drop(client);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_for_whom_there_is_no_monolith_in_time_are_closed_with_1012() {
    let a = monolith(&world_with(["x"])).start().await.unwrap();
    let balancer = Balancer::start_with(&[&a], |config| {
        seamless(config);
        config.handover.window = Duration::from_millis(200);
    })
    .await;
    let (mut one, mut two) = (balancer.join("x", "t1").await, balancer.join("x", "t2").await);
    a.kill().await;
    assert_eq!(one.closed(SOON).await.unwrap().code, 1012);
    assert_eq!(two.closed(SOON).await.unwrap().code, 1012);
    eventually("both are counted", async || match balancer.metric("usher_handover_window_closed_total").await {
        2.0 => Ok(()),
        count => Err(count),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_says_too_much_meanwhile_is_closed_with_1012() {
    // Four messages of 28 bytes each: one too many, or some bytes too many.
    for held in [QueueLimit { messages: 3, bytes: 1000 }, QueueLimit { messages: 100, bytes: 100 }] {
        let world = world_with(["x"]);
        let a = monolith(&world).start().await.unwrap();
        let balancer = Balancer::start_with(&[&a], |config| {
            seamless(config);
            config.handover.window = SOON;
            config.limits.held_frames = held;
        })
        .await;
        let mut client = balancer.join("x", "t").await;
        a.kill().await;
        balancer.linked(0).await;
        for n in 0..3 {
            client.send(&format!(r#"{{"action":"echo","number":{n}}}"#)).await;
        }
        eventually("what fits is held", async || match balancer.metric("usher_handover_held_frames_total").await {
            3.0 => Ok(()),
            count => Err(count),
        })
        .await;
        client.send(r#"{"action":"echo","number":3}"#).await;
        assert_eq!(client.closed(SOON).await.unwrap().code, 1012, "{held:?}");
        assert_eq!(balancer.metric("usher_handover_held_frames_total").await, 3.0, "{held:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_temporary_room_that_did_not_survive_is_lost_with_1012() {
    let world = World::new();
    let (a, b, balancer, _policy) = pair(&world).await;
    a.load_with(RoomInfo::temporary("temp"));
    eventually("the room is reported", async || match balancer.get("/_usher/v1/rooms/temp").await.status {
        200 => Ok(()),
        status => Err(status),
    })
    .await;
    let (mut one, mut two) = (balancer.join("temp", "t1").await, balancer.join("temp", "t2").await);
    // Its state had not been written.
    world.remove("temp");
    a.kill().await;
    assert_eq!(one.closed(SOON).await.unwrap().code, 1012);
    assert_eq!(two.closed(SOON).await.unwrap().code, 1012);
    eventually("both are counted", async || match balancer.metric("usher_handover_room_lost_total").await {
        2.0 => Ok(()),
        count => Err(count),
    })
    .await;
    nobody_left(&balancer, &[&b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_is_removed_or_unused_closes_with_4003_as_ever() {
    let (a, b, balancer, _policy) = pair(&world_with(["x"])).await;
    for reason in [UnloadReason::Admin, UnloadReason::Keepalive] {
        let mut clients = Vec::new();
        for n in 0..4 {
            clients.push(balancer.join("x", &format!("t{n}")).await);
        }
        a.unload("x", reason);
        for client in &mut clients {
            assert_eq!(client.closed(SOON).await.unwrap().code, 4003, "{reason:?}");
        }
    }
    nobody_left(&balancer, &[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_written_to_a_dead_monolith_goes_to_the_next_one() {
    let (a, b, balancer, _policy) = pair(&world_with(["x", "fill"])).await;
    let mut client = balancer.join("x", "t").await;
    // The Monolith reads nothing any more, and large messages fill every buffer between it and usher.
    let mut fillers = Vec::new();
    for n in 0..24 {
        fillers.push(balancer.join("fill", &format!("f{n}")).await);
    }
    a.stall_reading();
    let large = format!(r#"{{"action":"nothing","text":"{}"}}"#, "x".repeat(900 << 10));
    for filler in &fillers {
        filler.send(&large).await;
    }
    eventually("the queue of the link fills", async || match balancer.monoliths().await.len() {
        2 => match balancer.app().control().query(|cluster| cluster.view().rows()[0].queue).await.unwrap() {
            queued if queued > 4 << 20 => Ok(()),
            queued => Err(queued),
        },
        _ => Err(0),
    })
    .await;
    let words: Vec<String> = (0..20).map(|n| json!({"action": "echo", "number": n}).to_string()).collect();
    for word in &words {
        client.send(word).await;
    }
    eventually("they stand in the queue", async || match balancer.metric("usher_client_messages_total").await {
        // Fillers beyond what fits wait in their own sockets; all of this client's words are short.
        count if count >= 20.0 => Ok(()),
        count => Err(count),
    })
    .await;
    a.kill().await;
    for word in &words {
        let got = client.recv_until(SOON, |text| text.starts_with(r#"{"action":"echo""#)).await.unwrap();
        assert_eq!(got.as_str(), word);
    }
    assert!(balancer.metric("usher_handover_reclaimed_frames_total").await > 0.0);
    drop((client, fillers));
    nobody_left(&balancer, &[&b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_reported_ends_and_can_be_undone() {
    let (a, b, balancer, _policy) = pair(&world_with(["x", "y", "z"])).await;
    let (mut x, mut y) = (balancer.join("x", "t").await, balancer.join("y", "t").await);
    a.load("empty");
    drained(&balancer, &a).await;
    arrived(&mut x, &b, "x", 1).await;
    arrived(&mut y, &b, "y", 1).await;
    let monoliths = balancer.monoliths().await;
    let of = |id: &str| monoliths.iter().find(|monolith| monolith["id"] == id).unwrap().clone();
    let drain = &of(&a.id())["drain"];
    assert_eq!(
        (&of(&a.id())["state"], &drain["moved"], &drain["clients_left"]),
        (&json!("draining"), &json!(2), &json!(0))
    );
    assert_eq!(of(&b.id())["drain"], json!(null));
    let z = balancer.join("z", "t").await;
    assert_eq!(b.members("z").len(), 1, "a Monolith that is drained gets nothing new");
    // Its empty room unloads by itself.
    assert_eq!((a.look(|state| state.rooms()), a.unloads().len()), (vec!["empty".to_owned()], 2));
    let resume = format!("/_usher/v1/monoliths/{}/resume", a.id());
    assert_eq!(balancer.post(&resume, &json!(null)).await.json()["state"], "up");
    assert_eq!(balancer.post("/_usher/v1/monoliths/nobody/drain", &json!(null)).await.status, 404);
    assert_eq!(balancer.post(&format!("/_usher/v1/monoliths/{}/stop", a.id()), &json!(null)).await.status, 404);
    assert_eq!(balancer.get(&resume).await.status, 405);
    drop((x, y, z));
    nobody_left(&balancer, &[&a, &b]).await;
}
