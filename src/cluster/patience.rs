//! How long anybody waits for a room: as long as a join is held, and then as many attempts as one room gets. What becomes
//! of the room meanwhile (outages that come and go, others whose turn is first, moves, a duplicate) begins nobody's
//! wait anew. Members whose room changes its Monolith have a window instead.

use std::collections::BTreeSet;

use super::placing::Refusal;
use super::room::Waiter;
use super::{Cluster, Settings, Turn};
use crate::model::event::Micros;
use crate::model::story::What;

/// When those who wait have waited for long enough, soonest first. Whoever has got what it waited for may still be in it, until
/// its turn comes: that is no longer than anybody waits.
#[derive(Default)]
pub(super) struct Patience {
    ends: BTreeSet<(Micros, Waiter)>,
    /// Those of them who have waited for long enough and whom a Monolith may still answer.
    overdue: BTreeSet<Waiter>,
}

impl Patience {
    /// When the next one may have to be told, if there is one.
    pub(super) fn next_due(&self) -> Option<Micros> {
        self.ends.first().map(|(at, _)| *at)
    }

    /// Those whose wait has an end.
    pub(super) fn known(&self) -> BTreeSet<Waiter> {
        self.ends.iter().map(|(_, waiter)| *waiter).collect()
    }
}

impl Settings {
    /// How long anybody waits for a room, in microseconds.
    pub(super) fn patience(&self) -> Micros {
        self.hold.saturating_add(self.load_timeout.saturating_mul(u64::from(self.place_attempts)))
    }
}

impl Cluster {
    /// Somebody begins to wait. An earlier end of its wait remains.
    pub(super) fn begin_wait(&mut self, waiter: Waiter) {
        self.patience.ends.insert((self.now.saturating_add(self.settings.patience()), waiter));
    }

    /// Refuses those who have waited for long enough, and forgets those who wait no more.
    pub(super) fn expire_waits(&mut self, turn: &mut Turn<'_>) {
        while let Some((at, waiter)) = self.patience.ends.first().copied() {
            let is_unsettled = self.is_unsettled(waiter);
            if at > self.now && is_unsettled {
                return;
            }
            self.patience.ends.pop_first();
            if !is_unsettled {
                self.patience.overdue.remove(&waiter);
            } else if self.still_waits(waiter) {
                self.end_wait(waiter, turn);
            } else {
                // A Monolith may still answer it. The end of that attempt is the end of its wait.
                self.patience.overdue.insert(waiter);
                self.patience.ends.insert((self.now.saturating_add(self.settings.load_timeout.max(1)), waiter));
            }
        }
    }

    /// Those whose join has been taken back wait again, unless they have waited for long enough.
    pub(super) fn end_overdue(&mut self, taken_back: &[Waiter], turn: &mut Turn<'_>) {
        for waiter in taken_back {
            if self.patience.overdue.contains(waiter) && self.is_unsettled(*waiter) {
                self.end_wait(*waiter, turn);
            }
        }
    }

    /// Whether somebody waits, or may have to wait again: what it sent to a Monolith is not answered.
    fn is_unsettled(&self, waiter: Waiter) -> bool {
        match waiter {
            Waiter::Client(client) => {
                let Some(entry) = self.clients.get(&client) else { return false };
                entry.handover.is_none() && (self.still_waits(waiter) || self.is_out(&entry.room, waiter))
            }
            Waiter::Request(_) => self.still_waits(waiter),
        }
    }

    fn end_wait(&mut self, waiter: Waiter, turn: &mut Turn<'_>) {
        let key = match waiter {
            Waiter::Client(client) => self.clients.get(&client).map(|entry| entry.room.clone()),
            Waiter::Request(request) => self.requests.get(&request).and_then(|entry| entry.room.clone()),
        };
        let Some(key) = key else { return };
        self.patience.overdue.remove(&waiter);
        self.waiting -= 1;
        self.counters.refused_unplaced += 1;
        self.refuse(waiter, Refusal::UNAVAILABLE, turn);
        self.tell(&key, What::Refused { waiting: 1, code: Refusal::UNAVAILABLE.code.get() }, turn);
    }
}
