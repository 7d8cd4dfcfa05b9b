//! A scenario: who arrives, which Monoliths there are, and what goes wrong, for a simulation. It is a TOML file that is
//! read and checked like the configuration, with the same kind of errors.
//!
//! `amount` reads sizes and times that are drawn; `keys` knows which key means what. `examples/scenario.toml` shows every
//! key with its default.

mod amount;
mod keys;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value as Json};

pub use self::amount::Amount;
use super::problem::{ConfigErrors, Place, Problem};
use super::section::Walk;
use super::tree;
use super::{Distances, Limits, Timeouts};
use crate::model::Region;

/// The longest file that is read, in bytes.
const LONGEST: u64 = 4 << 20;

/// What a simulation is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// How long it takes, in virtual time.
    pub duration: Duration,
    /// The beginning that no figure counts.
    pub warm_up: Duration,
    /// The time of day at which it begins.
    pub start: Duration,
    /// What everything that is drawn grows from.
    pub seed: u64,
    /// The region of each balancer; never empty.
    pub balancers: Vec<Region>,
    /// Never empty; their names differ.
    pub monoliths: Vec<MonolithSpec>,
    /// Never empty.
    pub arrivals: Vec<Arrivals>,
    /// Which rooms those who arrive go to.
    pub rooms: RoomHabits,
    /// How long a member stays, in seconds.
    pub stay: Amount,
    /// How Monoliths behave.
    pub behaviour: Behaviour,
    /// How members come back.
    pub reconnect: Reconnect,
    /// What goes wrong.
    pub failures: Vec<Failure>,
    /// Monoliths that restart one after another.
    pub deploys: Vec<Deploy>,
    /// What the policies get.
    pub policy: PolicyTerms,
    /// Bounds of each balancer.
    pub limits: Limits,
    /// Waits of each balancer.
    pub timeouts: Timeouts,
    /// How far regions are apart.
    pub regions: Distances,
}

/// One Monolith.
#[derive(Clone, Debug, PartialEq)]
pub struct MonolithSpec {
    /// What it is called: its id, until it restarts.
    pub name: String,
    /// Its region.
    pub region: Region,
    /// Its share relative to the others.
    pub weight: f64,
    /// Rooms beyond which loading one takes longer.
    pub rooms: u32,
    /// Clients beyond which it turns joins away.
    pub clients: u32,
    /// How long it takes to load a room, in seconds.
    pub load: Amount,
}

/// Who arrives from one region.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrivals {
    /// Their region.
    pub region: Region,
    /// How many in each hour of the day.
    pub per_hour: [f64; 24],
    /// Whether the rate goes in straight lines from the middle of one hour to that of the next, instead of in steps.
    pub smooth: bool,
}

/// Which rooms those who arrive go to.
#[derive(Clone, Debug, PartialEq)]
pub struct RoomHabits {
    /// The share of arrivals that open a room; none: as many as the sizes need.
    pub new: Option<f64>,
    /// Members that a room has in all.
    pub size: Amount,
    /// How long after its opening a room still gets members, in seconds.
    pub life: Amount,
    /// The share of arrivals that go to a room that somebody in another region opened.
    pub mixing: f64,
    /// Rooms that are always there to go to.
    pub lasting: u32,
    /// The share of arrivals that go to one of those.
    pub lasting_share: f64,
    /// The exponent of Zipf's law by which those are chosen: 0 all alike, 1 the second half as often as the first...
    pub popularity: f64,
}

/// How Monoliths behave.
#[derive(Clone, Debug, PartialEq)]
pub struct Behaviour {
    /// How often each says what it has.
    pub gossip: Duration,
    /// How often its load is read, so how old that may be; none: never.
    pub load: Option<Duration>,
    /// How long a room is kept that nobody is in.
    pub keep_alive: Duration,
    /// How long one is away whose process ended because a request to unload a room crossed its own unload of it.
    pub restart: Duration,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            gossip: Duration::from_secs(20),
            load: None,
            keep_alive: Duration::from_secs(240),
            restart: Duration::from_secs(5),
        }
    }
}

impl Default for Reconnect {
    fn default() -> Self {
        Self { scale: 1.0, attempts: Some(10) }
    }
}

/// How members come back after they lost their room, and how often they try before they give up.
#[derive(Clone, Debug, PartialEq)]
pub struct Reconnect {
    /// What the web client's pauses, (1 + 2 x attempts) s times 0.5 to 1.5, are multiplied by.
    pub scale: f64,
    /// Failed attempts in a row after which a member gives up; none: never.
    pub attempts: Option<u32>,
}

/// Something that goes wrong for a while.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// When it begins.
    pub at: Duration,
    /// How long it lasts.
    pub lasts: Duration,
    /// What happens.
    pub kind: FailureKind,
    /// To which Monoliths, as places in [`Scenario::monoliths`].
    pub monoliths: Vec<usize>,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FailureKind {
    /// The process ends, with all its rooms; balancers notice after a while.
    Crash {
        /// After how long.
        noticed: Duration,
    },
    /// It reports nothing that it is not asked for.
    Stale,
    /// Loading rooms takes longer.
    Slow {
        /// How many times as long.
        factor: f64,
    },
}

/// Monoliths that restart one after another.
#[derive(Clone, Debug, PartialEq)]
pub struct Deploy {
    /// When the first is taken.
    pub at: Duration,
    /// For how long each takes no new rooms before it stops.
    pub drain: Duration,
    /// How long each is away.
    pub down: Duration,
    /// From the return of one to the turn of the next.
    pub pause: Duration,
    /// Which ones, in this order.
    pub monoliths: Vec<usize>,
}

/// What the policies get; the same for all that are compared.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyTerms {
    /// `usher.settings`.
    pub settings: Map<String, Json>,
    /// Safepoints of one call.
    pub fuel: u64,
    /// Bytes of a VM.
    pub memory: usize,
    /// How often `rebalance` is asked; none: never.
    pub rebalance_every: Option<Duration>,
    /// Clients per second and Monolith that moves may cost.
    pub move_rate: u32,
}

/// Reads a scenario. `file` is what errors call it. Errors come all at once.
pub fn parse(file: &str, text: &str) -> Result<Scenario, ConfigErrors> {
    let file: std::sync::Arc<str> = file.into();
    let table = tree::parse(&file, text).map_err(|errors| ConfigErrors { errors, warnings: Vec::new() })?;
    let walk = Walk::new(false, Place::File { file, line: 0 });
    let scenario = keys::root(walk.root(&table));
    walk.report_unknown();
    let mut errors = walk.errors.take();
    errors.sort();
    match scenario {
        Some(scenario) if errors.is_empty() => Ok(scenario),
        _ => Err(ConfigErrors { errors, warnings: Vec::new() }),
    }
}

/// Reads the scenario in a file.
pub fn load(path: &Path) -> Result<Scenario, ConfigErrors> {
    let file = path.display().to_string();
    let wrong = |what: String| {
        let place = Place::File { file: file.as_str().into(), line: 0 };
        ConfigErrors { errors: vec![Problem { place, key: String::new(), message: what }], warnings: Vec::new() }
    };
    let size = std::fs::metadata(path).map(|meta| meta.len());
    if size.is_ok_and(|size| size > LONGEST) {
        return Err(wrong(format!("has more than {LONGEST} bytes; a scenario is a page of text")));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| wrong(format!("cannot be read: {error}; name a scenario or a trace")))?;
    parse(&file, &text)
}

/// Every key that there is, with dots, in alphabetical order; keys of lists stand with `[0]`.
pub fn known_keys(text: &str) -> Vec<String> {
    let Ok(table) = tree::parse(&"scenario".into(), text) else { return Vec::new() };
    let walk = Walk::new(false, Place::Defaults);
    keys::root(walk.root(&table));
    walk.known.into_inner().into_iter().collect()
}
