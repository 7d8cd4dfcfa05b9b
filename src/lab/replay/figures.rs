//! What one side of a replay did, as figures.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::assertion::{Figures, Metric};
use crate::model::policy::{Answer, Call, FaultKind, Hook, MonolithRow};
use crate::policy::times::Times;
use crate::policy::verdict::{self, Verdict};

/// Counts of one side.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) times: Times,
    pub(super) faults: BTreeMap<FaultKind, u64>,
    /// Decisions of `place` and `route` that chose a Monolith, and of these those in the region of whoever asked.
    chosen: u64,
    near: u64,
    rejected: u64,
    held: u64,
    moves: u64,
}

impl Tally {
    /// One decision; `chosen` is the row of the Monolith that is tried first.
    pub(super) fn add(
        &mut self,
        call: &Call,
        chosen: Option<&MonolithRow>,
        answer: &Answer,
        verdict: &Verdict<'_>,
        ns: u64,
    ) {
        self.times.add(Duration::from_nanos(ns));
        if let Some(kind) = verdict.fault {
            *self.faults.entry(kind).or_default() += 1;
        }
        match answer {
            Answer::Reject { .. } => self.rejected += 1,
            Answer::Hold { .. } => self.held += 1,
            Answer::Moves(moves) => self.moves += moves.len() as u64,
            Answer::Default | Answer::Ranked(_) | Answer::Admit => {}
        }
        if matches!(call.hook, Hook::Place | Hook::Route)
            && let Some(row) = chosen
        {
            let wanted = verdict::region(call).unwrap_or(&call.region);
            self.chosen += 1;
            self.near += u64::from(row.region == *wanted);
        }
    }

    pub(super) fn faults(&self) -> u64 {
        self.faults.values().sum()
    }

    /// The figures of this side. What says nothing about it (a share of none) is absent.
    ///
    /// - `faults`: calls without a usable answer.
    /// - `own_region_share`: of the decisions of `place` and `route` that chose a Monolith, the share in the region of
    ///   whoever asked (the client's, else the room's, else the request's, else the balancer's).
    /// - `rejected`, `held`: answers of that kind. `moves`: moves in all answers of `rebalance`.
    /// - `ns_p99`: of what one call of the policy takes, as recorded or as measured now, right to about a tenth.
    pub(super) fn figures(&self) -> Figures {
        let mut figures = Figures::from([
            (Metric::Faults, self.faults() as f64),
            (Metric::Rejected, self.rejected as f64),
            (Metric::Held, self.held as f64),
            (Metric::Moves, self.moves as f64),
        ]);
        if self.chosen > 0 {
            figures.insert(Metric::OwnRegionShare, rounded(self.near as f64 / self.chosen as f64));
        }
        let p99 = self.times.percentile(0.99);
        if p99 > 0 {
            figures.insert(Metric::NsP99, p99 as f64);
        }
        figures
    }
}

/// Six decimals, as reports print them; shares that are not whole stay below 1.
pub(super) fn rounded(share: f64) -> f64 {
    (share * 1e6).floor() / 1e6
}
