//! What a report shows, whatever it is about: figures side by side, load over time, decisions that changed. Replay and
//! simulation fill it in; who shows it, on a page or in a terminal, need not know where it comes from.

use serde::Serialize;

use crate::model::assertion::{Checked, Figures};

/// One report.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Page {
    /// What it is about, in a line.
    pub title: String,
    /// Facts by name, in order: which trace, how long, which seed.
    pub facts: Vec<(String, String)>,
    /// One for each policy, the one to compare with first.
    pub sides: Vec<Side>,
    /// How decisions changed from the first side to the second; empty without a second one.
    pub flows: Vec<Flow>,
    /// Decisions in full, those worth reading first. The producer bounds them.
    pub rows: Vec<Row>,
    /// How many decisions `rows` was chosen from.
    pub rows_of: u64,
}

/// What one policy did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Side {
    /// Its name.
    pub policy: String,
    /// Its content hash.
    pub version: String,
    /// Its figures.
    pub figures: Figures,
    /// Further figures by what they are called, in order.
    pub more: Vec<(String, f64)>,
    /// What was demanded of it.
    pub assertions: Vec<Checked>,
    /// Load of each Monolith over time; none if nothing is known of it.
    pub load: Option<LoadOverTime>,
}

/// Load of each Monolith over time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LoadOverTime {
    /// What is counted: `rooms`, `placements`...
    pub unit: String,
    /// Moments in seconds since the beginning, rising. The producer bounds them to some hundreds.
    pub at_s: Vec<f64>,
    /// One for each Monolith, sorted by id.
    pub monoliths: Vec<MonolithLoad>,
}

/// Load of one Monolith over time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MonolithLoad {
    /// Its id.
    pub id: String,
    /// Its region.
    pub region: String,
    /// One for each moment; none while it was not there.
    pub values: Vec<Option<f64>>,
}

/// Decisions that changed in one way.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Flow {
    /// The hook.
    pub hook: String,
    /// What was decided: a Monolith, `reject 503`, `hold`...
    pub from: String,
    /// What is decided instead.
    pub to: String,
    /// How often.
    pub count: u64,
}

/// One decision.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// Its number in the trace.
    pub decision: u64,
    /// Seconds since the beginning.
    pub at_s: f64,
    /// The hook.
    pub hook: String,
    /// The room, where there is one.
    pub room: String,
    /// The region of whoever asked.
    pub region: String,
    /// What was decided.
    pub from: String,
    /// What is decided instead; the same if nothing changed.
    pub to: String,
    /// Why, as far as the policy says, or the fault.
    pub why: String,
}
