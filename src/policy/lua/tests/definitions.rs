//! `usher.d.luau` says what scripts see: its types have the fields of the data that a call is made of, and no others.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::model::policy::{CallClient, CallRequest, CallRoom, Cause, Previous};
use crate::policy::shipped::DEFINITIONS;

/// The fields of a table type, by their names.
fn declared(name: &str) -> BTreeSet<String> {
    let start = format!("export type {name} = {{");
    let at = DEFINITIONS.find(&start).unwrap_or_else(|| panic!("{name} is not declared")) + start.len();
    let mut fields = BTreeSet::new();
    let (mut depth, mut field) = (0, String::new());
    for line in DEFINITIONS[at..].lines() {
        for part in line.split("--").next().unwrap_or_default().chars() {
            match part {
                '{' | '(' => depth += 1,
                '}' if depth == 0 => {
                    fields.extend(field_name(&field));
                    return fields;
                }
                '}' | ')' => depth -= 1,
                ',' if depth == 0 => fields.extend(field_name(&std::mem::take(&mut field))),
                _ if depth == 0 => field.push(part),
                _ => {}
            }
        }
    }
    panic!("the type {name} does not end");
}

fn field_name(field: &str) -> Option<String> {
    field.split_once(':').map(|(name, _)| name.trim().to_string())
}

fn keys(value: &serde_json::Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

fn full_room() -> CallRoom {
    CallRoom {
        name: Some("movie".into()),
        region: Some("cdg".into()),
        clients: 3,
        regions: [("cdg".into(), 2), ("ewr".into(), 1)].into(),
        metadata: Some(json!({"title": "x"})),
        previous: Some(Previous { monolith: "m9".into(), why: "timeout".into() }),
        attempt: 2,
        bound: true,
        owner: Some("m1".into()),
        age_s: Some(1.0),
    }
}

fn full_call() -> Call {
    let request = CallRequest {
        method: "GET".into(),
        path: "/".into(),
        host: Some("h".into()),
        region: Some("cdg".into()),
        headers: [("origin".into(), "o".into())].into(),
        query: [("q".into(), "1".into())].into(),
    };
    Call {
        room: Some(full_room()),
        client: Some(CallClient { region: Some("cdg".into()), reconnect: true, attempt: 1 }),
        cause: Some(Cause::Join),
        request: Some(request),
        ..call(Hook::Place)
    }
}

/// Sees a call with everything in it; the script's error is the difference.
fn seen(what: &str, names: &BTreeSet<String>) {
    let listed: Vec<String> = names.iter().map(|name| format!("[{name:?}] = true")).collect();
    let body = format!(
        "local declared, object = {{ {} }}, {what}
        for name in object do assert(declared[name], [[{what}: ]] .. name .. ' is not declared') end
        return 'm1'",
        listed.join(", ")
    );
    assert_eq!(place(&body).call(&full_call(), &view()), Ok(ids(&["m1"])));
}

#[test]
fn types_have_the_fields_of_the_data() {
    let call = full_call();
    let row = MonolithRow { load: [("lag".into(), 1.0)].into(), load_age_s: Some(1.0), ..row("m1", "ewr", 1) };
    for (name, data) in [
        ("Monolith", json!(row)),
        ("Room", json!(call.room)),
        ("Client", json!(call.client)),
        ("Request", json!(call.request)),
    ] {
        assert_eq!(declared(name), keys(&data), "{name}");
    }
}

#[test]
fn scripts_see_what_is_declared_and_nothing_else() {
    seen("call", &declared("Call"));
    seen("call.monoliths[1]", &declared("Monolith"));
    seen("call.room", &declared("Room"));
    seen("call.client", &declared("Client"));
    seen("call.request", &declared("Request"));
    seen("usher.reject(503)", &declared("Reject"));
    seen("usher.hold(1)", &declared("Hold"));
    seen("usher.move('a', 'b')", &declared("Move"));
    // Everything that a call of `place` holds, by name: what the table above cannot say is missing.
    let all = ["monoliths", "all_monoliths", "region", "cause", "room", "client", "request"];
    let listed: Vec<String> = all.iter().map(|name| format!("assert(call.{name} ~= nil, '{name}')")).collect();
    let fields = keys(&json!(full_room()));
    // How long a Monolith has had a room is for those that have one.
    let fields = fields.iter().filter(|name| *name != "age_s");
    let room: Vec<String> = fields.map(|name| format!("assert(call.room.{name} ~= nil, '{name}')")).collect();
    let body = format!("{} {} return 'm1'", listed.join(" "), room.join(" "));
    assert_eq!(place(&body).call(&full_call(), &view()), Ok(ids(&["m1"])));
}

#[test]
fn the_hooks_of_a_policy_are_declared() {
    let declared = declared("Policy");
    assert!(Hook::ALL.iter().all(|hook| declared.contains(hook.name())));
    assert_eq!(declared.len(), Hook::ALL.len() + 2, "name and api besides: {declared:?}");
}

#[test]
fn causes_and_states_are_those_of_the_data() {
    for cause in [Cause::Join, Cause::Create, Cause::Http, Cause::Move, Cause::Lost] {
        let name = serde_json::to_string(&cause).unwrap();
        assert!(DEFINITIONS.contains(&name), "{name} is no declared cause");
        let body = format!("assert(call.cause == {name}) return 'm1'");
        assert_eq!(place(&body).call(&Call { cause: Some(cause), ..full_call() }, &view()), Ok(ids(&["m1"])));
    }
}
