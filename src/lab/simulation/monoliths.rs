//! What Monoliths do with what reaches them, and what they say of themselves.

use super::fleet::Joined;
use super::queue::{Frame, Happening, Line, Member, Report};
use super::random::Random;
use super::run::Run;
use super::world::{Spec, micros};
use crate::model::event::Micros;
use crate::model::wire::UnloadReason;
use crate::model::{Epoch, MonolithId};

impl Run<'_> {
    /// A frame reaches a Monolith. What was sent to one that has ended is lost.
    pub(super) fn at_monolith(&mut self, line: Line, frame: Frame) {
        let number = usize::from(line.monolith);
        if !self.fleet[number].is_at(line) {
            return;
        }
        match frame {
            Frame::Join { member, room } => {
                match self.fleet[number].join(room, member, self.world.monoliths[number].clients) {
                    Joined::In => self.tell(line, member.balancer, Report::Answered(member)),
                    Joined::Full => self.tell(line, member.balancer, Report::Full(member)),
                    Joined::Waits => {}
                    Joined::Load => {
                        let monolith = &self.fleet[number];
                        let takes = load_time(
                            &self.world.monoliths[number],
                            monolith.rooms(),
                            monolith.slowness(),
                            &mut self.loads,
                        );
                        self.queue.push(self.now + takes, Happening::Loaded { line, room });
                    }
                }
            }
            Frame::Leave { member, room } => {
                if self.fleet[number].leave(room, member, self.now) {
                    self.plan_expiry(line, room);
                }
            }
            Frame::Unload { room } => match self.fleet[number].unload(room) {
                Some(members) => self.tell_unloaded(line, room, UnloadReason::Commanded, &members),
                // The request crossed its own unload, which ends the process of a real one.
                None => {
                    self.tally.counts.crossed_unloads += 1;
                    self.die(line);
                }
            },
        }
    }

    /// A room is in memory: everyone hears of it, and those who waited are in.
    pub(super) fn room_loaded(&mut self, line: Line, room: u32) {
        let number = usize::from(line.monolith);
        if !self.fleet[number].is_at(line) {
            return;
        }
        let epoch = Epoch(self.epoch.0.wrapping_add(1));
        let Some(members) = self.fleet[number].loaded(room, epoch, self.now) else { return };
        self.epoch = epoch;
        self.tally.loaded(room);
        for balancer in 0..self.balancers.len() {
            // The real one counts nobody in this report.
            if let Some(report) = self.metadata.report(&self.rooms, room, epoch, 0) {
                self.tell(line, balancer as u16, Report::Loaded(report));
            }
        }
        if members.is_empty() {
            self.plan_expiry(line, room);
        }
        for member in members {
            self.tell(line, member.balancer, Report::Answered(member));
        }
    }

    fn plan_expiry(&mut self, line: Line, room: u32) {
        let at = self.now + micros(self.world.behaviour.keep_alive);
        self.queue.push(at, Happening::Empty { line, room, since: self.now });
    }

    /// A room has been empty for long enough, unless somebody came meanwhile.
    pub(super) fn room_empty(&mut self, line: Line, room: u32, since: Micros) {
        let number = usize::from(line.monolith);
        if self.fleet[number].is_at(line) && self.fleet[number].expire(room, since) {
            self.tell_unloaded(line, room, UnloadReason::Keepalive, &[]);
        }
    }

    fn tell_unloaded(&mut self, line: Line, room: u32, reason: UnloadReason, members: &[Member]) {
        self.tally.unloaded(room);
        for balancer in 0..self.balancers.len() as u16 {
            let own = members.iter().filter(|member| member.balancer == balancer);
            let detached = own.map(|member| (member.client, member.attachment)).collect();
            self.tell(line, balancer, Report::Unloaded { room, reason, detached });
        }
    }

    pub(super) fn gossip_due(&mut self, line: Line) {
        let number = usize::from(line.monolith);
        if !self.fleet[number].is_at(line) {
            return;
        }
        if self.fleet[number].stale == 0 {
            for balancer in 0..self.balancers.len() as u16 {
                let report = self.fleet[number].gossip(&self.rooms, &mut self.metadata);
                self.tell(line, balancer, report);
            }
        }
        self.queue.push(self.now + micros(self.world.behaviour.gossip), Happening::GossipDue { line });
    }

    fn tell(&mut self, line: Line, balancer: u16, report: Report) {
        let at = self.now + self.way(balancer.into(), line.monolith);
        self.queue.push(at, Happening::Report { balancer, line, report });
    }

    /// Ages and round trips, as the control thread measures them.
    pub(super) fn measure(&mut self) {
        let now = self.world.epoch + self.now;
        for at in 0..self.balancers.len() {
            let links: Vec<(MonolithId, f64, f64, Option<f64>)> = (self.balancers[at].cluster.links())
                .map(|(id, link, since)| {
                    let number = super::run::line_of(link).monolith;
                    let rtt_ms = 2.0 * self.way(at, number) as f64 / 1e3;
                    let read = self.fleet[usize::from(number)].load_read;
                    let load_age_s = read.map(|read| whole_seconds(self.now - read));
                    (id.clone(), rtt_ms, whole_seconds(now.saturating_sub(since)), load_age_s)
                })
                .collect();
            self.balancers[at].cluster.measure(|view| {
                for (id, rtt_ms, age_s, load_age_s) in &links {
                    view.update(id, |row| {
                        (row.rtt_ms, row.age_s) = (*rtt_ms, *age_s);
                        row.load_age_s = load_age_s.filter(|_| row.load_age_s.is_some());
                    });
                }
            });
        }
    }

    /// The load of each Monolith as `call.monoliths[n].load`: rooms and clients over all balancers, and how full it is.
    pub(super) fn read_load(&mut self) {
        for monolith in self.fleet.iter_mut().filter(|monolith| monolith.up && monolith.stale == 0) {
            monolith.load_read = Some(self.now);
        }
        for at in 0..self.balancers.len() {
            let links: Vec<(MonolithId, usize)> = (self.balancers[at].cluster.links())
                .map(|(id, link, _)| (id.clone(), usize::from(super::run::line_of(link).monolith)))
                .collect();
            for (id, number) in links {
                let (monolith, spec) = (&self.fleet[number], &self.world.monoliths[number]);
                if monolith.stale > 0 || !monolith.up {
                    continue;
                }
                let rooms = f64::from(monolith.rooms());
                let clients = f64::from(monolith.clients);
                let full = (rooms / f64::from(spec.rooms)).max(clients / f64::from(spec.clients));
                self.balancers[at].cluster.measure(|view| {
                    view.update(&id, |row| {
                        let load = [("rooms", rooms), ("clients", clients), ("full", full)];
                        row.load = load.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
                        row.load_age_s = Some(0.0);
                    });
                });
            }
        }
    }
}

/// Ages count in whole seconds, as those of the live balancer.
fn whole_seconds(span: Micros) -> f64 {
    (span / 1_000_000) as f64
}

/// How long a load takes: as drawn, and with more rooms than the Monolith has capacity for in proportion to the square of
/// how many more, so that an overloaded one gets slow before it gets unusable.
fn load_time(spec: &Spec, rooms: u32, slowness: f64, random: &mut Random) -> Micros {
    let full = (f64::from(rooms) / f64::from(spec.rooms)).max(1.0);
    (spec.load.draw(random) * slowness * full * full * 1e6) as Micros
}
