//! Decisions on their way to those who record. It is called on the thread that decides, so it copies and hands over, and
//! waits for nobody.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::policy::{Call, Fault, Hook, View};
use crate::policy::lua::{Origin, Program};
use crate::policy::tap::{Seen, Tap, Wants};
use crate::trace::record::{Decided, Outcome, PolicyText};
use crate::trace::snapshot::Snapshot;
use crate::trace::write::Recorder;

/// Versions whose text is at hand: what decides, a canary, and those before them whose last calls still run.
const TEXTS: usize = 4;

/// Shows decisions to recorders.
pub(super) struct RecordTap {
    to: Vec<Recorder>,
    /// One of so many `route` decisions is recorded; 0: none.
    route_sample: u32,
    /// The last view of each hook: the next one shares what has not changed since.
    views: [Mutex<Option<Copied>>; Hook::ALL.len()],
    texts: Mutex<Vec<Known>>,
}

/// A copy of a view and its revision.
type Copied = (u64, Snapshot);

/// What a trace says of a version.
#[derive(Clone)]
struct Known {
    program: Program,
    text: Arc<PolicyText>,
    version: Arc<str>,
}

impl RecordTap {
    /// A tap for these recorders.
    pub(super) fn new(to: Vec<Recorder>, route_sample: u32) -> Self {
        Self { to, route_sample, views: Default::default(), texts: Mutex::default() }
    }

    /// Whether a call is recorded. It is asked twice of each, so it depends on the call alone.
    fn samples(&self, call: &Call) -> bool {
        match (call.hook, self.route_sample) {
            (Hook::Route, 0) => false,
            (Hook::Route, sample) => mixed(call.seed).is_multiple_of(u64::from(sample)),
            (Hook::Place | Hook::Admit | Hook::Rebalance, _) => true,
        }
    }

    fn view(&self, hook: Hook, view: &View) -> Snapshot {
        let (mut last, revision) = (lock(&self.views[hook as usize]), view.revision());
        if let Some((_, same)) = last.as_ref().filter(|(of, _)| *of == revision) {
            return same.again();
        }
        let copy = match &*last {
            Some((_, earlier)) => Snapshot::after(earlier, view),
            None => Snapshot::from(view),
        };
        *last = Some((revision, copy.clone()));
        copy
    }

    fn known(&self, program: &Program) -> Known {
        let mut texts = lock(&self.texts);
        if let Some(known) = texts.iter().find(|known| known.program.is(program)) {
            return known.clone();
        }
        let text = Arc::new(policy_text(program));
        let known = Known { program: program.clone(), version: text.version.as_str().into(), text };
        texts.insert(0, known.clone());
        texts.truncate(TEXTS);
        known
    }
}

impl Tap for RecordTap {
    fn wants(&self, call: &Call) -> Wants {
        if self.samples(call) { Wants::Reads } else { Wants::Nothing }
    }

    fn decided(&self, seen: &Seen<'_>) {
        let Known { text: by, version, .. } = self.known(seen.by);
        let view = self.view(seen.call.hook, seen.view);
        let outcome = Outcome {
            incomplete: seen.heard.reads.is_none(),
            reads: seen.heard.reads.clone().unwrap_or_default(),
            answer: seen.decision.answer.clone(),
            choice: seen.decision.choices.first().cloned(),
            policy: version,
            ns: u64::try_from(seen.heard.took.as_nanos()).unwrap_or(u64::MAX),
            fallback: seen.decision.fault.as_ref().map(|fault| located(fault, seen.by, &by)),
            bypassed: seen.heard.bypassed,
        };
        let Some((last, others)) = self.to.split_last() else { return };
        for one in others {
            let decided = Decided { call: seen.call.clone(), view: view.clone(), outcome: outcome.clone() };
            one.decision(decided, &by, seen.heard.by_canary);
        }
        last.decision(Decided { call: seen.call.clone(), view, outcome }, &by, seen.heard.by_canary);
    }
}

/// A policy with all that its answers depend on. Its file is named without its folders, which are nobody's business who
/// reads a trace.
pub(super) fn policy_text(program: &Program) -> PolicyText {
    let (source, environment) = (program.source(), program.environment());
    let file = match &source.origin {
        Origin::Shipped => source.file(),
        Origin::File(path) => {
            path.file_name().map_or_else(|| source.file(), |name| name.to_string_lossy().into_owned())
        }
    };
    PolicyText {
        name: source.name.clone(),
        version: program.version().into(),
        file,
        source: source.text.clone(),
        settings: environment.settings.clone(),
        fuel: environment.limits.fuel,
        memory: environment.limits.memory,
    }
}

/// A fault whose message names the file as the trace does, so that a replay words it the same.
fn located(fault: &Fault, program: &Program, text: &PolicyText) -> Fault {
    let file = program.source().file();
    let message = if file == text.file { fault.message.clone() } else { fault.message.replace(&file, &text.file) };
    Fault { kind: fault.kind, message }
}

/// A number that depends on every bit of another one (the finalizer of SplitMix64, Steele et al. 2014).
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::model::policy::FaultKind;
    use crate::policy::lua::{Environment, Source};

    fn call(hook: &str, seed: u64) -> Call {
        serde_json::from_value(serde_json::json!({"hook": hook, "region": "ewr", "seed": seed})).unwrap()
    }

    #[test]
    fn routes_are_sampled_and_nothing_else_is() {
        let tap = |sample| RecordTap::new(Vec::new(), sample);
        let count = |tap: &RecordTap, hook: &str| (0..10_000).filter(|seed| tap.samples(&call(hook, *seed))).count();
        assert_eq!((count(&tap(0), "route"), count(&tap(1), "route")), (0, 10_000));
        let some = count(&tap(100), "route");
        assert!((60..150).contains(&some), "{some} of 10000");
        for hook in ["place", "admit", "rebalance"] {
            assert_eq!(count(&tap(0), hook), 10_000);
        }
    }

    #[test]
    fn a_view_is_copied_once_a_change_and_a_text_once_a_version() {
        let tap = RecordTap::new(Vec::new(), 1);
        let mut view = View::of([Default::default()]);
        let one = tap.view(Hook::Place, &view);
        assert_eq!((one.holds(), tap.view(Hook::Place, &view.clone()).holds()), (1, 0));
        view.update(&"".into(), |row| row.rooms = 3);
        let other = tap.view(Hook::Place, &view);
        assert_eq!((other.holds(), one.rows()[0].rooms, other.rows()[0].rooms), (1, 0, 3));
        let program = |text: &str| Program::compile(Source::shipped("x", text), &Environment::default()).unwrap();
        let (a, b) = (program("return {}"), program("return {} --"));
        let known = tap.known(&a);
        assert!(Arc::ptr_eq(&known.text, &tap.known(&a).text) && !Arc::ptr_eq(&known.text, &tap.known(&b).text));
        assert!(Arc::ptr_eq(&known.version, &tap.known(&a).version));
    }

    #[test]
    fn folders_of_the_policy_stay_at_home() {
        let origin = Origin::File(PathBuf::from("/home/me/mine.lua"));
        let source = Source { name: "mine".into(), text: "return {}".into(), origin };
        let program = Program::compile(source, &Environment::default()).unwrap();
        let text = policy_text(&program);
        let message = "/home/me/mine.lua:3: oh".to_string();
        let fault = located(&Fault { kind: FaultKind::Error, message }, &program, &text);
        assert_eq!((text.file.as_str(), fault.message.as_str()), ("mine.lua", "mine.lua:3: oh"));
    }
}
