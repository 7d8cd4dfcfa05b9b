//! How many different names there are in a stream that is too long to remember: exact up to a bound, then estimated.

use std::collections::BTreeSet;
use std::hash::BuildHasher;

use foldhash::quality::FixedState;

/// Hashes that are kept: about 2 MB. Below so many names the count is exact; beyond, its standard error is
/// 1/sqrt(KEPT - 2), 0.4%.
const KEPT: usize = 1 << 16;

/// The smallest hashes of all names that came by: K minimum values (Bar-Yossef et al., 2002; the unbiased estimate is
/// that of Beyer et al., 2007).
#[derive(Debug, Default)]
pub(super) struct Distinct {
    smallest: BTreeSet<u64>,
    more: bool,
}

impl Distinct {
    /// One name, perhaps known.
    pub(super) fn add(&mut self, name: &str) {
        let hash = FixedState::default().hash_one(name);
        if self.smallest.len() >= KEPT && self.smallest.last().is_some_and(|most| hash > *most) {
            self.more = true;
            return;
        }
        if self.smallest.insert(hash) && self.smallest.len() > KEPT {
            self.smallest.pop_last();
            self.more = true;
        }
    }

    /// How many there were, and whether that is exact.
    pub(super) fn count(&self) -> (u64, bool) {
        if !self.more {
            return (self.smallest.len() as u64, true);
        }
        let share = self.smallest.last().map_or(1.0, |most| (*most as f64 + 1.0) / 2f64.powi(64));
        (((KEPT - 1) as f64 / share).round() as u64, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_exact_and_then_close() {
        let mut names = Distinct::default();
        for round in 0..2 {
            (0..KEPT).for_each(|n| names.add(&format!("room-{n}")));
            assert_eq!(names.count(), (KEPT as u64, true), "{round}");
        }
        (0..200_000).for_each(|n| names.add(&format!("room-{n}")));
        let (count, exact) = names.count();
        assert!(!exact && (194_000..206_000).contains(&count), "{count}");
    }
}
