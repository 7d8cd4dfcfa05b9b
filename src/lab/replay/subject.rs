//! Who decides again: one version in a VM that has made all earlier calls, and now and then in a fresh one beside it. And
//! the versions of a trace, each under its content hash.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config;
use crate::model::policy::{Answer, Call, Decision, Fault, FaultKind, View};
use crate::model::read::Read;
use crate::policy::Policy;
use crate::policy::decide::settle_first;
use crate::policy::lua::{Distances, Environment, Limits, LoadError, Origin, Program, SharedState, Source, Vm};
use crate::trace::record::{Header, Outcome, PolicyText};

/// So many first calls are made in a fresh VM too; after that, those whose number is a power of two.
const ALWAYS_FRESH: u64 = 8;
/// Versions of a trace that are kept; beyond them the one that decided longest ago is forgotten.
const VERSIONS: usize = 16;
/// CPU time of one call, which only ends what would never end.
const BUDGET: Duration = Duration::from_secs(1);

/// The most safepoints and the bytes that a trace may ask for: as much as a configuration may. A memory of 0 would be no
/// limit at all.
const FUEL: u64 = 1_000_000_000;
const MEMORY: std::ops::RangeInclusive<usize> = 1 << 20..=1 << 30;

/// The same with time enough on a slow machine.
pub(super) fn patient(environment: &Environment) -> Environment {
    let limits = Limits { budget: BUDGET, ..environment.limits };
    Environment { limits, ..environment.clone() }
}

/// What a recorded version could use in one call.
pub(in crate::lab) fn limits(text: &PolicyText) -> Limits {
    let memory = text.memory.clamp(*MEMORY.start(), *MEMORY.end());
    Limits { fuel: text.fuel.clamp(1, FUEL), budget: BUDGET, memory }
}

/// What a recorded version could know and use, with a state that starts empty.
pub(super) fn environment(text: &PolicyText, distances: &config::Distances) -> Environment {
    let distances = distances.clone();
    Environment {
        distances: Distances::new(move |from, to| distances.ms(from, to)),
        settings: text.settings.clone(),
        limits: limits(text),
        state: Arc::new(SharedState::default()),
    }
}

/// One version at work.
pub(super) struct Warm {
    program: Program,
    vm: Vm,
    calls: u64,
}

/// One call, decided again.
pub(super) struct Redecided {
    pub(super) decision: Decision,
    /// Nanoseconds of the call.
    pub(super) ns: u64,
    /// Whether something outlives a call that the contract does not know.
    pub(super) hidden_state: bool,
}

impl Warm {
    pub(super) fn new(program: &Program) -> Result<Self, LoadError> {
        Ok(Self { program: program.clone(), vm: Vm::new(program)?, calls: 0 })
    }

    pub(super) fn version(&self) -> &str {
        self.program.version()
    }

    /// Whether it decides with the settings and limits of this text.
    pub(super) fn is_set_as(&self, text: &PolicyText) -> bool {
        let environment = self.program.environment();
        let (own, recorded) = (environment.limits, limits(text));
        environment.settings == text.settings && (own.fuel, own.memory) == (recorded.fuel, recorded.memory)
    }

    /// The policy's name.
    pub(super) fn name(&self) -> &str {
        self.vm.name()
    }

    /// One decision; with `reads`, from what a recorded call of this version read.
    pub(super) fn decide(&mut self, call: &Call, view: &View, reads: Option<&[Read]>) -> Redecided {
        self.calls += 1;
        let compared = self.calls > 1 && (self.calls <= ALWAYS_FRESH || self.calls.is_power_of_two());
        // Counters and kept values are part of the contract, so the fresh VM begins with the same ones.
        let state = compared.then(|| Arc::new(self.program.environment().state.copy()));
        if let Some(reads) = reads {
            self.vm.feed(reads.to_vec());
        }
        let began = Instant::now();
        let answer = self.vm.call(call, view);
        let took = began.elapsed();
        // What it reads besides depends on something that is no part of the call.
        let reads_matched = reads.is_none() || self.vm.reads_matched();
        let differs = state.is_some_and(|state| !alike(&answer, &self.fresh(state, call, view, reads)));
        let environment = self.program.environment();
        let decision = settle_first(answer, call, view, Some(&environment.distances));
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        Redecided { decision, ns, hidden_state: differs || !reads_matched }
    }

    fn fresh(
        &self,
        state: Arc<SharedState>,
        call: &Call,
        view: &View,
        reads: Option<&[Read]>,
    ) -> Result<Answer, Fault> {
        let environment = Environment { state, ..self.program.environment().clone() };
        let vm = Vm::new(&self.program.within(&environment));
        let mut vm = vm.map_err(|error| Fault { kind: FaultKind::Error, message: error.to_string() })?;
        if let Some(reads) = reads {
            vm.feed(reads.to_vec());
        }
        vm.call(call, view)
    }

    /// What the last call gave to `usher.explain`.
    pub(super) fn take_explanations(&mut self) -> Vec<String> {
        self.vm.take_explanations()
    }
}

/// Whether two VMs agree. CPU time says as much about the machine as about the policy, memory as much about the calls
/// before.
fn alike(warm: &Result<Answer, Fault>, fresh: &Result<Answer, Fault>) -> bool {
    let by_chance = |result: &Result<Answer, Fault>| match result {
        Err(fault) => matches!(fault.kind, FaultKind::CpuTime | FaultKind::Memory),
        Ok(_) => false,
    };
    warm == fresh || by_chance(warm) || by_chance(fresh)
}

/// The versions of a trace.
pub(super) struct OwnVersions {
    known: Vec<Own>,
    distances: config::Distances,
    clock: u64,
}

struct Own {
    text: PolicyText,
    warm: Option<Box<Warm>>,
    used: u64,
}

impl OwnVersions {
    pub(super) fn new(header: &Header) -> Self {
        let mut own = Self { known: Vec::new(), distances: header.distances.clone(), clock: 0 };
        own.declare(&header.policy);
        own
    }

    /// Another file begins.
    pub(super) fn take_up(&mut self, header: &Header) {
        if self.distances != header.distances {
            self.distances = header.distances.clone();
            self.known.iter_mut().for_each(|own| own.warm = None);
        }
        self.declare(&header.policy);
    }

    /// A version decides from here on, perhaps with other settings than before.
    pub(super) fn declare(&mut self, text: &PolicyText) {
        self.clock += 1;
        let used = self.clock;
        if let Some(own) = self.known.iter_mut().find(|own| own.text.version == text.version) {
            own.used = used;
            if own.text != *text {
                (own.text, own.warm) = (text.clone(), None);
            }
            return;
        }
        if self.known.len() >= VERSIONS {
            let oldest = (0..self.known.len()).min_by_key(|at| self.known[*at].used).unwrap_or(0);
            self.known.swap_remove(oldest);
        }
        self.known.push(Own { text: text.clone(), warm: None, used });
    }

    /// The version of this hash; `Err(None)` if the trace does not hold it, and the reason if it cannot be used.
    pub(super) fn get(&mut self, version: &str) -> Result<&mut Warm, Option<LoadError>> {
        self.clock += 1;
        let Some(own) = self.known.iter_mut().find(|own| own.text.version == version) else { return Err(None) };
        own.used = self.clock;
        let warm = match own.warm.take() {
            Some(warm) => warm,
            None => {
                let PolicyText { name, file, source, .. } = &own.text;
                let source = Source { name: name.clone(), text: source.clone(), origin: Origin::File(file.into()) };
                let program = Program::compile(source, &environment(&own.text, &self.distances))?;
                Box::new(Warm::new(&program)?)
            }
        };
        Ok(own.warm.insert(warm))
    }

    /// What the version that decided has to say about its decision.
    pub(super) fn explain(&mut self, call: &Call, view: &View, outcome: &Outcome) -> Vec<String> {
        let Ok(warm) = self.get(&outcome.policy) else { return Vec::new() };
        warm.vm.feed(outcome.reads.clone());
        let _ = warm.vm.call(call, view);
        warm.take_explanations()
    }
}
