//! What a script may know and use besides its calls: settings, distances, state that outlives a call, and limits.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::state::SharedState;
use crate::model::Region;

/// What one call may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Safepoints: loop steps, calls, returns and steps of pattern matching. Deterministic, so this is the real limit.
    pub fuel: u64,
    /// CPU time of the calling thread: the backstop, looked at every 32nd safepoint.
    pub budget: Duration,
    /// Bytes of the whole VM.
    pub memory: usize,
}

/// Rooms for which one call of `rebalance` gets the whole of the limits again.
const ROOMS_PER_CALL: usize = 500;

impl Limits {
    /// What a call may use that is shown this many rooms: one that looks at thousands cannot make do with what a
    /// placement needs. Memory stays what it is.
    #[must_use]
    pub fn for_rooms(self, rooms: usize) -> Self {
        let times = u32::try_from(rooms.div_ceil(ROOMS_PER_CALL)).unwrap_or(u32::MAX).max(1);
        Self { fuel: self.fuel.saturating_mul(u64::from(times)), budget: self.budget.saturating_mul(times), ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { fuel: 20_000, budget: Duration::from_millis(10), memory: 8 << 20 }
    }
}

/// How far regions are from each other, in milliseconds; `None` where nobody knows.
#[derive(Clone)]
pub struct Distances(Arc<Between>);

type Between = dyn Fn(&Region, &Region) -> Option<f64> + Send + Sync;

impl Distances {
    /// Distances that this function knows.
    pub fn new(between: impl Fn(&Region, &Region) -> Option<f64> + Send + Sync + 'static) -> Self {
        Self(Arc::new(between))
    }

    /// From one region to another; a region is at no distance from itself.
    pub fn between(&self, from: &Region, to: &Region) -> Option<f64> {
        if from == to { Some(0.0) } else { (self.0)(from, to).filter(|d| !d.is_nan()) }
    }
}

impl Default for Distances {
    fn default() -> Self {
        Self::new(|_, _| None)
    }
}

impl fmt::Debug for Distances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Distances")
    }
}

/// Everything that is the same for all calls of a version.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// How far regions are apart.
    pub distances: Distances,
    /// `usher.settings`.
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// What one call may use.
    pub limits: Limits,
    /// Counters and small values that live across calls, workers and versions.
    pub state: Arc<SharedState>,
}
