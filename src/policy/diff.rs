//! What two versions said to the same calls: how often they agreed, where not, how even each would have placed rooms,
//! and how long each took.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::decide::settle;
use super::lua::Distances;
use super::times::Times;
use super::verdict::{self, Verdict};
use crate::model::MonolithId;
use crate::model::policy::{Answer, Call, Fault, FaultKind, Hook, View};

/// Kinds of changed decisions that are told apart; what comes beyond is counted together.
const GROUPS: usize = 100;
/// Examples of each kind, and of all kinds together in a document.
const EXAMPLES: (usize, usize) = (3, 30);
/// Texts of `usher.explain` in an example.
const EXPLAINED: usize = 8;
/// Monoliths whose rooms are counted; a fleet has fewer, unless its ids change all the time.
const MONOLITHS: usize = 1024;

/// What one version made of a call.
pub(super) struct Side<'a> {
    pub(super) answer: &'a Result<Answer, Fault>,
    pub(super) explained: &'a [String],
    pub(super) took: Duration,
}

/// The comparison so far.
#[derive(Default)]
pub(super) struct Diff {
    calls: u64,
    agreed: u64,
    by_canary: u64,
    faults: BTreeMap<FaultKind, u64>,
    active_faults: u64,
    times: [Times; 2],
    /// Rooms that each version would have placed, by Monolith: active, shadow.
    placed: BTreeMap<MonolithId, [u64; 2]>,
    membership: u64,
    changed: BTreeMap<(&'static str, String, String), Group>,
    changed_beyond: u64,
}

#[derive(Default)]
struct Group {
    count: u64,
    examples: Vec<Value>,
}

impl Diff {
    /// Takes in one call. `canary` says that a canary decided it instead of the active version.
    pub(super) fn add(
        &mut self,
        (call, view): (&Call, &View),
        active: &Side<'_>,
        shadow: &Side<'_>,
        canary: bool,
        distances: &Distances,
    ) {
        let settled = |side: &Side<'_>| settle(side.answer.clone(), call, view, Some(distances));
        let (from, to) = (settled(active), settled(shadow));
        let (from, to) = (Verdict::of(call.hook, &from), Verdict::of(call.hook, &to));
        self.calls += 1;
        self.by_canary += u64::from(canary);
        self.active_faults += u64::from(from.fault.is_some());
        if let Some(kind) = to.fault {
            *self.faults.entry(kind).or_default() += 1;
        }
        self.times[0].add(active.took);
        self.times[1].add(shadow.took);
        if call.hook == Hook::Place {
            self.place(view, [from, to]);
        }
        if from.agrees(&to) {
            self.agreed += 1;
        } else {
            self.change(call, (from, active), (to, shadow));
        }
    }

    fn place(&mut self, view: &View, verdicts: [Verdict<'_>; 2]) {
        if self.membership != view.membership() {
            self.membership = view.membership();
            // One that nobody chose counts for the mean as well.
            for row in view.rows().iter().filter(|row| row.serves()) {
                if self.placed.len() < MONOLITHS {
                    self.placed.entry(row.id.clone()).or_default();
                }
            }
        }
        for (side, verdict) in verdicts.into_iter().enumerate() {
            if let Some(counts) = verdict.first.and_then(|id| self.placed.get_mut(id)) {
                counts[side] += 1;
            }
        }
    }

    fn change(
        &mut self,
        call: &Call,
        (from, active): (Verdict<'_>, &Side<'_>),
        (to, shadow): (Verdict<'_>, &Side<'_>),
    ) {
        let key = (call.hook.name(), from.shown(), to.shown());
        if self.changed.len() >= GROUPS && !self.changed.contains_key(&key) {
            self.changed_beyond += 1;
            return;
        }
        let (from, to) = (key.1.clone(), key.2.clone());
        let group = self.changed.entry(key).or_default();
        group.count += 1;
        if group.examples.len() < EXAMPLES.0 {
            let texts = |side: &Side<'_>| side.explained.iter().take(EXPLAINED).cloned().collect::<Vec<_>>();
            let fault = shadow.answer.as_ref().err().map(|fault| fault.message.as_str());
            group.examples.push(json!({
                "hook": call.hook,
                "room": call.room.as_ref().and_then(|room| room.name.as_deref()),
                "path": call.request.as_ref().map(|request| &*request.path),
                "region": verdict::region(call),
                "from": from,
                "to": to,
                "from_explain": texts(active),
                "explain": texts(shadow),
                "fault": fault,
            }));
        }
    }

    /// How often they agreed, from 0 to 1; none before the first call.
    pub(super) fn agreement(&self) -> Option<f64> {
        (self.calls > 0).then(|| (self.agreed as f64 / self.calls as f64 * 1e6).round() / 1e6)
    }

    /// Calls, agreed, faults.
    pub(super) fn numbers(&self) -> (u64, u64, u64) {
        (self.calls, self.agreed, self.faults.values().sum())
    }

    /// Everything, as the admin API shows it.
    pub(super) fn document(&self) -> Map<String, Value> {
        let (calls, agreed, faults) = self.numbers();
        let kinds: Map<String, Value> =
            self.faults.iter().map(|(kind, n)| (kind.label().into(), (*n).into())).collect();
        let mut groups: Vec<_> = self.changed.iter().collect();
        groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.count));
        let changed: Vec<Value> = groups
            .iter()
            .map(|((hook, from, to), group)| json!({"hook": hook, "from": from, "to": to, "count": group.count}))
            .collect();
        let examples: Vec<&Value> = groups.iter().flat_map(|(_, group)| &group.examples).take(EXAMPLES.1).collect();
        let placed: Vec<Value> = self
            .placed
            .iter()
            .map(|(id, [active, shadow])| json!({"id": id, "active": active, "shadow": shadow}))
            .collect();
        let document = json!({
            "calls": calls,
            "agreed": agreed,
            "agreement": self.agreement(),
            "decided_by_canary": self.by_canary,
            "faults": faults,
            "faults_by_kind": kinds,
            "active_faults": self.active_faults,
            "time_ns": {"active": self.times[0].document(), "shadow": self.times[1].document()},
            "spread": {
                "monoliths": placed,
                "max_over_mean": {"active": self.max_over_mean(0), "shadow": self.max_over_mean(1)},
            },
            "changed": changed,
            "changed_beyond": self.changed_beyond,
            "examples": examples,
        });
        match document {
            Value::Object(document) => document,
            _ => Map::new(),
        }
    }

    /// The rooms of the Monolith with most, over the mean: 1 is even. Only what was placed since the beginning counts.
    fn max_over_mean(&self, side: usize) -> Option<f64> {
        let counts = || self.placed.values().map(|counts| counts[side]);
        let (sum, most): (u64, u64) = (counts().sum(), counts().max()?);
        (sum > 0).then(|| (most as f64 * self.placed.len() as f64 / sum as f64 * 1e3).round() / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::{MonolithRow, Move};

    fn view() -> View {
        View::of(["a", "b", "c", "d"].map(|id| MonolithRow { id: id.into(), ..MonolithRow::default() }))
    }

    fn call(value: Value) -> Call {
        serde_json::from_value(value).unwrap()
    }

    fn place(room: &str) -> Call {
        call(json!({"hook": "place", "region": "ewr", "room": {"name": room}, "client": {"region": "cdg"}}))
    }

    fn named(id: &str) -> Result<Answer, Fault> {
        Ok(Answer::Ranked(vec![id.into()]))
    }

    fn failed(kind: FaultKind) -> Result<Answer, Fault> {
        Err(Fault { kind, message: "x.lua:3: no".into() })
    }

    fn add(diff: &mut Diff, call: &Call, active: Result<Answer, Fault>, shadow: Result<Answer, Fault>) {
        let explained = ["because".to_string()];
        let side = |answer, us| Side { answer, explained: &explained, took: Duration::from_micros(us) };
        diff.add((call, &view()), &side(&active, 1), &side(&shadow, 4), false, &Distances::default());
    }

    #[test]
    fn agreement_is_of_what_the_core_would_have_done() {
        let mut diff = Diff::default();
        assert_eq!(diff.agreement(), None);
        add(&mut diff, &place("one"), named("b"), named("b"));
        // The default goes to the first of four equal ones, and a name that does not exist is a fault.
        add(&mut diff, &place("two"), Ok(Answer::Default), named("a"));
        add(&mut diff, &place("three"), named("a"), named("gone"));
        add(&mut diff, &place("four"), named("b"), named("c"));
        add(&mut diff, &place("five"), named("b"), named("c"));
        add(&mut diff, &place("six"), failed(FaultKind::Error), failed(FaultKind::Fuel));
        let reject = |code| Ok(Answer::Reject { code, reason: String::new() });
        add(&mut diff, &place("seven"), reject(503), reject(429));
        assert_eq!((diff.numbers(), diff.agreement()), ((7, 3, 2), Some(0.428571)));
        let document = Value::Object(diff.document());
        assert_eq!(document["faults_by_kind"], json!({"not_eligible": 1, "fuel": 1}));
        assert_eq!(document["active_faults"], 1);
        assert_eq!(document["changed"][0], json!({"hook": "place", "from": "b", "to": "c", "count": 2}));
        let pairs: Vec<(&str, &str)> = document["changed"].as_array().unwrap()[1..]
            .iter()
            .map(|group| (group["from"].as_str().unwrap(), group["to"].as_str().unwrap()))
            .collect();
        assert_eq!(pairs, [("a", "a (default after not_eligible)"), ("reject 503", "reject 429")]);
        let first = &document["examples"][0];
        assert_eq!(
            (&first["room"], &first["region"], &first["explain"]),
            (&json!("four"), &json!("cdg"), &json!(["because"]))
        );
        assert_eq!(document["time_ns"]["active"]["max"], 1000);
        assert!((3_300..4_700).contains(&document["time_ns"]["shadow"]["p50"].as_u64().unwrap()), "{document}");
    }

    #[test]
    fn admit_and_rebalance_are_compared_as_they_are() {
        let mut diff = Diff::default();
        let admit = call(json!({"hook": "admit", "region": "ewr"}));
        let hold = |ms| Ok(Answer::Hold { delay: Duration::from_millis(ms) });
        add(&mut diff, &admit, Ok(Answer::Default), Ok(Answer::Admit));
        add(&mut diff, &admit, hold(5), hold(6));
        let rebalance = call(json!({"hook": "rebalance", "region": "ewr"}));
        let moves = |to: &[&str]| {
            let one = |to: &&str| Move { room: format!("to-{to}"), to: (*to).into() };
            Ok(Answer::Moves(to.iter().map(one).collect()))
        };
        add(&mut diff, &rebalance, Ok(Answer::Default), moves(&[]));
        add(&mut diff, &rebalance, moves(&["a"]), moves(&["a"]));
        // The label is cut, the comparison is not.
        add(&mut diff, &rebalance, moves(&["a", "b", "c", "d"]), moves(&["a", "b", "c", "e"]));
        assert_eq!(diff.numbers(), (5, 3, 0));
        assert_eq!(diff.document()["changed"][0]["from"], "hold 5 ms");
    }

    #[test]
    fn the_spread_counts_those_that_nobody_chose() {
        let mut diff = Diff::default();
        for (number, id) in ["a", "b", "c", "d", "a", "b", "c", "d"].iter().enumerate() {
            add(&mut diff, &place(&number.to_string()), named(id), named("b"));
        }
        let spread = &diff.document()["spread"];
        assert_eq!(spread["max_over_mean"], json!({"active": 1.0, "shadow": 4.0}));
        assert_eq!(spread["monoliths"][1], json!({"id": "b", "active": 2, "shadow": 8}));
    }

    #[test]
    fn everything_is_bounded() {
        let mut diff = Diff::default();
        for number in 0..2_000u16 {
            let reject = |code| Ok(Answer::Reject { code, reason: String::new() });
            add(&mut diff, &place("one"), reject(number % 200), reject(7_777));
        }
        let document = Value::Object(diff.document());
        assert_eq!(document["changed"].as_array().unwrap().len(), GROUPS);
        assert_eq!(document["examples"].as_array().unwrap().len(), EXAMPLES.1);
        assert_eq!(document["changed_beyond"], 1_000);
    }
}
