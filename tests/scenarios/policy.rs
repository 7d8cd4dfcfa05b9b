//! Policies at work in whole balancers: what a recipe of the guide does there, and what many rooms cost.

use std::time::Duration;

use usher::config::policy_vms;
use usher::testkit::{Monolith, http};

use crate::harness::*;

/// A policy of the guide, as it stands there.
fn recipe(name: &str) -> PolicyFile {
    let guide = include_str!("../../policies/README.md");
    let (_, text) = guide.split_once(&format!("```lua\n-- {name}.lua\n")).unwrap();
    PolicyFile::new(text.split_once("```").unwrap().0)
}

/// How many requests for `/api/user` each Monolith has had.
fn asked(monoliths: &[&Monolith]) -> Vec<usize> {
    let of_users = |monolith: &&Monolith| {
        monolith.requests().iter().filter(|request| request.target.starts_with("/api/user")).count()
    };
    monoliths.iter().map(of_users).collect()
}

#[tokio::test]
async fn f29_a_change_of_a_user_reaches_the_monolith_of_the_users_room() {
    let rooms: Vec<String> = (0..12).map(|number| format!("Room-{number}")).collect();
    let world = world_with(&rooms);
    let (a, b) = (monolith(&world).start().await.unwrap(), monolith(&world).start().await.unwrap());
    let c = monolith(&world).start().await.unwrap();
    let monoliths = [&a, &b, &c];
    let policy = recipe("sticky");
    let balancer = Balancer::start_with(&monoliths, |config| {
        policy.set(config);
        config.policy.budget = Duration::from_secs(1);
        config.policy.headers.push("x-room".into());
    })
    .await;
    let mut homes = [0; 3];
    for room in &rooms {
        let client = balancer.join(room, "t").await;
        let home = monoliths.iter().position(|monolith| monolith.members(room).len() == 1).unwrap();
        homes[home] += 1;
        for name in [room.clone(), room.to_ascii_lowercase()] {
            let before = asked(&monoliths);
            http::get_with(balancer.addr(), "/api/user", &[("x-room", &name)]).await.unwrap();
            let mut expected = before;
            expected[home] += 1;
            assert_eq!(asked(&monoliths), expected, "of {name}");
        }
        drop(client);
    }
    assert!(homes.iter().filter(|rooms| **rooms > 0).count() > 1, "rooms are spread: {homes:?}");
    nobody_left(&balancer, &monoliths).await;
}

#[tokio::test]
async fn f46_the_number_of_vms_depends_on_threads_and_versions_alone() {
    let rooms: Vec<String> = (0..60).map(|number| format!("room-{number}")).collect();
    let world = world_with(&rooms);
    let mut monoliths = Vec::new();
    for _ in 0..6 {
        monoliths.push(monolith(&world).start().await.unwrap());
    }
    let monoliths: Vec<&Monolith> = monoliths.iter().collect();
    let text = |version: usize| format!("return {{ route = function(call) return call.monoliths[{version}] end }}");
    let policy = PolicyFile::new(&text(1));
    let balancer = Balancer::start_with(&monoliths[..1], |config| {
        policy.set(config);
        config.policy.budget = Duration::from_secs(1);
    })
    .await;
    // One for each worker and one for the control thread.
    let one_set = (policy_vms(WORKERS) / 2) as f64;
    assert_eq!(balancer.metric("usher_policy_vms").await, one_set, "with one Monolith and no room");
    drop(balancer);
    let balancer = Balancer::start_with(&monoliths, |config| {
        policy.set(config);
        config.policy.budget = Duration::from_secs(1);
    })
    .await;
    let mut clients = Vec::new();
    for room in &rooms {
        clients.push(balancer.join(room, "t").await);
        assert_eq!(http::get(balancer.addr(), &format!("/echo/{room}")).await.unwrap().status, 200);
    }
    assert_eq!(balancer.metric("usher_policy_vms").await, one_set, "with 6 Monoliths and 60 rooms");
    // Versions that are no longer in force keep none, whatever the history has of them.
    for version in 2..=5 {
        policy.replace(&text(version));
        eventually("the next version decides, and has all the VMs", async || {
            let vms = balancer.metric("usher_policy_vms").await;
            assert!(vms <= policy_vms(WORKERS) as f64, "{vms} VMs");
            let swaps = balancer.metric("usher_policy_swaps_total").await;
            if (vms, swaps) == (one_set, (version - 1) as f64) { Ok(()) } else { Err((vms, swaps)) }
        })
        .await;
    }
    drop(clients);
    nobody_left(&balancer, &monoliths).await;
}
