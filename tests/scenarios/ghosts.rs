//! Clients that leave, vanish or are thrown out: nobody is left behind, on no side, and each learns why.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use usher::testkit::monolith::UnloadReason;
use usher::testkit::reconnect::Policy;
use usher::testkit::{Client, Monolith, RawFrame, RawSocket, ReconnectingClient, http};

use crate::harness::*;

/// A Monolith with one room, and a balancer.
async fn one() -> (Monolith, Balancer) {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start_with(&[&a], closing).await;
    (a, balancer)
}

fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

#[tokio::test]
async fn f01_the_leave_goes_where_the_join_went_whatever_became_of_the_room() {
    let (a, balancer) = one().await;
    let mut clients = Vec::new();
    for n in 0..4 {
        clients.push(balancer.join("x", &format!("t{n}")).await);
    }
    let joined = sorted(a.members("x"));
    // The room is named no more, and then again.
    a.say_raw(r#"{"type":"gossip","payload":{"rooms":[]}}"#);
    a.gossip_now();
    for client in clients {
        drop(client);
    }
    holds(&a, |state| state.leave_count() == 4).await;
    assert_eq!(sorted(a.leaves().into_iter().map(|leave| leave.client).collect()), joined);
    nobody_left(&balancer, &[&a]).await;
    assert_eq!(a.leaves().len(), 4, "one for each join");
}

#[tokio::test]
async fn f01_an_unload_leaves_no_ghosts() {
    let cases = [
        (UnloadReason::Keepalive, 4003),
        (UnloadReason::Admin, 4003),
        (UnloadReason::Commanded, 1001),
        (UnloadReason::Shutdown, 1001),
    ];
    for (reason, code) in cases {
        let (a, balancer) = one().await;
        let mut clients = Vec::new();
        for n in 0..5 {
            clients.push(balancer.join("x", &format!("t{n}")).await);
        }
        a.unload("x", reason);
        for client in &mut clients {
            assert_eq!(client.closed(SOON).await.unwrap().code, code, "{reason:?}");
        }
        nobody_left(&balancer, &[&a]).await;
        // The real one kicks every other client; each of the others is owed a leave.
        assert_eq!(a.leaves().len(), 2, "{reason:?}");
    }
}

#[tokio::test]
async fn f33_a_client_that_goes_while_its_room_loads_leaves_no_ghost() {
    let (a, balancer) = one().await;
    a.freeze_loads();
    let client = Client::join(balancer.addr(), "x", "t").await.unwrap();
    holds(&a, |state| state.join_count() == 1).await;
    drop(client);
    holds(&a, |state| state.leave_count() == 1).await;
    assert_eq!(a.leaves()[0].client, a.joins()[0].client);
    eventually("no members", async || match balancer.members().await {
        0 => Ok(()),
        count => Err(count),
    })
    .await;
    assert_eq!(balancer.clients_of("x").await, [""; 0]);
    // Whoever comes next is served.
    let next = Client::join(balancer.addr(), "x", "next").await.unwrap();
    a.thaw_loads();
    let mut next = next;
    next.synced(SOON).await.unwrap();
    drop(next);
    // The Monolith had not known the client when its leave came, and let it in afterwards: it is told again.
    nobody_left(&balancer, &[&a]).await;
    let joined = a.joins()[0].client.clone();
    let leaves: Vec<_> = a.leaves().into_iter().filter(|leave| leave.client == joined).collect();
    assert_eq!(leaves.iter().map(|leave| leave.known).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn f33_clients_that_go_at_any_moment_of_their_join_leave_nobody_behind() {
    let (a, balancer) = one().await;
    let resident = balancer.join("x", "resident").await;
    for batch in 0..10 {
        let visits = (0..20).map(async |n| {
            let client = Client::join(balancer.addr(), "x", "t").await.unwrap();
            tokio::time::sleep(Duration::from_micros(200 * (n + batch) % 3000)).await;
            drop(client);
        });
        join_all(visits).await;
    }
    holds(&a, |state| state.client_count() == 1 && state.join_count() == state.leave_count() + 1).await;
    drop(resident);
    nobody_left(&balancer, &[&a]).await;
    assert!(a.leaves().iter().all(|leave| leave.known));
}

/// A Monolith counts the users of a room by joins and leaves, and unloads one that it takes for empty. A leave too many
/// would end a room under its members, and one too few would keep it for ever.
#[tokio::test]
async fn f31_a_room_with_members_is_never_taken_for_idle_and_one_without_is() {
    let world = world_with(["x"]);
    world.refuse_token("refused");
    let a = monolith(&world).keep_alive(Duration::from_millis(20)).start().await.unwrap();
    let balancer = Balancer::start_with(&[&a], closing).await;
    let mut resident = balancer.join("x", "resident").await;
    for round in 0..30 {
        // Visitors come and go in every way, most of them before their join is answered.
        let visits = (0..8).map(async |n| {
            let token = if n == 0 { "refused" } else { "t" };
            let mut client = Client::join(balancer.addr(), "x", token).await.unwrap();
            match n {
                0 => drop(client.closed(SOON).await.unwrap()),
                1 => drop(client.synced(SOON).await.unwrap()),
                2 => client.close(1000).await,
                _ => tokio::time::sleep(Duration::from_micros(200 * ((n + round) % 8))).await,
            }
        });
        join_all(visits).await;
        let mut kicked = balancer.join("x", "kicked").await;
        let member = a.joins().into_iter().rev().find(|join| join.token == "kicked").unwrap().client;
        assert!(a.kick(&member, 4005));
        kicked.closed(SOON).await.unwrap();
    }
    // One leave for each join that was not ended by a kick, but for the resident's.
    let kicks = 2 * 30;
    holds(&a, |state| state.client_count() == 1 && state.join_count() == state.leave_count() + kicks + 1).await;
    assert!(a.joins().len() > 150 && a.leaves().iter().all(|leave| leave.known));
    assert_eq!((a.loads_of("x"), a.look(|state| state.rooms().len())), (1, 1), "it never was without a member");
    resident.chat("still here").await;
    resident.recv_until(SOON, |text| text.contains("still here")).await.unwrap();
    drop(resident);
    holds(&a, |state| state.rooms().is_empty()).await;
    nobody_left(&balancer, &[&a]).await;
    assert!(a.unloads().is_empty(), "it goes by itself");
}

#[tokio::test]
async fn f57_an_admin_unload_closes_everybody_for_good() {
    for count in 1..=6 {
        let (a, balancer) = one().await;
        let policy = Policy { scale: 0.01, seed: 1 };
        let clients: Vec<_> =
            (0..count).map(|n| ReconnectingClient::spawn(balancer.addr(), "x", &format!("t{n}"), policy)).collect();
        for client in &clients {
            client.wait_for(|progress| progress.syncs == 1, SOON).await.unwrap();
        }
        let key = [("apikey", "test-key")];
        let answer = http::request(balancer.addr(), "DELETE", "/api/room/x", &key, "").await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        for client in &clients {
            let progress = client.wait_for(|progress| progress.given_up, SOON).await.unwrap();
            assert_eq!((progress.codes.as_slice(), progress.connections), ([4003].as_slice(), 1), "of {count}");
        }
        nobody_left(&balancer, &[&a]).await;
    }
}

#[tokio::test]
async fn f58_a_kicked_client_is_gone_from_the_state_at_once() {
    let (a, balancer) = one().await;
    let stays = balancer.join("x", "stays").await;
    // One that takes no notice of its close frame.
    let socket = RawSocket::join(balancer.addr(), "x", "kicked").await.unwrap();
    holds(&a, |state| state.members("x").len() == 2).await;
    eventually("two are shown", async || match balancer.clients_of("x").await.len() {
        2 => Ok(()),
        count => Err(count),
    })
    .await;
    let [first, second] = a.joins().try_into().unwrap();
    a.kick(&second.client, 4005);
    eventually("the kicked one is gone", async || match balancer.clients_of("x").await {
        clients if clients.len() == 1 => Ok(()),
        clients => Err(clients),
    })
    .await;
    let room = balancer.get("/_usher/v1/rooms/x").await.json();
    assert_eq!(room["clients"], 1, "{room}");
    drop((stays, socket));
    nobody_left(&balancer, &[&a]).await;
    let left: Vec<_> = a.leaves().into_iter().map(|leave| leave.client).collect();
    assert_eq!(left, [first.client], "after a kick no leave is due");
}

#[tokio::test]
async fn kicks_close_with_their_reason_or_with_4000() {
    let (a, balancer) = one().await;
    let cases: [(Value, u16); 12] = [
        (json!(4005), 4005),
        (json!(4004), 4004),
        (json!(1000), 1000),
        (json!(1001), 1001),
        (json!(3000), 3000),
        (json!(1005), 4000),
        (json!(0), 4000),
        (json!(70_000), 4000),
        (json!(-1), 4000),
        (json!("4005"), 4000),
        (json!({"code": 4005}), 4000),
        (Value::Null, 4000),
    ];
    for (reason, code) in cases {
        let mut client = balancer.join("x", "t").await;
        let member = a.members("x")[0].clone();
        assert!(a.kick(&member, reason.clone()));
        assert_eq!(client.closed(SOON).await.unwrap().code, code, "{reason}");
    }
    nobody_left(&balancer, &[&a]).await;
    assert!(a.leaves().is_empty());
}

#[tokio::test]
async fn a_refused_token_closes_with_4004() {
    let world = world_with(["x"]);
    world.refuse_token("bad");
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start(&[&a]).await;
    let mut bad = Client::join(balancer.addr(), "x", "bad").await.unwrap();
    assert_eq!(bad.closed(SOON).await.unwrap().code, 4004);
    drop(balancer.join("x", "good").await);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn f20_a_client_that_vanished_is_found_and_the_monolith_is_told() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start_with(&[&a], |config| config.heartbeat.interval = Duration::from_millis(400)).await;
    let vanished = RawSocket::join(balancer.addr(), "x", "vanished").await.unwrap();
    holds(&a, |state| state.members("x").len() == 1).await;
    let mut answers = balancer.join("x", "answers").await;
    holds(&a, |state| state.leave_count() == 1).await;
    assert_eq!(a.leaves()[0].client, a.joins()[0].client);
    assert_eq!(a.members("x").len(), 1, "whoever answers stays");
    eventually("it is counted", async || match balancer.metric("usher_client_vanished_total").await {
        1.0 => Ok(()),
        count => Err(count),
    })
    .await;
    a.say("x", None, r#"{"still":"here"}"#);
    answers.recv_until(SOON, |text| text == r#"{"still":"here"}"#).await.unwrap();
    drop((vanished, answers));
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn a_client_that_only_ends_its_half_of_the_connection_has_left() {
    let (a, balancer) = one().await;
    let mut socket = RawSocket::join(balancer.addr(), "x", "t").await.unwrap();
    holds(&a, |state| state.members("x").len() == 1).await;
    socket.half_close().await.unwrap();
    nobody_left(&balancer, &[&a]).await;
    let mut socket = RawSocket::join(balancer.addr(), "x", "t").await.unwrap();
    holds(&a, |state| state.members("x").len() == 1).await;
    let close = RawFrame { opcode: 8, payload: 1000_u16.to_be_bytes().to_vec(), ..RawFrame::text("") };
    socket.send(&close).await.unwrap();
    assert_eq!(socket.closed(SOON).await.unwrap(), 1000);
    nobody_left(&balancer, &[&a]).await;
}
