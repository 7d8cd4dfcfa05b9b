//! What can be said about a policy without running a balancer: does it compile, are its hooks what they should be, and
//! do they survive a call?

use std::fmt;

use crate::model::Region;
use crate::model::policy::Hook;
use crate::policy::lua::{Environment, LoadError, Program, Source, Vm};
use crate::policy::smoke;

/// One thing that is wrong with a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What and where.
    pub error: LoadError,
    /// Whether the policy works all the same.
    pub warning: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

/// Everything that is wrong with a policy; empty if nothing is. Its functions see three Monoliths that do not exist.
pub fn check_policy(source: &Source, environment: &Environment) -> Vec<Problem> {
    let problem = |error| vec![Problem { error, warning: false }];
    let program = match Program::compile(source.clone(), environment) {
        Ok(program) => program,
        Err(error) => return problem(error),
    };
    let vm = match Vm::new(&program) {
        Ok(vm) => vm,
        Err(error) => return problem(error),
    };
    let mut problems: Vec<Problem> = vm.unknown_functions().iter().map(|name| unknown_hook(source, name)).collect();
    let region = Region::from("local");
    let view = smoke::synthetic_view(&region);
    for call in smoke::calls(&region, 1_700_000_000_000_000) {
        if let Err(error) = smoke::test(&program, &[(call, view.clone())]) {
            problems.push(Problem { error, warning: false });
        }
    }
    problems
}

fn unknown_hook(source: &Source, name: &str) -> Problem {
    let nearest = Hook::ALL
        .into_iter()
        .map(|hook| (strsim::damerau_levenshtein(hook.name(), name), hook))
        .min_by_key(|(d, _)| *d);
    let known = Hook::ALL.map(Hook::name).join(", ");
    let (reason, warning) = match nearest {
        Some((distance, hook)) if distance <= 2 => (format!("{name} is no hook; did you mean {hook}?"), false),
        _ => (format!("{name} is no hook and is never called (hooks: {known}); make it a local function"), true),
    };
    Problem { error: LoadError { file: source.file(), line: None, reason }, warning }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let found = check_policy(&Source::shipped("x", text), &Environment::default());
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_problem_is_named_at_once() {
        assert_eq!(problems("return { place = function(call) return call.monoliths[1] end }"), [""; 0]);
        let found = problems(
            "local p = {}\nfunction p.plac() end\nfunction p.route() return 7 end\nfunction p.admit()\n error('no') end\nreturn p",
        );
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("did you mean place?"));
        assert!(found[1].starts_with("policies/x.lua:5: in a smoke call of admit: no"), "{found:?}");
        assert!(found[2].contains("returned number 7; return a monolith, its id"));
        assert!(problems("return {")[0].starts_with("policies/x.lua:1: "));
    }
}
