//! The policies that are part of the binary, each with its test.

use std::path::Path;

use super::lua::{LoadError, Source};

/// One policy of the binary.
#[derive(Clone, Copy, Debug)]
pub struct Shipped {
    /// Its name.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
    /// The text of its test.
    pub test: &'static str,
}

macro_rules! shipped {
    ($name:literal) => {
        Shipped {
            name: $name,
            text: include_str!(concat!("../../policies/", $name, ".lua")),
            test: include_str!(concat!("../../policies/", $name, "_test.lua")),
        }
    };
}

/// Every shipped policy, the default first.
pub const SHIPPED: [Shipped; 10] = [
    shipped!("default"),
    shipped!("least-loaded"),
    shipped!("region-affinity"),
    shipped!("hash-ring"),
    shipped!("random"),
    shipped!("spill"),
    shipped!("slow-start"),
    shipped!("bounded-hash"),
    shipped!("capacity"),
    shipped!("follow-the-crowd"),
];

/// The types of the policy API, for editors.
pub const DEFINITIONS: &str = include_str!("../../policies/usher.d.luau");

/// The shipped policy of this name.
pub fn shipped(name: &str) -> Option<&'static Shipped> {
    SHIPPED.iter().find(|policy| policy.name == name)
}

/// The policy that a `P` of the command line or `policy.file` stands for: a shipped name, or else a path.
pub fn resolve(name_or_path: &str) -> Result<Source, LoadError> {
    if let Some(policy) = shipped(name_or_path) {
        return Ok(Source::shipped(policy.name, policy.text));
    }
    let path = Path::new(name_or_path);
    if path.components().count() == 1 && path.extension().is_none() && !path.exists() {
        let nearest = SHIPPED
            .iter()
            .map(|policy| (strsim::damerau_levenshtein(policy.name, name_or_path), policy.name))
            .min()
            .filter(|(distance, _)| *distance <= 3);
        let known: Vec<&str> = SHIPPED.iter().map(|policy| policy.name).collect();
        let hint = nearest.map_or_else(String::new, |(_, name)| format!("; did you mean {name:?}?"));
        let reason = format!("no shipped policy of this name and no such file{hint} (shipped: {})", known.join(", "));
        return Err(LoadError { file: name_or_path.into(), line: None, reason });
    }
    Source::read(path)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::model::policy::{Answer, Call, MonolithRow, View};
    use crate::policy::Policy;
    use crate::policy::lua::{Environment, Limits, Program, Vm};

    #[test]
    fn names_come_before_paths_and_mistakes_are_explained() {
        assert_eq!(resolve("random").unwrap().name, "random");
        let error = resolve("least-loadd").unwrap_err();
        assert!(error.reason.contains("did you mean \"least-loaded\"?"), "{error}");
        assert!(resolve("no/such/file.lua").unwrap_err().reason.contains("no such file"));
    }

    /// As many rooms as one call is shown, each of which wants to go elsewhere.
    #[test]
    fn rebalancing_a_full_fleet_keeps_within_the_limits() {
        let region = |number: usize| ["ewr", "cdg"][number % 2];
        let rooms: Vec<_> = (0..2000)
            .map(|number| {
                let (home, owner) = (region(number), format!("m{}", (number + 1) % 10));
                json!({"name": format!("room-{number:04}"), "owner": owner, "region": home, "clients": 9,
                    "regions": {home: 9}, "attempt": 1, "age_s": 600.0})
            })
            .collect();
        let call: Call = serde_json::from_value(json!({"hook": "rebalance", "region": "ewr", "rooms": rooms})).unwrap();
        let rows = (0..10).map(|number| MonolithRow {
            id: format!("m{number}").as_str().into(),
            region: region(number).into(),
            rooms: 200,
            clients: 1800,
            users: 1800,
            age_s: 600.0,
            ..MonolithRow::default()
        });
        let view = View::of(rows);
        // Without optimisation the fuel may take longer than the budget.
        let limits = Limits { budget: Duration::from_secs(1), ..Limits::default() };
        for policy in &SHIPPED {
            let source = Source::shipped(policy.name, policy.text);
            let program = Program::compile(source, &Environment { limits, ..Environment::default() }).unwrap();
            let mut vm = Vm::new(&program).unwrap();
            let answer = vm.call(&call, &view);
            assert!(answer.is_ok(), "{}: {answer:?}", policy.name);
            if policy.name == "follow-the-crowd" {
                assert!(matches!(answer, Ok(Answer::Moves(moves)) if !moves.is_empty()));
            }
        }
    }
}
