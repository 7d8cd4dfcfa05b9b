//! What can be said about a policy without running a balancer: does it compile, are its hooks what they should be, do
//! they survive a call, and does anything in it look like a mistake?

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::report::Status;
use super::subject::Subject;
use super::{input, lint, literal, property};
use crate::model::Region;
use crate::model::policy::{FaultKind, Hook};
use crate::policy::lua::inspect::Note;
use crate::policy::lua::{Environment, Inspection, LoadError, Program, SharedState, Source, Vm};
use crate::policy::{decide, smoke};

/// How long made-up calls of one hook are tried.
const TRIAL_TIME: Duration = Duration::from_secs(2);
/// Made-up calls after which a policy has to answer as it did before them.
const HIDDEN_STATE_CALLS: u64 = 32;

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

/// Everything that is wrong with a policy; empty if nothing is. Its functions see Monoliths that do not exist, in a few
/// calls as they come in practice, whose faults are errors, and in many made-up ones, whose faults are warnings.
pub fn check_policy(source: &Source, environment: &Environment) -> Vec<Problem> {
    let environment = &Environment { state: Arc::new(SharedState::default()), ..environment.clone() };
    let problem = |error| vec![Problem { error, warning: false }];
    let program = match Program::compile(source.clone(), environment) {
        Ok(program) => program,
        Err(error) => return problem(error),
    };
    let mut vm = match Vm::new(&program) {
        Ok(vm) => vm,
        Err(error) => return problem(error),
    };
    let warning = |error| Problem { error, warning: true };
    let mut problems = Vec::new();
    let mut warnings = static_warnings(source, &vm);
    let region = Region::from("local");
    let view = smoke::synthetic_view(&region);
    for call in smoke::calls(&region, 1_700_000_000_000_000) {
        let hook = call.hook;
        if let Err(error) = smoke::test(&program, &[(call, view.clone())]) {
            problems.push(Problem { error, warning: false });
        } else if vm.has(hook) {
            warnings.extend(made_up_calls(source, &mut vm, hook));
            warnings.extend(hidden_state(source, environment, hook));
        }
    }
    for error in unknown_fields(source, environment) {
        if !warnings.iter().any(|known: &LoadError| known.line == error.line && same_field(known, &error)) {
            warnings.push(error);
        }
    }
    warnings.sort_by_key(|warning| warning.line);
    problems.extend(warnings.into_iter().map(warning));
    problems
}

/// What the code shows without being run: cheap enough for every reload.
pub(super) fn static_warnings(source: &Source, vm: &Vm) -> Vec<LoadError> {
    let unknown = vm.unknown_functions().iter().map(|(name, line)| unknown_hook(source, name, *line));
    unknown.chain(lint::lint(source, vm)).collect()
}

fn unknown_hook(source: &Source, name: &str, line: Option<u32>) -> LoadError {
    let reason = match lint::nearest(name, Hook::ALL.into_iter().map(Hook::name)) {
        Some(hook) => format!("{name} is no hook and is never called; did you mean {hook}?"),
        None => {
            let known = Hook::ALL.map(Hook::name).join(", ");
            format!("{name} is no hook and is never called (hooks: {known}); make it a local function")
        }
    };
    source.problem(line, reason)
}

/// The smallest made-up call that the policy does not survive, if there is one.
fn made_up_calls(source: &Source, vm: &mut Vm, hook: Hook) -> Option<LoadError> {
    let options = property::Options::of(hook);
    let found = options.search(Instant::now() + TRIAL_TIME, |given| {
        let (call, view) = input::parse(Some(hook), given).ok()?;
        let fault = decide(vm, &call, &view).fault?;
        // CPU time says as much about this machine as about the policy.
        (fault.kind != FaultKind::CpuTime).then_some((Status::Error, None, fault.message))
    });
    let found = found.ok()??;
    let call = found.call.split_whitespace().collect::<Vec<_>>().join(" ");
    let message = found.message.lines().next().unwrap_or_default();
    let error = vm.program().refused(&format!("in a made-up call of {hook}: "), message);
    let line = error.line.or(vm.hook_lines()[hook as usize]);
    Some(LoadError {
        line,
        reason: format!("{}; the call: {call}", error.reason),
        ..source.problem(line, String::new())
    })
}

/// An answer that depends on calls that were made before, by other ways than `usher.set` and `usher.counter`.
fn hidden_state(source: &Source, environment: &Environment, hook: Hook) -> Option<LoadError> {
    let mut subject = Subject::new(source.clone(), environment, false).ok()?;
    let line = subject.vm().hook_lines()[hook as usize];
    for given in property::Options::of(hook).calls(HIDDEN_STATE_CALLS) {
        let Ok((call, view)) = input::parse(Some(hook), &given) else { continue };
        let called = subject.call(&call, &view);
        if let Some(fresh) = called.fresh {
            let answer = literal::answer(&called.result);
            let reason = format!(
                "{hook} answers {answer} after other calls and {fresh} in a fresh VM: a variable of the script outlives its call, and every VM has its own; keep it with usher.set or usher.counter"
            );
            return Some(source.problem(line, reason));
        }
    }
    None
}

/// Reads of fields that no call has, as made-up calls show them.
fn unknown_fields(source: &Source, environment: &Environment) -> Vec<LoadError> {
    let Ok(program) = Program::inspected(source.clone(), environment, Inspection::Fields) else { return Vec::new() };
    let Ok(mut vm) = Vm::new(&program) else { return Vec::new() };
    let mut found: Vec<LoadError> = Vec::new();
    for hook in Hook::ALL {
        if !vm.has(hook) {
            continue;
        }
        let mut calls: Vec<_> = smoke::calls(&Region::from("local"), 0)
            .into_iter()
            .filter(|call| call.hook == hook)
            .map(|call| (call, smoke::synthetic_view(&Region::from("local"))))
            .collect();
        calls.extend(property::Options::of(hook).calls(64).filter_map(|given| input::parse(Some(hook), &given).ok()));
        for (call, view) in calls {
            // Faults are the business of the calls that are made in an ordinary VM.
            let _ = vm.call_returned(&call, &view);
            for note in vm.take_notes() {
                let Note::Unknown { object, field, line } = note else { continue };
                let owner = if object == "call" { "call".into() } else { format!("a {object}") };
                let error = source.problem(line, lint::no_field(&owner, &object, &field));
                if !found.contains(&error) {
                    found.push(error);
                }
            }
        }
    }
    found
}

/// Whether two warnings are about the same field: `call.room has no x` and `a room has no x`.
fn same_field(a: &LoadError, b: &LoadError) -> bool {
    let field = |error: &LoadError| error.reason.split_once(" has no ").map(|(_, rest)| rest.to_owned());
    field(a).is_some() && field(a) == field(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::lua::Limits;

    fn check(text: &str) -> Vec<Problem> {
        // Without optimisation the fuel of a call may take longer than its budget.
        let limits = Limits { budget: Duration::from_secs(1), ..Limits::default() };
        check_policy(&Source::shipped("x", text), &Environment { limits, ..Environment::default() })
    }

    fn problems(text: &str) -> Vec<String> {
        check(text).iter().map(ToString::to_string).collect()
    }

    /// One warning at this line, with this in it.
    fn warns(text: &str, line: u32, reason: &str) {
        let found = check(text);
        assert!(found.iter().all(|problem| problem.warning), "{text}: {found:?}");
        let at = format!("policies/x.lua:{line}: ");
        assert!(
            found.iter().any(|p| p.to_string().starts_with(&at) && p.error.reason.contains(reason)),
            "{text}: {found:?}"
        );
        assert_eq!(found.len(), 1, "{text}: {found:?}");
    }

    #[test]
    fn every_problem_is_named_at_once() {
        assert_eq!(problems("return { place = function(call) return call.monoliths[1] end }"), [""; 0]);
        let found = check(
            "local p = {}\nfunction p.plac() end\nfunction p.route() return 7 end\nfunction p.admit()\n error('no') end\nreturn p",
        );
        let text: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found.iter().filter(|problem| !problem.warning).count(), 2, "{found:?}");
        assert!(text[0].starts_with("policies/x.lua:5: in a smoke call of admit: no"), "{text:?}");
        assert!(
            text[1].starts_with("policies/x.lua:3: ")
                && text[1].contains("returned number 7; return a monolith, its id"),
            "{text:?}"
        );
        assert!(
            text[2].starts_with("policies/x.lua:2: plac is no hook and is never called; did you mean place?"),
            "{text:?}"
        );
        assert!(problems("return {")[0].starts_with("policies/x.lua:1: "));
    }

    #[test]
    fn names_that_nobody_defined_are_found_also_where_nothing_runs() {
        let place = |body: &str| {
            format!(
                "local p = {{}}\nfunction p.place(call)\n  if call.region == 'mars' then\n    {body}\n  end\nend\nreturn p"
            )
        };
        for (body, reason) in [
            ("count = 1", "count is a global: it outlives the call"),
            ("return nearby(call)", "nothing is called nearby: it is nil"),
            ("return min_by(call.monoliths, 'rooms')", "did you mean usher.min_by?"),
            (
                "return usher.minby(call.monoliths, 'rooms')",
                "usher.minby does not exist: it is nil; did you mean usher.min_by?",
            ),
            ("return math.flor(2)", "did you mean math.floor?"),
            ("print(call)", "print is not there in a policy: usher.log(...)"),
            ("return os.time()", "usher.now() is the call's clock"),
            ("usher.test.it('x', function() end)", "usher.test is there in tests only"),
            ("return call.monolith[1]", "call has no monolith; did you mean monoliths?"),
            ("return call.room.owned", "call.room has no owned; did you mean owner?"),
        ] {
            warns(&place(body), 4, reason);
        }
        warns(
            "local p = {}\nfunction helper() end\nfunction p.place() helper() end\nreturn p",
            2,
            "helper is a global",
        );
    }

    #[test]
    fn fields_that_no_call_has_are_found_where_they_are_read() {
        warns(
            "local p = {}\nfunction p.place(call)\n  return usher.filter(call.monoliths, function(m)\n    return m.romms\n  end)\nend\nreturn p",
            4,
            "a monolith has no romms; did you mean rooms?",
        );
        warns(
            "local p = {}\nfunction p.place(call)\n  local c = call.room\n  return c and c.metdata\nend\nreturn p",
            4,
            "a room has no metdata; did you mean metadata?",
        );
        warns(
            "local p = {}\nfunction p.rebalance(call)\n  for _, r in call.rooms do\n    if r.clints then return {} end\n  end\nend\nreturn p",
            4,
            "a room has no clints; did you mean clients?",
        );
        // What may be nil is no mistake, and neither is data under names of its own.
        assert_eq!(
            problems(
                "return { place = function(call)\n local x = call.request or call.room.previous or call.room.metadata or call.all_monoliths[1].load.lag or call.room.regions.zzz\n return call.monoliths[1].load_age_s and nil\nend }"
            ),
            [""; 0]
        );
    }

    #[test]
    fn a_variable_that_outlives_its_call_is_found() {
        warns(
            "local n = 0\nlocal p = {}\nfunction p.place(call)\n  n += 1\n  return if n > 3 then call.monoliths[1] else nil\nend\nreturn p",
            3,
            "a variable of the script outlives its call",
        );
        let kept =
            "return { place = function(call) return if usher.counter('n')() > 3 then call.monoliths[1] else nil end }";
        assert_eq!(problems(kept), [""; 0]);
    }

    #[test]
    fn made_up_calls_show_what_smoke_calls_do_not() {
        warns(
            "local p = {}\nfunction p.place(call)\n  return #call.room.name > 3 and call.monoliths[1] or nil\nend\nreturn p",
            3,
            "in a made-up call of place: attempt to get length of a nil value; the call: t.place { monoliths = { { id = \"m1\" } }, room = {} }",
        );
        warns(
            "return {\n place = function()\n  return 'm99' end }",
            2,
            "place named \"m99\": no such monolith (known: m1)",
        );
    }
}
