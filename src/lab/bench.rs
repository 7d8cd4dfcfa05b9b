//! What decisions of a policy cost, by the number of Monoliths: time, safepoints, memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{generate, input};
use crate::model::MonolithId;
use crate::model::policy::{Call, Hook, View};
use crate::policy::decide::decide_near;
use crate::policy::lua::{Environment, LoadError, Program, SharedState, Source, Vm};

/// The most Monoliths of a size.
pub const MOST: usize = 100_000;
/// Different calls of each size, taken in turn.
const CALLS: u64 = 32;
const WARM_UP: (usize, Duration) = (100, Duration::from_millis(300));
const MEASURED: (usize, Duration) = (5_000, Duration::from_millis(1_500));

/// A policy's decisions of one hook.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bench {
    /// The policy's name.
    pub policy: String,
    /// The hook that was called.
    pub hook: Hook,
    /// Each size.
    pub sizes: Vec<Size>,
}

/// Decisions with one number of Monoliths.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Size {
    /// How many Monoliths there were.
    pub monoliths: usize,
    /// Half of the decisions took no longer.
    pub p50_ns: u64,
    /// 99 of 100 decisions took no longer.
    pub p99_ns: u64,
    /// The most safepoints of a call.
    pub fuel: u64,
    /// The most bytes that the VM held after a call.
    pub memory_bytes: usize,
    /// How many decisions were measured.
    pub decisions: usize,
    /// How many of them failed.
    pub faults: usize,
    /// Why the first of those failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// Measures decisions of a hook (`place`, or the first that the policy has, unless given). Between two decisions one
/// Monolith changes, as it does in practice; bringing the VM's copy up to date is part of the time.
pub fn bench(
    source: &Source,
    environment: &Environment,
    hook: Option<Hook>,
    sizes: &[usize],
) -> Result<Bench, LoadError> {
    let environment = Environment { state: Arc::new(SharedState::default()), ..environment.clone() };
    let program = Program::compile(source.clone(), &environment)?;
    let vm = Vm::new(&program)?;
    let first = || [Hook::Place, Hook::Route, Hook::Admit, Hook::Rebalance].into_iter().find(|hook| vm.has(*hook));
    let hook = match hook {
        Some(hook) if vm.has(hook) => hook,
        Some(hook) => {
            return Err(source.problem(None, format!("the policy has no {hook}; there is nothing to measure")));
        }
        None => first().ok_or_else(|| source.problem(None, "the policy has no hook; there is nothing to measure"))?,
    };
    let sizes = sizes.iter().map(|count| measure(&program, hook, *count)).collect::<Result<_, _>>()?;
    Ok(Bench { policy: vm.name().to_owned(), hook, sizes })
}

fn measure(program: &Program, hook: Hook, count: usize) -> Result<Size, LoadError> {
    let wrong = |reason: String| program.source().problem(None, reason);
    let given = generate::sized(hook, 1, count);
    let (_, mut view) = input::parse(Some(hook), &given).map_err(wrong)?;
    let ids: Vec<MonolithId> = view.rows().iter().map(|row| row.id.clone()).collect();
    let calls: Vec<Call> = (1..=CALLS)
        .filter_map(|seed| input::parse(Some(hook), &generate::sized(hook, seed, 1)).ok())
        .map(|(call, _)| call)
        .collect();
    let mut vm = Vm::new(program)?;
    let mut size =
        Size { monoliths: count, p50_ns: 0, p99_ns: 0, fuel: 0, memory_bytes: 0, decisions: 0, faults: 0, fault: None };
    let mut times: Vec<Duration> = Vec::new();
    for (most, time) in [WARM_UP, MEASURED] {
        (times, size.faults, size.fault) = (Vec::new(), 0, None);
        let until = Instant::now() + time;
        while times.len() < most && (times.is_empty() || Instant::now() < until) {
            let at = times.len();
            let call = &calls[at % calls.len()];
            change(&mut view, &ids, at);
            let began = Instant::now();
            let decision =
                std::hint::black_box(decide_near(&mut vm, call, &view, Some(&program.environment().distances)));
            times.push(began.elapsed());
            size.fuel = size.fuel.max(vm.fuel_used());
            size.memory_bytes = size.memory_bytes.max(vm.memory());
            if let Some(fault) = decision.fault {
                size.faults += 1;
                size.fault.get_or_insert(fault.message);
            }
        }
    }
    times.sort();
    let at = |percent: usize| u64::try_from(times[(times.len() - 1) * percent / 100].as_nanos()).unwrap_or(u64::MAX);
    Ok(Size { p50_ns: at(50), p99_ns: at(99), decisions: times.len(), ..size })
}

fn change(view: &mut View, ids: &[MonolithId], at: usize) {
    if let Some(id) = ids.get(at % ids.len().max(1)) {
        view.update(id, |row| row.rooms = (row.rooms + 1) % 1000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_measured_and_faults_are_counted() {
        let source = Source::shipped(
            "x",
            "return { name = 'calm', place = function(call) return usher.min_by(call.monoliths, function(m) return m.rooms end) end, route = function() error('no') end }",
        );
        let found = bench(&source, &Environment::default(), None, &[2, 20]).unwrap();
        assert_eq!((found.policy.as_str(), found.hook, found.sizes.len()), ("calm", Hook::Place, 2));
        let [small, large] = &found.sizes[..] else { panic!() };
        assert!(small.p50_ns > 0 && small.p50_ns <= small.p99_ns && large.fuel > small.fuel && large.memory_bytes > 0);
        assert_eq!((small.faults, small.monoliths, large.monoliths), (0, 2, 20));
        let found = bench(&source, &Environment::default(), Some(Hook::Route), &[3]).unwrap();
        assert_eq!(found.sizes[0].faults, found.sizes[0].decisions);
        assert!(found.sizes[0].fault.as_deref().unwrap().contains("x.lua:1: no"));
        assert!(
            bench(&source, &Environment::default(), Some(Hook::Admit), &[3])
                .unwrap_err()
                .reason
                .contains("has no admit")
        );
    }
}
