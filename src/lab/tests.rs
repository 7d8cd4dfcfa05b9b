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
    TestFile { name: "x_test.lua".into(), text: text.into(), policy: Ok(Source::shipped("x", POLICY)) }
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
    let prepare = || versions::prepare(Source::read(&policy).unwrap(), &environment, &[], Some(&gate)).map(|_| ());
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
