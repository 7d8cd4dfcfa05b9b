//! The life of a room: every change of state goes through here, so that timers, counts and routes never disagree.

use std::collections::VecDeque;

use super::room::{Active, Binding, Placing, Room, Settling, State, Unloading, Waiter};
use super::{Cluster, Turn};
use crate::model::event::{Effect, Micros};
use crate::model::policy::Previous;
use crate::model::story::{MoveEnd, What};
use crate::model::{MonolithId, RoomKey, RoomName};

impl Cluster {
    /// Puts a new room into the table.
    pub(super) fn insert_room(&mut self, name: RoomName, state: State, turn: &mut Turn<'_>) {
        let key = name.key().clone();
        debug_assert!(!self.rooms.contains_key(&key), "{key} exists");
        let mut room = Room::new(name, state);
        if let Some((previous, metadata)) = self.departed.of(&key) {
            (room.previous, room.metadata) = (Some(previous.clone()), metadata.clone());
        }
        self.rooms.insert(key.clone(), room);
        self.account(&key, &Account::default(), turn);
    }

    /// Changes a room's state. Returns what `change` returns, or `None` if there is no such room.
    pub(super) fn change_room<R>(
        &mut self,
        key: &RoomKey,
        turn: &mut Turn<'_>,
        change: impl FnOnce(&mut Room) -> R,
    ) -> Option<R> {
        let room = self.rooms.get_mut(key)?;
        let before = Account::of(room);
        let result = change(room);
        self.account(key, &before, turn);
        Some(result)
    }

    /// Removes a room, which must have no members any more.
    pub(super) fn remove_room(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.remove(key) else { return };
        debug_assert!(room.members.is_empty(), "{key} has members");
        self.account(key, &Account::of(&room), turn);
        if let Some(previous) = room.previous {
            self.departed.note(key, (previous, room.metadata));
        }
    }

    /// Brings timers, counts and routes in line with what a room has become.
    fn account(&mut self, key: &RoomKey, before: &Account, turn: &mut Turn<'_>) {
        let after = self.rooms.get(key).map(Account::of).unwrap_or_default();
        if before.deadline != after.deadline {
            if let Some(at) = before.deadline {
                self.timers.remove(&(at, key.clone()));
            }
            if let Some(at) = after.deadline {
                self.timers.insert((at, key.clone()));
            }
        }
        if before.pending_on != after.pending_on {
            if let Some(monolith) = &before.pending_on {
                self.view.update(monolith, |row| row.pending = row.pending.saturating_sub(1));
            }
            if let Some(monolith) = &after.pending_on {
                self.view.update(monolith, |row| row.pending += 1);
            }
        }
        if before.bound_to != after.bound_to {
            self.list_version += 1;
            turn.emit(match after.bound_to {
                Some(monolith) => Effect::Bind { room: key.clone(), monolith },
                None => Effect::Unbind { room: key.clone() },
            });
        }
        match (before.unconfirmed, after.unconfirmed) {
            (false, true) => self.unconfirmed += 1,
            (true, false) => self.unconfirmed -= 1,
            (true, true) | (false, false) => {}
        }
        self.out = self.out + after.out - before.out;
        self.settle_claim(key, turn);
    }

    /// Binds a room to a Monolith and lets in everyone who waited for it. Whoever was out at another Monolith is
    /// withdrawn there first, and goes in first.
    pub(super) fn activate(&mut self, key: &RoomKey, monolith: &MonolithId, binding: Binding, turn: &mut Turn<'_>) {
        let active = State::Active(Active { monolith: monolith.clone(), binding });
        let Some(before) = self.change_room(key, turn, |room| std::mem::replace(&mut room.state, active)) else {
            return;
        };
        let instead_of = match &before {
            State::Placing(placing) if placing.monolith != *monolith => Some(placing.monolith.clone()),
            State::Placing(_) | State::Parked { .. } | State::Unloading(_) | State::Settling(_) => None,
            State::Active(_) => return,
        };
        self.answers += 1;
        self.tell_bound(key, monolith, binding, instead_of, turn);
        let (out, waiting) = match before {
            State::Unloading(Unloading { monolith: from, hold, waiting, .. }) => {
                if hold && from == *monolith {
                    // It stays after all: what they have said meanwhile may go.
                    for client in self.joined_to(key) {
                        self.open(Waiter::Client(client), turn);
                    }
                }
                (Vec::new(), waiting)
            }
            State::Parked { waiting, .. } | State::Settling(Settling { waiting, .. }) => (Vec::new(), waiting),
            State::Placing(placing) if placing.monolith == *monolith => {
                for waiter in &placing.out {
                    self.open(*waiter, turn);
                }
                (Vec::new(), placing.waiting)
            }
            State::Placing(placing) => {
                let mut withdrawn = Vec::new();
                for waiter in placing.out {
                    if self.withdraw(waiter, turn) {
                        withdrawn.push(waiter);
                        self.waiting += 1;
                    }
                }
                (withdrawn, placing.waiting)
            }
            State::Active(_) => return,
        };
        for waiter in out.into_iter().chain(waiting) {
            if self.still_waits(waiter) {
                self.waiting -= 1;
                self.let_in(key, waiter, turn);
            }
        }
    }

    /// A room's Monolith no longer has it. Another that reported it takes over; else the room is gone. Its members must
    /// be gone already.
    pub(super) fn unbind(&mut self, key: &RoomKey, why: &str, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(key) else { return };
        debug_assert!(room.members.is_empty(), "{key} has members");
        if let Some(monolith) = room.bound_to().cloned() {
            room.previous = Some(Previous { monolith, why: why.into() });
        }
        match self.best_copy(key) {
            Some((monolith, epoch)) => {
                let binding = Binding::Reported(epoch);
                self.tell_bound(key, &monolith, binding, None, turn);
                self.change_room(key, turn, |room| room.state = State::Active(Active { monolith, binding }));
            }
            None => self.remove_room(key, turn),
        }
    }

    /// A room's deadline has passed.
    pub(super) fn room_timed_out(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        match self.rooms.get(key).map(|room| &room.state) {
            Some(State::Parked { .. }) => self.parked_timed_out(key, turn),
            Some(State::Placing(_)) => self.placing_timed_out(key, turn),
            Some(State::Active(_)) => self.unreported(key, turn),
            Some(State::Unloading(_)) => self.stays(key, MoveEnd::TimedOut, turn),
            Some(State::Settling(_)) => self.settled(key, turn),
            None => {}
        }
    }

    /// A bound room was not reported in time. Without members it is forgotten. Members that a Monolith answered stay.
    /// Members that joined on the strength of an HTTP response are still unanswered: theirs are joins like any other.
    fn unreported(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get(key) else { return };
        if room.members.is_empty() {
            if let Some(monolith) = room.bound_to().cloned() {
                self.tell(key, What::Unreported { monolith }, turn);
            }
            self.unbind(key, "timeout", turn);
        } else if room.is_confirmed() {
            self.extend_binding(key, turn);
        } else {
            self.back_to_placing(key, turn);
            self.placing_timed_out(key, turn);
        }
    }

    /// Gives a binding that nothing has reported its full time again.
    pub(super) fn extend_binding(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        let later = self.now + self.settings.load_timeout;
        self.change_room(key, turn, |room| match &mut room.state {
            State::Active(Active {
                binding: Binding::Answered { deadline } | Binding::Provisional { deadline },
                ..
            }) => {
                *deadline = later;
            }
            State::Active(_) | State::Placing(_) | State::Parked { .. } | State::Unloading(_) | State::Settling(_) => {}
        });
    }

    /// Turns a bound room with members that nothing has answered into one that waits for their answers.
    fn back_to_placing(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        let deadline = self.now + self.settings.load_timeout;
        let out = self.joined_to(key).into_iter().map(Waiter::Client).collect();
        let waiting: VecDeque<Waiter> = self.take_sent_away(key).into_iter().map(Waiter::Client).collect();
        self.waiting += waiting.len();
        self.change_room(key, turn, |room| {
            let Some(monolith) = room.bound_to().cloned() else { return };
            room.state = State::Placing(Placing {
                monolith,
                out,
                waiting,
                attempt: 1,
                tried: Vec::new(),
                crossed_unload: false,
                unanswered: false,
                deadline,
            });
        });
    }
}

/// What other tables hold about a room.
#[derive(Default)]
struct Account {
    deadline: Option<Micros>,
    pending_on: Option<MonolithId>,
    bound_to: Option<MonolithId>,
    unconfirmed: bool,
    out: usize,
}

impl Account {
    fn of(room: &Room) -> Self {
        Self {
            deadline: room.deadline(),
            pending_on: room.pending_on().cloned(),
            bound_to: room.bound_to().cloned(),
            unconfirmed: !room.is_confirmed(),
            out: room.out().len(),
        }
    }
}
