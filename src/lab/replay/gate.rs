//! The gate `replay`: a new version decides only if it would have decided the recent calls as is demanded.

use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::{Instead, Plan, Replay, ReplayError, Replayed};
use crate::model::assertion::Assertion;
use crate::policy::lua::{Environment, LoadError, Program};
use crate::trace::read::{OnDamage, Reader, TraceError};

/// What errors call the decisions in memory.
const RECENT: &str = "recent decisions";

/// What the gate found.
#[derive(Debug)]
pub struct GateReport {
    /// The replay as `usher replay --format json` prints it; null if there was nothing to replay, or if it broke off.
    pub document: Json,
    /// How many decisions were made again.
    pub decisions: u64,
    /// Why the version is refused, if it is.
    pub refused: Option<LoadError>,
}

/// Lets a version decide again what traces in memory hold, oldest first, for at most `time` on the calling thread. It is
/// refused if it does not meet each of `require`; without any, if it fails where the version that decided did not.
///
/// Counters and kept values are a copy of those that the program's environment shares. Without a decision in memory
/// nothing is refused.
pub fn replay_gate(program: &Program, traces: &[Arc<[u8]>], require: &[Assertion], time: Duration) -> GateReport {
    let began = Instant::now();
    let refused = |reason: String| Some(program.source().problem(None, reason));
    match replayed(program, traces, require, began + time) {
        Ok(None) => GateReport { document: Json::Null, decisions: 0, refused: None },
        Ok(Some(replayed)) => {
            let failures = failures(&replayed, require);
            let reason = (!failures.is_empty())
                .then(|| format!("replay of {} recent decisions: {}", replayed.decisions, failures.join("; ")));
            let mut document = replayed.document();
            // What makes a replay on the command line fail is not what refuses a version.
            document["failures"] = json!(failures);
            GateReport { document, decisions: replayed.decisions, refused: reason.and_then(refused) }
        }
        Err(ReplayError::TimedOut { decisions }) => GateReport {
            document: Json::Null,
            decisions,
            refused: refused(format!(
                "replay of the recent decisions was not over within {} s: {decisions} had been made again",
                time.as_secs_f64()
            )),
        },
        Err(error @ (ReplayError::Policy(_) | ReplayError::Trace(_))) => GateReport {
            document: Json::Null,
            decisions: 0,
            refused: refused(format!("the recent decisions could not be replayed: {error}")),
        },
    }
}

fn replayed(
    program: &Program,
    traces: &[Arc<[u8]>],
    require: &[Assertion],
    until: Instant,
) -> Result<Option<Replayed>, ReplayError> {
    let mut replay: Option<Replay> = None;
    for trace in traces {
        let mut reader = match Reader::new(RECENT, Cursor::new(trace.clone()), OnDamage::Skip) {
            Ok(reader) => reader,
            Err(error) => {
                unreadable(&error);
                continue;
            }
        };
        if replay.is_none() {
            let live = program.environment();
            let environment = Environment { state: Arc::new(live.state.copy()), ..live.clone() };
            let policy = Instead { source: program.source().clone(), environment: Some(environment) };
            let (policy, assertions) = (Some(policy), require.to_vec());
            let plan = Plan { policy, against: None, assertions, until: Some(until) };
            replay = Some(Replay::new(reader.header(), plan)?);
        }
        let Some(replay) = &mut replay else { continue };
        match replay.read(&mut reader, &mut |_| {}) {
            Ok(()) => {}
            Err(ReplayError::Trace(error)) => unreadable(&error),
            Err(error) => return Err(error),
        }
    }
    Ok(replay.map(Replay::finish).filter(|replayed| replayed.decisions > 0))
}

fn unreadable(error: &TraceError) {
    tracing::warn!(%error, "a part of the recent decisions cannot be replayed");
}

/// Why a version is refused.
fn failures(replayed: &Replayed, require: &[Assertion]) -> Vec<String> {
    if require.is_empty() && replayed.new_faults > 0 {
        let (new, first) = (replayed.new_faults, replayed.examples.iter().find_map(|example| example.fault.as_deref()));
        let first = first.map(|fault| format!(", such as {fault}")).unwrap_or_default();
        return vec![format!("faults: {new} calls fail that did not fail before{first}")];
    }
    replayed.assertions.iter().filter(|checked| !checked.ok).map(ToString::to_string).collect()
}
