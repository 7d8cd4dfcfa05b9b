//! What a script sees, how its copy of the Monoliths follows the view, and which answers are understood.

use proptest::prelude::*;

use super::*;
use crate::model::policy::{CallClient, CallRequest, CallRoom, Cause, FaultKind, MonolithState, Move, Previous};

#[test]
fn a_script_sees_the_whole_call() {
    let room = CallRoom {
        name: Some("movie".into()),
        region: Some("lhr".into()),
        clients: 3,
        regions: [("lhr".into(), 2), ("cdg".into(), 1)].into(),
        metadata: Some(serde_json::json!({"title": "x", "users": [1, 2]})),
        previous: Some(Previous { monolith: "m9".into(), why: "link_down".into() }),
        attempt: 2,
        bound: false,
        owner: None,
        age_s: None,
    };
    let request = CallRequest {
        method: "GET".into(),
        path: "/a".into(),
        host: None,
        region: Some("cdg".into()),
        headers: [("origin".into(), "o".into())].into(),
        query: [("q".into(), "1".into())].into(),
    };
    let call = Call {
        room: Some(room),
        client: Some(CallClient { region: Some("cdg".into()), reconnect: true, attempt: 4 }),
        cause: Some(Cause::Lost),
        request: Some(request),
        excluded: vec!["m1".into()],
        ..call(Hook::Place)
    };
    let mut vm = place(
        "local r = call.room
        assert(r.name == 'movie' and r.region == 'lhr' and r.clients == 3 and r.attempt == 2 and r.owner == nil)
        assert(r.regions.lhr == 2 and r.regions.cdg == 1 and r.metadata.users[2] == 2)
        assert(r.previous.monolith == 'm9' and r.previous.why == 'link_down')
        assert(call.client.region == 'cdg' and call.client.reconnect and call.client.attempt == 4)
        assert(call.cause == 'lost' and call.region == 'ewr')
        local q = call.request
        assert(q.method == 'GET' and q.path == '/a' and q.host == nil and q.headers.origin == 'o' and q.query.q == '1')
        assert(#call.monoliths == 2 and #call.all_monoliths == 3)
        return call.monoliths",
    );
    assert_eq!(vm.call(&call, &view()), Ok(ids(&["m2", "m3"])));
    let mut bare = place("assert(call.room == nil and call.client == nil and call.request == nil) return 'm1'");
    assert_eq!(ask(&mut bare), Ok(ids(&["m1"])));
    let one = Call { room: Some(CallRoom { regions: [("lhr".into(), 1)].into(), ..CallRoom::default() }), ..call };
    let mut vm =
        place("assert(call.room.regions.lhr == 1 and call.room.name == nil and call.room.bound == false) return 'm1'");
    assert_eq!(vm.call(&one, &view()), Ok(ids(&["m1"])));
}

#[test]
fn answers_are_understood_or_refused_with_what_would_be_right() {
    use Hook::{Admit, Place, Rebalance, Route};
    let moves = vec![Move { room: "a".into(), to: "m2".into() }];
    let reject = |code| Answer::Reject { code, reason: "full".into() };
    for (hook, body, expected) in [
        (Place, "return call.monoliths[2]", Ok(ids(&["m2"]))),
        (Place, "return 'm9'", Ok(ids(&["m9"]))),
        (Place, "return { 'm3', call.monoliths[1] }", Ok(ids(&["m3", "m1"]))),
        (Place, "return {}", Ok(ids(&[]))),
        (Place, "return { call.monoliths[3] }", Ok(ids(&["m3"]))),
        (Route, "return { call.monoliths[3], call.all_monoliths[1] }", Ok(ids(&["m3", "m1"]))),
        (Place, "return { call.monoliths[3], call.monoliths[3], call.monoliths[1] }", Ok(ids(&["m3", "m3", "m1"]))),
        (Place, "return { call.monoliths[2], { id = 'm9' } }", Ok(ids(&["m2", "m9"]))),
        (Place, "return { call.monoliths[2], id = 'm9', reject = 503 }", Ok(ids(&["m2"]))),
        (Place, "return setmetatable({ call.monoliths[2] }, { __len = error, __index = error })", Ok(ids(&["m2"]))),
        (Place, "return table.clone(call.monoliths[2])", Ok(ids(&["m2"]))),
        (Place, "return call.monoliths[1], 'm9'", Ok(ids(&["m1"]))),
        (Place, "return", Ok(Answer::Default)),
        (Place, "return usher.reject(1013, 'full')", Ok(reject(1013))),
        (Route, "return usher.reject(503, 'full')", Ok(reject(503))),
        (Admit, "return true", Ok(Answer::Admit)),
        (Admit, "return usher.reject(4005, 'full')", Ok(reject(4005))),
        (Admit, "return usher.hold('500ms')", Ok(Answer::Hold { delay: Duration::from_millis(500) })),
        (Admit, "return usher.hold(2)", Ok(Answer::Hold { delay: Duration::from_secs(2) })),
        (Rebalance, "return { usher.move('a', call.monoliths[2]) }", Ok(Answer::Moves(moves))),
        (Rebalance, "return {}", Ok(Answer::Moves(Vec::new()))),
        (
            Place,
            "return 7",
            Err("returned number 7; return a monolith, its id, a ranked list, usher.reject(...) or nil"),
        ),
        (Place, "return 0/0", Err("returned number nan")),
        (Place, "return true", Err("returned true")),
        (Place, "return function() end", Err("returned a function")),
        (Place, "local t = {} t[1] = t return t", Err("returned a list whose item 1 is a table that is no Monolith")),
        (Place, "return { 'm1', nil, 7 }", Err("returned a list whose item 2 is nil")),
        (Place, "return { x = 1 }", Err("returned a table that is no Monolith and no list")),
        (Place, "return table.create(10001, 'm1')", Err("returned a list of 10001 items")),
        (Place, "return usher.hold(1)", Err("returned usher.hold(...), which place cannot answer with")),
        (Route, "return usher.reject(4000)", Err("returned usher.reject(4000), which route cannot answer with")),
        (Place, "return { reject = 200 }", Err("returned usher.reject(200), which place cannot answer with")),
        (Admit, "return false", Err("returned false; return true, nil, usher.reject(...) or usher.hold(...)")),
        (Admit, "return call.monoliths[1]", Err("returned a table; return true")),
        (Rebalance, "return call.monoliths[1]", Err("returned a table that is no Monolith and no list")),
        (Rebalance, "return { call.monoliths[1] }", Err("returned a list whose item 1 is a table that is no Monolith")),
        (Place, "return { call.monoliths[1], 7 }", Err("returned a list whose item 2 is number 7")),
        (Rebalance, "return { 7 }", Err("returned a list whose item 1 is number 7; return a list of usher.move")),
    ] {
        let mut vm = vm(&format!("return {{ name = 'x', {hook} = function(call) {body} end }}"));
        match (vm.call(&call(hook), &view()), expected) {
            (Err(fault), Err(reason)) => {
                assert_eq!(fault.kind, FaultKind::BadAnswer, "{body}");
                assert!(
                    fault.message.starts_with(&format!("policies/test.lua:1: policy \"x\" {hook} {reason}")),
                    "{body}: {fault}"
                );
            }
            (answer, Ok(expected)) => assert_eq!(answer, Ok(expected), "{body}"),
            (answer, Err(reason)) => panic!("{body}: {answer:?} is not {reason}"),
        }
    }
}

#[test]
fn texts_are_those_of_their_call_however_many_there_were() {
    let mut vm = place("return usher.reject(503, call.region .. call.room.name .. tostring(next(call.room.regions)))");
    for number in 0..700u32 {
        // Some are too long to be kept, some come again.
        let name = format!("{}{}", "x".repeat(if number % 50 == 7 { 70 } else { 1 }), number % 301);
        let region = format!("r{}", number % 299);
        let regions = [(region.as_str().into(), 1)].into();
        let room = CallRoom { name: Some(name.as_str().into()), regions, ..CallRoom::default() };
        let call = Call { room: Some(room), region: region.as_str().into(), ..call(Hook::Place) };
        let reason = format!("{region}{name}{region}");
        assert_eq!(vm.call(&call, &view()), Ok(Answer::Reject { code: 503, reason }));
    }
}

/// A text of everything that a script sees of the Monoliths.
const DUMP: &str = "return { place = function(call)
    local parts = {}
    for _, list in { call.monoliths, call.all_monoliths } do
        for _, m in list do
            for _, field in { 'id', 'region', 'state', 'rooms', 'clients', 'users', 'pending', 'inflight', 'queue', 'rtt_ms',
                'latency_ms', 'errors', 'age_s', 'weight', 'draining', 'load_age_s' } do
                parts[#parts + 1] = tostring(m[field])
            end
            parts[#parts + 1] = tostring(m.load.lag)
        end
        parts[#parts + 1] = '|'
    end
    local best = usher.min_by(call.monoliths, 'rooms')
    parts[#parts + 1] = best and best.id or 'none'
    local ring = usher.rendezvous('key', call.monoliths)
    parts[#parts + 1] = ring and ring.id or 'none'
    return usher.reject(500, tostring(usher.hash(table.concat(parts, ' '))))
end }";

#[derive(Clone, Debug)]
enum Step {
    Insert(u8, u32),
    Remove(u8),
    Change(u8, u8, u32),
    Clone,
    Other,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0u8..8, 0u32..9).prop_map(|(id, rooms)| Step::Insert(id, rooms)),
        1 => (0u8..8).prop_map(Step::Remove),
        6 => (0u8..8, 0u8..8, 0u32..9).prop_map(|(id, field, value)| Step::Change(id, field, value)),
        1 => Just(Step::Clone),
        1 => Just(Step::Other),
    ];
    proptest::collection::vec(step, 1..40)
}

/// A script tells them apart by these words.
#[test]
fn a_script_sees_each_state_under_its_name() {
    let names = ["up", "suspect", "draining", "ejected"];
    let mut vm = place("return usher.reject(500, call.all_monoliths[1].state .. ' ' .. #call.monoliths)");
    for (state, name) in STATES.into_iter().zip(names) {
        let mut one = View::of([row("m1", "ewr", 0)]);
        one.update(&"m1".into(), |row| row.state = state);
        let reason = format!("{name} {}", u8::from(state == MonolithState::Up));
        assert_eq!(vm.call(&call(Hook::Place), &one), Ok(Answer::Reject { code: 500, reason }));
    }
}

const STATES: [MonolithState; 4] =
    [MonolithState::Up, MonolithState::Suspect, MonolithState::Draining, MonolithState::Ejected];

fn change(row: &mut MonolithRow, field: u8, value: u32) {
    match field {
        0 => row.rooms = value,
        1 => row.pending = value,
        2 => row.rtt_ms = f64::from(value) / 3.0,
        3 => row.region = if value.is_multiple_of(2) { "ewr" } else { "cdg" }.into(),
        4 => row.state = STATES[value as usize % STATES.len()],
        5 => row.draining = value % 2 == 1,
        6 => {
            row.load.insert("lag".into(), f64::from(value));
            row.load_age_s = (value.is_multiple_of(2)).then_some(1.0);
        }
        _ => row.weight = f64::from(value),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn a_patched_copy_is_as_good_as_a_fresh_one(steps in steps()) {
        let program = Program::compile(Source::shipped("test", DUMP), &environment(8 << 20)).unwrap();
        let mut patched = Vm::new(&program).unwrap();
        let mut naming = place("return { call.all_monoliths[#call.all_monoliths], call.all_monoliths[1] }");
        let (mut view, mut other) = (View::default(), View::of([row("m1", "syd", 7), row("zz", "syd", 7)]));
        for step in steps {
            match step {
                Step::Insert(id, rooms) => view.insert(row(&format!("m{id}"), "ewr", rooms)),
                Step::Remove(id) => drop(view.remove(&format!("m{id}").as_str().into())),
                Step::Change(id, field, value) => {
                    view.update(&format!("m{id}").as_str().into(), |row| change(row, field, value));
                }
                Step::Clone => other = view.clone(),
                Step::Other => std::mem::swap(&mut view, &mut other),
            }
            let fresh = Vm::new(&program).unwrap().call(&call(Hook::Place), &view);
            prop_assert_eq!(patched.call(&call(Hook::Place), &view), fresh);
            let ends = view.rows().last().into_iter().chain(view.rows().first()).map(|row| row.id.clone());
            prop_assert_eq!(naming.call(&call(Hook::Place), &view), Ok(Answer::Ranked(ends.collect())));
        }
    }
}
