//! Load epochs: the serial number of a room load, counted across the whole system.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of a room load. It wraps, so it has no total order; see [`Epoch::compare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u32);

impl Epoch {
    /// Compares two loads of one room by age: `Less` is the older one.
    ///
    /// Only the low 31 bits count, as serial numbers (RFC 1982), which is right both for a counter that wraps at 2^32
    /// and for one that starts again at 1 after 2147483640.
    pub fn compare(self, other: Self) -> Ordering {
        let ahead = (other.0.wrapping_sub(self.0) << 1) as i32;
        0.cmp(&ahead)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn f19_epochs_compare_across_the_wrap() {
        let older = |a: u32, b: u32| assert_eq!(Epoch(a).compare(Epoch(b)), Ordering::Less, "{a} {b}");
        older(1, 2);
        older(u32::MAX, 0);
        older(2_147_483_640, 1);
        assert_eq!(Epoch(7).compare(Epoch(7)), Ordering::Equal);
        assert_eq!(Epoch(7).compare(Epoch(7 + (1 << 31))), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn a_step_forward_is_newer(start: u32, step in 1u32..(1 << 30) - 1) {
            let (a, b) = (Epoch(start), Epoch(start.wrapping_add(step)));
            prop_assert_eq!(a.compare(b), Ordering::Less);
            prop_assert_eq!(b.compare(a), Ordering::Greater);
        }
    }
}
