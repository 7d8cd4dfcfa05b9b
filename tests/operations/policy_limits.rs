//! Policies that hang, eat memory or search for ever, behind real sockets: each call ends at its limit, the built-in policy
//! answers, other rooms do not notice, and memory comes back.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::json;
use tempfile::TempDir;
use usher::config::PolicySource;
use usher::testkit::http;
use usher::testkit::{RoomInfo, World};

use super::harness::{Balancer, SOON, eventually, monoliths, quick};

/// Rooms whose name begins with an attack's name meet the attack; all others go to `cdg`, where the default would not go.
const HOSTILE: &str = r#"
local attacks = {
  loop = function() while true do end end,
  caught = function() while true do pcall(function() while true do end end) end end,
  memory = function() local t = {} while true do t[#t + 1] = string.rep("x", 100000) .. #t end end,
  string = function() return string.rep("x", 1e9) end,
  search = function() return string.find(string.rep("a", 1e6), string.rep("a", 5e5) .. "b", 1, true) end,
  move = function() pcall(table.move, {}, 1, 2 ^ 30, 2) end,
  pattern = function() return string.find(string.rep("a", 30), string.rep("a?", 30) .. string.rep("a", 30) .. "b") end,
}
return { place = function(call)
  local attack = attacks[string.match(call.room.name, "^%a+")]
  if attack then
    attack()
  end
  return usher.filter(call.monoliths, function(m) return m.region == "cdg" end)[1]
end }
"#;
const ATTACKS: [&str; 7] = ["loop", "caught", "memory", "string", "search", "move", "pattern"];

/// Creates a room over HTTP and says in which region it is.
async fn place(balancer: &Balancer, name: &str) -> &'static str {
    let body = json!({"name": name, "isTemporary": true}).to_string();
    let answer = http::post(balancer.addr, "/api/room/create", &body).await.unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    let owner = balancer.owner(name).await;
    let at = balancer.monoliths.iter().position(|monolith| monolith.id() == owner).unwrap();
    ["ewr", "cdg"][at]
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f47_attacks_end_at_their_limit_while_other_rooms_go_on() {
    let world = World::new();
    world.add(RoomInfo::permanent("chat"));
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("policy.lua"), HOSTILE).unwrap();
    let mut config = quick();
    config.policy.source = PolicySource::File(folder.path().join("policy.lua"));
    let balancer = Balancer::start_in(folder, monoliths(&world, &["ewr", "cdg"]).await, config).await;
    let mut listener = balancer.join("chat", "listener").await;
    let speaker = balancer.join("chat", "speaker").await;
    // Somebody talks in another room from the first attack to the last.
    let over = Arc::new(AtomicBool::new(false));
    let talking = tokio::spawn({
        let over = over.clone();
        async move {
            let mut heard = 0u64;
            while !over.load(Relaxed) {
                let text = format!("message {heard}");
                speaker.chat(&text).await;
                listener.recv_until(SOON, |got| got.contains(&text)).await.unwrap();
                heard += 1;
            }
            heard
        }
    });
    let mut settled = 0;
    for round in 0..6 {
        for attack in ATTACKS {
            assert_eq!(place(&balancer, &format!("{attack}-{round}")).await, "ewr", "{attack}: the default answers");
            assert_eq!(
                place(&balancer, &format!("good{attack}-{round}")).await,
                "cdg",
                "{attack}: the next call works"
            );
        }
        match round {
            // What allocators and caches keep for themselves is there by now.
            1 => settled = resident(),
            _ if round > 1 => {
                let now = resident();
                assert!(now < settled + (24 << 20), "round {round}: {settled} bytes have become {now}");
            }
            _ => {}
        }
    }
    over.store(true, Relaxed);
    assert!(talking.await.unwrap() > 10, "messages of another room flow");
    let faults = (ATTACKS.len() * 6) as f64;
    assert_eq!(balancer.metric("usher_placement_fallbacks_total").await, faults);
    assert_eq!(balancer.metric("usher_policy_bypassed_total").await, 0.0);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f47_the_breaker_opens_after_five_verdicts_and_closes_after_a_good_trial() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("policy.lua"), HOSTILE).unwrap();
    let mut config = quick();
    config.policy.source = PolicySource::File(folder.path().join("policy.lua"));
    let balancer = Balancer::start_in(folder, monoliths(&World::new(), &["ewr", "cdg"]).await, config).await;
    for (number, attack) in ["loop", "string", "search", "caught", "move"].into_iter().enumerate() {
        assert_eq!(balancer.policy().await["breaker"], "closed", "after {number}");
        assert_eq!(place(&balancer, &format!("{attack}-{number}")).await, "ewr");
    }
    assert_eq!(balancer.policy().await["breaker"], "open");
    assert_eq!(place(&balancer, "while-it-is-open").await, "ewr");
    assert!(balancer.metric("usher_policy_bypassed_total").await >= 1.0);
    // The first call after ten seconds is the trial, and it is a good one.
    let mut number = 0;
    eventually("the policy decides again", async || {
        number += 1;
        (place(&balancer, &format!("try-{number}")).await == "cdg").then_some(())
    })
    .await;
    assert_eq!(balancer.policy().await["breaker"], "closed");
    assert_eq!(place(&balancer, "as-before").await, "cdg");
    balancer.finish().await;
}
