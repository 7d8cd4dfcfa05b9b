//! How far regions are from each other: measured, or estimated from where they are.

use std::collections::BTreeMap;

use super::read;
use super::section::Section;
use super::tree::{Table, Value};
use crate::model::Region;

/// Fly's regions, which are named after airports, with the airports' latitude and longitude in degrees.
const FLY: [(&str, f64, f64); 35] = [
    ("ams", 52.31, 4.76),
    ("arn", 59.65, 17.92),
    ("atl", 33.64, -84.43),
    ("bog", 4.70, -74.15),
    ("bom", 19.09, 72.87),
    ("bos", 42.36, -71.01),
    ("cdg", 49.01, 2.55),
    ("den", 39.86, -104.67),
    ("dfw", 32.90, -97.04),
    ("ewr", 40.69, -74.17),
    ("eze", -34.82, -58.54),
    ("fra", 50.03, 8.57),
    ("gdl", 20.52, -103.31),
    ("gig", -22.81, -43.25),
    ("gru", -23.43, -46.47),
    ("hkg", 22.31, 113.91),
    ("iad", 38.94, -77.46),
    ("jnb", -26.14, 28.25),
    ("lax", 33.94, -118.41),
    ("lhr", 51.47, -0.45),
    ("mad", 40.47, -3.56),
    ("mia", 25.79, -80.29),
    ("nrt", 35.77, 140.39),
    ("ord", 41.98, -87.90),
    ("otp", 44.57, 26.09),
    ("phx", 33.43, -112.01),
    ("qro", 20.62, -100.19),
    ("scl", -33.39, -70.79),
    ("sea", 47.45, -122.31),
    ("sin", 1.36, 103.99),
    ("sjc", 37.36, -121.93),
    ("syd", -33.95, 151.18),
    ("waw", 52.17, 20.97),
    ("yul", 45.47, -73.74),
    ("yyz", 43.68, -79.63),
];

/// How far regions are from each other, in milliseconds of round trip. Without any configuration it knows Fly's regions.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Distances {
    matrix: BTreeMap<Region, BTreeMap<Region, f64>>,
    at: BTreeMap<Region, (f64, f64)>,
}

impl Distances {
    /// The round trip between two regions in milliseconds; none if one of them is nowhere known.
    ///
    /// A measured value of `[regions.ms]` counts first, in either direction unless both are given; then 0 for a region
    /// and itself; then [`estimate_ms`] from `[regions.at]` or, for a region that it does not name, Fly's places.
    /// An estimate costs a few trigonometric functions: callers on a hot path keep it.
    pub fn ms(&self, from: &Region, to: &Region) -> Option<f64> {
        let measured = |from: &Region, to: &Region| self.matrix.get(from)?.get(to).copied();
        if let Some(ms) = measured(from, to).or_else(|| measured(to, from)) {
            return Some(ms);
        }
        if from == to {
            return Some(0.0);
        }
        Some(estimate_ms(self.place(from)?, self.place(to)?))
    }

    /// Sets a measured round trip in milliseconds.
    pub fn set_ms(&mut self, from: Region, to: Region, ms: f64) {
        self.matrix.entry(from).or_default().insert(to, ms);
    }

    /// Sets where a region is: latitude and longitude in degrees.
    pub fn set_place(&mut self, region: Region, latitude: f64, longitude: f64) {
        self.at.insert(region, (latitude, longitude));
    }

    fn place(&self, region: &Region) -> Option<(f64, f64)> {
        let fly = || FLY.iter().find(|(code, ..)| *code == region.as_str()).map(|(_, lat, lon)| (*lat, *lon));
        self.at.get(region).copied().or_else(fly)
    }
}

/// An estimate of the round trip between two places (latitude, longitude in degrees), in milliseconds.
///
/// The great-circle distance `d` (haversine formula, earth radius 6371 km) becomes a length of cable by the rule of
/// ITU-T Y.1541 appendix III: `1.5 d` below 1000 km, 1500 km up to 1200 km, `1.25 d` beyond. Light takes 5 µs per
/// kilometre of fibre (ITU-T G.114), once each way: `ms = 2 * 0.005 * cable`. `ewr` to `cdg` gives 73 ms.
pub fn estimate_ms(from: (f64, f64), to: (f64, f64)) -> f64 {
    let [lat_a, lon_a, lat_b, lon_b] = [from.0, from.1, to.0, to.1].map(f64::to_radians);
    let haversine = |angle: f64| (angle / 2.0).sin().powi(2);
    let h = haversine(lat_b - lat_a) + lat_a.cos() * lat_b.cos() * haversine(lon_b - lon_a);
    let distance_km = 2.0 * 6371.0 * h.clamp(0.0, 1.0).sqrt().asin();
    let cable_km = if distance_km < 1000.0 { 1.5 * distance_km } else { (1.25 * distance_km).max(1500.0) };
    2.0 * 0.005 * cable_km
}

/// Reads `[regions]`.
pub(super) fn read(mut section: Section<'_>) -> Distances {
    let mut distances = Distances::default();
    let matrix = section.section("ms");
    for (from, row) in tables(&matrix) {
        let Some(row) = row else {
            matrix.error(from, "expected a table of milliseconds, such as ewr = { cdg = 75 }");
            continue;
        };
        for (to, (_, node)) in row {
            match read::number(0.0..=60_000.0)(node) {
                Ok(ms) => distances.set_ms(from.into(), to.as_str().into(), ms),
                Err(message) => matrix.error(from, format!("{to}: {message}")),
            }
        }
    }
    let at = section.section("at");
    for (region, (_, node)) in at.table().into_iter().flatten() {
        let degrees = match &node.value {
            Value::List(items) => match items.as_slice() {
                [lat, lon] => read::number(-90.0..=90.0)(lat)
                    .and_then(|lat| read::number(-180.0..=180.0)(lon).map(|lon| (lat, lon))),
                _ => Err("expected latitude and longitude, such as ewr = [40.7, -74.2]".into()),
            },
            _ => Err("expected latitude and longitude, such as ewr = [40.7, -74.2]".into()),
        };
        match degrees {
            Ok((lat, lon)) => distances.set_place(region.as_str().into(), lat, lon),
            Err(message) => at.error(region, message),
        }
    }
    section.finish();
    distances
}

fn tables<'a>(section: &Section<'a>) -> impl Iterator<Item = (&'a str, Option<&'a Table>)> {
    section.table().into_iter().flatten().map(|(key, (_, node))| match &node.value {
        Value::Table(table) => (key.as_str(), Some(table)),
        _ => (key.as_str(), None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(distances: &Distances, from: &str, to: &str) -> Option<f64> {
        distances.ms(&from.into(), &to.into())
    }

    #[test]
    fn fly_regions_are_known_without_configuration() {
        let known = Distances::default();
        let near = |from, to, expected: f64| {
            let ms = ms(&known, from, to).unwrap();
            assert!((ms - expected).abs() < 0.1 * expected, "{from} to {to}: {ms} ms, not about {expected}");
        };
        near("ewr", "cdg", 73.0);
        near("ewr", "lhr", 70.0);
        near("sin", "syd", 79.0);
        near("ams", "fra", 5.5);
        assert_eq!(ms(&known, "ewr", "ewr"), Some(0.0));
        assert_eq!(ms(&known, "moon", "moon"), Some(0.0));
        assert_eq!(ms(&known, "ewr", "moon"), None);
        for (from, ..) in FLY {
            for (to, ..) in FLY {
                assert_eq!(ms(&known, from, to), ms(&known, to, from));
                assert!(ms(&known, from, to).unwrap() < 260.0, "{from} {to}");
            }
        }
    }

    #[test]
    fn what_was_measured_counts_before_what_is_estimated() {
        let mut distances = Distances::default();
        distances.set_ms("ewr".into(), "cdg".into(), 75.0);
        assert_eq!(ms(&distances, "ewr", "cdg"), Some(75.0));
        assert_eq!(ms(&distances, "cdg", "ewr"), Some(75.0));
        distances.set_ms("cdg".into(), "ewr".into(), 80.0);
        assert_eq!(ms(&distances, "cdg", "ewr"), Some(80.0));
        assert_eq!(ms(&distances, "ewr", "cdg"), Some(75.0));
        distances.set_place("moon".into(), 40.69, -74.17);
        assert_eq!(ms(&distances, "moon", "ewr"), Some(0.0));
    }
}
