//! One test file at work: a VM of its own for the test's code, and the policy in a VM exactly like those that decide.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mlua::{Function, Lua, Table, Value};
use regex::Regex;

use super::input;
use super::report::{Status, TestResult};
use super::runner::{Options, TestFile};
use crate::model::policy::{Answer, FaultKind, Hook};
use crate::policy::lua::sandbox::{self, Sandbox};
use crate::policy::lua::surface::{Host, lock};
use crate::policy::lua::{Environment, Limits, Program, Returned, SharedState, Vm, program, value, vm};

const TESTLIB: &str = include_str!("testlib.luau");
/// What one test, or the code around the tests, may use.
const LIMITS: Limits = Limits { fuel: 2_000_000, budget: Duration::from_secs(5), memory: 64 << 20 };
const MAX_TESTS: usize = 10_000;
const MAX_POLICIES: usize = 64;

struct Session {
    file: TestFile,
    environment: Environment,
    filter: Option<Regex>,
    until: Instant,
    policies: Mutex<Vec<Vm>>,
    results: Mutex<Vec<TestResult>>,
    /// Whether a check of the running test did not hold; a script cannot take that back by catching the error.
    check_failed: Mutex<bool>,
    host: Arc<Host>,
}

/// Runs one file. What goes wrong outside any test is a result without a name.
pub(super) fn run(file: &TestFile, options: &Options) -> Vec<TestResult> {
    // Helpers that go by distance rank for the test as they do for the policy.
    let distances = options.environment.distances.clone();
    let host = Host::new("test", &Environment { limits: LIMITS, distances, ..Environment::default() });
    let session = Arc::new(Session {
        file: file.clone(),
        environment: options.environment.clone(),
        filter: options.filter.clone(),
        until: Instant::now() + options.time,
        policies: Mutex::default(),
        results: Mutex::default(),
        check_failed: Mutex::default(),
        host,
    });
    let ran = session.run();
    let mut results = std::mem::take(&mut *lock(&session.results));
    if let Err((line, message)) = ran {
        let (file, name) = (session.file.name.clone(), String::new());
        results.push(TestResult { file, name, status: Status::Error, message: Some(message), line });
    }
    results
}

type Broken = (Option<u32>, String);

impl Session {
    fn run(self: &Arc<Self>) -> Result<(), Broken> {
        let internal = |e: mlua::Error| (None, format!("the test's VM could not be built: {e}"));
        let bytecode = program::compile(&self.file.name, &self.file.text).map_err(|e| (e.line, e.reason))?;
        let library = program::compile("usher.test", TESTLIB).map_err(|e| (e.line, e.reason))?;
        let sandbox = Sandbox::new(&self.host, LIMITS.memory, |lua, usher| {
            let test: Table = sandbox::load(lua, "usher.test", &library)?.call(self.table(lua)?)?;
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
        let session = self.clone();
        table
            .raw_set("it", lua.create_function(move |_, (name, body): (String, Function)| session.it(name, &body))?)?;
        let session = self.clone();
        let failed = move |_: &Lua, (): ()| {
            *lock(&session.check_failed) = true;
            Ok(())
        };
        table.raw_set("failed", lua.create_function(failed)?)?;
        let build = |lua: &Lua, (hook, given): (String, Value)| match build(&hook, &given) {
            Ok(call) => Ok((value::from_json_open(lua, &call)?, None)),
            Err(reason) => Ok((Value::Nil, Some(reason))),
        };
        table.raw_set("build", lua.create_function(build)?)?;
        let session = self.clone();
        let policy = move |_: &Lua, settings: Value| {
            Ok(match session.policy(&settings) {
                Ok(number) => (Some(number), None),
                Err(reason) => (None, Some(reason)),
            })
        };
        table.raw_set("policy", lua.create_function(policy)?)?;
        let session = self.clone();
        let call =
            move |lua: &Lua, (number, hook, call): (usize, String, Value)| match session.call(number, &hook, &call) {
                Ok(returned) => Ok((true, give_back(lua, &returned, &call)?, 0)),
                // A mistake in the call is one of the test's line; a fault of the policy names its own.
                Err((level, reason)) => Ok((false, Value::String(lua.create_string(reason)?), level)),
            };
        table.raw_set("call", lua.create_function(call)?)?;
        Ok(table)
    }

    fn it(&self, name: String, body: &Function) -> mlua::Result<()> {
        if self.filter.as_ref().is_some_and(|filter| !filter.is_match(&name)) {
            return Ok(());
        }
        if lock(&self.results).len() >= MAX_TESTS || Instant::now() > self.until {
            self.host.meter.fire(FaultKind::CpuTime);
            return Err(mlua::Error::runtime("the file takes too long"));
        }
        *lock(&self.check_failed) = false;
        self.host.meter.start(&LIMITS);
        let broken = self.outcome(body.call::<()>(()).err()).err();
        self.host.meter.start(&LIMITS);
        let (status, line, message) = match (broken, *lock(&self.check_failed)) {
            (None, false) => (Status::Pass, None, None),
            (None, true) => (Status::Fail, None, Some("a check did not hold, and its error was caught".into())),
            (Some((line, message)), true) => (Status::Fail, line, Some(message)),
            (Some((line, message)), false) => (Status::Error, line, Some(message)),
        };
        lock(&self.results).push(TestResult { file: self.file.name.clone(), name, status, message, line });
        Ok(())
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
        let located = program::located(&self.file.name, &vm::message(&error));
        let traced = || {
            let at = vm::position(&self.file.name, &error.to_string())?;
            program::located(&self.file.name, &at).line
        };
        Err((located.line.or_else(traced), located.reason))
    }

    fn policy(&self, settings: &Value) -> Result<usize, String> {
        let source = self.file.policy.clone()?;
        let mut environment = Environment { state: SharedState::default().into(), ..self.environment.clone() };
        match value::to_json(settings).map_err(|e| format!("t.policy: {e}"))? {
            serde_json::Value::Null => {}
            serde_json::Value::Object(map) => environment.settings = map,
            other => return Err(format!("t.policy: {other} is no table of settings")),
        }
        let program = Program::compile(source, &environment).map_err(|e| e.to_string())?;
        let vm = Vm::new(&program).map_err(|e| e.to_string())?;
        let mut policies = lock(&self.policies);
        if policies.len() >= MAX_POLICIES {
            return Err(format!("t.policy: a file may have {MAX_POLICIES} policies"));
        }
        policies.push(vm);
        Ok(policies.len() - 1)
    }

    /// One call of the policy; an error says at which level of the test's stack it is to be raised.
    fn call(&self, number: usize, hook: &str, call: &Value) -> Result<Returned, (u8, String)> {
        let mistake = |reason: String| (2, format!("policy.{hook}: {reason}"));
        let given = value::to_json(call).map_err(mistake)?;
        let (call, view) = input::parse(hook_of(hook), &given).map_err(mistake)?;
        let mut policies = lock(&self.policies);
        let vm = policies.get_mut(number).ok_or_else(|| mistake("no such policy".into()))?;
        if !vm.has(call.hook) {
            return Err(mistake("the policy has no such hook".into()));
        }
        vm.call_returned(&call, &view).map_err(|fault| (0, fault.message))
    }
}

fn build(hook: &str, given: &Value) -> Result<serde_json::Value, String> {
    let (call, view) = input::parse(hook_of(hook), &value::to_json(given)?)?;
    Ok(input::object_of(&call, &view))
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
