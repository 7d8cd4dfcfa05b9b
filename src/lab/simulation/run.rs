//! One run: virtual time goes from one happening to the next, and each becomes an event of a cluster or of a Monolith.
//!
//! The clusters are driven as the control thread of the live balancer drives its own: event in, effects out. `members` has
//! what becomes of those who visit, `monoliths` what Monoliths do, `steps` what the plan does to them.

use std::sync::Arc;

use super::decider::Decider;
use super::fleet::{MetadataCache, Monolith};
use super::members::Members;
use super::queue::{Frame, Guest, Happening, Line, Member, Queue, Report};
use super::random::{Random, Stream};
use super::tally::{SAMPLES, Tally};
use super::traffic::{Rooms, Traffic, Visit};
use super::world::{World, micros};
use crate::cluster::{Cluster, Counters};
use crate::model::event::{Effect, Event, Micros, Token};
use crate::model::{Epoch, LinkId};
use crate::policy::lua::{LoadError, Program};

/// How often balancers measure: what they measure counts in whole seconds.
const MEASURED_EVERY: Micros = 1_000_000;

/// One balancer.
pub(super) struct Balancer {
    pub(super) cluster: Cluster,
    pub(super) policy: Decider,
    pub(super) region: u16,
    /// Links that it has.
    pub(super) linked: u32,
    /// Members that are connected to it.
    pub(super) clients: usize,
    /// Calls of `admit`, for their randomness.
    pub(super) asked: u64,
    tick_at: Option<Micros>,
    /// What its cluster had counted when the warm-up was over.
    before: Counters,
}

/// Everything that changes in a run.
pub(super) struct Run<'w> {
    pub(super) world: &'w World,
    pub(super) now: Micros,
    pub(super) queue: Queue,
    pub(super) balancers: Vec<Balancer>,
    pub(super) fleet: Vec<Monolith>,
    pub(super) members: Members,
    pub(super) rooms: Rooms,
    traffic: Traffic<'w>,
    next_visit: Option<Visit>,
    /// How many steps of the plan are done.
    pub(super) steps: usize,
    /// How many of them the queue has known of.
    pub(super) planned_steps: usize,
    pub(super) tally: Tally,
    pub(super) loads: Random,
    pub(super) pauses: Random,
    pub(super) metadata: MetadataCache,
    pub(super) epoch: Epoch,
    pub(super) token: Token,
    /// The balancers that members of each region use.
    pub(super) nearest: Vec<Vec<usize>>,
    effects: Vec<Effect>,
    warm: bool,
}

impl<'w> Run<'w> {
    pub(super) fn new(
        world: &'w World,
        program: &Program,
        seed: u64,
        rooms: Rooms,
        traffic: Traffic<'w>,
    ) -> Result<Self, LoadError> {
        let balancers = (0..world.balancers.len()).map(|at| {
            Ok(Balancer {
                cluster: Cluster::new(world.settings(at), world.epoch).among_others(seed.wrapping_add(at as u64)),
                policy: Decider::new(program)?,
                region: world.balancers[at],
                linked: 0,
                clients: 0,
                asked: 0,
                tick_at: None,
                before: Counters::default(),
            })
        });
        Ok(Self {
            world,
            now: 0,
            queue: Queue::default(),
            balancers: balancers.collect::<Result<_, _>>()?,
            fleet: (0..world.monoliths.len()).map(|number| Monolith::new(number as u16)).collect(),
            members: Members::default(),
            rooms,
            traffic,
            next_visit: None,
            steps: 0,
            planned_steps: 0,
            tally: Tally::new(world),
            loads: Random::new(seed, Stream::Loads),
            pauses: Random::new(seed, Stream::Pauses),
            metadata: MetadataCache::default(),
            epoch: Epoch(0),
            token: Token("simulated".into()),
            nearest: (0..world.regions.len()).map(|region| world.nearest_balancers(region as u16)).collect(),
            effects: Vec::new(),
            warm: false,
        })
    }

    /// Runs to the end. `progress` is told the share that is done, now and then.
    pub(super) fn run(&mut self, progress: &mut dyn FnMut(f64)) {
        self.begin();
        let mut told = 0;
        while let Some((at, what)) = self.queue.pop() {
            if at > self.world.duration {
                break;
            }
            self.now = at;
            if !self.warm && at >= self.world.warm_up {
                self.start_counting();
            }
            self.happen(what);
            let done = at * 200 / self.world.duration.max(1);
            if done > told {
                told = done;
                progress(done as f64 / 200.0);
            }
        }
        self.now = self.world.duration;
        self.end_services();
    }

    fn begin(&mut self) {
        let starters: Vec<usize> = (0..self.fleet.len()).filter(|at| self.world.monoliths[*at].from_start).collect();
        let endpoints: Vec<Arc<str>> = starters.iter().map(|at| self.world.endpoint(*at).into()).collect();
        for balancer in 0..self.balancers.len() {
            self.apply(balancer, Event::Discovered { endpoints: endpoints.clone() });
        }
        // Who was there before is linked before anybody comes.
        starters.into_iter().for_each(|monolith| self.start_monolith(monolith));
        self.take_steps();
        self.queue.push(0, Happening::Sample);
        self.queue.push(MEASURED_EVERY, Happening::Measure);
        if let Some(every) = self.world.behaviour.load {
            self.queue.push(micros(every), Happening::ReadLoad);
        }
        self.plan_visit();
    }

    /// Fetches the next visit, which may be one of long after the end.
    fn plan_visit(&mut self) {
        self.next_visit = self.traffic.next(&mut self.rooms);
        if let Some(visit) = &self.next_visit {
            self.queue.push(visit.at, Happening::Arrival);
        }
    }

    fn start_counting(&mut self) {
        self.warm = true;
        self.tally.start_counting();
        for balancer in &mut self.balancers {
            balancer.before = balancer.cluster.counters();
            balancer.policy.start_counting();
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Arrival => {
                // A Monolith that is linked at this very moment is there.
                self.take_steps();
                if let Some(visit) = self.next_visit.take() {
                    self.arrive(visit);
                }
                self.plan_visit();
            }
            Happening::Ask { guest, attempt, until } => self.ask(guest, attempt, until),
            Happening::HeldTooLong { guest } => self.held_too_long(guest),
            Happening::Over { guest } => self.visit_over(guest),
            Happening::Frame { line, frame } => self.at_monolith(line, frame),
            Happening::Loaded { line, room } => self.room_loaded(line, room),
            Happening::Empty { line, room, since } => self.room_empty(line, room, since),
            Happening::GossipDue { line } => self.gossip_due(line),
            Happening::Report { balancer, line, report } => self.at_balancer(balancer.into(), line, report),
            Happening::Linked { balancer, line } => self.linked(balancer.into(), line),
            Happening::Unlinked { balancer, line } => self.unlinked(balancer.into(), line),
            Happening::Drains { balancer, line } => self.drains(balancer.into(), line),
            Happening::Tick { balancer } => {
                let balancer = usize::from(balancer);
                if self.balancers[balancer].tick_at == Some(self.now) {
                    self.balancers[balancer].tick_at = None;
                    self.apply(balancer, Event::Tick);
                }
            }
            Happening::Measure => {
                self.measure();
                self.queue.push(self.now + MEASURED_EVERY, Happening::Measure);
            }
            Happening::ReadLoad => {
                self.read_load();
                if let Some(every) = self.world.behaviour.load {
                    self.queue.push(self.now + micros(every), Happening::ReadLoad);
                }
            }
            Happening::Steps => self.take_steps(),
            Happening::Restart { monolith } => self.return_monolith(monolith.into()),
            Happening::Sample => {
                self.sample();
                self.queue.push(self.now + (self.world.duration / SAMPLES).max(1), Happening::Sample);
            }
        }
    }

    /// One event of a balancer's cluster, with all that comes of it.
    pub(super) fn apply(&mut self, at: usize, event: Event) {
        let mut effects = std::mem::take(&mut self.effects);
        let now = self.world.epoch + self.now;
        let balancer = &mut self.balancers[at];
        balancer.cluster.apply(now, event, &mut balancer.policy, &mut effects);
        for effect in effects.drain(..) {
            self.carry_out(at, effect);
        }
        self.effects = effects;
        let balancer = &mut self.balancers[at];
        if let Some(due) = balancer.cluster.next_deadline() {
            let due = due.saturating_sub(self.world.epoch).max(self.now);
            if balancer.tick_at.is_none_or(|planned| due < planned) {
                balancer.tick_at = Some(due);
                self.queue.push(due, Happening::Tick { balancer: at as u16 });
            }
        }
    }

    fn carry_out(&mut self, at: usize, effect: Effect) {
        match effect {
            Effect::AcceptLink { .. } => self.balancers[at].linked += 1,
            Effect::Attach { link, client, attachment, .. } => {
                let member = Member { balancer: at as u16, client, attachment };
                let Some(room) = self.members.attach(member, line_of(link)) else { return };
                self.send(at, line_of(link), Frame::Join { member, room });
            }
            Effect::Detach { link, client, attachment } => {
                let member = Member { balancer: at as u16, client, attachment };
                self.stop_serving(member);
                if let Some(room) = self.members.room_of(client) {
                    self.send(at, line_of(link), Frame::Leave { member, room });
                }
            }
            Effect::Unload { link, room, .. } => {
                if let Some(room) = self.rooms.find(room.key()) {
                    self.send(at, line_of(link), Frame::Unload { room });
                }
            }
            Effect::Close { client, code } => self.closed(at, client, code),
            // A room's bindings are for requests, moves answer operators, and what is open needs nobody here. Clients of
            // rooms that move are closed and come back, so nothing is held and nobody waits for a quiet moment.
            Effect::RefuseLink { .. }
            | Effect::Open { .. }
            | Effect::Hold { .. }
            | Effect::Watch { .. }
            | Effect::Moving { .. }
            | Effect::Rebalanced(_)
            | Effect::Enter { .. }
            | Effect::Ejection(_)
            | Effect::Send { .. }
            | Effect::Refuse { .. }
            | Effect::Bind { .. }
            | Effect::Unbind { .. }
            | Effect::Claim(_)
            | Effect::Story(_) => {}
        }
    }

    /// From a balancer to a Monolith and back, in the order of sending, since a way always takes the same time.
    fn send(&mut self, from: usize, line: Line, frame: Frame) {
        self.queue.push(self.now + self.way(from, line.monolith), Happening::Frame { line, frame });
    }

    /// How long a frame is on its way between a balancer and a Monolith.
    pub(super) fn way(&self, balancer: usize, monolith: u16) -> Micros {
        let region = self.world.monoliths[usize::from(monolith)].region;
        self.world.regions.one_way(self.balancers[balancer].region, region)
    }

    /// Something reaches a balancer over a link.
    fn at_balancer(&mut self, at: usize, line: Line, report: Report) {
        let link = link_id(line);
        match report {
            Report::Loaded(report) => self.apply(at, Event::Loaded { link, report }),
            Report::Unloaded { room, reason, detached } => {
                let room = self.rooms.name(room).key().clone();
                self.apply(at, Event::Unloaded { link, room, reason, detached });
            }
            Report::Gossip(rooms) => self.apply(at, Event::Gossip { link, rooms }),
            Report::Answered(member) => {
                self.serve(member, line);
                self.apply(at, Event::Answered { link, client: member.client, attachment: member.attachment });
            }
            Report::Full(member) => self.kicked(at, link, member),
        }
    }

    fn sample(&mut self) {
        let loads: Vec<Option<(u32, f64, bool)>> = (self.fleet.iter().zip(&self.world.monoliths))
            .map(|(monolith, spec)| monolith.up.then(|| (monolith.rooms(), spec.weight, !monolith.draining)))
            .collect();
        self.tally.sample(self.now, &loads);
    }

    /// What the clusters counted after the warm-up: each balancer's counters, and those before.
    pub(super) fn counters(&self) -> impl Iterator<Item = (Counters, &Counters)> {
        self.balancers.iter().map(|balancer| (balancer.cluster.counters(), &balancer.before))
    }

    /// Whether a visit is still what it was when something was planned for it.
    pub(super) fn is_current(&self, guest: Guest) -> bool {
        self.members.is_current(guest)
    }
}

/// The id of a link: the same at every balancer, which keep theirs apart.
pub(super) fn link_id(line: Line) -> LinkId {
    LinkId(u64::from(line.start) << 16 | u64::from(line.monolith))
}

/// The link with this id.
pub(super) fn line_of(link: LinkId) -> Line {
    Line { monolith: (link.0 & 0xffff) as u16, start: (link.0 >> 16) as u32 }
}
