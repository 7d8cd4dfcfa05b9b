//! `usher trace`: info, cut and to-test on a file, and `usher test` on what they print.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;
use usher::model::policy::{Call, MonolithRow, View};
use usher::policy::lua::Source;
use usher::trace::Encoder;
use usher::trace::record::{Decided, Header, Outcome, PolicyText, TraceEvent};

use super::process::{output, text, usher};

const POLICY: &str =
    "return { name = 'calm', place = function(call) return usher.min_by(call.monoliths, 'rooms') end }\n";

/// Ten rooms that the policy placed, one each second.
fn trace() -> Vec<u8> {
    let policy = PolicyText { file: "calm.lua".into(), ..PolicyText::of(&Source::shipped("calm", POLICY)) };
    let outcome = Outcome::chosen(&"b".into(), &policy.version);
    let header =
        Header { balancer: "b1".into(), region: "ewr".into(), started_us: 1_700_000_000_000_000, ..Header::of(policy) };
    let row = |id: &str, rooms| MonolithRow { id: id.into(), region: "ewr".into(), rooms, ..MonolithRow::default() };
    let view = View::of([row("a", 3), row("b", 1)]);
    let (mut encoder, mut bytes) = (Encoder::new(None), Vec::new());
    encoder.header(&header, &mut bytes);
    encoder.event(0, TraceEvent::MonolithUp { monolith: "a".into(), region: "ewr".into() }, &mut bytes);
    for n in 0..10u64 {
        let room =
            json!({"name": format!("room{n}"), "region": "ewr", "clients": 1, "regions": {"ewr": 1}, "attempt": 1});
        let call: Call =
            serde_json::from_value(json!({"hook": "place", "now_us": 1_700_000_000_000_000 + n, "seed": u64::MAX - n,
            "region": "ewr", "cause": "join", "room": room, "client": {"region": "ewr", "attempt": 1}}))
            .unwrap();
        let decided = Decided { call, view: view.clone().into(), outcome: outcome.clone() };
        encoder.decision(n * 1_000_000, decided, &mut bytes);
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_is_looked_into_cut_and_made_a_test() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("evening.trace.jsonl"), trace()).unwrap();
    fs::write(path("calm.lua"), POLICY).unwrap();
    let run = async |arguments: &[&str]| {
        let done = output(usher(folder.path()).args(arguments)).await;
        (done.status.code().unwrap(), text(&done.stdout), text(&done.stderr))
    };
    let (code, out, err) = run(&["trace", "info", "evening.trace.jsonl", "--format", "json"]).await;
    let info: Value = serde_json::from_str(&out).unwrap_or_default();
    assert_eq!((code, &info["decisions"], &info["rooms"]), (0, &json!(10), &json!(10)), "{out} {err}");
    assert_eq!((&info["span_s"], &info["policies"][0]["name"]), (&json!(9.0), &json!("calm")), "{out}");
    let (code, out, _) = run(&["trace", "info", "evening.trace.jsonl"]).await;
    assert!(code == 0 && out.contains("decisions  10: place 10") && out.contains("gaps       none"), "{out}");

    let part =
        ["trace", "cut", "evening.trace.jsonl", "--from", "2s", "--to", "2023-11-14T22:13:25Z", "-o", "part.zst"];
    let (code, out, err) = run(&part).await;
    assert!(code == 0 && out.contains("3 decisions (3 to 5, which are 1 to 3 now)"), "{out} {err}");
    let (code, _, err) = run(&part).await;
    assert!(code == 2 && err.contains("part.zst: exists; --force replaces it"), "{err}");
    let (code, out, _) = run(&["trace", "info", "part.zst"]).await;
    assert!(code == 0 && out.contains("decisions  3: place 3") && out.contains("2023-11-14T22:13:22Z"), "{out}");

    let (code, out, err) = run(&["trace", "to-test", "part.zst", "--decision", "2", "--name", "as it was"]).await;
    assert!(code == 0 && err.is_empty() && out.contains("t.it(\"as it was\", function()"), "{out} {err}");
    fs::write(path("calm_test.lua"), out + "t.trace(\"part.zst\", function(d) t.check(not d.changed) end)\n").unwrap();
    let (code, out, err) = run(&["test", "calm_test.lua"]).await;
    assert!(code == 0 && out.contains("2 of 2 passed"), "{out} {err}");
    fs::write(path("calm.lua"), POLICY.replace("min_by", "max_by")).unwrap();
    let (code, out, _) = run(&["test", "calm_test.lua"]).await;
    assert!(code == 1 && out.contains("as a test: usher trace to-test part.zst --decision 1"), "{out}");

    for (arguments, code, why) in [
        (&["trace", "info", "missing.jsonl"][..], 2, "missing.jsonl: cannot be read"),
        (&["trace", "info", "calm.lua"][..], 2, "calm.lua:1: is no trace"),
        (&["trace", "to-test", "part.zst", "--decision", "9"][..], 1, "has no decision 9; the last one is 3"),
        (&["trace", "cut", "part.zst", "--from", "soon", "-o", "x"][..], 2, "is no moment; give a time"),
        (&["trace", "cut", "part.zst", "-o", "part.zst", "--force"][..], 2, "is the trace that is cut"),
    ] {
        let (found, _, err) = run(arguments).await;
        assert!(found == code && err.contains(why), "{arguments:?}: {found} {err}");
    }
}
