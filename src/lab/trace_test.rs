//! A recorded decision as a test that somebody can keep: the call as Lua, and what was decided.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::page_text::plain;
use super::replay::recorded_limits;
use super::report::Status;
use super::runner::{Options, TestFile, run_tests};
use super::texts::Texts;
use super::{input, literal};
use crate::config::{self, PolicyConfig};
use crate::model::policy::{Answer, Call, FaultKind, View};
use crate::model::read::Read;
use crate::policy::lua::{Distances, Environment, Limits, LoadError, Program, Returned, Source, Vm};
use crate::policy::versions::timestamp;
use crate::trace::Item;
use crate::trace::read::{Reader, TraceError};
use crate::trace::record::{Header, Outcome, PolicyText};

/// Items of a list that a test compares one by one; of a longer one it compares the first.
const WHOLE_LIST: usize = 8;

/// A test that was made of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceTest {
    /// The text of a `_test.lua` with one test.
    pub text: String,
    /// Why the recorded policy does not pass it, if it does not.
    pub doubt: Option<String>,
}

/// Why there is no test.
#[derive(Debug, thiserror::Error)]
pub enum NoTest {
    /// The trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// There is nothing to test.
    #[error("{0}")]
    Nothing(String),
}

/// The policy of a trace in the surroundings in which it was recorded, apart from what it had counted and kept.
pub(super) fn recorded_environment(header: &Header, policy: &PolicyText) -> Environment {
    let known = header.distances.clone();
    Environment {
        distances: Distances::new(move |from, to| known.ms(from, to)),
        settings: policy.settings.clone(),
        // CPU time was that of another machine; fuel is the limit that counts.
        limits: recorded_limits(policy),
        ..Environment::default()
    }
}

/// The surroundings of `usher test` without a configuration, with time enough on a slow machine.
fn bare_environment() -> Environment {
    let (known, defaults) = (config::Distances::default(), PolicyConfig::default());
    Environment {
        distances: Distances::new(move |from, to| known.ms(from, to)),
        limits: Limits { fuel: defaults.fuel, memory: defaults.memory, budget: Duration::from_secs(1) },
        ..Environment::default()
    }
}

/// Makes a test of the decision with this number.
pub fn trace_test(reader: &mut Reader, file: &str, number: u64, name: Option<&str>) -> Result<TraceTest, NoTest> {
    let mut policies = Texts::default();
    policies.declare(reader.header().policy.clone());
    let mut last = 0;
    while let Some((t, item)) = reader.read()? {
        match item {
            Item::Header(header) => policies.declare(header.policy),
            Item::Policy(policy) => policies.declare(*policy),
            Item::Decision { number: found, call, outcome } if found == number => {
                let policy = policies.take(&outcome.policy);
                let made = Made { file, number, t, call: &call, view: reader.view(), outcome: &outcome };
                return made.test(reader.header(), policy, name);
            }
            Item::Decision { number, .. } => last = last.max(number),
            Item::View | Item::Event(_) | Item::Gap(_) => {}
        }
    }
    let there = if last == 0 { "it has none".into() } else { format!("the last one is {last}") };
    let damaged = match reader.damage() {
        (lines, Some(first)) => {
            format!("; it may have stood in one of {lines} lines that are not understood, the first: {first}")
        }
        (_, None) => String::new(),
    };
    Err(NoTest::Nothing(format!("{file}: has no decision {number}; {there}{damaged}")))
}

struct Made<'a> {
    file: &'a str,
    number: u64,
    t: u64,
    call: &'a Call,
    view: &'a View,
    outcome: &'a Outcome,
}

impl Made<'_> {
    fn test(&self, header: &Header, policy: Option<PolicyText>, name: Option<&str>) -> Result<TraceTest, NoTest> {
        let Self { file, number, call, outcome, .. } = *self;
        let hook = call.hook;
        let again = policy.as_ref().and_then(|policy| Some((policy, self.again(header, policy).ok()?)));
        if let Some((policy, None)) = &again {
            return Err(NoTest::Nothing(format!(
                "{file}: decision {number} was the built-in default's: {} has no {hook}, so there is nothing to test",
                policy.name
            )));
        }
        let returned = again.and_then(|(_, returned)| returned);
        let settings = policy.as_ref().map(|policy| &policy.settings).filter(|settings| !settings.is_empty());
        let state = self.state();
        let mut text = String::new();
        let about = one_line(policy.as_ref().map_or("a policy", |policy| &policy.name));
        let time = timestamp(header.started_us.saturating_add(self.t));
        let (from, version) = (one_line(file), one_line(&outcome.policy));
        let _ = writeln!(text, "-- Decision {number} of {from}: {about} ({version}) at {time}.");
        let object = input::object_of(call, self.view);
        let same = input::parse(Some(hook), &object).is_ok_and(|(c, v)| c == *call && v.rows() == self.view.rows());
        if !same {
            text.push_str(
                "-- Not everything that the script saw can be written down: the call is a little different.\n",
            );
        }
        if header.distances != config::Distances::default() {
            text.push_str("-- Distances of regions come from the configuration: usher test -c usher.toml.\n");
        }
        let limits = policy.as_ref().map(recorded_limits);
        let defaults = PolicyConfig::default();
        if let Some(limits) = limits.filter(|had| had.fuel != defaults.fuel || had.memory != defaults.memory) {
            let Limits { fuel, memory, .. } = limits;
            let _ = writeln!(
                text,
                "-- It had policy.fuel = {fuel} and policy.memory = {memory}: usher test -c usher.toml, with these in it."
            );
        }
        text.push_str("local t = usher.test\n");
        match (settings, state.is_empty()) {
            (None, true) => text.push_str("local policy = t.policy()\n\n"),
            (Some(settings), true) => {
                let _ = writeln!(text, "local policy = t.policy {}\n", literal::value(&json!(settings)));
            }
            (settings, false) => {
                let settings = settings.map_or_else(|| "{}".into(), |settings| literal::value(&json!(settings)));
                text.push_str("-- What it had counted and kept by then.\n");
                let _ =
                    writeln!(text, "local policy = t.policy({settings}, {})\n", literal::value(&Json::Object(state)));
            }
        }
        let room = call.room.as_ref().and_then(|room| room.name.as_deref()).unwrap_or_default();
        let usual = format!("{hook} {room}").trim_end().to_owned() + &format!(", decision {number}");
        let _ = writeln!(text, "t.it({}, function()", literal::quoted(name.unwrap_or(&usual)));
        let written = literal::call(hook, &object).replace('\n', "\n  ");
        let _ = writeln!(text, "  local call = {written}");
        self.expectation(returned.as_ref(), &mut text);
        text.push_str("end)\n");
        let doubt = policy.and_then(|policy| self.doubt(header, &policy, &text));
        Ok(TraceTest { text, doubt })
    }

    /// What the recorded policy answers to the call, in the shape in which it answers; none if it has no such hook.
    fn again(&self, header: &Header, policy: &PolicyText) -> Result<Option<Answered>, LoadError> {
        let mut vm = Vm::new(&Program::compile(source(policy), &recorded_environment(header, policy))?)?;
        if !vm.has(self.call.hook) {
            return Ok(None);
        }
        vm.feed(self.outcome.reads.clone());
        let said = vm.call_returned(self.call, self.view);
        Ok(Some(match said {
            // A script that is answered for by the default has said something all the same.
            Ok(returned) if returned.answer == self.outcome.answer || self.outcome.fallback.is_some() => {
                Answered::Same(returned)
            }
            _ => Answered::Other,
        }))
    }

    fn expectation(&self, again: Option<&Answered>, text: &mut String) {
        let hook = self.call.hook;
        let Outcome { answer, choice, fallback, bypassed, .. } = self.outcome;
        let asked = format!("policy.{hook}(call)");
        let _ = match (fallback, again) {
            _ if *bypassed => writeln!(
                text,
                "  -- The breaker was open: the policy was not asked, and the default decided. It has to answer without a fault.\n  {asked}"
            ),
            (Some(fault), Some(Answered::Same(returned))) if fault.kind == FaultKind::NotEligible => {
                let said = literal::answer(&Ok(returned.clone()));
                writeln!(
                    text,
                    "  -- {}: the default decided instead.\n  t.equal({asked}, {said})",
                    one_line(&fault.message)
                )
            }
            (Some(fault), _) if matches!(fault.kind, FaultKind::NotEligible | FaultKind::CpuTime) => writeln!(
                text,
                "  -- {}: the default decided instead. It has to answer without a fault.\n  {asked}",
                one_line(&fault.message)
            ),
            (Some(fault), _) => {
                let (what, kind) = (one_line(&fault.message), fault.kind.label());
                writeln!(text, "  -- {what}\n  t.error(function() {asked} end, {{ kind = \"{kind}\" }})")
            }
            (None, again) => {
                let list = match again {
                    Some(Answered::Same(returned)) => returned.list,
                    _ => matches!(answer, Answer::Ranked(ids) if ids.len() != 1) || matches!(answer, Answer::Moves(_)),
                };
                if let (Answer::Default, Some(choice)) = (answer, choice) {
                    let _ = writeln!(text, "  -- The default chose {} then.", one_line(choice.as_str()));
                }
                match answer {
                    Answer::Ranked(ids) if list && ids.len() > WHOLE_LIST => {
                        writeln!(text, "  t.equal({asked}[1], {})", literal::quoted(ids[0].as_str()))
                    }
                    _ => {
                        let said = literal::answer(&Ok(Returned { answer: answer.clone(), list }));
                        writeln!(text, "  t.equal({asked}, {said})")
                    }
                }
            }
        };
    }

    /// What the policy had counted and kept, as far as the call read it: `t.policy` begins with it.
    fn state(&self) -> Map<String, Json> {
        let (mut counters, mut values) = (Map::new(), Map::new());
        for read in &self.outcome.reads {
            match read {
                Read::Counter(name, value) => {
                    counters.entry(&**name).or_insert(json!(value.saturating_sub(1)));
                }
                Read::Get(key, Some(value)) => {
                    values.entry(&**key).or_insert(json!(value));
                }
                Read::Get(..) | Read::Now(_) | Read::Random(_) => {}
            }
        }
        let parts = [("counters", counters), ("values", values)];
        parts.into_iter().filter(|(_, map)| !map.is_empty()).map(|(key, map)| (key.into(), Json::Object(map))).collect()
    }

    /// Runs the test with the recorded policy as `usher test` will; where that fails, in the surroundings that it had.
    fn doubt(&self, header: &Header, policy: &PolicyText, text: &str) -> Option<String> {
        let failure = |environment| {
            let file = TestFile { name: "the test".into(), text: Ok(text.into()), policy: Ok(source(policy)) };
            let report = run_tests(&[file], &Options { environment, ..Options::default() });
            let failed = report.tests.into_iter().find(|test| test.status != Status::Pass)?;
            Some(failed.message.unwrap_or_default())
        };
        let bare = failure(bare_environment())?;
        Some(match failure(recorded_environment(header, policy)) {
            Some(recorded) => recorded,
            None => format!(
                "{bare}; with the limits and distances of the trace it does: give usher test a configuration that has them (-c)"
            ),
        })
    }
}

/// What the recorded policy says to the call when it is asked again.
enum Answered {
    /// What it said then.
    Same(Returned),
    /// Something else: it depends on what no trace holds.
    Other,
}

fn source(policy: &PolicyText) -> Source {
    let stem = Path::new(&policy.file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    Source::shipped(&stem.unwrap_or_else(|| policy.name.clone()), &policy.source)
}

/// A text from a trace in a comment of a test: it neither ends the line nor moves a cursor.
fn one_line(text: &str) -> String {
    plain(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}
