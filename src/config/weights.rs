//! `[weights]`: the share of a Monolith relative to the others, for machines of different sizes.

use std::collections::BTreeMap;

use super::read;
use super::section::Section;

/// What `row.weight` is for each Monolith; 1 for one that is not named.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights(BTreeMap<String, f64>);

impl Weights {
    /// The weight of a Monolith: the one under its id, else under its endpoint (`host:port`), else under the host alone,
    /// else under its region. Real Monoliths have a new id after each start, so the latter are for them.
    pub fn of(&self, id: &str, endpoint: &str, region: &str) -> f64 {
        if self.0.is_empty() {
            return 1.0;
        }
        let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        [id, endpoint, host, region].into_iter().find_map(|key| self.0.get(key)).copied().unwrap_or(1.0)
    }

    /// Sets the weight under a key.
    pub fn set(&mut self, key: impl Into<String>, weight: f64) {
        self.0.insert(key.into(), weight);
    }
}

/// Reads `[weights]`.
pub(super) fn read(section: Section<'_>) -> Weights {
    let mut weights = Weights::default();
    for (key, (_, node)) in section.table().into_iter().flatten() {
        match read::number(0.001..=1000.0)(node) {
            Ok(weight) => weights.set(key, weight),
            Err(message) => section.error(key, message),
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_precise_key_counts() {
        let mut weights = Weights::default();
        let check = |weights: &Weights, expected: f64| {
            assert_eq!(weights.of("m1", "[fd00::1]:3002", "cdg").to_bits(), expected.to_bits());
        };
        check(&weights, 1.0);
        for (key, weight) in [("cdg", 2.0), ("fd00::1", 3.0), ("[fd00::1]:3002", 4.0), ("m1", 5.0)] {
            weights.set(key, weight);
            check(&weights, weight);
        }
        assert_eq!(weights.of("m2", "10.0.0.2:3002", "ewr").to_bits(), 1f64.to_bits());
    }
}
