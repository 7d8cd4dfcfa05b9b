//! The active policy as workers see it: one VM for each worker, the whole set published at once.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use arc_swap::ArcSwap;

use super::guarded::{Guarded, PolicyStats};
use super::lua::{LoadError, Program, Vm};
use crate::model::policy::Hook;

/// All VMs of one version. Every decision is taken in one set, so no two versions mix.
pub struct PolicySet {
    generation: u64,
    program: Program,
    has: [bool; Hook::ALL.len()],
    stats: Arc<PolicyStats>,
    slots: Box<[Mutex<Guarded<Vm>>]>,
}

impl PolicySet {
    /// Builds a VM for each of `slots` workers, at least one.
    pub fn build(program: &Program, slots: usize) -> Result<Self, LoadError> {
        let stats = Arc::new(PolicyStats::default());
        let mut has = [false; Hook::ALL.len()];
        let slot = |_| {
            let vm = Vm::new(program)?;
            // The same in all of them.
            has = Hook::ALL.map(|hook| vm.has(hook));
            Ok(Mutex::new(Guarded::new(vm, stats.clone())))
        };
        let slots = (0..slots.max(1)).map(slot).collect::<Result<_, LoadError>>()?;
        Ok(Self { generation: 0, program: program.clone(), has, stats, slots })
    }

    /// Rises by one with each published set.
    pub fn generation(&self) -> u64 {
        self.generation
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

    /// A VM of its own for a thread that decides alone, with the same counters and breaker.
    pub fn extra(&self) -> Result<Guarded<Vm>, LoadError> {
        Ok(Guarded::new(Vm::new(&self.program)?, self.stats.clone()))
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

/// Where workers find the active set. A swap touches no connection and waits for nobody: calls that run finish in the
/// set in which they began, and it goes with the last of them.
pub struct PolicyHandle {
    current: ArcSwap<PolicySet>,
}

impl PolicyHandle {
    /// Starts with this set, as generation 1.
    pub fn new(mut set: PolicySet) -> Self {
        set.generation = 1;
        Self { current: ArcSwap::from_pointee(set) }
    }

    /// The active set.
    pub fn load(&self) -> arc_swap::Guard<Arc<PolicySet>> {
        self.current.load()
    }

    /// Makes a set the active one, and returns the one before it.
    pub fn publish(&self, mut set: PolicySet) -> Arc<PolicySet> {
        set.generation = self.current.load().generation + 1;
        self.current.swap(Arc::new(set))
    }

    /// [`PolicySet::with_slot`] of the active set.
    pub fn with_slot<R>(&self, decide: impl FnOnce(&mut Guarded<Vm>) -> R) -> R {
        self.load().with_slot(decide)
    }
}

/// A small number for each thread, so that workers spread over the slots without meeting.
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
    use crate::model::policy::{Answer, Call, View};
    use crate::policy::Policy;
    use crate::policy::lua::{Environment, Source};

    fn program(id: &str) -> Program {
        let text = format!("return {{ place = function() return '{id}' end }}");
        Program::compile(Source::shipped("test", &text), &Environment::default()).unwrap()
    }

    fn ask(policy: &mut Guarded<Vm>) -> Answer {
        let call: Call = serde_json::from_str(r#"{"hook":"place","region":"ewr"}"#).unwrap();
        policy.call(&call, &View::default()).unwrap()
    }

    #[test]
    fn f45_every_worker_is_on_the_published_version() {
        let handle = Arc::new(PolicyHandle::new(PolicySet::build(&program("old"), 2).unwrap()));
        let everywhere = |id: &str| {
            let threads: Vec<_> = (0..6)
                .map(|_| {
                    let handle = handle.clone();
                    std::thread::spawn(move || handle.with_slot(ask))
                })
                .collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), Answer::Ranked(vec![id.into()]));
            }
        };
        everywhere("old");
        let before = handle.publish(PolicySet::build(&program("new"), 2).unwrap());
        everywhere("new");
        assert_eq!((before.generation(), handle.load().generation()), (1, 2));
    }

    #[test]
    fn a_busy_slot_is_passed_over() {
        let set = PolicySet::build(&program("m1"), 2).unwrap();
        let nested = set.with_slot(|_| set.with_slot(ask));
        assert_eq!(nested, Answer::Ranked(vec!["m1".into()]));
    }
}
