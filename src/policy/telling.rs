//! From a decision to a chapter of its room's story: the answer, what was overruled, and the data of those Monoliths that
//! mattered. With a thousand Monoliths it looks at a dozen.

use super::decide::why_not;
use super::tap::Seen;
use crate::model::MonolithId;
use crate::model::policy::{Answer, Call, Decision, Fault, FaultKind, View};
use crate::model::story::{Candidate, Decided, Overruled, PolicyOf};

/// What is known of a decision of `place` that somebody has seen.
pub fn told(seen: &Seen<'_>) -> Decided {
    let mut decided = decided(seen.call, seen.view, seen.decision, version(seen));
    decided.explained = explained(seen);
    decided.fault = fault(seen);
    decided.bypassed = seen.heard.bypassed;
    decided.ns = u64::try_from(seen.heard.took.as_nanos()).unwrap_or(u64::MAX);
    decided
}

/// A decision with what a trace holds of it, too: its call, the Monoliths, and what came of it.
pub fn decided(call: &Call, view: &View, decision: &Decision, policy: PolicyOf) -> Decided {
    let named: &[MonolithId] = if let Answer::Ranked(ids) = &decision.answer { ids } else { &[] };
    let monolith = decision.choices.first().cloned();
    let mut shown: Vec<&MonolithId> = Vec::with_capacity(Decided::CANDIDATES);
    let rest = view.rows().iter().map(|row| &row.id);
    for id in named.iter().take(Decided::CANDIDATES - 1).chain(&monolith).chain(&decision.choices).chain(rest) {
        if shown.len() == Decided::CANDIDATES {
            break;
        }
        if !shown.contains(&id) {
            shown.push(id);
        }
    }
    let candidates = shown.iter().filter_map(|id| {
        let row = view.get(id)?.clone();
        let place = named.iter().take(Decided::CANDIDATES).position(|other| other == *id);
        let why_not = why_not(call, view, id).map(str::to_string);
        Some(Candidate { row, named: place.map(|at| at + 1), why_not })
    });
    let overruled = named.iter().take(Decided::CANDIDATES).filter_map(|id| {
        let why = why_not(call, view, id)?.to_string();
        Some(Overruled { monolith: id.clone(), why })
    });
    let room = call.room.as_ref();
    Decided {
        hook: call.hook,
        cause: call.cause,
        attempt: room.map_or(1, |room| room.attempt),
        policy,
        region: room.and_then(|room| room.region.clone()),
        clients: room.map_or(0, |room| room.clients),
        previous: room.and_then(|room| room.previous.clone()),
        answer: beginning(&decision.answer),
        named: named.len(),
        fault: decision.fault.as_ref().map(|fault| shortened(&fault.message)),
        fault_kind: decision.fault.as_ref().map(|fault| fault.kind),
        bypassed: false,
        overruled: overruled.collect(),
        excluded: call.excluded.clone(),
        explained: Vec::new(),
        ns: 0,
        monoliths: view.rows().len(),
        candidates: candidates.collect(),
        monolith,
    }
}

/// The version that decided.
pub fn version(seen: &Seen<'_>) -> PolicyOf {
    let name = seen.by.source().name.clone();
    PolicyOf { name, version: seen.by.version().to_string(), canary: seen.heard.by_canary }
}

/// What the script explained, as far as it is kept.
pub fn explained(seen: &Seen<'_>) -> Vec<String> {
    explanations(&seen.heard.explained)
}

/// What a script explained, as far as it is kept.
pub fn explanations(texts: &[String]) -> Vec<String> {
    texts.iter().take(Decided::EXPLAINED).map(|text| shortened(text)).collect()
}

/// The fault of a decision with its place. A script that ran well and named the wrong Monolith has the line of its hook.
pub fn fault(seen: &Seen<'_>) -> Option<String> {
    Some(located(seen.decision.fault.as_ref()?, &seen.by.source().file(), seen.heard.line))
}

/// A fault with its place, where it does not name one itself: the file, and the line of the hook.
pub fn located(fault: &Fault, file: &str, line: Option<u32>) -> String {
    if fault.kind != FaultKind::NotEligible {
        return shortened(&fault.message);
    }
    let at = line.map_or_else(|| file.to_owned(), |line| format!("{file}:{line}"));
    shortened(&format!("{at}: {}", fault.message))
}

/// An answer, of which a long list is cut.
pub fn beginning(answer: &Answer) -> Answer {
    match answer {
        Answer::Ranked(ids) => Answer::Ranked(ids.iter().take(Decided::CANDIDATES).cloned().collect()),
        Answer::Reject { code, reason } => Answer::Reject { code: *code, reason: shortened(reason) },
        Answer::Moves(_) => Answer::Moves(Vec::new()),
        Answer::Default | Answer::Admit | Answer::Hold { .. } => answer.clone(),
    }
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(Decided::TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    if end == text.len() { text.into() } else { format!("{}...", &text[..end]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::{MonolithRow, MonolithState};
    use crate::policy::decide::settle;

    fn view(count: usize) -> View {
        let rows = (0..count).map(|n| MonolithRow {
            id: format!("m{n:04}").as_str().into(),
            region: "ewr".into(),
            rooms: n as u32,
            ..MonolithRow::default()
        });
        let draining = MonolithRow { state: MonolithState::Draining, draining: true, ..MonolithRow::default() };
        View::of(rows.chain([MonolithRow { id: "draining".into(), ..draining }]))
    }

    fn check(view: &View, answer: Answer) -> Decided {
        let call = serde_json::json!({"hook": "place", "region": "ewr", "cause": "join", "excluded": ["m0001"],
            "room": {"name": "x", "attempt": 2, "clients": 3}});
        let call: Call = serde_json::from_value(call).unwrap();
        let policy = PolicyOf { name: "p".into(), version: "v".into(), canary: false };
        decided(&call, view, &settle(Ok(answer), &call, view, None), policy)
    }

    fn ids(decided: &Decided) -> Vec<&str> {
        decided.candidates.iter().map(|candidate| candidate.row.id.as_str()).collect()
    }

    #[test]
    fn a_dozen_of_a_thousand_is_kept_those_that_were_named_first() {
        let view = view(1000);
        let told = check(&view, Answer::Ranked(["m0900", "draining", "nobody", "m0001"].map(Into::into).to_vec()));
        let expected =
            ["m0900", "draining", "m0001", "m0000", "m0002", "m0003", "m0004", "m0005", "m0006", "m0007", "m0008"];
        assert_eq!(ids(&told), expected, "an unknown one has no data");
        assert_eq!((told.monoliths, told.named, told.attempt, told.clients), (1001, 4, 2, 3));
        assert_eq!(told.monolith, Some("m0900".into()));
        let overruled: Vec<(&str, &str)> =
            told.overruled.iter().map(|one| (one.monolith.as_str(), one.why.as_str())).collect();
        let why =
            [("draining", "draining"), ("nobody", "no such monolith"), ("m0001", "already tried in this attempt")];
        assert_eq!(overruled, why);
        assert_eq!((told.candidates[0].named, told.candidates[1].named), (Some(1), Some(2)));
        let all: Vec<MonolithId> = view.rows().iter().map(|row| row.id.clone()).collect();
        let told = check(&view, Answer::Ranked(all));
        assert_eq!((told.candidates.len(), told.named), (12, 1001));
        assert_eq!(told.answer, Answer::Ranked(view.rows()[..12].iter().map(|row| row.id.clone()).collect()));
        assert!(ids(&told).contains(&"m0000"), "the chosen one is always there");
    }

    #[test]
    fn a_small_cluster_is_shown_whole_with_those_that_may_not_be_chosen() {
        let told = check(&view(2), Answer::Default);
        assert_eq!(ids(&told), ["m0000", "draining", "m0001"]);
        let why: Vec<Option<&str>> = told.candidates.iter().map(|one| one.why_not.as_deref()).collect();
        assert_eq!(why, [None, Some("draining"), Some("already tried in this attempt")]);
        let told = check(&view(2), Answer::Ranked(vec!["nobody".into()]));
        assert_eq!((told.fault_kind, told.answer), (Some(FaultKind::NotEligible), Answer::Default));
        let told = check(&view(2), Answer::Reject { code: 503, reason: "é".repeat(400) });
        let Answer::Reject { reason, .. } = told.answer else { panic!("{told:?}") };
        assert!((told.monolith, reason.len()) == (None, Decided::TEXT + 3), "{reason}");
    }
}
