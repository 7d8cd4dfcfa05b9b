//! What outlives a call, shared by VMs, threads and versions; what a call reads of it, kept and fed back; and the rooms of
//! a rebalance.

use std::sync::Arc;

use super::*;
use crate::model::policy::{CallRoom, FaultKind, Move, Previous};
use crate::model::read::{Kept, Read};
use crate::policy::deciding::{Deciding, PolicyHandle};
use crate::policy::lua::SharedState;
use crate::policy::slots::PolicySet;

fn fails(body: &str, reason: &str) {
    let fault = ask(&mut place(body)).expect_err(body);
    assert_eq!(fault.kind, FaultKind::Error, "{fault}");
    assert!(fault.message.starts_with("policies/test.lua:1: ") && fault.message.contains(reason), "{body}: {fault}");
}

#[test]
fn what_cannot_be_kept_is_told_with_the_way_out() {
    fails("usher.set('k', 0/0)", "usher.set(\"k\"): only finite numbers can be kept");
    fails("usher.set('k', math.huge)", "only finite numbers can be kept");
    fails("usher.set('k', string.rep('x', 65536))", "all names and values together may have 65536 bytes");
    fails("usher.set(string.rep('k', 129), 1)", "the name is longer than 128 bytes");
    fails("usher.set('\\255', 1)", "the name is not UTF-8");
    fails("usher.set('k', '\\255')", "the value is not UTF-8");
    fails("usher.counter('\\255')", "the name is not UTF-8");
    fails("for i = 1, 2000 do usher.set('k' .. i, i) end", "there are 1024 names already; set one to nil first");
    fails("for i = 1, 2000 do usher.counter('n' .. i) end", "there are 1024 counters already");
    // What was refused changed nothing, and the next call has what was kept.
    let mut vm = place(
        "assert(usher.get('\\255') == nil)
        usher.set('k', 'old')
        assert(not pcall(usher.set, 'k', 0/0) and not pcall(usher.set, 'k', string.rep('x', 70000)))
        assert(usher.get('k') == 'old')
        usher.set('é', string.rep('x', 60000))
        assert(#usher.get('é') == 60000)
        usher.set('é', nil)
        assert(usher.get('é') == nil)
        return 'm1'",
    );
    assert_eq!(ask(&mut vm), Ok(ids(&["m1"])));
}

#[test]
fn every_worker_of_every_version_counts_on_one_counter() {
    const THREADS: usize = 6;
    const CALLS: usize = 200;
    let environment = environment(8 << 20);
    let text = |mark: &str| {
        let text = format!(
            "-- {mark}
            return {{ place = function() return usher.reject(500, tostring(usher.counter('n')())) end }}"
        );
        let program = Program::compile(Source::shipped("test", &text), &environment).unwrap();
        PolicySet::build(&program, 3).unwrap()
    };
    let handle = Arc::new(PolicyHandle::new(Deciding::alone(text("first"))));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let handle = handle.clone();
            std::thread::spawn(move || {
                let count = |_| match handle.load().call(&call(Hook::Place), &view()) {
                    Ok(Answer::Reject { reason, .. }) => reason.parse::<usize>().unwrap(),
                    other => panic!("{other:?}"),
                };
                (0..CALLS).map(count).collect::<Vec<_>>()
            })
        })
        .collect();
    // A swap in the middle of it.
    handle.change(|deciding| deciding.with_active(Arc::new(text("second"))));
    let mut seen: Vec<usize> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (1..=THREADS * CALLS).collect::<Vec<_>>(), "each number once");
}

/// Answers with everything that it reads.
const READER: &str = "return { place = function(call)
    local said = { usher.now(), usher.random(), usher.random(100), math.random(), usher.counter('n')(),
        usher.two_choices(call.monoliths).id, tostring(usher.get('text')), tostring(usher.get('none')), tostring(usher.get('flag')) }
    usher.set('text', 'written by the call')
    said[#said + 1] = usher.get('text')
    return usher.reject(500, tostring(usher.hash(table.concat(said, ' '))))
end }";

#[test]
fn a_recorded_call_gives_the_same_answer_whatever_has_changed() {
    let environment = environment(8 << 20);
    let state = &environment.state;
    state.set("text", Some(Kept::Text("before".into()))).unwrap();
    state.set("flag", Some(Kept::Boolean(true))).unwrap();
    let mut vm = vm_with(READER, &environment);
    vm.keep_reads(true);
    let answer = ask(&mut vm).unwrap();
    let reads = vm.take_reads().unwrap();
    assert_eq!(reads.len(), 11, "{reads:?}");
    assert_eq!(reads[0], Read::Now(1_700_000_000.5));
    assert!(reads.contains(&Read::Counter("n".into(), 1)));
    assert!(reads.contains(&Read::Get("text".into(), Some(Kept::Text("before".into())))));
    assert!(reads.contains(&Read::Get("none".into(), None)));
    assert_eq!(reads.last(), Some(&Read::Get("text".into(), Some(Kept::Text("written by the call".into())))));

    // Clock, seed and state are others now.
    state.set("text", Some(Kept::Number(7.0))).unwrap();
    state.set("none", Some(Kept::Number(8.0))).unwrap();
    let later = Call { now_us: 5, seed: 99, ..call(Hook::Place) };
    let mut replay = vm_with(READER, &environment);
    assert_ne!(replay.call(&later, &view()).unwrap(), answer, "the reads matter");
    let counted = SharedState::count(&state.counter("n").unwrap());
    state.set("text", Some(Kept::Number(9.0))).unwrap();
    for _ in 0..2 {
        replay.feed(reads.clone());
        assert_eq!(replay.call(&later, &view()).unwrap(), answer);
        assert!(replay.reads_matched());
    }
    // A replay leaves no trace in the state, and the call after it is an ordinary one.
    assert_eq!(state.get("text"), Some(Kept::Number(9.0)));
    assert_eq!(SharedState::count(&state.counter("n").unwrap()), counted + 1);
    assert_ne!(replay.call(&later, &view()).unwrap(), answer);

    // Reads of another policy, or too few of them, are told.
    replay.feed(reads[..4].to_vec());
    assert!(replay.call(&later, &view()).is_ok() && !replay.reads_matched());
    replay.feed(vec![Read::Random(0.5)]);
    assert!(replay.call(&later, &view()).is_ok() && !replay.reads_matched());
}

#[test]
fn reads_are_kept_on_request_only_and_not_without_bound() {
    let limits = Limits { fuel: 1_000_000, budget: Duration::from_secs(60), ..Limits::default() };
    let environment = Environment { limits, ..Environment::default() };
    let text = "return { place = function() for i = 1, 12000 do usher.random() end return 'm1' end }";
    let mut vm = vm_with(text, &environment);
    assert_eq!((ask(&mut vm).is_ok(), vm.take_reads()), (true, Some(Vec::new())));
    vm.keep_reads(true);
    assert_eq!((ask(&mut vm).is_ok(), vm.take_reads()), (true, None));
    vm.keep_reads(false);
    assert_eq!((ask(&mut vm).is_ok(), vm.take_reads()), (true, Some(Vec::new())));
}

fn rebalance(rooms: Vec<CallRoom>) -> Call {
    Call { rooms: rooms.into(), ..call(Hook::Rebalance) }
}

fn room(name: &str, clients: u32) -> CallRoom {
    CallRoom {
        name: Some(name.into()),
        region: Some("lhr".into()),
        clients,
        regions: [("lhr".into(), clients)].into(),
        metadata: Some(serde_json::json!({"title": "t", "users": 3, "list": [1, 2, {"deep": true}]})),
        attempt: 1,
        bound: true,
        owner: Some("m1".into()),
        age_s: Some(2.5),
        ..CallRoom::default()
    }
}

#[test]
fn a_rebalance_sees_its_rooms() {
    let mut vm = vm("return { rebalance = function(call)
        local a, b = call.rooms[1], call.rooms[2]
        assert(#call.rooms == 2 and a.name == 'a' and b.name == 'b' and a.owner == 'm1' and a.clients == 1)
        assert(a.region == 'lhr' and a.regions.lhr == 1 and a.age_s == 2.5 and a.bound and a.attempt == 1)
        assert(a.metadata.list[3].deep and a.metadata.users == 3 and a.metadata == a.metadata)
        assert(a.previous == nil and b.previous.why == 'moved' and b.nothing == nil and b[1] == nil)
        assert(not pcall(function() getmetatable(a).__index = nil end))
        a.mine = 1
        assert(a.mine == 1 and b.mine == nil)
        assert(call.room == nil and call.client == nil)
        return { usher.move(b, call.monoliths[2]), { room = 'a', to = 'm3' } }
    end, place = function(call) assert(call.rooms == nil) return 'm1' end }");
    let previous = Some(Previous { monolith: "m9".into(), why: "moved".into() });
    let call = rebalance(vec![room("a", 1), CallRoom { previous, ..room("b", 2) }]);
    let moves = [("b", "m2"), ("a", "m3")].map(|(room, to)| Move { room: room.into(), to: to.into() });
    for _ in 0..2 {
        assert_eq!(vm.call(&call, &view()), Ok(Answer::Moves(moves.to_vec())));
        assert_eq!(ask(&mut vm), Ok(ids(&["m1"])));
    }
    assert!(vm.call(&rebalance(Vec::new()), &view()).is_err(), "no rooms are an empty list");
}

#[test]
fn ten_thousand_rooms_fit_into_a_vm_and_its_fuel() {
    let mut vm = vm("return { rebalance = function(call)
        local most = nil
        for _, room in call.rooms do
            if most == nil or room.clients > most.clients then most = room end
        end
        return { usher.move(most, most.metadata.title) }
    end }");
    let call = rebalance((0..10_000).map(|n| room(&format!("room-{n:05}"), n * 7919 % 10_007)).collect());
    for _ in 0..3 {
        let Ok(Answer::Moves(moves)) = vm.call(&call, &view()) else { panic!("no answer") };
        assert_eq!((moves.len(), moves[0].to.as_str()), (1, "t"));
    }
}
