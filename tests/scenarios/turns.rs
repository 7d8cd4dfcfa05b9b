//! Balancers that never take their turns in the same instant.
//!
//! Two balancers that are equally near to the loser of a duplicate each draw when to ask it, and if their draws are
//! closer than the news of its end travels, both ask: that is known, and a matter of luck (`ARCHITECTURE.md`). A test of
//! something else is not to depend on it, so a balancer that has drawn too close to another one is replaced.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use usher::testkit::Monolith;
use uuid::Uuid;

use crate::harness::*;

/// Over how long turns are spread, by nearness, in microseconds.
const SPANS: [u64; 3] = [1_000_000, 2_000_000, 4_000_000];
/// How close is too close, in microseconds.
const CLOSE: u64 = 60_000;

/// Starts so many balancers. `start` is told which one it is to start.
pub async fn apart(count: usize, monoliths: &[&Monolith], start: impl AsyncFn(usize) -> Balancer) -> Vec<Balancer> {
    let mut chosen: Vec<(Balancer, u64)> = Vec::new();
    while chosen.len() < count {
        let balancer = start(chosen.len()).await;
        let state = balancer.get("/api/state").await.json();
        let (_, seed) = state["id"].as_str().unwrap().parse::<Uuid>().unwrap().as_u64_pair();
        if chosen.iter().all(|(_, other)| are_apart(*other, seed, monoliths)) {
            chosen.push((balancer, seed));
        }
    }
    chosen.into_iter().map(|(balancer, _)| balancer).collect()
}

fn are_apart(one: u64, two: u64, monoliths: &[&Monolith]) -> bool {
    let drawn = |seed, monolith: &Monolith| FixedState::with_seed(seed).hash_one(monolith.id().as_str());
    monoliths.iter().all(|monolith| {
        let (one, two) = (drawn(one, monolith), drawn(two, monolith));
        SPANS.iter().all(|span| (one % span).abs_diff(two % span) > CLOSE)
    })
}
