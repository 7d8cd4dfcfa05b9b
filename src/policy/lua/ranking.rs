//! The arithmetic behind `usher.hash`, `usher.random`, `usher.rendezvous` and `usher.bounded`: pure, seeded, and the
//! same on every machine.

/// A stable 64-bit hash of a text: FNV-1a, then the finaliser of MurmurHash3, which spreads what FNV leaves close.
pub(crate) fn hash(text: &[u8]) -> u64 {
    finish(fnv(0xcbf2_9ce4_8422_2325, text))
}

/// What the hashes of a key at all Monoliths begin with, so that a list costs one look at the key.
#[derive(Clone, Copy)]
struct Key(u64);

impl Key {
    fn new(key: &[u8]) -> Self {
        Self(fnv(fnv(0xcbf2_9ce4_8422_2325, key), &[0]))
    }

    fn score(self, id: &[u8], weight: f64) -> f64 {
        if weight > 0.0 { -weight / draw(self, id).ln() } else { 0.0 }
    }
}

/// The hash of a key at a Monolith, as a number in (0, 1).
fn draw(key: Key, id: &[u8]) -> f64 {
    let hash = finish(fnv(key.0, id));
    ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

fn fnv(start: u64, text: &[u8]) -> u64 {
    text.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn finish(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// The position of the highest draw (Thaler and Ravishankar, 1998), with weights by the logarithmic method of
/// Schindelhauer and Schomaker: the score is `-weight / ln(draw)`, so a Monolith of twice the weight gets twice the
/// keys, and one that comes or goes moves only its own. Weights of 0 or less are never chosen; ties go to the first.
pub(crate) fn rendezvous<'a>(key: &[u8], list: impl Iterator<Item = (&'a [u8], f64)>) -> Option<usize> {
    let key = Key::new(key);
    best(list.enumerate().map(|(at, (id, weight))| (at, key.score(id, weight))))
}

pub(super) fn score(key: &[u8], id: &[u8], weight: f64) -> f64 {
    Key::new(key).score(id, weight)
}

fn best(scores: impl Iterator<Item = (usize, f64)>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (at, score) in scores {
        if score > 0.0 && best.is_none_or(|(_, top)| score > top) {
            best = Some((at, score));
        }
    }
    best.map(|(at, _)| at)
}

/// Rendezvous with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2016): the highest draw among those that hold
/// fewer than `ceil(factor * (total + 1) * weight / weights)`. With a factor of at least 1 there is always one.
pub(crate) fn bounded(key: &[u8], list: &[(&[u8], f64, f64)], factor: f64) -> Option<usize> {
    let weights: f64 = list.iter().map(|(_, weight, _)| weight.max(0.0)).sum();
    let total: f64 = list.iter().map(|(_, _, load)| load).sum();
    let fits = |weight: f64, load: f64| load < (factor.max(1.0) * (total + 1.0) * weight / weights).ceil();
    let with_room = list.iter().enumerate().filter(|(_, (_, weight, load))| *weight > 0.0 && fits(*weight, *load));
    let key = Key::new(key);
    best(with_room.map(|(at, (id, weight, _))| (at, key.score(id, *weight))))
}

/// SplitMix64 (Steele, Lea and Flood, 2014): the state is one number, so a call's randomness is its seed and nothing
/// else.
pub(crate) fn next_random(state: u64) -> (u64, u64) {
    let next = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut out = next;
    out = (out ^ (out >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    out = (out ^ (out >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (next, out ^ (out >> 31))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("m{i}")).collect()
    }

    fn choose(key: &str, ids: &[String]) -> String {
        let at = rendezvous(key.as_bytes(), ids.iter().map(|id| (id.as_bytes(), 1.0))).unwrap();
        ids[at].clone()
    }

    proptest! {
        #[test]
        fn rendezvous_moves_only_the_keys_of_the_lost_one(n in 2usize..20, lost in 0usize..20, keys in proptest::collection::vec("[a-z0-9]{1,12}", 1..60)) {
            let all = ids(n);
            let lost = &all[lost % n];
            let rest: Vec<String> = all.iter().filter(|id| *id != lost).cloned().collect();
            for key in keys {
                let before = choose(&key, &all);
                if &before != lost {
                    prop_assert_eq!(before, choose(&key, &rest));
                }
            }
        }

        #[test]
        fn bounded_never_goes_over_its_ceiling(n in 1usize..12, factor in 1.0f64..3.0, keys in proptest::collection::vec("[a-z0-9]{1,6}", 1..150)) {
            let all = ids(n);
            let mut loads = vec![0.0; n];
            for (placed, key) in keys.iter().enumerate() {
                let list: Vec<_> = all.iter().zip(&loads).map(|(id, load)| (id.as_bytes(), 1.0, *load)).collect();
                let at = bounded(key.as_bytes(), &list, factor);
                prop_assert!(at.is_some());
                loads[at.unwrap()] += 1.0;
                let ceiling = (factor * (placed + 1) as f64 / n as f64).ceil();
                prop_assert!(loads.iter().all(|load| *load <= ceiling), "{loads:?} over {ceiling}");
            }
        }
    }

    #[test]
    fn weights_are_shares() {
        let list = [("heavy", 3.0), ("light", 1.0), ("off", 0.0)];
        let mut count = [0; 3];
        for key in 0..40_000 {
            let key = key.to_string();
            count[rendezvous(key.as_bytes(), list.iter().map(|(id, w)| (id.as_bytes(), *w))).unwrap()] += 1;
        }
        assert_eq!(count[2], 0);
        let share = f64::from(count[0]) / 40_000.0;
        assert!((share - 0.75).abs() < 0.01, "{share}");
    }

    #[test]
    fn nobody_of_weight_is_nobody() {
        assert_eq!(rendezvous(b"k", [(&b"a"[..], 0.0)].into_iter()), None);
        assert_eq!(rendezvous(b"k", std::iter::empty()), None);
        assert_eq!(bounded(b"k", &[], 1.0), None);
    }
}
