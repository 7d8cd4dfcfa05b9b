//! Calls that a new version has to survive before it decides anything.

use super::Policy;
use super::decide::is_eligible;
use super::lua::{Environment, LoadError, Program, Vm};
use crate::model::policy::{
    Answer, Call, CallClient, CallRequest, CallRoom, Cause, Fault, FaultKind, Hook, MonolithRow, View,
};
use crate::model::{MonolithId, Region};

/// The Monoliths of the view that is made up.
const SYNTHETIC: [&str; 3] = ["smoke-1", "smoke-2", "smoke-3"];

/// One call of each hook on a view, as they come in practice: one client joins a room; a request lists rooms.
pub fn calls(region: &Region, now_us: u64) -> Vec<Call> {
    let room = CallRoom {
        name: Some("smoke".into()),
        region: Some(region.clone()),
        clients: 1,
        regions: [(region.clone(), 1)].into(),
        attempt: 1,
        ..CallRoom::default()
    };
    let client = CallClient { region: Some(region.clone()), reconnect: false, attempt: 1 };
    let request = CallRequest { method: "GET".into(), path: "/api/data/smoke".into(), ..CallRequest::default() };
    let call = |hook| Call {
        hook,
        now_us,
        seed: 1,
        region: region.clone(),
        room: matches!(hook, Hook::Admit | Hook::Place).then(|| room.clone()),
        client: matches!(hook, Hook::Admit | Hook::Place).then(|| client.clone()),
        cause: (hook == Hook::Place).then_some(Cause::Join),
        request: matches!(hook, Hook::Admit | Hook::Route).then(|| request.clone()),
        excluded: Vec::new(),
        rooms: [].into(),
    };
    Hook::ALL.map(call).to_vec()
}

/// What could move is on a Monolith of the view, as it always is.
fn with_rooms(call: &Call, view: &View) -> Call {
    let owner = view.rows().first().filter(|_| call.hook == Hook::Rebalance);
    let room = owner.map(|owner| CallRoom {
        name: Some("smoke".into()),
        region: Some(call.region.clone()),
        clients: 1,
        regions: [(call.region.clone(), 1)].into(),
        attempt: 1,
        bound: true,
        owner: Some(owner.id.clone()),
        ..CallRoom::default()
    });
    Call { rooms: room.into_iter().collect(), ..call.clone() }
}

/// Three Monoliths in two regions, for when there is no live view.
pub fn synthetic_view(region: &Region) -> View {
    let row = |id: &str, region: &str, rooms| MonolithRow {
        id: MonolithId::from(id),
        region: Region::from(region),
        rooms,
        age_s: 60.0,
        ..MonolithRow::default()
    };
    let [a, b, c] = SYNTHETIC;
    View::of([row(a, region.as_str(), 3), row(b, region.as_str(), 1), row(c, "elsewhere", 0)])
}

/// Whether an answer leaves nobody to choose although somebody serves. In the view that is made up it says nothing: a
/// policy may name Monoliths of its own fleet.
fn names_nobody(call: &Call, view: &View, named: &[MonolithId]) -> bool {
    let made_up = || view.rows().iter().all(|row| SYNTHETIC.contains(&row.id.as_str()));
    !named.is_empty()
        && view.rows().iter().any(MonolithRow::serves)
        && !named.iter().any(|id| is_eligible(call, view, id))
        && !made_up()
}

/// Makes these calls of the hooks that the policy has; the first fault is the reason to refuse it.
///
/// Counters and kept values are those of a copy, so that trying a policy leaves no trace.
pub fn test(program: &Program, smoke: &[(Call, View)]) -> Result<(), LoadError> {
    let environment = Environment { state: program.environment().state.copy().into(), ..program.environment().clone() };
    let mut vm = Vm::new(&program.within(&environment))?;
    for (call, view) in smoke {
        if !vm.has(call.hook) {
            continue;
        }
        let call = &with_rooms(call, view);
        // CPU time says as much about the machine as about the policy, so it gets a second chance.
        let answer = match vm.call(call, view) {
            Err(Fault { kind: FaultKind::CpuTime, .. }) => vm.call(call, view),
            answer => answer,
        };
        let message = match answer {
            Ok(Answer::Ranked(named)) if names_nobody(call, view, &named) => {
                let named: Vec<&str> = named.iter().take(3).map(MonolithId::as_str).collect();
                Some(format!("it names only Monoliths that may not be chosen ({})", named.join(", ")))
            }
            Ok(_) => None,
            Err(fault) => Some(fault.message),
        };
        if let Some(message) = message {
            let refused = program.refused(&format!("in a smoke call of {}: ", call.hook), &message);
            return Err(LoadError { line: refused.line.or(vm.hook_lines()[call.hook as usize]), ..refused });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::lua::Source;

    #[test]
    fn a_policy_that_names_nobody_who_serves_is_refused_on_the_live_view_alone() {
        let text = "return {\n place = function(call) return 'gone' end }";
        let program = Program::compile(Source::shipped("x", text), &Environment::default()).unwrap();
        let region = Region::from("ewr");
        let on = |view: &View| {
            let smoke: Vec<_> = calls(&region, 0).into_iter().map(|call| (call, view.clone())).collect();
            test(&program, &smoke)
        };
        let row = |id: &str| MonolithRow { id: id.into(), ..MonolithRow::default() };
        on(&synthetic_view(&region)).unwrap();
        on(&View::default()).unwrap();
        on(&View::of([row("m1"), row("gone")])).unwrap();
        let error = on(&View::of([row("m1")])).unwrap_err();
        assert_eq!(error.line, Some(2));
        assert!(error.reason.contains("names only Monoliths that may not be chosen (gone)"), "{error}");
    }
}
