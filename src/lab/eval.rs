//! One decision on one call, and what it was made of.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value as Json;

use super::literal;
use crate::model::MonolithId;
use crate::model::policy::{Answer, Call, Decision, Fault, FaultKind, Hook, View};
use crate::policy::Policy;
use crate::policy::decide::{decide_near, why_not};
use crate::policy::lua::inspect::{Note, Ranking, Scored};
use crate::policy::lua::{Environment, Inspection, LoadError, Program, Returned, SharedState, Source, Vm};

/// How often, and for how long, the decision is repeated to time it.
const REPEATS: usize = 101;
const REPEAT_TIME: Duration = Duration::from_millis(100);
/// Items of a ranking in one line; the rest is counted.
const SHOWN: usize = 12;

/// One decision.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// What the policy answered, as data; null for nil and after a fault.
    pub answer: Json,
    /// The Monolith that is tried first, for hooks that choose one.
    pub choice: Option<MonolithId>,
    /// Why the built-in default decides instead, if it does.
    pub fallback: Option<String>,
    /// The kind of the fault, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<FaultKind>,
    /// What the script said, how its helpers ranked, and what the core made of the answer, in this order; empty unless
    /// it was asked for.
    pub explain: Vec<String>,
    /// What the helpers ranked, as data.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rankings: Vec<Ranking>,
    /// Everybody who may be tried, best first.
    pub choices: Vec<MonolithId>,
    /// Safepoints that the call used.
    pub fuel: u64,
    /// Nanoseconds of one decision, in a VM that has made it before: the median.
    pub ns: u64,
}

/// Asks a policy once. Counters and kept values begin empty.
pub fn evaluate(
    source: &Source,
    environment: &Environment,
    call: &Call,
    view: &View,
    explain: bool,
) -> Result<Evaluation, LoadError> {
    let alone = || Environment { state: Arc::new(SharedState::default()), ..environment.clone() };
    let program = Program::compile(source.clone(), &alone())?;
    let mut vm = Vm::new(&program)?;
    let returned = vm.call_returned(call, view);
    let fuel = vm.fuel_used();
    let says = &mut Says(returned.clone());
    let decision = decide_near(says, call, view, Some(&environment.distances));
    let fallback = match (&decision.fault, &decision.answer) {
        (Some(fault), _) => Some(fault.message.clone()),
        (None, Answer::Default) if !vm.has(call.hook) => Some(format!("the policy has no {}", call.hook)),
        (None, Answer::Default) => Some(format!("{} answered nil", call.hook)),
        (None, _) => None,
    };
    let mut evaluation = Evaluation {
        answer: returned.as_ref().map(literal::answer_json).unwrap_or_default(),
        choice: decision.choices.first().cloned(),
        fallback,
        fault: decision.fault.as_ref().map(|fault| fault.kind),
        explain: Vec::new(),
        rankings: Vec::new(),
        choices: decision.choices.clone(),
        fuel,
        ns: timed(&program.within(&alone()), environment, call, view),
    };
    if explain {
        // A VM of its own: one that explains is slower and its errors name other places.
        let explaining = Program::inspected(source.clone(), &alone(), Inspection::Rankings)?;
        let mut vm = Vm::new(&explaining)?;
        // What the file itself did while it was loaded is no part of the call.
        drop(vm.take_notes());
        let _ = vm.call_returned(call, view);
        for note in vm.take_notes() {
            match note {
                Note::Said(text) => evaluation.explain.push(format!("policy: {text}")),
                Note::Ranked(ranking) => {
                    evaluation.explain.push(shown(&ranking));
                    evaluation.rankings.push(ranking);
                }
                Note::Unknown { .. } => {}
            }
        }
        evaluation.explain.extend(core(call, view, &returned, &decision, evaluation.fallback.as_deref()));
    }
    Ok(evaluation)
}

/// What the core made of the answer.
fn core(
    call: &Call,
    view: &View,
    returned: &Result<Returned, Fault>,
    decision: &Decision,
    fallback: Option<&str>,
) -> Vec<String> {
    let mut lines = Vec::new();
    let own = match returned.as_ref().map(|returned| &returned.answer) {
        Ok(Answer::Ranked(named)) => named.as_slice(),
        Ok(Answer::Moves(moves)) => {
            for one in moves {
                if let Some(why) = why_not(call, view, &one.to) {
                    lines.push(format!("core: the move of {:?} to {:?} is refused: {why}", one.room, one.to.as_str()));
                }
            }
            &[]
        }
        _ => &[],
    };
    for id in own {
        if let Some(why) = why_not(call, view, id) {
            lines.push(format!("core: {:?} is passed over: {why}", id.as_str()));
        }
    }
    let rest: Vec<&str> =
        decision.choices.iter().filter(|id| !own.contains(id)).map(MonolithId::as_str).take(SHOWN).collect();
    let instead = match call.hook {
        Hook::Place | Hook::Route if rest.is_empty() => "the built-in default decides, and nobody may be chosen".into(),
        Hook::Place | Hook::Route => format!("the built-in default decides: {}", rest.join(", ")),
        Hook::Admit => "the client is admitted".to_owned(),
        Hook::Rebalance => "nothing moves".to_owned(),
    };
    match fallback {
        Some(why) => lines.push(format!("core: {why}; {instead}")),
        None if !rest.is_empty() => lines.push(format!("core: after these come the default's: {}", rest.join(", "))),
        None => {}
    }
    lines
}

fn shown(ranking: &Ranking) -> String {
    let Ranking { helper, by, list, chosen, line } = ranking;
    let mut items: Vec<_> = list.iter().collect();
    let sign = if matches!(helper.as_str(), "max_by" | "rendezvous" | "bounded") { -1.0 } else { 1.0 };
    let score = |item: &Scored| item.score.map_or(f64::INFINITY, |score| score * sign);
    items.sort_by(|a, b| score(a).total_cmp(&score(b)));
    let more = items.len().saturating_sub(SHOWN);
    let items: Vec<String> = (items.iter().take(SHOWN))
        .map(|Scored { id, score }| match score {
            Some(score) => format!("{id} {}", (score * 1e4).round() / 1e4),
            None if helper == "bounded" => format!("{id} (full)"),
            None => id.clone(),
        })
        .collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let by = by.as_ref().map(|by| format!(" {by:?}")).unwrap_or_default();
    let at = line.map(|line| format!(" (line {line})")).unwrap_or_default();
    let chosen = if chosen.is_empty() { "nobody".to_owned() } else { chosen[..chosen.len().min(SHOWN)].join(", ") };
    format!(
        "{helper}{by}: {}{more} -> {chosen}{at}",
        if items.is_empty() { "nobody".to_owned() } else { items.join(", ") }
    )
}

/// The median time of a decision; 0 if it cannot be made.
fn timed(program: &Program, environment: &Environment, call: &Call, view: &View) -> u64 {
    let Ok(mut vm) = Vm::new(program) else { return 0 };
    let until = Instant::now() + REPEAT_TIME;
    let mut times = Vec::with_capacity(REPEATS);
    while times.len() < REPEATS && (times.len() < 2 || Instant::now() < until) {
        let began = Instant::now();
        std::hint::black_box(decide_near(&mut vm, call, view, Some(&environment.distances)));
        times.push(began.elapsed());
    }
    // The first one makes the VM's copy of the Monoliths.
    let mut times = times.split_off(1);
    times.sort();
    u64::try_from(times[times.len() / 2].as_nanos()).unwrap_or(u64::MAX)
}

/// A policy that has already answered.
struct Says(Result<Returned, Fault>);

impl Policy for Says {
    fn call(&mut self, _: &Call, _: &View) -> Result<Answer, Fault> {
        self.0.clone().map(|returned| returned.answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::input;
    use serde_json::json;

    fn eval(text: &str, hook: Hook, input: &Json) -> Evaluation {
        let (call, view) = input::parse(Some(hook), input).unwrap();
        evaluate(&Source::shipped("x", text), &Environment::default(), &call, &view, true).unwrap()
    }

    #[test]
    fn a_decision_is_shown_with_everything_that_made_it() {
        let text = "local p = {}
function p.place(call)
  usher.explain('looking near', call.region)
  local near = usher.in_region(call.monoliths)
  local best = usher.min_by(near, 'rooms')
  local hashed = usher.rendezvous(call.room.name, call.monoliths)
  return { 'm9', 'gone', best }
end
return p";
        let input = json!({"region": "ewr", "monoliths": [{"id": "a", "rooms": 3}, {"id": "b", "rooms": 1},
            {"id": "c", "region": "cdg"}, {"id": "gone", "draining": true}]});
        let found = eval(text, Hook::Place, &input);
        assert_eq!((&found.answer, found.choice.as_ref().unwrap().as_str()), (&json!(["m9", "gone", "b"]), "b"));
        assert_eq!((found.fallback.as_deref(), found.fault), (None, None));
        assert!(found.ns > 0 && found.fuel > 0);
        assert_eq!(
            found.explain.iter().filter(|line| !line.starts_with("rendezvous")).collect::<Vec<_>>(),
            [
                "policy: looking near ewr",
                "in_region: a, b, c -> a, b (line 4)",
                "min_by \"rooms\": b 1, a 3 -> b (line 5)",
                "core: \"m9\" is passed over: no such monolith",
                "core: \"gone\" is passed over: draining",
                "core: after these come the default's: a, c",
            ]
        );
        let hashed = found.rankings.iter().find(|ranking| ranking.helper == "rendezvous").unwrap();
        let best = hashed.list.iter().max_by(|a, b| a.score.unwrap().total_cmp(&b.score.unwrap())).unwrap();
        assert_eq!(hashed.chosen.join(" "), best.id, "the scores shown are those that decide");
    }

    #[test]
    fn bounded_says_who_is_full() {
        let input =
            json!({"room": "movie", "monoliths": [{"id": "a", "rooms": 90}, {"id": "b"}, {"id": "c", "rooms": 1}]});
        let policy = "return { place = function(call) return usher.bounded(call.room.name, call.monoliths, 1.25) end }";
        let found = eval(policy, Hook::Place, &input);
        assert!(
            found.explain[0].starts_with("bounded \"movie\": ") && found.explain[0].contains("a (full)"),
            "{found:?}"
        );
        assert_eq!(found.explain[0].matches("(full)").count(), 1);
    }

    #[test]
    fn a_fault_and_nil_say_who_decides_instead() {
        let input = json!({"monoliths": [{"id": "a"}]});
        let found = eval("return {\n place = function() return nothing.x end }", Hook::Place, &input);
        assert_eq!((found.answer, found.fault), (Json::Null, Some(FaultKind::Error)));
        assert!(found.fallback.unwrap().starts_with("policies/x.lua:2: attempt to index nil"));
        assert_eq!(found.choice, Some("a".into()));
        let found = eval("return { place = function() return 'z' end }", Hook::Place, &input);
        assert_eq!((found.answer, found.fault), (json!("z"), Some(FaultKind::NotEligible)));
        let found = eval("return {}", Hook::Admit, &json!({}));
        assert_eq!(found.fallback.as_deref(), Some("the policy has no admit"));
        assert_eq!(found.explain, ["core: the policy has no admit; the client is admitted"]);
    }

    /// Every helper that ranks: listened to, it answers what it answers otherwise.
    #[test]
    fn helpers_answer_the_same_when_they_are_listened_to() {
        for helper in [
            "min_by(l, 'rooms')",
            "max_by(l, function(m) return m.rooms end)",
            "sort_by(l, 'rooms')",
            "two_choices(l)",
            "two_choices(l, 'rooms')",
            "rendezvous('k', l)",
            "rendezvous('k', l, 'rooms')",
            "bounded('k', l, 1.5)",
            "filter(l, function(m) return m.rooms > 2 end)",
            "in_region(l, 'ewr')",
            "nearest(l)",
            "spill(l, 4)",
        ] {
            let text =
                format!("return {{ place = function(call) local l = call.monoliths return usher.{helper} end }}");
            for seed in 0..20 {
                let (call, view) =
                    input::parse(Some(Hook::Place), &crate::lab::generate::sized(Hook::Place, seed, 5)).unwrap();
                let answer = |inspection| {
                    let program = Program::inspected(Source::shipped("x", &text), &Environment::default(), inspection);
                    Vm::new(&program.unwrap()).unwrap().call_returned(&call, &view)
                };
                assert_eq!(answer(Inspection::None), answer(Inspection::Rankings), "{helper}");
            }
        }
    }
}
