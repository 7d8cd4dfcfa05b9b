//! One room on two Monoliths: the older load wins, its members stay, and the loser is told once, if it has the room.

use usher::testkit::monolith::UnloadReason;
use usher::testkit::{Client, Monolith, World};

use crate::harness::*;

struct Pair {
    world: World,
    a: Monolith,
    b: Monolith,
    balancer: Balancer,
}

/// Two Monoliths of which the first has the smaller id.
async fn pair() -> Pair {
    let world = world_with(["x"]);
    let a = monolith(&world).id("00000000-0000-4000-8000-00000000000a").start().await.unwrap();
    let b = monolith(&world).id("00000000-0000-4000-8000-00000000000b").start().await.unwrap();
    let balancer = Balancer::start(&[&a, &b]).await;
    Pair { world, a, b, balancer }
}

/// The winner keeps the room whatever the loser says, and the loser was told exactly once.
async fn settled(balancer: &Balancer, winner: &Monolith, loser: &Monolith, client: Client) {
    holds(loser, |state| state.unload_count() == 1 && state.rooms().is_empty()).await;
    assert!(loser.unloads()[0].loaded);
    // Old news about the room from the loser: neither takes it from its owner.
    loser.say_raw(r#"{"type":"unloaded","payload":{"name":"x","reason":"Commanded"}}"#);
    loser.gossip_now();
    winner.gossip_now();
    let another = balancer.join("x", "another").await;
    holds(winner, |state| state.members("x").len() == 2).await;
    assert!(winner.unloads().is_empty());
    assert_eq!(loser.unloads().len(), 1);
    assert_eq!(balancer.clients_of("x").await.len(), 2);
    drop((client, another));
    nobody_left(balancer, &[winner, loser]).await;
}

#[tokio::test]
async fn f26_a_younger_copy_elsewhere_is_unloaded_and_the_owner_keeps_its_members() {
    let Pair { a, b, balancer, .. } = pair().await;
    let mut client = balancer.join("x", "t").await;
    let (owner, other) = if a.loads() == 1 { (&a, &b) } else { (&b, &a) };
    other.load("x");
    holds(other, |state| state.unload_count() == 1).await;
    owner.say("x", None, r#"{"still":"here"}"#);
    client.recv_until(SOON, |text| text == r#"{"still":"here"}"#).await.unwrap();
    settled(&balancer, owner, other, client).await;
}

#[tokio::test]
async fn f42_an_older_copy_elsewhere_takes_over_and_old_news_of_the_loser_changes_nothing() {
    let Pair { world, a, b, balancer } = pair().await;
    world.set_epoch(100);
    let mut client = balancer.join("x", "t").await;
    let (owner, other) = if a.loads() == 1 { (&a, &b) } else { (&b, &a) };
    world.set_epoch(50);
    other.load("x");
    // F-13: not the user's fault, so it goes along.
    holds(other, |state| state.members("x").len() == 1).await;
    client.synced(SOON).await.unwrap();
    settled(&balancer, other, owner, client).await;
}

#[tokio::test]
async fn f13_clients_of_the_loser_are_closed_with_a_code_on_which_they_come_back_where_clients_are_closed() {
    let world = world_with(["x"]);
    let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
    let balancer = Balancer::start_with(&[&a, &b], closing).await;
    world.set_epoch(100);
    let mut client = balancer.join("x", "t").await;
    let (owner, other) = if a.loads() == 1 { (&a, &b) } else { (&b, &a) };
    world.set_epoch(50);
    other.load("x");
    assert_eq!(client.closed(SOON).await.unwrap().code, 1012);
    let back = balancer.join("x", "t").await;
    holds(other, |state| state.members("x").len() == 1).await;
    settled(&balancer, other, owner, back).await;
}

#[tokio::test]
async fn f19_of_equal_epochs_the_smaller_id_wins() {
    for a_first in [true, false] {
        let Pair { world, a, b, balancer } = pair().await;
        let order = if a_first { [&a, &b] } else { [&b, &a] };
        for monolith in order {
            world.set_epoch(7);
            monolith.load("x");
        }
        holds(&b, |state| state.unload_count() == 1).await;
        let client = balancer.join("x", "t").await;
        settled(&balancer, &a, &b, client).await;
    }
}

/// `b` loads with the last epoch before a wrap and `a` with the first one after it: `b` is older.
async fn wraps(last: u32, first: u32) {
    for b_first in [true, false] {
        let Pair { world, a, b, balancer } = pair().await;
        let mut order = [(&b, last), (&a, first)];
        if !b_first {
            order.reverse();
        }
        for (monolith, epoch) in order {
            world.set_epoch(epoch);
            monolith.load("x");
        }
        holds(&a, |state| state.unload_count() == 1).await;
        let client = balancer.join("x", "t").await;
        settled(&balancer, &b, &a, client).await;
    }
}

#[tokio::test]
async fn f19_the_real_counter_wraps() {
    wraps(2_147_483_640, 1).await;
}

#[tokio::test]
async fn f19_a_counter_of_32_bits_wraps() {
    wraps(u32::MAX, 0).await;
}

#[tokio::test]
async fn f06_two_balancers_agree_on_the_winner() {
    let Pair { world, a, b, balancer } = pair().await;
    let second = Balancer::start(&[&a, &b]).await;
    world.set_epoch(10);
    // The first balancer has sent the room there, so its turn to ask comes well before that of the second one, which has
    // clients there: one that asked as well would end the Monolith.
    let mut one = balancer.join("x", "t1").await;
    let (loser, winner) = if a.loads() == 1 { (&a, &b) } else { (&b, &a) };
    let mut two = second.join("x", "t2").await;
    world.set_epoch(9);
    winner.load("x");
    holds(loser, |state| state.unload_count() == 1 && state.rooms().is_empty()).await;
    holds(winner, |state| state.members("x").len() == 2).await;
    for client in [&mut one, &mut two] {
        client.synced(SOON).await.unwrap();
    }
    // The second one has heard that the room is gone, and asks no more.
    eventually("the other balancer spares its request", async || {
        match second.metric("usher_unloads_spared_total").await {
            1.0 => Ok(()),
            spared => Err(spared),
        }
    })
    .await;
    assert_eq!((balancer.metric("usher_unloads_total").await, second.metric("usher_unloads_total").await), (1.0, 0.0));
    assert!(winner.unloads().is_empty() && loser.unloads().iter().all(|unload| unload.loaded));
    drop((one, two));
    nobody_left(&second, &[&a, &b]).await;
    nobody_left(&balancer, &[&a, &b]).await;
    assert_eq!(loser.unloads().len(), 1);
}

#[tokio::test]
async fn f02_an_owner_that_unloads_by_itself_is_never_told_to() {
    let Pair { a, b, balancer, .. } = pair().await;
    for _ in 0..5 {
        let mut client = balancer.join("x", "t").await;
        let owner = if a.members("x").is_empty() { &b } else { &a };
        owner.unload("x", UnloadReason::Keepalive);
        assert_eq!(client.closed(SOON).await.unwrap().code, 4003);
    }
    assert!(a.unloads().is_empty() && b.unloads().is_empty());
    nobody_left(&balancer, &[&a, &b]).await;
}
