//! The traffic of a trace: who wanted into which room, from where and for how long, and which Monoliths came and went.
//!
//! What the recorded balancer decided is left aside. A member that came back because its room was lost (`reconnect`, in the
//! room and from the region of a visit that ended not long before) is the same visit, since here the simulated member
//! comes back by itself. A join without a leave ends when the Monolith that had its room went, or stays to the end. Whoever
//! was refused by `admit` is not among the visits: the trace does not say which of these attempts were one client's.
//!
//! Files may stand one behind another. Numbers of clients begin anew with each, so whoever was there continues with the join
//! that the next file restates at its start, or stays until the room is unloaded.
//!
//! Besides, a policy sees of the Monoliths what the recorded one saw: weights, which of them were draining, and the numbers
//! that were scraped from them, each from the moment on at which the trace knows it. Those numbers are as recorded, whatever
//! the policy does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::random::Sampler;
use super::traffic::{Rooms, Visit};
use super::world::{Load, Regions, SeenBy, Spec, Step, World};
use crate::config::scenario::{Amount, Behaviour, PolicyTerms, Reconnect};
use crate::config::{self, Config, Handover, Limits, Rebalance, Timeouts};
use crate::lab::replay::recorded_limits;
use crate::model::event::Micros;
use crate::model::policy::{Answer, Call, Hook, MonolithRow, View};
use crate::model::{MonolithId, Region};
use crate::trace::Item;
use crate::trace::read::{OnDamage, Reader, TraceError};
use crate::trace::record::{Header, Outcome, TraceEvent};

/// How long after a visit's end a member that comes back continues it.
const COMES_BACK_WITHIN: Micros = 120_000_000;

/// Regions that are told apart. Members name their own, so there could be any number; those of further ones count as the
/// balancer's.
const MOST_REGIONS: usize = 200;

/// Scraped loads that are kept; those after them are left out, and counted.
const MOST_LOADS: usize = 1_000_000;

/// Calls of `rebalance` from whose distance the interval is taken.
const INTERVALS: usize = 1_000;

/// The weights that a configuration may give.
const WEIGHTS: (f64, f64) = (0.001, 1000.0);

/// What a trace holds for a simulation. Of the trace the visits are kept, in 40 bytes each, and what was scraped.
pub(super) struct Recorded {
    pub(super) world: World,
    pub(super) rooms: Rooms,
    /// In the order of time.
    pub(super) visits: Vec<Visit>,
    pub(super) facts: Vec<(String, String)>,
    /// Lines that could not be understood, and the first of them.
    pub(super) damage: Option<(u64, TraceError)>,
}

/// The trace as it is read.
struct Reading {
    started_us: u64,
    /// What is added to the times of a further file so that they count from the start of the first.
    shift: Micros,
    regions: Regions,
    /// The region of the balancer, for members without one.
    own: u16,
    rooms: Rooms,
    visits: Vec<Visit>,
    /// The visit of each client that is there.
    present: HashMap<u64, usize>,
    /// Visits of earlier files of which no end is known, by room, with their regions, the earliest last.
    carried: HashMap<u32, Vec<(u16, usize)>>,
    /// The last visit of a room from a region that ended, which may be continued.
    ended: HashMap<(u32, u16), Vec<usize>>,
    /// Who has which room.
    owners: HashMap<u32, MonolithId>,
    monoliths: Vec<Spec>,
    known: HashMap<MonolithId, Known>,
    /// Linked when an earlier file ended; this one has not said so yet.
    unsure: BTreeSet<MonolithId>,
    /// The view of the last decision, by the versions of its rows.
    seen: (u64, Vec<u64>),
    plan: Vec<(Micros, Step)>,
    names: BTreeSet<Arc<str>>,
    loads: usize,
    /// When `rebalance` was asked last in this file, and how long after the time before.
    rebalanced: (Option<Micros>, Vec<Micros>),
    last: Micros,
    requests: u64,
    refused: u64,
    gaps: u64,
}

/// What the trace has said of a Monolith.
#[derive(Clone, Copy)]
struct Known {
    number: usize,
    linked: bool,
    draining: bool,
    loaded: bool,
}

/// Reads a trace. `config` takes the place of what it says of limits, settings and distances.
pub(super) fn read(path: &Path, config: Option<&Config>) -> Result<Recorded, TraceError> {
    let mut reader = Reader::open(path, OnDamage::Skip)?;
    let header = reader.header().clone();
    let mut reading = Reading::new(&header, config);
    while let Some((t, item)) = reader.read()? {
        let at = t.saturating_add(reading.shift).max(reading.last);
        match item {
            Item::Header(header) => {
                reading.another_file(&header);
                continue;
            }
            Item::Event(event) => reading.event(at, t == 0, event),
            Item::Gap(gap) => reading.gaps += gap.events,
            Item::Decision { call, outcome, .. } => {
                reading.view(at, reader.view());
                reading.decision(at, &call, *outcome);
            }
            Item::Policy(_) | Item::View => {}
        }
        reading.last = at;
    }
    let (damaged, first) = reader.damage();
    let damage = first.map(|first| (damaged, first.clone()));
    let wrong = |what: &str| TraceError { file: path.display().to_string(), line: None, what: what.into() };
    if reading.visits.is_empty() {
        return Err(wrong("holds no join; record one while clients come, or simulate a scenario"));
    }
    if reading.monoliths.is_empty() {
        return Err(wrong("names no Monolith; record one with a Monolith linked, or simulate a scenario"));
    }
    Ok(reading.finish(&header, config, damage))
}

impl Reading {
    fn new(header: &Header, config: Option<&Config>) -> Self {
        let mut regions = Regions::new(config.map_or(&header.distances, |config| &config.regions).clone());
        let own = regions.number(&header.region);
        Self {
            started_us: header.started_us,
            shift: 0,
            regions,
            own,
            rooms: Rooms::default(),
            visits: Vec::new(),
            present: HashMap::new(),
            carried: HashMap::new(),
            ended: HashMap::new(),
            owners: HashMap::new(),
            monoliths: Vec::new(),
            known: HashMap::new(),
            unsure: BTreeSet::new(),
            seen: (0, Vec::new()),
            plan: Vec::new(),
            names: BTreeSet::new(),
            loads: 0,
            rebalanced: (None, Vec::new()),
            last: 0,
            requests: 0,
            refused: 0,
            gaps: 0,
        }
    }

    /// A further file begins.
    fn another_file(&mut self, header: &Header) {
        self.shift = header.started_us.saturating_sub(self.started_us);
        self.rebalanced.0 = None;
        self.unsure = self.known.iter().filter(|(_, known)| known.linked).map(|(id, _)| id.clone()).collect();
        for (_, visit) in self.present.drain() {
            let Visit { room, region, .. } = self.visits[visit];
            self.carried.entry(room).or_default().push((region, visit));
        }
        // The table has no order of its own.
        self.carried
            .values_mut()
            .for_each(|visits| visits.sort_unstable_by_key(|(_, visit)| std::cmp::Reverse(*visit)));
    }

    /// `begins`: whether it stands at the very start of its file.
    fn event(&mut self, t: Micros, begins: bool, event: TraceEvent) {
        match event {
            TraceEvent::MonolithUp { monolith, region } => self.up(t, &monolith, &region),
            TraceEvent::MonolithDown { monolith } => self.down(t, &monolith),
            TraceEvent::Loaded { monolith, room } => {
                let room = self.rooms.number(&room);
                self.owners.insert(room, monolith);
            }
            TraceEvent::Unloaded { monolith, room, .. } => {
                let room = self.rooms.number(&room);
                if self.owners.get(&room) == Some(&monolith) {
                    self.owners.remove(&room);
                    self.end_carried(t, room);
                }
            }
            TraceEvent::Join { client, room, region, reconnect } => {
                let room = self.rooms.number(&room);
                let known = |region: &Region| self.regions.len() < MOST_REGIONS || self.regions.find(region).is_some();
                let region = region.filter(known).map_or(self.own, |region| self.regions.number(&region));
                if !(begins && self.restated(client, room, region)) {
                    self.join(t, client, room, region, reconnect);
                }
            }
            TraceEvent::Leave { client } => {
                if let Some(visit) = self.present.remove(&client) {
                    self.end(t, visit);
                }
            }
            TraceEvent::Load { monolith, load } => {
                if let Some(known) = self.known.get(&monolith).filter(|known| known.linked) {
                    self.load(t, known.number, &load);
                    self.known.entry(monolith).and_modify(|known| known.loaded = true);
                }
            }
            TraceEvent::Request { .. } => self.requests += 1,
            TraceEvent::Gossip { .. } => {}
        }
    }

    fn decision(&mut self, t: Micros, call: &Call, outcome: Outcome) {
        match call.hook {
            Hook::Admit => self.refused += u64::from(matches!(outcome.answer, Answer::Reject { .. })),
            Hook::Rebalance => {
                let before = self.rebalanced.0.replace(t);
                if let Some(before) = before.filter(|_| self.rebalanced.1.len() < INTERVALS) {
                    self.rebalanced.1.push(t - before);
                }
            }
            Hook::Place | Hook::Route => {}
        }
        let room = call.room.as_ref().and_then(|room| room.name.clone());
        if let Some((room, choice)) = room.zip(outcome.choice) {
            let room = self.rooms.number(&room);
            self.owners.insert(room, choice);
        }
    }

    /// What a decision saw of the Monoliths. A recording that began in the middle knows them from there only.
    fn view(&mut self, t: Micros, view: &View) {
        let first = self.seen.0 == 0 && self.shift == 0 && self.gaps == 0;
        let same = self.seen.0 == view.membership() && self.seen.1.len() == view.versions().len();
        for (at, (row, version)) in view.rows().iter().zip(view.versions()).enumerate() {
            if !same || self.seen.1[at] != *version {
                self.row(t, row, first);
            }
        }
        self.seen.0 = view.membership();
        self.seen.1.clear();
        self.seen.1.extend_from_slice(view.versions());
        for id in std::mem::take(&mut self.unsure) {
            if view.get(&id).is_none() {
                self.down(t, &id);
            }
        }
    }

    fn row(&mut self, t: Micros, row: &MonolithRow, first: bool) {
        let before = |age_s: f64| t.saturating_sub((age_s * 1e6) as Micros);
        if !self.known.contains_key(&row.id) {
            // Nothing was lost before the first decision, so whoever it saw was there all the time.
            self.up(if first { 0 } else { before(row.age_s) }, &row.id, &row.region);
        }
        let Some(mut known) = self.known.get(&row.id).copied().filter(|known| known.linked) else { return };
        if row.weight.is_finite() {
            self.monoliths[known.number].weight = row.weight.clamp(WEIGHTS.0, WEIGHTS.1);
        }
        let since = if first { 0 } else { t };
        if row.draining != known.draining {
            self.plan.push((since, Step::Drain { monolith: known.number, drains: row.draining }));
            known.draining = row.draining;
        }
        if !known.loaded && !row.load.is_empty() {
            self.load(if first { 0 } else { before(row.load_age_s.unwrap_or(0.0)) }, known.number, &row.load);
            known.loaded = true;
        }
        self.known.insert(row.id.clone(), known);
    }

    fn load(&mut self, t: Micros, monolith: usize, load: &BTreeMap<String, f64>) {
        self.loads += 1;
        if self.loads > MOST_LOADS {
            return;
        }
        let mut named = Vec::with_capacity(load.len());
        for (name, value) in load {
            let name = self.names.get(name.as_str()).cloned().unwrap_or_else(|| {
                let name: Arc<str> = name.as_str().into();
                self.names.insert(name.clone());
                name
            });
            named.push((name, *value));
        }
        self.plan.push((t, Step::Load { monolith, load: Load::from(named) }));
    }

    fn up(&mut self, t: Micros, monolith: &MonolithId, region: &Region) {
        self.unsure.remove(monolith);
        let (linked, draining, loaded) = (true, false, false);
        match self.known.get_mut(monolith) {
            Some(known) if known.linked => {}
            Some(known) => {
                *known = Known { number: known.number, linked, draining, loaded };
                self.plan.push((t, Step::Up { monolith: known.number }));
            }
            None => {
                let number = self.monoliths.len();
                self.known.insert(monolith.clone(), Known { number, linked, draining, loaded });
                self.monoliths.push(Spec {
                    name: monolith.to_string(),
                    region: self.regions.number(region),
                    weight: 1.0,
                    rooms: u32::MAX,
                    clients: u32::MAX,
                    load: Sampler::new(Amount::Uniform { min: 0.05, max: 0.25 }),
                    from_start: t == 0,
                });
                if t > 0 {
                    self.plan.push((t, Step::Up { monolith: number }));
                }
            }
        }
    }

    fn down(&mut self, t: Micros, monolith: &MonolithId) {
        let Some(known) = self.known.get_mut(monolith).filter(|known| known.linked) else { return };
        known.linked = false;
        self.plan.push((t, Step::Down { monolith: known.number, noticed: 0 }));
        // Its members lost their rooms: those of whom the trace says no more come back under another number, or not.
        let mut lost: Vec<u64> = (self.present.iter())
            .filter(|(_, visit)| self.owners.get(&self.visits[**visit].room) == Some(monolith))
            .map(|(client, _)| *client)
            .collect();
        // The table has no order of its own.
        lost.sort_unstable();
        for client in lost {
            if let Some(visit) = self.present.remove(&client) {
                self.end(t, visit);
            }
        }
        let mut rooms: Vec<u32> =
            (self.carried.keys().copied()).filter(|room| self.owners.get(room) == Some(monolith)).collect();
        rooms.sort_unstable();
        rooms.into_iter().for_each(|room| self.end_carried(t, room));
        self.owners.retain(|_, owner| owner != monolith);
    }

    /// Whether a join at the start of a file stands for a visit of an earlier one.
    fn restated(&mut self, client: u64, room: u32, region: u16) -> bool {
        let Some(visits) = self.carried.get_mut(&room) else { return false };
        let Some(at) = visits.iter().rposition(|(from, _)| *from == region) else { return false };
        let (_, visit) = visits.remove(at);
        self.present.insert(client, visit);
        true
    }

    fn end_carried(&mut self, t: Micros, room: u32) {
        for (_, visit) in self.carried.remove(&room).into_iter().flatten() {
            self.end(t, visit);
        }
    }

    fn join(&mut self, t: Micros, client: u64, room: u32, region: u16, reconnect: bool) {
        let recent = |visit: &Visit| visit.until.saturating_add(COMES_BACK_WITHIN) >= t;
        if reconnect
            && let Some(ended) = self.ended.get_mut(&(room, region))
            && let Some(visit) = ended.pop()
            && recent(&self.visits[visit])
        {
            self.visits[visit].until = Micros::MAX;
            self.present.insert(client, visit);
            return;
        }
        self.present.insert(client, self.visits.len());
        self.visits.push(Visit { at: t, room, region, until: Micros::MAX, reconnect });
    }

    fn end(&mut self, t: Micros, visit: usize) {
        let Visit { room, region, .. } = self.visits[visit];
        self.visits[visit].until = t;
        let ended = self.ended.entry((room, region)).or_default();
        let visits = &self.visits;
        ended.retain(|old| visits[*old].until.saturating_add(COMES_BACK_WITHIN) >= t);
        ended.push(visit);
    }

    fn finish(mut self, header: &Header, config: Option<&Config>, damage: Option<(u64, TraceError)>) -> Recorded {
        let open = self.visits.iter().filter(|visit| visit.until == Micros::MAX).count();
        let fact = |name: &str, value: u64| (name.to_owned(), value.to_string());
        let mut facts = vec![fact("visits", self.visits.len() as u64), fact("visits without an end", open as u64)];
        for (name, count) in [
            ("loads as recorded", self.loads.min(MOST_LOADS) as u64),
            ("later loads left out", self.loads.saturating_sub(MOST_LOADS) as u64),
            ("refused by admit then, left out", self.refused),
            ("requests left out", self.requests),
            ("events not recorded", self.gaps),
            ("lines not understood", damage.as_ref().map_or(0, |(lines, _)| *lines)),
        ] {
            if count > 0 {
                facts.push(fact(name, count));
            }
        }
        let every = match config {
            Some(config) => config.policy.rebalance_every.filter(|_| config.policy.rebalance != Rebalance::Dry),
            None => interval(&mut self.rebalanced.1),
        };
        if let Some(every) = every {
            let by = if config.is_some() { "as configured" } else { "as recorded" };
            facts.push(("rebalance".into(), format!("every {}, {by}", config::units::write_duration(every))));
        }
        let limits = recorded_limits(&header.policy);
        let terms = PolicyTerms {
            settings: config.map_or(&header.policy.settings, |config| &config.policy.settings).clone(),
            fuel: config.map_or(limits.fuel, |config| config.policy.fuel),
            memory: config.map_or(limits.memory, |config| config.policy.memory),
            rebalance_every: every,
            move_rate: config.map_or(Handover::default().rate, |config| config.handover.rate),
        };
        // What was seen late may have begun early; stable, so that what is of one moment keeps its order.
        self.plan.sort_by_key(|(at, _)| *at);
        let world = World {
            epoch: header.started_us,
            // The last moment counts, too.
            duration: self.last + 1,
            warm_up: 0,
            seed: 1,
            balancers: vec![self.own],
            regions: self.regions,
            monoliths: self.monoliths,
            plan: self.plan,
            seen_by: SeenBy::Balancers,
            behaviour: Behaviour::default(),
            reconnect: Reconnect::default(),
            policy: terms,
            limits: config.map_or_else(Limits::default, |config| config.limits.clone()),
            timeouts: config.map_or_else(Timeouts::default, |config| config.timeouts.clone()),
        };
        Recorded { world, rooms: self.rooms, visits: self.visits, facts, damage }
    }
}

/// How often `rebalance` was asked, by the times between its calls; none if there were not two.
fn interval(between: &mut [Micros]) -> Option<Duration> {
    between.sort_unstable();
    let usual = *between.get(between.len() / 2)?;
    // The clock of the balancer is a little late now and then.
    let step = if usual >= 1_000_000 { 100_000 } else { 1_000 };
    Some(Duration::from_micros((usual + step / 2) / step * step).max(Duration::from_millis(1)))
}
