//! Properties: a check over many calls that nobody wrote. A call that fails is made smaller for as long as it fails.

use std::time::Instant;

use mlua::{Function, Lua};
use serde_json::{Map, Value as Json};

use super::generate::{self, MOST_MONOLITHS, Random};
use super::literal::{self, Step};
use super::report::Status;
use crate::model::policy::Hook;

/// The most calls of one property, and the most smaller calls that are tried for one that fails.
const MAX_RUNS: u64 = 10_000;
const MAX_SMALLER: usize = 500;
pub(super) const OPTIONS: [&str; 5] = ["hook", "runs", "seed", "monoliths", "given"];

/// How calls are drawn.
pub(super) struct Options {
    hook: Hook,
    runs: u64,
    seed: u64,
    monoliths: usize,
    /// Parts of the call that are not drawn.
    given: Map<String, Json>,
}

/// What came of one call: nothing, or what was wrong with it and where.
pub(super) type Attempt = Option<(Status, Option<u32>, String)>;

/// A call with which the property does not hold.
pub(super) struct Counterexample {
    pub(super) status: Status,
    pub(super) line: Option<u32>,
    pub(super) message: String,
    /// As Lua.
    pub(super) call: String,
}

impl Options {
    pub(super) fn read(json: &Json) -> Result<Self, String> {
        let empty = Map::new();
        let map = match json {
            Json::Null => &empty,
            Json::Object(map) => map,
            other => return Err(format!("t.property: {other} is no table of options")),
        };
        if let Some(key) = map.keys().find(|key| !OPTIONS.contains(&key.as_str())) {
            return Err(format!("t.property: no option is called {key:?} (options: {})", OPTIONS.join(", ")));
        }
        let number = |key: &str, default: u64, most: u64| match map.get(key) {
            None => Ok(default),
            Some(given) => given
                .as_u64()
                .filter(|n| *n <= most)
                .ok_or_else(|| format!("t.property: {key} is {given}; give a whole number, at most {most}")),
        };
        let hook = match map.get("hook") {
            None => Hook::Place,
            Some(name) => Hook::ALL
                .into_iter()
                .find(|hook| name.as_str() == Some(hook.name()))
                .ok_or_else(|| format!("t.property: {name} is no hook; give admit, place, route or rebalance"))?,
        };
        let given = match map.get("given") {
            None => Map::new(),
            Some(Json::Object(given)) => given.clone(),
            Some(other) => return Err(format!("t.property: given is {other}; give a table such as that of t.{hook}")),
        };
        let monoliths = number("monoliths", MOST_MONOLITHS as u64, 1000)?.max(1) as usize;
        Ok(Self {
            hook,
            runs: number("runs", 100, MAX_RUNS)?.max(1),
            seed: number("seed", 1, u64::MAX)?,
            monoliths,
            given,
        })
    }

    /// Small calls of one hook, as many as a property has unless it says otherwise.
    pub(super) fn of(hook: Hook) -> Self {
        Self { hook, runs: 100, seed: 1, monoliths: MOST_MONOLITHS, given: Map::new() }
    }

    /// The first calls that would be tried.
    pub(super) fn calls(&self, count: u64) -> impl Iterator<Item = Json> + '_ {
        let mut seeds = Random::new(self.seed);
        (0..count).map(move |run| self.drawn(seeds.next(), run))
    }

    /// Small calls come first: most mistakes show in them, and they are easier to read.
    fn drawn(&self, seed: u64, run: u64) -> Json {
        let mut given = generate::call(self.hook, seed, self.monoliths.min(1 + run as usize / 4));
        if let Some(map) = given.as_object_mut() {
            map.extend(self.given.clone());
        }
        given
    }

    pub(super) fn hook(&self) -> Hook {
        self.hook
    }

    /// Tries call after call until one fails or time is up; says whether time was up with nothing found.
    pub(super) fn search(
        &self,
        until: Instant,
        mut attempt: impl FnMut(&Json) -> Attempt,
    ) -> Result<Option<Counterexample>, String> {
        let mut seeds = Random::new(self.seed);
        for run in 0..self.runs {
            if Instant::now() > until {
                return Err(format!("it takes too long: {run} of {} calls were tried", self.runs));
            }
            let given = self.drawn(seeds.next(), run);
            if let Some(failure) = attempt(&given) {
                return Ok(Some(self.smaller(given, failure, run, until, attempt)));
            }
        }
        Ok(None)
    }

    fn smaller(
        &self,
        mut given: Json,
        mut failure: (Status, Option<u32>, String),
        run: u64,
        until: Instant,
        mut attempt: impl FnMut(&Json) -> Attempt,
    ) -> Counterexample {
        let (mut tried, mut steps) = (0, 0);
        'smaller: loop {
            for candidate in self.candidates(&given) {
                tried += 1;
                if tried > MAX_SMALLER || Instant::now() > until {
                    break 'smaller;
                }
                // A smaller call that fails for another kind of reason says something else.
                if let Some(found) = attempt(&candidate).filter(|found| found.0 == failure.0) {
                    (given, failure) = (candidate, found);
                    steps += 1;
                    continue 'smaller;
                }
            }
            break;
        }
        let (status, line, message) = failure;
        let message =
            format!("{message}\ncall {} of {} with seed {}, made smaller {steps} times", run + 1, self.runs, self.seed);
        Counterexample { status, line, message, call: literal::call(self.hook, &given) }
    }

    /// Calls that are a little smaller, the boldest first.
    fn candidates(&self, given: &Json) -> Vec<Json> {
        let mut found = Vec::new();
        let mut edited = |edit: &dyn Fn(&mut Json)| {
            let mut candidate = given.clone();
            edit(&mut candidate);
            if candidate != *given {
                found.push(candidate);
            }
        };
        let fixed = |path: &[Step]| matches!(path.first(), Some(Step::Key(key)) if self.given.contains_key(key));
        for list in ["monoliths", "rooms", "excluded"] {
            let length = given.get(list).and_then(Json::as_array).map_or(0, Vec::len);
            let least = usize::from(list == "monoliths");
            if length <= least || self.given.contains_key(list) {
                continue;
            }
            let keep = |range: std::ops::Range<usize>| {
                move |json: &mut Json| {
                    if let Some(items) = json.get_mut(list).and_then(Json::as_array_mut) {
                        *items = items.drain(range.clone()).collect();
                    }
                }
            };
            let half = length.div_ceil(2);
            if length > 2 {
                edited(&keep(0..half));
                edited(&keep(half..length));
            }
            for at in 0..length {
                edited(&|json| literal::remove(json, &[Step::Key(list.into()), Step::At(at)]));
            }
        }
        let paths: Vec<_> = literal::paths(given)
            .into_iter()
            .filter(|path| {
                !fixed(path) && path.last() != Some(&Step::Key("id".into())) && path != &[Step::Key("monoliths".into())]
            })
            .collect();
        for path in &paths {
            edited(&|json| literal::remove(json, path));
        }
        for path in &paths {
            for smaller in [|_: f64| 0.0, |n: f64| (n / 2.0).trunc(), |n: f64| n.trunc()] {
                edited(&|json| {
                    let Some(value) = literal::at(json, path) else { return };
                    if let Some(n) = value.as_f64().filter(|n| smaller(*n) < *n) {
                        *value = Json::from(smaller(n) as u64);
                    }
                });
            }
        }
        found
    }
}

/// Calls a test's function with one object.
pub(super) fn with_object(lua: &Lua, body: &Function, object: &Json) -> mlua::Result<()> {
    body.call::<()>(crate::policy::lua::value::from_json_open(lua, object)?)
}
