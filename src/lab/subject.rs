//! The policy under test: a VM that has made all earlier calls of its file, and now and then a fresh one beside it.
//! Where the two answer differently, something outlives a call that the contract does not know.

use std::sync::Arc;

use super::literal;
use crate::model::policy::{Call, Fault, FaultKind, View};
use crate::policy::lua::inspect::Lines;
use crate::policy::lua::{Environment, Inspection, LoadError, Program, Returned, Source, Vm};

/// So many first calls of each test are made in a fresh VM too; after that, those whose number is a power of two.
const ALWAYS_FRESH: u64 = 8;

pub(super) struct Subject {
    program: Program,
    warm: Vm,
    /// Calls of the running test, and of all tests.
    calls: u64,
    made: u64,
    /// What fresh VMs have run.
    lines: Lines,
}

/// What came of one call.
pub(super) struct Called {
    pub(super) result: Result<Returned, Fault>,
    /// What a fresh VM said instead, if it did.
    pub(super) fresh: Option<String>,
}

impl Subject {
    pub(super) fn new(source: Source, environment: &Environment, coverage: bool) -> Result<Self, LoadError> {
        let inspection = if coverage { Inspection::Coverage } else { Inspection::None };
        let program = Program::inspected(source, environment, inspection)?;
        let warm = Vm::new(&program)?;
        Ok(Self { program, warm, calls: 0, made: 0, lines: Lines::default() })
    }

    pub(super) fn begin_test(&mut self) {
        self.calls = 0;
    }

    pub(super) fn vm(&self) -> &Vm {
        &self.warm
    }

    pub(super) fn call(&mut self, call: &Call, view: &View) -> Called {
        self.calls += 1;
        let compared = self.made > 0 && (self.calls <= ALWAYS_FRESH || self.calls.is_power_of_two());
        // Counters and kept values are part of the contract, so the fresh VM begins with the same ones.
        let state = compared.then(|| Arc::new(self.program.environment().state.copy()));
        let result = self.warm.call_returned(call, view);
        self.made += 1;
        let fresh = state.and_then(|state| {
            let environment = Environment { state, ..self.program.environment().clone() };
            let mut vm = Vm::new(&self.program.within(&environment)).ok()?;
            let fresh = vm.call_returned(call, view);
            self.lines.merge(&vm.coverage());
            (!alike(&result, &fresh)).then(|| literal::answer(&fresh))
        });
        Called { result, fresh }
    }

    /// How often each line has run in all VMs.
    pub(super) fn coverage(&self) -> Lines {
        let mut lines = self.lines.clone();
        lines.merge(&self.warm.coverage());
        lines
    }
}

/// Whether two VMs agree. CPU time says as much about the machine as about the policy.
fn alike(warm: &Result<Returned, Fault>, fresh: &Result<Returned, Fault>) -> bool {
    let timed = |result: &Result<Returned, Fault>| matches!(result, Err(Fault { kind: FaultKind::CpuTime, .. }));
    warm == fresh || timed(warm) || timed(fresh)
}
