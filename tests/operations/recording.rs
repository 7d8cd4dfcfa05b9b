//! Recorded traffic over real sockets: what stands in a trace and what never does, disks that are slow or full, the admin
//! API with its paths, swaps and rotations while decisions are taken.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use usher::config::PolicySource;
use usher::model::policy::Hook;
use usher::testkit::http::{self, Answer};
use usher::testkit::{Connect, Monolith, RoomInfo, World};
use usher::trace::Item;
use usher::trace::read::{OnDamage, Reader};
use usher::trace::record::{Outcome, TraceEvent};

use super::harness::{Balancer, KEY, SOON, discovery_line, eventually, monoliths, quick};
use super::process::{output, text, usher};

/// A policy that has every hook, and that keeps and says the names of rooms.
const BUSY: &str = r#"
local p = { name = "busy" }
function p.admit(call)
  usher.counter("asked " .. call.room.name)
  return true
end
function p.place(call)
  local last = usher.get("last")
  usher.set("last", call.room.name or "none")
  if call.room.name and call.room.name:find("broken") then
    error("no place for " .. call.room.name)
  end
  usher.now()
  return call.monoliths[1 + math.floor(usher.random() * #call.monoliths)]
end
function p.route(call)
  return call.monoliths[1]
end
function p.rebalance(call)
  return {}
end
return p
"#;

/// Everything that a trace says, in order.
fn items(path: &Path) -> Vec<Item> {
    let mut reader = Reader::open(path, OnDamage::Stop).unwrap();
    let items: Vec<Item> = std::iter::from_fn(|| reader.read().unwrap()).map(|(_, item)| item).collect();
    assert!(!reader.was_cut(), "{}: it was closed", path.display());
    items
}

/// The text of a trace, unpacked.
fn plain(path: &Path) -> String {
    let bytes = fs::read(path).unwrap();
    let bytes =
        if path.extension().is_some_and(|end| end == "zst") { zstd::decode_all(&*bytes).unwrap() } else { bytes };
    String::from_utf8(bytes).unwrap()
}

fn outcomes(items: &[Item], wanted: Hook) -> Vec<Outcome> {
    let outcome = |item: &Item| match item {
        Item::Decision { call, outcome, .. } if call.hook == wanted => Some(outcome.as_ref().clone()),
        _ => None,
    };
    items.iter().filter_map(outcome).collect()
}

/// How often each kind of event stands in a trace.
fn events(items: &[Item]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for item in items {
        if let Item::Event(event) = item {
            let name = serde_json::to_value(event).unwrap()["event"].as_str().unwrap().to_string();
            *counts.entry(name).or_default() += 1;
        }
    }
    counts
}

fn policy(folder: &Path, name: &str, text: &str) -> PathBuf {
    let file = folder.join(name);
    fs::write(&file, text).unwrap();
    file
}

/// What nobody may find in a trace.
const SECRETS: [&str; 11] = [
    "tok-in-auth-5512",
    "bearer-7731",
    "cookie-9182",
    "apikey-3341",
    "203.0.113.77",
    "198.51.100.23",
    "body-of-a-request-6620",
    "chat-message-4417",
    "query-token-8809",
    "protocol-2296",
    "basic-1047",
];

/// One busy run, recorded into `path`. Names of rooms begin with `visible`.
async fn busy_run(path: &Path, redact: bool) {
    let world = World::new();
    let rooms = ["visible-0", "Visible-1", "VISIBLE-2", "visible-3", "visible-broken"];
    rooms.iter().for_each(|room| world.add(RoomInfo::permanent(*room)));
    let folder = TempDir::new().unwrap();
    let mut config = quick();
    config.policy.source = PolicySource::File(policy(folder.path(), "busy.lua", BUSY));
    config.policy.query = vec!["mode".into()];
    config.policy.rebalance_every = Some(Duration::from_secs(1));
    config.record.path = Some(path.to_path_buf());
    config.record.redact_rooms = redact;
    config.record.route_sample = 1;
    let balancer = Balancer::start_in(folder, monoliths(&world, &["ewr", "cdg"]).await, config).await;
    let secret_headers = [
        ("authorization", "Bearer bearer-7731"),
        ("cookie", "session=cookie-9182"),
        ("apikey", "apikey-3341"),
        ("x-forwarded-for", "203.0.113.77, 198.51.100.23"),
        ("forwarded", "for=203.0.113.77"),
        ("fly-client-ip", "203.0.113.77"),
        ("proxy-authorization", "Basic basic-1047"),
        ("user-agent", "a-browser"),
    ];
    for room in rooms {
        let path = format!("/api/room/{room}?token=query-token-8809&mode=fast");
        let mut connect = Connect::room(balancer.addr, &path["/api/room/".len()..], "tok-in-auth-5512");
        for (name, value) in secret_headers {
            connect = connect.header(name, value);
        }
        let mut client = connect.open().await.unwrap();
        client.synced(SOON).await.unwrap();
        client.chat("chat-message-4417").await;
        let about = format!("/api/room/{room}/queue?token=query-token-8809&mode=fast");
        let body = r#"{"url":"body-of-a-request-6620"}"#.to_string();
        http::request(balancer.addr, "POST", &about, &secret_headers, body).await.unwrap();
        client.close(1000).await;
    }
    let upgrade = "GET /api/room/visible-0 HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        sec-websocket-protocol: protocol-2296\r\n\r\n";
    http::raw(balancer.addr, upgrade.as_bytes(), Duration::from_millis(200)).await.unwrap();
    for _ in 0..3 {
        let body = "body-of-a-request-6620".to_string();
        http::request(balancer.addr, "POST", "/api/data?token=query-token-8809", &secret_headers, body).await.unwrap();
    }
    let create = json!({"name": "visible-made", "isTemporary": true}).to_string();
    assert_eq!(http::post(balancer.addr, "/api/room/create", &create).await.unwrap().status, 201);
    eventually("the policy was asked what should move", async || {
        (balancer.metric("usher_rebalances_total").await >= 1.0).then_some(())
    })
    .await;
    eventually("everybody has left", async || (balancer.metric("usher_members").await < 1.0).then_some(())).await;
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_holds_what_happened_and_no_secret() {
    let folder = TempDir::new().unwrap();
    for name in ["plain.trace.jsonl", "packed.trace.jsonl.zst"] {
        let path = folder.path().join(name);
        busy_run(&path, false).await;
        let text = plain(&path);
        for secret in SECRETS {
            assert!(!text.contains(secret), "{secret} stands in {name}");
        }
        // The same search finds what may be found.
        for open in ["visible-0", "a-browser", "/api/data", "fast"] {
            assert!(text.contains(open), "{open} does not stand in {name}");
        }
        let items = items(&path);
        let count = |hook| outcomes(&items, hook).len();
        assert!(count(Hook::Place) >= 5 && count(Hook::Admit) >= 5 && count(Hook::Rebalance) >= 1, "{text}");
        assert_eq!(count(Hook::Route), 3, "each is recorded");
        let place = outcomes(&items, Hook::Place);
        assert!(place.iter().any(|outcome| outcome.reads.len() == 3 && outcome.fallback.is_none()));
        let fault = place.iter().find_map(|outcome| outcome.fallback.as_ref()).unwrap();
        assert!(fault.message.starts_with("busy.lua:"), "no folder: {}", fault.message);
        let events = events(&items);
        for (event, least) in [("monolith_up", 2), ("gossip", 2), ("join", 5), ("loaded", 5), ("request", 1)] {
            assert!(events.get(event).is_some_and(|count| *count >= least), "{event}: {events:?}");
        }
        assert_eq!(events["leave"], events["join"], "each join has its leave, once: {events:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redacted_no_name_of_a_room_is_anywhere() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("t.jsonl");
    busy_run(&path, true).await;
    let text = plain(&path);
    assert!(!text.to_lowercase().contains("visible"), "a name stands in it");
    for secret in SECRETS {
        assert!(!text.contains(secret), "{secret} stands in it");
    }
    let items = items(&path);
    let joined = items.iter().find_map(|item| match item {
        Item::Event(TraceEvent::Join { room, .. }) => Some(room.clone()),
        _ => None,
    });
    let joined = joined.unwrap();
    let placed = |item: &Item| match item {
        Item::Decision { call, .. } => call.room.as_ref().is_some_and(|room| room.name.as_ref() == Some(&joined)),
        _ => false,
    };
    assert!(joined.starts_with("r-") && items.iter().any(placed), "the same name everywhere");
}

async fn record(balancer: &Balancer, method: &str, body: Value) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    balancer.api(method, "/_usher/v1/record", &body).await
}

/// Creates a room, which is a decision.
async fn place(balancer: &Balancer, name: &str) {
    let body = json!({"name": name, "isTemporary": true}).to_string();
    let answer = http::post(balancer.addr, "/api/room/create", &body).await.unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_or_is_full_costs_records_and_nothing_else() {
    let pipes = TempDir::new().unwrap();
    let pipe = pipes.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [pipe, "/dev/full".into()] {
        let full = path.starts_with("/dev");
        let mut config = quick();
        config.record.path = Some(path);
        let balancer = Balancer::start(monoliths(&World::new(), &["ewr"]).await, config).await;
        let mut number = 0;
        let document = eventually("the disk is told to refuse", async || {
            number += 1;
            place(&balancer, &format!("room-{number}")).await;
            let document = balancer.document("/_usher/v1/record").await;
            let dropped = document["dropped_decisions"].as_u64().unwrap();
            (document["error"].is_string() && (dropped > 0 || !full)).then_some(document)
        })
        .await;
        assert_eq!(document["recording"], true, "it is tried again: {document}");
        assert!(balancer.metric("usher_record_failing").await > 0.5);
        if full {
            assert!(balancer.metric("usher_record_dropped_decisions_total").await > 0.5);
        }
        let before = Instant::now();
        balancer.finish().await;
        assert!(before.elapsed() < SOON, "the end waits for no disk");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_api_records_inside_the_record_folder_only() {
    let world = World::new();
    let home = TempDir::new().unwrap();
    let traces = home.path().join("traces");
    let elsewhere = home.path().join("x.jsonl");
    fs::create_dir(&traces).unwrap();
    fs::write(&elsewhere, "mine").unwrap();
    std::os::unix::fs::symlink(&elsewhere, traces.join("link.jsonl")).unwrap();
    let nowhere = Balancer::start(monoliths(&world, &["ewr"]).await, quick()).await;
    let answer = record(&nowhere, "POST", json!({"path": "a.jsonl"})).await;
    assert!(answer.status == 400 && answer.text().contains("set record.folder"), "{}", answer.text());
    assert_eq!(nowhere.document("/_usher/v1/record").await["recording"], false);
    nowhere.finish().await;

    let mut config = quick();
    config.record.folder = Some(traces.clone());
    let balancer = Balancer::start(monoliths(&world, &["ewr", "cdg"]).await, config).await;
    let absolute = traces.join("a.jsonl").display().to_string();
    for path in ["../x.jsonl", &absolute, "link.jsonl", "", "policy.lua", "none/a.jsonl"] {
        let answer = record(&balancer, "POST", json!({"path": path})).await;
        assert_eq!(answer.status, 400, "{path}: {}", answer.text());
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains("name"), "{}", answer.text());
    }
    for wrong in [json!({"for": "10"}), json!({"for": "0s"}), json!({"for": "99999h"}), json!({"pth": "a.jsonl"})] {
        assert_eq!(record(&balancer, "POST", wrong.clone()).await.status, 400, "{wrong}");
    }
    assert_eq!(record(&balancer, "DELETE", Value::Null).await.status, 409);
    assert_eq!(record(&balancer, "PUT", Value::Null).await.status, 405);
    assert_eq!(http::get(balancer.addr, "/_usher/v1/record").await.unwrap().status, 401);
    assert_eq!(fs::read(&elsewhere).unwrap(), b"mine");

    place(&balancer, "before").await;
    let started = record(&balancer, "POST", json!({"path": "a.jsonl"})).await.json();
    assert_eq!(
        (&started["recording"], &started["by"], &started["error"]),
        (&json!(true), &json!("admin"), &Value::Null)
    );
    let again = record(&balancer, "POST", Value::Null).await;
    assert!(again.status == 409 && again.text().contains("is being recorded"), "{}", again.text());
    place(&balancer, "during").await;
    let stopped = record(&balancer, "DELETE", Value::Null).await.json();
    assert_eq!((&stopped["recording"], &stopped["decisions"]), (&json!(false), &json!(1)), "{stopped}");
    place(&balancer, "after").await;
    let found = items(&traces.join("a.jsonl"));
    // It began while everything was up.
    let up = found.iter().take_while(|item| matches!(item, Item::Event(_))).count();
    assert!(up >= 4 && events(&found)["monolith_up"] == 2, "{found:?}");
    let text = plain(&traces.join("a.jsonl"));
    assert!(text.contains("during") && !text.contains("\"after\""));

    // By itself, with a name of its own.
    let started = record(&balancer, "POST", json!({"for": "200ms"})).await.json();
    assert!(started["ends_at"].is_string() && started["path"].as_str().unwrap().ends_with("Z.trace.jsonl.zst"));
    place(&balancer, "timed").await;
    let ended = eventually("it ends by itself", async || {
        let document = balancer.document("/_usher/v1/record").await;
        (document["recording"] == false).then_some(document)
    })
    .await;
    assert!(ended["ended_at"].is_string() && ended["error"].is_null(), "{ended}");
    assert_eq!(outcomes(&items(Path::new(ended["path"].as_str().unwrap())), Hook::Place).len(), 1);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_is_declared_and_files_rotate_while_decisions_are_taken() {
    let (folder, traces) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut config = quick();
    config.policy.source = PolicySource::File(policy(folder.path(), "one.lua", "return {} -- one"));
    policy(folder.path(), "two.lua", "return { place = function(call) return call.monoliths[1] end } -- two");
    config.record.path = Some(traces.path().join("t.jsonl"));
    config.record.rotate = 3000;
    let balancer = Balancer::start_in(folder, monoliths(&World::new(), &["ewr"]).await, config).await;
    for room in 0..15 {
        place(&balancer, &format!("one-{room}")).await;
    }
    let answer = balancer.api("POST", "/_usher/v1/policy/use", r#"{"policy":"two"}"#).await;
    let version = answer.json()["active"]["version"].as_str().unwrap().to_string();
    for room in 0..15 {
        place(&balancer, &format!("two-{room}")).await;
    }
    balancer.finish().await;
    let files: Vec<PathBuf> = fs::read_dir(traces.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 3, "{files:?}");
    let (mut decisions, mut swaps) = (0, 0);
    for file in files {
        let mut reader = Reader::open(&file, OnDamage::Stop).unwrap();
        let mut known = vec![reader.header().policy.version.clone()];
        while let Some((_, item)) = reader.read().unwrap() {
            match item {
                Item::Policy(policy) => {
                    assert!(policy.version == version && policy.source.ends_with("-- two"));
                    known.push(policy.version);
                    swaps += 1;
                }
                Item::Decision { outcome, .. } => {
                    assert!(known.iter().any(|known| **known == *outcome.policy), "{}", file.display());
                    decisions += 1;
                }
                Item::Gap(gap) => panic!("{gap:?}"),
                _ => {}
            }
        }
    }
    assert!(decisions == 30 && swaps <= 1, "{decisions} decisions, {swaps} swaps");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_configuration_starts_and_ends_a_recording() {
    let world = World::new();
    let monoliths: Vec<Monolith> = monoliths(&world, &["ewr"]).await;
    let folder = TempDir::new().unwrap();
    let common = format!("region = \"ewr\"\napi_key = \"{KEY}\"\n{}", discovery_line(&monoliths));
    let write = |folder: &Path, more: &str| fs::write(folder.join("usher.toml"), format!("{common}{more}")).unwrap();
    write(folder.path(), "");
    let balancer = Balancer::from_file(folder, "usher.toml", monoliths).await;
    let until = async |path: &str, recording: bool| {
        eventually("the change is taken up", async || {
            let document = balancer.document("/_usher/v1/record").await;
            let there = document["path"].as_str().is_some_and(|found| found.ends_with(path));
            (there && document["recording"] == recording && (document["error"].is_null())).then_some(())
        })
        .await;
    };
    write(balancer.folder.path(), "[record]\npath = \"traces/a.jsonl\"\n");
    until("traces/a.jsonl", true).await;
    place(&balancer, "first").await;
    write(balancer.folder.path(), "[record]\npath = \"traces/b.jsonl.zst\"\n");
    until("traces/b.jsonl.zst", true).await;
    place(&balancer, "second").await;
    write(balancer.folder.path(), "");
    until("traces/b.jsonl.zst", false).await;
    place(&balancer, "third").await;
    assert_eq!(outcomes(&items(&balancer.path("traces/a.jsonl")), Hook::Place).len(), 1);
    assert_eq!(outcomes(&items(&balancer.path("traces/b.jsonl.zst")), Hook::Place).len(), 1);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_counted_never_falls_while_a_recording_ends() {
    let pipes = TempDir::new().unwrap();
    let pipe = pipes.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // A disk that takes the beginning and then hangs: the end takes as long as usher waits for it.
    let (enough, stop_reading) = std::sync::mpsc::channel::<()>();
    let disk = std::thread::spawn({
        let pipe = pipe.clone();
        move || {
            let mut opened = fs::File::open(pipe).unwrap();
            let mut bytes = [0; 4096];
            while stop_reading.try_recv().is_err() {
                std::io::Read::read(&mut opened, &mut bytes).unwrap();
            }
            opened
        }
    });
    let world = World::new();
    let monoliths: Vec<Monolith> = monoliths(&world, &["ewr"]).await;
    let folder = TempDir::new().unwrap();
    let common = format!("region = \"ewr\"\napi_key = \"{KEY}\"\n{}", discovery_line(&monoliths));
    let write = |folder: &Path, more: &str| fs::write(folder.join("usher.toml"), format!("{common}{more}")).unwrap();
    write(folder.path(), &format!("[record]\npath = {pipe:?}\n"));
    let balancer = Balancer::from_file(folder, "usher.toml", monoliths).await;
    let mut number = 0;
    let mut some = async || {
        number += 1;
        place(&balancer, &format!("room-{number}")).await;
    };
    let counted = async || balancer.metric("usher_record_decisions_total").await;
    let before = eventually("decisions are counted", async || {
        some().await;
        Some(counted().await).filter(|count| *count > 3.0)
    })
    .await;
    enough.send(()).unwrap();
    // More than a pipe holds.
    for _ in 0..200 {
        some().await;
    }
    write(balancer.folder.path(), "");
    eventually("the recording has ended", async || {
        assert!(counted().await >= before, "it fell");
        let document = balancer.document("/_usher/v1/record").await;
        document["ended_at"].is_string().then_some(())
    })
    .await;
    assert!(counted().await >= before, "it fell");
    drop(disk.join().unwrap());
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_start_show_and_stop() {
    let folder = TempDir::new().unwrap();
    let mut config = quick();
    config.record.folder = Some(folder.path().join("traces"));
    let balancer = Balancer::start(monoliths(&World::new(), &["ewr"]).await, config).await;
    let admin = format!("http://{}", balancer.admin);
    let run = async |arguments: &[&str]| {
        let mut command = usher(folder.path());
        let done = output(command.arg("record").args(arguments).args(["--admin", &admin, "--api-key", KEY])).await;
        (done.status.code().unwrap(), text(&done.stdout), text(&done.stderr))
    };
    assert_eq!(run(&["status"]).await, (0, "nothing has been recorded\n".into(), String::new()));
    let (code, _, error) = run(&["stop"]).await;
    assert!(code == 1 && error.contains("409: nothing is being recorded"), "{error}");
    let (code, shown, error) = run(&["start", "--path", "x.trace.jsonl.zst", "--for", "10m"]).await;
    assert!(code == 0 && shown.contains("recording ") && shown.contains("ends at "), "{shown}{error}");
    place(&balancer, "room").await;
    let (_, shown, _) = run(&["stop"]).await;
    assert!(shown.contains("x.trace.jsonl.zst: 1 decisions, ") && shown.contains("ended at "), "{shown}");
    let (code, shown, _) = run(&["status", "--json"]).await;
    let document: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((code, &document["recording"], &document["decisions"]), (0, &json!(false), &json!(1)));
    let (code, _, error) = run(&["start", "--path", "/etc/x.jsonl"]).await;
    assert!(code == 1 && error.contains("is no file inside the record folder"), "{error}");
    assert_eq!(outcomes(&items(&folder.path().join("traces/x.trace.jsonl.zst")), Hook::Place).len(), 1);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_records_into_a_file() {
    let folder = TempDir::new().unwrap();
    let mut demo = usher(folder.path());
    demo.args(["demo", "--port", "0", "--seconds", "4", "--monoliths", "2", "--rooms", "5", "--clients", "10"]);
    let done = output(demo.args(["--record", "traces/demo.trace.jsonl.zst"])).await;
    let shown = text(&done.stdout);
    assert_eq!(done.status.code(), Some(0), "{shown}{}", text(&done.stderr));
    assert!(shown.contains("recorded traces/demo.trace.jsonl.zst: "), "{shown}");
    let found = items(&folder.path().join("traces/demo.trace.jsonl.zst"));
    let events = events(&found);
    assert!(!outcomes(&found, Hook::Place).is_empty() && events["monolith_up"] == 2, "{events:?}");
    assert_eq!(events["join"], events["leave"], "{events:?}");
    let wrong = output(usher(folder.path()).args(["demo", "--port", "0", "--record", "traces"])).await;
    assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong.stderr));
}
