//! Several balancers over the same Monoliths: they do not talk to each other, and come to the same end all the same.

use std::time::Duration;

use serde_json::Value;
use usher::config::{Config, PolicySource};
use usher::testkit::reconnect::Policy as Pace;
use usher::testkit::{Monolith, Proxy, ReconnectingClient, World};

use crate::harness::*;

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
async fn agreed(balancers: &[&Balancer], monoliths: &[&Monolith], rooms: &[String]) {
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

async fn all_gone(balancers: &[&Balancer], monoliths: &[&Monolith]) {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f25_with_any_other_policy_there_is_one_duplicate_at_most_and_it_is_corrected() {
    let rooms = names(60);
    let world = world_with(&rooms);
    let monoliths = three(&world).await;
    let monoliths = monoliths.each_ref();
    let one = Balancer::start_with(&monoliths, |config| shipped(config, "random")).await;
    let two = Balancer::start_with(&monoliths, |config| shipped(config, "random")).await;
    let clients = race(&[&one, &two], &rooms);
    gathered(&monoliths, &rooms, 2).await;
    agreed(&[&one, &two], &monoliths, &rooms).await;
    let mut extra = 0;
    for room in &rooms {
        // Each balancer has chosen once.
        let copies = copies(&monoliths, room);
        let loaded = copies.iter().filter(|(loads, _)| *loads > 0).count();
        assert!(loaded <= 2, "{room}: {copies:?}");
        extra += loaded - 1;
    }
    println!("of 60 raced rooms {extra} were on two Monoliths");
    for client in &clients {
        assert!(client.progress().codes.iter().all(|code| *code < 4000));
    }
    drop(clients);
    all_gone(&[&one, &two], &monoliths).await;
}

/// Every room is on both Monoliths at once, since each balancer sent it to another one: a real Monolith dies of one
/// `unload` too many, and so does a simulated one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f06_f02_monoliths_survive_two_hundred_raced_duplicates() {
    let rooms = names(200);
    let world = world_with(&rooms);
    let a = monolith(&world).id("00000000-0000-4000-8000-00000000000a").start().await.unwrap();
    let b = monolith(&world).id("00000000-0000-4000-8000-00000000000b").start().await.unwrap();
    let monoliths = [&a, &b];
    let choices = [1, 2].map(|choice| {
        PolicyFile::new(&format!("return {{ place = function(call) return call.monoliths[{choice}] end }}"))
    });
    let setup = |config: &mut Config, choice: Option<&PolicyFile>| {
        if let Some(choice) = choice {
            choice.set(config);
        }
        config.policy.budget = Duration::from_secs(1);
        // The loads are held back until all are under way, however long that takes.
        config.timeouts.load = SOON;
    };
    let one = Balancer::start_with(&monoliths, |config| setup(config, Some(&choices[0]))).await;
    let two = Balancer::start_with(&monoliths, |config| setup(config, Some(&choices[1]))).await;
    // Nobody comes through the third; it sees the duplicates like the others.
    let three = Balancer::start_with(&monoliths, |config| setup(config, None)).await;
    monoliths.iter().for_each(|monolith| monolith.freeze_loads());
    let clients = race(&[&one, &two], &rooms);
    for monolith in monoliths {
        holds(monolith, |state| state.frozen_loads() == 200).await;
    }
    monoliths.iter().for_each(|monolith| monolith.thaw_loads());
    gathered(&monoliths, &rooms, 2).await;
    assert!(a.loads() >= 200 && b.loads() >= 200);
    // A join that was under way to the loser may load the room there once more, which is one more duplicate.
    eventually("each load that lost was unloaded, and asked for once among all balancers", async || {
        let mut sent = 0;
        for balancer in [&one, &two, &three] {
            sent += balancer.metric("usher_unloads_total").await as u64;
        }
        let unloads = (a.unloads().len() + b.unloads().len()) as u64;
        let loads = a.loads() + b.loads();
        if sent == unloads && unloads == loads - 200 { Ok(()) } else { Err((sent, unloads, loads)) }
    })
    .await;
    assert!(monoliths.iter().flat_map(|monolith| monolith.unloads()).all(|unload| unload.loaded));
    for (name, balancer) in [("one", &one), ("two", &two), ("three", &three)] {
        let overlaps = balancer.metric("usher_duplicate_overlaps_total").await;
        assert!(overlaps >= 200.0);
        let (all, longest) = (
            balancer.metric("usher_duplicate_overlap_seconds_total").await,
            balancer.metric("usher_duplicate_overlap_seconds_max").await,
        );
        assert!(longest > 0.0 && all >= longest && all <= longest * overlaps * 1.001);
        println!(
            "{name}: {overlaps} overlaps, {:.0} ms on average, {:.0} at most",
            all / overlaps * 1e3,
            longest * 1e3
        );
    }
    drop(clients);
    all_gone(&[&one, &two, &three], &monoliths).await;
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

/// Two balancers, each with a road of its own to each Monolith.
struct Partitioned {
    a: Monolith,
    b: Monolith,
    roads: [Proxy; 4],
    one: Balancer,
    two: Balancer,
}

async fn partitioned(rooms: &[String]) -> Partitioned {
    let world = world_with(rooms);
    let a = monolith(&world).id("00000000-0000-4000-8000-00000000000a").start().await.unwrap();
    let b = monolith(&world).id("00000000-0000-4000-8000-00000000000b").start().await.unwrap();
    let mut roads = Vec::new();
    for target in [&a, &b, &a, &b] {
        roads.push(Proxy::start(target.link_addr()).await.unwrap());
    }
    let roads: [Proxy; 4] = roads.try_into().unwrap_or_else(|_| panic!("four roads"));
    let start = async |roads: &[Proxy]| {
        let addrs: Vec<_> = roads.iter().map(Proxy::addr).collect();
        let mut config = config_for(&addrs);
        shipped(&mut config, "hash-ring");
        config.heartbeat.interval = Duration::from_millis(300);
        let balancer = Balancer::start_config(config).await;
        balancer.linked(2).await;
        balancer
    };
    let (one, two) = (start(&roads[..2]).await, start(&roads[2..]).await);
    Partitioned { a, b, roads, one, two }
}

/// Breaks some of the four roads (those of the first balancer to `a` and `b`, then those of the second) for a while.
async fn heals(broken: &[usize], silently: bool) {
    let rooms = names(12);
    let Partitioned { a, b, roads, one, two } = partitioned(&rooms).await;
    let (balancers, monoliths) = ([&one, &two], [&a, &b]);
    let clients = race(&balancers, &rooms);
    gathered(&monoliths, &rooms, 2).await;
    for road in broken {
        if silently { roads[*road].swallow() } else { roads[*road].cut() }
    }
    // Each balancer finds out by itself what it cannot reach.
    for (balancer, own) in [(&one, 0..2), (&two, 2..4)] {
        balancer.linked(2 - broken.iter().filter(|road| own.contains(*road)).count()).await;
    }
    // Whoever was cut off comes back to what can be reached, if anything can.
    for (balancer, own) in [(&one, 0..2), (&two, 2..4)] {
        if broken.iter().filter(|road| own.contains(*road)).count() < 2 {
            eventually("every client is back", async || match balancer.members().await {
                12 => Ok(()),
                count => Err(count),
            })
            .await;
        }
    }
    for road in &roads {
        road.heal();
    }
    for balancer in balancers {
        balancer.linked(2).await;
    }
    gathered(&monoliths, &rooms, 2).await;
    agreed(&balancers, &monoliths, &rooms).await;
    for client in &clients {
        assert!(client.progress().codes.iter().all(|code| *code < 4000), "{:?}", client.progress().codes);
    }
    // No ghost, and nobody stuck: everyone hears what is said, and everyone is gone when they go.
    for client in &clients {
        client.wait_for(|progress| progress.connected, SOON).await.unwrap();
    }
    drop(clients);
    for balancer in balancers {
        eventually("the balancer has no members", async || match balancer.members().await {
            0 => Ok(()),
            count => Err(count),
        })
        .await;
    }
    for monolith in monoliths {
        holds(monolith, |state| state.client_count() == 0 && state.ghosts().is_empty()).await;
    }
    alive(&monoliths);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_between_one_balancer_and_one_monolith_heals() {
    heals(&[0], false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_cut_between_one_balancer_and_one_monolith_heals() {
    heals(&[0], true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_between_all_balancers_and_one_monolith_heals() {
    heals(&[0, 2], false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_that_leaves_each_balancer_another_monolith_heals() {
    heals(&[0, 3], true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_without_any_monolith_comes_back() {
    heals(&[0, 1], true).await;
}
