//! A room that leaves its Monolith at our request: from the `unload` until it has gone, stays after all, or turns up
//! elsewhere. Where it goes then, and its members with it, is in `handover`.

use super::duplicates::Nearness;
use super::members::Place;
use super::room::{Active, Binding, State, Unloading, Waiter};
use super::{Cluster, Turn};
use crate::model::moves::Moving;
use crate::model::policy::{Cause, Previous};
use crate::model::story::MoveEnd;
use crate::model::{ClientId, CloseCode, Epoch, MonolithId, RoomKey};

impl Cluster {
    /// Asks a room's Monolith to unload it, so that it can go elsewhere. From now on whoever comes waits: a join or a
    /// request that follows the `unload` would load the room there again.
    pub(super) fn ask_to_let_go(
        &mut self,
        key: &RoomKey,
        to: Option<MonolithId>,
        turn: &mut Turn<'_>,
    ) -> Option<Moving> {
        let room = self.rooms.get(key)?;
        let State::Active(Active { monolith, binding: Binding::Reported(epoch) }) = &room.state else { return None };
        let (from, epoch, clients) = (monolith.clone(), *epoch, room.members.len());
        let hold = self.settings.seamless.is_some();
        let copy = self.monoliths.get(&from)?.copies.get(key).filter(|copy| copy.asked.is_none())?;
        let room = copy.name.spelling().to_string();
        let deadline = self.now.saturating_add(self.settings.load_timeout);
        let waiting =
            self.take_sent_away(key).into_iter().map(Waiter::Client).collect::<std::collections::VecDeque<_>>();
        self.waiting += waiting.len();
        self.change_room(key, turn, |room| {
            let (monolith, to) = (from.clone(), to.clone());
            room.state = State::Unloading(Unloading { monolith, epoch, to, hold, waiting, deadline });
        });
        self.ask_in_turn(&from, key, Nearness::Moves, turn);
        Some(Moving { room, from, to, clients })
    }

    /// Whether a room is on its way out of this Monolith.
    pub(super) fn is_leaving(&self, key: &RoomKey, monolith: &MonolithId) -> bool {
        let state = self.rooms.get(key).map(|room| &room.state);
        matches!(state, Some(State::Unloading(unloading)) if unloading.monolith == *monolith)
    }

    /// The room has left the Monolith that was asked, or the Monolith has gone. Of its members, `released` keep their
    /// sockets, and the others are closed already, save for those whose joins crossed the unload. Whoever waited goes on,
    /// to the target if it still takes rooms.
    pub(super) fn unloading_over(&mut self, key: &RoomKey, how: MoveEnd, released: Vec<ClientId>, turn: &mut Turn<'_>) {
        let Some(State::Unloading(Unloading { monolith, to, .. })) = self.rooms.get(key).map(|room| &room.state) else {
            return;
        };
        let (from, to) = (monolith.clone(), to.clone());
        let done = how == MoveEnd::LetGo;
        self.count_end(&from, done);
        self.tell_move_ended(key, &from, to.as_ref(), how, turn);
        if let Some(to) = to {
            self.moves.aim(key, to, self.now);
        }
        self.next_owner(key, &from, if done { "moved" } else { "link_down" }, released, turn);
    }

    /// The room stays where it is: it was not let go in time, which is not asked again for this load, or not asked at all.
    pub(super) fn stays(&mut self, key: &RoomKey, how: MoveEnd, turn: &mut Turn<'_>) {
        if let Some(State::Unloading(unloading)) = self.rooms.get(key).map(|room| &room.state) {
            self.stays_as(key, unloading.epoch, how, turn);
        }
    }

    /// The Monolith that was asked has loaded the room anew: it stays there.
    pub(super) fn loaded_again(&mut self, key: &RoomKey, epoch: Epoch, turn: &mut Turn<'_>) {
        self.stays_as(key, epoch, MoveEnd::LoadedAgain, turn);
    }

    fn stays_as(&mut self, key: &RoomKey, epoch: Epoch, how: MoveEnd, turn: &mut Turn<'_>) {
        let Some(State::Unloading(unloading)) = self.rooms.get(key).map(|room| &room.state) else { return };
        let (monolith, to) = (unloading.monolith.clone(), unloading.to.clone());
        self.count_end(&monolith, false);
        self.tell_move_ended(key, &monolith, to.as_ref(), how, turn);
        self.activate(key, &monolith, Binding::Reported(epoch), turn);
    }

    /// Another Monolith has the room while the one that was asked is letting it go: it is there from now on, and nobody is
    /// let in before it has gone from the first.
    pub(super) fn loaded_elsewhere(&mut self, key: &RoomKey, monolith: &MonolithId, epoch: Epoch, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(key) else { return };
        let State::Unloading(unloading) = &room.state else { return };
        let (from, to) = (unloading.monolith.clone(), unloading.to.clone());
        room.previous = Some(Previous { monolith: from.clone(), why: "moved".into() });
        self.count_end(&from, to.as_ref().is_none_or(|to| to == monolith));
        self.tell_move_ended(key, &from, to.as_ref(), MoveEnd::Elsewhere, turn);
        let released = self.release_or_close(key, &from, (Cause::Move, true), CloseCode::AWAY, turn);
        self.counters.handover.rooms += u64::from(!released.is_empty());
        self.waiting += released.len();
        let Some(State::Unloading(Unloading { waiting, .. })) = self.rooms.get_mut(key).map(|room| &mut room.state)
        else {
            return;
        };
        released.into_iter().rev().for_each(|client| waiting.push_front(Waiter::Client(client)));
        if self.lets_go(&from, key) {
            self.await_loser(key, (monolith, epoch), &from, turn);
        } else {
            self.activate(key, monolith, Binding::Reported(epoch), turn);
        }
    }

    /// Ends the memberships of a room, but leaves those alone who wait for it.
    pub(super) fn close_joined(&mut self, key: &RoomKey, code: CloseCode, turn: &mut Turn<'_>) {
        for client in self.joined_to(key) {
            self.end_client(client, Some(code), turn);
        }
    }

    /// The members of a room that are joined to its Monolith.
    pub(super) fn joined_to(&self, key: &RoomKey) -> Vec<ClientId> {
        let members = self.rooms.get(key).map(|room| room.members.as_slice()).unwrap_or_default();
        let joined = |entry: &super::Client| matches!(entry.place, Place::Joined { .. });
        members.iter().copied().filter(|client| self.clients.get(client).is_some_and(joined)).collect()
    }

    fn count_end(&mut self, from: &MonolithId, done: bool) {
        let moves = &mut self.counters.moves;
        *if done { &mut moves.done } else { &mut moves.given_up } += 1;
        if let Some(drain) = self.monoliths.get_mut(from).and_then(|monolith| monolith.drain.as_mut()) {
            drain.moved += u64::from(done);
        }
    }
}
