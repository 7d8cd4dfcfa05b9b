//! A room that was on two Monoliths and is kept by another than the one that this balancer sent its clients to: whoever
//! wants in waits until the loser has let it go. It saves the room as it goes, so that this is over before the winner
//! hears another word of those who were there.

use std::collections::VecDeque;

use super::duplicates::older;
use super::room::{Active, Binding, Settling, State, Unloading, Waiter};
use super::{Cluster, Turn};
use crate::model::event::Micros;
use crate::model::policy::Previous;
use crate::model::{ClientId, Epoch, MonolithId, RoomKey};

/// How long a loser may take, in microseconds: long enough for the turn of a balancer with clients in it. Of a window in
/// which clients keep their sockets that is shorter, a quarter is left for going on.
const PATIENCE: Micros = 5_000_000;

impl Cluster {
    /// The room belongs to the winner from now on. `released` were with the loser.
    pub(super) fn settle(
        &mut self,
        key: &RoomKey,
        winner: (&MonolithId, Epoch),
        loser: &MonolithId,
        released: Vec<ClientId>,
        turn: &mut Turn<'_>,
    ) {
        if let Some(room) = self.rooms.get_mut(key) {
            room.previous = Some(Previous { monolith: loser.clone(), why: "duplicate".into() });
        }
        if !self.lets_go(loser, key) {
            // Nothing that could be asked to go, or that would.
            let (monolith, binding) = (winner.0.clone(), Binding::Reported(winner.1));
            self.change_room(key, turn, |room| room.state = State::Active(Active { monolith, binding }));
            for client in released {
                self.let_in(key, Waiter::Client(client), turn);
            }
            return;
        }
        self.waiting += released.len();
        self.await_loser(key, winner, loser, turn);
        if let Some(State::Settling(settling)) = self.rooms.get_mut(key).map(|room| &mut room.state) {
            settling.waiting.extend(released.into_iter().map(Waiter::Client));
        }
    }

    /// Whether a Monolith has the room and is to let it go.
    pub(super) fn lets_go(&mut self, monolith: &MonolithId, key: &RoomKey) -> bool {
        self.copy_mut(monolith, key).is_some_and(|copy| copy.is_leaving())
    }

    /// Whoever waits for a room waits until this Monolith has let it go.
    pub(super) fn await_loser(
        &mut self,
        key: &RoomKey,
        winner: (&MonolithId, Epoch),
        loser: &MonolithId,
        turn: &mut Turn<'_>,
    ) {
        let window = self.settings.seamless.map_or(Micros::MAX, |seamless| seamless.window);
        let deadline = self.now.saturating_add(PATIENCE.min(window - window / 4));
        let (monolith, epoch, loser) = (winner.0.clone(), winner.1, loser.clone());
        self.change_room(key, turn, |room| {
            let waiting = match &mut room.state {
                State::Unloading(Unloading { waiting, .. }) => std::mem::take(waiting),
                State::Active(_) | State::Placing(_) | State::Parked { .. } | State::Settling(_) => VecDeque::new(),
            };
            room.state = State::Settling(Settling { monolith, epoch, loser, waiting, deadline });
        });
    }

    /// A Monolith reports a room that settles: the winner loaded it anew, the loser still has it, or there is a third.
    pub(super) fn reported_while_settling(
        &mut self,
        key: &RoomKey,
        monolith: &MonolithId,
        epoch: Epoch,
        turn: &mut Turn<'_>,
    ) {
        let Some(State::Settling(settling)) = self.rooms.get_mut(key).map(|room| &mut room.state) else { return };
        if settling.monolith == *monolith {
            settling.epoch = epoch;
            return;
        }
        let kept = (settling.epoch, settling.monolith.clone());
        let wins = *monolith != settling.loser && older((epoch, monolith), (kept.0, &kept.1));
        let loser = if wins { kept.1 } else { monolith.clone() };
        let nearness = self.nearness(key, &loser, false);
        self.contest(&loser, key, nearness, turn);
        if wins {
            self.change_room(key, turn, |room| {
                if let State::Settling(settling) = &mut room.state {
                    (settling.monolith, settling.epoch) = (monolith.clone(), epoch);
                }
            });
        }
    }

    /// A Monolith no longer has a room. Returns whether it is one that settles, for which that has been seen to.
    pub(super) fn gone_while_settling(
        &mut self,
        key: &RoomKey,
        monolith: &MonolithId,
        why: &str,
        turn: &mut Turn<'_>,
    ) -> bool {
        let Some(State::Settling(settling)) = self.rooms.get(key).map(|room| &room.state) else { return false };
        if settling.loser == *monolith {
            self.settled(key, turn);
        } else if settling.monolith == *monolith {
            self.next_owner(key, monolith, why, Vec::new(), turn);
        }
        true
    }

    /// Everybody may go in: the loser has let go, or has had its time.
    pub(super) fn settled(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        let Some(State::Settling(settling)) = self.rooms.get(key).map(|room| &room.state) else { return };
        let (winner, epoch) = (settling.monolith.clone(), settling.epoch);
        self.activate(key, &winner, Binding::Reported(epoch), turn);
    }
}
