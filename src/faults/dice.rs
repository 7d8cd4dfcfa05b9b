//! What is drawn in a run: one stream of numbers that the seed alone decides (SplitMix64, Steele et al. 2014).

use std::ops::Range;
use std::time::Duration;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed ^ 0x5f61_7573_6865_7221)
    }

    /// A stream of its own for one purpose, so that what is drawn for others does not change it.
    pub(super) fn apart(&self, purpose: u64) -> Self {
        let mut own = Self(self.0 ^ purpose.wrapping_mul(0xd1b5_4a32_d192_ed03));
        own.number();
        own
    }

    pub(super) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A place in a list of this length, which is not 0.
    pub(super) fn below(&mut self, length: usize) -> usize {
        (self.number() % length.max(1) as u64) as usize
    }

    /// So many times in a hundred.
    pub(super) fn percent(&mut self, share: u64) -> bool {
        self.number() % 100 < share
    }

    /// A time in milliseconds.
    pub(super) fn millis(&mut self, range: Range<u64>) -> Duration {
        let span = range.end.saturating_sub(range.start).max(1);
        Duration::from_millis(range.start + self.number() % span)
    }
}
