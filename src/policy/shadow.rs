//! A shadow: a version that is asked everything too and decides nothing. It runs on a thread of its own that yields to
//! everything else; whoever decides hands a call over and waits for nothing.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Policy;
use super::diff::{Diff, Side};
use super::lua::{Distances, Environment, LoadError, Program, Vm};
use super::versions::Version;
use crate::model::policy::{Answer, Call, Fault, Hook, View};

/// Calls that may wait for the shadow. One that finds no room is not compared, and counted as skipped.
pub const QUEUE: usize = 1024;
/// Rows of Monoliths that copies of the view in the queue may hold together, some 20 MB. A call whose view would need
/// more is skipped like one that finds the queue full.
pub const QUEUED_ROWS: usize = 1 << 16;

/// A version that answers every call too.
pub struct Shadow {
    version: Version,
    program: Program,
    has: [bool; Hook::ALL.len()],
    queue: SyncSender<Handed>,
    /// The last view of each hook: calls between two changes of the Monoliths share one copy.
    views: [Mutex<Option<Arc<KeptView>>>; Hook::ALL.len()],
    shared: Arc<Shared>,
}

/// What was decided about a call.
pub(super) struct Seen {
    pub(super) answer: Result<Answer, Fault>,
    pub(super) explained: Vec<String>,
    pub(super) took: Duration,
    pub(super) by_canary: bool,
}

/// What the thread and those who hand calls over have in common.
#[derive(Default)]
struct Shared {
    diff: Mutex<Diff>,
    /// Rises with each comparison that begins anew: calls that were handed over before do not count.
    round: AtomicU64,
    skipped: AtomicU64,
    calls: AtomicUsize,
    rows: Arc<AtomicUsize>,
}

struct Handed {
    call: Call,
    view: Arc<KeptView>,
    seen: Seen,
    round: u64,
}

/// A copy of a view, which gives back its place in the bound of rows.
struct KeptView {
    view: View,
    revision: u64,
    rows: Arc<AtomicUsize>,
}

impl Drop for KeptView {
    fn drop(&mut self) {
        self.rows.fetch_sub(self.view.rows().len(), Relaxed);
    }
}

/// The round of a shadow that has ended: no call belongs to it.
const ENDED: u64 = u64::MAX;

impl Shadow {
    /// Starts the shadow. Its counters and kept values are a copy of those that the live policies share.
    pub fn start(program: &Program, version: Version) -> Result<Self, LoadError> {
        let live = program.environment();
        let program = program.within(&Environment { state: live.state.copy().into(), ..live.clone() });
        let vm = Vm::new(&program)?;
        let has = std::array::from_fn(|hook| vm.has(Hook::ALL[hook]));
        let (queue, handed) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name("usher-shadow".into()).spawn({
            let (shared, distances) = (shared.clone(), live.distances.clone());
            move || run(vm, &handed, &shared, &distances)
        });
        thread.map_err(|error| program.refused("", &format!("the shadow's thread could not be started: {error}")))?;
        Ok(Self { version, program, has, queue, views: Default::default(), shared })
    }

    /// Its version, and since when it runs.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// What it runs.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Whether the policy has this hook.
    pub fn has(&self, hook: Hook) -> bool {
        self.has[hook as usize]
    }

    /// Begins the comparison anew.
    pub(super) fn reset(&self) {
        let mut diff = lock(&self.shared.diff);
        self.shared.round.fetch_add(1, Relaxed);
        self.shared.skipped.store(0, Relaxed);
        *diff = Diff::default();
    }

    /// Hands over a call that was decided. Waits for nobody: a call that finds no room is skipped.
    pub(super) fn see(&self, call: &Call, view: &View, seen: Seen) {
        let round = self.shared.round.load(Relaxed);
        let room = self.shared.calls.fetch_update(Relaxed, Relaxed, |calls| (calls < QUEUE).then_some(calls + 1));
        // The copies are made only once it is known that there is room for them.
        let handed = room.ok().and_then(|_| {
            let view = self.kept(call.hook, view)?;
            self.queue.try_send(Handed { call: call.clone(), view, seen, round }).ok()
        });
        if handed.is_none() {
            if room.is_ok() {
                self.shared.calls.fetch_sub(1, Relaxed);
            }
            self.shared.skipped.fetch_add(1, Relaxed);
        }
    }

    /// A copy of the view: the last one, as long as nothing has changed.
    fn kept(&self, hook: Hook, view: &View) -> Option<Arc<KeptView>> {
        let (last, revision) = (&self.views[hook as usize], view.revision());
        if let Some(kept) = lock(last).as_ref().filter(|kept| kept.revision == revision) {
            return Some(kept.clone());
        }
        let count = view.rows().len();
        let fits = |rows: usize| (rows + count <= QUEUED_ROWS).then_some(rows + count);
        self.shared.rows.fetch_update(Relaxed, Relaxed, fits).ok()?;
        let kept = Arc::new(KeptView { view: view.clone(), revision, rows: self.shared.rows.clone() });
        let old = lock(last).replace(kept.clone());
        drop(old);
        Some(kept)
    }

    /// Calls that were compared, on which it agreed, in which it failed, and that were skipped.
    pub fn numbers(&self) -> (u64, u64, u64, u64) {
        let (calls, agreed, faults) = lock(&self.shared.diff).numbers();
        (calls, agreed, faults, self.shared.skipped.load(Relaxed))
    }

    /// What the admin API shows: the comparison so far.
    pub fn document(&self) -> Value {
        let mut document = lock(&self.shared.diff).document();
        document.insert("policy".into(), serde_json::json!(self.version));
        document.insert("skipped".into(), self.shared.skipped.load(Relaxed).into());
        document.insert("waiting".into(), self.shared.calls.load(Relaxed).into());
        Value::Object(document)
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        // What still waits is dropped instead of being answered.
        self.shared.round.store(ENDED, Relaxed);
    }
}

/// Answers what was handed over, until the shadow ends.
fn run(mut vm: Vm, handed: &Receiver<Handed>, shared: &Shared, distances: &Distances) {
    // A kernel that refuses costs politeness, not correctness.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
    for Handed { call, view, seen, round } in handed {
        if round == shared.round.load(Relaxed) {
            let started = Instant::now();
            let answer = vm.call(&call, &view.view);
            let took = started.elapsed();
            let explained = vm.take_explanations();
            let active = Side { answer: &seen.answer, explained: &seen.explained, took: seen.took };
            let shadow = Side { answer: &answer, explained: &explained, took };
            let mut diff = lock(&shared.diff);
            // It may have begun anew meanwhile.
            if round == shared.round.load(Relaxed) {
                diff.add((&call, &view.view), &active, &shadow, seen.by_canary, distances);
            }
        }
        shared.calls.fetch_sub(1, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::MonolithRow;
    use crate::policy::deciding::{Deciding, PolicyHandle};
    use crate::policy::lua::{Limits, Source};
    use crate::policy::slots::PolicySet;

    fn program(text: &str) -> Program {
        // Without optimisation the fuel may take longer than the budget.
        let limits = Limits { budget: Duration::from_secs(1), ..Limits::default() };
        Program::compile(Source::shipped("test", text), &Environment { limits, ..Environment::default() }).unwrap()
    }

    fn shadow(text: &str) -> Arc<Shadow> {
        let program = program(text);
        Arc::new(Shadow::start(&program, Version::of(&program, "admin", 0)).unwrap())
    }

    fn view(rows: usize) -> View {
        let row = |number| MonolithRow { id: format!("m{number:05}").as_str().into(), ..MonolithRow::default() };
        View::of((0..rows).map(row))
    }

    fn place(room: &str) -> Call {
        serde_json::from_value(serde_json::json!({"hook": "place", "region": "ewr", "room": {"name": room}})).unwrap()
    }

    fn settled(shadow: &Shadow) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while shadow.shared.calls.load(Relaxed) > 0 {
            assert!(Instant::now() < deadline, "the shadow does not come to an end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn seen() -> Seen {
        Seen { answer: Ok(Answer::Default), explained: Vec::new(), took: Duration::ZERO, by_canary: false }
    }

    /// Decides two rooms on the first Monolith, one on the second.
    const SOME: &str = "return { place = function(call) usher.set('seen', call.room.name) \
                        return call.monoliths[call.room.name == 'other' and 2 or 1] end }";

    #[test]
    fn every_call_is_compared_and_the_live_state_is_not_touched() {
        let active = program("return { place = function(call) usher.explain('first') return call.monoliths[1] end }");
        let state = active.environment().state.clone();
        let handle = PolicyHandle::new(Deciding::alone(PolicySet::build(&active, 1).unwrap()));
        let candidate = program(SOME).within(active.environment());
        let shadow = Arc::new(Shadow::start(&candidate, Version::of(&candidate, "admin", 0)).unwrap());
        handle.change(|now| now.with_shadow(Some(shadow.clone())));
        let mut view = view(3);
        for room in ["one", "other", "two", "three"] {
            handle.load().call(&place(room), &view).unwrap();
            view.update(&"m00001".into(), |row| row.pending += 1);
        }
        settled(&shadow);
        assert_eq!(shadow.numbers(), (4, 3, 0, 0));
        let document = shadow.document();
        assert_eq!(document["examples"][0]["room"], "other");
        assert_eq!(document["examples"][0]["from_explain"], serde_json::json!(["first"]));
        assert_eq!((&document["policy"]["by"], &document["skipped"]), (&"admin".into(), &0.into()));
        assert!(state.get("seen").is_none() && shadow.program().environment().state.get("seen").is_some());
        // Another active version is another comparison.
        handle.change(|now| now.with_active(Arc::new(PolicySet::build(&active, 1).unwrap())));
        assert_eq!(shadow.numbers(), (0, 0, 0, 0));
        handle.load().call(&place("four"), &view).unwrap();
        settled(&shadow);
        assert_eq!(shadow.numbers().0, 1);
    }

    #[test]
    fn what_finds_no_room_is_skipped_and_nobody_waits() {
        let shadow = shadow("return { place = function(call) while call.room.name == 'slow' do end end }");
        let view = view(1);
        // The thread cannot report while the comparison is held, so at most one call leaves the queue.
        let held = lock(&shadow.shared.diff);
        for _ in 0..QUEUE + 100 {
            shadow.see(&place("x"), &view, seen());
        }
        let skipped = shadow.shared.skipped.load(Relaxed);
        drop(held);
        assert!((99..=100).contains(&skipped), "{skipped}");
        settled(&shadow);
        assert_eq!(shadow.numbers().0 + shadow.numbers().3, QUEUE as u64 + 100);
    }

    #[test]
    fn copies_of_the_view_are_shared_and_bounded() {
        let shadow = shadow("return {}");
        let held = lock(&shadow.shared.diff);
        let mut big = view(QUEUED_ROWS / 2);
        for _ in 0..10 {
            shadow.see(&place("x"), &big, seen());
        }
        assert_eq!((shadow.shared.skipped.load(Relaxed), shadow.shared.rows.load(Relaxed)), (0, QUEUED_ROWS / 2));
        for _ in 0..10 {
            big.update(&"m00001".into(), |row| row.pending += 1);
            shadow.see(&place("x"), &big, seen());
        }
        assert!(shadow.shared.rows.load(Relaxed) <= QUEUED_ROWS);
        assert!(shadow.shared.skipped.load(Relaxed) >= 8);
        drop(held);
        settled(&shadow);
    }

    #[test]
    fn faults_are_counted_and_the_next_call_is_answered() {
        let shadow = shadow("return { place = function(call) while call.room.name == 'slow' do end end }");
        for room in ["slow", "x", "slow", "y"] {
            shadow.see(&place(room), &view(2), seen());
        }
        settled(&shadow);
        assert_eq!(shadow.numbers(), (4, 2, 2, 0));
        assert_eq!(shadow.document()["faults_by_kind"], serde_json::json!({"fuel": 2}));
    }

    #[test]
    fn the_thread_ends_with_the_shadow() {
        let shadow = shadow("return {}");
        let shared = Arc::downgrade(&shadow.shared);
        drop(shadow);
        let deadline = Instant::now() + Duration::from_secs(20);
        while shared.strong_count() > 0 {
            assert!(Instant::now() < deadline, "the thread goes on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
