//! Those who visit: how they ask, wait, are served, lose their room and come back, as the web client does.

use super::queue::{Guest, Happening, Line, Member};
use super::run::{Run, line_of};
use super::traffic::Visit;
use super::world::micros;
use crate::model::event::{Event, Micros};
use crate::model::policy::{Answer, Call, CallClient, CallRequest, Hook};
use crate::model::{Attachment, ClientId, CloseCode, LinkId};
use crate::policy::{Policy, decide};

/// The shortest hold, as in the live balancer.
const SHORTEST_HOLD: Micros = 100_000;
/// The longest pause before somebody comes back, in seconds.
const LONGEST_PAUSE: f64 = 60.0;

/// Everyone who visits, by place.
#[derive(Default)]
pub(super) struct Members {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Visits so far: balancers at one distance take turns.
    turn: usize,
}

/// One visitor.
struct Slot {
    /// How often this place was used, so that what was planned for an earlier visitor is told apart.
    use_of: u32,
    /// How often it connected: each connection is a client of its own.
    connections: u32,
    room: u32,
    region: u16,
    balancer: u16,
    until: Micros,
    reconnect: bool,
    /// Failed attempts in a row.
    failures: u32,
    /// When it began to want in.
    asked: Micros,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// Nobody.
    Free,
    /// Between two connections, or not connected yet.
    Away,
    /// Known to its balancer's cluster.
    Connected {
        /// The Monolith that was told of it.
        attached: Option<(Line, Attachment)>,
        /// Since when that one serves it.
        since: Option<Micros>,
        /// Whether any did in this connection.
        was_served: bool,
    },
}

impl Members {
    fn slot(&self, guest: Guest) -> &Slot {
        &self.slots[guest.slot as usize]
    }

    pub(super) fn is_current(&self, guest: Guest) -> bool {
        self.slot(guest).use_of == guest.use_of && self.slot(guest).place != Place::Free
    }

    /// The visitor whose present connection this client is.
    fn of_client(&mut self, client: ClientId) -> Option<(u32, &mut Slot)> {
        let (at, connection) = split(client);
        let slot = self.slots.get_mut(at as usize)?;
        let connected = matches!(slot.place, Place::Connected { .. }) && slot.connections == connection;
        connected.then_some((at, slot))
    }

    /// The room of whoever uses or used this connection. A place is used again only for another connection, and the
    /// last frame of the one before is sent before that.
    pub(super) fn room_of(&self, client: ClientId) -> Option<u32> {
        let (at, connection) = split(client);
        self.slots.get(at as usize).filter(|slot| slot.connections == connection).map(|slot| slot.room)
    }

    /// A Monolith is told of a client. Returns the room.
    pub(super) fn attach(&mut self, member: Member, line: Line) -> Option<u32> {
        let (_, slot) = self.of_client(member.client)?;
        let Place::Connected { attached, .. } = &mut slot.place else { return None };
        *attached = Some((line, member.attachment));
        Some(slot.room)
    }

    fn enter(&mut self, visit: Visit, now: Micros) -> Guest {
        let at = self.free.pop().unwrap_or_else(|| {
            let place = Place::Free;
            let (room, region, balancer, failures, until, asked) = (0, 0, 0, 0, 0, 0);
            let (use_of, connections, reconnect) = (0, 0, false);
            self.slots.push(Slot {
                use_of,
                connections,
                room,
                region,
                balancer,
                until,
                reconnect,
                failures,
                asked,
                place,
            });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[at as usize];
        (slot.room, slot.region, slot.until) = (visit.room, visit.region, visit.until);
        (slot.reconnect, slot.failures, slot.asked) = (visit.reconnect, 0, now);
        slot.place = Place::Away;
        Guest { slot: at, use_of: slot.use_of }
    }

    fn next_turn(&mut self) -> usize {
        self.turn = self.turn.wrapping_add(1);
        self.turn
    }

    fn depart(&mut self, guest: Guest) {
        let slot = &mut self.slots[guest.slot as usize];
        slot.use_of = slot.use_of.wrapping_add(1);
        slot.place = Place::Free;
        self.free.push(guest.slot);
    }
}

fn client_id(slot: u32, connection: u32) -> ClientId {
    ClientId::from_u128(u128::from(slot) << 32 | u128::from(connection))
}

fn split(client: ClientId) -> (u32, u32) {
    let number = client.to_u128();
    ((number >> 32) as u32, number as u32)
}

impl Run<'_> {
    pub(super) fn arrive(&mut self, visit: Visit) {
        self.tally.counts.visits += 1;
        let guest = self.members.enter(visit, self.now);
        let nearest = &self.nearest[usize::from(visit.region)];
        // The same for every policy, and even.
        let balancer = nearest[self.members.next_turn() % nearest.len().max(1)];
        self.members.slots[guest.slot as usize].balancer = balancer as u16;
        if visit.until <= self.world.duration {
            self.queue.push(visit.until, Happening::Over { guest });
        }
        self.ask(guest, 1, self.now + micros(self.world.timeouts.hold));
    }

    /// Asks for the room: first `admit`, then the cluster.
    pub(super) fn ask(&mut self, guest: Guest, attempt: u32, until: Micros) {
        if !self.is_current(guest) || self.members.slot(guest).place != Place::Away {
            return;
        }
        let at = usize::from(self.members.slot(guest).balancer);
        let balancer = &self.balancers[at];
        // A 503 before the upgrade.
        if balancer.linked == 0 || balancer.clients >= self.world.limits.clients {
            self.tally.counts.rejected += 1;
            self.come_back(guest);
            return;
        }
        if balancer.policy.has(Hook::Admit) {
            match self.admit(guest, at, attempt) {
                Answer::Reject { code, .. } => {
                    self.tally.counts.rejected += 1;
                    if code >= 4000 {
                        self.give_up(guest)
                    } else {
                        self.come_back(guest)
                    }
                    return;
                }
                Answer::Hold { delay } => {
                    self.tally.counts.held += u64::from(attempt == 1);
                    let again = self.now + micros(delay).max(SHORTEST_HOLD);
                    if again > until {
                        self.queue.push(until, Happening::HeldTooLong { guest });
                    } else {
                        self.queue.push(again, Happening::Ask { guest, attempt: attempt + 1, until });
                    }
                    return;
                }
                Answer::Default | Answer::Admit | Answer::Ranked(_) | Answer::Moves(_) => {}
            }
        }
        self.join(guest, at);
    }

    fn join(&mut self, guest: Guest, at: usize) {
        let slot = &mut self.members.slots[guest.slot as usize];
        slot.connections = slot.connections.wrapping_add(1);
        slot.place = Place::Connected { attached: None, since: None, was_served: false };
        let (client, room, reconnect) = (client_id(guest.slot, slot.connections), slot.room, slot.reconnect);
        let region = Some(self.world.regions.name(slot.region).clone());
        self.balancers[at].clients += 1;
        let (room, token) = (self.rooms.name(room).clone(), self.token.clone());
        self.apply(at, Event::Join { client, room, token, region, reconnect });
    }

    /// The call that the live balancer makes at the upgrade request.
    fn admit(&mut self, guest: Guest, at: usize, attempt: u32) -> Answer {
        let slot = self.members.slot(guest);
        let region = Some(self.world.regions.name(slot.region).clone());
        let (name, reconnect) = (self.rooms.name(slot.room), slot.reconnect);
        let balancer = &mut self.balancers[at];
        balancer.asked += 1;
        let now_us = self.world.epoch + self.now;
        let request = CallRequest {
            method: "GET".into(),
            path: format!("/api/room/{}", name.spelling()).into(),
            region: region.clone(),
            ..CallRequest::default()
        };
        let call = Call {
            hook: Hook::Admit,
            now_us,
            seed: now_us.rotate_left(32) ^ balancer.asked.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at as u64,
            region: self.world.regions.name(balancer.region).clone(),
            room: Some(balancer.cluster.room_facts(name.key(), region.clone())),
            client: Some(CallClient { region, reconnect, attempt }),
            cause: None,
            request: Some(request),
            excluded: Vec::new(),
            rooms: [].into(),
        };
        decide(&mut balancer.policy, &call, balancer.cluster.view()).answer
    }

    pub(super) fn held_too_long(&mut self, guest: Guest) {
        if self.is_current(guest) && self.members.slot(guest).place == Place::Away {
            self.tally.counts.rejected += 1;
            self.come_back(guest);
        }
    }

    /// Plans the next attempt: (1 + 2 x failures) s times 0.5 to 1.5, as the web client does.
    fn come_back(&mut self, guest: Guest) {
        let slot = &mut self.members.slots[guest.slot as usize];
        if self.world.reconnect.attempts.is_some_and(|most| slot.failures >= most) {
            self.give_up(guest);
            return;
        }
        let pause = (1.0 + 2.0 * f64::from(slot.failures)).min(LONGEST_PAUSE);
        slot.failures += 1;
        slot.reconnect = true;
        let pause = pause * (0.5 + self.pauses.unit()) * self.world.reconnect.scale;
        let at = self.now + (pause * 1e6) as Micros;
        let until = at + micros(self.world.timeouts.hold);
        self.queue.push(at, Happening::Ask { guest, attempt: 1, until });
    }

    fn give_up(&mut self, guest: Guest) {
        self.tally.counts.gave_up += 1;
        self.members.depart(guest);
    }

    /// The Monolith has let a member in.
    pub(super) fn serve(&mut self, member: Member, line: Line) {
        let now = self.now;
        let Some((_, slot)) = self.members.of_client(member.client) else { return };
        let Place::Connected { attached, since, was_served } = &mut slot.place else { return };
        // One that was withdrawn meanwhile, or whose Monolith has ended, is not served.
        if *attached != Some((line, member.attachment)) || since.is_some() {
            return;
        }
        if !self.fleet[usize::from(line.monolith)].is_at(line) {
            return;
        }
        *since = Some(now);
        let first = !std::mem::replace(was_served, true);
        (slot.failures, slot.reconnect) = (0, true);
        let (room, waited) = (slot.room, now - slot.asked);
        if first {
            self.tally.counts.joins += 1;
            self.tally.waits.add(waited);
        }
        self.tally.came(now, room, line.monolith);
    }

    /// A member is no longer served where it was.
    pub(super) fn stop_serving(&mut self, member: Member) {
        let now = self.now;
        let Some((_, slot)) = self.members.of_client(member.client) else { return };
        let Place::Connected { attached, since, .. } = &mut slot.place else { return };
        let Some((line, attachment)) = *attached else { return };
        if attachment != member.attachment {
            return;
        }
        *attached = None;
        let Some(since) = since.take() else { return };
        let regions = (slot.region, self.world.monoliths[usize::from(line.monolith)].region);
        self.tally.went(since, now, slot.room, line.monolith, regions);
    }

    /// Ends the connection of a client. Returns whose it was, and whether it had been served.
    fn disconnect(&mut self, at: usize, client: ClientId) -> Option<(Guest, bool)> {
        let (_, slot) = self.members.of_client(client)?;
        let Place::Connected { attached, was_served, .. } = slot.place else { return None };
        if let Some((_, attachment)) = attached {
            self.stop_serving(Member { balancer: at as u16, client, attachment });
        }
        self.balancers[at].clients -= 1;
        let now = self.now;
        let (number, slot) = self.members.of_client(client)?;
        slot.place = Place::Away;
        slot.asked = if was_served { now } else { slot.asked };
        Some((Guest { slot: number, use_of: slot.use_of }, was_served))
    }

    /// A balancer closes a client.
    pub(super) fn closed(&mut self, at: usize, client: ClientId, code: CloseCode) {
        let Some((guest, was_served)) = self.disconnect(at, client) else { return };
        if was_served {
            self.tally.counts.interrupted += 1;
        } else if code == CloseCode::TRY_AGAIN || code.get() >= 4000 {
            self.tally.counts.rejected += 1;
        }
        if code.get() >= 4000 { self.give_up(guest) } else { self.come_back(guest) }
    }

    /// A Monolith that has too many clients ends a membership.
    pub(super) fn kicked(&mut self, at: usize, link: LinkId, member: Member) {
        let Member { client, attachment, .. } = member;
        let Some((_, slot)) = self.members.of_client(client) else { return };
        let Place::Connected { attached, .. } = slot.place else { return };
        if attached != Some((line_of(link), attachment)) {
            return;
        }
        let code = CloseCode::TRY_AGAIN;
        // As in the live balancer, the client is closed first, and the cluster hears of it.
        self.closed(at, client, code);
        self.apply(at, Event::Kicked { link, client, attachment, code });
    }

    /// A visit is over, wherever its member is.
    pub(super) fn visit_over(&mut self, guest: Guest) {
        if !self.is_current(guest) {
            return;
        }
        let slot = self.members.slot(guest);
        if let Place::Connected { attached, .. } = slot.place {
            let (at, client) = (usize::from(slot.balancer), client_id(guest.slot, slot.connections));
            if let Some((_, attachment)) = attached {
                self.stop_serving(Member { balancer: at as u16, client, attachment });
            }
            self.balancers[at].clients -= 1;
            self.apply(at, Event::Leave { client, told: None });
        }
        self.members.depart(guest);
    }

    /// The end: whoever is still served was so until now.
    pub(super) fn end_services(&mut self) {
        for at in 0..self.members.slots.len() {
            let slot = &self.members.slots[at];
            if let Place::Connected { attached: Some((_, attachment)), .. } = slot.place {
                let client = client_id(at as u32, slot.connections);
                self.stop_serving(Member { balancer: slot.balancer, client, attachment });
            }
        }
    }
}
