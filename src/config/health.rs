//! `[health]`: when a Monolith that fails is left alone for a while, and how many may be at once.

use std::time::Duration;

use super::read;
use super::section::Section;

/// `[health]`: passive ejection, after the outlier detection of Envoy. An ejected Monolith keeps its rooms, and gets no new ones and
/// no requests that name no room.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HealthConfig {
    /// The smoothed share of failed HTTP requests, above 0 to 1, from which a Monolith counts as failing; 0: no share is.
    pub eject_errors: f64,
    /// How long it has to be failing before it is ejected.
    pub eject_after: Duration,
    /// Links that break without a goodbye within a minute before it is ejected; 0: any number is fine.
    pub eject_flaps: u32,
    /// How long it is ejected, times how often it was of late, at most ten.
    pub eject_for: Duration,
    /// The share of the linked Monoliths that may be ejected at once. One may be unless this is 0, and never all.
    pub max_ejected_share: f64,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            eject_errors: 0.5,
            eject_after: Duration::from_secs(5),
            eject_flaps: 10,
            eject_for: Duration::from_secs(30),
            max_ejected_share: 0.5,
        }
    }
}

pub(super) fn read(mut section: Section<'_>) -> HealthConfig {
    let mut health = HealthConfig::default();
    let share = || read::number(0.0..=1.0);
    section.read(&mut health.eject_errors, "eject_errors", share());
    section.read(&mut health.eject_after, "eject_after", read::duration(Duration::ZERO..=HOUR));
    section.read(&mut health.eject_flaps, "eject_flaps", read::integer(0..=1000u32));
    section.read(&mut health.eject_for, "eject_for", read::duration(Duration::from_millis(100)..=HOUR));
    section.read(&mut health.max_ejected_share, "max_ejected_share", share());
    section.finish();
    health
}

const HOUR: Duration = Duration::from_secs(3600);
