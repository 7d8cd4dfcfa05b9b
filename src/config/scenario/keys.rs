//! Which key of a scenario means what.

use std::collections::BTreeSet;
use std::time::Duration;

use super::amount::{self, Amount, Unit};
use super::{
    Arrivals, Behaviour, Deploy, Failure, FailureKind, MonolithSpec, PolicyTerms, Reconnect, RoomHabits, Scenario,
};
use crate::config::section::Section;
use crate::config::tree::{Node, Value};
use crate::config::types::{Handover, PolicyConfig};
use crate::config::{policy, read, regions, resolve, units};
use crate::model::Region;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
const LONGEST: Duration = Duration::from_secs(31 * 86_400);
/// Monoliths of one scenario.
const MOST_MONOLITHS: usize = 1_000;
/// Balancers of one scenario.
const MOST_BALANCERS: usize = 64;
/// The most that may arrive from one region in an hour.
const MOST_ARRIVALS: f64 = 10_000_000.0;

/// Reads the whole document. None if something is missing without which there is no scenario; the error is noted.
pub(super) fn root(mut root: Section<'_>) -> Option<Scenario> {
    let mut duration = Duration::from_secs(3600);
    root.read(&mut duration, "duration", read::duration(SECOND..=LONGEST));
    let mut warm_up = Duration::ZERO;
    root.read(&mut warm_up, "warm_up", read::duration(Duration::ZERO..=LONGEST));
    if warm_up >= duration {
        root.error(
            "warm_up",
            format!("is not shorter than duration, {}; nothing would count", units::write_duration(duration)),
        );
    }
    let mut start = Duration::ZERO;
    root.read(&mut start, "start", time_of_day);
    let mut seed = 1;
    root.read(&mut seed, "seed", read::integer(0..=i64::MAX as u64));
    let monoliths = monoliths(&mut root);
    let mut balancers = balancers(&mut root);
    let arrivals = arrivals(&mut root);
    let rooms = rooms(root.section("rooms"));
    let mut stay = Amount::Lognormal { median: 900.0, sigma: 1.0, max: 6.0 * 3600.0 };
    amount::read(&mut root, "stay", Unit::Time, &mut stay);
    let behaviour = behaviour(root.section("behaviour"));
    let reconnect = reconnect(root.section("reconnect"));
    let failures = failures(&mut root, &monoliths, duration);
    let deploys = deploys(&mut root, &monoliths, duration);
    let policy = terms(root.section("policy"));
    let limits = resolve::limits(root.section("limits"));
    let timeouts = resolve::timeouts(root.section("timeouts"));
    let regions = regions::read(root.section("regions"));
    root.finish();
    if balancers.is_empty() {
        balancers.push(monoliths.first()?.region.clone());
    }
    if arrivals.is_empty() {
        return None;
    }
    Some(Scenario {
        duration,
        warm_up,
        start,
        seed,
        balancers,
        monoliths,
        arrivals,
        rooms,
        stay,
        behaviour,
        reconnect,
        failures,
        deploys,
        policy,
        limits,
        timeouts,
        regions,
    })
}

/// The tables of a list, each a section of its own.
fn tables<'a>(root: &mut Section<'a>, key: &'static str) -> Vec<Section<'a>> {
    let Some(node) = root.get(key) else { return Vec::new() };
    let Value::List(items) = &node.value else {
        root.wrong_type(key, &format!("a list of tables, [[{key}]]"));
        return Vec::new();
    };
    let mut sections = Vec::new();
    for (at, item) in items.iter().enumerate() {
        match root.item(format!("{key}[{at}]"), item) {
            Some(section) => sections.push(section),
            None => root.error(key, format!("expected tables, found {}; write [[{key}]]", item.kind())),
        }
    }
    sections
}

/// A key that has to be there.
fn required<T>(
    section: &mut Section<'_>,
    key: &'static str,
    read: impl FnOnce(&Node) -> Result<T, String>,
) -> Option<T> {
    if !section.has(key) {
        section.error(key, "missing: write it");
    }
    section.optional(key, read)
}

fn region(section: &mut Section<'_>) -> Option<Region> {
    required(section, "region", read::word).map(|region| region.as_str().into())
}

fn monoliths(root: &mut Section<'_>) -> Vec<MonolithSpec> {
    let mut all: Vec<MonolithSpec> = Vec::new();
    let mut names = BTreeSet::new();
    let sections = tables(root, "monoliths");
    if sections.is_empty() && !root.has("monoliths") {
        root.error("monoliths", "there are none; write at least one [[monoliths]] with a region");
    }
    for mut section in sections {
        let region = region(&mut section);
        let mut count = 1;
        section.read(&mut count, "count", read::integer(1..=MOST_MONOLITHS));
        let name = section.optional("name", read::word);
        let (mut weight, mut rooms, mut clients) = (1.0, u32::MAX, u32::MAX);
        section.read(&mut weight, "weight", read::number(0.001..=1000.0));
        section.read(&mut rooms, "rooms", read::integer(1..=u32::MAX));
        section.read(&mut clients, "clients", read::integer(1..=u32::MAX));
        let mut load = Amount::Uniform { min: 0.05, max: 0.25 };
        amount::read(&mut section, "load", Unit::Time, &mut load);
        if let Some(region) = region {
            let name = name.unwrap_or_else(|| region.to_string());
            if !names.insert(name.clone()) {
                section.error("name", format!("another group is called {name:?} already; write another name"));
            }
            if all.len() + count > MOST_MONOLITHS {
                section.error("count", format!("makes more than {MOST_MONOLITHS} Monoliths; write less"));
                count = 0;
            }
            for number in 1..=count {
                let (name, region) = (format!("{name}-{number}"), region.clone());
                all.push(MonolithSpec { name, region, weight, rooms, clients, load });
            }
        }
        section.finish();
    }
    all
}

fn balancers(root: &mut Section<'_>) -> Vec<Region> {
    let mut all = Vec::new();
    for mut section in tables(root, "balancers") {
        let region = region(&mut section);
        let mut count = 1;
        section.read(&mut count, "count", read::integer(1..=MOST_BALANCERS));
        if all.len() + count > MOST_BALANCERS {
            section.error("count", format!("makes more than {MOST_BALANCERS} balancers; write less"));
        } else if let Some(region) = region {
            all.extend(std::iter::repeat_n(region, count));
        }
        section.finish();
    }
    all
}

fn arrivals(root: &mut Section<'_>) -> Vec<Arrivals> {
    let mut all = Vec::new();
    let sections = tables(root, "arrivals");
    if sections.is_empty() && !root.has("arrivals") {
        root.error("arrivals", "nobody arrives; write at least one [[arrivals]] with region and per_hour");
    }
    for mut section in sections {
        let region = region(&mut section);
        let per_hour = required(&mut section, "per_hour", per_hour);
        let mut smooth = false;
        section.read(&mut smooth, "curve", |node| match read::text(node)?.as_str() {
            "steps" => Ok(false),
            "linear" => Ok(true),
            other => Err(format!("{:?} is no curve; write \"steps\" or \"linear\"", read::cut(other))),
        });
        if let Some((region, per_hour)) = region.zip(per_hour) {
            all.push(Arrivals { region, per_hour, smooth });
        }
        section.finish();
    }
    if !all.is_empty() && all.iter().all(|arrivals| arrivals.per_hour.iter().all(|rate| *rate <= 0.0)) {
        root.error("arrivals", "nobody arrives at any hour; write a per_hour above 0");
    }
    all
}

fn per_hour(node: &Node) -> Result<[f64; 24], String> {
    let rate = read::number(0.0..=MOST_ARRIVALS);
    match &node.value {
        Value::List(items) => {
            let rates = items.iter().map(rate).collect::<Result<Vec<_>, _>>()?;
            let count = rates.len();
            rates.try_into().map_err(|_| {
                format!("has {count} numbers; write 24, one for each hour of the day from 0:00 on, or a single one")
            })
        }
        _ => Ok([rate(node)?; 24]),
    }
}

fn rooms(mut section: Section<'_>) -> RoomHabits {
    let mut rooms = RoomHabits {
        new: None,
        size: Amount::Zipf { exponent: 1.5, max: 50 },
        life: Amount::Lognormal { median: 2400.0, sigma: 0.8, max: 8.0 * 3600.0 },
        mixing: 0.1,
        lasting: 0,
        lasting_share: 0.0,
        popularity: 1.0,
    };
    let share = || read::number(0.0..=1.0);
    rooms.new = section.optional("new", share());
    amount::read(&mut section, "size", Unit::Count, &mut rooms.size);
    amount::read(&mut section, "life", Unit::Time, &mut rooms.life);
    section.read(&mut rooms.mixing, "mixing", share());
    section.read(&mut rooms.lasting, "lasting", read::integer(0..=1_000_000u32));
    section.read(&mut rooms.lasting_share, "lasting_share", share());
    section.read(&mut rooms.popularity, "popularity", read::number(0.0..=10.0));
    if rooms.lasting_share > 0.0 && rooms.lasting == 0 {
        section.error("lasting_share", "there are no lasting rooms to go to; write rooms.lasting");
    }
    section.finish();
    rooms
}

fn behaviour(mut section: Section<'_>) -> Behaviour {
    let mut behaviour = Behaviour::default();
    section.read(&mut behaviour.gossip, "gossip", read::duration(SECOND..=DAY));
    behaviour.load = section.optional("load", read::duration(SECOND..=DAY));
    section.read(&mut behaviour.keep_alive, "keep_alive", read::duration(Duration::ZERO..=DAY));
    section.read(&mut behaviour.restart, "restart", read::duration(Duration::ZERO..=DAY));
    section.finish();
    behaviour
}

fn reconnect(mut section: Section<'_>) -> Reconnect {
    let mut reconnect = Reconnect::default();
    section.read(&mut reconnect.scale, "scale", read::number(0.01..=1000.0));
    section.read(&mut reconnect.attempts, "attempts", |node| {
        let attempts = read::integer(0..=1_000_000u32)(node)?;
        Ok((attempts > 0).then_some(attempts))
    });
    section.finish();
    reconnect
}

/// The Monoliths that `monolith` or `region` names; all of them without either.
fn chosen(section: &mut Section<'_>, monoliths: &[MonolithSpec]) -> Vec<usize> {
    let named = section.optional("monolith", read::word);
    let region = section.optional("region", read::word);
    let matches = |spec: &MonolithSpec| {
        named.as_ref().is_none_or(|name| spec.name == *name)
            && region.as_ref().is_none_or(|region| spec.region.as_str() == region)
    };
    let found: Vec<usize> = (0..monoliths.len()).filter(|at| matches(&monoliths[*at])).collect();
    if found.is_empty() && !monoliths.is_empty() {
        let names: Vec<&str> = monoliths.iter().take(12).map(|spec| spec.name.as_str()).collect();
        let key = if named.is_some() { "monolith" } else { "region" };
        section.error(key, format!("no Monolith matches; there are {}", names.join(", ")));
    }
    found
}

/// A moment of the run.
fn moment(section: &mut Section<'_>, duration: Duration) -> Option<Duration> {
    let at = required(section, "at", read::duration(Duration::ZERO..=LONGEST))?;
    if at >= duration {
        let duration = units::write_duration(duration);
        section.error("at", format!("is not before the end, {duration}; write an earlier one, or a longer duration"));
    }
    Some(at)
}

fn failures(root: &mut Section<'_>, monoliths: &[MonolithSpec], duration: Duration) -> Vec<Failure> {
    let mut all = Vec::new();
    for mut section in tables(root, "failures") {
        let at = moment(&mut section, duration);
        let mut lasts = Duration::from_secs(60);
        section.read(&mut lasts, "lasts", read::duration(Duration::ZERO..=LONGEST));
        let kind = required(&mut section, "kind", |node| match read::text(node)?.as_str() {
            kind @ ("crash" | "stale" | "slow") => Ok(kind.to_owned()),
            other => Err(format!("{:?} is none; write \"crash\", \"stale\" or \"slow\"", read::cut(other))),
        });
        let noticed = section.optional("noticed", read::duration(Duration::ZERO..=DAY));
        let factor = section.optional("factor", read::number(1.0..=1e6));
        for (key, set, of) in [("noticed", noticed.is_some(), "crash"), ("factor", factor.is_some(), "slow")] {
            if set && kind.as_deref().is_some_and(|kind| kind != of) {
                section.error(key, format!("belongs to the kind {of:?}; remove it"));
            }
        }
        let kind = kind.map(|kind| match kind.as_str() {
            "crash" => FailureKind::Crash { noticed: noticed.unwrap_or_default() },
            "stale" => FailureKind::Stale,
            _ => FailureKind::Slow { factor: factor.unwrap_or(10.0) },
        });
        let monoliths = chosen(&mut section, monoliths);
        if let Some((at, kind)) = at.zip(kind) {
            all.push(Failure { at, lasts, kind, monoliths });
        }
        section.finish();
    }
    all
}

fn deploys(root: &mut Section<'_>, monoliths: &[MonolithSpec], duration: Duration) -> Vec<Deploy> {
    let mut all = Vec::new();
    for mut section in tables(root, "deploys") {
        let at = moment(&mut section, duration);
        let (mut drain, mut down) = (Duration::ZERO, Duration::from_secs(15));
        let mut pause = Duration::from_secs(30);
        section.read(&mut drain, "drain", read::duration(Duration::ZERO..=DAY));
        section.read(&mut down, "down", read::duration(Duration::ZERO..=DAY));
        section.read(&mut pause, "pause", read::duration(Duration::ZERO..=DAY));
        let monoliths = chosen(&mut section, monoliths);
        if let Some(at) = at {
            all.push(Deploy { at, drain, down, pause, monoliths });
        }
        section.finish();
    }
    all
}

fn terms(mut section: Section<'_>) -> PolicyTerms {
    let defaults = PolicyConfig::default();
    let mut terms = PolicyTerms {
        settings: serde_json::Map::new(),
        fuel: defaults.fuel,
        memory: defaults.memory,
        rebalance_every: None,
        move_rate: Handover::default().rate,
    };
    section.read(&mut terms.fuel, "fuel", read::integer(100..=1_000_000_000u64));
    section.read(&mut terms.memory, "memory", read::size(1 << 20..=1 << 30));
    terms.rebalance_every = section.optional("rebalance_every", read::duration(SECOND..=DAY));
    section.read(&mut terms.move_rate, "move_rate", read::integer(1..=1_000_000u32));
    terms.settings = policy::settings(&section.section("settings"));
    section.finish();
    terms
}

fn time_of_day(node: &Node) -> Result<Duration, String> {
    let text = read::text(node)?;
    let wrong = || format!("{:?} is no time of day; write one such as \"18:30\"", read::cut(&text));
    let (hours, minutes) = text.split_once(':').ok_or_else(wrong)?;
    match (hours.parse::<u64>(), minutes.parse::<u64>()) {
        (Ok(hours @ 0..=23), Ok(minutes @ 0..=59)) => Ok(Duration::from_secs(hours * 3600 + minutes * 60)),
        _ => Err(wrong()),
    }
}
