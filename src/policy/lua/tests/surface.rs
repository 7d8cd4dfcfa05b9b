//! The `usher` table: complete, documented, and each helper by its properties.

use super::*;
use crate::model::policy::FaultKind;
use crate::policy::lua::{Distances, SURFACE};
use crate::policy::shipped::DEFINITIONS;

fn answer(body: &str) -> Result<Answer, Fault> {
    ask(&mut place(body))
}

fn holds(body: &str) {
    assert_eq!(answer(&format!("{body} return 'm1'")), Ok(ids(&["m1"])), "{body}");
}

fn fails(body: &str, reason: &str) {
    let fault = answer(body).expect_err(body);
    assert_eq!(fault.kind, FaultKind::Error, "{fault}");
    assert!(fault.message.contains(reason), "{body}: {fault}");
    assert!(fault.message.starts_with("policies/test.lua:1: "), "the line of the policy: {fault}");
}

#[test]
fn the_table_the_list_and_the_definitions_are_one() {
    let listed: Vec<String> = SURFACE.iter().map(|item| format!("{:?}", item.name)).collect();
    holds(&format!(
        "local listed = {{}}
        for _, name in {{ {} }} do listed[name] = true assert(usher[name] ~= nil, name) end
        for name in usher do assert(listed[name], name) end",
        listed.join(", ")
    ));
    let start = DEFINITIONS.find("declare usher: {").expect("the declaration of usher");
    let declared: Vec<&str> = (DEFINITIONS[start..].lines().skip(1))
        .take_while(|line| *line != "}")
        .filter(|line| !line.trim_start().starts_with("--"))
        .collect();
    let expected: Vec<String> = SURFACE.iter().map(|item| format!("    {}: {},", item.name, item.signature)).collect();
    // The test API is declared last; it is there in tests only.
    assert_eq!(declared[..expected.len()], expected);
    assert_eq!(declared[expected.len()..], ["    test: TestApi,"]);
    assert!(SURFACE.iter().all(|item| item.doc.len() > 10));
}

#[test]
fn the_definitions_know_every_field() {
    let row = serde_json::to_value(row("a", "b", 1)).unwrap();
    let start = DEFINITIONS.find("export type Monolith = {").unwrap();
    let monolith = &DEFINITIONS[start..start + DEFINITIONS[start..].find("\n}").unwrap()];
    for field in row.as_object().unwrap().keys().map(String::as_str).chain(["load", "load_age_s"]) {
        assert!(monolith.contains(&format!("    {field}: ")), "{field} is missing");
        let sees = format!("assert(call.all_monoliths[1].{field} ~= nil or '{field}' == 'load_age_s')");
        holds(&sees);
    }
}

#[test]
fn scores_rank_and_ties_go_to_the_first() {
    holds("assert(usher.min_by(call.monoliths, 'rooms').id == 'm3')");
    holds("assert(usher.max_by(call.monoliths, function(m) return m.rooms end).id == 'm1')");
    holds("assert(usher.min_by(call.monoliths, 'clients').id == 'm1')");
    holds("assert(usher.max_by(call.monoliths, function() return 1 end).id == 'm1')");
    holds("assert(usher.min_by({}, 'rooms') == nil)");
    holds(
        "local s = usher.sort_by(call.monoliths, 'rooms') assert(s[1].id == 'm3' and s[2].id == 'm2' and s[3].id == 'm1')",
    );
    holds(
        "local s = usher.sort_by(call.monoliths, function() return 0 end) assert(s[1].id == 'm1' and s[3].id == 'm3')",
    );
    holds("assert(#usher.filter(call.monoliths, function(m) return m.rooms < 5 end) == 2)");
    holds("assert(#usher.filter(call.monoliths, 'draining') == 0)");
    holds("assert(#usher.in_region(call.monoliths) == 2 and #usher.in_region(call.monoliths, 'cdg') == 1)");
}

#[test]
fn wrong_use_is_an_error_that_names_helper_and_line() {
    fails("return usher.min_by(call.monoliths, function() return 0/0 end)", "usher.min_by: the score of \"m1\" is nan");
    fails("return usher.max_by(call.monoliths, 'room')", "usher.max_by: the field \"room\" of \"m1\" is nil");
    fails("return usher.sort_by(call.monoliths, function() return 'x' end)", "usher.sort_by: the score of \"m1\" is x");
    fails("return usher.min_by(nil, 'rooms')", "usher.min_by: the list is nil");
    fails("return usher.min_by(call.monoliths)", "usher.min_by: the score is nil");
    fails("return usher.filter(call.monoliths, 7)", "usher.filter: the test is number");
    fails("return usher.rendezvous(nil, call.monoliths)", "usher.rendezvous: the key is nil");
    fails("return usher.rendezvous('k', { {} })", "usher.rendezvous: item 1 of the list is no Monolith");
    fails("return usher.rendezvous('k', call.monoliths, function() return 0/0 end)", "the weight of \"m1\" is nan");
    fails("return usher.bounded('k', call.monoliths, 0.5)", "usher.bounded: the factor is 0.5");
    fails("return usher.reject(200)", "usher.reject: 200 is no code");
    fails("return usher.hold('soon')", "usher.hold: soon is no delay");
    fails("return usher.move({}, 'm1')", "usher.move: give a room");
    fails("usher.set('k', {})", "usher.set(\"k\"): a table cannot be kept");
    fails("usher.counter(string.rep('x', 200))", "longer than 128 bytes");
    fails("return usher.random(3, 1)", "random: 3 to 1 is no range");
}

#[test]
fn both_ways_of_ranking_agree() {
    let rows = (0..40u32).map(|i| MonolithRow {
        weight: f64::from(i % 4),
        pending: i % 3,
        ..row(&format!("m{i:02}"), "ewr", (i * 37) % 11)
    });
    let view = View::of(rows);
    let mut vm = place(
        "local copy = table.clone(call.monoliths)
        for _, field in { 'rooms', 'pending', 'weight' } do
            assert(usher.min_by(copy, field) == usher.min_by(call.monoliths, field))
            assert(usher.max_by(copy, field) == usher.max_by(call.monoliths, field))
        end
        for i = 1, 100 do
            local key = 'room-' .. i
            assert(usher.rendezvous(key, copy) == usher.rendezvous(key, call.monoliths))
            assert(usher.bounded(key, copy, 1.5) == usher.bounded(key, call.monoliths, 1.5))
        end
        return copy[1]",
    );
    let answer = vm.call(&call(Hook::Place), &view);
    assert_eq!(answer, Ok(ids(&["m00"])));
}

#[test]
fn regions_are_ranked_by_distance() {
    let distances = Distances::new(|from, to| match (from.as_str(), to.as_str()) {
        ("ewr", "iad") => Some(6.0),
        ("ewr", "cdg") => Some(75.0),
        _ => None,
    });
    let environment = Environment { distances, ..environment(8 << 20) };
    let view = View::of([row("c", "cdg", 0), row("i", "iad", 9), row("s", "syd", 0)]);
    for (body, expected) in [
        ("return usher.nearest(call.monoliths)", &["i"][..]),
        ("return usher.nearest(call.monoliths, 'syd')", &["s"]),
        ("return usher.nearest(call.monoliths, 'nowhere')", &["c", "i", "s"]),
        ("return usher.spill(call.monoliths, 10)", &["i"]),
        ("return usher.spill(call.monoliths, 9)", &["c"]),
        ("return usher.spill(call.monoliths, function(m) return m.id ~= 's' end)", &["s"]),
        ("return usher.spill(call.monoliths, 0)", &["c", "i", "s"]),
    ] {
        let mut vm = vm_with(&format!("return {{ place = function(call) {body} end }}"), &environment);
        assert_eq!(vm.call(&call(Hook::Place), &view), Ok(ids(expected)), "{body}");
    }
}

#[test]
fn slow_start_rises_and_ends_at_one() {
    holds(
        "local before = 0
        for age = 0, 40 do
            local now = usher.slow_start({ age_s = age }, 30)
            assert(now >= before and now >= 0.1 and now <= 1)
            before = now
        end
        assert(before == 1 and usher.slow_start({ age_s = 15 }, 30) == 0.5 and usher.slow_start({ age_s = 0 }, 0) == 1)",
    );
}

#[test]
fn two_choices_never_takes_the_worst_of_many() {
    let mut vm = place("return usher.two_choices(call.monoliths)");
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let call = Call { seed: seed * 7919, ..call(Hook::Place) };
        let Ok(Answer::Ranked(chosen)) = vm.call(&call, &view()) else { panic!("no answer") };
        seen.insert(chosen[0].to_string());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["m2", "m3"], "m1 has the most rooms");
}

#[test]
fn clock_randomness_and_hash_come_from_the_call_alone() {
    let text = "return { place = function(call)
        return usher.reject(500, string.format('%.1f %.17g %d %.17g %d', usher.now(), usher.random(), usher.random(9), math.random(), usher.hash('x')))
    end }";
    let first = ask(&mut vm(text));
    let mut warm = vm(text);
    for _ in 0..3 {
        assert_eq!(ask(&mut warm), first);
    }
    let other = warm.call(&Call { seed: 8, ..call(Hook::Place) }, &view());
    assert_ne!(other, first);
    let Ok(Answer::Reject { reason, .. }) = first else { panic!("{first:?}") };
    assert!(reason.starts_with("1700000000.5 0."), "{reason}");
}

#[test]
fn state_is_shared_by_all_vms_and_survives_a_new_version() {
    let environment = environment(8 << 20);
    let text = "return { place = function(call)
        local n = usher.counter('n')()
        usher.set('last', n)
        return call.monoliths[n]
    end }";
    let mut first = vm_with(text, &environment);
    let mut second = vm_with(text, &environment);
    assert_eq!(ask(&mut first), Ok(ids(&["m1"])));
    assert_eq!(ask(&mut second), Ok(ids(&["m2"])));
    let mut newer =
        vm_with("return { place = function(call) return call.monoliths[usher.get('last')] end }", &environment);
    assert_eq!(ask(&mut newer), Ok(ids(&["m2"])));
    assert_eq!(ask(&mut first), Ok(ids(&["m3"])));
}

#[test]
fn explanations_are_those_of_the_last_call() {
    let mut vm = place("usher.explain('chose', 1, nil, true) return 'm1'");
    for _ in 0..2 {
        ask(&mut vm).unwrap();
    }
    assert_eq!(vm.take_explanations(), ["chose 1 nil true"]);
}

#[test]
fn explanations_are_bounded_and_outlive_the_vm_that_gave_them() {
    let mut vm = place(
        "for i = 1, 100 do usher.explain(i, if i == 2 then string.rep('x', 5000) else 'x') end
        while true do end",
    );
    let fault = ask(&mut vm).unwrap_err();
    assert_eq!(fault.kind, crate::model::policy::FaultKind::Fuel);
    let texts = vm.take_explanations();
    assert_eq!((texts.len(), texts[0].as_str(), texts[1].len(), texts[63].as_str()), (64, "1 x", 1024, "64 x"));
    assert_eq!(vm.take_explanations(), [""; 0]);
    let mut vm = place("usher.explain('because') if call.region == 'ewr' then error('no') end");
    assert!(ask(&mut vm).is_err());
    assert_eq!(vm.take_explanations(), ["because"]);
}

#[test]
fn settings_are_the_configuration_s() {
    let settings = serde_json::json!({"factor": 2, "names": ["a", "b"], "deep": {"on": true}});
    let environment = Environment { settings: settings.as_object().cloned().unwrap(), ..environment(8 << 20) };
    let mut vm = vm_with(
        "return { place = function()
            local s = usher.settings
            assert(s.factor == 2 and s.names[2] == 'b' and s.deep.on and s.nothing == nil)
            assert(not pcall(function() s.deep.on = false end))
            return 'm1'
        end }",
        &environment,
    );
    assert_eq!(ask(&mut vm), Ok(ids(&["m1"])));
}
