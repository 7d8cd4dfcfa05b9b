//! The policy under trial, behind the same breaker as in the live balancer, with counts and a stop-watch.

use std::sync::Arc;
use std::time::Instant;

use super::tally::Histogram;
use crate::model::policy::{Answer, Call, Decision, Fault, Hook, View};
use crate::policy::Policy;
use crate::policy::guarded::Guarded;
use crate::policy::lua::{LoadError, Program, Vm};

/// One VM of the policy with what is known of its decisions.
pub(super) struct Decider {
    policy: Guarded<Vm>,
    counts: Counts,
    ns: Histogram,
}

/// What is known of decisions.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) decisions: u64,
    /// Answers that could not be used, and calls that the open breaker kept from the policy.
    pub(super) faults: u64,
    pub(super) first_fault: Option<String>,
    /// The most safepoints of one call.
    pub(super) fuel: u64,
}

impl Decider {
    pub(super) fn new(program: &Program) -> Result<Self, LoadError> {
        let vm = Vm::new(program)?;
        let name = vm.name().to_owned();
        Ok(Self {
            policy: Guarded::new(&name, vm, Arc::default()),
            counts: Counts::default(),
            ns: Histogram::default(),
        })
    }

    pub(super) fn name(&mut self) -> String {
        self.policy.inner().name().to_owned()
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Nanoseconds of each decision.
    pub(super) fn ns(&self) -> &Histogram {
        &self.ns
    }

    /// Forgets what was counted.
    pub(super) fn start_counting(&mut self) {
        self.counts = Counts::default();
        self.ns = Histogram::default();
    }
}

impl Policy for Decider {
    fn call(&mut self, call: &Call, view: &View) -> Result<Answer, Fault> {
        let started = Instant::now();
        let answer = self.policy.call(call, view);
        self.ns.add(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
        self.counts.decisions += 1;
        self.counts.fuel = self.counts.fuel.max(self.policy.inner().fuel_used());
        self.counts.faults += u64::from(self.policy.bypassed());
        answer
    }

    fn has(&self, hook: Hook) -> bool {
        self.policy.has(hook)
    }

    fn settled(&mut self, _: &Call, _: &View, decision: &Decision) {
        if let Some(fault) = &decision.fault {
            self.counts.faults += 1;
            self.counts.first_fault.get_or_insert_with(|| fault.to_string());
        }
    }
}
