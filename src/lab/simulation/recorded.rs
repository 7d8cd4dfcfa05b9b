//! The traffic of a trace: who wanted into which room, from where and for how long, and which Monoliths came and went.
//!
//! What the recorded balancer decided is left aside. A member that came back because its room was lost (`reconnect`, in the
//! room and from the region of a visit that ended not long before) is the same visit, since here the simulated member
//! comes back by itself. A join without a leave ends when the Monolith that had its room went, or stays to the end.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::random::Sampler;
use super::traffic::{Rooms, Visit};
use super::world::{Regions, Spec, Step, World};
use crate::config::scenario::{Amount, Behaviour, PolicyTerms, Reconnect};
use crate::config::{Handover, Limits, Timeouts};
use crate::model::event::Micros;
use crate::model::{MonolithId, Region};
use crate::trace::Item;
use crate::trace::read::{OnDamage, Reader, TraceError};
use crate::trace::record::{Header, TraceEvent};

/// How long after a visit's end a member that comes back continues it.
const COMES_BACK_WITHIN: Micros = 120_000_000;

/// Regions that are told apart. Members name their own, so there could be any number; those of further ones count as the
/// balancer's.
const MOST_REGIONS: usize = 200;

/// What a trace holds for a simulation. Of the trace only the visits are kept, in 40 bytes each.
pub(super) struct Recorded {
    pub(super) world: World,
    pub(super) rooms: Rooms,
    /// In the order of time.
    pub(super) visits: Vec<Visit>,
    pub(super) facts: Vec<(String, String)>,
}

/// The trace as it is read.
struct Reading {
    regions: Regions,
    /// The region of the balancer, for members without one.
    own: u16,
    rooms: Rooms,
    visits: Vec<Visit>,
    /// The visit of each client that is there.
    present: HashMap<u64, usize>,
    /// The last visit of a room from a region that ended, which may be continued.
    ended: HashMap<(u32, u16), Vec<usize>>,
    /// Who has which room.
    owners: HashMap<u32, MonolithId>,
    monoliths: Vec<Spec>,
    numbers: HashMap<MonolithId, usize>,
    linked: HashMap<MonolithId, bool>,
    plan: Vec<(Micros, Step)>,
    last: Micros,
    requests: u64,
    gaps: u64,
}

pub(super) fn read(path: &Path) -> Result<Recorded, TraceError> {
    let mut reader = Reader::open(path, OnDamage::Skip)?;
    let header = reader.header().clone();
    let mut reading = Reading::new(&header);
    while let Some((t, item)) = reader.read()? {
        let t = t.max(reading.last);
        reading.last = t;
        match item {
            Item::Event(event) => reading.event(t, event),
            Item::Gap(gap) => reading.gaps += gap.events,
            Item::Decision { call, outcome, .. } => {
                // A recording that began in the middle knows its Monoliths from what decisions saw.
                for row in reader.view().rows() {
                    if !reading.linked.contains_key(&row.id) {
                        reading.up(if reading.monoliths.is_empty() { 0 } else { t }, &row.id, &row.region);
                    }
                }
                let room = call.room.as_ref().and_then(|room| room.name.clone());
                if let Some((room, choice)) = room.zip(outcome.choice) {
                    let room = reading.rooms.number(&room);
                    reading.owners.insert(room, choice);
                }
            }
            Item::Header(_) | Item::Policy(_) | Item::View => {}
        }
    }
    let (damaged, _) = reader.damage();
    let wrong = |what: &str| TraceError { file: path.display().to_string(), line: None, what: what.into() };
    if reading.visits.is_empty() {
        return Err(wrong("holds no join; record one while clients come, or simulate a scenario"));
    }
    if reading.monoliths.is_empty() {
        return Err(wrong("names no Monolith; record one with a Monolith linked, or simulate a scenario"));
    }
    Ok(reading.finish(&header, damaged))
}

impl Reading {
    fn new(header: &Header) -> Self {
        let mut regions = Regions::new(header.distances.clone());
        let own = regions.number(&header.region);
        Self {
            regions,
            own,
            rooms: Rooms::default(),
            visits: Vec::new(),
            present: HashMap::new(),
            ended: HashMap::new(),
            owners: HashMap::new(),
            monoliths: Vec::new(),
            numbers: HashMap::new(),
            linked: HashMap::new(),
            plan: Vec::new(),
            last: 0,
            requests: 0,
            gaps: 0,
        }
    }

    fn event(&mut self, t: Micros, event: TraceEvent) {
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
                }
            }
            TraceEvent::Join { client, room, region, reconnect } => self.join(t, client, &room, region, reconnect),
            TraceEvent::Leave { client } => {
                if let Some(visit) = self.present.remove(&client) {
                    self.end(t, visit);
                }
            }
            TraceEvent::Request { .. } => self.requests += 1,
            TraceEvent::Load { .. } | TraceEvent::Gossip { .. } => {}
        }
    }

    fn up(&mut self, t: Micros, monolith: &MonolithId, region: &Region) {
        let is_new = !self.numbers.contains_key(monolith);
        if is_new {
            self.numbers.insert(monolith.clone(), self.monoliths.len());
            self.monoliths.push(Spec {
                name: monolith.to_string(),
                region: self.regions.number(region),
                weight: 1.0,
                rooms: u32::MAX,
                clients: u32::MAX,
                load: Sampler::new(Amount::Uniform { min: 0.05, max: 0.25 }),
                from_start: t == 0,
            });
        }
        let was_linked = self.linked.insert(monolith.clone(), true).unwrap_or(false);
        if !was_linked && (!is_new || t > 0) {
            self.plan.push((t, Step::Up { monolith: self.numbers[monolith] }));
        }
    }

    fn down(&mut self, t: Micros, monolith: &MonolithId) {
        if self.linked.insert(monolith.clone(), false) != Some(true) {
            return;
        }
        self.plan.push((t, Step::Down { monolith: self.numbers[monolith], noticed: 0 }));
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
        self.owners.retain(|_, owner| owner != monolith);
    }

    fn join(&mut self, t: Micros, client: u64, room: &Arc<str>, region: Option<Region>, reconnect: bool) {
        let room = self.rooms.number(room);
        let known = |region: &Region| self.regions.len() < MOST_REGIONS || self.regions.find(region).is_some();
        let region = region.filter(known).map_or(self.own, |region| self.regions.number(&region));
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

    fn finish(self, header: &Header, damaged: u64) -> Recorded {
        let open = self.visits.iter().filter(|visit| visit.until == Micros::MAX).count();
        let fact = |name: &str, value: u64| (name.to_owned(), value.to_string());
        let mut facts = vec![fact("visits", self.visits.len() as u64), fact("visits without an end", open as u64)];
        for (name, count) in [
            ("requests left out", self.requests),
            ("events not recorded", self.gaps),
            ("lines not understood", damaged),
        ] {
            if count > 0 {
                facts.push(fact(name, count));
            }
        }
        let (limits, timeouts) = (Limits::default(), Timeouts::default());
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
            behaviour: Behaviour::default(),
            reconnect: Reconnect::default(),
            policy: PolicyTerms {
                settings: header.policy.settings.clone(),
                fuel: header.policy.fuel,
                memory: header.policy.memory,
                rebalance_every: None,
                move_rate: Handover::default().rate,
            },
            limits,
            timeouts,
        };
        Recorded { world, rooms: self.rooms, visits: self.visits, facts }
    }
}
