//! The test runner: pass, fail and error are told apart, and nothing that a test does ends the run.

use std::time::Duration;

use regex::Regex;

use super::*;
use crate::policy::lua::{Environment, Limits, Source};
use crate::policy::versions;

const POLICY: &str = "local policy = {}
function policy.place(call)
  if call.room.name == 'boom' then
    return call.nothing.id
  end
  if call.room.name == 'loop' then
    while true do end
  end
  if call.room.name == 'all' then
    return call.monoliths
  end
  return usher.min_by(call.monoliths, 'rooms')
end
function policy.admit(call)
  if call.client.attempt > 2 then
    return usher.reject(503, 'full')
  end
  return if call.room.bound then true else usher.hold('2s')
end
function policy.rebalance(call)
  return { usher.move('a', call.monoliths[1]) }
end
return policy";

fn file(test: &str) -> TestFile {
    let text = format!("local t = usher.test\nlocal policy = t.policy()\n{test}");
    TestFile { name: "x_test.lua".into(), text: Ok(text.into()), policy: Ok(Source::shipped("x", POLICY)) }
}

fn run(test: &str) -> Report {
    // Without optimisation the fuel of a call may take longer than its budget.
    let limits = Limits { budget: Duration::from_secs(1), ..Limits::default() };
    let environment = Environment { limits, ..Environment::default() };
    run_tests(&[file(test)], &Options { environment, ..Options::default() })
}

/// Runs one test and checks its status, its line (counted from the first one of `test`) and its message.
fn check(test: &str, status: Status, line: Option<u32>, message: &str) {
    let report = run(test);
    assert_eq!(report.tests.len(), 1, "{}", report.pretty());
    let result = &report.tests[0];
    assert_eq!(result.status, status, "{test}: {result:?}");
    assert_eq!(result.line, line.map(|line| line + 2), "{test}: {result:?}");
    assert!(result.message.as_deref().unwrap_or_default().contains(message), "{test}: {result:?}");
}

#[test]
fn answers_compare_as_the_script_gave_them() {
    let report = run("local list = { { id = 'b', rooms = 1 }, { id = 'a', rooms = 3 }, { id = 'gone', draining = true } }
        t.describe('place', function()
            t.it('object and id', function()
                local call = t.place { monoliths = list }
                t.equal(policy.place(call), 'b')
                t.equal('b', policy.place(call))
                t.equal(policy.place(call).rooms, 1)
                call.monoliths[2].rooms = 9
                t.check(policy.place(call).rooms == 3)
            end)
            t.it('list', function() t.equal(policy.place(t.place { room = 'all', monoliths = list }), { 'a', 'b' }) end)
            t.it('nobody', function() t.equal(policy.place(t.place {}), nil) end)
        end)
        t.it('admit', function()
            t.equal(policy.admit(t.admit { room = { bound = true } }), true)
            t.equal(policy.admit(t.admit {}), { hold = 2 })
            t.equal(policy.admit(t.admit { client = { attempt = 3 } }), usher.reject(503, 'full'))
        end)
        t.it('rebalance', function()
            t.equal(policy.rebalance(t.rebalance { monoliths = list }), { { room = 'a', to = 'a' } })
            local call = t.rebalance { monoliths = list, rooms = { { name = 'B', owner = 'a', clients = 3 }, { name = 'a', owner = 'b' } } }
            t.equal({ call.rooms[1].name, call.rooms[2].name, call.rooms[2].clients, call.rooms[2].bound }, { 'a', 'b', 3, true })
            t.error(function() t.rebalance { rooms = { { name = 'x' } } } end, 'has no owner')
        end)
        t.each('cases', { 1, 2 }, function(n) t.check(n > 0) end)
        t.it('errors', function()
            local text = t.error(function() policy.place(t.place { room = 'boom', monoliths = list }) end, 'attempt to index nil')
            t.check(text:find('policies/x.lua:4', 1, true), text)
        end)");
    assert_eq!((report.passed, report.exit_code()), (8, 0), "{}", report.pretty());
    assert_eq!(report.tests[1].name, "place > list");
}

#[test]
fn failing_and_broken_tests_are_told_apart() {
    use Status::{Error, Fail, Pass};
    check("t.it('x', function() end)", Pass, None, "");
    check("t.it('x', function()\n t.equal(1, 2) end)", Fail, Some(2), "expected 2\n     got 1");
    check(
        "t.it('x', function() t.equal({ a = { 1, 2 } }, { a = { 1, 3 } }) end)",
        Fail,
        Some(1),
        "differs at .a[2]: expected 3, got 2",
    );
    check("t.it('x', function() t.equal({}, { a = 1 }, 'why') end)", Fail, Some(1), "why: expected");
    check("t.it('x', function()\n\n t.check(false, 'no') end)", Fail, Some(3), "no");
    check("t.it('x', function() pcall(t.check, false) end)", Fail, None, "a check did not hold");
    check("t.it('x', function() t.error(function() end) end)", Fail, Some(1), "no error was raised");
    check("t.it('x', function()\n local x = nothing.y end)", Error, Some(2), "attempt to index nil");
    check("t.it('x', function()\n t.place { monolith = {} } end)", Error, Some(2), "did you mean \"monoliths\"?");
    check("t.it('x', function()\n policy.route(t.route {}) end)", Error, Some(2), "the policy has no such hook");
    check(
        "t.it('x', function()\n policy.place(t.place { room = 'boom' }) end)",
        Error,
        Some(2),
        "policies/x.lua:4: attempt to index nil",
    );
    check(
        "t.it('x', function() policy.place(t.place { room = 'loop' }) end)",
        Error,
        Some(1),
        "policies/x.lua:7: more than 20000 safepoints",
    );
}

#[test]
fn nothing_that_a_test_does_ends_the_run() {
    let report = run("t.it('endless', function()\n while true do end end)
        t.it('caught', function() while true do pcall(function() while true do end end) end end)
        t.it('greedy', function() local s = 'x' while true do s = s .. s end end)
        t.it('native', function() table.move({}, 1, 2 ^ 30, 2) end)
        t.it('policy', function()
            t.error(function() policy.place(t.place { room = 'loop' }) end, 'safepoints')
            t.equal(policy.place(t.place { monoliths = { { id = 'a' } } }), 'a')
        end)
        t.it('good', function() t.check(true) end)");
    let status: Vec<Status> = report.tests.iter().map(|test| test.status).collect();
    use Status::{Error, Pass};
    assert_eq!(status, [Error, Error, Error, Error, Pass, Pass], "{}", report.pretty());
    assert_eq!((report.tests[0].line, report.exit_code()), (Some(4), 2));
}

#[test]
fn a_broken_file_is_a_result_of_its_own() {
    use Status::Error;
    check("while true do end", Error, Some(1), "does it loop for ever?");
    check("t.it('x'", Error, Some(1), "Expected ')'");
    check("", Error, None, "the file has no tests");
    check("t.it('x')", Error, Some(1), "give a name and a function");
    let alone = TestFile { policy: Err("nothing beside it".into()), ..file("t.it('x', function() end)") };
    let report = run_tests(&[alone], &Options::default());
    assert_eq!(report.tests[0].message.as_deref(), Some("nothing beside it"));
    let slow = Options { time: Duration::ZERO, ..Options::default() };
    let report = run_tests(&[file("t.it('x', function() end)")], &slow);
    assert_eq!(report.tests[0].message.as_deref(), Some("it takes too long"));
}

#[test]
fn a_test_inside_a_test_takes_nothing_back() {
    let report = run("t.it('outer', function()
        pcall(t.check, false)
        pcall(t.it, 'inner', function() end)
    end)
    t.it('after', function() end)");
    let found: Vec<_> = report.tests.iter().map(|test| (test.name.as_str(), test.status)).collect();
    assert_eq!(found, [("outer", Status::Fail), ("after", Status::Pass)]);
    check("t.it('x', function() t.it('y', function() end) end)", Status::Fail, Some(1), "inside another test");
}

#[test]
fn a_file_that_cannot_be_read_stops_no_other() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a_test.lua"), b"-- \xff").unwrap();
    std::fs::write(folder.path().join("b.lua"), "return {}").unwrap();
    std::fs::write(folder.path().join("b_test.lua"), "usher.test.it('good', function() end)").unwrap();
    let files = find_tests(&[folder.path().display().to_string()]).unwrap();
    let report = run_tests(&files, &Options::default());
    assert_eq!((report.passed, report.errors, report.exit_code()), (1, 1, 2), "{}", report.pretty());
    assert!(report.tests[0].message.as_deref().unwrap_or_default().contains("UTF-8"), "{}", report.pretty());
}

#[test]
fn the_report_is_one_document() {
    let options = Options { filter: Some(Regex::new("^a").unwrap()), ..Options::default() };
    let tests =
        "t.it('a good', function() end) t.it('a bad', function() t.check(false, 'no') end) t.it('b', function() end)";
    let report = run_tests(&[file(tests)], &options);
    assert_eq!(
        serde_json::to_value(&report).unwrap(),
        serde_json::json!({"passed": 1, "failed": 1, "errors": 0, "tests": [
            {"file": "x_test.lua", "name": "a good", "status": "pass"},
            {"file": "x_test.lua", "name": "a bad", "status": "fail", "message": "no", "line": 3},
        ]})
    );
    assert_eq!(report.exit_code(), 1);
    assert!(report.pretty().contains("FAIL a bad (x_test.lua:3)\n    no\n"), "{}", report.pretty());
}

#[test]
fn tests_are_found_by_file_policy_folder_and_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::create_dir(path("deep")).unwrap();
    std::fs::write(path("x.lua"), POLICY).unwrap();
    std::fs::write(path("x_test.lua"), "local p = usher.test.policy() usher.test.it('x', function() end)").unwrap();
    std::fs::write(path("deep/y_test.lua"), "usher.test.it('y', function() end)").unwrap();
    std::fs::write(path("lonely.lua"), "return {}").unwrap();
    let count = |paths: &[String]| find_tests(paths).map(|files| run_tests(&files, &Options::default()).passed);
    assert_eq!(count(&[path("x.lua")]), Ok(1));
    assert_eq!(count(&[path("x_test.lua")]), Ok(1));
    assert_eq!(count(&[folder.path().display().to_string()]), Ok(2));
    assert!(count(&["random".into()]).unwrap() > 1);
    assert!(count(&[path("lonely.lua")]).unwrap_err().reason.contains("no _test.lua here"));
    assert!(count(&[path("missing.lua")]).unwrap_err().reason.contains("no such file"));
}

#[test]
fn the_gate_refuses_a_policy_whose_test_fails() {
    let folder = tempfile::tempdir().unwrap();
    let (policy, test) = (folder.path().join("p.lua"), folder.path().join("p_test.lua"));
    std::fs::write(&policy, "return { place = function() return 'm1' end }").unwrap();
    let environment = Environment::default();
    let gate = test_gate(&environment, Duration::from_secs(10));
    let prepare = || {
        let gates = versions::Gates { tests: Some(&gate), replay: None };
        versions::prepare(Source::read(&policy).unwrap(), &environment, &[], gates).map(|_| ())
    };
    assert_eq!(prepare(), Ok(()), "no tests: a warning only");
    let body =
        "local t = usher.test local p = t.policy()\nt.it('x', function()\n t.equal(p.place(t.place {}), 'm2') end)";
    std::fs::write(&test, body).unwrap();
    let refused = prepare().unwrap_err();
    assert_eq!(refused.line, Some(3));
    assert!(refused.reason.starts_with("test \"x\" failed: expected \"m2\""), "{refused}");
    std::fs::write(&test, body.replace("m2", "m1")).unwrap();
    assert_eq!(prepare(), Ok(()));
}

#[test]
fn a_failure_shows_the_call_and_the_answer() {
    let report = run(
        "t.it('x', function() t.equal(policy.place(t.place { region = 'cdg', monoliths = { { id = 'a', rooms = 2 } } }), 'b') end)",
    );
    let result = &report.tests[0];
    assert_eq!(
        result.call.as_deref(),
        Some("t.place { monoliths = { { id = \"a\", rooms = 2 } }, region = \"cdg\" }"),
        "{result:?}"
    );
    assert_eq!(result.answer.as_deref(), Some("\"a\""));
    assert!(report.pretty().contains("    call: t.place {") && report.pretty().contains("    answer: \"a\"\n"));
    check(
        "t.it('x', function() policy.place(t.place { room = 'boom' }) end)",
        Status::Error,
        Some(1),
        "x.lua:4: attempt to index nil",
    );
}

#[test]
fn cases_are_tests_with_names_of_their_own() {
    let report = run("t.each({ { name = 'first', n = 1 }, { n = 2 } }, function(case) t.check(case.n == 1) end)
        t.each('%d plus %s', { { 1, 'one' }, { 2, 'two' } }, function(case) t.check(#case == 2) end)
        t.describe('group', function() t.each('with', { { name = 'a' } }, function() end) end)");
    let names: Vec<_> = report.tests.iter().map(|test| (test.name.as_str(), test.status)).collect();
    use Status::{Fail, Pass};
    assert_eq!(
        names,
        [("first", Pass), ("[2]", Fail), ("1 plus one", Pass), ("2 plus two", Pass), ("group > with a", Pass)]
    );
    check("t.each('%d', { { 'x' } }, function() end)", Status::Error, Some(1), "case 1 does not fit the name");
    check("t.each({})", Status::Error, Some(1), "give a list of cases and a function");
}

#[test]
fn a_property_is_broken_by_a_call_that_is_made_small() {
    let report = run("t.property('few rooms', function(call)
            t.check(#call.monoliths < 3, 'three')
        end)
        t.property('holds', { runs = 20, seed = 5 }, function(call) t.check(policy.place(call) ~= nil) end)
        t.property('route', { hook = 'admit', runs = 5, given = { region = 'mars' } }, function(call)
            t.equal(call.region, 'mars')
            t.equal(call.hook, 'admit')
        end)
        t.property('rooms', { runs = 200 }, function(call)
            for _, m in call.monoliths do t.check(m.rooms < 100, 'full') end
        end)");
    let [few, holds, given, rooms] = &report.tests[..] else { panic!("{report:?}") };
    assert_eq!((few.status, few.line), (Status::Fail, Some(4)), "{few:?}");
    assert_eq!(
        few.call.as_deref(),
        Some("t.place { monoliths = { { id = \"m1\" }, { id = \"m2\" }, { id = \"m3\" } } }")
    );
    assert!(few.message.as_deref().unwrap().starts_with("three\ncall "), "{few:?}");
    assert_eq!((holds.status, given.status), (Status::Pass, Status::Pass), "{holds:?} {given:?}");
    let call = rooms.call.as_deref().unwrap();
    let count: u32 = call.split("rooms = ").nth(1).unwrap().trim_end_matches([' ', '}']).parse().unwrap();
    assert!((100..200).contains(&count) && call.matches("id = ").count() == 1, "{call}");
    let seeded =
        || serde_json::to_value(run("t.property('x', function(call) t.check(call.seed % 7 ~= 0) end)")).unwrap();
    assert_eq!(seeded(), seeded(), "the same seed finds the same");
    check("t.property('x', { run = 3 }, function() end)", Status::Error, Some(1), "no option is called \"run\"");
    check(
        "t.property('x', { runs = 0.5 }, function() end)",
        Status::Error,
        Some(1),
        "runs is 0.5; give a whole number",
    );
}

#[test]
fn rooms_are_drawn_given_and_shown() {
    let report = run("t.property('owners', { hook = 'rebalance' }, function(call)
            for _, r in call.rooms do t.check(r.clients < 20, 'crowded') end
        end)
        t.it('moves', function()
            local call = t.rebalance { rooms = { { name = 'b', owner = 'm1', clients = 3 } }, monoliths = { { id = 'm1' } } }
            t.equal(policy.rebalance(call), {})
        end)");
    let [drawn, given] = &report.tests[..] else { panic!("{report:?}") };
    let call = drawn.call.as_deref().unwrap();
    assert!(
        drawn.status == Status::Fail
            && call.starts_with("t.rebalance { monoliths = ")
            && call.matches("owner").count() == 1,
        "{call}"
    );
    let call = given.call.as_deref().unwrap();
    assert!(call.contains("rooms = { { clients = 3, name = \"b\", owner = \"m1\" } }"), "{call}");
    assert_eq!(given.answer.as_deref(), Some("{ usher.move(\"a\", \"m1\") }"));
}

#[test]
fn clock_and_seeds_are_those_of_the_test() {
    let policy =
        "return { place = function(call) return tostring(usher.now()) .. ' ' .. tostring(usher.random(1000000)) end }";
    let test = "local t = usher.test local p = t.policy()
        local function said() return p.place(t.place {}) end
        t.it('default', function()
            t.equal(t.clock(), 1700000000)
            t.equal(said(), said())
        end)
        t.it('moves', function()
            t.clock(100) t.advance(5.5)
            t.check(string.find(said(), '^105.5 '), said())
            t.check(string.find(p.place(t.place { now = 7 }), '^7 '))
        end)
        t.it('is reset', function() t.equal(t.clock(), 1700000000) end)
        local first
        t.it('seeds', function()
            t.seed(42)
            first = { said(), said() }
            t.check(first[1] ~= first[2], 'each call has another seed')
        end)
        t.it('again', function() t.seed(42) t.equal({ said(), said() }, first) end)
        t.it('mistake', function() t.error(function() t.advance(-1) end, 'forward only') t.error(function() t.clock('x') end, 'is no number') end)";
    let file = TestFile { name: "x_test.lua".into(), text: Ok(test.into()), policy: Ok(Source::shipped("x", policy)) };
    let report = run_tests(&[file], &Options::default());
    assert_eq!(report.exit_code(), 0, "{}", report.pretty());
    assert_eq!((report.passed, report.hidden_state), (6, 0), "{}", report.pretty());
}

#[test]
fn faults_are_told_apart_by_kind() {
    let report = run("t.it('kinds', function()
            local text, kind = t.error(function() policy.place(t.place { room = 'loop' }) end, { kind = 'fuel', message = 'safepoints' })
            t.equal(kind, 'fuel')
            t.error(function() policy.place(t.place { room = 'boom' }) end, { kind = 'error' })
            t.error(function() error('mine') end, { kind = 'error', message = 'mine' })
        end)
        t.it('another', function() t.error(function() policy.place(t.place { room = 'boom' }) end, { kind = 'fuel' }) end)
        t.it('unknown', function() t.error(function() end, { kind = 'fule' }) end)");
    let [good, other, unknown] = &report.tests[..] else { panic!("{report:?}") };
    assert_eq!(good.status, Status::Pass, "{good:?}");
    assert!(other.message.as_deref().unwrap().contains("expected a fault of the kind fuel, got error"), "{other:?}");
    assert!(unknown.message.as_deref().unwrap().contains("no fault is of the kind \"fule\""), "{unknown:?}");
}

#[test]
fn differences_are_named_by_their_paths() {
    check(
        "t.it('x', function() t.equal({ a = { 1, 2 }, b = { c = 'x', d = 4 } }, { a = { 1, 3 }, b = { c = 'y' } }) end)",
        Status::Fail,
        Some(1),
        "differs at .a[2]: expected 3, got 2\n     differs at .b.c: expected \"y\", got \"x\"\n     differs at .b.d: expected nil, got 4",
    );
}

/// What a script keeps in a variable of its own is reported, within a test and across tests; what it keeps in
/// `usher.counter` and `usher.set` is part of the contract.
#[test]
fn hidden_state_is_reported_with_what_differs() {
    let run_policy = |policy: &str, test: &str| {
        let text = format!("local t = usher.test local p = t.policy()\n{test}");
        let policy = Ok(Source::shipped("x", policy));
        run_tests(&[TestFile { name: "x_test.lua".into(), text: Ok(text.into()), policy }], &Options::default())
    };
    let hidden =
        "local n = 0 return { place = function(call) n += 1 return call.monoliths[1 + n % #call.monoliths] end }";
    let twice = "t.it('one', function() for _ = 1, 3 do p.place(t.place { monoliths = { { id = 'a' }, { id = 'b' } } }) end end)";
    let report = run_policy(hidden, twice);
    assert_eq!((report.passed, report.hidden_state, report.exit_code()), (1, 1, 0), "{}", report.pretty());
    let what = report.tests[0].hidden_state.as_deref().unwrap();
    assert!(what.starts_with("a VM that has made other calls answers \"a\", a fresh one \"b\""), "{what}");
    assert!(what.contains("t.place { monoliths = ") && report.pretty().contains("  hidden state: one\n"), "{what}");
    let once = "local function one() p.place(t.place { monoliths = { { id = 'a' }, { id = 'b' } } }) end t.it('one', one) t.it('two', one)";
    let report = run_policy(hidden, once);
    let found: Vec<bool> = report.tests.iter().map(|test| test.hidden_state.is_some()).collect();
    assert_eq!(found, [false, true]);
    let kept = "return { place = function(call) local n = usher.counter('n')() usher.set('k', n) return call.monoliths[1 + n % #call.monoliths] end }";
    assert_eq!(run_policy(kept, twice).hidden_state, 0);
}

#[test]
fn coverage_counts_the_lines_of_all_vms() {
    let policy = "local p = {}
function p.place(call)
  if call.room.name == 'loop' then
    while true do end
  end
  if call.region == 'mars' then
    return nil
  end
  return call.monoliths[1]
end
return p";
    let test = "local t = usher.test local p = t.policy()
        t.it('x', function() p.place(t.place {}) t.error(function() p.place(t.place { room = 'loop' }) end) end)";
    let file = |test: &str| TestFile {
        name: "x_test.lua".into(),
        text: Ok(test.into()),
        policy: Ok(Source::shipped("x", policy)),
    };
    let limits = Limits { budget: Duration::from_secs(1), ..Limits::default() };
    let environment = Environment { limits, ..Environment::default() };
    let options = Options { coverage: true, environment, ..Options::default() };
    let report = run_tests(&[file(test)], &options);
    let coverage = report.coverage.as_ref().unwrap();
    assert_eq!(report.exit_code(), 0, "{}", report.pretty());
    // The endless loop ran in a VM that was thrown away.
    assert_eq!((coverage.files[0].file.as_str(), &coverage.files[0].missed[..]), ("policies/x.lua", &[(7, 7)][..]));
    assert!(report.pretty().contains("missed: 7\n") && coverage.lcov().contains("\nDA:7,0\n"), "{}", report.pretty());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["coverage"]["files"][0]["missed"], serde_json::json!([[7, 7]]));
    let unused = run_tests(&[file("usher.test.it('x', function() end)")], &options).coverage.unwrap();
    assert_eq!((unused.percent, unused.covered), (0.0, 0));
}

#[test]
fn files_run_side_by_side_and_are_reported_in_order() {
    let files: Vec<TestFile> = (0..12)
        .map(|n| TestFile {
            name: format!("{n}_test.lua"),
            ..file(&format!("t.it('{n}', function() for _ = 1, {} do policy.place(t.place {{ }}) end end)", 12 - n))
        })
        .collect();
    let names = |jobs| {
        let report = run_tests(&files, &Options { jobs, ..Options::default() });
        report.tests.into_iter().map(|test| (test.file, test.name, test.status)).collect::<Vec<_>>()
    };
    assert_eq!(names(4), names(1));
    assert_eq!(names(4)[11].0, "11_test.lua");
}
