//! What is drawn. The generator is xoshiro256++ (Blackman and Vigna, 2019), seeded through splitmix64, so that a seed
//! gives the same numbers everywhere; each purpose has a stream of its own, so that none disturbs another.

use crate::config::scenario::Amount;

/// One stream of random numbers.
#[derive(Clone, Debug)]
pub(super) struct Random([u64; 4]);

/// What a stream is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    /// When somebody arrives, where, and for how long: the same for every policy.
    Demand = 1,
    /// How long loads take.
    Loads = 2,
    /// When members come back.
    Pauses = 3,
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Random {
    pub(super) fn new(seed: u64, stream: Stream) -> Self {
        let mut state = seed ^ (stream as u64).wrapping_mul(0xd1b5_4a32_d192_ed03);
        Self([(); 4].map(|()| splitmix(&mut state)))
    }

    fn next(&mut self) -> u64 {
        let [a, b, c, d] = self.0;
        let drawn = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        self.0 = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        drawn
    }

    /// A number in [0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A place in a list of this length, which is not 0.
    pub(super) fn below(&mut self, length: usize) -> usize {
        ((self.unit() * length as f64) as usize).min(length.saturating_sub(1))
    }

    pub(super) fn chance(&mut self, share: f64) -> bool {
        self.unit() < share
    }

    pub(super) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// By the method of Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// An amount, ready to be drawn.
#[derive(Clone, Debug)]
pub(super) enum Sampler {
    Amount(Amount),
    Zipf(Zipf),
}

impl Sampler {
    pub(super) fn new(amount: Amount) -> Self {
        match amount {
            Amount::Zipf { exponent, max } => Self::Zipf(Zipf::new(exponent, max)),
            other => Self::Amount(other),
        }
    }

    pub(super) fn draw(&self, random: &mut Random) -> f64 {
        match self {
            Self::Zipf(zipf) => 1.0 + zipf.draw(random) as f64,
            Self::Amount(Amount::Fixed(value)) => *value,
            Self::Amount(Amount::Uniform { min, max }) => min + (max - min) * random.unit(),
            Self::Amount(Amount::Exponential { mean, max }) => random.exponential(*mean).min(*max),
            Self::Amount(Amount::Lognormal { median, sigma, max }) => {
                (median * (sigma * random.normal()).exp()).min(*max)
            }
            // Made into a table above.
            Self::Amount(Amount::Zipf { .. }) => 1.0,
        }
    }

    /// The mean of what is drawn, as whole things of at least one; of curves it is estimated.
    pub(super) fn mean_count(&self) -> f64 {
        let mut random = Random::new(0, Stream::Demand);
        const DRAWN: u32 = 20_000;
        (0..DRAWN).map(|_| self.draw(&mut random).round().max(1.0)).sum::<f64>() / f64::from(DRAWN)
    }
}

/// Zipf's law over the places 0, 1, 2... of a list, as a table of cumulated shares.
#[derive(Clone, Debug)]
pub(super) struct Zipf(Vec<f64>);

impl Zipf {
    pub(super) fn new(exponent: f64, length: u32) -> Self {
        let mut total = 0.0;
        let mut table: Vec<f64> = (1..=length.max(1))
            .map(|rank| {
                total += f64::from(rank).powf(-exponent);
                total
            })
            .collect();
        table.iter_mut().for_each(|share| *share /= total);
        Self(table)
    }

    pub(super) fn draw(&self, random: &mut Random) -> usize {
        let drawn = random.unit();
        self.0.partition_point(|share| *share <= drawn).min(self.0.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(amount: Amount) -> f64 {
        let (sampler, mut random) = (Sampler::new(amount), Random::new(7, Stream::Loads));
        (0..100_000).map(|_| sampler.draw(&mut random)).sum::<f64>() / 100_000.0
    }

    #[test]
    fn a_seed_gives_the_same_numbers_and_streams_differ() {
        let draw = |seed, stream| Random::new(seed, stream).next();
        assert_eq!(draw(1, Stream::Demand), draw(1, Stream::Demand));
        assert_ne!(draw(1, Stream::Demand), draw(2, Stream::Demand));
        assert_ne!(draw(1, Stream::Demand), draw(1, Stream::Loads));
    }

    #[test]
    fn the_generator_is_xoshiro256_plus_plus() {
        // The first outputs of the reference implementation from the state 1, 2, 3, 4.
        let mut random = Random([1, 2, 3, 4]);
        assert_eq!([(); 4].map(|()| random.next()), [41943041, 58720359, 3588806011781223, 3591011842654386]);
    }

    #[test]
    fn means_are_as_they_should() {
        let near = |amount, expected: f64| {
            let mean = mean(amount);
            assert!((mean - expected).abs() < 0.03 * expected, "{amount:?}: {mean}, not about {expected}");
        };
        near(Amount::Fixed(3.0), 3.0);
        near(Amount::Uniform { min: 1.0, max: 5.0 }, 3.0);
        near(Amount::Exponential { mean: 60.0, max: f64::INFINITY }, 60.0);
        // exp(sigma^2 / 2) above the median.
        near(Amount::Lognormal { median: 10.0, sigma: 0.5, max: f64::INFINITY }, 10.0 * 0.125f64.exp());
        // 3 / (1 + 1/2 + 1/3) for an exponent of 1 and 3 places.
        near(Amount::Zipf { exponent: 1.0, max: 3 }, 18.0 / 11.0);
    }
}
