//! `usher monolith drain` and `resume`: a Monolith that is to lose its rooms, and how far it is.

use std::time::Duration;

use http::Method;
use serde_json::Value;

use super::output::complain;
use super::steer::{AdminArgs, ask, print_json, report};
use super::{BAD, GOOD};

/// How often a drain that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(500);

pub(super) fn begin(args: &AdminArgs, id: &str, wait: bool) -> u8 {
    let path = format!("/_usher/v1/monoliths/{id}/drain");
    let mut monolith = Value::Null;
    let code = report(args, ask(args, Method::POST, &path, None), |answer| monolith = answer.clone());
    if code != GOOD {
        return code;
    }
    if !wait {
        print_json(&monolith);
        return GOOD;
    }
    let mut told = String::new();
    loop {
        let progress = in_words(&monolith["drain"]);
        if progress != told {
            complain!("{id}: {progress}");
            told = progress;
        }
        if monolith["drain"]["done"] == true || monolith["drain"].is_null() {
            print_json(&monolith);
            return if monolith["drain"]["rooms_left"] == 0 { GOOD } else { BAD };
        }
        std::thread::sleep(LOOK);
        let mut found = None;
        let code = report(args, ask(args, Method::GET, "/_usher/v1/monoliths", None), |document| {
            let mut monoliths = document["monoliths"].as_array().into_iter().flatten();
            found = monoliths.find(|monolith| monolith["id"] == id).cloned();
        });
        match found {
            _ if code != GOOD => return code,
            Some(now) => monolith = now,
            None => {
                complain!("{id}: no longer linked, so nothing is left on it");
                return GOOD;
            }
        }
    }
}

pub(super) fn resume(args: &AdminArgs, id: &str) -> u8 {
    let path = format!("/_usher/v1/monoliths/{id}/resume");
    report(args, ask(args, Method::POST, &path, None), print_json)
}

/// How far a drain is.
fn in_words(drain: &Value) -> String {
    if drain.is_null() {
        return "it was resumed meanwhile".into();
    }
    let mut text = format!(
        "{} rooms with {} clients left, {} rooms moved",
        drain["rooms_left"], drain["clients_left"], drain["moved"]
    );
    for (key, what) in [("lossy", "while somebody still talked"), ("skipped", "too young to move yet")] {
        if drain[key] != 0 {
            text.push_str(&format!(", {} {what}", drain[key]));
        }
    }
    match drain["waits_for"].as_str() {
        Some("answer") => text.push_str("; it does not answer, and goes on when it does"),
        Some("target") => text.push_str("; no other Monolith takes rooms, and it goes on when one does"),
        Some("turn") => text.push_str("; the rest may be another balancer's, and is left to it for a while"),
        Some(_) | None => {}
    }
    if drain["done"] == true {
        text.push_str("; done");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn progress_is_told_in_words() {
        let drain = json!({"rooms_left": 2, "clients_left": 9, "moved": 3, "lossy": 1, "skipped": 0, "done": false});
        assert_eq!(in_words(&drain), "2 rooms with 9 clients left, 3 rooms moved, 1 while somebody still talked");
        let done = json!({"rooms_left": 0, "clients_left": 0, "moved": 5, "lossy": 0, "skipped": 0, "done": true});
        assert_eq!(in_words(&done), "0 rooms with 0 clients left, 5 rooms moved; done");
        let mut stuck =
            json!({"rooms_left": 1, "clients_left": 1, "moved": 0, "lossy": 0, "skipped": 0, "done": false});
        assert_eq!(in_words(&stuck), "1 rooms with 1 clients left, 0 rooms moved");
        stuck["waits_for"] = "target".into();
        assert!(in_words(&stuck).ends_with("no other Monolith takes rooms, and it goes on when one does"));
        stuck["waits_for"] = "answer".into();
        assert!(in_words(&stuck).ends_with("it does not answer, and goes on when it does"));
        stuck["waits_for"] = "turn".into();
        assert!(in_words(&stuck).ends_with("the rest may be another balancer's, and is left to it for a while"));
        assert_eq!(in_words(&Value::Null), "it was resumed meanwhile");
    }
}
