//! What looks wrong in a policy's code, whether or not it runs: globals, names that nobody has defined, fields that no
//! call has. It reads the compiled code, in which the compiler has resolved every local variable.

use std::collections::BTreeSet;

use crate::policy::lua::bytecode::{self, Function, What};
use crate::policy::lua::inspect;
use crate::policy::lua::{LoadError, Source, Vm};

/// Names that other Lua programs have and policies do not, and what there is instead.
const ABSENT: [(&str, &str); 14] = [
    ("print", "usher.log(...) writes to the log"),
    ("os", "usher.now() is the call's clock"),
    ("io", "a policy sees its calls and usher.settings, no files"),
    ("require", "a policy is one file"),
    ("dofile", "a policy is one file"),
    ("loadfile", "a policy is one file"),
    ("load", "a policy compiles nothing"),
    ("loadstring", "a policy compiles nothing"),
    ("getfenv", "a policy has one environment"),
    ("setfenv", "a policy has one environment"),
    ("collectgarbage", "each call has its limits instead"),
    ("newproxy", "use a table"),
    ("debug", "usher.explain(...) says what a decision was made of"),
    ("coroutine", "a call runs to its end"),
];

/// Everything that looks wrong, in the order of the lines.
pub(super) fn lint(source: &Source, vm: &Vm) -> Vec<LoadError> {
    let Some(functions) = bytecode::functions(&source.text) else { return Vec::new() };
    let known = inspect::globals();
    let mut found = Findings { source, found: BTreeSet::new() };
    let touches = || functions.iter().flat_map(|function| &function.touches);
    let written: BTreeSet<&str> = touches()
        .filter_map(|touch| match &touch.what {
            What::SetGlobal(name) => Some(name.as_str()),
            _ => None,
        })
        .collect();
    for touch in touches() {
        match &touch.what {
            What::SetGlobal(name) => found.add(
                touch.line,
                format!(
                    "{name} is a global: it outlives the call, and every VM has its own; write \"local\" before it"
                ),
            ),
            What::Global(path) if !written.contains(path[0].as_str()) => {
                if let Some(what) = unknown_name(path, &known) {
                    found.add(touch.line, what);
                }
            }
            What::Global(_) | What::Field { .. } => {}
        }
    }
    for function in &functions {
        // Two functions that begin on one line cannot be told apart.
        let alone = functions.iter().filter(|other| other.line == function.line).count() == 1;
        if alone && function.parameters > 0 && inspect::hook_at(vm.hook_lines(), function.line).is_some() {
            unknown_fields(function, &mut found);
        }
    }
    found.found.into_iter().map(|(line, reason)| found.source.problem(Some(line), reason)).collect()
}

/// `a {object} has no {field}`, with the nearest one that it has.
pub(super) fn no_field(owner: &str, object: &str, field: &str) -> String {
    let known = inspect::fields_of(object).unwrap_or_default();
    let hint = nearest(field, known.iter().copied()).map(|near| format!("; did you mean {near}?"));
    let hint = hint.unwrap_or_else(|| format!("; it has {}", known.join(", ")));
    format!("{owner} has no {field}{hint}")
}

/// The name that was probably meant.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = (name.chars().count() / 2).clamp(1, 3);
    known
        .map(|candidate| (strsim::damerau_levenshtein(candidate, name), candidate))
        .filter(|(distance, _)| (1..=most).contains(distance))
        .min()
        .map(|(_, candidate)| candidate)
}

struct Findings<'a> {
    source: &'a Source,
    found: BTreeSet<(u32, String)>,
}

impl Findings<'_> {
    fn add(&mut self, line: u32, reason: String) {
        self.found.insert((line, reason));
    }
}

fn unknown_name(path: &[String], known: &[String]) -> Option<String> {
    let has = |name: &str| known.binary_search_by(|known| known.as_str().cmp(name)).is_ok();
    let first = path[0].as_str();
    if !has(first) {
        if let Some((_, instead)) = ABSENT.iter().find(|(name, _)| *name == first) {
            return Some(format!("{first} is not there in a policy: {instead}"));
        }
        let plain = known.iter().map(String::as_str).filter(|name| !name.contains('.'));
        // A helper without its `usher.` is the usual reason.
        let helper = format!("usher.{first}");
        let hint = if has(&helper) { Some(helper) } else { nearest(first, plain).map(str::to_owned) };
        let hint = hint.map(|hint| format!("; did you mean {hint}?")).unwrap_or_default();
        return Some(format!("nothing is called {first}: it is nil{hint}"));
    }
    let member = path.get(1)?;
    let (whole, prefix) = (format!("{first}.{member}"), format!("{first}."));
    let mut members = known.iter().filter_map(|name| name.strip_prefix(&prefix)).peekable();
    if has(&whole) || members.peek().is_none() {
        return None;
    }
    if whole == "usher.test" {
        return Some("usher.test is there in tests only (NAME_test.lua)".into());
    }
    let hint = nearest(member, members).map(|near| format!("; did you mean {first}.{near}?")).unwrap_or_default();
    Some(format!("{whole} does not exist: it is nil{hint}"))
}

/// Reads of fields that go straight from the hook's parameter: `call.x`, `call.room.x`.
fn unknown_fields(function: &Function, found: &mut Findings<'_>) {
    let mut last: Option<(u8, &'static str, String)> = None;
    for touch in &function.touches {
        let What::Field { from, to, name, chained } = &touch.what else { continue };
        let (object, owner) = match last.take() {
            Some((register, object, owner)) if *chained && register == *from => (object, owner),
            _ if *from == 0 => ("call", "call".to_owned()),
            _ => continue,
        };
        if !inspect::fields_of(object).is_some_and(|fields| fields.contains(&name.as_str())) {
            found.add(touch.line, no_field(&owner, object, name));
        }
        // Whatever else the parameter's register holds from here on is no call.
        if *to == 0 {
            break;
        }
        last = inspect::object_at(object, name).map(|object| (*to, object, format!("{owner}.{name}")));
    }
}
