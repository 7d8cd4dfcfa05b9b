//! What was recorded is decided again in the same bytes; what changes is counted and named.

use std::io::Cursor;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::config::Distances;
use crate::lab::generate::{self, MOST_MONOLITHS};
use crate::lab::input;
use crate::model::assertion::Metric;
use crate::model::policy::{Answer, Fault, MonolithRow};
use crate::policy::Policy as _;
use crate::policy::decide::settle;
use crate::policy::lua::{Origin, Vm};
use crate::policy::shipped::SHIPPED;
use crate::trace::Encoder;
use crate::trace::read::OnDamage;
use crate::trace::record::{Decided, PolicyText};

fn text_of(name: &str, text: &str) -> PolicyText {
    PolicyText::of(&Source::shipped(name, text))
}

fn header(policy: PolicyText) -> Header {
    Header { balancer: "b1".into(), region: "ewr".into(), started_us: 1_700_000_000_000_000, ..Header::of(policy) }
}

/// A version that decides and writes down what it does, as a live one does.
struct Live {
    text: PolicyText,
    vm: Vm,
}

impl Live {
    fn new(text: PolicyText) -> Self {
        let origin = Origin::File(text.file.clone().into());
        let source = Source { name: text.name.clone(), text: text.source.clone(), origin };
        let environment = subject::environment(&text, &Distances::default());
        let mut vm = Vm::new(&Program::compile(source, &environment).unwrap()).unwrap();
        vm.keep_reads(true);
        Self { text, vm }
    }

    fn decide(&mut self, call: &Call, view: &View) -> Decided {
        let answer = self.vm.call(call, view);
        let reads = self.vm.take_reads();
        let incomplete = reads.is_none();
        let distances = self.vm.program().environment().distances.clone();
        let decision = settle(answer, call, view, Some(&distances));
        let outcome = Outcome {
            reads: reads.unwrap_or_default(),
            choice: decision.choices.first().cloned(),
            answer: decision.answer,
            policy: self.text.version.as_str().into(),
            ns: 1_000,
            fallback: decision.fault,
            bypassed: false,
            incomplete,
        };
        Decided { call: call.clone(), view: view.clone().into(), outcome }
    }
}

/// One trace, written line by line.
struct Tape {
    encoder: Encoder,
    bytes: Vec<u8>,
    t: u64,
}

impl Tape {
    fn new(header: &Header) -> Self {
        let (mut encoder, mut bytes) = (Encoder::new(None), Vec::new());
        encoder.header(header, &mut bytes);
        Self { encoder, bytes, t: 0 }
    }

    fn add(&mut self, decided: Decided) {
        self.t += 500_000;
        self.encoder.decision(self.t, decided, &mut self.bytes);
    }
}

/// A trace of this policy over these calls.
fn recorded_by(text: &PolicyText, calls: &[(Call, View)]) -> Vec<u8> {
    let (mut live, mut tape) = (Live::new(text.clone()), Tape::new(&header(text.clone())));
    for (call, view) in calls {
        tape.add(live.decide(call, view));
    }
    tape.bytes
}

fn drawn(hooks: &[Hook], count: u64) -> Vec<(Call, View)> {
    let draw = |(hook, seed)| input::parse(Some(hook), &generate::call(hook, seed, MOST_MONOLITHS)).unwrap();
    (0..count).flat_map(|seed| hooks.iter().map(move |hook| (*hook, seed))).map(draw).collect()
}

fn fleet(rooms: [u32; 3]) -> View {
    let row = |(at, rooms): (usize, &u32)| MonolithRow {
        id: ["a", "b", "c"][at].into(),
        region: ["ewr", "ewr", "cdg"][at].into(),
        rooms: *rooms,
        ..MonolithRow::default()
    };
    View::of(rooms.iter().enumerate().map(row))
}

fn place(room: &str, seed: u64) -> Call {
    serde_json::from_value(json!({"hook": "place", "now_us": 7_000_000, "seed": seed, "region": "ewr", "cause": "join",
        "room": {"name": room, "region": "cdg"}, "client": {"region": "cdg"}}))
    .unwrap()
}

fn rooms(count: u64) -> Vec<(Call, View)> {
    (0..count).map(|n| (place(&format!("room{n}"), n), fleet([n as u32 % 7, 3, 5]))).collect()
}

fn reader(bytes: &[u8]) -> Reader {
    Reader::new("x.trace.jsonl", Cursor::new(bytes.to_vec()), OnDamage::Skip).unwrap()
}

fn replay(bytes: &[u8], plan: Plan) -> Replayed {
    let mut reader = reader(bytes);
    let mut replay = Replay::new(reader.header(), plan).unwrap();
    replay.read(&mut reader, &mut |_| {}).unwrap();
    replay.finish()
}

fn instead(text: &str) -> Option<Instead> {
    Some(Instead { source: Source::shipped("other", text), environment: None })
}

fn policy(text: &str) -> Plan {
    Plan { policy: instead(text), ..Plan::default() }
}

#[track_caller]
fn check_identical(text: &PolicyText, calls: &[(Call, View)]) {
    let replayed = replay(&recorded_by(text, calls), Plan::default());
    assert_eq!((replayed.decisions, replayed.agreed), (calls.len() as u64, calls.len() as u64), "{replayed:#?}");
    assert_eq!((replayed.hidden_state, replayed.failures()), (0, Vec::new()), "{}", text.name);
}

/// Reads everything that a call can read besides its data.
const READER: &str = "local p = {}
local n = usher.counter('calls')
function p.place(call)
  local last = usher.get('last')
  usher.set('last', call.room.name or 'none')
  local list = call.monoliths
  local at = 1 + (n() + (last and #last or 0) + usher.random(1, 1000) + math.floor(usher.now())) % #list
  return list[at]
end
p.route = function(call) return usher.two_choices(call.monoliths, 'inflight') end
p.admit = function(call)
  if usher.random() < 0.3 then return usher.reject(503, 'no ' .. n()) end
  if usher.random() < 0.3 then return usher.hold(2) end
  return usher.random() < 0.5 and nothing.at_all or true
end
return p";

#[test]
fn the_policy_of_the_trace_gives_the_same_bytes() {
    let calls = drawn(&Hook::ALL, 60);
    for shipped in &SHIPPED {
        check_identical(&text_of(shipped.name, shipped.text), &calls);
    }
    check_identical(&text_of("reader", READER), &calls);
    let settings = json!({"own_region_only": true, "weight": 3}).as_object().cloned().unwrap();
    check_identical(&PolicyText { settings, ..text_of("default", SHIPPED[0].text) }, &calls);
}

/// Values that compare equal are the same bytes: what is written again is what was written.
#[test]
fn equal_outcomes_are_equal_bytes() {
    let calls = drawn(&Hook::ALL, 40);
    let text = text_of("reader", READER);
    let bytes = recorded_by(&text, &calls);
    let (mut reader, mut own) = (reader(&bytes), OwnVersions::new(&header(text)));
    let mut seen = 0;
    while let Some((_, item)) = reader.read().unwrap() {
        let Item::Decision { call, outcome, .. } = item else { continue };
        let Ok(warm) = own.get(&outcome.policy) else { panic!("no version") };
        let decision = warm.decide(&call, reader.view(), Some(&outcome.reads)).decision;
        let again = Outcome {
            choice: decision.choices.first().cloned(),
            answer: decision.answer,
            fallback: decision.fault,
            ..(*outcome).clone()
        };
        assert_eq!(serde_json::to_string(&again).unwrap(), serde_json::to_string(&*outcome).unwrap());
        seen += 1;
    }
    assert_eq!(seen, calls.len());
}

#[test]
fn an_answer_that_differs_is_found_however_small_the_difference() {
    let text = text_of("two", "return { place = function(call) usher.explain('first two') return { 'a', 'b' } end }");
    let mut live = Live::new(text.clone());
    for change in 0..3 {
        let mut tape = Tape::new(&header(text.clone()));
        for (at, (call, view)) in rooms(10).iter().enumerate() {
            let mut decided = live.decide(call, view);
            match (at, change) {
                (4, 0) => decided.outcome.answer = Answer::Ranked(vec!["a".into(), "c".into()]),
                (4, 1) => decided.outcome.choice = Some("b".into()),
                (4, 2) => {
                    let message = "policies/two.lua:1: no".into();
                    decided.outcome.fallback = Some(Fault { kind: FaultKind::Error, message });
                }
                _ => {}
            }
            tape.add(decided);
        }
        let replayed = replay(&tape.bytes, Plan::default());
        assert_eq!((replayed.decisions, replayed.changed(), replayed.hidden_state), (10, 1, 1), "{change}");
        assert_eq!(replayed.failures(), ["1 of 10 decisions were not made again as they were recorded"]);
        let example = &replayed.examples[0];
        assert_eq!((example.decision, example.room.as_deref()), (5, Some("room4")));
        assert_eq!(
            (&example.answer, &example.explain),
            (&json!({"ranked": ["a", "b"]}), &vec!["first two".to_owned()])
        );
    }
}

#[test]
fn another_policy_is_compared_by_what_anybody_notices() {
    let bytes = recorded_by(&text_of("old", "return { place = function() return 'a' end }"), &rooms(20));
    let to_c = "return { place = function(call)
        if usher.now() ~= 7 then error('the clock is the call\\'s') end
        usher.explain('odd one out')
        return usher.counter('n')() % 4 == 0 and 'c' or { 'a', 'b' } end }";
    let replayed = replay(&bytes, policy(to_c));
    assert_eq!((replayed.decisions, replayed.agreed, replayed.faults), (20, 15, 0));
    assert_eq!(replayed.figures[&Metric::Agreement], 0.75);
    let flow = &replayed.kinds[..];
    assert_eq!(flow.len(), 1);
    assert_eq!(
        (flow[0].hook.as_str(), flow[0].from.as_str(), flow[0].to.as_str(), flow[0].count),
        ("place", "a", "c", 5)
    );
    assert_eq!(replayed.examples.len(), 3);
    assert_eq!(replayed.examples[0].explain, ["odd one out"]);
    // The rooms came from cdg, where only c is.
    assert_eq!(
        (replayed.base_figures[&Metric::OwnRegionShare], replayed.figures[&Metric::OwnRegionShare]),
        (0.0, 0.25)
    );
    assert_eq!(replayed.base_figures[&Metric::MaxLoadOverMean], 3.0);
    assert_eq!(replayed.figures[&Metric::MaxLoadOverMean], 2.25);
    assert!(replayed.failures().is_empty(), "another policy may differ");
    let page = replayed.page();
    assert_eq!((page.sides.len(), page.flows.len(), page.rows.len(), page.rows_of), (2, 1, 5, 5));
    assert_eq!((page.rows[0].at_s, page.rows[0].region.as_str()), (2.0, "cdg"));
    let load = page.sides[1].load.as_ref().unwrap();
    let sum = |at: usize| load.monoliths[at].values.iter().flatten().sum::<f64>();
    assert_eq!((load.unit.as_str(), sum(0), sum(1), sum(2)), ("placements", 15.0, 0.0, 5.0));
}

#[test]
fn every_kind_of_answer_is_counted() {
    let bytes = recorded_by(&text_of("old", "return {}"), &drawn(&Hook::ALL, 30));
    let other = "return {
        admit = function(call) return call.client.attempt == 1 and usher.hold(1) or usher.reject(503, 'no') end,
        place = function() return 'nobody-of-this-name' end,
        rebalance = function(call) local r = call.rooms[1] return r and { usher.move(r, call.monoliths[1]) } end,
        route = function() return usher.reject(429, 'slow down') end }";
    let replayed = replay(&bytes, policy(other));
    let figure = |metric: Metric| replayed.figures[&metric];
    assert_eq!(figure(Metric::Faults), 30.0);
    assert_eq!(figure(Metric::Held) + figure(Metric::Rejected), 60.0);
    assert!(figure(Metric::Held) > 0.0 && figure(Metric::Moves) > 10.0, "{:?}", replayed.figures);
    assert!(replayed.figures[&Metric::NsP99] > 0.0);
    assert_eq!((replayed.faults, replayed.new_faults), (30, 30));
    let hooks: Vec<_> = replayed.hooks().map(|(hook, [all, ..])| (hook, all)).collect();
    assert_eq!(hooks, [("admit", 30), ("place", 30), ("rebalance", 30), ("route", 30)]);
    let document = replayed.document();
    assert_eq!(document["faults_by_kind"], json!({"not_eligible": 30}));
    assert_eq!((&document["policy"], &document["decisions"]), (&json!("other"), &json!(120)));
    assert!(document["examples"].as_array().is_some_and(|examples| examples.len() <= 30));
    assert!(document.get("against").is_none());
}

#[test]
fn two_policies_are_compared_with_each_other() {
    let bytes = recorded_by(&text_of("old", "return { place = function() error('broken') end }"), &rooms(12));
    let plan = Plan {
        policy: instead("return { place = function() return 'b' end }"),
        against: instead(
            "return { place = function(call) return tonumber(string.sub(call.room.name, 5)) % 3 == 0 and 'b' or 'c' end }",
        ),
        ..Plan::default()
    };
    let replayed = replay(&bytes, plan);
    assert_eq!((replayed.decisions, replayed.agreed, replayed.new_faults), (12, 4, 0));
    assert_eq!((replayed.kinds[0].from.as_str(), replayed.kinds[0].to.as_str()), ("c", "b"));
    assert_eq!(replayed.document()["against"], "other");
}

#[test]
fn what_cannot_be_compared_is_passed_over_and_counted() {
    let text = text_of("old", "return { place = function() return 'a' end }");
    let mut live = Live::new(text.clone());
    let mut tape = Tape::new(&header(text));
    for (at, (call, view)) in rooms(5).iter().enumerate() {
        let mut decided = live.decide(call, view);
        let fault = |kind| Some(Fault { kind, message: "x".into() });
        match at {
            0 => decided.outcome.bypassed = true,
            1 => decided.outcome.fallback = fault(FaultKind::CpuTime),
            2 => decided.outcome.fallback = fault(FaultKind::Memory),
            3 => decided.outcome.policy = "ffffffffffff".into(),
            _ => {}
        }
        tape.add(decided);
    }
    let replayed = replay(&tape.bytes, Plan::default());
    assert_eq!((replayed.decisions, replayed.agreed), (1, 1));
    let passed: Vec<_> = replayed.passed_over.iter().map(|(why, count)| (*why, *count)).collect();
    assert_eq!(passed, [("bypassed", 1), ("cpu_time", 1), ("memory", 1), ("no_such_version", 1)]);
    assert_eq!(replayed.notes().len(), 4);
    // Another policy needs no version, and another one beside it no outcome.
    let other = instead("return {}");
    assert_eq!(replay(&tape.bytes, Plan { policy: other.clone(), ..Plan::default() }).decisions, 2);
    assert_eq!(replay(&tape.bytes, Plan { policy: other.clone(), against: other, ..Plan::default() }).decisions, 5);
    // More reads than are kept of one call.
    let many = text_of("many", "return { place = function() for i = 1, 10001 do usher.random() end return 'a' end }");
    let many = PolicyText { fuel: 1_000_000, ..many };
    let replayed = replay(&recorded_by(&many, &rooms(1)), Plan::default());
    assert_eq!((replayed.decisions, replayed.passed_over["reads_lost"]), (0, 1));
}

#[test]
fn a_variable_that_outlives_its_call_is_told() {
    let text = "local calls = 0
        return { place = function() calls = calls + 1 return calls % 2 == 0 and 'a' or 'b' end }";
    let bytes = recorded_by(&text_of("old", text), &rooms(20));
    let replayed = replay(&bytes, Plan::default());
    assert_eq!((replayed.decisions, replayed.agreed), (20, 20), "from the beginning it repeats itself");
    assert!(replayed.hidden_state > 0);
    assert!(replayed.notes()[0].contains("hidden state"), "{:?}", replayed.notes());
    // A recording that begins in the middle does not.
    let mut live = Live::new(text_of("old", text));
    let mut tape = Tape::new(&header(text_of("old", text)));
    for (call, view) in rooms(21).iter() {
        let decided = live.decide(call, view);
        if tape.t > 0 || call.seed > 0 {
            tape.add(decided);
        }
    }
    let replayed = replay(&tape.bytes, Plan::default());
    assert_eq!((replayed.decisions, replayed.agreed, replayed.hidden_state), (20, 0, 20));
    // So does one whose reads depend on what it remembers.
    let sometimes = "local calls = 0
        return { place = function() calls = calls + 1 if calls % 2 == 0 then usher.random() end return 'a' end }";
    let mut live = Live::new(text_of("old", sometimes));
    let mut tape = Tape::new(&header(text_of("old", sometimes)));
    live.decide(&place("x", 1), &fleet([1, 1, 1]));
    for (call, view) in rooms(4) {
        tape.add(live.decide(&call, &view));
    }
    let replayed = replay(&tape.bytes, Plan::default());
    assert_eq!((replayed.agreed, replayed.hidden_state), (4, 4));
}

#[test]
fn each_decision_is_made_by_the_version_that_made_it() {
    let (old, new) = (
        text_of("old", "return { place = function() return 'a' end }"),
        text_of("new", "return { place = function() return usher.settings.to end }"),
    );
    let to = |id: &str| PolicyText { settings: json!({"to": id}).as_object().cloned().unwrap(), ..new.clone() };
    let mut tape = Tape::new(&header(old.clone()));
    let view = fleet([1, 1, 1]);
    tape.add(Live::new(old.clone()).decide(&place("one", 1), &view));
    for id in ["b", "c"] {
        tape.encoder.policy(1, &to(id), &mut tape.bytes);
        tape.add(Live::new(to(id)).decide(&place("two", 2), &view));
        tape.add(Live::new(old.clone()).decide(&place("three", 3), &view));
    }
    let replayed = replay(&tape.bytes, Plan::default());
    assert_eq!((replayed.decisions, replayed.agreed), (5, 5), "{replayed:#?}");
    // Another policy has the settings at the head of the trace, or its own.
    let settings = json!({"to": "c"}).as_object().cloned().unwrap();
    let environment = Some(Environment { settings, ..Environment::default() });
    let given = Instead { source: Source::shipped("new", &new.source), environment };
    let replayed = replay(&tape.bytes, Plan { policy: Some(given), ..Plan::default() });
    assert_eq!((replayed.agreed, replayed.kinds[0].to.as_str()), (1, "c"));
    assert!(!replayed.other_settings, "{:?}", replayed.notes());
    // What settings it was recorded with, it does not follow, and says so.
    let given = Instead { source: Source::shipped("new", &new.source), environment: None };
    let replayed = replay(&tape.bytes, Plan { policy: Some(given), ..Plan::default() });
    assert!(replayed.other_settings, "{:?}", replayed.notes());
}

#[test]
fn limits_are_those_of_the_trace() {
    let text = "return { place = function() for i = 1, 5000 do end return 'a' end }";
    let tight = PolicyText { fuel: 1000, ..text_of("old", text) };
    let replayed = replay(&recorded_by(&tight, &rooms(3)), Plan::default());
    assert_eq!((replayed.agreed, replayed.faults, replayed.new_faults), (3, 3, 0));
    let replayed = replay(&recorded_by(&tight, &rooms(3)), policy(&format!("-- the same\n{text}")));
    assert_eq!((replayed.agreed, replayed.faults), (3, 3));
}

#[test]
fn damage_and_gaps_are_told_and_the_rest_is_replayed() {
    let text = text_of("old", "return { place = function() return 'a' end }");
    let mut live = Live::new(text.clone());
    let mut tape = Tape::new(&header(text));
    for (call, _) in rooms(6) {
        tape.add(live.decide(&call, &fleet([1, 1, 1])));
    }
    tape.encoder.gap(9, Gap { events: 2, decisions: 3 }, &mut tape.bytes);
    let mut lines: Vec<String> = String::from_utf8(tape.bytes).unwrap().lines().map(str::to_owned).collect();
    lines[4] = "{\"t\":5,\"decision\":".into();
    lines.push("{\"t\":10,\"deci".into());
    let replayed = replay(lines.join("\n").as_bytes(), Plan::default());
    assert_eq!((replayed.decisions, replayed.agreed, replayed.damaged, replayed.cut), (5, 5, 1, true));
    assert!(replayed.first_damage.as_ref().unwrap().starts_with("x.trace.jsonl:5: "), "{replayed:?}");
    assert_eq!((replayed.gaps.events, replayed.gaps.decisions), (2, 3));
    assert_eq!(replayed.notes().len(), 3);
    let mut strict = Reader::new("x", Cursor::new(lines.join("\n").into_bytes()), OnDamage::Stop).unwrap();
    let mut replay = Replay::new(strict.header(), Plan::default()).unwrap();
    let error = replay.read(&mut strict, &mut |_| {}).unwrap_err();
    assert!(error.to_string().starts_with("x:5: "), "{error}");
}

#[test]
fn a_policy_that_does_not_compile_is_refused_with_its_place() {
    let broken = "return {\n place = function(";
    let bytes = recorded_by(&text_of("old", "return {}"), &rooms(1));
    let refused = |plan| Replay::new(reader(&bytes).header(), plan).map(|_| ()).unwrap_err().to_string();
    assert!(refused(policy(broken)).starts_with("policies/other.lua:2: "));
    let against = Plan { against: instead(broken), ..policy("return {}") };
    assert!(refused(against).starts_with("policies/other.lua:2: "));
    let error = Replay::new(&header(text_of("old", broken)), Plan::default()).map(|_| ()).unwrap_err();
    assert!(error.to_string().starts_with("policies/old.lua:2: "), "{error}");
}

#[test]
fn assertions_are_held_against_who_decides_again() {
    let bytes = recorded_by(&text_of("old", "return { place = function() return 'a' end }"), &rooms(10));
    let assertions = ["agreement == 0", "max_load_over_mean < 1.3", "faults == 0", "duplicates == 0"];
    let assertions = assertions.map(|text| text.parse().unwrap()).to_vec();
    let replayed = replay(&bytes, Plan { assertions, ..policy("return { place = function() return 'b' end }") });
    let ok: Vec<bool> = replayed.assertions.iter().map(|checked| checked.ok).collect();
    assert_eq!(ok, [true, false, true, false]);
    assert_eq!(replayed.failures(), ["max_load_over_mean < 1.3: 3", "duplicates == 0: this run has no such figure"]);
}

fn gate(text: &str, traces: &[Vec<u8>], require: &[&str]) -> GateReport {
    let program = Program::compile(Source::shipped("new", text), &Environment::default()).unwrap();
    let traces: Vec<Arc<[u8]>> = traces.iter().map(|bytes| bytes.as_slice().into()).collect();
    let require: Vec<Assertion> = require.iter().map(|text| text.parse().unwrap()).collect();
    replay_gate(&program, &traces, &require, Duration::from_secs(60))
}

#[test]
fn the_gate_refuses_what_does_not_meet_the_demands() {
    let old =
        text_of("old", "return { place = function(call) return call.room.name == 'room3' and nothing.x or 'a' end }");
    let trace = recorded_by(&old, &rooms(10));
    let (same, other) =
        ("return { place = function() return 'a' end }", "return { place = function() return 'b' end }");
    let reason = |report: GateReport| report.refused.map(|error| error.reason).unwrap_or_default();
    let passed = gate(same, &[trace.clone(), b"damaged".to_vec(), trace.clone()], &["agreement >= 0.9", "faults == 0"]);
    assert_eq!((passed.decisions, passed.refused), (20, None));
    assert_eq!(passed.document["decisions"], 20);
    let refused = gate(other, slice::from_ref(&trace), &["agreement >= 0.9", "faults == 0"]);
    assert_eq!(refused.document["metrics"]["agreement"], 0.0);
    assert_eq!(reason(refused), "replay of 10 recent decisions: agreement >= 0.9: 0");
    // Without demands: nothing that fails anew. What failed before may go on failing.
    assert_eq!(gate(other, slice::from_ref(&trace), &[]).refused, None);
    assert_eq!(gate(&old.source, slice::from_ref(&trace), &[]).refused, None);
    let broken = gate("return { place = function(call) return nothing.x end }", slice::from_ref(&trace), &[]);
    let why = reason(broken);
    assert!(
        why.starts_with("replay of 10 recent decisions: faults: 9 calls fail that did not fail before, such as"),
        "{why}"
    );
    // Nothing to replay is no reason to refuse.
    for nothing in [vec![], vec![recorded_by(&old, &[])]] {
        let report = gate(other, &nothing, &["agreement == 1"]);
        assert_eq!((report.decisions, report.refused), (0, None));
    }
}

#[test]
fn a_gate_that_takes_too_long_refuses() {
    let slow = "return { place = function() for i = 1, 15000 do end return 'a' end }";
    let trace: Arc<[u8]> = recorded_by(&text_of("old", "return {}"), &rooms(200)).into();
    let program = Program::compile(Source::shipped("new", slow), &Environment::default()).unwrap();
    let report = replay_gate(&program, &[trace], &[], Duration::ZERO);
    let refused = report.refused.unwrap();
    assert!(refused.reason.contains("was not over within 0 s: 64 had been made again"), "{refused}");
}

#[test]
fn kinds_and_examples_are_bounded() {
    let bytes = recorded_by(&text_of("old", "return {}"), &drawn(&[Hook::Admit], 700));
    let many = "return { admit = function() return usher.reject(usher.random(4000, 4999), 'x') end }";
    let replayed = replay(&bytes, policy(many));
    assert_eq!(replayed.changed(), 700);
    assert_eq!(replayed.kinds.len(), 200);
    assert!(replayed.kinds_beyond > 0 && replayed.page().rows.len() <= 400);
    let counted: u64 = replayed.kinds.iter().map(|kind| kind.count).sum();
    assert_eq!(counted + replayed.kinds_beyond, 700);
}
