//! Recorded traffic in tests: `t.trace` shows each decision of a trace to a test, decided again by the policy beside it;
//! `t.replay` counts how often it decides as it was.

use mlua::{Function, Lua, Table, Value};

use super::{LIMITS, Session, give_back, row_of};
use crate::lab::report::{Status, TestResult};
use crate::lab::{input, literal, redecide};
use crate::model::MonolithId;
use crate::model::policy::{Answer, Fault};
use crate::policy::lua::surface::lock;
use crate::policy::lua::{Inspection, Returned, value};
use redecide::{Redecided, Redecider, Selectors};

/// What a trace and its selectors are turned into, or the mistake in them.
type Opened = Result<Redecider, String>;

impl Session {
    /// One test: a function of every selected decision. What is returned is a mistake in the selectors.
    pub(super) fn trace(
        &self,
        lua: &Lua,
        (name, file): (String, String),
        selectors: &Value,
        matches: Option<Function>,
        body: &Function,
    ) -> mlua::Result<Option<String>> {
        let selectors = match selected(selectors) {
            Ok(selectors) => selectors,
            Err(reason) => return Ok(Some(reason)),
        };
        if !self.wanted(&name)? {
            return Ok(None);
        }
        let (began, time) = self.begin();
        let mut result = TestResult::new(&self.file.name, &name, Status::Pass);
        let broken = |message| TestResult { status: Status::Error, message: Some(message), ..result.clone() };
        match self.open(&file, selectors) {
            Err(reason) => result = broken(reason),
            Ok(redecider) => {
                let path = redecider.path();
                *lock(&self.recorded) = Some(redecider);
                let mut seen = false;
                let found = loop {
                    let next = self.with_recorded(|recorded| {
                        let one = recorded.next(|room| fits(matches.as_ref(), room))?;
                        Ok(one.map(|one| (one.number, arguments(one))))
                    });
                    let (number, arguments) = match next {
                        Some(Ok(Some(one))) => one,
                        Some(Err(reason)) => break Some(broken(reason)),
                        None | Some(Ok(None)) if !seen => break Some(broken(nothing(&path))),
                        None | Some(Ok(None)) => break None,
                    };
                    seen = true;
                    let Some((status, line, message)) = self.attempt(lua, || body.call::<()>(arguments)) else {
                        continue;
                    };
                    let message = format!(
                        "{message}\ndecision {number} of {path}; as a test: usher trace to-test {path} --decision {number}"
                    );
                    let shown = self.with_recorded(|recorded| recorded.shown()).flatten();
                    let (call, answer) = shown.unzip();
                    break Some(TestResult { status, line, message: Some(message), call, answer, ..result.clone() });
                };
                result = found.unwrap_or(result);
            }
        }
        if let Some(recorded) = lock(&self.recorded).take() {
            lock(&self.traced).merge(&recorded.coverage());
        }
        self.end(time);
        lock(&self.results).push(TestResult { time: began.elapsed(), ..result });
        Ok(None)
    }

    /// How often the policy decides as it was recorded: a table, or why there is none.
    pub(super) fn replay(
        &self,
        lua: &Lua,
        file: &str,
        selectors: &Value,
        matches: Option<Function>,
    ) -> mlua::Result<Result<Table, String>> {
        let opened = selected(selectors).and_then(|selectors| self.open(file, selectors));
        let mut redecider = match opened {
            Ok(redecider) => redecider,
            Err(reason) => return Ok(Err(reason)),
        };
        let path = redecider.path();
        loop {
            match redecider.next(|room| fits(matches.as_ref(), room)) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(reason) => return Ok(Err(reason)),
            }
        }
        lock(&self.traced).merge(&redecider.coverage());
        if redecider.sums().decisions == 0 {
            return Ok(Err(nothing(&path)));
        }
        // What the decisions took is none of the test's own time. A loop of replays ends with the time of the file.
        self.host.meter.start(&LIMITS);
        let sums = serde_json::to_value(redecider.sums()).map_err(mlua::Error::external)?;
        match value::from_json_open(lua, &sums)? {
            Value::Table(table) => Ok(Ok(table)),
            _ => Err(mlua::Error::runtime("the sums are no table")),
        }
    }

    /// A part of the decision that `t.trace` shows just now.
    pub(super) fn recorded_part(
        &self,
        lua: &Lua,
        number: u64,
        part: &str,
        call: &Value,
    ) -> mlua::Result<Result<Value, String>> {
        let recorded = lock(&self.recorded);
        let Some((one, view)) = recorded.as_ref().and_then(Redecider::now).filter(|(one, _)| one.number == number)
        else {
            return Ok(Err(format!("{part} of decision {number} is gone; read it within the function of t.trace")));
        };
        let found = match part {
            "call" => value::from_json(lua, &input::seen_object_of(&one.call, view))?,
            "choice" => chosen(lua, one.decision.choices.first(), call)?,
            "answer" => match &one.returned {
                Ok(returned) => give_back(lua, returned, call)?,
                Err(_) => Value::Nil,
            },
            _ => Value::Table(recorded_table(lua, one, call)?),
        };
        Ok(Ok(found))
    }

    fn open(&self, file: &str, selectors: Selectors) -> Opened {
        let source = self.file.policy.clone()?;
        let inspection = if self.coverage { Inspection::Coverage } else { Inspection::None };
        let limits = (self.environment.limits.budget, self.until);
        Redecider::open(file, source, limits, inspection, selectors)
    }

    fn with_recorded<T>(&self, with: impl FnOnce(&mut Redecider) -> T) -> Option<T> {
        lock(&self.recorded).as_mut().map(with)
    }
}

fn selected(selectors: &Value) -> Result<Selectors, String> {
    value::to_json(selectors).and_then(|json| Selectors::read(&json))
}

fn nothing(path: &str) -> String {
    format!("no decision of {path} is selected; see what it has: usher trace info {path}")
}

/// Whether the pattern of a selector finds something in a room's name.
fn fits(matches: Option<&Function>, room: &str) -> Option<Result<bool, String>> {
    let matches = matches?;
    Some(matches.call(room).map_err(|e| format!("room: {}", crate::policy::lua::vm::message(&e))))
}

type Arguments = (u64, &'static str, Option<String>, String, f64, bool, Option<String>, Option<&'static str>);

/// What the function in `recorded.luau` takes.
fn arguments(one: &Redecided) -> Arguments {
    let room = one.call.room.as_ref().and_then(|room| room.name.as_deref()).map(str::to_owned);
    let fault = one.decision.fault.as_ref();
    let (message, kind) = (fault.map(|fault| fault.message.clone()), fault.map(|fault| fault.kind.label()));
    (one.number, one.call.hook.name(), room, one.region().to_string(), one.t as f64 / 1e6, one.changed, message, kind)
}

fn chosen(lua: &Lua, id: Option<&MonolithId>, call: &Value) -> mlua::Result<Value> {
    match id {
        None => Ok(Value::Nil),
        Some(id) => match row_of(call, id.as_str()) {
            Some(row) => Ok(Value::Table(row)),
            None => Ok(Value::String(lua.create_string(id.as_str())?)),
        },
    }
}

fn recorded_table(lua: &Lua, one: &Redecided, call: &Value) -> mlua::Result<Table> {
    let outcome = &one.outcome;
    let table = lua.create_table()?;
    // A trace does not say whether one Monolith came as a list.
    let list = matches!(&outcome.answer, Answer::Ranked(ids) if ids.len() != 1);
    table.raw_set("answer", give_back(lua, &Returned { answer: outcome.answer.clone(), list }, call)?)?;
    table.raw_set("choice", chosen(lua, outcome.choice.as_ref(), call)?)?;
    table.raw_set("policy", &*outcome.policy)?;
    table.raw_set("bypassed", outcome.bypassed)?;
    if let Some(Fault { kind, message }) = &outcome.fallback {
        table.raw_set("fault", message.as_str())?;
        table.raw_set("fault_kind", kind.label())?;
    }
    table.set_readonly(true);
    Ok(table)
}

impl Redecider {
    /// The call of the decision at hand and what is answered to it, as Lua.
    fn shown(&self) -> Option<(String, String)> {
        let (one, view) = self.now()?;
        let call = literal::call(one.call.hook, &input::object_of(&one.call, view));
        Some((call, literal::answer(&one.returned)))
    }
}
