//! Calls and answers as Lua that can be pasted into a test.

use std::fmt::Write;

use serde_json::{Map, Value as Json, json};

use super::input;
use crate::model::policy::{Answer, Fault, Hook};
use crate::policy::lua::Returned;

/// The longest line of a literal before it is broken up.
const WIDTH: usize = 100;
/// Keys that are tried when a call is made short; beyond that it is shown as it is.
const MAX_TRIES: usize = 400;
/// Keys that follow from others which say the same more plainly: `clients`, `draining`.
const FOLLOW: [&str; 3] = ["regions", "state", "users"];
const KEYWORDS: [&str; 21] = [
    "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil", "not", "or",
    "repeat", "return", "then", "true", "until", "while",
];

/// A call as a test writes it: `t.place { ... }`, without what would be filled in anyway.
pub(super) fn call(hook: Hook, object: &Json) -> String {
    let short = shortened(hook, object);
    let mut text = format!("t.{hook} ");
    match short.as_object() {
        Some(map) if !map.is_empty() => table(&mut text, &short, 0),
        _ => text.push_str("{}"),
    }
    text
}

/// Plain data as a script would write it.
pub(super) fn value(json: &Json) -> String {
    nested(json, 0)
}

/// What a hook answered, as a script would write it.
pub(super) fn answer(returned: &Result<Returned, Fault>) -> String {
    let returned = match returned {
        Ok(returned) => returned,
        Err(fault) => return format!("a fault ({}): {}", fault.kind.label(), fault.message),
    };
    match &returned.answer {
        Answer::Default => "nil".into(),
        Answer::Admit => "true".into(),
        Answer::Ranked(ids) if !returned.list && ids.len() == 1 => quoted(ids[0].as_str()),
        Answer::Ranked(ids) => {
            let ids: Vec<String> = ids.iter().map(|id| quoted(id.as_str())).collect();
            format!("{{ {} }}", ids.join(", "))
        }
        Answer::Reject { code, reason } => format!("usher.reject({code}, {})", quoted(reason)),
        Answer::Hold { delay } => format!("usher.hold({})", delay.as_secs_f64()),
        Answer::Moves(moves) => {
            let moves: Vec<String> = (moves.iter())
                .map(|one| format!("usher.move({}, {})", quoted(&one.room), quoted(one.to.as_str())))
                .collect();
            format!("{{ {} }}", moves.join(", "))
        }
    }
}

/// The answer as JSON data: null, an id, a list of ids, true, `{"reject","reason"}`, `{"hold"}` in seconds, or a list
/// of `{"room","to"}`.
pub(super) fn answer_json(returned: &Returned) -> Json {
    match &returned.answer {
        Answer::Default => Json::Null,
        Answer::Admit => Json::Bool(true),
        Answer::Ranked(ids) if !returned.list && ids.len() == 1 => json!(ids[0]),
        Answer::Ranked(ids) => json!(ids),
        Answer::Reject { code, reason } => json!({"reject": code, "reason": reason}),
        Answer::Hold { delay } => json!({"hold": delay.as_secs_f64()}),
        Answer::Moves(moves) => json!(moves),
    }
}

/// The call without every part that reading it would fill in with the same value.
fn shortened(hook: Hook, object: &Json) -> Json {
    let meaning = |json: &Json| input::parse(Some(hook), json).ok().map(|(call, view)| (call, view.rows().to_vec()));
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.remove("hook");
        // A call as scripts see it lists those that serve a second time.
        if map.contains_key("all_monoliths") && map.contains_key("monoliths") {
            let without: Map<_, _> = map.iter().filter(|(key, _)| *key != "all_monoliths").map(copy).collect();
            let without = Json::Object(without);
            if meaning(&without) == meaning(&Json::Object(map.clone())) {
                map.remove("all_monoliths");
            }
        }
    }
    let Some(whole) = meaning(&object) else { return object };
    let mut paths = paths(&object);
    paths.sort_by_key(|path| !matches!(path.last(), Some(Step::Key(key)) if FOLLOW.contains(&key.as_str())));
    for path in paths.into_iter().take(MAX_TRIES) {
        let mut shorter = object.clone();
        remove(&mut shorter, &path);
        if meaning(&shorter).as_ref() == Some(&whole) {
            object = shorter;
        }
    }
    if let Some(room) = object.get_mut("room") {
        let name = room.as_object().filter(|map| map.len() == 1).and_then(|map| map.get("name")).cloned();
        if let Some(name) = name {
            *room = name;
        }
    }
    object
}

fn copy((key, value): (&String, &Json)) -> (String, Json) {
    (key.clone(), value.clone())
}

/// One step into a value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Key(String),
    At(usize),
}

/// The way to each key, the outer ones first.
pub(super) fn paths(json: &Json) -> Vec<Vec<Step>> {
    let mut found = Vec::new();
    let mut level = vec![(Vec::new(), json)];
    while !level.is_empty() {
        let mut next = Vec::new();
        for (path, value) in level {
            let below = |step| path.iter().cloned().chain([step]).collect::<Vec<Step>>();
            match value {
                Json::Object(map) => next.extend(map.iter().map(|(key, value)| (below(Step::Key(key.clone())), value))),
                Json::Array(items) => {
                    next.extend(items.iter().enumerate().map(|(at, item)| (below(Step::At(at)), item)))
                }
                _ => {}
            }
        }
        found.extend(
            next.iter().filter(|(path, _)| matches!(path.last(), Some(Step::Key(_)))).map(|(path, _)| path.clone()),
        );
        level = next;
    }
    found
}

/// What is at the end of a way.
pub(super) fn at<'a>(json: &'a mut Json, path: &[Step]) -> Option<&'a mut Json> {
    path.iter().try_fold(json, |json, step| match step {
        Step::Key(key) => json.get_mut(key),
        Step::At(at) => json.get_mut(at),
    })
}

/// Takes out what is at the end of a way.
pub(super) fn remove(json: &mut Json, path: &[Step]) {
    let Some((last, before)) = path.split_last() else { return };
    match (at(json, before), last) {
        (Some(Json::Object(map)), Step::Key(key)) => drop(map.remove(key)),
        (Some(Json::Array(items)), Step::At(at)) if *at < items.len() => drop(items.remove(*at)),
        _ => {}
    }
}

fn table(text: &mut String, json: &Json, depth: usize) {
    let items: Vec<String> = match json {
        Json::Object(map) => {
            map.iter().map(|(key, value)| format!("{} = {}", key_of(key), nested(value, depth + 1))).collect()
        }
        Json::Array(items) => items.iter().map(|value| nested(value, depth + 1)).collect(),
        _ => return text.push_str(&flat(json)),
    };
    let line = items.join(", ");
    if line.len() + 4 * depth <= WIDTH && !line.contains('\n') {
        let _ = write!(text, "{{ {line} }}");
        return;
    }
    text.push_str("{\n");
    for item in items {
        let _ = writeln!(text, "{}{item},", "  ".repeat(depth + 1));
    }
    let _ = write!(text, "{}}}", "  ".repeat(depth));
}

fn nested(json: &Json, depth: usize) -> String {
    match json {
        Json::Object(map) if map.is_empty() => "{}".into(),
        Json::Array(items) if items.is_empty() => "{}".into(),
        Json::Object(_) | Json::Array(_) => {
            let mut text = String::new();
            table(&mut text, json, depth);
            text
        }
        _ => flat(json),
    }
}

fn flat(json: &Json) -> String {
    match json {
        Json::Null => "nil".into(),
        Json::String(text) => quoted(text),
        other => other.to_string(),
    }
}

fn key_of(key: &str) -> String {
    let plain = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !KEYWORDS.contains(&key);
    if plain { key.into() } else { format!("[{}]", quoted(key)) }
}

pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            '\n' => out.push_str("\\n"),
            c if c.is_ascii_control() => {
                let _ = write!(out, "\\{:03}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_shown_without_what_is_filled_in() {
        let given = json!({"room": "movie", "region": "cdg", "monoliths": [
            {"id": "a", "rooms": 3}, {"id": "b", "region": "ewr", "draining": true, "load": {"end": 1.5}},
        ]});
        let (parsed, view) = input::parse(Some(Hook::Place), &given).unwrap();
        let text = call(Hook::Place, &input::object_of(&parsed, &view));
        let same = "t.place {\n  monoliths = { { id = \"a\", rooms = 3 }, { draining = true, id = \"b\", load = { [\"end\"] = 1.5 }, region = \"ewr\" } },\n  region = \"cdg\",\n  room = \"movie\",\n}";
        assert_eq!(text, same);
        assert_eq!(call(Hook::Route, &json!({"monoliths": []})), "t.route {}");
        assert_eq!(quoted("a\"\\\n\u{1}é"), "\"a\\\"\\\\\\n\\001é\"");
    }
}
