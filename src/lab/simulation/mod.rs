//! Simulation: what a policy would make of traffic, in virtual time.
//!
//! The clusters and the policy engine are those of the live balancer; Monoliths, members and the way between them are
//! simulated. Visits are drawn from a scenario or taken from a trace, and what becomes of them is up to the policy: a
//! closed loop. A seed gives the same run to the byte; of all figures only `ns_p99` is measured.
//!
//! The figures, over the time after the warm-up:
//! - `max_load_over_mean`, `load_cv`: at 4,800 moments the load of each Monolith that takes work is its rooms over its
//!   weight. The figure is the sum over the moments of the largest load (or the standard deviation) over the sum of the
//!   mean load: moments with many rooms count for more, so that a night with three rooms says little.
//! - `own_region_share`: of the time that members were served, the share on a Monolith of their own region.
//! - `latency_mean_ms`, `latency_p99_ms`: the round trip between a member's region and that of its Monolith, over the same
//!   time; pairs of which no distance is known are left out.
//! - `rejected`: attempts that got no room (too many, none available, refused by `admit` or `place`, held for too long,
//!   turned away by a full Monolith). `held`: attempts that `admit` made to wait.
//! - `moves`: rooms that `rebalance` moved. `duplicates`: loads of a room that another Monolith had loaded, one for each.
//! - `split_room_s`: seconds in which members of one room were served by more than one Monolith, over all rooms.
//! - `wait_p50_ms`, `wait_p99_ms`: from wanting in, or from losing the room, to being served.
//! - `crossed_unloads`: requests to unload that found the room unloaded, each of which ends a Monolith, as it ends a real one.
//! - `interrupted`: members that lost their room; `gave_up`: those that did not come back.

mod decider;
mod fleet;
mod members;
mod monoliths;
mod queue;
mod random;
mod recorded;
mod run;
mod steps;
mod tally;
#[cfg(test)]
mod tests;
mod traffic;
mod world;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use self::run::Run;
use self::tally::{Histogram, tidy};
use self::traffic::{Demand, Rooms, Traffic, Visit};
use self::world::World;
use super::page::{Page, Side};
use super::page_figures::span;
use crate::config::Config;
use crate::config::scenario::Scenario;
use crate::model::assertion::{Assertion, Metric};
use crate::model::policy::Hook;
use crate::policy::Policy as _;
use crate::policy::lua::{Distances, Environment, Limits, LoadError, Program, SharedState, Source};
use crate::trace::read::TraceError;

/// The processor time of one call is no verdict here: it would differ from run to run. Fuel stops what does not end.
const NO_BUDGET: Duration = Duration::from_secs(3600);

/// Traffic and Monoliths on which policies are tried.
pub struct Simulation {
    title: String,
    world: World,
    source: Visits,
    seed: u64,
    facts: Vec<(String, String)>,
    damage: Option<(u64, TraceError)>,
    /// Why `rebalance` is not asked, if it is not.
    no_rebalance: Option<&'static str>,
}

enum Visits {
    Drawn(Box<Scenario>),
    Recorded { rooms: Rooms, visits: Vec<Visit> },
}

/// What one policy made of it.
#[derive(Clone, Debug)]
pub struct Simulated {
    /// Figures, further figures and loads over time.
    pub side: Side,
    /// The first fault, with its place.
    pub fault: Option<String>,
    /// The 99th percentile of what one decision took, in nanoseconds: measured, so never the same twice.
    pub ns_p99: Option<f64>,
    /// Whether it has something to say to what should move.
    pub rebalances: bool,
}

impl Simulation {
    /// A scenario; `name` is what reports call it, `seed` stands for its own.
    pub fn of_scenario(name: &str, scenario: Scenario, seed: Option<u64>) -> Self {
        let world = World::of_scenario(&scenario);
        let mut simulation = Self {
            title: format!("simulation of {name}"),
            seed: seed.unwrap_or(world.seed),
            world,
            source: Visits::Drawn(Box::new(scenario)),
            facts: Vec::new(),
            damage: None,
            no_rebalance: Some("not asked; the scenario names no policy.rebalance_every"),
        };
        simulation.describe();
        simulation
    }

    /// The joins and leaves of a trace, with the Monoliths that came and went in it. Limits, settings, distances and how
    /// often `rebalance` is asked are those of the trace, or of a configuration.
    pub fn of_trace(path: &Path, seed: Option<u64>, config: Option<&Config>) -> Result<Self, TraceError> {
        let recorded::Recorded { world, rooms, visits, facts, damage } = recorded::read(path, config)?;
        let mut simulation = Self {
            title: format!("simulation of {}", path.display()),
            seed: seed.unwrap_or(world.seed),
            world,
            source: Visits::Recorded { rooms, visits },
            facts: Vec::new(),
            damage,
            no_rebalance: Some(match config {
                None => "not asked; the trace does not show how often: give -c with policy.rebalance_every",
                Some(_) => "not asked; the configuration has no policy.rebalance_every, or wants a dry run",
            }),
        };
        simulation.describe();
        simulation.facts.extend(facts);
        Ok(simulation)
    }

    /// Lines of the trace that could not be understood, and the first of them.
    pub fn damage(&self) -> Option<(u64, &TraceError)> {
        self.damage.as_ref().map(|(lines, first)| (*lines, first))
    }

    fn describe(&mut self) {
        let world = &self.world;
        if world.policy.rebalance_every.is_some() {
            self.no_rebalance = None;
        }
        let fact = |name: &str, value: String| (name.to_owned(), value);
        self.facts = vec![
            fact("virtual time", span(world.duration as f64 / 1e6)),
            fact("seed", self.seed.to_string()),
            fact("balancers", world.balancers.len().to_string()),
            fact("Monoliths", world.monoliths.len().to_string()),
        ];
        if world.warm_up > 0 {
            self.facts.push(fact("not counted", span(world.warm_up as f64 / 1e6)));
        }
    }

    /// Tries one policy. `progress` is told the share that is done, now and then.
    pub fn run(&self, policy: &Source, progress: &mut dyn FnMut(f64)) -> Result<Simulated, LoadError> {
        let world = &self.world;
        let program = Program::compile(policy.clone(), &self.environment())?;
        let mut rooms = Rooms::default();
        let traffic = match &self.source {
            Visits::Drawn(scenario) => {
                Traffic::Drawn(Box::new(Demand::new(scenario, &world.regions, self.seed, &mut rooms)))
            }
            Visits::Recorded { rooms: known, visits } => {
                rooms = known.clone();
                Traffic::Recorded(visits.iter())
            }
        };
        let mut run = Run::new(world, &program, self.seed, rooms, traffic)?;
        run.run(progress);
        Ok(outcome(&mut run, &program))
    }

    /// Several policies on the same traffic, as a report; the demands are made on each.
    pub fn page(&self, simulated: &[Simulated], demands: &[Assertion]) -> Page {
        let sides = simulated.iter().map(|simulated| simulated.side(demands)).collect();
        let mut facts = self.facts.clone();
        let unasked = self.no_rebalance.filter(|_| simulated.iter().any(|simulated| simulated.rebalances));
        facts.extend(unasked.map(|why| ("rebalance".to_owned(), why.to_owned())));
        Page { title: self.title.clone(), facts, sides, ..Page::default() }
    }

    fn environment(&self) -> Environment {
        let (distances, terms) = (self.world.regions.distances().clone(), &self.world.policy);
        Environment {
            distances: Distances::new(move |from, to| distances.ms(from, to)),
            settings: terms.settings.clone(),
            limits: Limits { fuel: terms.fuel, budget: NO_BUDGET, memory: terms.memory },
            state: Arc::new(SharedState::default()),
        }
    }

    /// How long it takes in virtual time.
    pub fn duration(&self) -> Duration {
        Duration::from_micros(self.world.duration)
    }
}

impl Simulated {
    /// Holds demands against the figures. What decisions took is a figure only if it is asked for, since all others are
    /// the same in every run.
    pub fn side(&self, demands: &[Assertion]) -> Side {
        let mut side = self.side.clone();
        if let Some(ns) = self.ns_p99.filter(|_| demands.iter().any(|demand| demand.metric == Metric::NsP99)) {
            side.figures.insert(Metric::NsP99, ns);
        }
        side.assertions = demands.iter().map(|demand| demand.check(&side.figures)).collect();
        side
    }
}

fn outcome(run: &mut Run<'_>, program: &Program) -> Simulated {
    let (mut figures, mut more) = run.tally.figures(run.world);
    let (mut moves, mut placements, mut timeouts) = (0, 0, 0);
    for (now, before) in run.counters() {
        moves += now.moves.done - before.moves.done;
        placements += now.placements - before.placements;
        timeouts += now.load_timeouts - before.load_timeouts;
    }
    let mut ns = Histogram::default();
    let (mut decisions, mut faults, mut fuel, mut fault) = (0, 0, 0, None);
    for balancer in &run.balancers {
        let counts = balancer.policy.counts();
        decisions += counts.decisions;
        faults += counts.faults;
        fuel = fuel.max(counts.fuel);
        fault = fault.or_else(|| counts.first_fault.clone());
        ns.merge(balancer.policy.ns());
    }
    figures.insert(Metric::Moves, moves as f64);
    figures.insert(Metric::Faults, faults as f64);
    for (name, value) in
        [("decisions", decisions), ("placements", placements), ("load_timeouts", timeouts), ("fuel_max", fuel)]
    {
        more.push((name.to_owned(), value as f64));
    }
    let load = Some(run.tally.load_over_time(run.world));
    let policy = run.balancers.first_mut().map(|balancer| balancer.policy.name()).unwrap_or_default();
    let version = program.version().to_owned();
    let side = Side { policy, version, figures, more, assertions: Vec::new(), load };
    let rebalances = run.balancers.iter().any(|balancer| balancer.policy.has(Hook::Rebalance));
    Simulated { side, fault, ns_p99: ns.percentile(0.99).map(tidy), rebalances }
}
