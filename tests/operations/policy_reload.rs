//! A policy that changes under open sockets, in every way in which files change; broken ones; endless ones; swaps over
//! the admin API.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use usher::config::PolicySource;
use usher::testkit::http;
use usher::testkit::{Client, RoomInfo, World};

use super::harness::{Balancer, SOON, eventually, monoliths, quick};

/// A policy that puts new rooms into one region.
fn regional(region: &str, mark: &str) -> String {
    format!(
        "-- {mark}\nreturn {{ place = function(call)\n  local there = usher.filter(call.monoliths, function(m) \
         return m.region == {region:?} end)\n  return there[1]\nend }}\n"
    )
}

/// A balancer with Monoliths in ewr and cdg whose policy is `policy.lua` in its folder.
async fn with_file(text: &str, rooms: usize) -> Balancer {
    with_folder(rooms, |folder| fs::write(folder.join("policy.lua"), text).unwrap()).await
}

async fn with_folder(rooms: usize, fill: impl FnOnce(&Path)) -> Balancer {
    let world = World::new();
    for room in 0..rooms {
        world.add(RoomInfo::permanent(format!("room-{room}")));
    }
    let folder = TempDir::new().unwrap();
    fill(folder.path());
    let mut config = quick();
    config.policy.source = PolicySource::File(folder.path().join("policy.lua"));
    Balancer::start_in(folder, monoliths(&world, &["ewr", "cdg"]).await, config).await
}

fn version(policy: &Value) -> String {
    policy["active"]["version"].as_str().unwrap().to_string()
}

async fn next_version(balancer: &Balancer, old: &str) -> Value {
    eventually("another version decides", async || {
        let policy = balancer.policy().await;
        (version(&policy) != old).then_some(policy)
    })
    .await
}

/// Creates a room over HTTP and says in which region it is.
async fn place(balancer: &Balancer, name: &str) -> String {
    let body = json!({"name": name, "isTemporary": true}).to_string();
    let answer = http::post(balancer.addr, "/api/room/create", &body).await.unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    let owner = balancer.owner(name).await;
    let at = balancer.monoliths.iter().position(|monolith| monolith.id() == owner).unwrap();
    ["ewr", "cdg"][at].to_string()
}

struct Sockets(Vec<(String, Client)>);

impl Sockets {
    async fn open(balancer: &Balancer, rooms: usize, count: usize) -> Self {
        let mut sockets = Vec::new();
        for number in 0..count {
            let room = format!("room-{}", number % rooms);
            sockets.push((room.clone(), balancer.join(&room, &format!("token-{number}")).await));
        }
        Self(sockets)
    }

    /// Every socket is open, on the link that it was on, and gets what is said in its room.
    async fn are_untouched(&mut self, balancer: &Balancer, mark: &str) {
        let rooms: std::collections::BTreeSet<String> = self.0.iter().map(|(room, _)| room.clone()).collect();
        let payload = format!(r#"{{"action":"mark","mark":"{mark}"}}"#);
        for room in &rooms {
            for monolith in &balancer.monoliths {
                if !monolith.members(room).is_empty() {
                    monolith.say(room, None, &payload);
                }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f43_a_policy_changes_in_every_way_under_200_open_sockets() {
    let balancer = with_file(&regional("cdg", "0"), 20).await;
    let mut sockets = Sockets::open(&balancer, 20, 200).await;
    assert_eq!(place(&balancer, "at-start").await, "cdg");
    let file = balancer.path("policy.lua");
    let temp = balancer.path("policy.lua.tmp");
    type Change = fn(&Path, &Path, &str);
    let ways: [(&str, Change); 4] = [
        ("in-place", |file, _, text| fs::write(file, text).unwrap()),
        ("rename", |file, temp, text| {
            fs::write(temp, text).unwrap();
            fs::rename(temp, file).unwrap();
        }),
        ("symlink", |file, _, text| {
            let target = file.with_file_name("v3.lua");
            fs::write(&target, text).unwrap();
            let link = file.with_file_name("link");
            symlink(&target, &link).unwrap();
            fs::rename(&link, file).unwrap();
        }),
        ("editor", |file, temp, text| {
            fs::write(temp, text).unwrap();
            fs::remove_file(file).unwrap();
            fs::rename(temp, file).unwrap();
        }),
    ];
    let mut regions = ["ewr", "cdg"].into_iter().cycle();
    let mut active = version(&balancer.policy().await);
    for (way, change) in ways {
        let region = regions.next().unwrap();
        change(&file, &temp, &regional(region, way));
        let policy = next_version(&balancer, &active).await;
        assert_eq!(policy["active"]["by"], "watch", "{way}");
        assert_eq!(policy["previous"]["version"], json!(active), "{way}");
        active = version(&policy);
        assert_eq!(place(&balancer, &format!("after-{way}")).await, region, "{way}");
    }
    sockets.are_untouched(&balancer, "after-all").await;
    assert_eq!(balancer.metric("balancer_clients").await, 200.0);
    assert_eq!(balancer.metric("usher_policy_swaps_total").await, 4.0);
    balancer.finish().await;
}

/// As Kubernetes mounts a ConfigMap: the file is a link through a folder that is a link, and that one is switched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f45_a_mounted_folder_is_switched() {
    let balancer = with_folder(0, |folder| {
        fs::create_dir(folder.join("..1")).unwrap();
        fs::write(folder.join("..1/policy.lua"), regional("cdg", "1")).unwrap();
        symlink("..1", folder.join("..data")).unwrap();
        symlink("..data/policy.lua", folder.join("policy.lua")).unwrap();
    })
    .await;
    for (number, region) in [(2, "ewr"), (3, "cdg")] {
        let active = version(&balancer.policy().await);
        let folder = balancer.path(&format!("..{number}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("policy.lua"), regional(region, "mounted")).unwrap();
        symlink(format!("..{number}"), balancer.path("..data_tmp")).unwrap();
        fs::rename(balancer.path("..data_tmp"), balancer.path("..data")).unwrap();
        fs::remove_dir_all(balancer.path(&format!("..{}", number - 1))).unwrap();
        next_version(&balancer, &active).await;
        assert_eq!(place(&balancer, &format!("room-{number}")).await, region);
    }
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f45_a_broken_policy_changes_nothing_and_its_repair_is_taken_up() {
    let balancer = with_file(&regional("cdg", "0"), 2).await;
    let mut sockets = Sockets::open(&balancer, 2, 6).await;
    let file = balancer.path("policy.lua");
    let shown = file.display().to_string();
    let broken = [
        ("return {\n  place = function(call\nend }", Some(3), "Expected"),
        ("return { place = function()\n  return 7\nend }", Some(1), "smoke call of place"),
        ("local p = {}\nfunction p.place(call)\n  return call.rom.name\nend\nreturn p", Some(3), "smoke call of place"),
        ("while true do end", Some(1), "safepoints"),
        ("", None, "return"),
    ];
    for (number, (text, line, reason)) in broken.into_iter().enumerate() {
        let before = balancer.policy().await;
        let refused = balancer.metric("usher_policy_refused_total").await;
        fs::write(&file, text).unwrap();
        let after = eventually("the broken text is refused", async || {
            let policy = balancer.policy().await;
            let failure = policy["last_failure"]["reason"].as_str().unwrap_or_default();
            (policy["last_failure"] != before["last_failure"] && failure.contains(reason)).then_some(policy)
        })
        .await;
        assert_eq!(after["active"], before["active"], "{text}");
        let failure = &after["last_failure"];
        assert_eq!((&failure["file"], &failure["line"]), (&json!(shown), &json!(line)), "{failure}");
        assert!(failure["policy"].is_string() && failure["at"].is_string());
        assert!(balancer.metric("usher_policy_refused_total").await > refused);
        assert_eq!(place(&balancer, &format!("while-broken-{number}")).await, ["cdg", "ewr"][number % 2], "{text}");
        let region = ["ewr", "cdg"][number % 2];
        fs::write(&file, regional(region, &format!("repaired {number}"))).unwrap();
        next_version(&balancer, &version(&before)).await;
        assert_eq!(place(&balancer, &format!("repaired-{number}")).await, region);
    }
    sockets.are_untouched(&balancer, "in-spite-of-all").await;
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_test_keeps_a_version_out_until_the_test_is_mended() {
    let test = |region: &str| {
        format!(
            "local t = usher.test\nlocal policy = t.policy()\nt.it(\"goes there\", function()\n  local call = t.place {{ \
             monoliths = {{ {{ id = \"a\", region = \"cdg\" }}, {{ id = \"b\", region = \"ewr\" }} }} }}\n  \
             t.equal(policy.place(call).region, {region:?})\nend)\n"
        )
    };
    let balancer = with_folder(0, |folder| {
        fs::write(folder.join("policy.lua"), regional("cdg", "0")).unwrap();
        fs::write(folder.join("policy_test.lua"), test("cdg")).unwrap();
    })
    .await;
    let before = balancer.policy().await;
    fs::write(balancer.path("policy.lua"), regional("ewr", "fails its test")).unwrap();
    let policy = eventually("the version is refused", async || {
        let policy = balancer.policy().await;
        (!policy["last_failure"].is_null()).then_some(policy)
    })
    .await;
    assert_eq!(policy["active"], before["active"]);
    assert!(policy["last_failure"]["file"].as_str().unwrap().ends_with("policy_test.lua"), "{policy}");
    assert_eq!(policy["last_failure"]["line"], 5, "{policy}");
    assert!(policy["last_failure"]["reason"].as_str().unwrap().contains("goes there"), "{policy}");
    assert_eq!(place(&balancer, "one").await, "cdg");
    // The policy's own text stays as it is.
    fs::write(balancer.path("policy_test.lua"), test("ewr")).unwrap();
    next_version(&balancer, &version(&before)).await;
    assert_eq!(place(&balancer, "two").await, "ewr");
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f47_an_endless_policy_is_cut_off_and_the_default_answers() {
    let text = "return { place = function(call)\n  if call.room.name:sub(1, 3) == \"bad\" then while true do end end\n  \
                return usher.filter(call.monoliths, function(m) return m.region == \"cdg\" end)[1]\nend }";
    let balancer = with_file(text, 4).await;
    let mut sockets = Sockets::open(&balancer, 4, 8).await;
    for number in 0..4 {
        // The built-in default stays in the balancer's own region.
        assert_eq!(place(&balancer, &format!("bad-{number}")).await, "ewr");
        assert_eq!(place(&balancer, &format!("good-{number}")).await, "cdg");
    }
    assert_eq!(balancer.metric("usher_placement_fallbacks_total").await, 4.0);
    assert_eq!(balancer.metric(r#"usher_policy_faults_total{hook="place",kind="fuel"}"#).await, 4.0);
    assert_eq!(balancer.policy().await["breaker"], "closed");
    for number in 4..9 {
        assert_eq!(place(&balancer, &format!("bad-{number}")).await, "ewr");
    }
    // Five in a row: the built-in policy decides alone for a while, and readiness says so without failing.
    assert_eq!(balancer.policy().await["breaker"], "open");
    assert_eq!(balancer.metric("usher_policy_breaker_open").await, 1.0);
    assert_eq!(place(&balancer, "good-by-default").await, "ewr");
    let ready = http::get(balancer.addr, "/_usher/ready").await.unwrap();
    assert_eq!(ready.status, 200);
    assert!(ready.text().contains("breaker is open"), "{}", ready.text());
    // The repair decides at once: its breaker is its own.
    let active = version(&balancer.policy().await);
    fs::write(balancer.path("policy.lua"), regional("cdg", "repaired")).unwrap();
    let policy = next_version(&balancer, &active).await;
    assert_eq!(policy["breaker"], "closed");
    assert_eq!(place(&balancer, "bad-no-longer").await, "cdg");
    sockets.are_untouched(&balancer, "still-here").await;
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_are_chosen_and_taken_back_over_the_admin_api() {
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("outside.lua"), regional("cdg", "outside")).unwrap();
    let balancer = with_folder(0, |folder| {
        fs::write(folder.join("policy.lua"), regional("cdg", "0")).unwrap();
        fs::write(folder.join("other.lua"), regional("ewr", "other")).unwrap();
        fs::write(folder.join("bad.lua"), "return {\n  place = 7 }").unwrap();
        symlink(outside.path().join("outside.lua"), folder.join("link.lua")).unwrap();
    })
    .await;
    let choose =
        async |name: &str| balancer.api("POST", "/_usher/v1/policy/use", &json!({"policy": name}).to_string()).await;
    let first = balancer.policy().await;
    assert_eq!(first["active"]["by"], "start");
    for key in ["name", "version", "source", "activated_at", "by"] {
        assert!(first["active"][key].is_string(), "{key}: {first}");
    }
    assert_eq!(version(&first).len(), 12);
    for key in ["previous", "last_failure", "shadow", "canary"] {
        assert!(first.as_object().unwrap().contains_key(key) && first[key].is_null(), "{key}: {first}");
    }
    assert_eq!((&first["history"], &first["breaker"]), (&json!([]), &json!("closed")));
    let answer = balancer.api("POST", "/_usher/v1/policy/rollback", "").await;
    assert_eq!(answer.status, 409, "there is nothing to return to: {}", answer.text());

    let answer = choose("least-loaded").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let policy = answer.json();
    assert_eq!(
        (&policy["active"]["name"], &policy["active"]["source"], &policy["active"]["by"]),
        (&json!("least-loaded"), &json!("shipped"), &json!("admin"))
    );
    assert_eq!(policy["previous"], first["active"]);
    let answer = choose("other.lua").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(place(&balancer, "one").await, "ewr");

    let absolute = outside.path().join("outside.lua").display().to_string();
    for name in
        ["../outside.lua", &absolute, "/etc/passwd", "link.lua", "missing.lua", "no-such-policy", "", ".", "a\u{0}b"]
    {
        let answer = choose(name).await;
        assert_eq!(answer.status, 400, "{name}: {}", answer.text());
        assert_eq!(answer.json()["error"]["code"], "bad_request");
    }
    for body in ["", "{", "[]", "{}", r#"{"policy":7}"#, r#"{"policy":"default","share":5}"#] {
        let answer = balancer.api("POST", "/_usher/v1/policy/use", body).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
    }
    let before = balancer.policy().await;
    let answer = choose("bad.lua").await;
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("bad.lua"), "{}", answer.text());
    let policy = balancer.policy().await;
    assert_eq!(policy["active"], before["active"]);
    assert!(policy["last_failure"]["file"].as_str().unwrap().ends_with("bad.lua"));
    assert_eq!(place(&balancer, "two").await, "ewr");

    let answer = balancer.api("POST", "/_usher/v1/policy/rollback", "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["active"]["name"], "least-loaded");
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_shipped_policy_no_file_can_be_named() {
    let (balancer, _world) = Balancer::simple(&["ewr"]).await;
    fs::write(balancer.path("other.lua"), regional("ewr", "other")).unwrap();
    for name in ["other.lua".to_string(), balancer.path("other.lua").display().to_string()] {
        let answer = balancer.api("POST", "/_usher/v1/policy/use", &json!({"policy": name}).to_string()).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
    }
    balancer.finish().await;
}
