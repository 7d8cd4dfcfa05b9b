//! temporary
use super::Policy;
use crate::model::policy::{Answer, Call, Decision, View};
/// temporary
pub fn decide(policy: &mut dyn Policy, call: &Call, view: &View) -> Decision {
    let (answer, fault) = match policy.call(call, view) {
        Ok(a) => (a, None),
        Err(f) => (Answer::Default, Some(f)),
    };
    let mut rows: Vec<_> = view.rows().iter().filter(|r| r.serves() && !call.excluded.contains(&r.id)).collect();
    rows.sort_by_key(|r| (r.region != call.region, r.rooms + r.pending));
    let mut choices: Vec<_> = match &answer {
        Answer::Ranked(l) => l.iter().filter(|i| rows.iter().any(|r| r.id == **i)).cloned().collect(),
        _ => vec![],
    };
    if matches!(answer, Answer::Default | Answer::Ranked(_)) {
        for r in rows {
            if !choices.contains(&r.id) {
                choices.push(r.id.clone());
            }
        }
    }
    Decision { answer, choices, fault }
}
