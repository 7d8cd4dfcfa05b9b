//! Calls that a new version has to survive before it decides anything.

use super::Policy;
use super::lua::{Environment, LoadError, Program, Vm};
use crate::model::policy::{Call, CallClient, CallRequest, CallRoom, Cause, Fault, FaultKind, Hook, MonolithRow, View};
use crate::model::{MonolithId, Region};

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
    View::of([row("smoke-1", region.as_str(), 3), row("smoke-2", region.as_str(), 1), row("smoke-3", "elsewhere", 0)])
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
        if let Err(fault) = answer {
            let refused = program.refused(&format!("in a smoke call of {}: ", call.hook), &fault.message);
            return Err(LoadError { line: refused.line.or(vm.hook_lines()[call.hook as usize]), ..refused });
        }
    }
    Ok(())
}
