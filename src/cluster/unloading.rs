//! A room that leaves its Monolith at our request: from the `unload` until it has gone, stays after all, or turns up
//! elsewhere. What becomes of its members on the way is decided here alone.

use std::collections::VecDeque;

use super::members::Place;
use super::room::{Active, Binding, Placing, State, Unloading, Waiter};
use super::{Cluster, Turn};
use crate::model::event::{Effect, UnloadCause};
use crate::model::moves::Moving;
use crate::model::policy::Previous;
use crate::model::story::MoveEnd;
use crate::model::{CloseCode, Epoch, MonolithId, RoomKey};

impl Cluster {
    /// Asks a room's Monolith to unload it, so that it can go elsewhere. From now on whoever comes waits: a join or a
    /// request that follows the `unload` would load the room there again.
    pub(super) fn ask_to_let_go(&mut self, key: &RoomKey, to: &MonolithId, turn: &mut Turn<'_>) -> Option<Moving> {
        let room = self.rooms.get(key)?;
        let State::Active(Active { monolith, binding: Binding::Reported(epoch) }) = &room.state else { return None };
        let (from, epoch, clients) = (monolith.clone(), *epoch, room.members.len());
        let source = self.monoliths.get_mut(&from)?;
        let copy = source.copies.get_mut(key).filter(|copy| copy.asked.is_none())?;
        copy.asked = Some(source.gossips);
        let unload = Effect::Unload { link: source.link, room: copy.name.clone(), why: UnloadCause::Move };
        let room = copy.name.spelling().to_string();
        let deadline = self.now.saturating_add(self.settings.load_timeout);
        self.change_room(key, turn, |room| {
            let (monolith, to) = (from.clone(), to.clone());
            room.state = State::Unloading(Unloading { monolith, epoch, to, waiting: VecDeque::new(), deadline });
        });
        turn.emit(unload);
        Some(Moving { room, from, to: to.clone(), clients })
    }

    /// Whether a room is on its way out of this Monolith.
    pub(super) fn is_leaving(&self, key: &RoomKey, monolith: &MonolithId) -> bool {
        let state = self.rooms.get(key).map(|room| &room.state);
        matches!(state, Some(State::Unloading(unloading)) if unloading.monolith == *monolith)
    }

    /// The room has left the Monolith that was asked, or the Monolith has gone. Its members are closed already, save
    /// for those whose joins crossed the unload. Whoever waited goes on, to the target if it still takes rooms.
    pub(super) fn unloading_over(&mut self, key: &RoomKey, how: MoveEnd, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(key) else { return };
        let State::Unloading(Unloading { monolith, to, .. }) = &room.state else { return };
        let (source, to) = (monolith.clone(), to.clone());
        let done = how == MoveEnd::LetGo;
        let why = if done { "moved" } else { "link_down" };
        room.previous = Some(Previous { monolith: source.clone(), why: why.into() });
        self.count_end(done);
        self.tell_move_ended(key, &source, &to, how, turn);
        self.moves.aim(key, to, self.now);
        let crossed = self.joined_to(key);
        if !crossed.is_empty() {
            // They may load the room there again, or be kicked. Nobody else goes meanwhile.
            let deadline = self.now.saturating_add(self.settings.load_timeout);
            self.change_room(key, turn, |room| {
                let State::Unloading(Unloading { waiting, .. }) = &mut room.state else { return };
                room.state = State::Placing(Placing {
                    monolith: source,
                    out: crossed.into_iter().map(Waiter::Client).collect(),
                    waiting: std::mem::take(waiting),
                    attempt: 1,
                    tried: Vec::new(),
                    crossed_unload: true,
                    deadline,
                });
            });
        } else if let Some((monolith, epoch)) = self.best_copy(key) {
            self.activate(key, &monolith, Binding::Reported(epoch), turn);
        } else if self.waits_for(key) {
            let deadline = self.parked_until();
            self.change_room(key, turn, |room| {
                let State::Unloading(Unloading { waiting, .. }) = &mut room.state else { return };
                room.state = State::Parked { waiting: std::mem::take(waiting), deadline };
            });
            if !self.must_wait() {
                self.unpark(key, turn);
            }
        } else {
            self.remove_room(key, turn);
        }
    }

    /// The Monolith has not let go in time: the room stays where it is, and is not asked again for this load.
    pub(super) fn unloading_timed_out(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        let Some(State::Unloading(Unloading { monolith, epoch, to, .. })) = self.rooms.get(key).map(|room| &room.state)
        else {
            return;
        };
        let (monolith, epoch, to) = (monolith.clone(), *epoch, to.clone());
        self.count_end(false);
        self.tell_move_ended(key, &monolith, &to, MoveEnd::TimedOut, turn);
        self.activate(key, &monolith, Binding::Reported(epoch), turn);
    }

    /// The Monolith that was asked has loaded the room anew: it stays there.
    pub(super) fn loaded_again(&mut self, key: &RoomKey, epoch: Epoch, turn: &mut Turn<'_>) {
        let Some(State::Unloading(unloading)) = self.rooms.get(key).map(|room| &room.state) else { return };
        let (monolith, to) = (unloading.monolith.clone(), unloading.to.clone());
        self.count_end(false);
        self.tell_move_ended(key, &monolith, &to, MoveEnd::LoadedAgain, turn);
        self.activate(key, &monolith, Binding::Reported(epoch), turn);
    }

    /// Another Monolith has the room while the one that was asked is letting it go: it is there from now on.
    pub(super) fn loaded_elsewhere(&mut self, key: &RoomKey, monolith: &MonolithId, epoch: Epoch, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(key) else { return };
        let State::Unloading(unloading) = &room.state else { return };
        let (from, to) = (unloading.monolith.clone(), unloading.to.clone());
        room.previous = Some(Previous { monolith: from.clone(), why: "moved".into() });
        self.count_end(to == *monolith);
        self.tell_move_ended(key, &from, &to, MoveEnd::Elsewhere, turn);
        self.close_joined(key, CloseCode::AWAY, turn);
        self.activate(key, monolith, Binding::Reported(epoch), turn);
    }

    /// Ends the memberships of a room, but leaves those alone who wait for it.
    pub(super) fn close_joined(&mut self, key: &RoomKey, code: CloseCode, turn: &mut Turn<'_>) {
        for client in self.joined_to(key) {
            self.end_client(client, Some(code), turn);
        }
    }

    fn joined_to(&self, key: &RoomKey) -> Vec<crate::model::ClientId> {
        let members = self.rooms.get(key).map(|room| room.members.as_slice()).unwrap_or_default();
        let joined = |entry: &super::Client| matches!(entry.place, Place::Joined { .. });
        members.iter().copied().filter(|client| self.clients.get(client).is_some_and(joined)).collect()
    }

    fn count_end(&mut self, done: bool) {
        let moves = &mut self.counters.moves;
        *if done { &mut moves.done } else { &mut moves.given_up } += 1;
    }
}
