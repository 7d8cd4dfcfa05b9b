//! What the commands that look into traces and try policies have in common: where their results go, what a terminal gets of
//! names from far away, and which exit code means what.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::process::{Kept, output, text, usher};

/// Rooms that were placed, one of them and its Monolith with a name that would retitle a terminal.
fn trace(rooms: u64) -> String {
    let policy = json!({"name": "first", "version": "0123456789ab", "file": "first.lua", "source": "return {}",
        "settings": {}, "fuel": 20_000, "memory": 8 << 20});
    let header = json!({"usher_trace": 1, "balancer": "b\u{1b}]0;pwned\u{7}", "region": "ewr",
        "started_us": 1_700_000_000_000_000_u64, "version": "0", "redacted": false,
        "distances": {"matrix": {}, "at": {}}, "policy": policy});
    let bad = "x\u{1b}]0;pwned\u{7}";
    let mut lines = vec![header, json!({"t": 0, "event": "monolith_up", "monolith": bad, "region": "ewr"})];
    lines.push(json!({"t": 1, "view": 1, "monoliths": [{"id": bad, "region": "ewr"}], "gone": []}));
    for n in 1..=rooms {
        let room = if n == 1 { bad.to_string() } else { format!("r{n}") };
        lines.push(json!({"t": n, "event": "join", "client": n, "room": room, "reconnect": false}));
        let call = json!({"hook": "place", "region": "ewr", "cause": "join", "room": {"name": room, "attempt": 1}});
        lines
            .push(json!({"t": n, "decision": n, "hook": "place", "view": 1, "call": call, "answer": {"ranked": [bad]},
            "choice": bad, "policy": "0123456789ab", "ns": 5}));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("t.trace.jsonl"), trace(40)).unwrap();
    fs::write(folder.path().join("call.json"), r#"{"hook": "place", "room": {"name": "x"}}"#).unwrap();
    fs::write(folder.path().join("broken.lua"), "return {\n  place = function(call\n").unwrap();
    folder
}

async fn run(at: &Path, arguments: &[&str]) -> (i32, String, String) {
    let run = output(usher(at).args(arguments)).await;
    (run.status.code().unwrap(), text(&run.stdout), text(&run.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_nobody_reads_is_no_error_and_one_that_cannot_be_written_is() {
    let folder = folder();
    let at = folder.path();
    for arguments in [
        &["trace", "info", "t.trace.jsonl"][..],
        &["trace", "why", "t.trace.jsonl", "r2"],
        &["replay", "t.trace.jsonl", "--policy", "default", "--format", "json"],
        &["simulate", "t.trace.jsonl", "--policy", "default"],
        &["eval", "--policy", "default", "--input", "call.json"],
        &["check"],
    ] {
        // The reading end is gone before anything is written.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = Kept(usher(at).args(arguments).stdout(writer).stderr(Stdio::piped()).spawn().unwrap());
        let code = child.ended().await.code();
        let mut err = String::new();
        child.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!(code, Some(0), "{arguments:?}: {err}");
        assert!(!err.contains("panicked") && !err.contains("standard output"), "{arguments:?}: {err}");
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut child = Kept(usher(at).args(arguments).stdout(full).stderr(Stdio::piped()).spawn().unwrap());
        let code = child.ended().await.code();
        let mut err = String::new();
        child.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!(code, Some(2), "{arguments:?}: {err}");
        assert!(err.contains("usher: the result cannot be written to standard output: "), "{arguments:?}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_shown_names_and_never_obeys_them() {
    let folder = folder();
    let at = folder.path();
    let bad = "x\u{1b}]0;pwned\u{7}";
    for (arguments, code) in [
        (&["trace", "info", "t.trace.jsonl"][..], 0),
        (&["trace", "why", "t.trace.jsonl", bad], 0),
        (&["trace", "why", "t.trace.jsonl", "nowhere"], 1),
        (&["trace", "to-test", "t.trace.jsonl", "--decision", "2"], 1),
        (&["replay", "t.trace.jsonl", "--policy", "default"], 0),
        (&["simulate", "t.trace.jsonl", "--policy", "default"], 0),
    ] {
        let (found, out, err) = run(at, arguments).await;
        assert_eq!(found, code, "{arguments:?}: {out} {err}");
        assert!(!out.contains(['\u{1b}', '\u{7}']) && !err.contains(['\u{1b}', '\u{7}']), "{arguments:?}: {out} {err}");
    }
    let (_, out, _) = run(at, &["trace", "info", "t.trace.jsonl"]).await;
    assert!(out.contains("x\\u{1b}]0;pwned\\u{7}"), "{out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_does_not_compile_is_bad_and_one_that_is_not_there_cannot_be_asked() {
    let folder = folder();
    let at = folder.path();
    for command in [
        &["replay", "t.trace.jsonl"][..],
        &["simulate", "t.trace.jsonl"],
        &["eval", "--input", "call.json"],
        &["bench", "--monoliths", "1"],
    ] {
        for (policy, code) in [("broken.lua", 1), ("missing.lua", 2)] {
            let (found, out, err) = run(at, &[command, &["--policy", policy]].concat()).await;
            assert_eq!(found, code, "{command:?} {policy}: {out} {err}");
            assert!(err.contains(policy), "{command:?}: {err}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simulate_knows_a_trace_by_its_content_and_tells_what_is_damaged() {
    let folder = folder();
    let at = folder.path();
    fs::write(at.join("evening.txt"), trace(5) + "{\"neither\": 1}\n").unwrap();
    let (code, out, err) = run(at, &["simulate", "evening.txt", "--policy", "default", "--format", "json"]).await;
    assert!(code == 0 && err.contains("1 lines could not be understood"), "{out} {err}");
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&document["damaged"], &document["facts"]["visits"]), (&json!(1), &json!("5")));
    assert!(document["first_damage"].as_str().unwrap().starts_with("evening.txt:14: "), "{document}");
    let (code, out, err) =
        run(at, &["simulate", "evening.txt", "--policy", "default", "--report", "no/such/x.html"]).await;
    assert!(code == 2 && out.is_empty() && err.contains("no/such/x.html: the report cannot be written"), "{out} {err}");
    fs::write(at.join("usher.toml"), "[policy]\nrebalance_every = \"10s\"\n").unwrap();
    let (code, out, err) = run(at, &["simulate", "evening.txt", "--policy", "default", "-c", "usher.toml"]).await;
    assert!(code == 0 && out.contains("every 10s, as configured"), "{out} {err}");
}
