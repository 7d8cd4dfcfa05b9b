//! The traffic of traces: whole ones, parts, and several one behind another.

use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::{Value, json};

use super::*;
use crate::lab::trace_cut::cut_file;
use crate::lab::when::When;
use crate::trace::read::{OnDamage, Reader};

/// A trace with these lines after its header.
fn trace(lines: &[serde_json::Value]) -> tempfile::NamedTempFile {
    let header = json!({
        "usher_trace": 1, "balancer": "b", "region": "ewr", "started_us": 1_800_000_000_000_000_u64, "version": "0",
        "redacted": false, "distances": {"matrix": {}, "at": {}},
        "policy": {"name": "default", "version": "0", "file": "policies/default.lua", "source": "return {}", "fuel": 20_000,
            "memory": 8 << 20},
    });
    let mut text = format!("{header}\n");
    lines.iter().for_each(|line| writeln!(text, "{line}").unwrap());
    let mut file = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn event(seconds: u64, mut event: serde_json::Value) -> serde_json::Value {
    event["t"] = (seconds * 1_000_000).into();
    event
}

#[test]
fn the_joins_of_a_trace_come_again_with_its_monoliths() {
    let up = |t, id: &str| event(t, json!({"event": "monolith_up", "monolith": id, "region": "ewr"}));
    let join = |t, client: u64, room: &str, reconnect: bool| {
        event(t, json!({"event": "join", "client": client, "room": room, "region": "cdg", "reconnect": reconnect}))
    };
    let mut lines = vec![up(0, "m1"), up(0, "m2")];
    // Ten rooms of two, of which the second member stays for good.
    for room in 0..10 {
        lines.push(join(2 + room, 2 * room, &format!("r{room}"), false));
        lines.push(join(2 + room, 2 * room + 1, &format!("r{room}"), false));
    }
    lines.push(event(20, json!({"event": "loaded", "monolith": "m1", "room": "r0"})));
    lines.extend((0..10).map(|room| event(30, json!({"event": "leave", "client": 2 * room}))));
    lines.push(event(40, json!({"event": "monolith_down", "monolith": "m1"})));
    // The one of r0 that was lost with m1 comes back: the same visit.
    lines.push(join(42, 99, "r0", true));
    lines.push(up(50, "m3"));
    lines.push(event(100, json!({"event": "gossip", "monolith": "m2", "rooms": 1, "users": 1})));
    let file = trace(&lines);
    let simulation = Simulation::of_trace(file.path(), None, None).unwrap();
    assert!(simulation.facts.contains(&("visits".into(), "20".into())), "{:?}", simulation.facts);
    assert!(simulation.facts.contains(&("visits without an end".into(), "10".into())), "{:?}", simulation.facts);
    assert!(simulation.facts.contains(&("Monoliths".into(), "3".into())), "{:?}", simulation.facts);
    let found = run_source(&simulation, &shipped::resolve("default").unwrap());
    assert_eq!((found.more("visits"), found.more("interrupted")), (20.0, 5.0), "{:?}", found.side);
    assert_eq!(found.more("joins"), 25.0, "those of the five rooms on m1 are served again");
    assert_eq!((found.figure(Metric::OwnRegionShare), found.figure(Metric::SplitRoomS)), (0.0, 0.0));
    let series = found.side.load.as_ref().unwrap();
    let last: Vec<Option<f64>> = series.monoliths.iter().map(|series| *series.values.last().unwrap()).collect();
    assert_eq!((last[0], last[1].unwrap() + last[2].unwrap()), (None, 10.0));
}

#[test]
fn a_trace_without_traffic_is_refused_with_the_way_out() {
    let refused =
        |lines: &[serde_json::Value]| Simulation::of_trace(trace(lines).path(), None, None).err().unwrap().to_string();
    assert!(refused(&[]).contains("holds no join; record one while clients come"));
    let join = event(1, json!({"event": "join", "client": 1, "room": "r", "reconnect": false}));
    assert!(refused(&[join]).contains("names no Monolith"));
    let missing = Simulation::of_trace(Path::new("no/such.jsonl"), None, None).err().unwrap().to_string();
    assert!(missing.starts_with("no/such.jsonl: cannot be read"), "{missing}");
}

fn up(t: u64, id: &str) -> Value {
    json!({"t": t, "event": "monolith_up", "monolith": id, "region": "ewr"})
}

fn join(t: u64, client: u64, room: &str) -> Value {
    json!({"t": t, "event": "join", "client": client, "room": room, "region": "ewr", "reconnect": false})
}

/// Two Monoliths, linked at the moment at which the first member comes; forty visits, of which half end.
fn evening() -> Vec<Value> {
    let mut lines = vec![join(1_000, 1, "r0"), up(1_000, "m1"), up(1_000, "m2")];
    for n in 2..40 {
        lines.push(join(n * 200_000, n, &format!("r{}", n % 7)));
        if n % 2 == 0 {
            lines.push(json!({"t": n * 200_000 + 100_000, "event": "leave", "client": n / 2}));
        }
    }
    lines.push(json!({"t": 20_000_000, "event": "gossip", "monolith": "m1", "rooms": 1, "users": 1}));
    lines
}

/// A part of a trace, in a file beside it.
fn cut(of: &Path, from: &str, to: &str, name: &str) -> std::path::PathBuf {
    let out = of.with_file_name(name);
    let mut reader = Reader::open(of, OnDamage::Stop).unwrap();
    let span = (When::parse(from).unwrap(), When::parse(to).unwrap());
    cut_file(&mut reader, of, span, (&out, true), &mut |_| {}).unwrap();
    out
}

fn simulate(path: &Path, policy: &str) -> (Page, Simulated) {
    let simulation = Simulation::of_trace(path, None, None).unwrap();
    let found = run_source(&simulation, &Source::shipped("script", policy));
    (simulation.page(std::slice::from_ref(&found), &[]), found)
}

const ANY: &str = "return {}";

#[test]
fn whoever_comes_when_a_monolith_is_linked_is_served_also_in_a_part() {
    let file = trace(&evening());
    let folder = tempfile::TempDir::new().unwrap();
    let whole = folder.path().join("whole.jsonl");
    std::fs::copy(file.path(), &whole).unwrap();
    let (_, found) = simulate(&whole, ANY);
    assert_eq!((found.figure(Metric::Rejected), found.more("joins")), (0.0, 39.0), "{:?}", found.side);
    let part = cut(&whole, "4s", "1h", "part.jsonl");
    let (page, found) = simulate(&part, ANY);
    assert_eq!(found.figure(Metric::Rejected), 0.0, "{:?}", found.side);
    // Some leave before their room is loaded.
    assert!(found.more("joins") > 0.8 * found.more("visits"), "{:?}", found.side);
    let time = page.facts.iter().find(|(name, _)| name == "virtual time").unwrap();
    assert_eq!(time.1, "16 s");
}

#[test]
fn two_parts_one_behind_the_other_are_the_whole() {
    let file = trace(&evening());
    let folder = tempfile::TempDir::new().unwrap();
    let whole = folder.path().join("whole.jsonl");
    std::fs::copy(file.path(), &whole).unwrap();
    let (a, b) = (cut(&whole, "0s", "4s", "a.jsonl"), cut(&whole, "4s", "1h", "b.jsonl"));
    let both = [std::fs::read(a).unwrap(), std::fs::read(b).unwrap()].concat();
    let path = folder.path().join("both.jsonl");
    std::fs::write(&path, both).unwrap();
    let (expected, _) = simulate(&whole, ANY);
    let (page, _) = simulate(&path, ANY);
    assert_eq!(page.facts, expected.facts);
    assert_eq!(serde_json::to_value(&page.sides).unwrap(), serde_json::to_value(&expected.sides).unwrap());
}

fn decision(t: u64, number: u64, call: Value, answer: Value) -> Value {
    json!({"t": t, "decision": number, "hook": call["hook"], "view": 1, "call": call, "answer": answer, "choice": null,
        "policy": "0", "ns": 1})
}

fn place(t: u64, number: u64) -> Value {
    let call = json!({"hook": "place", "region": "ewr", "cause": "join", "room": {"name": "r0"}});
    decision(t, number, call, json!("default"))
}

fn view(rows: &[Value]) -> Value {
    json!({"t": 1_000_000, "view": 1, "monoliths": rows, "gone": []})
}

#[test]
fn a_policy_sees_weights_loads_and_who_drains_as_in_the_trace() {
    // A recording that began in the middle: no Monolith comes up in it.
    let mut lines = vec![
        join(500_000, 1, "early"),
        view(&[
            json!({"id": "m1", "region": "ewr", "weight": 3.0, "load": {"lag": 5.0}, "load_age_s": 2.0}),
            json!({"id": "m2", "region": "ewr", "state": "draining", "draining": true, "load": {"lag": 1.0}}),
        ]),
        place(1_000_000, 1),
        join(2_000_000, 2, "second"),
        json!({"t": 10_000_000, "event": "load", "monolith": "m1", "load": {"lag": 7.0}}),
        join(15_000_000, 3, "late"),
    ];
    let refusal = json!({"reject": {"code": 4100, "reason": "full"}});
    let admit = json!({"hook": "admit", "region": "ewr", "room": {"name": "r0"}});
    lines.push(decision(16_000_000, 2, admit, refusal));
    let script = "return { place = function(call)
  local m = call.monoliths[1]
  if #call.monoliths ~= 1 or m.id ~= 'm1' then error('one of them drains') end
  if m.weight ~= 3 then error('weight ' .. m.weight) end
  local late = call.room.name == 'late'
  if m.load.lag ~= (if late then 7 else 5) then error('lag ' .. m.load.lag) end
  if late and m.load_age_s < 4 then error('age ' .. m.load_age_s) end
  return m
end }";
    let file = trace(&lines);
    let (page, found) = simulate(file.path(), script);
    assert_eq!((found.figure(Metric::Faults), &found.fault), (0.0, &None), "{:?}", found.side);
    assert_eq!((found.more("joins"), found.figure(Metric::Rejected)), (3.0, 0.0), "{:?}", found.side);
    let series = &found.side.load.as_ref().unwrap().monoliths;
    assert!(series.iter().all(|series| series.values[0].is_some()), "both were there from the beginning");
    let fact = |name: &str| page.facts.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
    assert_eq!(fact("loads as recorded"), Some("3"));
    assert_eq!(fact("refused by admit then, left out"), Some("1"));
    assert_eq!(fact("rebalance"), None);
}

#[test]
fn rebalance_is_asked_as_often_as_in_the_trace_or_it_is_said_that_it_is_not() {
    let mut lines = vec![up(0, "m1"), up(0, "m2")];
    lines.extend((0..10).map(|n| join(1_000_000, n, &format!("r{n}"))));
    lines.push(view(&["m1", "m2"].map(|id| json!({"id": id, "region": "ewr"}))));
    let without = trace(&[lines.clone(), vec![place(60_000_000, 1)]].concat());
    for n in 1..=12 {
        let call = json!({"hook": "rebalance", "region": "ewr"});
        lines.push(decision(n * 5_000_000 + n, n, call, json!({"moves": []})));
    }
    let with = trace(&lines);
    let script = "return { place = function(call) return call.monoliths[1] end,
rebalance = function(call)
  for _, room in call.rooms do
    if room.owner == 'm1' then return { usher.move(room, call.monoliths[2]) } end
  end
end }";
    let fact = |page: &Page| {
        page.facts.iter().find(|(name, _)| name == "rebalance").map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let (page, found) = simulate(with.path(), script);
    assert_eq!(fact(&page), "every 5s, as recorded");
    assert!(found.figure(Metric::Moves) > 3.0, "{:?} {:?}", found.side, found.fault);
    let (page, found) = simulate(without.path(), script);
    assert!(fact(&page).starts_with("not asked; the trace does not show how often"), "{:?}", page.facts);
    assert_eq!(found.figure(Metric::Moves), 0.0);
    let (page, _) = simulate(without.path(), ANY);
    assert_eq!(fact(&page), "", "nobody has such a hook");
    let mut config = Config::default();
    config.policy.rebalance_every = Some(Duration::from_secs(10));
    let simulation = Simulation::of_trace(without.path(), None, Some(&config)).unwrap();
    let found = run_source(&simulation, &Source::shipped("script", script));
    assert_eq!(fact(&simulation.page(std::slice::from_ref(&found), &[])), "every 10s, as configured");
    assert!(found.figure(Metric::Moves) > 1.0, "{:?} {:?}", found.side, found.fault);
}

#[test]
fn damage_is_told_beside_the_figures() {
    let mut lines = evening();
    lines.push(json!({"neither": "this", "nor": "that"}));
    let file = trace(&lines);
    let simulation = Simulation::of_trace(file.path(), None, None).unwrap();
    let (damaged, first) = simulation.damage().unwrap();
    assert_eq!((damaged, first.line), (1, Some(lines.len() as u64 + 1)));
}
