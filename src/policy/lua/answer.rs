//! What a hook returned, understood or refused with a message that says what would have been right.

use std::time::Duration;

use mlua::{Table, Value};

use super::call::Said;
use crate::model::MonolithId;
use crate::model::policy::{Answer, Hook, Move, View};

/// The longest list that a hook may return.
const MAX_LIST: usize = 10_000;

/// An answer, and whether it was a list: a test gets back what the script returned.
#[derive(Clone, Debug, PartialEq)]
pub struct Returned {
    /// The answer.
    pub answer: Answer,
    /// Whether the Monoliths came as a list.
    pub list: bool,
}

impl From<Answer> for Returned {
    fn from(answer: Answer) -> Self {
        Self { answer, list: false }
    }
}

/// Reads what a hook returned; the error is the end of a sentence that begins with policy and hook.
pub(super) fn parse(hook: Hook, said: &Said, view: &View) -> Result<Returned, String> {
    let row = |place: u32| view.rows().get(place as usize - 1).map(|row| row.id.clone());
    match said {
        Said::Row(at) => Ok(Answer::Ranked(row(*at).into_iter().collect()).into()),
        Said::Rows(first, second) => {
            let ids = std::iter::once(*first).chain(*second).filter_map(row);
            Ok(Returned { answer: Answer::Ranked(ids.collect()), list: true })
        }
        Said::Value(value) => parse_value(hook, value, view),
    }
}

fn parse_value(hook: Hook, value: &Value, view: &View) -> Result<Returned, String> {
    let wrong = |what: String| Err(format!("returned {what}; return {}", right(hook)));
    match (hook, value) {
        (_, Value::Nil) => Ok(Answer::Default.into()),
        (Hook::Admit, Value::Boolean(true)) => Ok(Answer::Admit.into()),
        (Hook::Place | Hook::Route, Value::String(id)) => Ok(Answer::Ranked(vec![known(&id.as_bytes(), view)]).into()),
        (_, Value::Table(table)) => parse_table(hook, table, view).or_else(wrong),
        (_, other) => wrong(describe(other)),
    }
}

fn parse_table(hook: Hook, table: &Table, view: &View) -> Result<Returned, String> {
    let field = |name: &str| table.raw_get::<Value>(name).unwrap_or(Value::Nil);
    let length = table.raw_len();
    // What begins as a list is one: asking each for fields that it does not have costs as much as reading it.
    if length == 0 {
        let names = matches!(hook, Hook::Place | Hook::Route);
        if let (true, Value::String(id)) = (names, field("id")) {
            return Ok(Answer::Ranked(vec![known(&id.as_bytes(), view)]).into());
        }
        if let Some(code) = whole(&field("reject")) {
            return reject(hook, code, &field("reason")).map(Returned::from);
        }
        if let Value::Number(seconds) = field("hold").into_number() {
            return hold(hook, seconds).map(Returned::from);
        }
    }
    if hook == Hook::Admit {
        return Err("a table".into());
    }
    if length > MAX_LIST {
        return Err(format!("a list of {length} items"));
    }
    if length == 0 && !table.is_empty() {
        return Err("a table that is no Monolith and no list".into());
    }
    let items = (1..=length).map(|at| (at, table.raw_get::<Value>(at).unwrap_or(Value::Nil)));
    match hook {
        Hook::Admit | Hook::Place | Hook::Route => {
            let ids = items.map(|(at, item)| {
                monolith(&item, view).ok_or_else(|| format!("a list whose item {at} is {}", describe(&item)))
            });
            Ok(Returned { answer: Answer::Ranked(ids.collect::<Result<_, _>>()?), list: true })
        }
        Hook::Rebalance => {
            let moves = items.map(|(at, item)| {
                one_move(&item).ok_or_else(|| format!("a list whose item {at} is {}", describe(&item)))
            });
            Ok(Returned { answer: Answer::Moves(moves.collect::<Result<_, _>>()?), list: true })
        }
    }
}

fn right(hook: Hook) -> &'static str {
    match hook {
        Hook::Admit => "true, nil, usher.reject(...) or usher.hold(...)",
        Hook::Place | Hook::Route => "a monolith, its id, a ranked list, usher.reject(...) or nil",
        Hook::Rebalance => "a list of usher.move(room, monolith) or nil",
    }
}

fn reject(hook: Hook, code: u16, reason: &Value) -> Result<Answer, String> {
    let allowed = match (hook, code) {
        (Hook::Rebalance, _) => false,
        (_, 400..=599) => true,
        (Hook::Admit | Hook::Place, 1013 | 4000..=4999) => true,
        _ => false,
    };
    if !allowed {
        return Err(format!("usher.reject({code}), which {hook} cannot answer with"));
    }
    let reason = reason.as_string().map(|text| text.to_string_lossy()).unwrap_or_default();
    Ok(Answer::Reject { code, reason: reason.chars().take(120).collect() })
}

fn hold(hook: Hook, seconds: f64) -> Result<Answer, String> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(delay) if hook == Hook::Admit && !delay.is_zero() => Ok(Answer::Hold { delay }),
        Ok(_) if hook != Hook::Admit => Err(format!("usher.hold(...), which {hook} cannot answer with")),
        _ => Err(format!("a hold of {seconds} s")),
    }
}

fn monolith(value: &Value, view: &View) -> Option<MonolithId> {
    match value {
        Value::String(id) => Some(known(&id.as_bytes(), view)),
        Value::Table(table) => match table.raw_get("id") {
            Ok(Value::String(id)) => Some(known(&id.as_bytes(), view)),
            _ => None,
        },
        _ => None,
    }
}

/// The view's own id where there is one, which costs no allocation; whether it may be chosen is checked later.
fn known(id: &[u8], view: &View) -> MonolithId {
    match view.rows().binary_search_by(|row| row.id.as_str().as_bytes().cmp(id)) {
        Ok(at) => view.rows()[at].id.clone(),
        Err(_) => MonolithId::new(String::from_utf8_lossy(id)),
    }
}

fn one_move(value: &Value) -> Option<Move> {
    let table = value.as_table()?;
    let text = |name: &str| match table.raw_get(name) {
        Ok(Value::String(text)) => Some(text.to_string_lossy()),
        _ => None,
    };
    Some(Move { room: text("room")?, to: MonolithId::new(text("to")?) })
}

fn whole(value: &Value) -> Option<u16> {
    match value {
        Value::Integer(code) => u16::try_from(*code).ok(),
        Value::Number(code) if code.fract() == 0.0 && (0.0..=65_535.0).contains(code) => Some(*code as u16),
        _ => None,
    }
}

/// Integers are numbers too.
trait IntoNumber {
    fn into_number(self) -> Value;
}

impl IntoNumber for Value {
    fn into_number(self) -> Value {
        match self {
            Value::Integer(value) => Value::Number(value as f64),
            other => other,
        }
    }
}

/// The type of a value as scripts know it: whole numbers are numbers.
pub(super) fn type_of(value: &Value) -> &'static str {
    if value.is_integer() { "number" } else { value.type_name() }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Nil => "nil".into(),
        Value::Boolean(value) => value.to_string(),
        Value::Integer(value) => format!("number {value}"),
        Value::Number(value) => format!("number {value}").to_lowercase(),
        Value::String(text) => {
            let text: String = text.to_string_lossy().chars().take(40).collect();
            format!("string {text:?}")
        }
        Value::Table(_) => "a table that is no Monolith".into(),
        other => format!("a {}", other.type_name()),
    }
}
