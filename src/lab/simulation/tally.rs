//! What is counted in a run, and the figures that come of it.

use super::world::World;
use crate::lab::page::{LoadOverTime, MonolithLoad};
use crate::model::assertion::{Figures, Metric};
use crate::model::event::Micros;

/// Moments at which loads are looked at.
pub(super) const SAMPLES: u64 = 4_800;
/// Of these, each that is written down for a plot: 240 in all.
const PLOTTED: u64 = 20;

/// Counts by size, in steps of 1/16 of a power of two: good for percentiles within 6 %.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

const STEPS: u64 = 16;

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; 61 * STEPS as usize], total: 0 }
    }
}

impl Histogram {
    pub(super) fn add(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, more)| *mine += more);
        self.total += other.total;
    }

    /// The value below which this share lies; none if nothing was counted.
    pub(super) fn percentile(&self, share: f64) -> Option<f64> {
        let wanted = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let at = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        (self.total > 0).then(|| floor_of(at as u64) as f64)
    }
}

fn bucket(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let power = u64::from(value.ilog2());
    ((power - 3) * STEPS + ((value >> (power - 4)) & (STEPS - 1))) as usize
}

/// The smallest value of a bucket.
fn floor_of(bucket: u64) -> u64 {
    match bucket / STEPS {
        0 => bucket,
        power => (STEPS + bucket % STEPS) << (power - 1),
    }
}

/// Where the members of one room are.
#[derive(Clone, Debug, Default)]
struct Whereabouts {
    /// Monoliths that have it loaded.
    copies: u16,
    /// Members by Monolith; those without any are left out.
    present: Vec<(u16, u32)>,
    /// Since when they are on more than one.
    split_since: Micros,
}

/// What was counted. Only what happens after the warm-up counts.
pub(super) struct Tally {
    from: Micros,
    rooms: Vec<Whereabouts>,
    /// Microseconds that members were served, by their region and that of their Monolith.
    served: Vec<Vec<u64>>,
    /// Sums over samples of the fullest Monolith, the mean and the standard deviation.
    spread: [f64; 3],
    samples: u64,
    at_s: Vec<f64>,
    series: Vec<Vec<Option<f64>>>,
    pub(super) counts: Events,
    /// Microseconds from asking to being served.
    pub(super) waits: Histogram,
    split: Micros,
}

/// Things that happened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Events {
    pub(super) visits: u64,
    pub(super) joins: u64,
    pub(super) rejected: u64,
    pub(super) held: u64,
    pub(super) interrupted: u64,
    pub(super) gave_up: u64,
    pub(super) duplicates: u64,
    pub(super) crossed_unloads: u64,
}

impl Tally {
    pub(super) fn new(world: &World) -> Self {
        Self {
            from: world.warm_up,
            rooms: Vec::new(),
            served: vec![vec![0; world.regions.len()]; world.regions.len()],
            spread: [0.0; 3],
            samples: 0,
            at_s: Vec::new(),
            series: vec![Vec::new(); world.monoliths.len()],
            counts: Events::default(),
            waits: Histogram::default(),
            split: 0,
        }
    }

    /// Forgets what happened in the warm-up.
    pub(super) fn start_counting(&mut self) {
        self.counts = Events::default();
        self.waits = Histogram::default();
    }

    fn room(&mut self, room: u32) -> &mut Whereabouts {
        let at = room as usize;
        if at >= self.rooms.len() {
            self.rooms.resize(at + 1, Whereabouts::default());
        }
        &mut self.rooms[at]
    }

    /// A Monolith has loaded a room.
    pub(super) fn loaded(&mut self, room: u32) {
        let room = self.room(room);
        room.copies += 1;
        let others = u64::from(room.copies - 1);
        self.counts.duplicates += others;
    }

    /// A room has left a Monolith's memory.
    pub(super) fn unloaded(&mut self, room: u32) {
        let room = self.room(room);
        room.copies = room.copies.saturating_sub(1);
    }

    /// A member is served from now on.
    pub(super) fn came(&mut self, now: Micros, room: u32, monolith: u16) {
        let room = self.room(room);
        match room.present.iter_mut().find(|(other, _)| *other == monolith) {
            Some((_, members)) => *members += 1,
            None => {
                room.present.push((monolith, 1));
                if room.present.len() == 2 {
                    room.split_since = now;
                }
            }
        }
    }

    /// A member is served no more. `regions` are its own and that of its Monolith.
    pub(super) fn went(&mut self, since: Micros, now: Micros, room: u32, monolith: u16, regions: (u16, u16)) {
        let from = self.from;
        self.served[usize::from(regions.0)][usize::from(regions.1)] += now.saturating_sub(since.max(from));
        let room = self.room(room);
        let Some(at) = room.present.iter().position(|(other, _)| *other == monolith) else { return };
        room.present[at].1 -= 1;
        if room.present[at].1 == 0 {
            room.present.swap_remove(at);
            if room.present.len() == 1 {
                let split = now.saturating_sub(room.split_since.max(from));
                self.split += split;
            }
        }
    }

    /// The loads of this moment: for each Monolith its rooms and its weight, and whether it takes work.
    pub(super) fn sample(&mut self, now: Micros, loads: &[Option<(u32, f64, bool)>]) {
        if now >= self.from {
            let serving = || {
                loads
                    .iter()
                    .flatten()
                    .filter(|(.., serves)| *serves)
                    .map(|(rooms, weight, _)| f64::from(*rooms) / weight)
            };
            let count = serving().count() as f64;
            if count > 0.0 {
                let mean = serving().sum::<f64>() / count;
                let variance = serving().map(|load| (load - mean).powi(2)).sum::<f64>() / count;
                let sums = [serving().fold(0.0, f64::max), mean, variance.sqrt()];
                self.spread.iter_mut().zip(sums).for_each(|(sum, more)| *sum += more);
            }
        }
        if self.samples.is_multiple_of(PLOTTED) {
            self.at_s.push(now as f64 / 1e6);
            for (series, load) in self.series.iter_mut().zip(loads) {
                series.push(load.map(|(rooms, ..)| f64::from(rooms)));
            }
        }
        self.samples += 1;
    }

    /// The figures that are known without the clusters.
    pub(super) fn figures(&self, world: &World) -> (Figures, Vec<(String, f64)>) {
        let mut figures = Figures::new();
        let [most, mean, deviation] = self.spread;
        if mean > 0.0 {
            figures.insert(Metric::MaxLoadOverMean, tidy(most / mean));
            figures.insert(Metric::LoadCv, tidy(deviation / mean));
        }
        let total: u64 = self.served.iter().flatten().sum();
        if total > 0 {
            let own: u64 = (0..self.served.len()).map(|region| self.served[region][region]).sum();
            figures.insert(Metric::OwnRegionShare, tidy(own as f64 / total as f64));
        }
        figures.insert(Metric::Rejected, self.counts.rejected as f64);
        figures.insert(Metric::Held, self.counts.held as f64);
        figures.insert(Metric::Duplicates, self.counts.duplicates as f64);
        figures.insert(Metric::SplitRoomS, tidy(self.split as f64 / 1e6));
        figures.insert(Metric::CrossedUnloads, self.counts.crossed_unloads as f64);
        let mut more = vec![
            ("visits".to_owned(), self.counts.visits as f64),
            ("joins".to_owned(), self.counts.joins as f64),
            ("interrupted".to_owned(), self.counts.interrupted as f64),
            ("gave_up".to_owned(), self.counts.gave_up as f64),
        ];
        if let Some((mean, p99)) = self.latency(world) {
            more.extend([("latency_mean_ms".to_owned(), tidy(mean)), ("latency_p99_ms".to_owned(), tidy(p99))]);
        }
        for (name, share) in [("wait_p50_ms", 0.5), ("wait_p99_ms", 0.99)] {
            if let Some(us) = self.waits.percentile(share) {
                more.push((name.to_owned(), tidy(us / 1e3)));
            }
        }
        (figures, more)
    }

    /// Mean and 99th percentile of the round trip from members to their Monoliths, over the time that they were served.
    fn latency(&self, world: &World) -> Option<(f64, f64)> {
        let mut known: Vec<(f64, u64)> = Vec::new();
        for (from, row) in self.served.iter().enumerate() {
            for (to, time) in row.iter().enumerate().filter(|(_, time)| **time > 0) {
                known.extend(world.regions.ms(from as u16, to as u16).map(|ms| (ms, *time)));
            }
        }
        known.sort_by(|a, b| a.0.total_cmp(&b.0));
        let total: u64 = known.iter().map(|(_, time)| time).sum();
        let mean = known.iter().map(|(ms, time)| ms * *time as f64).sum::<f64>() / total as f64;
        let mut seen = 0;
        let p99 = known.iter().find(|(_, time)| {
            seen += time;
            seen as f64 >= 0.99 * total as f64
        });
        p99.map(|(p99, _)| (mean, *p99))
    }

    /// Rooms on each Monolith over time.
    pub(super) fn load_over_time(&mut self, world: &World) -> LoadOverTime {
        let series = std::mem::take(&mut self.series);
        let mut monoliths: Vec<MonolithLoad> = (world.monoliths.iter().zip(series))
            .map(|(spec, values)| MonolithLoad {
                id: spec.name.clone(),
                region: world.regions.name(spec.region).to_string(),
                values,
            })
            .collect();
        monoliths.sort_by(|a, b| a.id.cmp(&b.id));
        LoadOverTime { unit: "rooms".into(), at_s: std::mem::take(&mut self.at_s), monoliths }
    }
}

/// Six digits after the point are more than any of this is worth.
pub(super) fn tidy(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_sixteenth() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(0.5), None);
        (1..=10_000).for_each(|value| histogram.add(value));
        for (share, expected) in [(0.5, 5_000.0), (0.99, 9_900.0)] {
            let found = histogram.percentile(share).unwrap();
            assert!(found <= expected && found > expected * 15.0 / 16.0, "{share}: {found}");
        }
        for value in [0, 1, 15, 16, 17, 31, 32, 1 << 40, u64::MAX] {
            assert!(floor_of(bucket(value) as u64) <= value, "{value}");
            assert!(bucket(value) == 0 || floor_of(bucket(value) as u64) as f64 > value as f64 * 0.93, "{value}");
        }
    }
}
