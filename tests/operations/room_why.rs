//! Why a room is where it is: its story over a lost Monolith, a move, a swap of the policy and faults of that, at the
//! admin API and on the command line; and the story that a trace tells.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;
use usher::config::PolicySource;
use usher::model::policy::{Call, MonolithRow, View};
use usher::policy::lua::Source;
use usher::testkit::{Client, Connect, RoomInfo, World, http};
use usher::trace::Encoder;
use usher::trace::record::{Decided, Header, Outcome, PolicyText, TraceEvent};
use usher::trace::redact::Redactor;

use super::harness::{Balancer, KEY, SOON, eventually, monoliths, quick};
use super::process::{output, text, usher};

const BEFORE: &str = "return { name = 'before', place = function(call)
  usher.explain('cdg if it is there')
  return usher.in_region(call.monoliths, 'cdg')[1] or call.monoliths[1]
end }
";
const AFTER: &str = "return {
  name = 'after',
  place = function(call)
    local room = call.room and call.room.name
    if room == 'x' then return call.no.field end
    if room == 'y' then return 'nobody' end
    if room == 'z' then return { 'nobody', call.monoliths[1] } end
    return nil
  end,
  admit = function(call)
    if call.room.name == 'closed' then return usher.reject(503, 'closed today') end
    return true
  end,
}
";

async fn balancer() -> Balancer {
    let world = World::new();
    for room in ["x", "y", "z"] {
        world.add(RoomInfo::permanent(room));
    }
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("policy.lua"), BEFORE).unwrap();
    let mut config = quick();
    config.handover.mode = usher::config::HandoverMode::Close;
    config.policy.source = PolicySource::File(folder.path().join("policy.lua"));
    Balancer::start_in(folder, monoliths(&world, &["ewr", "cdg"]).await, config).await
}

async fn room(balancer: &Balancer, name: &str) -> Value {
    balancer.document(&format!("/_usher/v1/rooms/{name}")).await
}

/// The chapters of a room by kind. A Monolith may answer before it reports the room, and both are told: as one here.
fn kinds(document: &Value) -> Vec<&str> {
    let mut kinds: Vec<&str> =
        document["story"].as_array().unwrap().iter().map(|chapter| chapter["what"].as_str().unwrap()).collect();
    kinds.dedup();
    kinds
}

async fn lose(balancer: &Balancer, at: usize, client: &mut Client) {
    balancer.monoliths[at].kill().await;
    assert_eq!(client.closed(SOON).await.unwrap().code, 1001);
}

async fn version(balancer: &Balancer) -> String {
    balancer.policy().await["active"]["version"].as_str().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_tells_why_it_is_where_it_is() {
    let balancer = balancer().await;
    let before = version(&balancer).await;
    let mut client = balancer.join("x", "secret-token").await;
    lose(&balancer, 1, &mut client).await;
    let gone = room(&balancer, "x").await;
    assert_eq!((&gone["state"], &gone["monolith"], &gone["clients"]), (&json!("absent"), &Value::Null, &json!(0)));
    assert_eq!(kinds(&gone), ["decided", "bound", "lost"]);
    let mut client = balancer.join("x", "secret-token").await;
    let ewr = balancer.monoliths[0].id();
    assert_eq!(balancer.owner("x").await, ewr);
    balancer.monoliths[1].restart().await.unwrap();
    balancer.linked(2).await;
    let cdg = balancer.monoliths[1].id();
    let refused = balancer.api("POST", "/_usher/v1/rooms/x/move", &json!({"to": ewr}).to_string()).await;
    assert_eq!(refused.status, 409);
    let moved = balancer.api("POST", "/_usher/v1/rooms/x/move", &json!({"to": cdg}).to_string()).await;
    assert_eq!(moved.status, 200, "{}", moved.text());
    assert_eq!(client.closed(SOON).await.unwrap().code, 1001);
    let mut client = balancer.join("x", "secret-token").await;
    assert_eq!(balancer.owner("x").await, cdg);

    fs::write(balancer.path("policy.lua"), AFTER).unwrap();
    let after = eventually("the other version decides", async || {
        let now = version(&balancer).await;
        (now != before).then_some(now)
    })
    .await;
    lose(&balancer, 1, &mut client).await;
    let _x = balancer.join("x", "secret-token").await;
    let document = room(&balancer, "X").await;
    let told = [
        "decided",
        "bound",
        "lost",
        "decided",
        "bound",
        "move_refused",
        "moving",
        "unloaded",
        "move_ended",
        "sent",
        "bound",
        "lost",
        "decided",
        "bound",
    ];
    assert_eq!(kinds(&document), told, "{document:#}");
    assert_eq!(
        (&document["state"], &document["monolith"], &document["clients"]),
        (&json!("active"), &json!(ewr), &json!(1))
    );
    let story = document["story"].as_array().unwrap();
    let times: Vec<u64> = story.iter().map(|chapter| chapter["at"].as_u64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    let of = |what: &str| story.iter().find(|chapter| chapter["what"] == what).unwrap();
    assert_eq!((&of("moving")["from"], &of("moving")["by"]), (&json!(ewr), &json!("hand")));
    assert_eq!((&of("move_refused")["why"], &of("move_ended")["how"]), (&json!("same_monolith"), &json!("let_go")));
    let decisions = document["decisions"].as_array().unwrap();
    let causes: Vec<&Value> = decisions.iter().map(|decision| &decision["cause"]).collect();
    assert_eq!(causes, ["join", "join", "move", "join"]);
    let by = |at: usize| (&decisions[at]["policy"]["name"], &decisions[at]["policy"]["version"]);
    assert_eq!((by(0), by(3)), ((&json!("policy"), &json!(before)), (&json!("policy"), &json!(after))));
    let first = &decisions[0];
    assert_eq!((&first["explained"], &first["monoliths"]), (&json!(["cdg if it is there"]), &json!(2)));
    let candidates = first["candidates"].as_array().unwrap();
    assert_eq!((candidates.len(), &candidates[0]["region"], &candidates[0]["named"]), (2, &json!("cdg"), &json!(1)));
    let fault = decisions[3]["fault"].as_str().unwrap();
    assert!(fault.contains("policy.lua:5:") && decisions[3]["monolith"] == ewr, "{fault}");

    let _y = balancer.join("y", "secret-token").await;
    let document = room(&balancer, "y").await;
    let fault = document["decisions"][0]["fault"].as_str().unwrap();
    assert!(fault.contains("policy.lua:3: place named \"nobody\": no such monolith"), "{fault}");
    let _z = balancer.join("z", "secret-token").await;
    let document = room(&balancer, "z").await;
    let overruled = &document["decisions"][0]["overruled"];
    assert_eq!(overruled, &json!([{"monolith": "nobody", "why": "no such monolith"}]));
    let created = http::post(balancer.addr, "/api/room/generate", "{}").await.unwrap();
    assert_eq!(created.status, 201, "{}", created.text());
    let document = room(&balancer, created.json()["room"].as_str().unwrap()).await;
    // Its Monolith may report it before the response is here.
    let told = kinds(&document);
    assert!(told[0] == "decided" && ["bound", "created"].contains(&told[1]), "{document:#}");
    assert_eq!(document["decisions"][0]["cause"], "create");
    for _ in 0..3 {
        let refused = Connect::room(balancer.addr, "closed", "secret-token").open().await;
        assert!(refused.is_err_and(|error| error.to_string().contains("503")));
    }
    let document = room(&balancer, "closed").await;
    assert_eq!((&document["state"], &document["decisions"]), (&json!("absent"), &json!([])));
    assert_eq!((kinds(&document), &document["story"][0]["times"]), (vec!["admission"], &json!(3)));
    assert_eq!(balancer.api("GET", "/_usher/v1/rooms/nowhere", "").await.status, 404);
    assert!(balancer.metric("usher_stories_rooms").await >= 4.0);

    let admin = format!("http://{}", balancer.admin);
    let why = async |arguments: &[&str]| {
        let mut command = usher(balancer.folder.path());
        let run = output(command.args(["room", "why", "--admin", &admin, "--api-key", KEY]).args(arguments)).await;
        (run.status.code().unwrap(), text(&run.stdout), text(&run.stderr))
    };
    let (code, out, err) = why(&["x"]).await;
    assert_eq!(code, 0, "{err}");
    for expected in [
        &format!("x: active on {ewr}"),
        &format!("placed (move, attempt 1): {cdg}, where it was to move"),
        &format!("by policy {before}, "),
        "said: cdg if it is there",
        &format!("{cdg} was lost, with 1 client in it"),
        &format!("moves from {ewr} to {cdg}, by hand; closes 1 client, to come back"),
        &format!("by policy {after}, "),
        "policy.lua:5:",
    ] {
        assert!(out.contains(expected), "{expected} is not in\n{out}");
    }
    assert!(!out.contains("secret-token"));
    let (code, out, _) = why(&["x", "--format", "json"]).await;
    let printed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &printed["story"]), (0, &room(&balancer, "x").await["story"]));
    assert_eq!(why(&["nowhere"]).await.0, 1);
}

fn trace(redactor: Option<Redactor>) -> Vec<u8> {
    let policy = PolicyText { version: "0123456789ab".into(), ..PolicyText::of(&Source::shipped("calm", "")) };
    let redacted = redactor.is_some();
    let header = Header { started_us: 1_700_000_000_000_000, redacted, ..Header::of(policy) };
    let (mut encoder, mut bytes) = (Encoder::new(redactor), Vec::new());
    encoder.header(&header, &mut bytes);
    let row = |id: &str| MonolithRow { id: id.into(), region: "ewr".into(), ..MonolithRow::default() };
    let call = json!({"hook": "place", "region": "ewr", "cause": "join", "room": {"name": "movie", "attempt": 1}});
    let call: Call = serde_json::from_value(call).unwrap();
    let outcome = Outcome { ns: 1500, ..Outcome::chosen(&"b".into(), "0123456789ab") };
    encoder.decision(5_000, Decided { call, view: View::of([row("a"), row("b")]).into(), outcome }, &mut bytes);
    encoder.event(6_000, TraceEvent::Loaded { monolith: "b".into(), room: "movie".into() }, &mut bytes);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_tells_the_story_of_a_room() {
    let folder = TempDir::new().unwrap();
    let redactor = Redactor::new();
    fs::write(folder.path().join("plain.jsonl"), trace(None)).unwrap();
    let cut = trace(None);
    fs::write(folder.path().join("cut.jsonl"), &cut[..cut.len() - 5]).unwrap();
    fs::write(folder.path().join("hashed.jsonl"), trace(Some(redactor.clone()))).unwrap();
    fs::write(folder.path().join("none.txt"), "hello\n").unwrap();
    let why = async |arguments: &[&str]| {
        let run = output(usher(folder.path()).args(["trace", "why"]).args(arguments)).await;
        (run.status.code().unwrap(), text(&run.stdout), text(&run.stderr))
    };
    let (code, out, err) = why(&["plain.jsonl", "Movie"]).await;
    assert_eq!(code, 0, "{err}");
    let expected = "Movie in plain.jsonl
(not in a trace: waits, joins sent without asking the policy, attempts that were not confirmed, ends of moves, canaries)

2023-11-14 (UTC)
22:13:20.005                placed (join, attempt 1): b
                              by calm 0123456789ab, 1.5 us: it named b
                                   monolith  region  state  rooms
                              > 1  b         ewr     up         0
                                   a         ewr     up         0
22:13:20.006      +0.001 s  on b: it has reported it
";
    assert_eq!(out, expected);
    let (code, out, _) = why(&["plain.jsonl", "movie", "--format", "json"]).await;
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, kinds(&document), &document["decisions"][0]["monolith"]),
        (0, vec!["decided", "bound"], &json!("b"))
    );
    let (code, out, err) = why(&["cut.jsonl", "movie"]).await;
    assert!(code == 0 && !out.contains("has reported") && err.contains("ends in the middle of a line"), "{out}{err}");
    let (code, out, err) = why(&["plain.jsonl", "movi"]).await;
    assert!((code, out.as_str()) == (1, "") && err.contains("among them movie (1)"), "{out}{err}");
    let (code, _, err) = why(&["hashed.jsonl", "movie"]).await;
    let hash = redactor.room("movie");
    assert!(code == 1 && err.contains("redact_rooms") && err.contains(&*hash), "{err}");
    assert_eq!(why(&["hashed.jsonl", &hash]).await.0, 0);
    let (code, _, err) = why(&["none.txt", "movie"]).await;
    assert!(code == 2 && err.contains("none.txt:1: is no trace"), "{err}");
    assert_eq!(why(&["missing.jsonl", "movie"]).await.0, 2);
}
