//! Where both sides put rooms: in all, and over time in so many buckets that grow with the trace.

use std::collections::BTreeMap;

use crate::lab::page::{LoadOverTime, MonolithLoad};
use crate::model::MonolithId;
use crate::model::assertion::{Figures, Metric};
use crate::model::policy::View;

/// The most buckets of time; when a trace needs more, each becomes twice as wide.
const BUCKETS: usize = 240;
/// How wide a bucket is at first, in microseconds.
const NARROWEST: u64 = 1_000_000;
/// Monoliths whose rooms are counted; a fleet has fewer, unless its ids change all the time.
const MONOLITHS: usize = 1024;

/// Placements by Monolith.
pub(super) struct Placements {
    monoliths: BTreeMap<MonolithId, Placed>,
    width_us: u64,
    /// Which set of Monoliths was noted last, and in which bucket.
    noted: Option<(u64, usize)>,
    end: usize,
}

#[derive(Default)]
struct Placed {
    region: String,
    total: [u64; 2],
    buckets: [Vec<u32>; 2],
    present: Vec<bool>,
}

impl Default for Placements {
    fn default() -> Self {
        Self { monoliths: BTreeMap::new(), width_us: NARROWEST, noted: None, end: 0 }
    }
}

impl Placements {
    /// One decision of `place`: whom each side chose.
    pub(super) fn add(&mut self, at_us: u64, view: &View, chosen: [Option<&MonolithId>; 2]) {
        while at_us / self.width_us >= BUCKETS as u64 {
            self.widen();
        }
        let bucket = (at_us / self.width_us) as usize;
        self.end = self.end.max(bucket + 1);
        if self.noted != Some((view.membership(), bucket)) {
            self.noted = Some((view.membership(), bucket));
            // One that nobody chose counts for the mean as well.
            for row in view.rows().iter().filter(|row| row.serves()) {
                if self.monoliths.len() >= MONOLITHS && !self.monoliths.contains_key(&row.id) {
                    continue;
                }
                let placed = self.monoliths.entry(row.id.clone()).or_default();
                if placed.region.is_empty() {
                    placed.region = row.region.to_string();
                }
                set(&mut placed.present, bucket, true);
            }
        }
        // Mostly both chose the same one, which is then looked for once.
        match chosen {
            [Some(one), Some(other)] if one == other => self.count(one, bucket, &[0, 1]),
            [one, other] => {
                one.into_iter().for_each(|id| self.count(id, bucket, &[0]));
                other.into_iter().for_each(|id| self.count(id, bucket, &[1]));
            }
        }
    }

    /// One more on this Monolith, for each of these sides.
    fn count(&mut self, id: &MonolithId, bucket: usize, sides: &[usize]) {
        let Some(placed) = self.monoliths.get_mut(id) else { return };
        for side in sides {
            placed.total[*side] += 1;
            let buckets = &mut placed.buckets[*side];
            let count = buckets.get(bucket).copied().unwrap_or(0);
            set(buckets, bucket, count.saturating_add(1));
        }
    }

    fn widen(&mut self) {
        self.width_us = self.width_us.saturating_mul(2);
        self.noted = None;
        self.end = self.end.div_ceil(2);
        for placed in self.monoliths.values_mut() {
            for buckets in &mut placed.buckets {
                *buckets = buckets.chunks(2).map(|pair| pair.iter().copied().fold(0, u32::saturating_add)).collect();
            }
            placed.present = placed.present.chunks(2).map(|pair| pair.contains(&true)).collect();
        }
    }

    /// How even the rooms are that one side placed, over all Monoliths that served in any call of `place`, each counted
    /// the same however long it was there: `max_load_over_mean` is the most over the mean, `load_cv` the standard
    /// deviation (of the whole, not of a sample) over the mean. Absent if nothing was placed.
    pub(super) fn add_figures(&self, side: usize, figures: &mut Figures) {
        let counts: Vec<f64> = self.monoliths.values().map(|placed| placed.total[side] as f64).collect();
        let sum: f64 = counts.iter().sum();
        if sum == 0.0 {
            return;
        }
        let mean = sum / counts.len() as f64;
        let most = counts.iter().copied().fold(0.0, f64::max);
        let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / counts.len() as f64;
        let rounded = |value: f64| (value * 1e6).round() / 1e6;
        figures.insert(Metric::MaxLoadOverMean, rounded(most / mean));
        figures.insert(Metric::LoadCv, rounded(variance.sqrt() / mean));
    }

    /// Placements of one side over time; none if nothing was placed.
    pub(super) fn over_time(&self, side: usize) -> Option<LoadOverTime> {
        if self.monoliths.values().all(|placed| placed.total[side] == 0) {
            return None;
        }
        let at_s = (0..self.end).map(|bucket| bucket as f64 * self.width_us as f64 / 1e6).collect();
        let value = |placed: &Placed, bucket: usize| {
            let present = placed.present.get(bucket).copied().unwrap_or(false);
            present.then(|| f64::from(placed.buckets[side].get(bucket).copied().unwrap_or(0)))
        };
        let monoliths = self.monoliths.iter().map(|(id, placed)| MonolithLoad {
            id: id.to_string(),
            region: placed.region.clone(),
            values: (0..self.end).map(|bucket| value(placed, bucket)).collect(),
        });
        Some(LoadOverTime { unit: "placements".into(), at_s, monoliths: monoliths.collect() })
    }

    /// Placements in all, by Monolith: of the first side and of the second.
    pub(super) fn totals(&self) -> impl Iterator<Item = (&MonolithId, [u64; 2])> {
        self.monoliths.iter().map(|(id, placed)| (id, placed.total))
    }
}

fn set<T: Clone + Default>(list: &mut Vec<T>, at: usize, value: T) {
    if list.len() <= at {
        list.resize(at + 1, T::default());
    }
    list[at] = value;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::MonolithRow;

    #[test]
    fn buckets_widen_and_lose_nothing() {
        let view = View::of(["a", "b"].map(|id| MonolithRow { id: id.into(), ..MonolithRow::default() }));
        let (a, b) = (MonolithId::from("a"), MonolithId::from("b"));
        let mut placements = Placements::default();
        for second in 0..10_000u64 {
            placements.add(second * 1_000_000, &view, [Some(&a), Some(if second % 2 == 0 { &a } else { &b })]);
        }
        placements.add(u64::MAX, &view, [None, None]);
        let load = placements.over_time(1).unwrap();
        assert!(load.at_s.len() <= BUCKETS, "{}", load.at_s.len());
        let sum = |at: usize| load.monoliths[at].values.iter().flatten().sum::<f64>();
        assert_eq!((sum(0), sum(1)), (5_000.0, 5_000.0));
        let figures = |side| {
            let mut figures = Figures::new();
            placements.add_figures(side, &mut figures);
            (figures[&Metric::MaxLoadOverMean], figures[&Metric::LoadCv])
        };
        assert_eq!((figures(0), figures(1)), ((2.0, 1.0), (1.0, 0.0)));
    }

    #[test]
    fn one_that_is_gone_has_no_load() {
        let row = |id: &str| MonolithRow { id: id.into(), ..MonolithRow::default() };
        let (a, both) = (View::of([row("a")]), View::of([row("a"), row("b")]));
        let id = MonolithId::from("a");
        let mut placements = Placements::default();
        placements.add(0, &both, [Some(&id), None]);
        placements.add(2_000_000, &a, [Some(&id), None]);
        let load = placements.over_time(0).unwrap();
        assert_eq!(load.monoliths[1].values, [Some(0.0), None, None]);
        assert_eq!(load.monoliths[0].values, [Some(1.0), None, Some(1.0)]);
        assert_eq!(placements.over_time(1), None);
    }
}
