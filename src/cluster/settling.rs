//! A room that was on two Monoliths and is kept by another than the one that this balancer sent its clients to: whoever
//! wants in waits until the loser has let it go. It saves the room as it goes, so that this is over before the winner
//! hears another word of those who were there.

use std::collections::VecDeque;

use super::duplicates::older;
use super::room::{Active, Binding, Settling, State, Waiter};
use super::{Cluster, Turn};
use crate::model::event::Micros;
use crate::model::policy::Previous;
use crate::model::{ClientId, Epoch, MonolithId, RoomKey};

/// How long a loser may take, in microseconds: long enough for the turn of a balancer with clients in it, and half of the
/// window in which clients keep their sockets.
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
        let (monolith, epoch) = (winner.0.clone(), winner.1);
        let previous = Some(Previous { monolith: loser.clone(), why: "duplicate".into() });
        if !self.copy_mut(loser, key).is_some_and(|copy| copy.is_leaving()) {
            // Nothing that could be asked to go, or that would.
            self.change_room(key, turn, |room| {
                room.previous = previous;
                room.state = State::Active(Active { monolith, binding: Binding::Reported(epoch) });
            });
            for client in released {
                self.let_in(key, Waiter::Client(client), turn);
            }
            return;
        }
        let window = self.settings.seamless.map_or(PATIENCE, |seamless| seamless.window / 2);
        let deadline = self.now.saturating_add(PATIENCE.min(window));
        let waiting: VecDeque<Waiter> = released.into_iter().map(Waiter::Client).collect();
        self.waiting += waiting.len();
        let loser = loser.clone();
        self.change_room(key, turn, |room| {
            room.previous = previous;
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
