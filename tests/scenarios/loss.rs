//! Monoliths that go, and come back, where clients are closed: nobody is told to give up, and whoever is left serves.

use std::time::Duration;

use usher::testkit::client::ConnectError;
use usher::testkit::reconnect::Policy;
use usher::testkit::{Connect, Monolith, ReconnectingClient, http};

use crate::harness::*;

/// The web client's pace, a hundred times faster.
fn returning(balancer: &Balancer, room: &str, number: u64) -> ReconnectingClient {
    ReconnectingClient::spawn(balancer.addr(), room, &format!("t{number}"), Policy { scale: 0.01, seed: number })
}

async fn two_regions(rooms: &[&str]) -> (Monolith, Monolith, Balancer) {
    let world = world_with(rooms);
    let here = monolith(&world).start().await.unwrap();
    let there = monolith(&world).region(THERE).start().await.unwrap();
    let balancer = Balancer::start_with(&[&here, &there], closing).await;
    (here, there, balancer)
}

#[tokio::test]
async fn f11_the_other_region_takes_over_within_one_attempt() {
    let (here, there, balancer) = two_regions(&["old", "new"]).await;
    let mut old = balancer.join("old", "t").await;
    here.kill().await;
    // A join that is placed on the dead link is placed again: the client notices nothing.
    let new = balancer.join("new", "t").await;
    assert_eq!(old.closed(SOON).await.unwrap().code, 1001);
    let back = balancer.join("old", "t").await;
    assert_eq!((there.members("new").len(), there.members("old").len()), (1, 1));
    drop((old, new, back));
    nobody_left(&balancer, &[&there]).await;
}

#[tokio::test]
async fn f14_a_dead_monolith_takes_nobody_with_it() {
    let world = world_with(["x", "y"]);
    let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
    let balancer = Balancer::start_with(&[&a, &b], closing).await;
    let mut x = balancer.join("x", "t").await;
    let mut y = balancer.join("y", "t").await;
    assert_eq!((a.loads(), b.loads()), (1, 1));
    let (dead, alive_one, victim, other) =
        if a.members("x").is_empty() { (&b, &a, &mut x, &mut y) } else { (&a, &b, &mut x, &mut y) };
    dead.kill().await;
    assert_eq!(victim.closed(SOON).await.unwrap().code, 1001);
    for _ in 0..10 {
        assert_eq!(http::get(balancer.addr(), "/echo").await.unwrap().status, 200);
    }
    alive_one.say("y", None, r#"{"still":"here"}"#);
    other.recv_until(SOON, |text| text == r#"{"still":"here"}"#).await.unwrap();
    balancer.linked(1).await;
    alive(&[&a, &b]);
}

#[tokio::test]
async fn f22_what_is_listed_and_gone_gets_nothing_and_returns() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start_with(&[&a], closing).await;
    let mut client = balancer.join("x", "t").await;
    let old_id = a.id();
    a.kill().await;
    assert_eq!(client.closed(SOON).await.unwrap().code, 1001);
    balancer.linked(0).await;
    assert_eq!(balancer.get("/_usher/ready").await.status, 503);
    let refused = Connect::room(balancer.addr(), "x", "t").open().await.err();
    let Some(ConnectError::Refused { status: 503, headers, .. }) = refused else { panic!("{refused:?}") };
    assert!(headers.iter().any(|(name, _)| name == "retry-after"), "{headers:?}");
    a.restart().await.unwrap();
    balancer.linked(1).await;
    assert_ne!(a.id(), old_id);
    assert_eq!(balancer.monoliths().await[0]["id"], a.id());
    drop(balancer.join("x", "t").await);
    nobody_left(&balancer, &[&a]).await;
}

/// Clients of the lost region come back and are served by the other one, and HTTP never says 503 meanwhile.
async fn region_is_lost(graceful: bool) {
    let rooms = ["r0", "r1", "r2", "r3"];
    let (here, there, balancer) = two_regions(&rooms).await;
    let clients: Vec<_> = (0..40).map(|number| returning(&balancer, rooms[number % 4], number as u64)).collect();
    for client in &clients {
        client.wait_for(|progress| progress.syncs == 1, SOON).await.unwrap();
    }
    assert_eq!(here.look(|state| state.client_count()), 40);
    let addr = balancer.addr();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let polling = tokio::spawn(async move {
        let mut statuses = Vec::new();
        while stopped.try_recv().is_err() {
            statuses.push(http::get(addr, "/api/auth/grant").await.unwrap().status);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        statuses
    });
    if graceful {
        here.begin_shutdown(Duration::from_millis(300));
    } else {
        here.kill().await;
    }
    for client in &clients {
        let progress = client.wait_for(|progress| progress.syncs == 2 && progress.connected, SOON).await.unwrap();
        assert!(!progress.codes.is_empty() && progress.codes.iter().all(|code| *code < 4000), "{progress:?}");
        assert!(!progress.given_up);
    }
    here.stopped().await;
    stop.send(()).unwrap();
    let statuses = polling.await.unwrap();
    assert!(!statuses.is_empty() && !statuses.contains(&503), "{statuses:?}");
    for room in rooms {
        assert_eq!((there.members(room).len(), there.loads_of(room)), (10, 1), "{room}");
    }
    drop(clients);
    nobody_left(&balancer, &[&there]).await;
    alive(&[&here]);
}

#[tokio::test]
async fn f54_after_a_graceful_end_the_other_region_serves_everybody() {
    region_is_lost(true).await;
}

#[tokio::test]
async fn f54_after_a_sudden_end_the_other_region_serves_everybody() {
    region_is_lost(false).await;
}

#[tokio::test]
async fn f53_a_monolith_that_restarts_is_linked_again_every_time() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start_with(&[&a], closing).await;
    let client = returning(&balancer, "x", 1);
    for round in 1..=20 {
        client.wait_for(|progress| progress.syncs == round && progress.connected, SOON).await.unwrap();
        // The dying process shakes hands for a while and says nothing.
        a.begin_shutdown(Duration::from_millis(250));
        a.stopped().await;
        a.restart().await.unwrap();
        balancer.linked(1).await;
    }
    let progress = client.wait_for(|progress| progress.syncs == 21, SOON).await.unwrap();
    assert!(progress.codes.iter().all(|code| *code < 4000), "{progress:?}");
    drop(client);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn f18_a_balancer_that_dies_leaves_the_clients_of_others_alone() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let mut first = Balancer::start(&[&a]).await;
    let second = Balancer::start(&[&a]).await;
    let lost = first.join("x", "t1").await;
    let mut kept = second.join("x", "t2").await;
    holds(&a, |state| state.members("x").len() == 2).await;
    first.kill();
    holds(&a, |state| state.members("x").len() == 1).await;
    a.say("x", None, r#"{"still":"here"}"#);
    kept.recv_until(SOON, |text| text == r#"{"still":"here"}"#).await.unwrap();
    drop((lost, kept));
    nobody_left(&second, &[&a]).await;
}
