//! Outages: nobody takes rooms, or only slowly. Clients wait before their upgrade, come in at a pace, and nobody is told to give
//! up.

use std::time::{Duration, Instant};

use usher::testkit::client::ConnectError;
use usher::testkit::reconnect::Policy;
use usher::testkit::{Client, Connect, Monolith, ReconnectingClient};

use crate::harness::*;

/// Waits until so many clients wait before their upgrade.
async fn held(balancer: &Balancer, count: usize) {
    eventually(&format!("{count} are held"), async || match balancer.metric("usher_held").await as usize {
        now if now == count => Ok(()),
        now => Err(now),
    })
    .await;
}

fn knocks(balancer: &Balancer, room: &str, token: &str) -> tokio::task::JoinHandle<Result<Client, ConnectError>> {
    tokio::spawn(Connect::room(balancer.addr(), room, token).open())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f10_all_monoliths_restart_together_and_a_thousand_clients_come_back_at_a_pace() {
    const CLIENTS: usize = 1000;
    const PACE: usize = 100;
    let rooms: Vec<String> = (0..50).map(|number| format!("room-{number}")).collect();
    let world = world_with(&rooms);
    let mut monoliths = Vec::new();
    for _ in 0..3 {
        monoliths.push(monolith(&world).user_list_limit(10).start().await.unwrap());
    }
    let all: Vec<&Monolith> = monoliths.iter().collect();
    let balancer = Balancer::start_with(&all, |config| {
        config.limits.joins_per_second = PACE as u32;
        // On a slow machine an outage may take its time, and so may a load.
        config.timeouts.hold = SOON * 3;
        config.timeouts.load = SOON;
    })
    .await;
    let returning = |number: usize| {
        let policy = Policy { scale: 0.1, seed: number as u64 };
        ReconnectingClient::spawn(balancer.addr(), &rooms[number % rooms.len()], &format!("t{number}"), policy)
    };
    let clients: Vec<_> = (0..CLIENTS).map(returning).collect();
    for client in &clients {
        client.wait_for(|progress| progress.syncs == 1, SOON * 3).await.unwrap();
    }
    futures_util::future::join_all(all.iter().map(|monolith| monolith.kill())).await;
    balancer.linked(0).await;
    eventually("somebody waits", async || match balancer.metric("usher_held").await as usize {
        0 => Err(0),
        _ => Ok(()),
    })
    .await;
    // Whoever is let in is counted where it is decided, so that no stall of this test or of a Monolith blurs it.
    let control = balancer.app().control().clone();
    let entered =
        async || control.query(|cluster| (Instant::now(), cluster.counters().entered as usize)).await.unwrap();
    let (began, at_first) = entered().await;
    for monolith in &all {
        monolith.restart().await.unwrap();
    }
    let (mut since, mut before) = (began, at_first);
    while clients.iter().any(|client| client.progress().syncs < 2) {
        let (now, count) = entered().await;
        // Three Monoliths, what each may get at once, and what was due when it was last looked at.
        let most = 3 * ((now - since).as_secs_f64() * PACE as f64 + PACE as f64 / 4.0 + 2.0) as usize;
        assert!(count - before <= most, "{} came in within {:?}", count - before, now - since);
        assert!(now - began < SOON * 6, "only {} came in", count - at_first);
        (since, before) = (now, count);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Those who were upgraded while one Monolith was still there waited through the outage as its members.
    assert!(before > at_first, "somebody waited before the upgrade");
    for client in &clients {
        let progress = client.wait_for(|progress| progress.syncs >= 2 && progress.connected, SOON * 3).await.unwrap();
        // Closed when its Monolith went, and for no other reason: whoever was upgraded after that was served.
        assert!(!progress.given_up && progress.codes.iter().all(|code| *code == 1001), "{progress:?}");
    }
    for room in &rooms {
        let loads: u64 = all.iter().map(|monolith| monolith.loads_of(room)).sum();
        assert!(loads <= 2, "{room} was loaded {loads} times in two lives");
    }
    drop(clients);
    nobody_left(&balancer, &all).await;
}

#[tokio::test]
async fn who_comes_while_there_is_no_monolith_waits_before_its_upgrade_and_is_then_let_in() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start(&[&a]).await;
    let mut client = balancer.join("x", "t").await;
    a.kill().await;
    assert_eq!(client.closed(SOON).await.unwrap().code, 1001);
    balancer.linked(0).await;
    let waiting = [knocks(&balancer, "x", "t1"), knocks(&balancer, "x", "t2")];
    held(&balancer, 2).await;
    let ready = balancer.get("/_usher/ready").await;
    assert_eq!((ready.status, &ready.json()["reasons"][0]), (503, &"no Monolith is linked".into()));
    a.restart().await.unwrap();
    let mut clients = Vec::new();
    for client in waiting {
        let mut client = client.await.unwrap().unwrap();
        client.synced(SOON).await.unwrap();
        clients.push(client);
    }
    held(&balancer, 0).await;
    drop(clients);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn a_hold_ends_with_503_when_its_time_is_over_and_with_the_client_when_that_goes() {
    let world = world_with(["x"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start_with(&[&a], |config| {
        config.timeouts.hold = Duration::from_millis(700);
        config.limits.pending_joins = 3;
    })
    .await;
    a.kill().await;
    balancer.linked(0).await;
    let started = Instant::now();
    let first = knocks(&balancer, "x", "t0");
    let others = [knocks(&balancer, "x", "t1"), knocks(&balancer, "x", "t2")];
    let refused = |outcome: Result<Client, ConnectError>| match outcome {
        Err(ConnectError::Refused { status: 503, headers, .. }) => {
            let retry = headers.iter().find(|(name, _)| name == "retry-after").map(|(_, value)| value.parse::<u64>());
            assert!(matches!(retry, Some(Ok(1..=4))), "{headers:?}");
        }
        other => panic!("{:?}", other.err()),
    };
    held(&balancer, 3).await;
    // As many wait as may: the next one hears so at once.
    refused(Connect::room(balancer.addr(), "x", "t3").open().await);
    assert_eq!(balancer.metric("usher_held_full_total").await as usize, 1);
    first.abort();
    for other in others {
        refused(other.await.unwrap());
    }
    assert!(started.elapsed() >= Duration::from_millis(700));
    held(&balancer, 0).await;
    assert_eq!(balancer.metric("balancer_clients").await as usize, 0);
    assert_eq!(balancer.app().control().query(|cluster| cluster.held()).await.unwrap(), 0);
}

#[tokio::test]
async fn f23_a_balancer_that_starts_before_its_monoliths_holds_who_comes() {
    let world = world_with(["x"]);
    world.set_epoch(5000);
    let a = monolith(&world).start().await.unwrap();
    a.kill().await;
    let balancer = Balancer::start_unlinked(&[&a], |_| {}).await;
    let waiting = knocks(&balancer, "x", "t");
    held(&balancer, 1).await;
    a.restart().await.unwrap();
    let mut client = waiting.await.unwrap().unwrap();
    client.synced(SOON).await.unwrap();
    assert_eq!((a.joins().len(), a.unloads().len()), (1, 0));
    drop(client);
    nobody_left(&balancer, &[&a]).await;
}

#[tokio::test]
async fn a_monolith_that_misses_heartbeats_gets_no_new_rooms_and_whoever_wants_one_waits() {
    let world = world_with(["x", "y"]);
    let a = monolith(&world).start().await.unwrap();
    let balancer = Balancer::start_with(&[&a], |config| {
        config.heartbeat.interval = Duration::from_millis(500);
        config.heartbeat.missed = 100;
    })
    .await;
    let x = balancer.join("x", "t").await;
    a.stall();
    eventually("it is suspect", async || match balancer.monoliths().await[0]["state"].as_str() {
        Some("suspect") => Ok(()),
        state => Err(format!("{state:?}")),
    })
    .await;
    eventually("readiness says so", async || {
        let ready = balancer.get("/_usher/ready").await;
        let says = ready.status == 503 && ready.text().contains("no Monolith takes new rooms");
        if says { Ok(()) } else { Err(ready.text()) }
    })
    .await;
    let waiting = knocks(&balancer, "y", "t");
    held(&balancer, 1).await;
    a.resume();
    let mut y = waiting.await.unwrap().unwrap();
    y.synced(SOON).await.unwrap();
    balancer.linked(1).await;
    drop((x, y));
    nobody_left(&balancer, &[&a]).await;
}
