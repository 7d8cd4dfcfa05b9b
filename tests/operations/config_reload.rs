//! A configuration file that changes under open sockets: what is taken up, what is refused, and what has to wait.

use std::fs;

use tempfile::TempDir;
use usher::testkit::http;
use usher::testkit::{Client, Connect, Monolith, RoomInfo, World};

use super::harness::{Balancer, KEY, SOON, discovery_line, eventually, monoliths};

const HEAD: &str = "region = \"ewr\"\napi_key = \"operator-key\"\n";
/// Tests of a policy may be slow on a busy machine; its budget is not what is tested here.
const POLICY: &str = "[policy]\nbudget = \"1s\"\n";

fn regional(region: &str) -> String {
    format!(
        "return {{ place = function(call)\n  return usher.filter(call.monoliths, function(m) return m.region == \
         {region:?} end)[1]\nend }}\n"
    )
}

async fn fleet() -> (World, Vec<Monolith>) {
    let world = World::new();
    for room in 0..500 {
        world.add(RoomInfo::permanent(format!("room-{room}")));
    }
    let monoliths = monoliths(&world, &["ewr", "cdg"]).await;
    (world, monoliths)
}

/// A balancer from `usher.toml`, and what every version of that file begins with.
async fn from_usher_toml(rest: &str, fill: impl FnOnce(&TempDir)) -> (Balancer, String) {
    let (_world, monoliths) = fleet().await;
    let folder = TempDir::new().unwrap();
    fill(&folder);
    let head = format!("{HEAD}{}", discovery_line(&monoliths));
    fs::write(folder.path().join("usher.toml"), format!("{head}{rest}")).unwrap();
    (Balancer::from_file(folder, "usher.toml", monoliths).await, head)
}

async fn active(balancer: &Balancer) -> String {
    balancer.policy().await["active"]["name"].as_str().unwrap().to_string()
}

async fn is_active(balancer: &Balancer, name: &str) {
    eventually(&format!("{name} decides"), async || (active(balancer).await == name).then_some(())).await;
}

/// Says something in each room and sees it arrive.
async fn still_there(balancer: &Balancer, clients: &mut [(String, Client)], mark: &str) {
    let payload = format!(r#"{{"action":"mark","mark":"{mark}"}}"#);
    for (room, client) in clients {
        for monolith in balancer.monoliths.iter().filter(|monolith| !monolith.members(room).is_empty()) {
            monolith.say(room, None, &payload);
        }
        client.recv_until(SOON, |text| text == payload).await.unwrap();
    }
    for monolith in &balancer.monoliths {
        assert_eq!(monolith.look(|state| (state.links_accepted(), state.leave_count())), (1, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f43_a_changed_configuration_is_taken_up_and_a_broken_one_is_not() {
    let (balancer, head) = from_usher_toml(POLICY, |_| {}).await;
    let write = |rest: &str| fs::write(balancer.path("usher.toml"), format!("{head}{rest}")).unwrap();
    let mut clients = Vec::new();
    for number in 0..8 {
        let room = format!("room-{number}");
        clients.push((room.clone(), balancer.join(&room, "token").await));
    }
    assert_eq!(active(&balancer).await, "default");
    // Another policy.
    write("[policy]\nbudget = \"1s\"\nfile = \"least-loaded\"\n");
    is_active(&balancer, "least-loaded").await;
    assert_eq!(balancer.policy().await["active"]["by"], "config");
    // A wait of new clients.
    write("[policy]\nbudget = \"1s\"\nfile = \"least-loaded\"\n[timeouts]\nauth = \"1s\"\n");
    eventually("a silent client is closed early", async || {
        let mut silent = Connect::path(balancer.addr, "/api/room/room-1").open().await.unwrap();
        silent.closed(std::time::Duration::from_secs(5)).await.is_ok_and(|closed| closed.code == 4004).then_some(())
    })
    .await;
    // A file that is only being written begins empty, and must not pass for one that wants every default.
    let refused = balancer.metric("usher_config_refused_total").await;
    fs::write(balancer.path("usher.toml"), "\n").unwrap();
    eventually("the empty file is refused", async || {
        (balancer.metric("usher_config_refused_total").await > refused).then_some(())
    })
    .await;
    // Broken in several ways: nothing of it counts, not even what is right in it.
    for broken in [
        "[policy]\nfile = \"random\"\n[limits]\nclients = \"many\"\n",
        "[policy]\nfile = \"random\"\nfule = 7\n",
        "[policy\nfile = \"random\"\n",
        "[policy]\nfile = \"./missing.lua\"\n",
    ] {
        let refused = balancer.metric("usher_config_refused_total").await;
        write(broken);
        eventually("the broken file is refused", async || {
            (balancer.metric("usher_config_refused_total").await > refused).then_some(())
        })
        .await;
        assert_eq!(active(&balancer).await, "least-loaded", "{broken}");
        write("[policy]\nbudget = \"1s\"\nfile = \"hash-ring\"\n");
        is_active(&balancer, "hash-ring").await;
        write("[policy]\nbudget = \"1s\"\nfile = \"least-loaded\"\n");
        is_active(&balancer, "least-loaded").await;
    }
    still_there(&balancer, &mut clients, "after-everything").await;
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_limits_and_waits_change_live() {
    let (mut balancer, head) = from_usher_toml(POLICY, |_| {}).await;
    let mut clients = [("room-1".to_string(), balancer.join("room-1", "token").await)];
    let head = head.replace(KEY, "another-key");
    let text = format!(
        "{head}[policy]\nbudget = \"1s\"\n[timeouts]\nhttp_response = \"1s\"\n[limits]\nheader = \"4KiB\"\nmessage = \"1KiB\"\n"
    );
    fs::write(balancer.path("usher.toml"), text).unwrap();
    eventually("the old key is refused", async || {
        (balancer.api("GET", "/_usher/v1/policy", "").await.status == 401).then_some(())
    })
    .await;
    balancer.key = "another-key".into();
    assert_eq!(active(&balancer).await, "default");
    // A Monolith that hangs is waited for as long as the file says now.
    let answer = http::get(balancer.addr, "/hang").await.unwrap();
    assert_eq!(answer.status, 504);
    // So is the size of a request's head, for new connections.
    let long = "x".repeat(6 << 10);
    let answer = http::get_with(balancer.addr, "/echo", &[("x-long", &long)]).await.unwrap();
    assert_eq!(answer.status, 431);
    // A message over the limit closes a new client; an old one keeps its own.
    let mut new = balancer.join("room-2", "token").await;
    new.chat(&long).await;
    assert_eq!(new.closed(SOON).await.unwrap().code, 1009);
    clients[0].1.chat(&long).await;
    clients[0].1.recv_until(SOON, |text| text.contains(&long)).await.unwrap();
    balancer.all_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f45_a_broken_file_that_the_configuration_names_is_taken_up_once_it_is_mended() {
    let (balancer, head) = from_usher_toml(POLICY, |folder| {
        fs::write(folder.path().join("mine.lua"), "return {").unwrap();
    })
    .await;
    let mut clients = [("room-1".to_string(), balancer.join("room-1", "token").await)];
    let text = format!("{head}[policy]\nbudget = \"1s\"\nfile = \"./mine.lua\"\n[timeouts]\nauth = \"1s\"\n");
    fs::write(balancer.path("usher.toml"), text).unwrap();
    let policy = eventually("the named policy is refused", async || {
        let policy = balancer.policy().await;
        (!policy["last_failure"].is_null()).then_some(policy)
    })
    .await;
    assert_eq!(policy["active"]["name"], "default");
    assert_eq!(policy["last_failure"]["line"], 1, "{policy}");
    // The rest of the file counts.
    eventually("a silent client is closed early", async || {
        let mut silent = Connect::path(balancer.addr, "/api/room/room-1").open().await.unwrap();
        silent.closed(std::time::Duration::from_secs(5)).await.is_ok_and(|closed| closed.code == 4004).then_some(())
    })
    .await;
    // Each broken text is refused once: when the configuration names it, and when it has changed.
    assert_eq!(balancer.metric("usher_policy_refused_total").await, 1.0);
    fs::write(balancer.path("mine.lua"), "return { place = 7 }").unwrap();
    eventually("the changed text is refused", async || {
        (balancer.policy().await["failures"].as_array().unwrap().len() > 1).then_some(())
    })
    .await;
    assert_eq!(balancer.metric("usher_policy_refused_total").await, 2.0);
    fs::write(balancer.path("mine.lua"), regional("cdg")).unwrap();
    is_active(&balancer, "mine").await;
    let answer = http::post(balancer.addr, "/api/room/create", r#"{"name":"new","isTemporary":true}"#).await.unwrap();
    assert_eq!(answer.status, 201);
    assert_eq!(balancer.owner("new").await, balancer.monoliths[1].id());
    still_there(&balancer, &mut clients, "still-here").await;
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monolith_that_the_file_adds_is_linked_and_others_keep_their_links() {
    let (world, fleet) = fleet().await;
    let folder = TempDir::new().unwrap();
    let late = Monolith::start(&world).await.unwrap();
    fs::write(folder.path().join("usher.toml"), format!("{HEAD}{}{POLICY}", discovery_line(&fleet))).unwrap();
    let mut balancer = Balancer::from_file(folder, "usher.toml", fleet).await;
    let mut clients = [("room-1".to_string(), balancer.join("room-1", "token").await)];
    balancer.monoliths.push(late);
    let text = format!("{HEAD}{}{POLICY}", discovery_line(&balancer.monoliths));
    fs::write(balancer.path("usher.toml"), text).unwrap();
    balancer.linked(3).await;
    still_there(&balancer, &mut clients, "still-here").await;
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmodified_balancer_toml_names_its_strategy() {
    let (_world, monoliths) = fleet().await;
    let folder = TempDir::new().unwrap();
    let addr = |at: usize| monoliths[at].link_addr();
    let text = |strategy: &str| {
        format!(
            "port = 8081\nregion = \"ewr\"\napi_key = \"operator-key\"\nunknown_key = 1\n\n[selection_strategy]\n\
             {strategy}\n\n[discovery]\nmethod = \"manual\"\n\n[[discovery.monoliths]]\nhost = \"{}\"\nport = {}\n\n\
             [[discovery.monoliths]]\nhost = \"{}\"\nport = {}\n",
            addr(0).ip(),
            addr(0).port(),
            addr(1).ip(),
            addr(1).port()
        )
    };
    fs::write(folder.path().join("balancer.toml"), text("strategy = \"HashRing\"\nweight = 5")).unwrap();
    let texts = [text("strategy = \"MinRooms\""), text("strategy = \"Random\"")];
    let balancer = Balancer::from_file(folder, "balancer.toml", monoliths).await;
    assert_eq!(active(&balancer).await, "hash-ring");
    for number in 0..6 {
        // All three stay in the balancer's own region as long as there is a Monolith.
        let name = format!("new-{number}");
        let body = format!(r#"{{"name":"{name}","isTemporary":true}}"#);
        assert_eq!(http::post(balancer.addr, "/api/room/create", &body).await.unwrap().status, 201);
        assert_eq!(balancer.owner(&name).await, balancer.monoliths[0].id());
    }
    for (text, name) in texts.iter().zip(["default", "random"]) {
        fs::write(balancer.path("balancer.toml"), text).unwrap();
        is_active(&balancer, name).await;
    }
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn distances_change_live() {
    let policy = "return { place = function(call) return usher.nearest(call.monoliths, \"home\") end }\n";
    let text = |ewr: u32, cdg: u32| {
        format!("[policy]\nbudget = \"1s\"\nfile = \"near.lua\"\n[regions.ms]\nhome = {{ ewr = {ewr}, cdg = {cdg} }}\n")
    };
    let fill = |folder: &TempDir| fs::write(folder.path().join("near.lua"), policy).unwrap();
    let (balancer, head) = from_usher_toml(&text(10, 90), fill).await;
    let before = balancer.join("room-0", "token").await;
    assert_eq!(balancer.owner("room-0").await, balancer.monoliths[0].id());
    fs::write(balancer.path("usher.toml"), format!("{head}{}", text(90, 10))).unwrap();
    let mut room = 0;
    let after = eventually("the other region is the nearer one", async || {
        room += 1;
        let client = balancer.join(&format!("room-{room}"), "token").await;
        (balancer.owner(&format!("room-{room}")).await == balancer.monoliths[1].id()).then_some(client)
    })
    .await;
    drop((before, after));
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_settings_leaves_the_version_that_an_operator_chose() {
    let by_setting = "local region = usher.settings.region or \"ewr\"\nreturn { place = function(call)\n  return \
                      usher.filter(call.monoliths, function(m) return m.region == region end)[1]\nend }\n";
    let text = |file: &str, region: &str, budget: &str| {
        format!("[policy]\nbudget = \"{budget}\"\nfile = \"{file}\"\nsettings.region = \"{region}\"\n")
    };
    let fill = |folder: &TempDir| {
        fs::write(folder.path().join("mine.lua"), regional("ewr")).unwrap();
        fs::write(folder.path().join("chosen.lua"), by_setting).unwrap();
    };
    let (balancer, head) = from_usher_toml(&text("mine.lua", "ewr", "1s"), fill).await;
    let write = |text: &str| fs::write(balancer.path("usher.toml"), format!("{head}{text}")).unwrap();
    let post = async |what: &str, body: &str| {
        let answer = balancer.api("POST", &format!("/_usher/v1/policy/{what}"), body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    let swapped = async |swaps: f64| {
        eventually("another version or environment decides", async || {
            (balancer.metric("usher_policy_swaps_total").await == swaps).then_some(())
        })
        .await;
    };
    post("use", r#"{"policy":"chosen"}"#).await;
    assert_eq!(active(&balancer).await, "chosen");
    let clients = [balancer.join("room-0", "token").await];
    assert_eq!(balancer.owner("room-0").await, balancer.monoliths[0].id());
    // Its settings change, and it stays.
    write(&text("mine.lua", "cdg", "1s"));
    swapped(2.0).await;
    let policy = balancer.policy().await;
    assert_eq!((policy["active"]["name"].as_str(), policy["active"]["by"].as_str()), (Some("chosen"), Some("config")));
    let more = [balancer.join("room-1", "token").await];
    assert_eq!(balancer.owner("room-1").await, balancer.monoliths[1].id());
    // So do limits and distances.
    write(&text("mine.lua", "cdg", "900ms"));
    swapped(3.0).await;
    write(&format!("{}[regions.ms]\newr = {{ cdg = 5 }}\n", text("mine.lua", "cdg", "900ms")));
    swapped(4.0).await;
    assert_eq!(active(&balancer).await, "chosen");
    // An edit of the watched file is a wish for that file.
    fs::write(balancer.path("mine.lua"), format!("-- edited\n{}", regional("ewr"))).unwrap();
    is_active(&balancer, "mine").await;
    // From there on settings belong to the file again, until somebody rolls back.
    post("rollback", "").await;
    assert_eq!(active(&balancer).await, "chosen");
    write(&text("mine.lua", "ewr", "1s"));
    swapped(7.0).await;
    assert_eq!(active(&balancer).await, "chosen");
    // Another file in the configuration is one that was asked for.
    write(&text("random", "ewr", "1s"));
    is_active(&balancer, "random").await;
    drop((clients, more));
    balancer.finish().await;
}
