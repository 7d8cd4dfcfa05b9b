//! Everything that reads bytes of others, against bytes that were bent: no panic, no endless work, and no answer that
//! contradicts itself. The seeds are files of `tests/corpus` and recordings of real Monoliths.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "this is a test, and says what failed"
)]

mod corpus;
mod mutate;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::Cursor;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use usher::config;
use usher::lab::input;
use usher::model::exposition::{Selector, pick};
use usher::model::hello::{Hello, LONGEST_TOKEN, is_object};
use usher::model::policy::Hook;
use usher::model::wire::{Frame, FromMonolith, RoomReport};

use usher::policy::lua::{Environment, Program, Source, Vm};
use usher::policy::{Builtin, decide};
use usher::testkit::recording::Direction;
use usher::trace::read::{OnDamage, Reader};

use corpus::hammer;

/// The first frames of each kind that real Monoliths, or clients, sent.
fn recorded(names: &[&str], direction: Direction) -> Vec<Vec<u8>> {
    let mut found: Vec<Vec<u8>> = Vec::new();
    for name in names {
        let recording = support::recording(name);
        let frames = recording.events().iter().filter(|event| event.direction == Some(direction));
        found.extend(frames.filter_map(|event| event.frame()).take(60).map(|text| text.as_bytes().to_vec()));
    }
    assert!(found.len() > 5, "only {} frames of {direction:?}", found.len());
    found
}

#[derive(Deserialize)]
struct Users {
    users: u32,
}

/// What the list of rooms makes of a report has to be JSON, with this number of users and no second one.
fn listed(report: &RoomReport) {
    let mut out = String::new();
    report.metadata.write_with_users(77, &mut out);
    let read = serde_json::from_str::<Users>(&out).unwrap_or_else(|error| panic!("{error}: {out}"));
    assert_eq!(read.users, 77, "{out}");
    assert!(out.starts_with('{'), "{out}");
}

#[test]
fn link_frames() {
    let seeds = recorded(&["a-one-room-chat", "m-raw-link", "e-duplicate-room-load"], Direction::M2b);
    hammer("link", seeds, 20_000, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let Ok(frame) = Frame::parse(text) else { return };
        match frame.message {
            FromMonolith::Init(init) => {
                assert!(init.port > 0 && (1..=128).contains(&init.id.as_str().len()));
                assert!(!init.id.as_str().chars().chain(init.region.as_str().chars()).any(char::is_control));
            }
            FromMonolith::Loaded(report) => listed(&report),
            FromMonolith::Gossip(gossip) => {
                let Ok((reports, skipped)) = gossip.reports(|_| None) else { return };
                reports.iter().for_each(listed);
                // What is known already is understood as it was when it was not.
                let known = |name: &str| reports.iter().find(|report| report.name.spelling() == name);
                let (again, skipped_again) = gossip.reports(known).unwrap();
                assert_eq!((again.len(), skipped_again), (reports.len(), skipped));
                for (one, other) in reports.iter().zip(&again) {
                    assert_eq!((one.name.key(), one.epoch), (other.name.key(), other.epoch));
                    assert_eq!(one.metadata, other.metadata);
                }
            }
            FromMonolith::RoomMessage(message) => {
                assert!(serde_json::from_str::<IgnoredAny>(message.payload).is_ok(), "{}", message.payload);
            }
            FromMonolith::Kick { code, .. } => assert!((1000..5000).contains(&code.get())),
            FromMonolith::Unloaded { .. } | FromMonolith::Unknown => {}
        }
    });
}

#[test]
fn client_frames() {
    let seeds = recorded(&["a-one-room-chat", "h-hostile-client"], Direction::C2b);
    hammer("client", seeds, 20_000, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let read = serde_json::from_str::<Value>(text);
        if let Hello::Auth(token) = Hello::parse(text) {
            let read = read.as_ref().expect("an auth is JSON");
            assert_eq!((read["action"].as_str(), read["token"].as_str()), (Some("auth"), Some(&*token)));
            assert!((1..=LONGEST_TOKEN).contains(&token.len()));
        }
        let object = is_object(text);
        if let Ok(read) = read {
            assert_eq!(object, read.is_object(), "{text}");
        }
        if object {
            // Put into a frame, it is still one value: nobody can write a second field beside it.
            let frame = format!(r#"[{text}]"#);
            assert_eq!(serde_json::from_str::<Vec<IgnoredAny>>(&frame).map(|values| values.len()).ok(), Some(1));
        }
    });
}

/// Loads a configuration as a start does.
fn load(text: Option<&[u8]>, environment: Vec<(String, String)>, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    if let Some(text) = text {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let request = config::Request {
        path: None,
        working_dir: folder.path().to_path_buf(),
        environment,
        shipped: config::SHIPPED_POLICIES.to_vec(),
        workers: 2,
    };
    if let Err(errors) = config::load(&request) {
        assert!(!errors.errors.is_empty());
        for error in &errors.errors {
            assert!(!error.to_string().is_empty());
        }
    }
}

#[test]
fn config_files() {
    let example = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/usher.toml")).unwrap();
    hammer("config", vec![example], 1500, |bytes| {
        load(Some(bytes), Vec::new(), "usher.toml");
        load(Some(bytes), Vec::new(), "balancer.toml");
    });
}

#[test]
fn config_nested_without_end() {
    for opening in ["[", "{a=", "[{a=", "'", "\"\"\"", "a."] {
        for depth in [100, 10_000, 100_000] {
            load(Some(format!("x = {}", opening.repeat(depth)).as_bytes()), Vec::new(), "usher.toml");
        }
    }
    let keys = "a.".repeat(50_000) + "b = 1";
    load(Some(keys.as_bytes()), Vec::new(), "usher.toml");
    for depth in [30, 1000, 40_000] {
        load(None, vec![(format!("USHER_{}B", "A__".repeat(depth)), "1".to_owned())], "");
    }
    load(None, vec![(format!("USHER_{}", "A".repeat(100_000)), "1".to_owned())], "");
    load(Some(format!("{} = 1", "a".repeat(100_000)).as_bytes()), Vec::new(), "usher.toml");
    load(Some(format!("[{}", &keys[..keys.len() - 4]).as_bytes()), Vec::new(), "usher.toml");
}

#[test]
fn environment_variables() {
    hammer("environment", Vec::new(), 3000, |bytes| {
        // The system hands over no NUL, and what is no UTF-8 is dropped before anybody reads it.
        let text = String::from_utf8_lossy(bytes).replace('\0', "");
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        load(None, pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(), "");
    });
}

#[test]
fn scenario_files() {
    let example = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/scenario.toml")).unwrap();
    hammer("scenario", vec![example], 3000, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        match config::scenario::parse("bent.toml", text) {
            Ok(scenario) => assert!(!scenario.monoliths.is_empty() && !scenario.duration.is_zero()),
            Err(errors) => {
                assert!(!errors.errors.is_empty());
                assert!(errors.errors.iter().all(|error| error.to_string().contains("bent.toml")));
            }
        }
    });
}

#[test]
fn calls_for_eval() {
    hammer("call", Vec::new(), 5000, |bytes| {
        let Ok(call) = serde_json::from_slice::<Value>(bytes) else { return };
        for hook in [None, Some(Hook::Place), Some(Hook::Rebalance)] {
            match input::parse(hook, &call) {
                Ok((call, view)) => {
                    // Nothing that is read lets anybody be chosen who is not there.
                    let decision = decide(&mut Builtin, &call, &view);
                    assert!(decision.choices.iter().all(|id| view.get(id).is_some()));
                }
                Err(error) => assert!(!error.is_empty()),
            }
        }
    });
}

#[test]
fn metrics_pages() {
    let page = include_bytes!("../fixtures/monolith-metrics.txt").to_vec();
    let wanted: BTreeMap<String, Selector> =
        [("a", "a"), ("lag", "nodejs_eventloop_lag_seconds"), ("rooms", r#"ott_room_count{visibility="public"}"#)]
            .map(|(key, text)| (key.to_owned(), Selector::parse(text).unwrap()))
            .into();
    hammer("metrics", vec![page], 5000, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let found = pick(&text, &wanted);
        assert!(found.values().all(|value| value.is_finite()), "{found:?}");
        for line in text.lines().take(20) {
            if let Ok(selector) = Selector::parse(line) {
                assert_eq!(Selector::parse(&selector.to_string()), Ok(selector));
            }
        }
    });
}

/// A policy as a start takes it up: compiled, and its text run once.
fn take_up(text: &str) -> bool {
    let program = Program::compile(Source::shipped("fuzz", text), &Environment::default());
    program.and_then(|program| Vm::new(&program).map(drop)).is_ok()
}

#[test]
fn policy_texts() {
    let shipped = usher::policy::shipped::SHIPPED.iter().map(|policy| policy.text.as_bytes().to_vec()).collect();
    hammer("policy", shipped, 1500, |bytes| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.lua");
        std::fs::write(&path, bytes).unwrap();
        match Source::read(&path) {
            Ok(source) => drop(take_up(&source.text)),
            Err(error) => assert!(std::str::from_utf8(bytes).is_err(), "{error}"),
        }
    });
}

#[test]
fn policy_nested_without_end() {
    assert!(take_up("return { place = function(call) return nil end }"));
    let wrap = |open: &str, close: &str, depth: usize| {
        format!("local x = {}1{}\nreturn {{}}", open.repeat(depth), close.repeat(depth))
    };
    for (open, close) in [
        ("(", ")"),
        ("{", "}"),
        ("not ", ""),
        ("-", ""),
        ("f(", ")"),
        ("1 .. ", ""),
        ("1 ^ ", ""),
        ("1 + ", ""),
        ("x or ", ""),
        ("function() return ", " end"),
        ("if x then 1 else ", ""),
        ("`{", "}`"),
        ("x :: ", ""),
    ] {
        for depth in [150, 3000, 30_000] {
            take_up(&wrap(open, close, depth));
        }
    }
    for (open, close) in [("do ", "end "), ("if x then ", "end "), ("while x do ", "end "), ("repeat ", "until x ")] {
        take_up(&format!("{}{}return {{}}", open.repeat(20_000), close.repeat(20_000)));
    }
    let long = "a".repeat(500_000);
    take_up(&format!("return {{ name = \"{long}\" }}"));
    take_up(&format!("local {long} = 1 return {{}}"));
    take_up(&format!("if x then{} end return {{}}", " elseif x then".repeat(20_000)));
    take_up(&format!("return {{}}, x{}", ".a".repeat(100_000)));
    take_up(&format!("type T = {}number{}\nreturn {{}}", "{".repeat(20_000), "}".repeat(20_000)));
}

/// Reads a trace to its end. It comes within as many items as there are lines.
fn read_trace(bytes: &[u8], lines: usize, on_damage: OnDamage) {
    let Ok(mut reader) = Reader::new("fuzz.trace.jsonl", Cursor::new(bytes.to_vec()), on_damage) else { return };
    let mut items = 0;
    while let Ok(Some(_)) = reader.read() {
        items += 1;
        assert!(items <= lines, "{items} items of {lines} lines");
    }
}

#[test]
fn traces() {
    hammer("trace", Vec::new(), 8000, |bytes| {
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
        read_trace(bytes, lines, OnDamage::Skip);
        read_trace(bytes, lines, OnDamage::Stop);
        let mut packed = zstd::bulk::compress(bytes, 1).unwrap();
        read_trace(&packed, lines, OnDamage::Skip);
        // A packed file that is damaged and cut: its content is anything, its length is not known.
        let middle = packed.len() / 2;
        packed[middle] ^= 0x55;
        packed.truncate(packed.len() - 1);
        read_trace(&packed, usize::MAX, OnDamage::Skip);
    });
}
