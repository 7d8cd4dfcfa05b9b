//! What a run starts from, whether a scenario or a trace says so: regions and their distances, balancers, Monoliths, and
//! what happens to these at which moment.

use std::sync::Arc;
use std::time::Duration;

use super::random::Sampler;
use crate::cluster::{EjectionSettings, Rebalancing, Settings};
use crate::config::scenario::{Behaviour, FailureKind, PolicyTerms, Reconnect, Scenario};
use crate::config::{Distances, Limits, Timeouts, Weights};
use crate::model::Region;
use crate::model::event::Micros;

/// Midnight of 1 January 2026: a day without a name, from which a scenario's clock starts.
pub(super) const MIDNIGHT: Micros = 1_767_225_600_000_000;
/// A round trip between places of which one is nowhere known, in milliseconds.
const UNKNOWN_MS: f64 = 80.0;
/// A round trip within a region, in milliseconds.
const NEAR_MS: f64 = 0.5;

/// The fixed part of a run.
pub(super) struct World {
    /// When virtual time begins, in microseconds since the Unix epoch: what the policies' clock shows.
    pub(super) epoch: Micros,
    pub(super) duration: Micros,
    pub(super) warm_up: Micros,
    pub(super) seed: u64,
    pub(super) regions: Regions,
    /// The region of each balancer.
    pub(super) balancers: Vec<u16>,
    pub(super) monoliths: Vec<Spec>,
    /// What happens to Monoliths, in the order of time.
    pub(super) plan: Vec<(Micros, Step)>,
    /// Whose clock the plan goes by.
    pub(super) seen_by: SeenBy,
    pub(super) behaviour: Behaviour,
    pub(super) reconnect: Reconnect,
    pub(super) policy: PolicyTerms,
    pub(super) limits: Limits,
    pub(super) timeouts: Timeouts,
}

/// One Monolith before it does anything.
pub(super) struct Spec {
    pub(super) name: String,
    pub(super) region: u16,
    pub(super) weight: f64,
    pub(super) rooms: u32,
    pub(super) clients: u32,
    pub(super) load: Sampler,
    pub(super) from_start: bool,
}

/// Whose moments a plan has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SeenBy {
    /// Those of Monoliths: balancers hear of it after the way between them, and find one that begins with their next dial.
    Monoliths,
    /// Those at which a balancer knew of it, as in a recording: it had the link, or had lost it.
    Balancers,
}

/// What was scraped from a Monolith: the same names for all of one trace.
pub(super) type Load = Arc<[(Arc<str>, f64)]>;

/// Something that happens to a Monolith. What lasts is begun and ended, and ends with the last that began it, so that
/// failures and deploys may overlap.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// A reason for it to be away. With the first it goes, and balancers notice after a while.
    Down { monolith: usize, noticed: Micros },
    /// A reason less. With the last it is there, empty.
    Up { monolith: usize },
    /// Whether it takes new rooms.
    Drain { monolith: usize, drains: bool },
    /// It stops or begins again to report by itself.
    Stale { monolith: usize, stale: bool },
    /// Its loads take this many times as long, or no longer so.
    Slow { monolith: usize, factor: f64, over: bool },
    /// This was read from its metrics.
    Load { monolith: usize, load: Load },
}

/// Regions by number.
#[derive(Default)]
pub(super) struct Regions {
    names: Vec<Region>,
    distances: Distances,
    ms: Vec<Vec<Option<f64>>>,
}

pub(super) fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Regions {
    pub(super) fn new(distances: Distances) -> Self {
        Self { distances, ..Self::default() }
    }

    /// The number of a region, which is given one if it has none.
    pub(super) fn number(&mut self, region: &Region) -> u16 {
        if let Some(at) = self.names.iter().position(|name| name == region) {
            return at as u16;
        }
        self.names.push(region.clone());
        let between = |from: &Region, to: &Region| self.distances.ms(from, to);
        self.ms = self.names.iter().map(|from| self.names.iter().map(|to| between(from, to)).collect()).collect();
        (self.names.len() - 1) as u16
    }

    /// The number of a region that has one.
    pub(super) fn find(&self, region: &Region) -> Option<u16> {
        self.names.iter().position(|name| name == region).map(|at| at as u16)
    }

    pub(super) fn name(&self, number: u16) -> &Region {
        &self.names[usize::from(number)]
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    pub(super) fn distances(&self) -> &Distances {
        &self.distances
    }

    /// The round trip, where it is known.
    pub(super) fn ms(&self, from: u16, to: u16) -> Option<f64> {
        self.ms[usize::from(from)][usize::from(to)]
    }

    /// How long a frame takes from one region to another.
    pub(super) fn one_way(&self, from: u16, to: u16) -> Micros {
        (self.ms(from, to).unwrap_or(UNKNOWN_MS).max(NEAR_MS) * 500.0) as Micros
    }
}

impl World {
    pub(super) fn of_scenario(scenario: &Scenario) -> Self {
        let mut regions = Regions::new(scenario.regions.clone());
        let balancers = scenario.balancers.iter().map(|region| regions.number(region)).collect();
        let monoliths = scenario.monoliths.iter().map(|spec| Spec {
            name: spec.name.clone(),
            region: regions.number(&spec.region),
            weight: spec.weight,
            rooms: spec.rooms,
            clients: spec.clients,
            load: Sampler::new(spec.load),
            from_start: true,
        });
        let monoliths = monoliths.collect();
        scenario.arrivals.iter().for_each(|arrivals| {
            regions.number(&arrivals.region);
        });
        Self {
            epoch: MIDNIGHT + micros(scenario.start),
            duration: micros(scenario.duration),
            warm_up: micros(scenario.warm_up),
            seed: scenario.seed,
            regions,
            balancers,
            monoliths,
            plan: plan(scenario),
            seen_by: SeenBy::Monoliths,
            behaviour: scenario.behaviour.clone(),
            reconnect: scenario.reconnect.clone(),
            policy: scenario.policy.clone(),
            limits: scenario.limits.clone(),
            timeouts: scenario.timeouts.clone(),
        }
    }

    /// `host:port` of a Monolith, which stays what it is when it restarts.
    pub(super) fn endpoint(&self, monolith: usize) -> String {
        format!("{}:3002", self.monoliths[monolith].name)
    }

    /// What the cluster of a balancer runs with.
    pub(super) fn settings(&self, balancer: usize) -> Settings {
        let mut weights = Weights::default();
        for (at, spec) in self.monoliths.iter().enumerate() {
            weights.set(self.endpoint(at), spec.weight);
        }
        Settings {
            region: self.regions.name(self.balancers[balancer]).clone(),
            load_timeout: micros(self.timeouts.load),
            drain: micros(self.timeouts.drain),
            place_attempts: self.limits.place_attempts,
            pending_joins: self.limits.pending_joins,
            pending_rooms: self.limits.pending_rooms,
            hold: micros(self.timeouts.hold),
            patience: micros(self.timeouts.patience(&self.limits)),
            joins_per_second: self.limits.joins_per_second,
            // There are no requests that could fail, and a link that ends is what the scenario says.
            ejection: EjectionSettings { errors: 0.0, after: 0, flaps: 0, base: 1_000_000, most: 0.0 },
            rebalance: self.policy.rebalance_every.map(|every| Rebalancing { every: micros(every), dry: false }),
            seamless: None,
            move_rate: self.policy.move_rate,
            weights,
            claims: None,
        }
    }

    /// The balancers that members of a region use: the nearest ones.
    pub(super) fn nearest_balancers(&self, region: u16) -> Vec<usize> {
        let distance = |at: &usize| match self.balancers[*at] {
            own if own == region => 0.0,
            other => self.regions.ms(region, other).unwrap_or(f64::INFINITY),
        };
        let all = 0..self.balancers.len();
        let least = all.clone().map(|at| distance(&at)).fold(f64::INFINITY, f64::min);
        all.filter(|at| distance(at) <= least).collect()
    }
}

/// Failures and deploys as steps in the order of time.
fn plan(scenario: &Scenario) -> Vec<(Micros, Step)> {
    let mut plan = Vec::new();
    for failure in &scenario.failures {
        let (from, to) = (micros(failure.at), micros(failure.at.saturating_add(failure.lasts)));
        for &monolith in &failure.monoliths {
            let (begin, end) = match failure.kind {
                FailureKind::Crash { noticed } => {
                    (Step::Down { monolith, noticed: micros(noticed) }, Step::Up { monolith })
                }
                FailureKind::Stale => (Step::Stale { monolith, stale: true }, Step::Stale { monolith, stale: false }),
                FailureKind::Slow { factor } => {
                    let slow = |over| Step::Slow { monolith, factor, over };
                    (slow(false), slow(true))
                }
            };
            plan.extend([(from, begin), (to, end)]);
        }
    }
    for deploy in &scenario.deploys {
        let mut at = micros(deploy.at);
        for &monolith in &deploy.monoliths {
            if !deploy.drain.is_zero() {
                plan.push((at, Step::Drain { monolith, drains: true }));
                at += micros(deploy.drain);
            }
            plan.push((at, Step::Down { monolith, noticed: 0 }));
            at += micros(deploy.down);
            plan.push((at, Step::Up { monolith }));
            at += micros(deploy.pause);
        }
    }
    // Stable: what is planned for one moment happens in the order of the file.
    plan.sort_by_key(|(at, _)| *at);
    plan
}
