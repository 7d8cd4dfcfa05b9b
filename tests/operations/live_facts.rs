//! What a policy sees, over real sockets: every field of a call has its live value. A policy tells by its refusals.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;
use usher::config::PolicySource;
use usher::testkit::monolith::UnloadReason;
use usher::testkit::{Client, Connect, Monolith, RoomInfo, World, http};

use super::harness::{Balancer, KEY, SOON, discovery_line, eventually, quick};

/// Closes whoever asks with `?f=path.in.the.call` with what stands there; `f=placed` is what `place` saw of the room.
const MIRROR: &str = r#"
local function show(value)
  if type(value) ~= "table" then return tostring(value) end
  local keys = {}
  for key, item in value do table.insert(keys, tostring(key) .. "=" .. tostring(item)) end
  table.sort(keys)
  return table.concat(keys, ",")
end
local policy = {}
function policy.admit(call)
  local path = call.request.query.f
  if path == nil then return true end
  if path == "placed" then return usher.reject(4000, usher.get(call.room.name) or "never") end
  local value = call
  for part in string.gmatch(path, "[^%.]+") do
    value = if type(value) == "table" then value[tonumber(part) or part] else nil
  end
  return usher.reject(4000, show(value))
end
function policy.place(call)
  local room, previous = call.room, call.room.previous or {}
  usher.set(room.name, table.concat({
    call.cause, tostring(room.region), room.clients, room.attempt, tostring(previous.monolith), tostring(previous.why),
    tostring(room.metadata and room.metadata.users), tostring(call.client and call.client.reconnect),
  }, " "))
  return call.monoliths[1]
end
return policy
"#;

fn write_policy(folder: &Path) {
    fs::write(folder.join("policy.lua"), MIRROR).unwrap();
}

/// Monoliths `m1` in ewr and `m2` in cdg, so that `call.monoliths` has a known order.
async fn fleet() -> Vec<Monolith> {
    let world = World::new();
    for room in ["movie", "fresh"] {
        world.add(RoomInfo::permanent(room));
    }
    let mut monoliths = Vec::new();
    for (id, region) in [("m1", "ewr"), ("m2", "cdg")] {
        monoliths.push(Monolith::builder(&world).id(id).region(region).start().await.unwrap());
    }
    monoliths
}

async fn balancer() -> Balancer {
    let folder = TempDir::new().unwrap();
    write_policy(folder.path());
    let mut config = quick();
    config.policy.source = PolicySource::File(folder.path().join("policy.lua"));
    config.policy.query = vec!["f".into()];
    config.weights.set("cdg", 2.5);
    Balancer::start_in(folder, fleet().await, config).await
}

async fn reason(connect: Connect) -> String {
    connect.open().await.unwrap().closed(SOON).await.unwrap().reason
}

/// What a policy sees of a call for this room.
async fn see(balancer: &Balancer, room: &str, path: &str) -> String {
    reason(Connect::path(balancer.addr, &format!("/api/room/{room}?f={path}")).header("fly-region", "lhr")).await
}

async fn number(balancer: &Balancer, path: &str) -> f64 {
    see(balancer, "movie", path).await.parse().unwrap_or(f64::NAN)
}

async fn becomes(balancer: &Balancer, room: &str, path: &str, expected: &str) {
    let mut last = String::new();
    let deadline = std::time::Instant::now() + SOON;
    while last != expected {
        assert!(std::time::Instant::now() < deadline, "{path} is {last}, not {expected}");
        last = see(balancer, room, path).await;
    }
}

async fn rises(balancer: &Balancer, path: &str) {
    eventually(&format!("{path} is more than 0"), async || (number(balancer, path).await > 0.0).then_some(())).await;
}

async fn member(balancer: &Balancer, room: &str, token: &str, region: &str) -> Client {
    let mut client = Connect::room(balancer.addr, room, token).header("fly-region", region).open().await.unwrap();
    client.synced(SOON).await.unwrap();
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_and_clients_are_as_they_are() {
    let balancer = balancer().await;
    for (path, expected) in [
        ("room.name", "movie"),
        ("room.bound", "false"),
        ("room.owner", "nil"),
        ("room.clients", "0"),
        ("client.region", "lhr"),
        ("client.attempt", "1"),
        ("client.reconnect", "false"),
        ("request.method", "GET"),
        ("request.path", "/api/room/Movie"),
        ("request.region", "lhr"),
        ("request.headers.fly-region", "lhr"),
        ("request.headers.authorization", "nil"),
        ("region", "ewr"),
    ] {
        assert_eq!(see(&balancer, "Movie", path).await, expected, "{path}");
    }
    let again = Connect::path(balancer.addr, "/api/room/movie?reconnect=true&f=client.reconnect");
    assert_eq!(reason(again).await, "true");
    let first = member(&balancer, "movie", "token-1", "cdg").await;
    let second = member(&balancer, "movie", "token-2", "lhr").await;
    assert_eq!(see(&balancer, "movie", "placed").await, "join cdg 1 1 nil nil nil false");
    for (path, expected) in [
        ("room.bound", "true"),
        ("room.owner", "m1"),
        ("room.region", "cdg"),
        ("room.clients", "2"),
        ("room.regions", "cdg=1,lhr=1"),
    ] {
        assert_eq!(see(&balancer, "movie", path).await, expected, "{path}");
    }
    balancer.monoliths[0].gossip_now();
    becomes(&balancer, "movie", "room.metadata.users", "2").await;
    balancer.monoliths[0].unload("movie", UnloadReason::Admin);
    for mut client in [first, second] {
        client.closed(SOON).await.unwrap();
    }
    becomes(&balancer, "movie", "room.previous", "monolith=m1,why=unloaded").await;
    let _back = member(&balancer, "movie", "token-1", "lhr").await;
    assert_eq!(see(&balancer, "movie", "placed").await, "join lhr 1 1 m1 unloaded 2 false");
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn monoliths_are_as_they_are() {
    let balancer = balancer().await;
    for (path, expected) in [
        ("monoliths.1.id", "m1"),
        ("monoliths.2.region", "cdg"),
        ("monoliths.1.state", "up"),
        ("monoliths.1.draining", "false"),
        ("monoliths.1.weight", "1"),
        ("monoliths.2.weight", "2.5"),
        ("monoliths.1.rooms", "0"),
        ("monoliths.1.queue", "0"),
        ("monoliths.1.load_age_s", "nil"),
        ("monoliths.3", "nil"),
    ] {
        assert_eq!(see(&balancer, "movie", path).await, expected, "{path}");
    }
    // Heartbeats, and time.
    rises(&balancer, "monoliths.1.rtt_ms").await;
    rises(&balancer, "monoliths.2.age_s").await;
    // Rooms, clients, and what is on its way.
    let _member = member(&balancer, "movie", "token-1", "cdg").await;
    becomes(&balancer, "movie", "monoliths.1.rooms", "1").await;
    becomes(&balancer, "movie", "monoliths.1.clients", "1").await;
    balancer.monoliths[0].gossip_now();
    becomes(&balancer, "movie", "monoliths.1.users", "1").await;
    balancer.monoliths[0].freeze_loads();
    let mut waiting = Client::join(balancer.addr, "fresh", "token-2").await.unwrap();
    becomes(&balancer, "movie", "monoliths.1.pending", "1").await;
    balancer.monoliths[0].thaw_loads();
    waiting.synced(SOON).await.unwrap();
    becomes(&balancer, "movie", "monoliths.1.pending", "0").await;
    // HTTP: the nearest region is asked, so everything goes to m1.
    let addr = balancer.addr;
    let hanging = tokio::spawn(async move { http::get(addr, "/hang").await.map(|_| ()) });
    becomes(&balancer, "movie", "monoliths.1.inflight", "1").await;
    hanging.abort();
    becomes(&balancer, "movie", "monoliths.1.inflight", "0").await;
    assert_eq!(balancer.get("/slow/20").await.status, 200);
    rises(&balancer, "monoliths.1.latency_ms").await;
    assert_eq!(number(&balancer, "monoliths.1.errors").await, 0.0);
    assert_eq!(balancer.get("/status/500").await.status, 500);
    rises(&balancer, "monoliths.1.errors").await;
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scraped_load_is_there_grows_old_and_follows_the_configuration() {
    let monoliths = fleet().await;
    monoliths[0].set_metrics("jobs{q=\"a\"} 2\njobs{q=\"b\"} 3\nbad NaN\n");
    let folder = TempDir::new().unwrap();
    write_policy(folder.path());
    let base = format!(
        "region = \"ewr\"\napi_key = {KEY:?}\n{}[policy]\nfile = \"./policy.lua\"\nbudget = \"1s\"\nquery = [\"f\"]\n",
        discovery_line(&monoliths)
    );
    let file = folder.path().join("usher.toml");
    let configure = |load: &str| fs::write(&file, format!("{base}{load}")).unwrap();
    let metrics =
        "metrics = { lag = \"nodejs_eventloop_lag_seconds\", jobs = \"jobs\", a = 'jobs{q=\"a\"}', bad = \"bad\" }";
    configure(&format!("[load]\ninterval = \"100ms\"\nheader = \"apikey: s3cr3t\"\n{metrics}\n"));
    let balancer = Balancer::from_file(folder, "usher.toml", monoliths).await;
    becomes(&balancer, "movie", "monoliths.1.load", "a=2,jobs=5,lag=0.01").await;
    becomes(&balancer, "movie", "monoliths.2.load", "lag=0.01").await;
    assert_eq!(see(&balancer, "movie", "monoliths.1.load_age_s").await, "0");
    let asked = balancer.monoliths[0].requests();
    let scrape = asked.iter().find(|request| request.target == "/api/status/metrics").unwrap();
    assert!(scrape.headers.contains(&("apikey".into(), "s3cr3t".into())), "{:?}", scrape.headers);
    balancer.monoliths[0].set_metrics("jobs{q=\"a\"} 7\n");
    becomes(&balancer, "movie", "monoliths.1.load", "a=7,jobs=7,lag=0.01").await;
    // A Monolith that does not answer keeps its numbers, which grow old, and is asked once at a time.
    configure(&format!("[load]\npath = \"/hang\"\ninterval = \"100ms\"\n{metrics}\n"));
    rises(&balancer, "monoliths.1.load_age_s").await;
    assert_eq!(see(&balancer, "movie", "monoliths.1.load").await, "a=7,jobs=7,lag=0.01");
    eventually("it is counted", async || {
        (balancer.metric(r#"usher_load_scrape_failures_total{kind="timeout"}"#).await > 0.0).then_some(())
    })
    .await;
    // Other numbers, and none.
    configure("[load]\ninterval = \"100ms\"\nmetrics = { rooms = \"ott_room_count\" }\n");
    becomes(&balancer, "movie", "monoliths.2.load", "rooms=0").await;
    configure("");
    becomes(&balancer, "movie", "monoliths.2.load", "").await;
    becomes(&balancer, "movie", "monoliths.2.load_age_s", "nil").await;
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_joins_at_once_are_spread_evenly() {
    let world = World::new();
    for room in 0..500 {
        world.add(RoomInfo::permanent(format!("room-{room}")));
    }
    let monoliths = super::harness::monoliths(&world, &["ewr"; 4]).await;
    let mut config = quick();
    config.policy.source = PolicySource::Shipped("least-loaded".into());
    config.policy.settings.insert("slow_start_s".into(), json!(1));
    // A slow machine must not make placements time out.
    config.timeouts.load = Duration::from_secs(60);
    let balancer = Balancer::start(monoliths, config).await;
    eventually("they have started", async || {
        let view = balancer.app.control().routes().published();
        view.view.rows().iter().all(|row| row.age_s >= 1.0).then_some(())
    })
    .await;
    let mut joins = JoinSet::new();
    for room in 0..500 {
        let addr = balancer.addr;
        joins.spawn(async move {
            let mut client = Client::join(addr, &format!("room-{room}"), &format!("token-{room}")).await.unwrap();
            client.synced(SOON).await.unwrap();
            client
        });
    }
    let clients = joins.join_all().await;
    let loads: Vec<u64> = balancer.monoliths.iter().map(Monolith::loads).collect();
    assert_eq!(loads.iter().sum::<u64>(), 500, "{loads:?}");
    assert!(loads.iter().all(|loads| (123..=127).contains(loads)), "{loads:?}");
    drop(clients);
    balancer.finish().await;
}
