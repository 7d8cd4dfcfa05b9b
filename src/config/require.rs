//! `[policy.require]`: what a replay of the recent decisions has to show before another version decides.

use super::read;
use super::section::Section;
use super::tree::{Node, Value};
use crate::model::assertion::{Assertion, Metric};

/// Reads the section: metrics with `OP NUMBER`, and whole expressions under `assert`.
pub(super) fn read(section: &Section<'_>) -> Vec<Assertion> {
    let mut require = Vec::new();
    for (key, (_, node)) in section.table().into_iter().flatten() {
        let found = match key.as_str() {
            "assert" => read::list("assertions, such as \"faults == 0\"", expression)(node),
            metric => one(metric, node).map(|assertion| vec![assertion]),
        };
        match found {
            Ok(found) => require.extend(found),
            Err(message) => section.error(key, message),
        }
    }
    require
}

fn one(metric: &str, node: &Node) -> Result<Assertion, String> {
    let metric: Metric = metric.parse().map_err(|error| format!("{error}; or write assert = [\"faults == 0\"]"))?;
    let text = match &node.value {
        Value::Text(text) => text,
        _ => return Err(format!("expected a comparison such as \">= 0.9\", found {}", node.shown())),
    };
    known(Assertion::of(metric, text)?)
}

fn expression(node: &Node) -> Result<Assertion, String> {
    known(read::text(node)?.parse()?)
}

/// A demand that no replay can meet would refuse every version.
fn known(assertion: Assertion) -> Result<Assertion, String> {
    match assertion.metric {
        Metric::Duplicates | Metric::SplitRoomS | Metric::CrossedUnloads => {
            Err(format!("a replay has no {}; a simulation has: remove it", assertion.metric))
        }
        _ => Ok(assertion),
    }
}
