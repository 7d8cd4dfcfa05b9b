//! `usher replay`: exit codes, the document, and what is said when something is wrong.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use usher::config::{Config, Gate, PolicyConfig, PolicySource};
use usher::model::policy::{Call, MonolithRow, View};
use usher::policy::lua::Source;
use usher::testkit::World;
use usher::trace::Encoder;
use usher::trace::record::{Decided, Header, Outcome, PolicyText};

use super::harness::{Balancer, KEY, discovery_line, eventually, monoliths, quick};
use super::process::{output, text, usher};

/// What is printed without its columns.
fn squeezed(text: &str) -> String {
    text.split_whitespace().map(|word| format!("{word} ")).collect()
}

const FIRST: &str = "return { place = function(call) return call.monoliths[1] end }";

/// Twenty rooms that all went to `a`, of which `lies` says that they went to `b`.
fn trace(path: &Path, lies: u64) {
    let source = Source::shipped("first", FIRST);
    let policy = PolicyText { file: "first.lua".into(), ..PolicyText::of(&source) };
    let header =
        Header { balancer: "b1".into(), region: "ewr".into(), started_us: 1_700_000_000_000_000, ..Header::of(policy) };
    let (mut encoder, mut bytes) = (Encoder::new(None), Vec::new());
    encoder.header(&header, &mut bytes);
    let row = |id: &str| MonolithRow { id: id.into(), region: "ewr".into(), ..MonolithRow::default() };
    let view = View::of(["a", "b"].map(row));
    for room in 0..20 {
        let call = json!({"hook": "place", "region": "ewr", "cause": "join", "room": {"name": format!("r{room}")}});
        let call: Call = serde_json::from_value(call).unwrap();
        let id = if room < lies { "b" } else { "a" };
        let outcome = Outcome::chosen(&id.into(), &source.version());
        encoder.decision(room * 1_000_000, Decided { call, view: view.clone().into(), outcome }, &mut bytes);
    }
    fs::write(path, bytes).unwrap();
}

/// Exit code, stdout, stderr.
async fn replay(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let run = output(usher(folder).arg("replay").args(arguments)).await;
    (run.status.code().unwrap(), text(&run.stdout), text(&run.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_good_or_says_what_is_not() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    trace(&at.join("good.trace.jsonl"), 0);
    trace(&at.join("lying.trace.jsonl"), 3);
    fs::write(at.join("second.lua"), "return { place = function(call) return call.monoliths[2] end }").unwrap();
    let (code, out, err) = replay(at, &["good.trace.jsonl"]).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let said = squeezed(&out);
    for line in ["span 19.0 s", "decisions 20", "changed 0", "agreement – 100 %", "faults 0 0"] {
        assert!(said.contains(line), "{line}: {out}");
    }
    let (code, out, err) = replay(at, &["lying.trace.jsonl"]).await;
    assert_eq!(code, 1, "{out}");
    assert!(
        squeezed(&out).contains("place b → a 3 ") && err.contains("3 of 20 decisions were not made again"),
        "{out} {err}"
    );
    // Another policy may differ, unless it is said how much.
    let (code, out, _) = replay(at, &["good.trace.jsonl", "--policy", "second.lua"]).await;
    assert_eq!(code, 0, "{out}");
    assert!(squeezed(&out).contains("place a → b 20 "), "{out}");
    let demands = ["--assert", "agreement >= 0.9", "--assert", "faults == 0"];
    let (code, out, err) = replay(at, &[&["good.trace.jsonl", "--policy", "second.lua"], &demands[..]].concat()).await;
    assert_eq!((code, err.trim()), (1, "usher: agreement >= 0.9: 0"), "{out}");
    let said = squeezed(&out);
    assert!(said.contains("✗ second agreement >= 0.9 0 ") && said.contains("✓ second faults == 0 0 "), "{out}");
    assert_eq!(replay(at, &[&["good.trace.jsonl"], &demands[..]].concat()).await.0, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_has_the_keys_of_the_contract() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    trace(&at.join("t.trace.jsonl"), 0);
    let (code, out, _) = replay(
        at,
        &[
            "t.trace.jsonl",
            "--policy",
            "least-loaded",
            "--against",
            "default",
            "--assert",
            "max_load_over_mean <= 2",
            "--format",
            "json",
        ],
    )
    .await;
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 0, "{out}");
    assert_eq!(
        (&document["decisions"], &document["agreed"], &document["changed"]),
        (&json!(20), &json!(20), &json!(0))
    );
    assert_eq!((&document["policy"], &document["against"]), (&json!("least-loaded"), &json!("default")));
    assert_eq!(document["metrics"]["agreement"], 1.0);
    assert_eq!(document["assertions"], json!([{"expr": "max_load_over_mean <= 2", "value": 2.0, "ok": true}]));
    assert_eq!((&document["faults"], &document["examples"]), (&json!(0), &json!([])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_replayed_ends_with_2_and_the_way_out() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    trace(&at.join("t.trace.jsonl"), 0);
    fs::write(at.join("broken.lua"), "return {\n  place = function(call\n").unwrap();
    fs::write(at.join("no.jsonl"), "hello\n").unwrap();
    let whole = fs::read(at.join("t.trace.jsonl")).unwrap();
    fs::write(at.join("cut.trace.jsonl"), &whole[..whole.len() - 9]).unwrap();
    let damaged = text(&whole).replacen("\"decision\":7,", "\"decision\":", 1);
    fs::write(at.join("damaged.trace.jsonl"), damaged).unwrap();
    let event = text(&whole).replacen("{\"t\":7000000", "{\"t\":6500000,\"event\":\"jo\\q\"}\n{\"t\":7000000", 1);
    fs::write(at.join("event.trace.jsonl"), event).unwrap();
    // What is asked about is bad.
    for arguments in [["--policy", "broken.lua"].as_slice(), &["--policy", "default", "--against", "broken.lua"]] {
        let (code, out, err) = replay(at, &[&["t.trace.jsonl"], arguments].concat()).await;
        assert_eq!(code, 1, "{arguments:?}: {out} {err}");
        assert!(err.contains("broken.lua:") && out.is_empty(), "{arguments:?}: {err}");
    }
    for (arguments, says) in [
        (&["missing.jsonl"][..], "missing.jsonl: cannot be read"),
        (&["no.jsonl"], "no.jsonl:1: is no trace"),
        (&["t.trace.jsonl", "--report", "no/such/x.html"], "no/such/x.html: the report cannot be written"),
        (&["t.trace.jsonl", "--policy", "least-loadd"], "did you mean \"least-loaded\"?"),
        (&["t.trace.jsonl", "--against", "default"], "--policy"),
        (&["t.trace.jsonl", "--assert", "agrement > 0"], "did you mean \"agreement\"?"),
        (&["t.trace.jsonl", "--assert", "agreement"], "write < <= >"),
        (&["damaged.trace.jsonl", "--strict"], "damaged.trace.jsonl:9: "),
        // A line that looks like an event is one that a replay would not read.
        (&["event.trace.jsonl", "--strict"], "event.trace.jsonl:10: "),
    ] {
        let (code, out, err) = replay(at, arguments).await;
        assert_eq!(code, 2, "{arguments:?}: {out} {err}");
        assert!(err.contains(says) && out.is_empty(), "{arguments:?}: {err}");
    }
    let (code, out, _) = replay(at, &["cut.trace.jsonl"]).await;
    assert!(code == 0 && out.contains("decisions    19") && out.contains("was cut off"), "{out}");
    let (code, out, _) = replay(at, &["damaged.trace.jsonl"]).await;
    assert!(code == 0 && out.contains("decisions    19") && out.contains("damaged.trace.jsonl:9: "), "{out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gate_passes_without_recent_decisions_and_tells() {
    let config = Config { policy: PolicyConfig { gate: Gate::Replay, ..quick().policy }, ..quick() };
    let balancer = Balancer::start(monoliths(&World::new(), &["ewr"]).await, config).await;
    let none = balancer.api("GET", "/_usher/v1/policy/replay", "").await;
    assert_eq!(none.status, 404, "{}", none.text());
    assert!(none.text().contains("no version has come to the gate"), "{}", none.text());
    let used = balancer.api("POST", "/_usher/v1/policy/use", r#"{"policy": "least-loaded"}"#).await;
    assert_eq!(used.status, 200, "{}", used.text());
    let report = balancer.document("/_usher/v1/policy/replay").await;
    assert_eq!(
        (&report["policy"], &report["passed"], &report["decisions"]),
        (&json!("least-loaded"), &json!(true), &json!(0))
    );
    assert_eq!(balancer.api("POST", "/_usher/v1/policy/replay", "").await.status, 405);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gate_makes_the_last_decisions_of_the_running_balancer_again() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, place: &str| {
        let path = folder.path().join(name);
        fs::write(&path, format!("return {{ place = function(call) return call.monoliths[{place}] end }}")).unwrap();
        path
    };
    let first = write("first.lua", "1");
    write("contrary.lua", "#call.monoliths");
    write("alike.lua", "2 - 1");
    let policy = PolicyConfig {
        source: PolicySource::File(first),
        gate: Gate::Replay,
        require: vec!["agreement >= 0.9".parse().unwrap()],
        ..quick().policy
    };
    let balancer = Balancer::start(monoliths(&World::new(), &["ewr", "ewr"]).await, Config { policy, ..quick() }).await;
    for room in 0..20 {
        let _ = balancer.get(&format!("/api/room/room-{room}")).await;
    }
    let active = balancer.document("/_usher/v1/policy").await["active"]["version"].clone();
    let refused = balancer.api("POST", "/_usher/v1/policy/use", r#"{"policy": "contrary.lua"}"#).await;
    assert!(refused.status == 409 && refused.text().contains("agreement >= 0.9: 0"), "{}", refused.text());
    let document = balancer.document("/_usher/v1/policy").await;
    assert_eq!(document["active"]["version"], active);
    assert!(document["last_failure"]["reason"].as_str().unwrap().contains("agreement >= 0.9"), "{document}");
    let report = balancer.document("/_usher/v1/policy/replay").await;
    assert_eq!(report["passed"], false, "{report}");
    assert!(report["decisions"].as_u64().unwrap() >= 20, "{report}");
    let used = balancer.api("POST", "/_usher/v1/policy/use", r#"{"policy": "alike.lua"}"#).await;
    assert_eq!(used.status, 200, "{}", used.text());
    assert_eq!(balancer.document("/_usher/v1/policy/replay").await["passed"], true);
    balancer.finish().await;
}

/// A folder with policies of which each places rooms on the Monolith at this place of the list.
fn placing(policies: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, place) in policies {
        let text = format!("return {{ place = function(call) return call.monoliths[{place}] end }}");
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

async fn place_rooms(balancer: &Balancer, names: &str) {
    for room in 0..20 {
        let _ = balancer.get(&format!("/api/room/{names}-{room}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_passes_the_gate_once_more_before_it_decides_alone() {
    let folder = placing(&[("first.lua", "1"), ("contrary.lua", "#call.monoliths"), ("alike.lua", "2 - 1")]);
    let policy = PolicyConfig {
        source: PolicySource::File(folder.path().join("first.lua")),
        gate: Gate::Replay,
        require: vec!["agreement >= 0.9".parse().unwrap()],
        ..quick().policy
    };
    let balancer = Balancer::start(monoliths(&World::new(), &["ewr", "ewr"]).await, Config { policy, ..quick() }).await;
    // Nothing was decided yet that it would have to make again.
    let begun = balancer.api("POST", "/_usher/v1/policy/canary", r#"{"policy": "contrary.lua", "share": 0}"#).await;
    assert_eq!(begun.status, 200, "{}", begun.text());
    place_rooms(&balancer, "room").await;
    let active = balancer.document("/_usher/v1/policy").await["active"]["version"].clone();
    let refused = balancer.api("POST", "/_usher/v1/policy/promote", "").await;
    assert!(refused.status == 409 && refused.text().contains("agreement >= 0.9: 0"), "{}", refused.text());
    let document = balancer.document("/_usher/v1/policy").await;
    assert!(document["active"]["version"] == active && document["canary"].is_object(), "{document}");
    let begun = balancer.api("POST", "/_usher/v1/policy/canary", r#"{"policy": "alike.lua", "share": 0}"#).await;
    assert_eq!(begun.status, 200, "{}", begun.text());
    let promoted = balancer.api("POST", "/_usher/v1/policy/promote", "").await;
    assert!(promoted.status == 200 && promoted.json()["canary"].is_null(), "{}", promoted.text());
    // Whoever returns has no time for a gate.
    assert_eq!(balancer.api("POST", "/_usher/v1/policy/rollback", "").await.status, 200);
    balancer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_settings_of_a_version_that_was_chosen_by_hand_pass_the_gate_first() {
    let folder = placing(&[("first.lua", "1"), ("chosen.lua", "usher.settings.last and #call.monoliths or 1")]);
    let monoliths = monoliths(&World::new(), &["ewr", "ewr"]).await;
    let common = format!(
        "region = \"ewr\"\napi_key = \"{KEY}\"\n{}[policy]\nfile = \"./first.lua\"\nbudget = \"1s\"\ngate = \"replay\"\n",
        discovery_line(&monoliths)
    );
    let write = |folder: &Path, settings: &str| {
        let text = format!("{common}settings = {settings}\n[policy.require]\nagreement = \">= 0.9\"\n");
        fs::write(folder.join("usher.toml"), text).unwrap();
    };
    write(folder.path(), "{}");
    let balancer = Balancer::from_file(folder, "usher.toml", monoliths).await;
    let used = balancer.api("POST", "/_usher/v1/policy/use", r#"{"policy": "chosen"}"#).await;
    assert_eq!(used.status, 200, "{}", used.text());
    let swaps = balancer.metric("usher_policy_swaps_total").await;
    place_rooms(&balancer, "room").await;
    write(balancer.folder.path(), "{ last = true }");
    let document = eventually("the settings are refused", async || {
        let document = balancer.document("/_usher/v1/policy").await;
        document["last_failure"].is_object().then_some(document)
    })
    .await;
    let reason = document["last_failure"]["reason"].as_str().unwrap();
    assert!(reason.contains("agreement >= 0.9: 0") && document["active"]["name"] == "chosen", "{document}");
    assert!((balancer.metric("usher_policy_swaps_total").await - swaps).abs() < 0.5, "the old settings go on");
    // What decides alike is taken up.
    write(balancer.folder.path(), "{ last = false }");
    eventually("the settings are taken up", async || {
        (balancer.metric("usher_policy_swaps_total").await > swaps + 0.5).then_some(())
    })
    .await;
    balancer.finish().await;
}
