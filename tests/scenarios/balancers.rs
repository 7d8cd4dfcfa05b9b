//! Several balancers over the same Monoliths: they do not talk to each other, and come to the same end all the same.

use std::time::Duration;

use serde_json::Value;
use usher::config::{Config, PolicySource};
use usher::testkit::reconnect::Policy as Pace;
use usher::testkit::{Monolith, ReconnectingClient, World};

use crate::harness::*;
use crate::turns::start_apart;

const BRISK: f64 = 0.02;

fn pace() -> Pace {
    Pace { scale: BRISK, ..Pace::default() }
}

/// One that comes back whenever it is closed with a code on which it may.
pub(crate) fn visitor(balancer: &Balancer, room: &str) -> ReconnectingClient {
    ReconnectingClient::spawn(balancer.addr(), room, "t", pace())
}

pub(crate) fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("race-{n}")).collect()
}

pub(crate) fn shipped(config: &mut Config, name: &str) {
    config.policy.source = PolicySource::Shipped(name.into());
    // A busy machine takes its time, and a fault would let the built-in policy decide.
    config.policy.budget = Duration::from_secs(1);
}

/// A first join of each room through each balancer, all in the same instant.
pub(crate) fn race(balancers: &[&Balancer], rooms: &[String]) -> Vec<ReconnectingClient> {
    rooms.iter().flat_map(|room| balancers.iter().map(|balancer| visitor(balancer, room))).collect()
}

/// How often a room was loaded on each Monolith, and how many members it has there.
pub(crate) fn copies(monoliths: &[&Monolith], room: &str) -> Vec<(u64, usize)> {
    monoliths.iter().map(|monolith| (monolith.loads_of(room), monolith.members(room).len())).collect()
}

/// Waits until each room is on one Monolith alone, with so many members.
pub(crate) async fn gathered(monoliths: &[&Monolith], rooms: &[String], members: usize) {
    eventually("every room is on one Monolith, with everybody in it", async || {
        for room in rooms {
            let loaded = |monolith: &&&Monolith| monolith.look(|state| state.room_epoch(room).is_some());
            let owners: Vec<_> = monoliths.iter().filter(loaded).collect();
            if owners.len() != 1 || owners[0].members(room).len() != members {
                return Err((room.clone(), owners.len(), copies(monoliths, room)));
            }
        }
        Ok(())
    })
    .await;
}

/// Where a balancer says that a room is.
async fn owner(balancer: &Balancer, room: &str) -> Value {
    balancer.get(&format!("/_usher/v1/rooms/{room}")).await.json()["monolith"].clone()
}

/// Waits until all balancers name the Monolith that has the room.
pub(crate) async fn agreed(balancers: &[&Balancer], monoliths: &[&Monolith], rooms: &[String]) {
    for room in rooms {
        eventually("every balancer knows where the room is", async || {
            let there = monoliths.iter().find(|monolith| monolith.look(|state| state.room_epoch(room).is_some()));
            let there = there.map(|monolith| Value::from(monolith.id())).unwrap_or_default();
            let mut said = Vec::new();
            for balancer in balancers {
                said.push(owner(balancer, room).await);
            }
            if said.iter().all(|said| *said == there) { Ok(()) } else { Err((room.clone(), there, said)) }
        })
        .await;
    }
}

pub(crate) async fn all_gone(balancers: &[&Balancer], monoliths: &[&Monolith]) {
    for balancer in balancers {
        nobody_left(balancer, monoliths).await;
    }
}

async fn three(world: &World) -> [Monolith; 3] {
    [
        monolith(world).start().await.unwrap(),
        monolith(world).start().await.unwrap(),
        monolith(world).start().await.unwrap(),
    ]
}

/// First joins of the same rooms through so many balancers, with a policy of stable hash.
async fn hashed(balancers: usize, load_delay: Duration) {
    let rooms = names(60);
    let world = world_with(&rooms);
    let monoliths = three(&world).await;
    monoliths.iter().for_each(|monolith| monolith.delay_loads(load_delay));
    let monoliths = monoliths.each_ref();
    let mut started = Vec::new();
    for _ in 0..balancers {
        let change = |config: &mut Config| {
            shipped(config, "hash-ring");
            // Without a bound on what one Monolith gets: that bound depends on counts, which are never quite alike.
            config.policy.settings.insert("factor".into(), 0.into());
        };
        started.push(Balancer::start_with(&monoliths, change).await);
    }
    let started: Vec<&Balancer> = started.iter().collect();
    let clients = race(&started, &rooms);
    gathered(&monoliths, &rooms, balancers).await;
    let mut again = 0;
    for room in &rooms {
        let copies = copies(&monoliths, room);
        let loads: Vec<u64> = copies.iter().map(|(loads, _)| *loads).filter(|loads| *loads > 0).collect();
        assert_eq!(loads.len(), 1, "{room}: {copies:?}");
        // The first join of a room goes out alone, but each balancer has one, and the real Monolith loads a room once
        // more for each join that comes while it is loading it. Only claims prevent that.
        let most = if load_delay.is_zero() { 1 } else { balancers as u64 };
        assert!(loads[0] <= most, "{room}: {copies:?}");
        again += loads[0] - 1;
    }
    println!("{balancers} balancers, loads take {load_delay:?}: {again} of 60 rooms were loaded once more");
    for balancer in &started {
        assert_eq!(balancer.metric("usher_duplicates_total").await, 0.0);
    }
    for client in &clients {
        assert!(client.progress().codes.is_empty());
    }
    drop(clients);
    all_gone(&started, &monoliths).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f25_with_a_stable_hash_first_joins_through_several_balancers_end_on_one_monolith() {
    for balancers in [2, 3] {
        for load_delay in [0, 5] {
            hashed(balancers, Duration::from_millis(load_delay)).await;
        }
    }
}

/// First joins of the same rooms through so many balancers, each of which chooses for itself.
async fn chosen_at_random(balancers: usize) {
    let rooms = names(60);
    let world = world_with(&rooms);
    let monoliths = three(&world).await;
    let monoliths = monoliths.each_ref();
    let mut config = config_for(&monoliths.map(Monolith::link_addr));
    shipped(&mut config, "random");
    let started = start_apart(vec![config; balancers], &monoliths).await;
    let started: Vec<&Balancer> = started.iter().collect();
    let clients = race(&started, &rooms);
    gathered(&monoliths, &rooms, balancers).await;
    agreed(&started, &monoliths, &rooms).await;
    let mut extra = 0;
    for room in &rooms {
        // Each balancer has chosen once.
        let copies = copies(&monoliths, room);
        assert!(copies.iter().map(|(loads, _)| *loads).sum::<u64>() <= balancers as u64, "{room}: {copies:?}");
        extra += copies.iter().filter(|(loads, _)| *loads > 0).count() - 1;
    }
    println!("of 60 rooms raced through {balancers} balancers {extra} copies were too many");
    let corrected = corrected(&started, &monoliths).await;
    assert!(corrected >= extra as u64, "{corrected} of {extra}");
    for client in &clients {
        assert!(client.progress().codes.iter().all(|code| *code < 4000));
    }
    drop(clients);
    all_gone(&started, &monoliths).await;
}

/// Sees that each copy that was too many was asked to go once, by one of these balancers, and what they say of it.
/// Returns how many there were.
async fn corrected(balancers: &[&Balancer], monoliths: &[&Monolith]) -> u64 {
    let unloads = async || {
        let (mut sent, mut withheld) = (0_u64, 0);
        for balancer in balancers {
            sent += balancer.metric("usher_unloads_total").await as u64;
            // Its link knew better than its control thread.
            withheld += balancer.metric("usher_unloads_withheld_total").await as u64;
        }
        let obeyed: usize = monoliths.iter().map(|monolith| monolith.unloads().len()).sum();
        (sent.saturating_sub(withheld), obeyed as u64)
    };
    let corrected = eventually("each copy was asked to go once", async || match unloads().await {
        (sent, obeyed) if sent == obeyed => Ok(sent),
        seen => Err(seen),
    })
    .await;
    assert!(monoliths.iter().flat_map(|monolith| monolith.unloads()).all(|unload| unload.loaded));
    for (number, balancer) in balancers.iter().enumerate() {
        // Whoever knew of both copies has asked, or was spared that by another one. Where its link withheld what it asked, it
        // may have asked once more.
        let overlaps = eventually("the end of each overlap is noticed", async || {
            let overlaps = balancer.metric("usher_duplicate_overlaps_total").await;
            let asked = balancer.metric("usher_unloads_total").await;
            let spared = balancer.metric("usher_unloads_spared_total").await;
            let withheld = balancer.metric("usher_unloads_withheld_total").await;
            let exact = asked + spared;
            let is_told = (exact - withheld..=exact).contains(&overlaps);
            if is_told { Ok(overlaps) } else { Err((overlaps, asked, spared, withheld)) }
        })
        .await;
        assert!(overlaps <= corrected as f64);
        if overlaps == 0.0 {
            continue;
        }
        let all = balancer.metric("usher_duplicate_overlap_seconds_total").await;
        let longest = balancer.metric("usher_duplicate_overlap_seconds_max").await;
        assert!(longest > 0.0 && all >= longest && all <= longest * overlaps * 1.001);
        // Whoever sent a room to the loser or has members there asks in time: nobody else's turn comes.
        assert!(longest < 5.0, "{longest}");
        let mean = all / overlaps * 1e3;
        println!("{number}: {overlaps} overlaps, {mean:.0} ms on average, {:.0} at most", longest * 1e3);
    }
    corrected
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f25_with_any_other_policy_there_is_one_duplicate_at_most_and_it_is_corrected() {
    chosen_at_random(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f25_with_any_other_policy_three_balancers_make_two_duplicates_at_most_and_they_are_corrected() {
    chosen_at_random(3).await;
}

/// Every room is on as many Monoliths at once as balancers race, since each balancer sends it to another one: a real
/// Monolith dies of one `unload` too many, and so does a simulated one. Of the three balancers, nobody comes through
/// those that do not race; they see the duplicates like the others.
async fn raced_apart(racers: usize, count: usize) {
    let rooms = names(count);
    let world = world_with(&rooms);
    let [a, b, c] = three(&world).await;
    let monoliths = &[&a, &b, &c][..racers];
    let choices = [1, 2, 3].map(|choice| {
        PolicyFile::new(&format!("return {{ place = function(call) return call.monoliths[{choice}] end }}"))
    });
    let links: Vec<_> = monoliths.iter().map(|monolith| monolith.link_addr()).collect();
    let config = |number: usize| {
        let mut config = config_for(&links);
        choices[number % racers].set(&mut config);
        config.policy.budget = Duration::from_secs(1);
        // The loads are held back until all are under way, however long that takes.
        config.timeouts.load = SOON;
        config
    };
    let started = start_apart((0..3).map(config).collect(), monoliths).await;
    let started: Vec<&Balancer> = started.iter().collect();
    monoliths.iter().for_each(|monolith| monolith.freeze_loads());
    let clients = race(&started[..racers], &rooms);
    for monolith in monoliths {
        holds(monolith, |state| state.frozen_loads() == count).await;
    }
    monoliths.iter().for_each(|monolith| monolith.thaw_loads());
    gathered(monoliths, &rooms, racers).await;
    agreed(&started, monoliths, &rooms).await;
    // A join that was under way to the loser may load the room there once more, which is one more duplicate.
    let loads: u64 = monoliths.iter().map(|monolith| monolith.loads()).sum();
    assert!(loads >= (racers * count) as u64);
    assert_eq!(corrected(&started, monoliths).await, loads - count as u64);
    for client in &clients {
        assert!(client.progress().codes.iter().all(|code| *code < 4000));
    }
    drop(clients);
    all_gone(&started, monoliths).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f06_f02_monoliths_survive_two_hundred_raced_duplicates() {
    raced_apart(2, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f06_f02_monoliths_survive_a_hundred_rooms_that_are_on_three_of_them() {
    raced_apart(3, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f18_a_balancer_that_dies_takes_its_own_clients_along_and_nobody_elses() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let (mut one, two, three) =
        (Balancer::start(&[&a]).await, Balancer::start(&[&a]).await, Balancer::start(&[&a]).await);
    let doomed = [one.join("x", "1").await, one.join("x", "2").await];
    let (mut second, mut third) = (two.join("x", "3").await, three.join("x", "4").await);
    holds(&a, |state| state.members("x").len() == 4).await;
    one.kill();
    holds(&a, |state| state.members("x").len() == 2 && state.client_count() == 2 && state.link_count() == 2).await;
    a.say("x", None, r#"{"still":"here"}"#);
    for client in [&mut second, &mut third] {
        client.recv_until(SOON, |text| text == r#"{"still":"here"}"#).await.unwrap();
    }
    // Nor does it take the room along.
    let newcomer = two.join("X", "5").await;
    assert_eq!(a.loads(), 1);
    drop((doomed, second, third, newcomer));
    all_gone(&[&two, &three], &[&a]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f26_f42_old_news_of_a_former_owner_takes_the_room_from_no_balancer() {
    let world = world_with(["x"]);
    let a = monolith(&world).id("00000000-0000-4000-8000-00000000000a").start().await.unwrap();
    let b = monolith(&world).id("00000000-0000-4000-8000-00000000000b").start().await.unwrap();
    let first = PolicyFile::new("return { place = function(call) return call.monoliths[1] end }");
    let one = Balancer::start_with(&[&a, &b], |config| first.set(config)).await;
    let two = Balancer::start_with(&[&a, &b], |config| first.set(config)).await;
    world.set_epoch(100);
    let clients = [visitor(&one, "x"), visitor(&two, "x")];
    holds(&a, |state| state.members("x").len() == 2).await;
    // F-26: one that never had it says that it has gone.
    b.say_raw(r#"{"type":"unloaded","payload":{"name":"x","reason":"Keepalive"}}"#);
    b.gossip_now();
    a.say("x", None, r#"{"still":"here"}"#);
    agreed(&[&one, &two], &[&a, &b], &["x".into()]).await;
    assert!(clients.iter().all(|client| client.progress().codes.is_empty()));
    // F-42: an older load elsewhere wins; what the former owner says after it changes nothing.
    world.set_epoch(50);
    b.load("x");
    holds(&a, |state| state.unload_count() >= 1 && state.rooms().is_empty()).await;
    holds(&b, |state| state.members("x").len() == 2).await;
    a.say_raw(r#"{"type":"unloaded","payload":{"name":"x","reason":"Commanded"}}"#);
    a.gossip_now();
    b.gossip_now();
    agreed(&[&one, &two], &[&a, &b], &["x".into()]).await;
    assert_eq!((a.unloads().len(), b.unloads().len()), (1, 0));
    assert_eq!(b.members("x").len(), 2);
    drop(clients);
    all_gone(&[&one, &two], &[&a, &b]).await;
}
