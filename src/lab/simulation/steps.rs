//! What the plan does to Monoliths: they come and go, take no new rooms, fall silent, get slow, and their load is read.

use super::queue::{Happening, Line};
use super::run::{Run, line_of, link_id};
use super::world::{Load, SeenBy, Step, micros};
use crate::model::MonolithId;
use crate::model::event::{Event, Micros};
use crate::model::policy::MonolithState;

/// From the start of a Monolith to the dial that finds it.
const DIALLED_AFTER: Micros = 50_000;
/// How long a real Monolith takes to send its first gossip.
const FIRST_GOSSIP: Micros = 3_000;

impl Run<'_> {
    /// Takes the steps that are due, and plans the next one.
    pub(super) fn take_steps(&mut self) {
        while let Some((at, step)) = self.world.plan.get(self.steps) {
            if *at > self.now {
                if self.planned_steps <= self.steps {
                    self.planned_steps = self.steps + 1;
                    self.queue.push(*at, Happening::Steps);
                }
                return;
            }
            self.steps += 1;
            self.step(step);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Up { monolith } => self.return_monolith(monolith),
            Step::Down { monolith, noticed } => self.end_monolith(monolith, noticed),
            Step::Stale { monolith, stale: true } => self.fleet[monolith].stale += 1,
            Step::Stale { monolith, stale: false } => {
                self.fleet[monolith].stale = self.fleet[monolith].stale.saturating_sub(1);
            }
            Step::Slow { monolith, factor, over } => self.fleet[monolith].slow(factor, over),
            Step::Drain { monolith, drains } => {
                let line = self.fleet[monolith].line();
                self.fleet[monolith].draining = drains;
                for balancer in 0..self.balancers.len() {
                    let at = self.now + self.until_noticed(balancer, line, 0);
                    self.queue.push(at, Happening::Drains { balancer: balancer as u16, line });
                }
            }
            Step::Load { monolith, ref load } => self.loaded_as_recorded(monolith, load),
        }
    }

    /// How long it takes a balancer to know of something that balancers are `slow` to notice.
    fn until_noticed(&self, balancer: usize, line: Line, slow: Micros) -> Micros {
        match self.world.seen_by {
            SeenBy::Monoliths => slow + self.way(balancer, line.monolith),
            SeenBy::Balancers => slow,
        }
    }

    /// A Monolith is there and linked: it was before the run began.
    pub(super) fn start_monolith(&mut self, monolith: usize) {
        if self.fleet[monolith].return_to_work() {
            self.begin_monolith(monolith, |_, _| 0);
        }
    }

    /// A reason less for a Monolith to be away. If it begins, balancers find it.
    pub(super) fn return_monolith(&mut self, monolith: usize) {
        if self.fleet[monolith].return_to_work() {
            let dialled = match self.world.seen_by {
                SeenBy::Monoliths => DIALLED_AFTER,
                SeenBy::Balancers => 0,
            };
            self.begin_monolith(monolith, |run, balancer| {
                run.until_noticed(balancer, run.fleet[monolith].line(), dialled)
            });
        }
    }

    fn begin_monolith(&mut self, monolith: usize, linked_after: impl Fn(&Self, usize) -> Micros) {
        let line = self.fleet[monolith].line();
        for balancer in 0..self.balancers.len() {
            match linked_after(self, balancer) {
                // Nothing comes between: not even what else is planned for this moment.
                0 => self.linked(balancer, line),
                after => self.queue.push(self.now + after, Happening::Linked { balancer: balancer as u16, line }),
            }
        }
        // Their clocks differ.
        let every = micros(self.world.behaviour.gossip);
        let phase = (self.loads.unit() * every as f64) as Micros;
        self.queue.push(self.now + phase, Happening::GossipDue { line });
    }

    /// A reason for a Monolith to be away. If it was there, its rooms are lost.
    fn end_monolith(&mut self, monolith: usize, noticed: Micros) {
        let line = self.fleet[monolith].line();
        let was_up = self.fleet[monolith].up;
        for (room, members) in self.fleet[monolith].end() {
            self.tally.unloaded(room);
            members.into_iter().for_each(|member| self.stop_serving(member));
        }
        if was_up {
            for balancer in 0..self.balancers.len() {
                let at = self.now + self.until_noticed(balancer, line, noticed);
                self.queue.push(at, Happening::Unlinked { balancer: balancer as u16, line });
            }
        }
    }

    /// The process of a Monolith ends by itself, and is started again.
    pub(super) fn die(&mut self, line: Line) {
        self.end_monolith(line.monolith.into(), 0);
        let at = self.now + micros(self.world.behaviour.restart);
        self.queue.push(at, Happening::Restart { monolith: line.monolith });
    }

    pub(super) fn linked(&mut self, at: usize, line: Line) {
        let number = usize::from(line.monolith);
        if !self.fleet[number].is_at(line) {
            return;
        }
        let (endpoint, id) = (self.world.endpoint(number).into(), self.fleet[number].id(self.world));
        let region = self.world.regions.name(self.world.monoliths[number].region).clone();
        self.apply(at, Event::LinkUp { link: link_id(line), endpoint, monolith: id, region });
        let report = self.fleet[number].gossip(&self.rooms, &mut self.metadata);
        let arrives = self.now + FIRST_GOSSIP + 2 * self.way(at, line.monolith);
        self.queue.push(arrives, Happening::Report { balancer: at as u16, line, report });
    }

    pub(super) fn unlinked(&mut self, at: usize, line: Line) {
        let had = self.balancers[at].cluster.links().any(|(_, link, _)| link == link_id(line));
        self.balancers[at].linked -= u32::from(had);
        self.apply(at, Event::LinkDown { link: link_id(line) });
    }

    /// A balancer hears whether a Monolith takes new rooms.
    pub(super) fn drains(&mut self, at: usize, line: Line) {
        let monolith = &self.fleet[usize::from(line.monolith)];
        if monolith.is_at(line) {
            let state = if monolith.draining { MonolithState::Draining } else { MonolithState::Up };
            self.apply(at, Event::LinkState { link: link_id(line), state });
        }
    }

    /// A recorded load: every balancer has read it.
    fn loaded_as_recorded(&mut self, monolith: usize, load: &Load) {
        if self.fleet[monolith].up {
            self.fleet[monolith].load_read = Some(self.now);
        }
        for balancer in &mut self.balancers {
            let linked = balancer.cluster.links().find(|(_, link, _)| usize::from(line_of(*link).monolith) == monolith);
            let Some(id): Option<MonolithId> = linked.map(|(id, ..)| id.clone()) else { continue };
            balancer.cluster.measure(|view| {
                view.update(&id, |row| {
                    row.load = load.iter().map(|(name, value)| (name.to_string(), *value)).collect();
                    row.load_age_s = Some(0.0);
                });
            });
        }
    }
}
