//! A balancer that starts while rooms are loaded: it learns what is where before it decides anything.

use std::time::Duration;

use usher::testkit::monolith::InitStyle;

use crate::harness::*;

#[tokio::test]
async fn f23_a_restarted_balancer_takes_rooms_up_as_they_are() {
    let rooms: Vec<String> = (0..10).map(|number| format!("room-{number}")).collect();
    let world = world_with(&rooms);
    world.set_epoch(5000);
    let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
    let mut first = Balancer::start(&[&a, &b]).await;
    let mut clients = Vec::new();
    for room in &rooms {
        clients.push(first.join(room, "t").await);
    }
    first.kill();
    for monolith in [&a, &b] {
        holds(monolith, |state| state.client_count() == 0).await;
    }
    let where_they_are: Vec<bool> = rooms.iter().map(|room| a.loads_of(room) == 1).collect();
    let second = Balancer::start(&[&a, &b]).await;
    for (room, on_a) in rooms.iter().zip(where_they_are) {
        let client = second.join(room, "t").await;
        assert_eq!((a.members(room).len(), b.members(room).len()), if on_a { (1, 0) } else { (0, 1) }, "{room}");
        drop(client);
    }
    assert_eq!(a.loads() + b.loads(), 10);
    assert!(a.unloads().is_empty() && b.unloads().is_empty());
    drop(clients);
    nobody_left(&second, &[&a, &b]).await;
}

#[tokio::test]
async fn f23_joins_wait_for_a_monolith_that_has_not_spoken_yet() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let late = InitStyle::Delayed(Duration::from_millis(400));
    let b = monolith(&world).init(late).start().await.unwrap();
    world.set_epoch(5000);
    b.load("x");
    let balancer = Balancer::start_unlinked(&[&a, &b], |_| {}).await;
    balancer.linked(1).await;
    // The only Monolith that is linked does not have the room, and is not asked for it.
    let client = balancer.join("x", "t").await;
    assert_eq!((a.joins().len(), a.loads()), (0, 0));
    assert_eq!((b.members("x").len(), b.loads()), (1, 1));
    assert!(a.unloads().is_empty() && b.unloads().is_empty());
    drop(client);
    nobody_left(&balancer, &[&a, &b]).await;
}

#[tokio::test]
async fn f23_a_monolith_that_never_speaks_is_not_waited_for_forever() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let mute = monolith(&world).init(InitStyle::Never).start().await.unwrap();
    let balancer = Balancer::start_unlinked(&[&a, &mute], |_| {}).await;
    balancer.linked(1).await;
    drop(balancer.join("x", "t").await);
    nobody_left(&balancer, &[&a]).await;
}
