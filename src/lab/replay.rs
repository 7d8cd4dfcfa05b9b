//! Replay, open loop: every recorded call is decided again, and what comes of it is held against what was recorded, or
//! against another policy. Decisions do not depend on each other here: a room that goes elsewhere is still recorded where
//! it was.
//!
//! A policy whose version is the one that decided is given what the recorded call read from outside of its data. Any other
//! reads its call's clock, draws from its call's seed, and has counters and kept values of its own, which start empty.
//! Calls may use the recorded `policy.fuel` and `policy.memory`; CPU time says more about the machine than about the
//! policy, so it is bounded only against calls that never end.

mod changes;
mod figures;
mod gate;
mod placements;
mod replayed;
mod subject;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Instant;

use self::changes::{Changes, Seen};
use self::figures::Tally;
use self::placements::Placements;
use self::subject::{OwnVersions, Warm};
use crate::model::assertion::Assertion;
use crate::model::policy::{Call, Decision, FaultKind, Hook, View};
use crate::policy::lua::{Environment, LoadError, Program, Source};
use crate::policy::verdict::Verdict;
use crate::trace::Item;
use crate::trace::read::{OnDamage, Reader, TraceError};
use crate::trace::record::{Gap, Header, Outcome, PolicyText};

pub use self::changes::Example;
pub use self::gate::{GateReport, replay_gate};
pub use self::replayed::{Named, Replayed};
pub(super) use self::subject::limits as recorded_limits;

/// Decisions between two looks at the clock.
const LOOK: u64 = 64;

/// A policy that decides instead of the recorded ones.
#[derive(Clone)]
pub struct Instead {
    /// Its text.
    pub source: Source,
    /// Its settings, limits and distances; none: those of the policy at the head of the trace.
    pub environment: Option<Environment>,
}

/// What to replay.
#[derive(Clone, Default)]
pub struct Plan {
    /// Who decides; none: for each decision the version that decided it, whose text is in the trace.
    pub policy: Option<Instead>,
    /// With whom it is compared; none: with what was recorded.
    pub against: Option<Instead>,
    /// What is demanded of the figures.
    pub assertions: Vec<Assertion>,
    /// When it has to be over.
    pub until: Option<Instant>,
}

/// Why a replay cannot be made, or not to its end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A policy does not compile.
    #[error(transparent)]
    Policy(#[from] LoadError),
    /// [`Plan::until`] came first.
    #[error("it was not over in time: {decisions} decisions had been decided again")]
    TimedOut {
        /// How many had been decided again by then.
        decisions: u64,
    },
}

/// Why a decision is not decided again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Passed {
    /// An open breaker had kept it from the policy.
    Bypassed,
    /// It was, or is, stopped for its CPU time.
    CpuTime,
    /// It was stopped for the memory of its VM, which depends on the calls before it.
    Memory,
    /// It read more than is recorded of a call.
    ReadsLost,
    /// The trace does not hold the version that decided it.
    NoSuchVersion,
}

impl Passed {
    fn name(self) -> &'static str {
        match self {
            Self::Bypassed => "bypassed",
            Self::CpuTime => "cpu_time",
            Self::Memory => "memory",
            Self::ReadsLost => "reads_lost",
            Self::NoSuchVersion => "no_such_version",
        }
    }
}

/// One hook's share of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
struct OfHook {
    decisions: u64,
    agreed: u64,
    changed: u64,
    faults: u64,
}

/// Who is compared with whom.
enum Baseline {
    Recorded,
    Other(Box<Warm>),
}

/// A replay under way. One or several traces are read one after the other.
pub struct Replay {
    plan: Plan,
    /// The versions of the trace: they decide, or say why they decided as they did.
    own: OwnVersions,
    subject: Option<Box<Warm>>,
    baseline: Baseline,
    first: Header,
    header: Header,
    decisions: u64,
    agreed: u64,
    new_faults: u64,
    by_hook: BTreeMap<&'static str, OfHook>,
    passed: BTreeMap<Passed, u64>,
    hidden_state: u64,
    sides: [Tally; 2],
    placements: Placements,
    changes: Changes,
    /// Whether a policy that was named was recorded with other settings or limits than those that it decides with here.
    other_settings: bool,
    gaps: Gap,
    damaged: u64,
    first_damage: Option<String>,
    cut: bool,
    last_us: u64,
}

impl Replay {
    /// Compiles the policies. `header` is that of the first trace.
    pub fn new(header: &Header, plan: Plan) -> Result<Self, LoadError> {
        let mut own = OwnVersions::new(header);
        let compiled = |instead: &Instead| -> Result<Box<Warm>, LoadError> {
            let environment = match &instead.environment {
                Some(environment) => environment.clone(),
                None => subject::environment(&header.policy, &header.distances),
            };
            let program = Program::compile(instead.source.clone(), &subject::patient(&environment))?;
            Ok(Box::new(Warm::new(&program)?))
        };
        let policy = plan.policy.as_ref().map(compiled).transpose()?;
        let baseline = match plan.against.as_ref().map(compiled).transpose()? {
            Some(warm) => Baseline::Other(warm),
            None => Baseline::Recorded,
        };
        if policy.is_none() {
            // A trace whose policy does not compile is told before anything is read.
            own.get(&header.policy.version).map_err(|error| error.unwrap_or_else(|| own_missing(header)))?;
        }
        Ok(Self {
            plan,
            own,
            subject: policy,
            baseline,
            first: header.clone(),
            header: header.clone(),
            decisions: 0,
            agreed: 0,
            new_faults: 0,
            by_hook: BTreeMap::new(),
            passed: BTreeMap::new(),
            hidden_state: 0,
            sides: Default::default(),
            placements: Placements::default(),
            changes: Changes::default(),
            other_settings: false,
            gaps: Gap::default(),
            damaged: 0,
            first_damage: None,
            cut: false,
            last_us: 0,
        })
    }

    /// Decides everything in a trace again. `progress` hears of it every few decisions: how many there were so far.
    pub fn read(&mut self, reader: &mut Reader, progress: &mut dyn FnMut(u64)) -> Result<(), ReplayError> {
        let header = reader.header().clone();
        self.take_up(&header);
        // Whoever wants to hear of damage wants to hear of all of it.
        reader.skip_events(reader.on_damage() == OnDamage::Skip);
        let read = self.read_items(reader, progress);
        let (damaged, first) = reader.damage();
        self.damaged += damaged;
        if self.first_damage.is_none() {
            self.first_damage = first.map(ToString::to_string);
        }
        self.cut |= reader.was_cut();
        read
    }

    fn read_items(&mut self, reader: &mut Reader, progress: &mut dyn FnMut(u64)) -> Result<(), ReplayError> {
        let mut looked = 0;
        while let Some((t, item)) = reader.read()? {
            match item {
                Item::Decision { number, call, outcome } => {
                    let at_us = self.at(t);
                    self.last_us = self.last_us.max(at_us);
                    self.decision(number, at_us, &call, reader.view(), &outcome)?;
                    looked += 1;
                    if looked % LOOK == 0 {
                        progress(self.decisions);
                        if self.plan.until.is_some_and(|until| Instant::now() >= until) {
                            return Err(ReplayError::TimedOut { decisions: self.decisions });
                        }
                    }
                }
                Item::Header(header) => self.take_up(&header),
                Item::Policy(text) => self.declare(&text),
                Item::Gap(gap) => {
                    self.gaps.events += gap.events;
                    self.gaps.decisions += gap.decisions;
                }
                Item::Event(_) | Item::View => {}
            }
        }
        Ok(())
    }

    /// What there is to say when everything is read.
    pub fn finish(self) -> Replayed {
        Replayed::of(self)
    }

    fn take_up(&mut self, header: &Header) {
        self.own.take_up(header);
        self.declare(&header.policy);
        self.header = header.clone();
    }

    /// A version decides from here on. One that was named keeps the settings that it has, which is worth a note.
    fn declare(&mut self, text: &PolicyText) {
        self.own.declare(text);
        let subject = self.subject.as_deref().zip(self.plan.policy.as_ref());
        let baseline = match &self.baseline {
            Baseline::Other(warm) => Some(&**warm).zip(self.plan.against.as_ref()),
            Baseline::Recorded => None,
        };
        let named = subject.into_iter().chain(baseline).filter(|(_, instead)| instead.environment.is_none());
        self.other_settings |= { named }.any(|(warm, _)| warm.version() == text.version && !warm.is_set_as(text));
    }

    /// Microseconds since the first trace began. Files of one recording share their beginning.
    fn at(&self, t: u64) -> u64 {
        self.header.started_us.saturating_sub(self.first.started_us).saturating_add(t)
    }

    /// An error means that the version that decided does not even compile.
    fn decision(
        &mut self,
        number: u64,
        at_us: u64,
        call: &Call,
        view: &View,
        outcome: &Outcome,
    ) -> Result<(), LoadError> {
        // Between two policies it does not matter what became of the recorded call.
        if matches!(self.baseline, Baseline::Recorded)
            && let Some(passed) = not_comparable(outcome)
        {
            self.pass(passed);
            return Ok(());
        }
        let whole = !outcome.incomplete;
        let fed = |warm: &Warm| (whole && warm.version() == &*outcome.policy).then_some(outcome.reads.as_slice());
        let own = self.subject.is_none();
        let redecided = match &mut self.subject {
            Some(warm) => {
                let reads = fed(warm);
                warm.decide(call, view, reads)
            }
            None => match self.own.get(&outcome.policy) {
                Ok(warm) => {
                    if outcome.incomplete {
                        self.pass(Passed::ReadsLost);
                        return Ok(());
                    }
                    warm.decide(call, view, Some(&outcome.reads))
                }
                Err(Some(broken)) => return Err(broken),
                Err(None) => {
                    self.pass(Passed::NoSuchVersion);
                    return Ok(());
                }
            },
        };
        if own && is(&redecided.decision, FaultKind::CpuTime) {
            self.pass(Passed::CpuTime);
            return Ok(());
        }
        let other = match &mut self.baseline {
            Baseline::Recorded => None,
            Baseline::Other(warm) => {
                let reads = fed(warm);
                Some(warm.decide(call, view, reads))
            }
        };
        let to = Verdict::of(call.hook, &redecided.decision);
        let from = match &other {
            Some(other) => Verdict::of(call.hook, &other.decision),
            None => recorded(call.hook, outcome),
        };
        let agrees = match own {
            // The same version has to say the same, not only something that nobody notices.
            true => is_identical(outcome, &redecided.decision),
            false => from.agrees(&to),
        };
        let hidden = redecided.hidden_state || (own && !self.header.redacted && !agrees);
        self.hidden_state += u64::from(hidden);
        self.decisions += 1;
        self.agreed += u64::from(agrees);
        self.new_faults += u64::from(to.fault.is_some() && from.fault.is_none());
        let of_hook = self.by_hook.entry(call.hook.name()).or_default();
        of_hook.decisions += 1;
        of_hook.faults += u64::from(to.fault.is_some());
        *(if agrees { &mut of_hook.agreed } else { &mut of_hook.changed }) += 1;
        let answers =
            [other.as_ref().map_or(&outcome.answer, |other| &other.decision.answer), &redecided.decision.answer];
        let took = [other.as_ref().map_or(outcome.ns, |other| other.ns), redecided.ns];
        let before = from.first.and_then(|id| view.get(id));
        let after = if to.first == from.first { before } else { to.first.and_then(|id| view.get(id)) };
        self.sides[0].add(call, before, answers[0], &from, took[0]);
        self.sides[1].add(call, after, answers[1], &to, took[1]);
        if call.hook == Hook::Place {
            self.placements.add(at_us, view, [from.first, to.first]);
        }
        if agrees {
            return Ok(());
        }
        let Some(example) = self.changes.count(call.hook, &from, &to) else { return Ok(()) };
        let explain = match &mut self.subject {
            Some(warm) => warm.take_explanations(),
            None => self.own.get(&outcome.policy).map(Warm::take_explanations).unwrap_or_default(),
        };
        let from_explain = match &mut self.baseline {
            Baseline::Other(warm) => warm.take_explanations(),
            // Asked once more, a version that remembers would decide the next call otherwise.
            Baseline::Recorded if own => explain.clone(),
            Baseline::Recorded => self.own.explain(call, view, outcome),
        };
        let fault = redecided.decision.fault.as_ref().map(|fault| fault.message.clone());
        let seen = Seen { number, at_us, call, answers, from_explain, explain, fault };
        self.changes.example(example, seen);
        Ok(())
    }

    fn pass(&mut self, why: Passed) {
        *self.passed.entry(why).or_default() += 1;
    }
}

fn own_missing(header: &Header) -> LoadError {
    let reason = "the trace names a policy and does not hold its text; name one with --policy".into();
    LoadError { file: header.policy.file.clone(), line: None, reason }
}

/// Why a recorded outcome is nothing to compare with, if it is not.
fn not_comparable(outcome: &Outcome) -> Option<Passed> {
    match outcome.fallback.as_ref().map(|fault| fault.kind) {
        _ if outcome.bypassed => Some(Passed::Bypassed),
        Some(FaultKind::CpuTime) => Some(Passed::CpuTime),
        Some(FaultKind::Memory) => Some(Passed::Memory),
        _ => None,
    }
}

fn is(decision: &Decision, kind: FaultKind) -> bool {
    decision.fault.as_ref().is_some_and(|fault| fault.kind == kind)
}

fn recorded(hook: Hook, outcome: &Outcome) -> Verdict<'_> {
    Verdict::new(hook, &outcome.answer, outcome.choice.as_ref(), outcome.fallback.as_ref().map(|fault| fault.kind))
}

/// Whether a decision would be recorded in the same bytes. Answers hold no numbers with a fraction, so equal values are
/// equal bytes. A recorded message may name the whole path of a file of which the trace holds the name.
fn is_identical(outcome: &Outcome, decision: &Decision) -> bool {
    let faults = match (&outcome.fallback, &decision.fault) {
        (None, None) => true,
        (Some(old), Some(new)) => old.kind == new.kind && old.message.ends_with(&new.message),
        _ => false,
    };
    faults && outcome.answer == decision.answer && outcome.choice.as_ref() == decision.choices.first()
}
