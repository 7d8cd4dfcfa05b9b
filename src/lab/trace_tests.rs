//! Recorded traffic: what is in it, parts of it, and tests that are made of it or run on it.

mod recorded;

use std::io::Cursor;
use std::time::Duration;

use serde_json::{Map, json};

use super::trace_cut::{CutError, cut_file};
use super::trace_info::trace_info;
use super::trace_test::{NoTest, trace_test};
use super::when::When;
use super::*;
use crate::config::Distances;
use crate::model::ClientId;
use crate::model::policy::{Call, FaultKind, Hook, MonolithRow, View};
use crate::model::wire::UnloadReason;
use crate::policy::decide::settle;
use crate::policy::lua::{Environment, Limits, Program, Source, Vm};
use crate::policy::shipped::SHIPPED;
use crate::trace::read::{OnDamage, Reader};
use crate::trace::record::{Decided, Gap, Header, LiveEvent, Outcome, PolicyText, TraceEvent};
use crate::trace::{Encoder, Item};

const START: u64 = 1_700_000_000_000_000;

fn policy_text(name: &str, source: &str, settings: Map<String, serde_json::Value>) -> PolicyText {
    PolicyText { settings, ..PolicyText::of(&Source::shipped(name, source)) }
}

fn header(policy: PolicyText) -> Header {
    Header { balancer: "b1".into(), region: "ewr".into(), started_us: START, ..Header::of(policy) }
}

/// A recording in the making: what a policy answers, with everything that it read.
struct Tape {
    encoder: Encoder,
    bytes: Vec<u8>,
    vm: Vm,
    version: String,
}

impl Tape {
    fn new(name: &str, source: &str, settings: serde_json::Value) -> Self {
        let settings = settings.as_object().cloned().unwrap_or_default();
        let text = policy_text(name, source, settings.clone());
        let (version, known) = (text.version.clone(), Distances::default());
        // Without optimisation the fuel of a call may take longer than its budget.
        let limits = Limits { budget: Duration::from_secs(1), ..Limits::default() };
        let distances = crate::policy::lua::Distances::new(move |from, to| known.ms(from, to));
        let environment = Environment { limits, settings, distances, ..Environment::default() };
        let mut vm = Vm::new(&Program::compile(Source::shipped(name, source), &environment).unwrap()).unwrap();
        vm.keep_reads(true);
        let (mut encoder, mut bytes) = (Encoder::new(None), Vec::new());
        encoder.header(&header(text), &mut bytes);
        Self { encoder, bytes, vm, version }
    }

    fn decide(&mut self, t: u64, call: Call, view: View) {
        let answer = self.vm.call_returned(&call, &view).map(|returned| returned.answer);
        let reads = self.vm.take_reads().unwrap();
        let distances = self.vm.program().environment().distances.clone();
        let decision = settle(answer, &call, &view, Some(&distances));
        let outcome = Outcome {
            reads,
            answer: decision.answer,
            choice: decision.choices.first().cloned(),
            policy: self.version.as_str().into(),
            ns: 1000,
            fallback: decision.fault,
            bypassed: false,
            incomplete: false,
        };
        self.encoder.decision(t, Decided { call, view: view.into(), outcome }, &mut self.bytes);
    }

    fn event(&mut self, t: u64, event: LiveEvent) {
        self.encoder.event(t, event, &mut self.bytes);
    }

    fn reader(&self) -> Reader {
        Reader::new("x.trace.jsonl", Cursor::new(self.bytes.clone()), OnDamage::Stop).unwrap()
    }
}

/// A call as it comes live: its seed is too big to be a number of a script.
fn drawn(hook: Hook, seed: u64) -> (Call, View) {
    let (mut call, view) = input::parse(Some(hook), &generate::call(hook, seed, 6)).unwrap();
    (call.seed, call.now_us) = (u64::MAX - seed, START + seed * 1_000_001);
    (call, view)
}

fn place(room: &str, region: &str) -> Call {
    let call = json!({"hook": "place", "now_us": START, "seed": 7, "region": "ewr", "cause": "join",
        "room": {"name": room, "region": region, "clients": 1, "regions": {region: 1}, "attempt": 1},
        "client": {"region": region, "attempt": 1}});
    serde_json::from_value(call).unwrap()
}

fn fleet() -> View {
    let row = |id: &str, region: &str, rooms| MonolithRow {
        id: id.into(),
        region: region.into(),
        rooms,
        ..MonolithRow::default()
    };
    let leaving =
        MonolithRow { draining: true, state: crate::model::policy::MonolithState::Draining, ..row("x", "ewr", 0) };
    View::of([row("c", "cdg", 1), row("e", "ewr", 5), leaving])
}

#[test]
fn every_recorded_decision_becomes_a_test_that_the_policy_passes() {
    let counting = "local p = {}
function p.place(call)
  local n = usher.counter('n')()
  local last = usher.get('last') or 0
  usher.set('last', last + 1)
  usher.explain(usher.now())
  return call.monoliths[1 + (n + last + usher.random(1, 9)) % #call.monoliths]
end
function p.admit(call)
  return if call.client.attempt > 1 or usher.random() < 0.3 then usher.reject(503, 'full') else usher.hold('1.5s')
end
return p";
    let counting = [("counting", counting)].into_iter();
    for (name, text) in SHIPPED.iter().map(|policy| (policy.name, policy.text)).chain(counting) {
        let mut tape = Tape::new(name, text, json!({}));
        for at in 0..12 {
            let (call, view) = drawn(Hook::ALL[at as usize % 4], at);
            tape.decide(at * 1000, call, view);
        }
        for number in 1..=12 {
            let hook = Hook::ALL[(number as usize - 1) % 4];
            match trace_test(&mut tape.reader(), "x.trace.jsonl", number, None) {
                Ok(test) => assert_eq!(test.doubt, None, "{name} {number}:\n{}", test.text),
                Err(NoTest::Nothing(why)) => {
                    assert!(!tape.vm.has(hook) && why.contains(&format!("has no {hook}")), "{name} {number}: {why}");
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn a_test_says_what_was_decided_and_why() {
    let source = "local p = { name = 'mine' }
function p.place(call)
  if call.room.name == 'gone' then return 'x' end
  if call.room.name == 'bad' then return call.nothing.id end
  if call.room.name == 'nil' then return nil end
  if call.room.name == 'list' then return { 'c', 'e' } end
  return usher.settings.home
end
return p";
    let mut tape = Tape::new("mine", source, json!({"home": "e"}));
    for (at, room) in ["plain", "gone", "bad", "nil", "list"].into_iter().enumerate() {
        tape.decide(at as u64 * 1000, place(room, "cdg"), fleet());
    }
    let test = |number, name| trace_test(&mut tape.reader(), "x.trace.jsonl", number, name).unwrap();
    let plain = test(1, Some("it's \"mine\""));
    assert_eq!(plain.doubt, None);
    let text = &plain.text;
    assert!(text.starts_with("-- Decision 1 of x.trace.jsonl: mine ("), "{text}");
    assert!(
        text.contains("2023-11-14T22:13:20Z") && text.contains("local policy = t.policy { home = \"e\" }\n"),
        "{text}"
    );
    assert!(
        text.contains("t.it(\"it's \\\"mine\\\"\", function()") && text.contains("t.equal(policy.place(call), \"e\")"),
        "{text}"
    );
    for (number, said) in [
        (2, "t.equal(policy.place(call), \"x\")"),
        (2, "-- place named \"x\": draining"),
        (3, "t.error(function() policy.place(call) end, { kind = \"error\" })"),
        (4, "-- The default chose e then.\n  t.equal(policy.place(call), nil)"),
        (5, "t.equal(policy.place(call), { \"c\", \"e\" })"),
    ] {
        let test = test(number, None);
        assert!(test.text.contains(said) && test.doubt.is_none(), "{said}: {test:?}");
    }
    let none = trace_test(&mut tape.reader(), "x.trace.jsonl", 9, None).unwrap_err().to_string();
    assert_eq!(none, "x.trace.jsonl: has no decision 9; the last one is 5");
    // What a variable of the script decided cannot be made again, and that is said.
    let hidden = "local n = 0 return { place = function(call) n += 1 return call.monoliths[n] end }";
    let mut tape = Tape::new("hidden", hidden, json!({}));
    (0..2).for_each(|t| tape.decide(t, place("a", "cdg"), fleet()));
    let second = trace_test(&mut tape.reader(), "x", 2, None).unwrap();
    assert!(second.doubt.is_some_and(|doubt| doubt.contains("expected \"e\"")), "{}", second.text);
}

#[test]
fn a_test_that_needs_other_limits_says_so_and_is_doubted() {
    let busy = "return { place = function(call)\n  for n = 1, 60000 do end\n  return call.monoliths[1]\nend }";
    let mut text = policy_text("busy", busy, Map::new());
    (text.name, text.fuel) = ("busy\nerror('not a comment')\u{1b}[2J".into(), 200_000);
    let version = text.version.as_str().into();
    let (mut encoder, mut bytes) = (Encoder::new(None), Vec::new());
    encoder.header(&header(text), &mut bytes);
    let (answer, choice) = (crate::model::policy::Answer::Ranked(vec!["c".into()]), Some("c".into()));
    let (reads, bypassed, incomplete) = (Vec::new(), false, false);
    let outcome = Outcome { reads, answer, choice, policy: version, ns: 1, fallback: None, bypassed, incomplete };
    let decided = Decided { call: place("movie", "cdg"), view: fleet().into(), outcome };
    encoder.decision(0, decided, &mut bytes);
    let mut damaged = bytes.clone();
    damaged.extend_from_slice(b"{\"t\":1,\"decision\":\n");
    let reader = |bytes: &[u8]| Reader::new("x\ny.jsonl", Cursor::new(bytes.to_vec()), OnDamage::Skip).unwrap();
    let test = trace_test(&mut reader(&bytes), "x\ny.jsonl", 1, None).unwrap();
    let doubt = test.doubt.unwrap();
    assert!(doubt.contains("with the limits and distances of the trace it does"), "{doubt}");
    assert!(test.text.contains("policy.fuel = 200000"), "{}", test.text);
    let first = test.text.lines().next().unwrap();
    assert!(first.contains("of x y.jsonl: busy error('not a comment')\\u{1b}[2J ("), "{first}");
    let error = trace_test(&mut reader(&damaged), "x", 2, None).unwrap_err().to_string();
    assert!(error.contains("the last one is 1") && error.contains("1 lines that are not understood"), "{error}");
}

fn client(n: u128) -> ClientId {
    ClientId::from_u128(n)
}

fn join(n: u128, room: &str) -> LiveEvent {
    TraceEvent::Join { client: client(n), room: room.into(), region: Some("cdg".into()), reconnect: false }
}

/// Two Monoliths, of which one goes; three clients, of which two leave; two policies; a decision every second.
fn evening() -> Tape {
    let mut tape = Tape::new("first", "return { place = function() return 'e' end }", json!({}));
    let up = |id: &str| TraceEvent::MonolithUp { monolith: id.into(), region: "ewr".into() };
    tape.event(0, up("e"));
    tape.event(1, up("c"));
    tape.event(2, join(1, "one"));
    tape.event(3, join(2, "two"));
    tape.event(4, TraceEvent::Loaded { monolith: "e".into(), room: "one".into() });
    for second in 0..10 {
        let t = second * 1_000_000;
        if second == 3 {
            tape.event(t, TraceEvent::Leave { client: client(2) });
            tape.event(t, TraceEvent::MonolithDown { monolith: "c".into() });
        }
        if second == 4 {
            let second = "return { place = function(call) return call.nothing.id end }";
            let text = policy_text("second", second, Map::new());
            tape.version.clone_from(&text.version);
            tape.encoder.policy(t, &text, &mut tape.bytes);
            let program = Program::compile(Source::shipped("second", second), &Environment::default()).unwrap();
            tape.vm = Vm::new(&program).unwrap();
            tape.vm.keep_reads(true);
        }
        if second == 7 {
            tape.event(t, TraceEvent::Leave { client: client(1) });
            tape.event(t, join(3, "three"));
            tape.encoder.gap(t, Gap { events: 2, decisions: 3 }, &mut tape.bytes);
            let unloaded =
                TraceEvent::Unloaded { monolith: "e".into(), room: "one".into(), reason: UnloadReason::Keepalive };
            tape.event(t, unloaded);
        }
        tape.decide(t, place(&format!("room{}", second % 3), "cdg"), fleet());
    }
    tape
}

#[test]
fn info_counts_what_is_there_and_what_is_missing() {
    let tape = evening();
    let info = trace_info(&mut tape.reader(), "x.trace.jsonl", |_| {}).unwrap();
    assert_eq!((info.balancer.as_str(), info.usher.as_str(), info.redacted), ("b1", env!("CARGO_PKG_VERSION"), false));
    let to = info.to.as_ref().unwrap();
    assert_eq!((info.span_s, to.at_s, to.time.as_str()), (9.0, 9.0, "2023-11-14T22:13:29Z"));
    assert_eq!((info.rooms, info.rooms_exact, info.decisions, info.by_hook["place"]), (6, true, 10, 10));
    assert_eq!((info.events["join"], info.events["leave"], info.events["monolith_down"]), (3, 2, 1));
    let monoliths: Vec<_> = info.monoliths.iter().map(|one| (one.id.as_str(), one.placed, one.up_s.clone())).collect();
    // What views alone tell counts from the first of them on; the one that went is still in later ones.
    assert_eq!(monoliths[1], ("e", 10, vec![(0.0, None)]));
    assert_eq!((monoliths[0].0, monoliths[0].2[0]), ("c", (1e-6, Some(3.0))));
    let policies: Vec<_> = info.policies.iter().map(|one| (one.name.as_str(), one.decisions, one.text)).collect();
    assert_eq!(policies, [("first", 4, true), ("second", 6, true)]);
    assert_eq!((info.faults, info.faults_by_kind[0].kind, info.faults_by_kind[0].decision), (6, "error", 5));
    assert_eq!((info.gaps, info.missing_events, info.missing_decisions), (1, 2, 3));
    assert_eq!(
        (info.damaged, info.cut_off, info.lines),
        (0, false, tape.bytes.iter().filter(|b| **b == b'\n').count() as u64)
    );
    // Two files one behind another, the second of which is damaged and cut off.
    let mut bytes = tape.bytes.clone();
    let again = String::from_utf8(tape.bytes.clone()).unwrap().replacen("\"monolith_up\"", "\"monolith_sideways\"", 1);
    bytes.extend(&again.as_bytes()[..again.len() - 10]);
    let mut reader = Reader::new("y", Cursor::new(bytes), OnDamage::Skip).unwrap();
    let info = trace_info(&mut reader, "y", |_| {}).unwrap();
    assert_eq!((info.headers, info.decisions, info.damaged, info.cut_off), (2, 19, 1, true));
    assert!(info.first_damage.unwrap().line.is_some());
}

#[test]
fn a_part_stands_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("all.jsonl"), &evening().bytes).unwrap();
    let span = |from: &str, to: &str| (When::parse(from).unwrap(), When::parse(to).unwrap());
    let cut = |span, out: &str, force| {
        let input = path("all.jsonl");
        cut_file(&mut Reader::open(&input, OnDamage::Stop).unwrap(), &input, span, (&path(out), force), &mut |_| {})
    };
    for out in ["part.jsonl", "part.jsonl.zst"] {
        let done = cut(span("5s", "2023-11-14T22:13:29Z"), out, false).unwrap();
        assert_eq!((done.decisions, done.numbers, done.events), (4, Some((6, 9)), 3));
        // The view that comes before the part still has the Monolith whose link has gone.
        assert_eq!((done.restated.1, done.restated.2), (1, 1));
        assert_eq!(std::fs::read(path(out)).unwrap().starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), out.ends_with("zst"));
        let mut reader = Reader::open(&path(out), OnDamage::Stop).unwrap();
        assert_eq!((reader.header().started_us, reader.header().policy.name.as_str()), (START + 5_000_000, "second"));
        let (mut decisions, mut present, mut missing) = (Vec::new(), std::collections::BTreeSet::new(), 0);
        while let Some((t, item)) = reader.read().unwrap() {
            match item {
                Item::Decision { number, outcome, .. } => {
                    assert_eq!(outcome.fallback.unwrap().kind, FaultKind::Error);
                    assert_eq!(reader.view().rows(), fleet().rows());
                    decisions.push((number, t));
                }
                Item::Event(TraceEvent::Join { client, .. }) => assert!(present.insert(client)),
                Item::Event(TraceEvent::Leave { client }) => assert!(present.remove(&client), "nobody of that number"),
                Item::Gap(gap) => missing += gap.decisions,
                _ => {}
            }
        }
        if out.ends_with("zst") {
            assert_eq!(crate::trace::tests::unnoticed(&std::fs::read(path(out)).unwrap()), Vec::<usize>::new());
        }
        assert_eq!(decisions, [(1, 0), (2, 1_000_000), (3, 2_000_000), (4, 3_000_000)]);
        assert_eq!((present.len(), missing), (1, 3));
    }
    // A version that is in force again later is declared again.
    let whole = cut(span("0s", "1h"), "whole.jsonl", false).unwrap();
    assert_eq!((whole.decisions, whole.restated), (10, (0, 0, 0)));
    let info = |name: &str| trace_info(&mut Reader::open(&path(name), OnDamage::Stop).unwrap(), "x", |_| {}).unwrap();
    let (whole, all) = (info("whole.jsonl"), info("all.jsonl"));
    assert_eq!((whole.decisions, whole.rooms, &whole.events), (all.decisions, all.rooms, &all.events));
    assert!(whole.policies.iter().all(|policy| policy.text));
    for (span, out, force, why) in [
        (span("5s", "5s"), "new", false, "--to is not after --from"),
        (span("1h", "2h"), "new", false, "nothing is recorded between --from and --to; it was read up to 9.000 s"),
        (span("0s", "2h"), "all.jsonl", true, "is the trace that is cut"),
        (span("0s", "2h"), "part.jsonl", false, "exists; --force replaces it"),
    ] {
        let error = cut(span, out, force).unwrap_err();
        assert!(matches!(error, CutError::Asked(_)) && error.to_string().contains(why), "{error}");
    }
    assert!(cut(span("0s", "2h"), "part.jsonl", true).is_ok());
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "nothing half-done is left: {left:?}");
}

#[test]
fn damage_within_a_part_is_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("all.jsonl");
    let text = String::from_utf8(evening().bytes).unwrap();
    let line = text.lines().position(|line| line.contains("\"decision\":8,")).unwrap();
    let lines: Vec<&str> = text.lines().enumerate().map(|(at, text)| if at == line { "{" } else { text }).collect();
    std::fs::write(&input, lines.join("\n") + "\n").unwrap();
    let cut = |on_damage, out: &str| {
        let span = (When::After(5_000_000), When::After(u64::MAX));
        cut_file(
            &mut Reader::open(&input, on_damage).unwrap(),
            &input,
            span,
            (&folder.path().join(out), false),
            &mut |_| {},
        )
    };
    let error = cut(OnDamage::Stop, "a").unwrap_err();
    assert!(error.to_string().contains(&format!("all.jsonl:{}: ", line + 1)), "{error}");
    assert_eq!(cut(OnDamage::Skip, "b").map(|done| (done.decisions, done.damaged)).unwrap(), (4, 1));
    let info = trace_info(&mut Reader::open(&folder.path().join("b"), OnDamage::Stop).unwrap(), "b", |_| {}).unwrap();
    assert_eq!((info.gaps, info.missing_events), (2, 3));
}

#[test]
fn a_part_of_several_files_tells_each_policy_in_its_time_and_counts_through() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("all.jsonl");
    let first = evening();
    let mut second = Tape::new("third", "return { place = function() return 'e' end }", json!({}));
    let mut later = header(policy_text("third", "return { place = function() return 'e' end }", Map::new()));
    later.started_us = START + 20_000_000;
    second.bytes.clear();
    second.encoder.header(&later, &mut second.bytes);
    for t in [1_000_000, 2_000_000, 3_000_000] {
        second.decide(t, place("room", "cdg"), fleet());
    }
    std::fs::write(&input, [first.bytes, second.bytes].concat()).unwrap();
    let out = folder.path().join("part.jsonl");
    let span = (When::After(5_000_000), When::After(22_500_000));
    let done =
        cut_file(&mut Reader::open(&input, OnDamage::Stop).unwrap(), &input, span, (&out, false), &mut |_| {}).unwrap();
    assert_eq!((done.decisions, done.numbers), (7, Some((6, 12))));
    let mut reader = Reader::open(&out, OnDamage::Stop).unwrap();
    let (mut moments, mut numbers, mut third) = (Vec::new(), Vec::new(), None);
    while let Some((t, item)) = reader.read().unwrap() {
        moments.push(t);
        match item {
            Item::Policy(policy) if policy.name == "third" => third = Some(t),
            Item::Decision { number, .. } => numbers.push(number),
            _ => {}
        }
    }
    assert!(moments.is_sorted(), "{moments:?}");
    assert_eq!((third, numbers), (Some(15_000_000), (1..=7).collect()));
}
