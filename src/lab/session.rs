//! One test file at work: a VM of its own for the test's code, and the policy in a VM exactly like those that decide.

mod recorded;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mlua::{Function, Lua, Table, Value};
use regex::Regex;
use serde_json::Value as Json;

use super::generate::Random;
use super::redecide::Redecider;
use super::report::{Status, TestResult};
use super::runner::{Options, TestFile};
use super::subject::Subject;
use super::{input, literal, property};
use crate::model::policy::{Answer, Call, FaultKind, Hook, View};
use crate::policy::lua::inspect::Lines;
use crate::policy::lua::sandbox::{self, Sandbox};
use crate::policy::lua::surface::{Host, lock};
use crate::policy::lua::{Environment, Inspection, Limits, Returned, program, value, vm};

const TESTLIB: &str = include_str!("testlib.luau");
const RECORDED: &str = include_str!("recorded.luau");
/// What one test, or the code around the tests, may use.
const LIMITS: Limits = Limits { fuel: 2_000_000, budget: Duration::from_secs(5), memory: 64 << 20 };
const MAX_TESTS: usize = 10_000;
const MAX_POLICIES: usize = 64;

struct Session {
    file: TestFile,
    environment: Environment,
    filter: Option<Regex>,
    coverage: bool,
    until: Instant,
    policies: Mutex<Vec<Subject>>,
    results: Mutex<Vec<TestResult>>,
    /// What the running test has done so far.
    running: Mutex<Running>,
    /// Clock and seeds of the calls that do not say.
    virtual_time: Mutex<VirtualTime>,
    /// The trace that is shown to a test just now.
    recorded: Mutex<Option<Redecider>>,
    /// What the policy's lines have counted in decisions of traces.
    traced: Mutex<Lines>,
    host: Arc<Host>,
}

#[derive(Default)]
struct Running {
    /// Whether a test runs.
    active: bool,
    /// Whether a check did not hold; a script cannot take that back by catching the error.
    check_failed: bool,
    /// The last call, and what the policy answered.
    last: Option<(Hook, Json, String)>,
    hidden_state: Option<String>,
}

#[derive(Clone, Copy, Default)]
struct VirtualTime {
    now_s: Option<f64>,
    seeds: Option<u64>,
}

/// What one file came to.
pub(super) struct Outcome {
    /// Its tests; what goes wrong outside any test is a result without a name.
    pub(super) results: Vec<TestResult>,
    /// How often each line of the policy ran, if that was asked for.
    pub(super) lines: Option<Lines>,
}

/// Runs one file.
pub(super) fn run(file: &TestFile, options: &Options) -> Outcome {
    // Helpers that go by distance rank for the test as they do for the policy.
    let distances = options.environment.distances.clone();
    let host = Host::new("test", &Environment { limits: LIMITS, distances, ..Environment::default() });
    let session = Arc::new(Session {
        file: file.clone(),
        environment: options.environment.clone(),
        filter: options.filter.clone(),
        coverage: options.coverage,
        until: Instant::now() + options.time,
        policies: Mutex::default(),
        results: Mutex::default(),
        running: Mutex::default(),
        virtual_time: Mutex::default(),
        recorded: Mutex::default(),
        traced: Mutex::default(),
        host,
    });
    let ran = session.run();
    let mut results = std::mem::take(&mut *lock(&session.results));
    if let Err((line, message)) = ran {
        let result = TestResult { message: Some(message), line, ..TestResult::new(&file.name, "", Status::Error) };
        results.push(result);
    }
    Outcome { results, lines: options.coverage.then(|| session.lines()) }
}

type Broken = (Option<u32>, String);

impl Session {
    fn run(self: &Arc<Self>) -> Result<(), Broken> {
        let internal = |e: mlua::Error| (None, format!("the test's VM could not be built: {e}"));
        let compile = |file: &str, text| program::compile(file, text, Inspection::None).map_err(|e| (e.line, e.reason));
        let text = self.file.text.as_ref().map_err(|error| (error.line, error.reason.clone()))?;
        let bytecode = compile(&self.file.name, text)?;
        let library = compile("usher.test", TESTLIB)?;
        let recorded = compile("usher.test", RECORDED)?;
        let sandbox = Sandbox::new(&self.host, LIMITS.memory, |lua, usher| {
            let host = self.table(lua)?;
            let (test, path_of): (Table, Function) = sandbox::load(lua, "usher.test", &library)?.call(host.clone())?;
            sandbox::load(lua, "usher.test", &recorded)?.call::<()>((host, test.clone(), path_of))?;
            test.set_readonly(true);
            usher.raw_set("test", test)
        })
        .map_err(internal)?;
        let chunk = sandbox::load(&sandbox.lua, &self.file.name, &bytecode).map_err(internal)?;
        self.host.meter.start(&LIMITS);
        let ran = chunk.call::<()>(());
        self.outcome(ran.err())
    }

    /// The functions that `testlib.luau` gets as `host`.
    fn table(self: &Arc<Self>, lua: &Lua) -> mlua::Result<Table> {
        let table = lua.create_table()?;
        macro_rules! host {
            ($name:literal, |$session:ident, $lua:ident, $args:tt: $type:ty| $body:expr) => {{
                let session = self.clone();
                let function = lua.create_function(move |$lua, $args: $type| {
                    let $session = &session;
                    $body
                })?;
                table.raw_set($name, function)?;
            }};
        }
        host!("it", |session, lua, (name, body): (String, Function)| session.it(lua, name, || body.call::<()>(())));
        host!("property", |session, lua, (name, options, body): (String, Value, Function)| {
            let options = value::to_json(&options).and_then(|json| property::Options::read(&json));
            match options {
                Ok(options) => session.property(lua, name, &options, &body).map(|()| None),
                Err(reason) => Ok(Some(reason)),
            }
        });
        host!("failed", |session, _lua, (): ()| {
            lock(&session.running).check_failed = true;
            Ok(())
        });
        host!("build", |session, lua, (hook, given): (String, Value)| match session.build(&hook, &given) {
            Ok(call) => Ok((value::from_json_open(lua, &call)?, None)),
            Err(reason) => Ok((Value::Nil, Some(reason))),
        });
        host!("trace", |session, lua, args: (String, String, Value, Option<Function>, Function)| {
            let (name, file, selectors, matches, body) = args;
            session.trace(lua, (name, file), &selectors, matches, &body)
        });
        host!("replay", |session, lua, (file, selectors, matches): (String, Value, Option<Function>)| {
            session.replay(lua, &file, &selectors, matches).map(pair)
        });
        host!("recorded", |session, lua, (number, part, call): (u64, String, Value)| {
            session.recorded_part(lua, number, &part, &call).map(pair)
        });
        host!("policy", |session, _lua, (settings, state): (Value, Value)| {
            Ok(match session.policy(&settings, &state) {
                Ok(number) => (Some(number), None),
                Err(reason) => (None, Some(reason)),
            })
        });
        host!("call", |session, lua, (number, hook, call): (usize, String, Value)| {
            match session.call(number, &hook, &call) {
                Ok(returned) => Ok((true, give_back(lua, &returned, &call)?, 0, None)),
                // A mistake in the call is one of the test's line; a fault of the policy names its own.
                Err((level, reason, kind)) => {
                    Ok((false, Value::String(lua.create_string(reason)?), level, kind.map(FaultKind::label)))
                }
            }
        });
        host!("clock", |session, _lua, now_s: Option<f64>| {
            let mut time = lock(&session.virtual_time);
            time.now_s = now_s.or(time.now_s);
            Ok(time.now_s.unwrap_or(input::NOW_S))
        });
        host!("seed", |session, _lua, seed: f64| {
            lock(&session.virtual_time).seeds = Some(seed.to_bits());
            Ok(())
        });
        Ok(table)
    }

    /// Whether a test of this name is to run now; an error if there is no time left.
    fn wanted(&self, name: &str) -> mlua::Result<bool> {
        let mut running = lock(&self.running);
        if running.active {
            // Even if the error is caught: what the test around it has found so far would be lost.
            running.check_failed = true;
            return Err(mlua::Error::runtime(format!("test {name:?} inside another test; define it outside")));
        }
        drop(running);
        if self.filter.as_ref().is_some_and(|filter| !filter.is_match(name)) {
            return Ok(false);
        }
        if lock(&self.results).len() >= MAX_TESTS || Instant::now() > self.until {
            self.host.meter.fire(FaultKind::CpuTime);
            return Err(mlua::Error::runtime("the file takes too long"));
        }
        Ok(true)
    }

    fn it(&self, lua: &Lua, name: String, body: impl FnOnce() -> mlua::Result<()>) -> mlua::Result<()> {
        if !self.wanted(&name)? {
            return Ok(());
        }
        let (began, time) = self.begin();
        let failure = self.attempt(lua, body);
        let running = self.end(time);
        let (status, line, message) = match failure {
            None => (Status::Pass, None, None),
            Some((status, line, message)) => (status, line, Some(message)),
        };
        let (call, answer) = match running.last {
            Some((hook, call, answer)) if status != Status::Pass => (Some(literal::call(hook, &call)), Some(answer)),
            _ => (None, None),
        };
        let hidden_state = running.hidden_state;
        let result = TestResult {
            message,
            line,
            call,
            answer,
            hidden_state,
            time: began.elapsed(),
            ..TestResult::new(&self.file.name, &name, status)
        };
        lock(&self.results).push(result);
        Ok(())
    }

    fn property(&self, lua: &Lua, name: String, options: &property::Options, body: &Function) -> mlua::Result<()> {
        if !self.wanted(&name)? {
            return Ok(());
        }
        let (began, time) = self.begin();
        let mut answer = None;
        let found = options.search(self.until, |given| {
            *lock(&self.virtual_time) = time;
            let failure = self.attempt(lua, || {
                let (call, view) = input::parse(Some(options.hook()), given).map_err(mlua::Error::runtime)?;
                property::with_object(lua, body, &input::object_of(&call, &view))
            });
            if failure.is_some() {
                answer = lock(&self.running).last.take().map(|(_, _, answer)| answer);
            }
            failure
        });
        let hidden_state = self.end(time).hidden_state;
        let mut result = TestResult::new(&self.file.name, &name, Status::Pass);
        match found {
            Ok(None) => {}
            Ok(Some(found)) => {
                result = TestResult {
                    status: found.status,
                    message: Some(found.message),
                    line: found.line,
                    call: Some(found.call),
                    answer,
                    ..result
                };
            }
            Err(late) => result = TestResult { status: Status::Error, message: Some(late), ..result },
        }
        lock(&self.results).push(TestResult { hidden_state, time: began.elapsed(), ..result });
        Ok(())
    }

    fn begin(&self) -> (Instant, VirtualTime) {
        *lock(&self.running) = Running { active: true, ..Running::default() };
        lock(&self.policies).iter_mut().for_each(Subject::begin_test);
        (Instant::now(), *lock(&self.virtual_time))
    }

    /// What a test sets stays within it.
    fn end(&self, time: VirtualTime) -> Running {
        self.host.meter.start(&LIMITS);
        *lock(&self.virtual_time) = time;
        std::mem::take(&mut *lock(&self.running))
    }

    /// Runs the body of a test: nothing if it holds, else how it ended.
    fn attempt(&self, lua: &Lua, body: impl FnOnce() -> mlua::Result<()>) -> property::Attempt {
        lock(&self.running).check_failed = false;
        self.host.meter.start(&LIMITS);
        let broken = self.outcome(body().err()).err();
        // Luau collects nothing when an allocation fails: what comes later would find no memory even for its errors.
        if lua.used_memory() > LIMITS.memory / 2 {
            // A collection that fails changes nothing.
            let _ = lua.gc_collect();
        }
        let check_failed = lock(&self.running).check_failed;
        match (broken, check_failed) {
            (None, false) => None,
            (None, true) => Some((Status::Fail, None, "a check did not hold, and its error was caught".into())),
            (Some((line, message)), true) => Some((Status::Fail, line, message)),
            (Some((line, message)), false) => Some((Status::Error, line, message)),
        }
    }

    /// What a piece of test code came to: its error, or the limit that stopped it.
    fn outcome(&self, error: Option<mlua::Error>) -> Result<(), Broken> {
        let stopped = match self.host.meter.fired() {
            Some(FaultKind::Fuel) => Some(format!("more than {} safepoints: does it loop for ever?", LIMITS.fuel)),
            Some(FaultKind::CpuTime) => Some("it takes too long".to_owned()),
            Some(_) => Some(lock(&self.host.capped).clone()),
            None => None,
        };
        if let Some(what) = stopped {
            return Err((self.host.meter.line(), what));
        }
        let Some(error) = error else { return Ok(()) };
        if vm::out_of_memory(&error) {
            let line = vm::position(&self.file.name, &error.to_string());
            let line = line.and_then(|at| program::located(&self.file.name, &at).line);
            return Err((line, format!("more than {} bytes of memory", LIMITS.memory)));
        }
        let located = program::located(&self.file.name, &vm::message(&error));
        let traced = || {
            let at = vm::position(&self.file.name, &error.to_string())?;
            program::located(&self.file.name, &at).line
        };
        Err((located.line.or_else(traced), located.reason))
    }

    fn policy(&self, settings: &Value, state: &Value) -> Result<usize, String> {
        let source = self.file.policy.clone()?;
        let state = value::to_json(state).and_then(|json| input::state(&json)).map_err(|e| format!("t.policy: {e}"))?;
        let mut environment = Environment { state: state.into(), ..self.environment.clone() };
        match value::to_json(settings).map_err(|e| format!("t.policy: {e}"))? {
            Json::Null => {}
            Json::Object(map) => environment.settings = map,
            other => return Err(format!("t.policy: {other} is no table of settings")),
        }
        let mut policies = lock(&self.policies);
        if policies.len() >= MAX_POLICIES {
            return Err(format!("t.policy: a file may have {MAX_POLICIES} policies"));
        }
        policies.push(Subject::new(source, &environment, self.coverage).map_err(|e| e.to_string())?);
        Ok(policies.len() - 1)
    }

    /// The object of a call with everything filled in.
    fn build(&self, hook: &str, given: &Value) -> Result<Json, String> {
        let (_, call, view) = self.read(hook, given)?;
        Ok(input::object_of(&call, &view))
    }

    fn read(&self, hook: &str, given: &Value) -> Result<(Json, Call, View), String> {
        let mut given = value::to_json(given)?;
        if let Some(map) = given.as_object_mut() {
            let mut time = lock(&self.virtual_time);
            if let (Some(now_s), false) = (time.now_s, map.contains_key("now") || map.contains_key("now_us")) {
                map.insert("now".into(), Json::from(now_s));
            }
            if let (Some(seeds), false) = (time.seeds, map.contains_key("seed")) {
                let mut random = Random::new(seeds);
                // A script's numbers are exact up to 2^53, and a call is shown with its seed.
                map.insert("seed".into(), Json::from(random.next() >> 11));
                time.seeds = Some(random.state());
            }
        }
        let (call, view) = input::parse(hook_of(hook), &given)?;
        Ok((given, call, view))
    }

    /// One call of the policy; an error says at which level of the test's stack it is to be raised, and its kind.
    fn call(&self, number: usize, hook: &str, call: &Value) -> Result<Returned, (u8, String, Option<FaultKind>)> {
        let mistake = |reason: String| (2, format!("policy.{hook}: {reason}"), None);
        let (given, call, view) = self.read(hook, call).map_err(mistake)?;
        let mut policies = lock(&self.policies);
        let subject = policies.get_mut(number).ok_or_else(|| mistake("no such policy".into()))?;
        if !subject.vm().has(call.hook) {
            return Err(mistake("the policy has no such hook".into()));
        }
        let called = subject.call(&call, &view);
        let answer = literal::answer(&called.result);
        let mut running = lock(&self.running);
        if let (Some(fresh), None) = (called.fresh, &running.hidden_state) {
            let call = literal::call(call.hook, &given);
            running.hidden_state = Some(format!(
                "a VM that has made other calls answers {answer}, a fresh one {fresh}; a variable of the script outlives its call\n{call}"
            ));
        }
        running.last = Some((call.hook, given, answer));
        called.result.map_err(|fault| (0, fault.message, Some(fault.kind)))
    }

    /// How often the policy's lines ran; a policy that no test asked for has run none.
    fn lines(&self) -> Lines {
        let mut lines = Lines::default();
        let mut policies = lock(&self.policies);
        if let (true, Ok(source)) = (policies.is_empty(), &self.file.policy) {
            let unused = Subject::new(source.clone(), &self.environment, true).map(|subject| subject.coverage());
            lines.0.extend(unused.unwrap_or_default().0.into_keys().map(|line| (line, 0)));
        }
        policies.drain(..).for_each(|subject| lines.merge(&subject.coverage()));
        lines.merge(&lock(&self.traced));
        lines
    }
}

/// A value, or else a reason: what the Luau side gets as two results.
fn pair<T>(result: Result<T, String>) -> (Option<T>, Option<String>) {
    match result {
        Ok(value) => (Some(value), None),
        Err(reason) => (None, Some(reason)),
    }
}

fn hook_of(name: &str) -> Option<Hook> {
    Hook::ALL.into_iter().find(|hook| hook.name() == name)
}
/// The answer as the script gave it: Monoliths are those of the test's own call.
fn give_back(lua: &Lua, returned: &Returned, call: &Value) -> mlua::Result<Value> {
    Ok(match &returned.answer {
        Answer::Default => Value::Nil,
        Answer::Admit => Value::Boolean(true),
        Answer::Ranked(ids) => {
            let mut found = Vec::with_capacity(ids.len());
            for id in ids {
                found.push(match row_of(call, id.as_str()) {
                    Some(row) => Value::Table(row),
                    None => Value::String(lua.create_string(id.as_str())?),
                });
            }
            match found.pop() {
                Some(only) if !returned.list => only,
                last => Value::Table(lua.create_sequence_from(found.into_iter().chain(last))?),
            }
        }
        Answer::Reject { code, reason } => {
            let table = lua.create_table()?;
            table.raw_set("reject", *code)?;
            table.raw_set("reason", reason.as_str())?;
            Value::Table(table)
        }
        Answer::Hold { delay } => Value::Table(lua.create_table_from([("hold", delay.as_secs_f64())])?),
        Answer::Moves(moves) => {
            let moves =
                moves.iter().map(|one| lua.create_table_from([("room", one.room.as_str()), ("to", one.to.as_str())]));
            Value::Table(lua.create_sequence_from(moves.collect::<mlua::Result<Vec<_>>>()?)?)
        }
    })
}

fn row_of(call: &Value, id: &str) -> Option<Table> {
    let call = call.as_table()?;
    ["monoliths", "all_monoliths"].into_iter().find_map(|list| {
        let rows = call.raw_get::<Option<Table>>(list).ok()??;
        rows.sequence_values::<Table>().flatten().find(|row| row.raw_get::<String>("id").is_ok_and(|found| found == id))
    })
}
