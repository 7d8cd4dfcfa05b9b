//! Members whose room has lost its Monolith, or is about to: they keep their sockets, wait for the next one, and have a
//! window for that. What they say meanwhile is held by their own tasks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::members::Place;
use super::room::{Binding, Placing, Settling, State, Unloading, Waiter};
use super::{Cluster, Map, Turn};
use crate::model::event::{Effect, Micros};
use crate::model::policy::{Cause, Previous};
use crate::model::{ClientId, CloseCode, MonolithId, RoomKey};

/// How long a client that was sent away with 1001 waits for its room to go too, before it goes back in. A Monolith that
/// stops says both in one breath; a user's own message can have the same effect on that user alone.
const SENT_AWAY: Micros = 1_000_000;
/// How often a room that no Monolith took is offered again, besides whenever a Monolith has said what it has.
pub(super) const OFFER_AGAIN: Micros = 1_000_000;

/// For how long clients keep their sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seamless {
    /// How long the next Monolith may take, in microseconds.
    pub window: Micros,
    /// How long nobody in a room says anything before it is moved, in microseconds, so that its Monolith has saved it.
    pub quiet: Micros,
}

/// What became of members whose rooms changed their Monolith.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandOverCounters {
    /// Rooms with members that lost their Monolith.
    pub rooms: u64,
    /// Members that did.
    pub begun: u64,
    /// Members that the next Monolith has let in.
    pub done: u64,
    /// Members that were closed because the next Monolith did not know their room.
    pub room_lost: u64,
    /// Members that were closed because there was no next Monolith in time.
    pub window_closed: u64,
    /// Rooms that were moved while somebody still talked.
    pub lossy: u64,
    /// Moves that were not begun because the room may be in its Monolith's memory only.
    pub skipped: u64,
}

/// A member between two Monoliths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HandOver {
    /// When it is closed.
    pub(super) until: Micros,
    /// Why its room is placed anew.
    pub(super) cause: Cause,
}

/// The ends of all windows.
#[derive(Default)]
pub(super) struct HandOvers {
    ends: BTreeSet<(Micros, ClientId)>,
    /// From which moment the members of a Monolith may be closed: those that it lost together are not closed together.
    free_at: BTreeMap<MonolithId, Micros>,
    /// Clients whose room did not survive, by when they are closed. They are members of nothing any more.
    refused: BTreeSet<(Micros, ClientId)>,
    refused_at: Map<ClientId, Micros>,
    /// As above, for those whom a Monolith has refused.
    refusals_free_at: BTreeMap<MonolithId, Micros>,
}

impl HandOvers {
    pub(super) fn next_due(&self) -> Option<Micros> {
        [self.ends.first(), self.refused.first()].into_iter().flatten().map(|(at, _)| *at).min()
    }

    /// Every moment at which something is due for a client.
    pub(super) fn ends(&self) -> &BTreeSet<(Micros, ClientId)> {
        &self.ends
    }

    /// When a member of this Monolith is to be closed, `step` after the one before it at the earliest.
    fn end_of_window(&mut self, from: &MonolithId, client: ClientId, earliest: Micros, step: Micros) -> Micros {
        slot(&mut self.free_at, from, client, earliest, step)
    }

    /// Nothing is due for a client that has gone.
    pub(super) fn forget_refused(&mut self, client: ClientId) {
        if let Some(at) = self.refused_at.remove(&client) {
            self.refused.remove(&(at, client));
        }
    }

    /// How many clients are only waiting to be closed.
    #[cfg(test)]
    pub(super) fn refused(&self) -> usize {
        self.refused.len()
    }

    /// Whether a client is only waiting to be closed.
    pub(super) fn is_refused(&self, client: ClientId) -> bool {
        self.refused_at.contains_key(&client)
    }
}

/// The next moment that is free at a Monolith, `step` after the one before it at the earliest.
fn slot(
    free_at: &mut BTreeMap<MonolithId, Micros>,
    monolith: &MonolithId,
    client: ClientId,
    earliest: Micros,
    step: Micros,
) -> Micros {
    free_at.retain(|_, free_at| *free_at > earliest);
    let slot = free_at.get(monolith).copied().unwrap_or(earliest);
    free_at.insert(monolith.clone(), slot.saturating_add(step));
    // Clients know nothing of each other, so their ids are jitter enough.
    let mixed = (client.to_u128() >> 64) as u64 ^ client.to_u128() as u64 ^ earliest;
    slot.saturating_add((mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % step.max(1))
}

impl Cluster {
    /// Clients that are between two Monoliths.
    pub fn handing_over(&self) -> usize {
        self.handovers.ends.len()
    }

    /// Takes every member out of a room's Monolith. With `hold` they are told; without it their link has told them. A
    /// `leave` goes to a Monolith that is still linked.
    pub(super) fn release_all(
        &mut self,
        key: &RoomKey,
        from: &MonolithId,
        cause: Cause,
        hold: bool,
        turn: &mut Turn<'_>,
    ) -> Vec<ClientId> {
        let members = self.joined_to(key);
        for client in &members {
            self.release(*client, from, cause, hold, turn);
        }
        members
    }

    /// Ends the memberships of a room at its Monolith. Those who keep their sockets are returned; where nobody does, they are
    /// closed with this code.
    pub(super) fn release_or_close(
        &mut self,
        key: &RoomKey,
        from: &MonolithId,
        (cause, hold): (Cause, bool),
        code: CloseCode,
        turn: &mut Turn<'_>,
    ) -> Vec<ClientId> {
        if self.settings.seamless.is_some() {
            return self.release_all(key, from, cause, hold, turn);
        }
        self.close_joined(key, code, turn);
        Vec::new()
    }

    /// Takes one member out of its Monolith; it keeps its socket and waits, in no queue yet.
    pub(super) fn release(
        &mut self,
        client: ClientId,
        from: &MonolithId,
        cause: Cause,
        hold: bool,
        turn: &mut Turn<'_>,
    ) {
        if let Some(entry) = self.clients.get(&client)
            && let Place::Joined { attachment, .. } = entry.place
            && hold
        {
            turn.emit(Effect::Hold { client, attachment });
        }
        self.detach(client, turn);
        self.begin_hand_over(client, from, cause);
    }

    /// From now on a client's window counts. One that changes its Monolith twice has one window.
    fn begin_hand_over(&mut self, client: ClientId, from: &MonolithId, cause: Cause) {
        let Some(seamless) = self.settings.seamless else { return };
        let step = self.close_step();
        let Some(entry) = self.clients.get_mut(&client) else { return };
        if let Some(handover) = &mut entry.handover {
            handover.cause = cause;
            return;
        }
        let earliest = self.now.saturating_add(seamless.window);
        let until = self.handovers.end_of_window(from, client, earliest, step);
        entry.handover = Some(HandOver { until, cause });
        self.handovers.ends.insert((until, client));
        self.counters.handover.begun += 1;
        self.finish_wait(Waiter::Client(client));
    }

    /// Between two closes of clients that a Monolith has lost or refused.
    fn close_step(&self) -> Micros {
        1_000_000 / u64::from(self.settings.move_rate.max(1))
    }

    /// A Monolith does not know the room of a client that was in it a moment ago. It is forgotten, and closed when its turn
    /// comes: all whose rooms a Monolith did not save would come back together.
    pub(super) fn refuse_in_turn(&mut self, client: ClientId, monolith: &MonolithId) {
        let step = self.close_step();
        let at = slot(&mut self.handovers.refusals_free_at, monolith, client, self.now, step);
        self.handovers.forget_refused(client);
        self.handovers.refused.insert((at, client));
        self.handovers.refused_at.insert(client, at);
        self.counters.handover.room_lost += 1;
    }

    /// A Monolith has let a client in whose room had lost another one.
    pub(super) fn handed_over(&mut self, client: ClientId) {
        self.finish_wait(Waiter::Client(client));
        let Some(entry) = self.clients.get_mut(&client) else { return };
        entry.opened = true;
        if let Some(HandOver { until, .. }) = entry.handover.take() {
            self.handovers.ends.remove(&(until, client));
            self.counters.handover.done += 1;
        }
    }

    /// Nothing is due for a client that is gone.
    pub(super) fn forget_window(&mut self, client: ClientId, place: Place, handover: Option<HandOver>) {
        if let Some(HandOver { until, .. }) = handover {
            self.handovers.ends.remove(&(until, client));
        }
        if let Place::SentAway { until } = place {
            self.handovers.ends.remove(&(until, client));
        }
    }

    /// A Monolith has sent a member away because it stops, or because the room goes: the socket stays.
    pub(super) fn sent_away(&mut self, client: ClientId, key: &RoomKey, from: &MonolithId, turn: &mut Turn<'_>) {
        let waiter = Waiter::Client(client);
        let was_out = self.is_out(key, waiter);
        self.take_out(key, waiter, turn);
        self.count_client(from, -1);
        let until = self.now.saturating_add(SENT_AWAY);
        let Some(entry) = self.clients.get_mut(&client) else { return };
        (entry.place, entry.opened) = (Place::Waiting, false);
        let Some(room) = self.rooms.get_mut(key) else { return };
        let nobody_out = match &mut room.state {
            // The room is still there, for all that is known.
            State::Active(_) => {
                entry.place = Place::SentAway { until };
                self.handovers.ends.insert((until, client));
                false
            }
            State::Placing(Placing { waiting, out, .. }) => {
                waiting.push_front(waiter);
                self.waiting += 1;
                out.is_empty()
            }
            State::Unloading(Unloading { waiting, .. })
            | State::Settling(Settling { waiting, .. })
            | State::Parked { waiting, .. } => {
                waiting.push_back(waiter);
                self.waiting += 1;
                false
            }
        };
        self.begin_hand_over(client, from, Cause::Lost);
        if was_out && nobody_out {
            self.next_attempt(key, "sent_away", Some(Cause::Lost), turn);
        }
    }

    /// The members of a room that were sent away and wait for what comes: now they wait for the next Monolith.
    pub(super) fn take_sent_away(&mut self, key: &RoomKey) -> Vec<ClientId> {
        let members = self.rooms.get(key).map(|room| room.members.clone()).unwrap_or_default();
        let mut taken = Vec::new();
        for client in members {
            if let Some(entry) = self.clients.get_mut(&client)
                && let Place::SentAway { until } = entry.place
            {
                entry.place = Place::Waiting;
                self.handovers.ends.remove(&(until, client));
                taken.push(client);
            }
        }
        taken
    }

    /// A room's Monolith no longer has it, and nobody is joined there any more but for those whose joins crossed that.
    /// `released` were in it. They and whoever waits go on: first of all to another Monolith that reports the room.
    pub(super) fn next_owner(
        &mut self,
        key: &RoomKey,
        from: &MonolithId,
        why: &str,
        released: Vec<ClientId>,
        turn: &mut Turn<'_>,
    ) {
        self.counters.handover.rooms += u64::from(!released.is_empty());
        let mut waiting: VecDeque<Waiter> = released.into_iter().map(Waiter::Client).collect();
        waiting.extend(self.take_sent_away(key).into_iter().map(Waiter::Client));
        self.waiting += waiting.len();
        let crossed = self.joined_to(key);
        let (now, load) = (self.now, self.settings.load_timeout);
        let deadline = self.parked_until();
        self.change_room(key, turn, |room| {
            room.previous = Some(Previous { monolith: from.clone(), why: why.into() });
            if let State::Unloading(Unloading { waiting: queue, .. })
            | State::Settling(Settling { waiting: queue, .. }) = &mut room.state
            {
                waiting.append(queue);
            }
            room.state = if crossed.is_empty() {
                State::Parked { waiting, deadline }
            } else {
                // They may load the room there again, or be kicked. Nobody else goes meanwhile.
                State::Placing(Placing {
                    monolith: from.clone(),
                    out: crossed.iter().copied().map(Waiter::Client).collect(),
                    waiting,
                    attempt: 1,
                    tried: Vec::new(),
                    crossed_unload: true,
                    unanswered: false,
                    deadline: now.saturating_add(load),
                })
            };
        });
        if !crossed.is_empty() {
            return;
        }
        if let Some((monolith, epoch)) = self.best_copy(key) {
            self.activate(key, &monolith, Binding::Reported(epoch), turn);
        } else if !self.waits_for(key) {
            self.remove_room(key, turn);
        } else if !self.must_wait() {
            self.unpark(key, turn);
        }
    }

    /// Whoever waits for a room that no Monolith takes and may go on waiting: clients whose window is open.
    pub(super) fn may_go_on_waiting(&self, waiter: Waiter) -> bool {
        match waiter {
            Waiter::Client(client) => self.clients.get(&client).is_some_and(|entry| entry.handover.is_some()),
            Waiter::Request(_) => false,
        }
    }

    /// Windows that are over, and clients that were sent away from a room that stayed.
    pub(super) fn expire_hand_overs(&mut self, turn: &mut Turn<'_>) {
        while let Some((at, client)) = self.handovers.refused.first().copied()
            && at <= self.now
        {
            self.handovers.forget_refused(client);
            turn.emit(Effect::Close { client, code: CloseCode::RESTART });
        }
        while let Some((at, client)) = self.handovers.ends.first().copied()
            && at <= self.now
        {
            self.handovers.ends.pop_first();
            let Some(entry) = self.clients.get_mut(&client) else { continue };
            if entry.place == (Place::SentAway { until: at }) {
                entry.place = Place::Waiting;
                let key = entry.room.clone();
                self.let_in(&key, Waiter::Client(client), turn);
                continue;
            }
            self.counters.handover.window_closed += 1;
            if let Some((key, true)) = self.end_client(client, Some(CloseCode::RESTART), turn) {
                self.advance(&key, turn);
            }
        }
    }
}
