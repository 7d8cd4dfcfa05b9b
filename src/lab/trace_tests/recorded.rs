//! Tests on recorded traffic: `t.trace`, `t.replay`, and what the test API promises of them.

use super::*;

/// A folder with a trace, a policy and its test.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(policy: &str, tape: &Tape) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("p.lua"), policy).unwrap();
        std::fs::write(folder.path().join("evening.trace.jsonl"), &tape.bytes).unwrap();
        Self { folder }
    }

    fn run(&self, test: &str) -> Report {
        self.run_within(test, Duration::from_secs(60))
    }

    fn run_within(&self, test: &str, time: Duration) -> Report {
        let path = self.folder.path().join("p_test.lua");
        std::fs::write(&path, format!("local t = usher.test\nlocal policy = t.policy()\n{test}")).unwrap();
        let limits = Limits { budget: Duration::from_secs(1), ..Limits::default() };
        let environment = Environment { limits, ..Environment::default() };
        let files = find_tests(&[path.display().to_string()]).unwrap();
        run_tests(&files, &Options { environment, time, ..Options::default() })
    }

    /// One test: its status, its line (counted from the first of `test`) and its message.
    fn check(&self, test: &str, status: Status, line: Option<u32>, message: &str) {
        let report = self.run(test);
        assert_eq!(report.tests.len(), 1, "{}", report.pretty());
        let result = &report.tests[0];
        assert_eq!((result.status, result.line), (status, line.map(|line| line + 2)), "{test}: {result:?}");
        assert!(result.message.as_deref().unwrap_or_default().contains(message), "{test}: {result:?}");
    }
}

const ROOMY: &str = "local p = {}
function p.place(call)
  return usher.min_by(call.monoliths, 'rooms')
end
return p";

fn rooms() -> Tape {
    let mut tape = Tape::new("p", "return { place = function(call) return 'e' end }", json!({}));
    for at in 0..6 {
        let region = ["cdg", "ewr"][at as usize % 2];
        tape.decide(at * 1_000_000, place(&format!("room-{at}"), region), fleet());
    }
    let (call, view) = drawn(Hook::Rebalance, 3);
    tape.decide(6_000_000, call, view);
    tape
}

#[test]
fn a_trace_is_a_test_of_every_decision() {
    let bench = Bench::new(ROOMY, &rooms());
    let report = bench.run(
        "local numbers = {}
        t.describe('evening', function()
            t.trace('evening.trace.jsonl', { hook = 'place' }, function(d)
                numbers[#numbers + 1] = d.number
                t.check(not d.choice.draining, 'never a draining one')
                t.equal({ d.hook, d.room, d.region }, { 'place', 'room-' .. d.number - 1, if d.number % 2 == 1 then 'cdg' else 'ewr' })
                t.equal(d.at, d.number - 1)
                t.equal({ d.choice, d.answer, d.recorded.choice, d.recorded.answer }, { 'c', 'c', 'e', 'e' })
                t.equal({ d.changed, d.fault, d.recorded.fault, d.recorded.bypassed }, { true, nil, nil, false })
                t.equal({ #d.call.monoliths, #d.call.all_monoliths, d.call.room.name }, { 2, 3, d.room })
                t.check(d.choice == d.call.monoliths[1] and d.recorded.choice == d.call.monoliths[2], 'rows of the call')
                t.check(table.isfrozen(d.call) and table.isfrozen(d.call.room))
                t.equal(policy.place(d.call), d.choice)
                t.error(function() return d.chosen end, 'a recorded decision has no chosen; it has number')
            end)
        end)
        t.it('all were shown', function() t.equal(numbers, { 1, 2, 3, 4, 5, 6 }) end)
        t.trace('evening.trace.jsonl', { name = 'named', room = 'ROOM-3' }, function(d) t.equal(d.number, 4) end)
        t.trace('evening.trace.jsonl', { room = '^room%-[12]$' }, function(d) t.check(d.number == 2 or d.number == 3) end)
        t.trace('evening.trace.jsonl', { region = 'ewr', from = 2, to = '4s' }, function(d) t.equal(d.number, 4) end)
        t.trace('evening.trace.jsonl', { from = '2023-11-14T22:13:21Z', limit = 1 }, function(d) t.equal(d.number, 2) end)
        t.trace('evening.trace.jsonl', { hook = 'rebalance' }, function(d) t.equal({ d.room, d.choice, d.changed }, { nil, nil, false }) end)",
    );
    assert_eq!((report.passed, report.exit_code()), (7, 0), "{}", report.pretty());
    assert_eq!(report.tests[0].name, "evening > evening.trace.jsonl");
    assert_eq!(report.tests[2].name, "named");
}

#[test]
fn a_decision_that_fails_is_named_with_the_way_to_print_it() {
    use Status::{Error, Fail, Pass};
    let bench = Bench::new(ROOMY, &rooms());
    let path = bench.folder.path().join("evening.trace.jsonl").display().to_string();
    let report = bench.run("t.trace('evening.trace.jsonl', function(d)\n  t.check(d.number < 3, 'third')\nend)");
    let result = &report.tests[0];
    assert_eq!((result.status, result.line), (Fail, Some(4)), "{result:?}");
    let said = format!("third\ndecision 3 of {path}; as a test: usher trace to-test {path} --decision 3");
    assert_eq!(result.message.as_deref(), Some(said.as_str()));
    assert!(result.call.as_deref().is_some_and(|call| call.starts_with("t.place {") && call.contains("room-2")));
    assert_eq!(result.answer.as_deref(), Some("\"c\""));
    for (test, status, line, message) in [
        (
            "t.trace('evening.trace.jsonl', function(d)\n local x = d.fault.x end)",
            Error,
            Some(2),
            "attempt to index nil",
        ),
        ("t.trace('evening.trace.jsonl', function(d) while true do end end)", Error, Some(1), "does it loop for ever?"),
        ("t.trace('missing.jsonl', function() end)", Error, None, "missing.jsonl: cannot be read"),
        ("t.trace('p.lua', function() end)", Error, None, "p.lua:1: is no trace"),
        ("t.trace('evening.trace.jsonl', { room = 'nowhere' }, function() end)", Error, None, "no decision of "),
        (
            "\nt.trace('evening.trace.jsonl', { rooms = 'x' }, function() end)",
            Error,
            Some(2),
            "no selector is called \"rooms\"",
        ),
        ("t.trace('evening.trace.jsonl', { hook = 'plac' }, function() end)", Error, Some(1), "is no hook"),
        ("t.trace('evening.trace.jsonl', { from = 'soon' }, function() end)", Error, Some(1), "is no moment"),
        ("t.trace('evening.trace.jsonl', { limit = 0 }, function() end)", Error, Some(1), "at least 1"),
        ("t.trace('evening.trace.jsonl', { room = '[' }, function() end)", Error, None, "room: "),
        ("t.trace('evening.trace.jsonl')", Error, Some(1), "give a trace file, perhaps selectors"),
        (
            "t.it('x', function() t.trace('evening.trace.jsonl', function() end) end)",
            Fail,
            Some(1),
            "inside another test",
        ),
        (
            "local kept t.trace('evening.trace.jsonl', { limit = 2 }, function(d) if kept then t.error(function() return kept.call end, 'is gone') end kept = d end)",
            Pass,
            None,
            "",
        ),
    ] {
        bench.check(test, status, line, message);
    }
    let late = bench.run_within(
        "t.trace('evening.trace.jsonl', function() local n = 0 while n < 1e5 do n += 1 end end)",
        Duration::from_millis(1),
    );
    let message = late.tests[0].message.as_deref().unwrap_or_default();
    assert!(message.contains("within the time of a test file") || message.contains("takes too long"), "{late:?}");
    let shipped = TestFile {
        name: "x_test.lua".into(),
        text: Ok("usher.test.trace('evening.trace.jsonl', function() end)".into()),
        policy: Ok(Source::shipped("x", ROOMY)),
    };
    let report = run_tests(&[shipped], &Options::default());
    assert!(report.tests[0].message.as_deref().unwrap().contains("a shipped policy has no folder"), "{report:?}");
}

#[test]
fn a_replay_counts_agreement() {
    let bench = Bench::new(ROOMY, &rooms());
    let report = bench.run(
        "t.it('counts', function()
            local r = t.replay('evening.trace.jsonl')
            t.equal({ r.decisions, r.agreed, r.changed, r.faults, r.passed_over, r.missing }, { 7, 1, 6, 0, 0, 0 })
            t.check(math.abs(r.agreement - 1 / 7) < 1e-9)
            t.equal(r.placed, { c = 6 })
            local some = t.replay('evening.trace.jsonl', { hook = 'place', limit = 2 })
            t.equal({ some.decisions, some.agreement }, { 2, 0 })
            t.error(function() t.replay('evening.trace.jsonl', { room = 'nowhere' }) end, 'no decision of')
        end)
        t.check(t.replay('evening.trace.jsonl').faults == 0)",
    );
    assert_eq!((report.passed, report.exit_code()), (1, 0), "{}", report.pretty());
    let faulty = Bench::new("return { place = function(call) return call.nothing.id end }", &rooms());
    let report = faulty.run(
        "t.it('x', function() t.equal(t.replay('evening.trace.jsonl').faults, 6) end)
        t.trace('evening.trace.jsonl', { hook = 'place' }, function(d)
            t.check(d.changed and d.fault:find('p.lua:1', 1, true) and d.fault_kind == 'error' and d.answer == nil, d.fault)
            t.equal(d.choice, 'e')
        end)",
    );
    assert_eq!(report.exit_code(), 0, "{}", report.pretty());
}

/// The version that decided then reads what it read then; what it reads is its own where it is another one.
#[test]
fn the_recorded_version_decides_as_it_did() {
    for (name, text) in SHIPPED.iter().map(|policy| (policy.name, policy.text)) {
        let mut tape = Tape::new(name, text, json!({}));
        for at in 0..24 {
            let (call, view) = drawn(Hook::ALL[at as usize % 4], at);
            tape.decide(at * 1000, call, view);
        }
        let report = Bench::new(text, &tape).run(
            "t.it('x', function()
                local r = t.replay('evening.trace.jsonl')
                t.equal({ r.decisions, r.agreed }, { 24, 24 })
            end)",
        );
        assert_eq!(report.exit_code(), 0, "{name}: {}", report.pretty());
    }
    let counting = "return { place = function(call)
  return call.monoliths[1 + (usher.counter('n')() + usher.settings.first) % #call.monoliths]
end }";
    let mut tape = Tape::new("p", counting, json!({"first": 1}));
    (0..3).for_each(|_| drop(tape.vm.call_returned(&place("before", "cdg"), &fleet()).unwrap()));
    (0..5).for_each(|t| tape.decide(t, place("a", "cdg"), fleet()));
    let agreed = |policy: &str, selectors: &str| {
        let bench = Bench::new(policy, &tape);
        let test = format!(
            "t.it('x', function() t.check(t.replay('evening.trace.jsonl', {selectors}).agreed == 5, 'other') end)"
        );
        bench.run(&test).exit_code()
    };
    assert_eq!(agreed(counting, "{}"), 0);
    assert_eq!(agreed(&format!("{counting}\n"), "{}"), 1, "a counter of its own begins with nothing");
    assert_eq!(agreed(counting, "{ settings = { first = 2 } }"), 1);
}

#[test]
fn lines_that_run_on_recorded_decisions_are_covered() {
    let bench = Bench::new("return {\n  place = function(call)\n    return 'e'\n  end,\n}", &rooms());
    std::fs::write(
        bench.folder.path().join("p_test.lua"),
        "usher.test.trace('evening.trace.jsonl', { hook = 'place' }, function(d) usher.test.check(not d.changed) end)",
    )
    .unwrap();
    let files = find_tests(&[bench.folder.path().display().to_string()]).unwrap();
    let report = run_tests(&files, &Options { coverage: true, ..Options::default() });
    assert_eq!((report.exit_code(), report.coverage.as_ref().unwrap().percent), (0, 100.0), "{}", report.pretty());
}

#[test]
fn a_policy_may_begin_with_what_it_has_counted_and_kept() {
    let policy =
        "return { place = function(call) return call.monoliths[usher.counter('n')() - (usher.get('k') or 0)] end }";
    let bench = Bench::new(policy, &rooms());
    let report = bench.run(
        "t.it('begins', function()
            local later = t.policy(nil, { counters = { n = 7 }, values = { k = 6 } })
            t.equal(later.place(t.place { monoliths = { { id = 'a' }, { id = 'b' } } }), 'b')
            t.equal(policy.place(t.place { monoliths = { { id = 'a' }, { id = 'b' } } }), 'a')
        end)
        t.it('mistakes', function()
            t.error(function() t.policy({}, { counter = {} }) end, 'did you mean \"counters\"')
            t.error(function() t.policy({}, { counters = { n = -1 } }) end, 'is no whole number')
        end)",
    );
    assert_eq!(report.exit_code(), 0, "{}", report.pretty());
}

/// The fields of a table type of `usher.d.luau`: those of a declaration stand alone at the beginning of a line.
fn declared(name: &str) -> std::collections::BTreeSet<String> {
    let text = crate::policy::shipped::DEFINITIONS;
    let start = format!("export type {name} = {{\n");
    let at = text.find(&start).unwrap_or_else(|| panic!("{name} is not declared")) + start.len();
    let body = text[at..].split("\n}").next().unwrap();
    let fields = body.lines().filter_map(|line| line.strip_prefix("    ")?.split_once(':'));
    let plain = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    fields.map(|(name, _)| name.to_owned()).filter(|name| plain(name)).collect()
}

#[test]
fn the_declared_test_api_is_the_one_there_is() {
    let listed = |names: std::collections::BTreeSet<String>| {
        names.iter().map(|name| format!("[{name:?}] = true")).collect::<Vec<_>>().join(", ")
    };
    let bench = Bench::new(ROOMY, &rooms());
    let report = bench.run(&format!(
        "t.it('api', function()
            local declared = {{ {} }}
            for name in t do t.check(declared[name], name .. ' is not declared') end
            for name in declared do t.check(t[name] ~= nil, name .. ' does not exist') end
        end)
        t.trace('evening.trace.jsonl', function(d)
            for name in {{ {} }} do local _ = d[name] end
            for name in d do t.check(({{ {} }})[name], name .. ' is not declared') end
            for name in d.recorded do t.check(({{ {} }})[name], 'recorded ' .. name .. ' is not declared') end
        end)
        t.it('sums', function()
            local declared, sums = {{ {} }}, t.replay('evening.trace.jsonl')
            for name in sums do t.check(declared[name], name .. ' is not declared') end
            for name in declared do t.check(sums[name] ~= nil, name .. ' does not exist') end
        end)",
        listed(declared("TestApi")),
        listed(declared("Recorded")),
        listed(declared("Recorded")),
        listed(declared("RecordedThen")),
        listed(declared("Replayed")),
    ));
    assert_eq!(report.exit_code(), 0, "{}", report.pretty());
    for (name, options) in [("PropertyOptions", &property::OPTIONS[..]), ("Selectors", &redecide::SELECTORS[..])] {
        let options: std::collections::BTreeSet<String> = options.iter().map(ToString::to_string).collect();
        assert_eq!(declared(name), options, "{name}");
    }
}

/// The guide speaks of an evening that is longer than twenty minutes.
#[test]
fn what_the_guide_says_about_recorded_traffic_runs() {
    let guide = include_str!("../../../policies/README.md");
    let blocks: Vec<&str> = guide.split("```luau\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(blocks.len(), 2);
    let policy = "return { place = function(call)
  local near = usher.in_region(call.monoliths, call.client.region)
  return usher.min_by(if #near > 0 then near else call.monoliths, 'rooms')
end }";
    let mut tape = Tape::new("p", policy, json!({}));
    (0..25)
        .for_each(|at| tape.decide(at * 60_000_000, place("movie", ["cdg", "ewr", "syd"][at as usize % 3]), fleet()));
    let report = Bench::new(policy, &tape).run(&blocks.concat());
    assert_eq!((report.passed, report.exit_code()), (3, 0), "{}", report.pretty());
}

#[test]
fn a_file_whose_memory_ran_out_goes_on() {
    let bench = Bench::new(ROOMY, &rooms());
    let report = bench.run(
        "t.it('greedy', function()\n local all = {} while true do all[#all + 1] = string.rep('x', 1e6) .. #all end end)
        t.it('later', function()\n t.equal({ string.rep('y', 1000) }, { 'z' }) end)",
    );
    let [greedy, later] = &report.tests[..] else { panic!("{report:?}") };
    assert_eq!(greedy.status, Status::Error);
    assert!(greedy.message.as_deref().unwrap().contains("more than 67108864 bytes of memory"), "{greedy:?}");
    assert_eq!((later.status, later.line), (Status::Fail, Some(6)), "{later:?}");
    assert!(later.message.as_deref().unwrap().starts_with("expected { \"z\" }"), "{later:?}");
}

#[test]
fn a_file_that_is_named_twice_runs_once() {
    let bench = Bench::new(ROOMY, &rooms());
    bench.run("t.it('x', function() end)");
    let path = |name: &str| bench.folder.path().join(name).display().to_string();
    let paths = [path("p_test.lua"), path("p.lua"), path("."), path("./p_test.lua")];
    assert_eq!(find_tests(&paths).unwrap().len(), 1);
    assert_eq!(find_tests(&["random".into(), "random".into()]).unwrap().len(), 1);
}
