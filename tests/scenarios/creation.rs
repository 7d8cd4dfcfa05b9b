//! Rooms that are born: created and joined at once, missing and then created, wanted by many in the same instant.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use usher::testkit::{Client, Connect, Monolith, RoomInfo, http};

use crate::harness::*;

async fn create(balancer: &Balancer, name: &str) {
    let body = json!({"name": name, "isTemporary": true}).to_string();
    let answer = http::post(balancer.addr(), "/api/room/create", &body).await.unwrap();
    assert_eq!(answer.status, 201, "{name}: {}", answer.text());
}

async fn generate(balancer: &Balancer) -> String {
    let answer = http::post(balancer.addr(), "/api/room/generate", "").await.unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()["room"].as_str().unwrap().to_owned()
}

/// A young temporary room is known to its own Monolith alone, so whoever is sent elsewhere gets 4002 instead of a
/// state.
async fn race(count: usize, generated: bool) {
    let world = world_with([""; 0]);
    let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
    let balancer = Balancer::start(&[&a, &b]).await;
    let racers = (0..8).map(async |racer| {
        for round in 0..count / 8 {
            let name = if generated {
                generate(&balancer).await
            } else {
                let name = format!("race-{racer}-{round}");
                create(&balancer, &name).await;
                name
            };
            drop(balancer.join(&name, "t").await);
        }
    });
    join_all(racers).await;
    assert_eq!(a.loads() + b.loads(), count as u64);
    assert!(a.loads() > 0 && b.loads() > 0);
    nobody_left(&balancer, &[&a, &b]).await;
    assert!(a.unloads().is_empty() && b.unloads().is_empty());
}

#[tokio::test]
async fn f07_a_room_can_be_joined_as_soon_as_it_is_created() {
    race(1000, false).await;
}

#[tokio::test]
async fn f07_a_room_can_be_joined_as_soon_as_it_is_generated() {
    race(1000, true).await;
}

#[tokio::test]
async fn f07_a_room_that_was_created_through_one_balancer_can_be_joined_through_another() {
    let world = world_with([""; 0]);
    // What a Monolith needs to find out that it does not know a room.
    let delay = Duration::from_millis(20);
    let a = monolith(&world).load_delay(delay).start().await.unwrap();
    let b = monolith(&world).load_delay(delay).start().await.unwrap();
    let (first, second) = (Balancer::start(&[&a, &b]).await, Balancer::start(&[&a, &b]).await);
    let lane = async |lane: usize| {
        for round in 0..50 {
            let name = format!("race-{lane}-{round}");
            create(&first, &name).await;
            drop(second.join(&name, "t").await);
        }
    };
    futures_util::future::join_all((0..20).map(lane)).await;
    nobody_left(&second, &[&a, &b]).await;
    assert_eq!(a.loads() + b.loads(), 1000);
    assert!(a.unloads().is_empty() && b.unloads().is_empty());
}

/// Joins go to `a`, creations to `b`.
const DIVIDED: &str = r#"
    return { place = function(call)
        local wanted = call.cause == "create" and "b" or "a"
        return usher.filter(call.monoliths, function(m) return m.id == wanted end)
    end }
"#;

async fn divided(delay: Duration) -> (Monolith, Monolith, Balancer) {
    let world = world_with([""; 0]);
    let a = monolith(&world).id("a").load_delay(delay).start().await.unwrap();
    let b = monolith(&world).id("b").start().await.unwrap();
    let policy = PolicyFile::new(DIVIDED);
    let balancer = Balancer::start_with(&[&a, &b], |config| policy.set(config)).await;
    (a, b, balancer)
}

#[tokio::test]
async fn f50_a_missing_room_that_is_joined_and_then_created_elsewhere_kills_nobody() {
    let (a, b, balancer) = divided(Duration::ZERO).await;
    for round in 0..20 {
        let name = format!("room-{round}");
        let mut visitor = Client::join(balancer.addr(), &name, "visitor").await.unwrap();
        assert_eq!(visitor.closed(SOON).await.unwrap().code, 4002);
        create(&balancer, &name).await;
        let client = balancer.join(&name, "visitor").await;
        assert_eq!((a.members(&name).len(), b.members(&name).len()), (0, 1));
        drop(client);
    }
    assert_eq!((a.joins().len(), b.loads()), (20, 20));
    for monolith in [&a, &b] {
        monolith.gossip_now();
    }
    nobody_left(&balancer, &[&a, &b]).await;
    assert!(a.unloads().is_empty() && b.unloads().is_empty());
}

#[tokio::test]
async fn f50_a_room_that_is_created_while_a_visitor_waits_for_it_elsewhere_takes_the_visitor_in() {
    let (a, b, balancer) = divided(Duration::from_millis(100)).await;
    for round in 0..5 {
        let name = format!("room-{round}");
        let mut visitor = Client::join(balancer.addr(), &name, "visitor").await.unwrap();
        holds(&a, |state| state.join_count() == round + 1).await;
        // The Monolith itself says so: that it is created elsewhere does not go through this balancer.
        b.load(&name);
        visitor.synced(SOON).await.unwrap();
        assert_eq!(b.members(&name).len(), 1);
    }
    // Each visitor was withdrawn where it waited; the last one's leave travels on a link of its own.
    holds(&a, |state| state.leave_count() == 5).await;
    nobody_left(&balancer, &[&a, &b]).await;
    assert!(a.unloads().is_empty() && b.unloads().is_empty());
}

#[tokio::test]
async fn f52_clients_that_come_in_the_same_instant_load_a_room_once() {
    let rooms: Vec<String> = (0..20).map(|number| format!("room-{number}")).collect();
    let world = world_with(&rooms);
    let slow = || monolith(&world).load_delay(Duration::from_millis(40));
    let (a, b) = (slow().start().await.unwrap(), slow().start().await.unwrap());
    let balancer = Balancer::start(&[&a, &b]).await;
    let all = rooms.iter().flat_map(|room| (0..4).map(move |number| (room, number)));
    let clients = join_all(all.map(|(room, number)| {
        let balancer = &balancer;
        async move { balancer.join(room, &format!("t{number}")).await }
    }));
    let clients = clients.await;
    assert_eq!(a.loads() + b.loads(), 20);
    for room in &rooms {
        assert_eq!(a.loads_of(room) + b.loads_of(room), 1, "{room}");
        assert_eq!(a.members(room).len() + b.members(room).len(), 4, "{room}");
    }
    drop(clients);
    nobody_left(&balancer, &[&a, &b]).await;
}

#[tokio::test]
async fn f52_http_requests_and_joins_of_one_instant_load_a_room_once() {
    let world = world_with(["x"]);
    let a = monolith(&world).load_delay(Duration::from_millis(60)).start().await.unwrap();
    let balancer = Balancer::start(&[&a]).await;
    let requests = join_all((0..4).map(|_| http::get(balancer.addr(), "/api/room/x")));
    let joins = join_all((0..4).map(async |_| balancer.join("x", "t").await));
    let (answers, clients) = tokio::join!(requests, joins);
    assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(|answer| answer.status == 200)));
    assert_eq!(a.loads_of("x"), 1);
    drop(clients);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn a_missing_room_closes_everybody_who_waits_for_it() {
    let world = world_with([""; 0]);
    let a = monolith(&world).load_delay(Duration::from_millis(30)).start().await.unwrap();
    let balancer = Balancer::start(&[&a]).await;
    let mut clients = join_all((0..5).map(|_| Connect::room(balancer.addr(), "nowhere", "t").open())).await;
    for client in &mut clients {
        assert_eq!(client.as_mut().unwrap().closed(SOON).await.unwrap().code, 4002);
    }
    assert_eq!(a.joins().len(), 1, "one question was enough");
    assert!(a.leaves().is_empty(), "after a kick no leave is due");
    nobody_left(&balancer, &[&a]).await;
}

/// The answer to a creation does not come: that says nothing about the room, so nobody makes it elsewhere.
#[tokio::test]
async fn f48_a_creation_that_times_out_is_not_made_on_a_second_monolith() {
    for made_in_time in [true, false] {
        let world = world_with([""; 0]);
        let a = monolith(&world).id("a").start().await.unwrap();
        let b = monolith(&world).id("b").start().await.unwrap();
        let policy = PolicyFile::new("return { place = function(call) return call.monoliths[1] end }");
        let balancer = Balancer::start_with(&[&a, &b], |config| {
            policy.set(config);
            config.policy.budget = Duration::from_secs(1);
            config.timeouts.http_response = Duration::from_millis(200);
            // For so long nobody knows whether the room is being made.
            config.timeouts.load = SOON;
        })
        .await;
        a.answer_creations(false);
        let body = json!({"name": "party", "isTemporary": true}).to_string();
        let post = || http::post(balancer.addr(), "/api/room/create", &body);
        let made = async {
            holds(&a, |state| state.http_count() == 1).await;
            if made_in_time {
                a.load_with(RoomInfo::temporary("party"));
            }
        };
        let (answer, ()) = tokio::join!(post(), made);
        assert_eq!(answer.unwrap().status, 504);
        if !made_in_time {
            // Nor does whoever tries again get a room elsewhere, which there would then be twice.
            assert_eq!(post().await.unwrap().status, 504);
            a.load_with(RoomInfo::temporary("party"));
        }
        let client = balancer.join("party", "t").await;
        assert_eq!((a.requests().len(), a.members("party").len()), (if made_in_time { 1 } else { 2 }, 1));
        assert_eq!((b.requests().len(), b.joins().len(), b.loads()), (0, 0, 0), "in time: {made_in_time}");
        drop(client);
        nobody_left(&balancer, &[&a, &b]).await;
        assert!(a.unloads().is_empty() && b.unloads().is_empty());
    }
}
