//! The gates that take their time, each on a thread of its own that yields to everything else: a version's tests, and the
//! recent decisions made again.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tracing::{info, warn};

use super::now_us;
use crate::lab;
use crate::lab::replay::{GateReport, replay_gate};
use crate::model::assertion::Assertion;
use crate::policy::lua::{Environment, LoadError, Program, Source};
use crate::policy::versions::timestamp;

/// How long a policy's tests may take before they count as not passed.
const TEST_TIME: Duration = Duration::from_secs(10);
/// The same for making the recent decisions again.
const REPLAY_TIME: Duration = Duration::from_secs(10);
/// How much longer than that is waited for a thread that has to end by itself: one call can take a second.
const GRACE: Duration = Duration::from_secs(3);

/// Where the recent decisions are: traces, oldest first.
pub type Recent = Box<dyn Fn() -> Vec<Arc<[u8]>> + Send + Sync>;

/// The gate `replay`, and what it last found.
#[derive(Default)]
pub(super) struct Replays {
    recent: OnceLock<Recent>,
    report: Mutex<Option<Value>>,
}

impl Replays {
    /// From where decisions are taken. Only the first call counts.
    pub(super) fn remember(&self, recent: Recent) {
        if self.recent.set(recent).is_err() {
            warn!("the recent decisions have a place already; the other one is ignored");
        }
    }

    /// What the last replay found.
    pub(super) fn report(&self) -> Option<Value> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets a version make the recent decisions again; an error is the reason to refuse it. Without any it passes.
    pub(super) fn gate(&self, program: &Program, require: &[Assertion]) -> Result<(), LoadError> {
        let traces = self.recent.get().map(|recent| recent()).unwrap_or_default();
        let (replayed, demands) = (program.clone(), require.to_vec());
        let work = move || replay_gate(&replayed, &traces, &demands, REPLAY_TIME);
        let report = aside("usher-replay", REPLAY_TIME + GRACE, work).unwrap_or_else(|why| GateReport {
            document: Value::Null,
            decisions: 0,
            refused: Some(program.source().problem(None, format!("the replay of the recent decisions {why}"))),
        });
        let name = &program.source().name;
        match &report.refused {
            None if report.decisions == 0 => {
                warn!(policy = %name, "no recent decision to replay: it decides without that gate");
            }
            None => info!(policy = %name, decisions = report.decisions, "passed the replay of the recent decisions"),
            Some(_) => {}
        }
        let found = json!({
            "policy": name,
            "version": program.version(),
            "at": timestamp(now_us()),
            "require": require.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "passed": report.refused.is_none(),
            "reason": report.refused.as_ref().map(|error| &error.reason),
            "decisions": report.decisions,
            "replay": report.document,
        });
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        report.refused.map_or(Ok(()), Err)
    }
}

/// Runs a policy's tests for at most [`TEST_TIME`].
pub(super) fn run_tests(source: &Source, environment: &Environment) -> Result<(), LoadError> {
    let (tested, gate) = (source.clone(), lab::test_gate(environment, TEST_TIME));
    let failed = |why| Err(source.problem(None, format!("its tests {why}")));
    aside("usher-tests", TEST_TIME, move || gate(&tested)).unwrap_or_else(failed)
}

/// Works on a thread of its own, which yields to everything else; an error says in what way it did not end in time.
fn aside<T: Send + 'static>(
    name: &str,
    time: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (done, result) = channel();
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
        // A kernel that refuses costs politeness, not correctness.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        // Nobody listens any more after the time-out.
        let _ = done.send(work());
    });
    thread.map_err(|error| format!("could not be started: {error}"))?;
    result.recv_timeout(time).map_err(|_| format!("did not end within {} s", time.as_secs()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;
    use crate::model::policy::{Call, MonolithRow, View};
    use crate::policy::versions::{Gates, prepare};
    use crate::trace::Encoder;
    use crate::trace::record::{Decided, Header, Outcome, PolicyText};

    /// Ten rooms that all went to `a`.
    fn trace() -> Arc<[u8]> {
        let source = Source::shipped("old", "return { place = function() return 'a' end }");
        let outcome = Outcome::chosen(&"a".into(), &source.version());
        let (mut encoder, mut bytes) = (Encoder::new(None), Vec::new());
        encoder.header(&Header::of(PolicyText::of(&source)), &mut bytes);
        let view = View::of(["a", "b"].map(|id| MonolithRow { id: id.into(), ..MonolithRow::default() }));
        for room in 0..10 {
            let call = json!({"hook": "place", "region": "ewr", "cause": "join", "room": {"name": format!("r{room}")}});
            let call: Call = serde_json::from_value(call).unwrap();
            encoder.decision(room, Decided { call, view: view.clone().into(), outcome: outcome.clone() }, &mut bytes);
        }
        bytes.into()
    }

    fn tried(replays: &Replays, text: &str, require: &[&str]) -> Result<(), String> {
        let require: Vec<Assertion> = require.iter().map(|text| text.parse().unwrap()).collect();
        let gate = |program: &Program| replays.gate(program, &require);
        let gates = Gates { tests: None, replay: Some(&gate) };
        let prepared = prepare(Source::shipped("new", text), &Environment::default(), &[], gates);
        prepared.map(|_| ()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_version_passes_or_is_refused_with_the_metric_and_its_figure() {
        let replays = Replays::default();
        let other = "return { place = function() return 'b' end }";
        assert_eq!(replays.report(), None);
        assert_eq!(tried(&replays, other, &["agreement >= 0.9"]), Ok(()), "nothing is remembered yet");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        replays.remember(Box::new(move || {
            count.fetch_add(1, Relaxed);
            vec![trace()]
        }));
        let refused = tried(&replays, other, &["faults == 0", "agreement >= 0.9"]);
        assert_eq!(refused, Err("policies/new.lua: replay of 10 recent decisions: agreement >= 0.9: 0".into()));
        let report = replays.report().unwrap();
        assert_eq!(
            (&report["passed"], &report["decisions"], &report["policy"]),
            (&json!(false), &json!(10), &json!("new"))
        );
        assert_eq!(report["replay"]["kinds"][0]["from"], "a");
        assert_eq!(report["replay"]["kinds"][0]["to"], "b");
        assert!(
            report["replay"]["assertions"][1]["ok"] == false && report["replay"]["examples"][0]["room"].is_string()
        );
        assert_eq!(
            tried(&replays, "return { place = function() return { 'a', 'b' } end }", &["agreement >= 0.9"]),
            Ok(())
        );
        let report = replays.report().unwrap();
        assert_eq!((&report["passed"], &report["reason"]), (&json!(true), &Value::Null));
        assert_eq!(asked.load(Relaxed), 2);
        // Without demands nothing may fail that did not fail before.
        let refused = tried(&replays, "return { place = function() return 'nobody' end }", &[]).unwrap_err();
        assert!(refused.contains("faults: 10 calls fail that did not fail before"), "{refused}");
    }

    #[test]
    fn what_does_not_end_is_said() {
        let waits = aside("test", Duration::from_millis(1), || std::thread::sleep(Duration::from_secs(1)));
        assert_eq!(waits, Err("did not end within 0 s".into()));
        assert_eq!(aside("test", Duration::from_secs(20), || 7), Ok(7));
    }
}
