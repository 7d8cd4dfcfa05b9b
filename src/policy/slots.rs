//! The VMs of one version: one for each thread that decides, with counters and a breaker in common.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Instant;

use super::Policy;
use super::decide::{is_eligible, not_eligible};
use super::fault_log::{FaultLog, LastFault};
use super::guarded::{Guarded, PolicyStats};
use super::lua::{LoadError, Program, Vm};
use super::tap::Heard;
use crate::model::policy::{Answer, Call, Fault, FaultKind, Hook, View};

/// All VMs of one version. Every decision is taken in one set, so no two versions mix.
pub struct PolicySet {
    program: Program,
    stats: Arc<PolicyStats>,
    faults: FaultLog,
    has: [bool; Hook::ALL.len()],
    /// Where each hook begins in the file.
    lines: [Option<u32>; Hook::ALL.len()],
    slots: Box<[Mutex<Guarded<Vm>>]>,
}

impl PolicySet {
    /// Builds a VM for each of `slots` threads, at least one.
    pub fn build(program: &Program, slots: usize) -> Result<Self, LoadError> {
        let stats = Arc::new(PolicyStats::default());
        let vms = (0..slots.max(1)).map(|_| Vm::new(program)).collect::<Result<Vec<_>, LoadError>>()?;
        let has = std::array::from_fn(|hook| vms[0].has(Hook::ALL[hook]));
        let lines = *vms[0].hook_lines();
        let slots =
            vms.into_iter().map(|vm| Mutex::new(Guarded::new(&program.source().name, vm, stats.clone()))).collect();
        Ok(Self { program: program.clone(), stats, faults: FaultLog::default(), has, lines, slots })
    }

    /// What its VMs run.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Whether the policy has a hook.
    pub fn has(&self, hook: Hook) -> bool {
        self.has[hook as usize]
    }

    /// Counters and breaker of all its VMs.
    pub fn stats(&self) -> &Arc<PolicyStats> {
        &self.stats
    }

    /// The last fault of any of its VMs.
    pub fn last_fault(&self) -> Option<LastFault> {
        self.faults.last()
    }

    /// One call in the calling thread's VM; every fault is told in the log, at a limited rate. A named Monolith that may not be chosen is counted as a fault here, since
    /// the core, which passes over it, does not know whose answer it was.
    pub fn call(&self, call: &Call, view: &View) -> Result<Answer, Fault> {
        self.counted(call, view, self.with_slot(|vm| vm.call(call, view)))
    }

    /// As [`PolicySet::call`], with what is to be known of the call besides; what it reads only on request.
    pub fn call_heard(&self, call: &Call, view: &View, reads: bool) -> (Result<Answer, Fault>, Heard) {
        let line = self.lines[call.hook as usize];
        let (answer, heard) = self.with_slot(|guarded| {
            let vm = guarded.inner();
            // A call that does not reach the policy must not tell the reasons of the one before.
            vm.take_explanations();
            vm.take_reads();
            vm.keep_reads(reads);
            let started = Instant::now();
            let answer = guarded.call(call, view);
            let (took, bypassed) = (started.elapsed(), guarded.bypassed());
            let vm = guarded.inner();
            vm.keep_reads(false);
            let reads = if reads { vm.take_reads() } else { None };
            (answer, Heard { reads, explained: vm.take_explanations(), took, bypassed, by_canary: false, line })
        });
        (self.counted(call, view, answer), heard)
    }

    fn counted(&self, call: &Call, view: &View, answer: Result<Answer, Fault>) -> Result<Answer, Fault> {
        match &answer {
            Err(fault) => self.faults.heard(&self.program.source().name, call, fault),
            Ok(Answer::Ranked(named)) if !named.is_empty() && !named.iter().any(|id| is_eligible(call, view, id)) => {
                self.stats.count_fault(call.hook, FaultKind::NotEligible);
                let source = self.program.source();
                let fault = not_eligible(call, named, view);
                // The script ran well, so the fault has no line of its own: the hook's is the nearest.
                let file = source.file();
                let line = self.lines[call.hook as usize];
                let at = line.map_or_else(|| file.clone(), |line| format!("{file}:{line}"));
                self.faults.heard(&source.name, call, &Fault { message: format!("{at}: {}", fault.message), ..fault });
            }
            Ok(_) => {}
        }
        answer
    }

    /// Runs `decide` with the calling thread's VM, or with any that is free. It must not wait for anything.
    pub fn with_slot<R>(&self, decide: impl FnOnce(&mut Guarded<Vm>) -> R) -> R {
        let own = thread_number() % self.slots.len();
        let (before, after) = self.slots.split_at(own);
        for slot in after.iter().chain(before) {
            match slot.try_lock() {
                Ok(mut vm) => return decide(&mut vm),
                // A VM is whole after any call that ended, and a call that did not end holds the lock.
                Err(TryLockError::Poisoned(poisoned)) => return decide(&mut poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        decide(&mut self.slots[own].lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A small number for each thread, so that threads spread over the slots without meeting.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: Cell<Option<usize>> = const { Cell::new(None) };
    }
    NUMBER.with(|number| {
        number.get().unwrap_or_else(|| {
            let fresh = NEXT.fetch_add(1, Relaxed);
            number.set(Some(fresh));
            fresh
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::MonolithRow;
    use crate::policy::lua::{Environment, Source};

    fn set(text: &str, slots: usize) -> PolicySet {
        let program = Program::compile(Source::shipped("test", text), &Environment::default()).unwrap();
        PolicySet::build(&program, slots).unwrap()
    }

    fn place() -> Call {
        serde_json::from_str(r#"{"hook":"place","region":"ewr"}"#).unwrap()
    }

    #[test]
    fn a_busy_slot_is_passed_over() {
        let set = set("return { place = function() return 'm1' end }", 2);
        let nested = set.with_slot(|_| set.call(&place(), &View::default()));
        assert_eq!(nested, Ok(Answer::Ranked(vec!["m1".into()])));
    }

    #[test]
    fn the_hooks_of_the_policy_are_known_and_names_that_may_not_be_chosen_are_counted() {
        let set = set("return { place = function() usher.explain('because') return 'm1' end }", 1);
        assert!(set.has(Hook::Place) && !set.has(Hook::Route));
        let view = View::of([MonolithRow { id: "m1".into(), ..MonolithRow::default() }]);
        let (answer, heard) = set.call_heard(&place(), &view, false);
        assert_eq!((answer, heard.explained), (Ok(Answer::Ranked(vec!["m1".into()])), vec!["because".to_string()]));
        assert_eq!(set.stats().faults().count(), 0);
        set.call(&Call { excluded: vec!["m1".into()], ..place() }, &view).unwrap();
        set.call(&place(), &View::default()).unwrap();
        assert_eq!(set.stats().faults().collect::<Vec<_>>(), [(Hook::Place, FaultKind::NotEligible, 2)]);
        let last = set.last_fault().unwrap();
        assert_eq!((last.hook, last.kind, last.count), ("place", "not_eligible", 2));
        assert!(last.message.starts_with("policies/test.lua:1: place named \"m1\": no such"), "{}", last.message);
    }

    #[test]
    fn the_last_fault_of_a_call_is_known_with_its_line() {
        let set = set("return {\n place = function(call)\n  return call.rom.name\n end }", 1);
        assert_eq!(set.last_fault(), None);
        set.call(&place(), &View::default()).unwrap_err();
        let last = set.last_fault().unwrap();
        assert_eq!((last.hook, last.kind, last.count), ("place", "error", 1));
        assert!(last.message.contains("test.lua:3:"), "{}", last.message);
    }
}
