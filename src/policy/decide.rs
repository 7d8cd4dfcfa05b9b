//! From an answer to a decision: what a policy named is checked against the view, and the built-in default ranking
//! stands behind it, so that a room is placed whenever anybody can take it.

use std::cmp::Ordering;

use super::Policy;
use super::lua::Distances;
use crate::model::policy::{Answer, Call, Decision, Fault, FaultKind, Hook, MonolithRow, View};
use crate::model::{MonolithId, Region};

/// Ids of a list in a message; the rest is counted.
const NAMED_IN_MESSAGES: usize = 8;

/// How long a Monolith gets less than its share, in seconds. `policies/default.lua` has the same number.
pub const SLOW_START_S: f64 = 30.0;
/// The least share that it gets.
const LEAST_SHARE: f64 = 0.1;

/// One decision: asks the policy, checks its answer, and adds the default's choices behind its own.
///
/// The default of `place` is the balancer's own region first, then fewest rooms (pending ones included), then the
/// smaller id; of `route` the same with requests in flight instead of rooms. A region is never a reason to serve nobody.
/// A Monolith that has taken rooms for less than [`SLOW_START_S`] counts as fuller than it is, so that one that has just come
/// back is not given everything because it is empty.
pub fn decide(policy: &mut dyn Policy, call: &Call, view: &View) -> Decision {
    decide_near(policy, call, view, None)
}

/// As [`decide`], with distances: the default of `route` then goes to the nearest region first.
pub fn decide_near(policy: &mut dyn Policy, call: &Call, view: &View, distances: Option<&Distances>) -> Decision {
    let answer = policy.call(call, view);
    let decision = settle(answer, call, view, distances);
    policy.settled(call, view, &decision);
    decision
}

/// What comes of an answer.
pub fn settle(answer: Result<Answer, Fault>, call: &Call, view: &View, distances: Option<&Distances>) -> Decision {
    let mut decision = settle_named(answer, call, view, |choices, id| {
        if !choices.contains(id) {
            choices.push(id.clone());
        }
        true
    });
    if names_somebody(call, &decision.answer) {
        let mut rest: Vec<_> = others(call, view, distances, &decision.choices).collect();
        rest.sort_by(before);
        decision.choices.extend(rest.into_iter().map(|(_, _, id)| id.clone()));
    }
    decision
}

/// As [`settle`], but only with the one that would be tried first: for those who make many decisions and carry none out.
pub fn settle_first(
    answer: Result<Answer, Fault>,
    call: &Call,
    view: &View,
    distances: Option<&Distances>,
) -> Decision {
    let mut decision = settle_named(answer, call, view, |choices, id| {
        choices.push(id.clone());
        false
    });
    if decision.choices.is_empty() && names_somebody(call, &decision.answer) {
        let first = others(call, view, distances, &[]).min_by(before);
        decision.choices.extend(first.map(|(_, _, id)| id.clone()));
    }
    decision
}

/// Whether an answer to this call leaves it to somebody to serve it.
fn names_somebody(call: &Call, answer: &Answer) -> bool {
    matches!(call.hook, Hook::Place | Hook::Route) && matches!(answer, Answer::Default | Answer::Ranked(_))
}

/// An answer with the eligible ones of those that it names; `choose` takes them up as long as it wants more.
fn settle_named(
    answer: Result<Answer, Fault>,
    call: &Call,
    view: &View,
    mut choose: impl FnMut(&mut Vec<MonolithId>, &MonolithId) -> bool,
) -> Decision {
    let (answer, fault) = match answer {
        Ok(answer) => (answer, None),
        Err(fault) => (Answer::Default, Some(fault)),
    };
    let mut decision = Decision { answer, choices: Vec::new(), fault };
    if let (Answer::Ranked(named), true) = (&decision.answer, names_somebody(call, &decision.answer)) {
        for id in named.iter().filter(|id| is_eligible(call, view, id)) {
            if !choose(&mut decision.choices, id) {
                break;
            }
        }
        if decision.choices.is_empty() && !named.is_empty() {
            decision.fault = Some(not_eligible(call, named, view));
            decision.answer = Answer::Default;
        }
    }
    decision
}

/// Whether a Monolith that a policy names may be chosen in this attempt.
pub(super) fn is_eligible(call: &Call, view: &View, id: &MonolithId) -> bool {
    view.get(id).is_some_and(|row| eligible(call, row))
}

fn eligible(call: &Call, row: &MonolithRow) -> bool {
    row.serves() && !call.excluded.contains(&row.id)
}

/// A Monolith that may be chosen, with what the default goes by.
type Other<'a> = (f64, f64, &'a MonolithId);

fn others<'a>(
    call: &Call,
    view: &'a View,
    distances: Option<&Distances>,
    chosen: &[MonolithId],
) -> impl Iterator<Item = Other<'a>> {
    (view.rows().iter())
        .filter(move |row| eligible(call, row) && !chosen.contains(&row.id))
        .map(move |row| (distance(call, &row.region, distances), load(call.hook, row), &row.id))
}

/// The order of the default.
fn before(a: &Other<'_>, b: &Other<'_>) -> Ordering {
    a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(b.2))
}

fn distance(call: &Call, region: &Region, distances: Option<&Distances>) -> f64 {
    match distances {
        _ if *region == call.region => 0.0,
        Some(known) if call.hook == Hook::Route => known.between(&call.region, region).unwrap_or(f64::INFINITY),
        _ => f64::INFINITY,
    }
}

fn load(hook: Hook, row: &MonolithRow) -> f64 {
    let count = match hook {
        Hook::Route => f64::from(row.inflight),
        _ => f64::from(row.rooms) + f64::from(row.pending),
    };
    count / (row.age_s / SLOW_START_S).clamp(LEAST_SHARE, 1.0)
}

/// Why a Monolith may not be chosen in this call, if it may not.
pub fn why_not(call: &Call, view: &View, id: &MonolithId) -> Option<&'static str> {
    match view.get(id) {
        None => Some("no such monolith"),
        Some(_) if call.excluded.contains(id) => Some("already tried in this attempt"),
        Some(row) if row.draining => Some("draining"),
        Some(row) if !row.serves() => Some("not serving"),
        Some(_) => None,
    }
}

/// The fault of naming only Monoliths that may not be chosen; `named` holds at least one.
pub(super) fn not_eligible(call: &Call, named: &[MonolithId], view: &View) -> Fault {
    let id = &named[0];
    let why = why_not(call, view, id).unwrap_or("not serving");
    let known: Vec<&str> = view.rows().iter().take(NAMED_IN_MESSAGES).map(|row| row.id.as_str()).collect();
    let more = view.rows().len().saturating_sub(NAMED_IN_MESSAGES);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    let others =
        if named.len() > 1 { format!(" and {} others, none of them eligible", named.len() - 1) } else { String::new() };
    let message = format!("{} named {:?}{others}: {why} (known: {}{rest})", call.hook, id.as_str(), known.join(", "));
    Fault { kind: FaultKind::NotEligible, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::MonolithState;
    use crate::policy::Builtin;

    struct Says(Result<Answer, Fault>);

    impl Policy for Says {
        fn call(&mut self, _: &Call, _: &View) -> Result<Answer, Fault> {
            self.0.clone()
        }
    }

    fn row(id: &str, region: &str, rooms: u32) -> MonolithRow {
        MonolithRow { id: id.into(), region: region.into(), rooms, ..MonolithRow::default() }
    }

    fn view() -> View {
        let draining = MonolithRow { state: MonolithState::Draining, draining: true, ..row("gone", "ewr", 0) };
        View::of([row("a", "cdg", 0), row("b", "ewr", 9), row("c", "ewr", 3), draining])
    }

    fn call(hook: Hook, excluded: &[&str]) -> Call {
        let excluded = excluded.iter().map(|id| MonolithId::from(*id)).collect();
        serde_json::from_value::<Call>(serde_json::json!({"hook": hook, "region": "ewr"}))
            .map(|call| Call { excluded, ..call })
            .unwrap()
    }

    fn check(says: Result<Answer, Fault>, excluded: &[&str], choices: &[&str]) -> Decision {
        let first = settle_first(says.clone(), &call(Hook::Place, excluded), &view(), None);
        let decision = decide(&mut Says(says), &call(Hook::Place, excluded), &view());
        assert_eq!((&first.answer, &first.fault), (&decision.answer, &decision.fault));
        assert_eq!(first.choices.first(), decision.choices.first());
        let chosen: Vec<&str> = decision.choices.iter().map(MonolithId::as_str).collect();
        assert_eq!(chosen, choices, "{decision:?}");
        decision
    }

    fn named(ids: &[&str]) -> Result<Answer, Fault> {
        Ok(Answer::Ranked(ids.iter().map(|id| MonolithId::from(*id)).collect()))
    }

    #[test]
    fn the_default_is_own_region_then_fewest_rooms_then_anybody() {
        check(Ok(Answer::Default), &[], &["c", "b", "a"]);
        check(Ok(Answer::Default), &["b", "c"], &["a"]);
        check(Ok(Answer::Default), &["a", "b", "c"], &[]);
        let decision = decide(&mut Builtin, &call(Hook::Place, &[]), &view());
        assert_eq!((decision.answer, decision.choices[0].as_str(), decision.fault), (Answer::Default, "c", None));
    }

    #[test]
    fn who_has_just_come_back_gets_its_share_little_by_little() {
        let aged = |id: &str, rooms, age_s| MonolithRow { age_s, ..row(id, "ewr", rooms) };
        let first = |fresh: MonolithRow| {
            let view = View::of([aged("old", 50, 900.0), fresh]);
            decide(&mut Builtin, &call(Hook::Place, &[]), &view).choices[0].clone()
        };
        for (rooms, age_s, expected) in
            [(0, 0.0, "new"), (4, 0.0, "new"), (6, 0.0, "old"), (20, 15.0, "new"), (26, 15.0, "old"), (49, 30.0, "new")]
        {
            assert_eq!(first(aged("new", rooms, age_s)).as_str(), expected, "{rooms} rooms after {age_s} s");
        }
    }

    #[test]
    fn what_a_policy_names_goes_first_if_it_may_be_chosen() {
        assert_eq!(check(named(&["a", "b"]), &[], &["a", "b", "c"]).fault, None);
        assert_eq!(check(named(&["gone", "a", "a", "m9"]), &[], &["a", "c", "b"]).fault, None);
        assert_eq!(check(named(&[]), &[], &["c", "b", "a"]).fault, None);
        for (wrong, why) in [("gone", "draining"), ("m9", "no such monolith (known: a, b, c, gone)")] {
            let decision = check(named(&[wrong]), &[], &["c", "b", "a"]);
            let fault = decision.fault.unwrap();
            assert_eq!((decision.answer, fault.kind), (Answer::Default, FaultKind::NotEligible));
            assert!(fault.message.contains(why), "{fault}");
        }
        assert!(check(named(&["a"]), &["a"], &["c", "b"]).fault.is_some());
    }

    #[test]
    fn a_fault_is_kept_and_the_default_decides() {
        let fault = Fault { kind: FaultKind::Fuel, message: "x".into() };
        assert_eq!(check(Err(fault.clone()), &[], &["c", "b", "a"]).fault, Some(fault));
    }

    #[test]
    fn a_rejection_names_nobody() {
        let reject = Answer::Reject { code: 503, reason: String::new() };
        assert_eq!(check(Ok(reject.clone()), &[], &[]).answer, reject);
    }

    #[test]
    fn route_counts_requests_and_knows_distances() {
        let busy = |id: &str, region: &str, inflight| MonolithRow { inflight, ..row(id, region, 0) };
        let view = View::of([busy("a", "cdg", 0), busy("b", "iad", 5), busy("c", "iad", 2)]);
        let distances = Distances::new(|_, to| Some(if to.as_str() == "iad" { 6.0 } else { 75.0 }));
        let first = |distances| decide_near(&mut Builtin, &call(Hook::Route, &[]), &view, distances).choices[0].clone();
        assert_eq!(first(Some(&distances)).as_str(), "c");
        assert_eq!(first(None).as_str(), "a");
    }
}
