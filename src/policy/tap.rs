//! Whoever wants to see decisions as they are taken: recorders, and those who tell the story of a room.

use std::sync::Arc;
use std::time::Duration;

use super::lua::Program;
use crate::model::policy::{Call, Decision, View};
use crate::model::read::Read;

/// How much of a decision a tap wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wants {
    /// This one is none of its business.
    Nothing,
    /// What was decided.
    Outcome,
    /// Also what the script read besides its call, which costs a little in the script.
    Reads,
}

/// Somebody to whom decisions are shown. It must not wait for anything: it is called between a decision and what comes
/// of it, on the thread that decides.
pub trait Tap: Send + Sync {
    /// How much it wants to see of this call. Asked before the script runs.
    fn wants(&self, call: &Call) -> Wants;

    /// A decision that it wanted to see.
    fn decided(&self, seen: &Seen<'_>);
}

/// One decision, after the core's checks.
pub struct Seen<'a> {
    /// What was asked.
    pub call: &'a Call,
    /// The Monoliths as the script saw them.
    pub view: &'a View,
    /// The answer, the choices behind it, and the fault that set the script's answer aside.
    pub decision: &'a Decision,
    /// Whose version decided.
    pub by: &'a Program,
    /// What the call and the script did besides.
    pub heard: &'a Heard,
}

/// What is known of a call besides its answer.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// What the script read, in order; none if nobody wanted it, or if it was too much to keep.
    pub reads: Option<Vec<Read>>,
    /// What it gave to `usher.explain`.
    pub explained: Vec<String>,
    /// How long the call took.
    pub took: Duration,
    /// Whether the open breaker kept the call from the script.
    pub bypassed: bool,
    /// Whether a canary decided.
    pub by_canary: bool,
    /// The line of the hook, for faults that have none of their own.
    pub line: Option<u32>,
}

/// All taps. Changed as a whole.
pub type Taps = Arc<[Arc<dyn Tap>]>;

/// What the most demanding of them wants.
pub(super) fn wants(taps: &[Arc<dyn Tap>], call: &Call) -> Wants {
    taps.iter().map(|tap| tap.wants(call)).max().unwrap_or(Wants::Nothing)
}

/// Shows a decision to those who want it.
pub(super) fn show(taps: &[Arc<dyn Tap>], seen: &Seen<'_>) {
    for tap in taps {
        if tap.wants(seen.call) != Wants::Nothing {
            tap.decided(seen);
        }
    }
}
