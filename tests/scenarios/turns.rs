//! Balancers that never take their turns in the same instant.
//!
//! Two balancers that are equally near to the loser of a duplicate each draw when to ask it, and if their draws are
//! closer than the news of its end travels, both ask: that is known, and a matter of luck (`ARCHITECTURE.md`). On a busy
//! machine that news takes long. A test of something else is not to depend on it, so its balancers have ids with which
//! they draw far from each other.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use usher::config::Config;
use usher::testkit::Monolith;
use uuid::Uuid;

use crate::harness::*;

/// When turns begin and over how long they are spread, by nearness, in milliseconds.
const SPANS: [(u64, u64); 3] = [(100, 1_000), (1_500, 2_000), (5_000, 4_000)];
/// How many sets of ids there are to choose from.
const SETS: u128 = 2_000;

/// Starts balancers with these configurations, that are linked to all of these Monoliths.
pub async fn start_apart(configs: Vec<Config>, monoliths: &[&Monolith]) -> Vec<Balancer> {
    let count = configs.len() as u128;
    let sets = (0..SETS).map(|set| (0..count).map(|n| Uuid::from_u128(set * count + n)).collect::<Vec<_>>());
    let ids = sets.max_by_key(|ids| closest(ids, monoliths)).unwrap();
    let mut started = Vec::new();
    for (id, config) in ids.into_iter().zip(configs) {
        let balancer = Balancer::start_as(id, config).await;
        balancer.linked(monoliths.len()).await;
        started.push(balancer);
    }
    started
}

/// How close any two of these come to each other, in milliseconds.
fn closest(ids: &[Uuid], monoliths: &[&Monolith]) -> u64 {
    let turns = |id: &Uuid, monolith: &Monolith| {
        let drawn = FixedState::with_seed(id.as_u64_pair().1).hash_one(monolith.id().as_str());
        SPANS.map(|(from, over)| from + drawn % (over * 1_000) / 1_000)
    };
    let mut closest = u64::MAX;
    for monolith in monoliths {
        for (n, one) in ids.iter().enumerate() {
            for two in &ids[n + 1..] {
                for one in turns(one, monolith) {
                    for two in turns(two, monolith) {
                        closest = closest.min(one.abs_diff(two));
                    }
                }
            }
        }
    }
    closest
}
