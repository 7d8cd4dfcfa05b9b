//! How long anybody waits for a room: as long as a join is held, and as many attempts as a room gets may take. What becomes
//! of the room meanwhile (outages that come and go, others whose turn is first, moves, a duplicate) begins nobody's wait
//! anew. Only whoever is at a Monolith when its time is up hears the end of that attempt. Members whose room changes its
//! Monolith have a window instead.

use std::collections::BTreeSet;

use super::placing::Refusal;
use super::room::Waiter;
use super::{Cluster, Turn};
use crate::model::RequestId;
use crate::model::event::Micros;
use crate::model::story::What;

/// When whoever waits has waited for long enough, soonest first; without those at a Monolith whose time is up.
#[derive(Default)]
pub(super) struct Patience {
    ends: BTreeSet<(Micros, Waiter)>,
}

impl Patience {
    /// When the next one is to be told, if there is one.
    pub(super) fn next_due(&self) -> Option<Micros> {
        self.ends.first().map(|(at, _)| *at)
    }

    pub(super) fn ends(&self) -> &BTreeSet<(Micros, Waiter)> {
        &self.ends
    }

    /// Nothing is due for somebody who does not wait any more.
    pub(super) fn forget(&mut self, waiter: Waiter, ends: Option<Micros>) {
        if let Some(at) = ends {
            self.ends.remove(&(at, waiter));
        }
    }
}

impl Cluster {
    /// Somebody waits. Its wait ends when it was to end, if it has begun before;
    /// one that has a window needs no other end.
    pub(super) fn begin_wait(&mut self, waiter: Waiter) {
        if self.may_go_on_waiting(waiter) {
            return;
        }
        let ends = self.now.saturating_add(self.settings.patience);
        if let Some(slot @ None) = self.wait_of(waiter) {
            *slot = Some(ends);
            self.patience.ends.insert((ends, waiter));
        }
    }

    /// Somebody has got what it waited for, or waits on other terms.
    pub(super) fn finish_wait(&mut self, waiter: Waiter) {
        let ends = self.wait_of(waiter).and_then(Option::take);
        self.patience.forget(waiter, ends);
    }

    /// Refuses those who have waited for long enough.
    pub(super) fn expire_waits(&mut self, turn: &mut Turn<'_>) {
        while let Some((at, waiter)) = self.patience.ends.first().copied()
            && at <= self.now
        {
            self.patience.ends.pop_first();
            // A Monolith may still answer whoever is out.
            if self.still_waits(waiter) {
                self.end_wait(waiter, turn);
            }
        }
    }

    /// Of those whose joins were taken back, refuses those who have waited for long enough.
    pub(super) fn end_overdue(&mut self, taken_back: &[Waiter], turn: &mut Turn<'_>) {
        for waiter in taken_back {
            let now = self.now;
            if self.wait_of(*waiter).is_some_and(|ends| ends.is_some_and(|at| at <= now)) {
                self.end_wait(*waiter, turn);
            }
        }
    }

    pub(super) fn remove_request(&mut self, request: RequestId) -> Option<super::Request> {
        self.finish_wait(Waiter::Request(request));
        self.requests.remove(&request)
    }

    fn wait_of(&mut self, waiter: Waiter) -> Option<&mut Option<Micros>> {
        match waiter {
            Waiter::Client(client) => self.clients.get_mut(&client).map(|entry| &mut entry.wait_ends),
            Waiter::Request(request) => self.requests.get_mut(&request).map(|entry| &mut entry.wait_ends),
        }
    }

    fn end_wait(&mut self, waiter: Waiter, turn: &mut Turn<'_>) {
        let room = match waiter {
            Waiter::Client(client) => self.clients.get(&client).map(|entry| entry.room.clone()),
            Waiter::Request(request) => self.requests.get(&request).and_then(|entry| entry.room.clone()),
        };
        let Some(room) = room else { return };
        self.waiting -= 1;
        self.counters.refused_unplaced += 1;
        self.refuse(waiter, Refusal::UNAVAILABLE, turn);
        self.tell(&room, What::WaitedTooLong { code: Refusal::UNAVAILABLE.code.get() }, turn);
    }
}
