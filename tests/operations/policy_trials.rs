//! Versions on trial under open sockets: a shadow that only answers, a canary that decides for a share of the rooms and
//! is stopped for its faults, promotion; and the last good version at a start with a broken file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use usher::config::PolicySource;
use usher::testkit::http::{self, Answer};
use usher::testkit::{Client, RoomInfo, World};

use super::harness::{Balancer, SOON, eventually, monoliths, quick};

/// A policy that puts new rooms into one region, and requests too.
fn regional(region: &str) -> String {
    format!(
        "local function there(call)\n  return usher.filter(call.monoliths, function(m) return m.region == {region:?} \
         end)[1]\nend\nreturn {{ place = there, route = there }}\n"
    )
}

/// A balancer with Monoliths in ewr and cdg, whose policy `policy.lua` goes to cdg; `ewr.lua` is beside it.
async fn balancer() -> Balancer {
    let world = World::new();
    for room in 0..8 {
        world.add(RoomInfo::permanent(format!("room-{room}")));
    }
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("policy.lua"), regional("cdg")).unwrap();
    fs::write(folder.path().join("ewr.lua"), regional("ewr")).unwrap();
    fs::write(folder.path().join("bad.lua"), "return {\n  place = 7 }").unwrap();
    let mut config = quick();
    config.policy.source = PolicySource::File(folder.path().join("policy.lua"));
    Balancer::start_in(folder, monoliths(&world, &["ewr", "cdg"]).await, config).await
}

async fn post(balancer: &Balancer, what: &str, body: Value) -> Answer {
    balancer.api("POST", &format!("/_usher/v1/policy/{what}"), &body.to_string()).await
}

/// Creates a room over HTTP and says in which region it is.
async fn place(balancer: &Balancer, name: &str) -> &'static str {
    let body = json!({"name": name, "isTemporary": true}).to_string();
    let answer = http::post(balancer.addr, "/api/room/create", &body).await.unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    let owner = balancer.owner(name).await;
    if owner == balancer.monoliths[0].id() { "ewr" } else { "cdg" }
}

struct Sockets(Vec<(String, Client)>);

impl Sockets {
    async fn open(balancer: &Balancer) -> Self {
        let mut sockets = Vec::new();
        for number in 0..16 {
            let room = format!("room-{}", number % 8);
            sockets.push((room.clone(), balancer.join(&room, &format!("token-{number}")).await));
        }
        Self(sockets)
    }

    /// Every socket is open, on the link that it was on, and gets what is said in its room.
    async fn are_untouched(&mut self, balancer: &Balancer) {
        let payload = r#"{"action":"mark","mark":"still here"}"#;
        for room in 0..8 {
            let room = format!("room-{room}");
            for monolith in balancer.monoliths.iter().filter(|monolith| !monolith.members(&room).is_empty()) {
                monolith.say(&room, None, payload);
            }
        }
        for (room, client) in &mut self.0 {
            let got = client.recv_until(SOON, |text| text == payload).await;
            assert!(got.is_ok(), "{room}: {got:?}");
        }
        for monolith in &balancer.monoliths {
            assert_eq!(monolith.look(|state| (state.links_accepted(), state.leave_count())), (1, 0));
        }
    }
}

/// The shadow's document once it has compared so many calls.
async fn compared(balancer: &Balancer, calls: u64) -> Value {
    eventually("the shadow has answered", async || {
        let shadow = balancer.policy().await["shadow"].clone();
        (shadow["calls"].as_u64() == Some(calls)).then_some(shadow)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_answers_everything_and_decides_nothing() {
    let balancer = balancer().await;
    let mut sockets = Sockets::open(&balancer).await;
    assert_eq!(post(&balancer, "stop", json!({"what": "shadow"})).await.status, 409);
    let answer = post(&balancer, "shadow", json!({"policy": "ewr.lua"})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let shadow = answer.json()["shadow"].clone();
    assert_eq!((&shadow["policy"]["name"], &shadow["policy"]["by"]), (&json!("ewr"), &json!("admin")));
    assert_eq!((&shadow["calls"], &shadow["agreed"], &shadow["faults"]), (&json!(0), &json!(0), &json!(0)));
    for number in 0..4 {
        assert_eq!(place(&balancer, &format!("new-{number}")).await, "cdg");
    }
    for _ in 0..3 {
        assert_eq!(balancer.get("/echo").await.status, 200);
    }
    let shadow = compared(&balancer, 7).await;
    assert_eq!((&shadow["agreed"], &shadow["agreement"], &shadow["skipped"]), (&json!(0), &json!(0.0), &json!(0)));
    let (from, to) = (balancer.monoliths[1].id(), balancer.monoliths[0].id());
    assert_eq!(shadow["changed"][0], json!({"hook": "place", "from": from, "to": to, "count": 4}));
    assert_eq!(shadow["changed"][1], json!({"hook": "route", "from": from, "to": to, "count": 3}));
    let example = &shadow["examples"][0];
    assert!(example["room"].as_str().unwrap().starts_with("new-"), "{example}");
    assert_eq!(shadow["spread"]["max_over_mean"], json!({"active": 2.0, "shadow": 2.0}));
    assert!(shadow["time_ns"]["shadow"]["p50"].as_u64().unwrap() > 0);
    // The same text answers the same.
    assert_eq!(post(&balancer, "shadow", json!({"policy": "policy.lua"})).await.status, 200);
    assert_eq!(place(&balancer, "new-4").await, "cdg");
    assert_eq!(compared(&balancer, 1).await["agreement"], json!(1.0));
    assert_eq!(balancer.metric("usher_policy_shadow_agreed_total").await, 1.0);
    // A broken one changes nothing; another active version begins the comparison anew.
    let refused = post(&balancer, "shadow", json!({"policy": "bad.lua"})).await;
    assert_eq!(refused.status, 409);
    assert!(refused.text().contains("bad.lua"), "{}", refused.text());
    assert_eq!(post(&balancer, "shadow", json!({"policy": "/etc/passwd"})).await.status, 400);
    assert_eq!(post(&balancer, "use", json!({"policy": "ewr.lua"})).await.status, 200);
    assert_eq!(balancer.policy().await["shadow"]["calls"], 0);
    assert_eq!(place(&balancer, "new-5").await, "ewr");
    assert_eq!(compared(&balancer, 1).await["agreed"], 0);
    let answer = post(&balancer, "stop", json!({"what": "shadow"})).await;
    assert!(answer.status == 200 && answer.json()["shadow"].is_null(), "{}", answer.text());
    sockets.are_untouched(&balancer).await;
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_decides_for_its_share_until_it_is_promoted_or_stopped() {
    let balancer = balancer().await;
    let mut sockets = Sockets::open(&balancer).await;
    for what in ["promote", "stop"] {
        assert_eq!(post(&balancer, what, json!({"what": "canary"})).await.status, 409, "{what}");
    }
    for (policy, share, status) in [
        ("ewr.lua", json!(101), 400),
        ("ewr.lua", json!(-1), 400),
        ("ewr.lua", json!("5"), 400),
        ("missing.lua", json!(5), 400),
        ("bad.lua", json!(5), 409),
    ] {
        let answer = post(&balancer, "canary", json!({"policy": policy, "share": share})).await;
        assert_eq!(answer.status, status, "{policy} {share}: {}", answer.text());
    }
    assert!(balancer.policy().await["canary"].is_null());
    let answer = post(&balancer, "canary", json!({"policy": "ewr.lua", "share": 50})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["canary"]["share"], 50.0);
    assert_eq!(answer.json()["active"]["name"], "policy");
    let mut rooms = BTreeMap::new();
    for number in 0..40 {
        let name = format!("new-{number}");
        rooms.insert(name.clone(), place(&balancer, &name).await);
    }
    let ewr = rooms.values().filter(|region| **region == "ewr").count();
    assert!((8..=32).contains(&ewr), "{ewr} of 40 rooms for 50 %");
    let canary = balancer.policy().await["canary"].clone();
    assert_eq!((&canary["calls"], &canary["faults"]), (&json!(ewr), &json!(0)));
    // A changed file is the active version, and the canary goes on.
    fs::write(balancer.path("policy.lua"), format!("-- another text\n{}", regional("cdg"))).unwrap();
    eventually("the file is taken up", async || (balancer.policy().await["active"]["by"] == "watch").then_some(()))
        .await;
    assert_eq!(balancer.policy().await["canary"]["calls"], canary["calls"]);
    let answer = post(&balancer, "stop", json!({"what": "canary"})).await;
    assert!(answer.status == 200 && answer.json()["canary"].is_null(), "{}", answer.text());
    for number in 40..50 {
        assert_eq!(place(&balancer, &format!("new-{number}")).await, "cdg");
    }
    let all = post(&balancer, "canary", json!({"policy": "ewr.lua", "share": 100})).await;
    assert_eq!(all.status, 200);
    assert_eq!(place(&balancer, "new-50").await, "ewr");
    let answer = post(&balancer, "promote", json!({})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let policy = answer.json();
    assert_eq!((&policy["active"]["name"], &policy["active"]["by"]), (&json!("ewr"), &json!("promote")));
    assert!(policy["canary"].is_null() && policy["previous"]["name"] == "policy", "{policy}");
    assert_eq!(place(&balancer, "new-51").await, "ewr");
    let answer = post(&balancer, "rollback", json!({})).await;
    assert_eq!(answer.json()["active"]["name"], "policy", "{}", answer.text());
    assert_eq!(place(&balancer, "new-52").await, "cdg");
    sockets.are_untouched(&balancer).await;
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_that_fails_more_often_than_the_active_version_is_stopped() {
    let balancer = balancer().await;
    let mut sockets = Sockets::open(&balancer).await;
    let text = "return { place = function(call)\n  if call.room.name ~= 'smoke' then error('no') end\nend }";
    fs::write(balancer.path("fails.lua"), text).unwrap();
    assert_eq!(post(&balancer, "canary", json!({"policy": "fails.lua", "share": 100})).await.status, 200);
    for number in 0..5 {
        // The built-in default stays in the balancer's own region.
        assert_eq!(place(&balancer, &format!("new-{number}")).await, "ewr");
    }
    let policy = balancer.policy().await;
    assert!(policy["canary"].is_null(), "{policy}");
    let failure = &policy["last_failure"];
    assert!(failure["file"].as_str().unwrap().ends_with("fails.lua"), "{failure}");
    assert_eq!(failure["line"], 2);
    assert!(failure["reason"].as_str().unwrap().contains("stopped as canary: 5 of its 5 calls"), "{failure}");
    assert_eq!(balancer.metric("usher_policy_canary_stops_total").await, 1.0);
    assert_eq!(place(&balancer, "new-5").await, "cdg");
    sockets.are_untouched(&balancer).await;
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trials_need_the_memory_that_the_configuration_grants() {
    let world = World::new();
    let mut config = quick();
    (config.policy.total_memory, config.policy.total_memory_is_set) = (config.policy.memory * 7, true);
    let balancer = Balancer::start_in(TempDir::new().unwrap(), monoliths(&world, &["ewr"]).await, config).await;
    let answer = post(&balancer, "canary", json!({"policy": "random", "share": 5})).await;
    assert_eq!(answer.status, 409);
    assert!(answer.text().contains("write policy.total_memory = \\\"72MiB\\\" or more"), "{}", answer.text());
    assert!(balancer.policy().await["last_failure"].is_null(), "the policy is not to blame");
    assert_eq!(post(&balancer, "shadow", json!({"policy": "random"})).await.status, 200);
    balancer.finish().await;
}

/// A balancer whose `policy.lua` and what was kept of it are in `folder`.
async fn kept_in(folder: &Path) -> Balancer {
    let world = World::new();
    let mut config = quick();
    config.policy.source = PolicySource::File(folder.join("policy.lua"));
    config.policy.keep = Some(folder.join(".usher"));
    Balancer::start_in(TempDir::new().unwrap(), monoliths(&world, &["ewr", "cdg"]).await, config).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f45_a_start_with_a_broken_file_is_served_by_its_last_good_version() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("policy.lua");
    let kept = folder.path().join(".usher/policy.last-good.lua");
    fs::write(&file, regional("cdg")).unwrap();
    let balancer = kept_in(folder.path()).await;
    eventually("the version is kept", async || kept.exists().then_some(())).await;
    assert_eq!(balancer.metric("usher_policy_last_good_serves").await, 0.0);
    balancer.finish().await;

    fs::write(&file, "return {\n  place = function(call\n").unwrap();
    let balancer = kept_in(folder.path()).await;
    let policy = balancer.policy().await;
    assert_eq!((&policy["active"]["by"], &policy["active"]["name"]), (&json!("last good"), &json!("policy")));
    assert_eq!(policy["serves_last_good"], true);
    assert!(policy["last_failure"]["file"].as_str().unwrap().ends_with("policy.lua"), "{policy}");
    assert!(policy["last_failure"]["line"].is_number(), "{policy}");
    assert_eq!(balancer.metric("usher_policy_last_good_serves").await, 1.0);
    let ready = http::get(balancer.addr, "/_usher/ready").await.unwrap();
    assert!(ready.status == 200 && ready.text().contains("last good version serves"), "{}", ready.text());
    assert_eq!(place(&balancer, "one").await, "cdg");
    // The very text that was kept mends it as well as any other.
    fs::write(&file, regional("cdg")).unwrap();
    eventually("the mended file is taken up", async || {
        (balancer.policy().await["active"]["by"] == "watch").then_some(())
    })
    .await;
    assert_eq!(balancer.metric("usher_policy_last_good_serves").await, 0.0);
    assert_eq!(balancer.policy().await["serves_last_good"], false);
    balancer.finish().await;
}
