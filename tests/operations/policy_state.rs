//! What a policy keeps from call to call: shared by `place` on the control thread and `route` on the workers, and still
//! there after a swap.

use std::fs;

use tempfile::TempDir;
use usher::config::PolicySource;
use usher::testkit::{RoomInfo, World, http};

use super::harness::{Balancer, eventually, monoliths, quick};

/// Every hook counts; `route` answers with what was counted, as a status.
const COUNTING: &str = "local next = usher.counter('calls')
return {
  place = function(call)
    next()
    usher.set('last', call.room.name)
    return call.monoliths[1]
  end,
  route = function(call)
    return usher.reject(400 + next(), tostring(usher.get('last')))
  end,
}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_and_values_are_shared_by_all_workers_and_survive_a_swap() {
    let world = World::new();
    world.add(RoomInfo::permanent("movie"));
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("policy.lua"), COUNTING).unwrap();
    let mut config = quick();
    config.policy.source = PolicySource::File(folder.path().join("policy.lua"));
    let balancer = Balancer::start_in(folder, monoliths(&world, &["ewr"]).await, config).await;
    let client = balancer.join("movie", "t").await;
    // The join was the first call; the smoke calls before it counted on a copy.
    for expected in 2..10 {
        assert_eq!(http::get(balancer.addr, "/anything").await.unwrap().status, 400 + expected);
    }
    fs::write(balancer.path("policy.lua"), format!("-- the next version\n{COUNTING}")).unwrap();
    eventually("the next version decides", async || {
        (balancer.metric("usher_policy_swaps_total").await == 1.0).then_some(())
    })
    .await;
    assert_eq!(http::get(balancer.addr, "/anything").await.unwrap().status, 410);
    drop(client);
    balancer.finish().await;
}
