//! Monoliths that are to lose their rooms: because an operator says so, or because discovery no longer lists them. Their
//! rooms move away one after another, as quickly as `move_rate` allows, until none is left that this balancer may move.
//!
//! Discovery tells every balancer the same, and two that ask for one room within the time that its `unloaded` takes would end
//! the Monolith (`duplicates`). So each begins with the rooms that are its own: which it alone has placed there, or in which
//! nobody else has clients. The others it leaves to whoever has placed them, until none has left for a while.

use std::collections::VecDeque;

use serde::Serialize;

use super::moves::Wanted;
use super::room::{Active, Binding, Room, State};
use super::{Cluster, Turn};
use crate::model::event::Micros;
use crate::model::story::Mover;
use crate::model::{MonolithId, RoomKey};

/// How often the rooms of a Monolith are looked through for some that came later.
const STEP: Micros = 1_000_000;

/// How long rooms that may be another balancer's are left to it, at least, and how far the balancers' turns are apart at most: after
/// discovery has dropped their Monolith, and after the last room that another balancer has moved.
const RESERVED: Micros = 10_000_000;
/// The part of `drain` that this may take where that is short, and the part for which it goes on at most.
const RESERVED_PART: Micros = 8;
const LEFT_PART: Micros = 4;
/// How long after the join of a member the gossip of its Monolith is taken to count it.
const COUNTED_AFTER: Micros = 2_000_000;

/// Monoliths whose drain is remembered at once; beyond it the oldest is forgotten. Most of them have gone for good, and
/// nobody resumes those.
const KEPT: usize = 1_000;

/// What operators want empty, linked or not: a link that breaks is no reason to begin anew what was drained.
#[derive(Debug, Default)]
pub(super) struct Drained(VecDeque<MonolithId>);

impl Drained {
    pub(super) fn contains(&self, monolith: &MonolithId) -> bool {
        self.0.contains(monolith)
    }

    fn set(&mut self, monolith: &MonolithId, on: bool) {
        self.0.retain(|other| other != monolith);
        if on {
            self.0.push_back(monolith.clone());
            if self.0.len() > KEPT {
                self.0.pop_front();
            }
        }
    }
}

/// How far a Monolith is with losing its rooms.
#[derive(Debug, Default)]
pub(super) struct Drain {
    next_step: Micros,
    /// When rooms that may be another balancer's are no longer left to it.
    turn: Micros,
    /// The same, however many others move.
    last_turn: Micros,
    pub(super) moved: u64,
    pub(super) lossy: u64,
}

/// The same, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DrainSummary {
    /// Rooms on it with clients of this balancer.
    pub rooms_left: usize,
    /// These clients.
    pub clients_left: usize,
    /// Rooms that have left it since the drain began.
    pub moved: u64,
    /// Rooms that were asked for while somebody in them still talked.
    pub lossy: u64,
    /// Rooms that wait for a few seconds, because they may be in its memory only.
    pub skipped: usize,
    /// What it goes on with, if it cannot go on now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<DrainNeeds>,
    /// Whether nothing more is going to happen, as things are.
    pub done: bool,
}

/// What a drain cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainNeeds {
    /// The Monolith does not answer: its rooms are not saved before they move.
    Answer,
    /// No other Monolith takes rooms.
    Target,
    /// The rest may be another balancer's, which then moves it.
    Turn,
}

impl Cluster {
    /// An operator drains a Monolith, or no longer. What has begun is not undone.
    pub(super) fn drain(&mut self, monolith: &MonolithId, on: bool, turn: &mut Turn<'_>) {
        let Some(entry) = self.monoliths.get_mut(monolith) else {
            // One that is not linked cannot be drained, and may be resumed.
            self.drained.set(monolith, on && self.drained.contains(monolith));
            return;
        };
        entry.drained = on;
        self.drained.set(monolith, on);
        if !on {
            // Where discovery has dropped it meanwhile, the others are at it as well.
            self.begin_turns(monolith);
        }
        self.state_changed(monolith, turn);
    }

    /// The linked Monoliths that operators drain.
    pub fn drained(&self) -> impl Iterator<Item = &MonolithId> {
        self.monoliths.iter().filter(|(_, monolith)| monolith.drained).map(|(id, _)| id)
    }

    /// A Monolith takes rooms, or no longer.
    pub(super) fn state_changed(&mut self, id: &MonolithId, turn: &mut Turn<'_>) {
        let Some(entry) = self.monoliths.get_mut(id) else { return };
        let draining = entry.is_leaving();
        // One that stops empties itself; and where clients are closed, one that is not listed keeps them for a while.
        let moves = !entry.stops && (entry.drained || entry.unlisted && self.settings.seamless.is_some());
        if moves && entry.drain.is_none() {
            entry.drain = Some(Drain { next_step: self.now, ..Drain::default() });
            self.begin_turns(id);
        } else if !moves && entry.drain.take().is_some() {
            self.moves.call_off(id);
        }
        self.show_state(id);
        self.return_somebody_if_nobody_serves(turn);
        if !draining {
            self.unpark_all_if_synced(turn);
        }
    }

    /// Balancers begin to move rooms away from a Monolith.
    fn begin_turns(&mut self, from: &MonolithId) {
        if let Some(drain) = self.monoliths.get_mut(from).and_then(|monolith| monolith.drain.as_mut()) {
            drain.last_turn = self.now.saturating_add(self.settings.drain / LEFT_PART);
            self.leave_rooms_to_others(from);
        }
    }

    /// Another balancer has moved a room away from a Monolith, or may be about to: what may be its own is left to it for a while.
    pub(super) fn leave_rooms_to_others(&mut self, from: &MonolithId) {
        let span = RESERVED.min(self.settings.drain / RESERVED_PART);
        let Some(drawn) = self.drawn(from, span) else { return };
        if let Some(drain) = self.monoliths.get_mut(from).and_then(|monolith| monolith.drain.as_mut()) {
            drain.turn = self.now.saturating_add(span).saturating_add(drawn).min(drain.last_turn);
        }
    }

    /// Whether a room on a Monolith that is drained is left to another balancer so far.
    fn is_left_to_others(&self, key: &RoomKey, from: &MonolithId) -> bool {
        let Some(monolith) = self.monoliths.get(from) else { return false };
        // An operator drains at one balancer after the other.
        if monolith.drained || monolith.drain.as_ref().is_none_or(|drain| drain.turn <= self.now) {
            return false;
        }
        let Some((room, copy)) = self.rooms.get(key).zip(monolith.copies.get(key)) else { return false };
        let sent = room.placed.as_ref().is_some_and(|it| it.monolith == *from && !it.followed && !it.moved);
        if sent {
            return false;
        }
        let counted = copy.counted >= room.joined.saturating_add(COUNTED_AFTER);
        let alone = counted && copy.metadata.users as usize <= self.joined_to(key).len();
        !alone
    }

    /// When the rooms of some Monolith are to be looked through next.
    pub(super) fn next_drain_step(&self) -> Option<Micros> {
        self.monoliths.values().filter_map(|monolith| monolith.drain.as_ref()).map(|drain| drain.next_step).min()
    }

    /// Queues what is to leave the Monoliths that are being drained.
    pub(super) fn continue_drains(&mut self) {
        if self.next_drain_step().is_none_or(|at| at > self.now) {
            return;
        }
        let now = self.now;
        let due = self.monoliths.iter_mut().filter_map(|(id, monolith)| {
            let drain = monolith.drain.as_mut().filter(|drain| drain.next_step <= now)?;
            drain.next_step = now.saturating_add(STEP);
            Some(id.clone())
        });
        for from in due.collect::<Vec<_>>() {
            for room in self.rooms_to_drain(&from) {
                self.moves.queue(&from, Wanted { room, to: None, by: Mover::Drain });
            }
        }
    }

    /// The rooms of a Monolith that may leave it and do not do so yet, by name.
    fn rooms_to_drain(&self, from: &MonolithId) -> Vec<RoomKey> {
        let Some(monolith) = self.monoliths.get(from) else { return Vec::new() };
        if monolith.drain.is_none() || !self.somebody_else_takes(from) {
            return Vec::new();
        }
        let queued = self.moves.queued_from(from);
        let leaves = |key: &&RoomKey| {
            !queued.contains(*key)
                && !self.may_be_unsaved(key, from)
                && !self.is_left_to_others(key, from)
                && self.may_move(key, None).is_ok()
        };
        let mut rooms: Vec<RoomKey> = monolith.copies.keys().filter(leaves).cloned().collect();
        rooms.sort_unstable();
        rooms
    }

    /// Whether there is another Monolith that takes rooms.
    pub(super) fn somebody_else_takes(&self, from: &MonolithId) -> bool {
        self.view.rows().iter().any(|row| row.id != *from && row.serves())
    }

    /// How far a drain is.
    pub(super) fn drain_summary(&self, id: &MonolithId) -> Option<DrainSummary> {
        let monolith = self.monoliths.get(id)?;
        let drain = monolith.drain.as_ref()?;
        let mut summary = DrainSummary {
            moved: drain.moved,
            lossy: drain.lossy,
            done: !self.moves.is_busy(id),
            ..DrainSummary::default()
        };
        // A room that was not reported is on its way there, and one that is not confirmed may leave once it is.
        let here = |room: &Room| room.monolith() == Some(id) && !room.members.is_empty();
        let mut left_to_others = false;
        for (key, room) in self.rooms.iter().filter(|(_, room)| here(room)) {
            left_to_others |= self.is_left_to_others(key, id);
            summary.skipped += usize::from(self.may_be_unsaved(key, id));
            summary.rooms_left += 1;
            summary.clients_left += room.members.len();
            let stays = match &room.state {
                State::Active(Active { binding: Binding::Reported(_), .. }) => true,
                State::Active(_)
                | State::Placing(_)
                | State::Unloading(_)
                | State::Settling(_)
                | State::Parked { .. } => false,
            };
            summary.done &= stays;
        }
        summary.done &= summary.skipped == 0;
        summary.waits_for = match summary.rooms_left {
            0 => None,
            _ if monolith.suspect => Some(DrainNeeds::Answer),
            _ if !self.somebody_else_takes(id) => Some(DrainNeeds::Target),
            _ if left_to_others && summary.done => Some(DrainNeeds::Turn),
            _ => None,
        };
        summary.done &= summary.waits_for.is_none() && self.rooms_to_drain(id).is_empty();
        Some(summary)
    }
}
