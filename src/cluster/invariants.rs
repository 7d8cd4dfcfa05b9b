//! What must hold after every event. Checked in debug builds and by the property tests.

use std::collections::{BTreeMap, HashSet};

use super::Cluster;
use super::members::Place;
use super::room::{Placing, Settling, State, Unloading, Waiter};
use crate::model::{ClientId, Hashing, MonolithId};

impl Cluster {
    /// The first broken rule in words, or `None` if all hold.
    pub fn broken_invariant(&self) -> Option<String> {
        self.check_rooms()
            .or_else(|| self.check_clients())
            .or_else(|| self.check_hand_overs())
            .or_else(|| self.check_patience())
            .or_else(|| self.check_counts())
            .or_else(|| self.check_line())
    }

    fn check_rooms(&self) -> Option<String> {
        let mut deadlines = 0;
        for (key, room) in &self.rooms {
            if let Some(monolith) = room.monolith()
                && !self.monoliths.contains_key(monolith)
            {
                return Some(format!("{key} is on {monolith}, which is not linked"));
            }
            if let Some(at) = room.deadline() {
                deadlines += 1;
                if !self.timers.contains(&(at, key.clone())) {
                    return Some(format!("{key} waits without a timer"));
                }
            }
            if let State::Settling(settling) = &room.state
                && settling.loser == settling.monolith
            {
                return Some(format!("{key} waits for {} to let go what it keeps", settling.loser));
            }
            if let State::Placing(Placing { out, waiting, attempt, tried, .. }) = &room.state {
                let live = waiting.iter().filter(|waiter| self.still_waits(**waiter)).count();
                if out.is_empty() && live > 0 && !self.claims.is_awaited(key) {
                    return Some(format!("{live} wait for {key} and nobody is out"));
                }
                if *attempt as usize > tried.len() + 1 {
                    return Some(format!("{key} is in attempt {attempt} after {} failures", tried.len()));
                }
            }
        }
        let idle = (deadlines != self.timers.len()).then(|| "a timer belongs to no room".to_string());
        idle.or_else(|| self.forgotten_unload())
    }

    fn check_clients(&self) -> Option<String> {
        let mut listed: HashSet<ClientId, Hashing> = HashSet::default();
        for (key, room) in &self.rooms {
            for client in &room.members {
                if !listed.insert(*client) {
                    return Some(format!("{client} is listed twice"));
                }
                let Some(entry) = self.clients.get(client) else {
                    return Some(format!("{key} lists {client}, who is gone"));
                };
                if entry.room != *key {
                    return Some(format!("{key} lists {client}, who is in {}", entry.room));
                }
                let waiter = Waiter::Client(*client);
                let fine = match (&room.state, entry.place) {
                    (State::Parked { waiting, .. }, Place::Waiting) => waiting.contains(&waiter),
                    (State::Placing(placing), Place::Waiting) => placing.waiting.contains(&waiter),
                    (State::Placing(placing), Place::Joined { link, .. }) => {
                        placing.out.contains(&waiter) && self.link_of(&placing.monolith) == Some(link)
                    }
                    (State::Active(active), Place::Joined { link, .. }) => self.link_of(&active.monolith) == Some(link),
                    (State::Unloading(unloading), Place::Joined { link, .. }) => {
                        self.link_of(&unloading.monolith) == Some(link)
                    }
                    (State::Unloading(unloading), Place::Waiting) => unloading.waiting.contains(&waiter),
                    (State::Settling(settling), Place::Waiting) => settling.waiting.contains(&waiter),
                    (State::Active(_), Place::SentAway { .. }) => true,
                    (State::Parked { .. } | State::Settling(_), Place::Joined { .. })
                    | (State::Active(_), Place::Waiting)
                    | (
                        State::Parked { .. } | State::Placing(_) | State::Unloading(_) | State::Settling(_),
                        Place::SentAway { .. },
                    ) => false,
                };
                if !fine {
                    return Some(format!("{client} is {:?} while {key} is {:?}", entry.place, room.status()));
                }
            }
        }
        self.clients.keys().find(|client| !listed.contains(client)).map(|client| format!("{client} is in no room"))
    }

    /// Who is between two Monoliths has a window, and nobody else has one.
    fn check_hand_overs(&self) -> Option<String> {
        let ends = self.handovers.ends();
        let mut expected = 0;
        for (client, entry) in &self.clients {
            if self.handovers.is_refused(*client) {
                return Some(format!("{client} is {:?}, and was refused", entry.place));
            }
            let window = entry.handover.map(|handover| handover.until);
            let away = match entry.place {
                Place::SentAway { until } => Some(until).filter(|until| window != Some(*until)),
                Place::Waiting | Place::Joined { .. } => None,
            };
            for until in window.into_iter().chain(away) {
                expected += 1;
                if !ends.contains(&(until, *client)) {
                    return Some(format!("{client} has a window, and nothing is due at its end"));
                }
            }
            let joined = matches!(entry.place, Place::Joined { .. });
            if entry.opened && (!joined || entry.handover.is_some()) {
                return Some(format!("{client} speaks to a Monolith while it is {:?}", entry.place));
            }
        }
        (expected != ends.len()).then(|| "something is due for a client that has no window".to_string())
    }

    /// Whoever waits and has no window has an end of its wait, and nobody else has one.
    fn check_patience(&self) -> Option<String> {
        let clients = self.clients.iter().map(|(client, entry)| (Waiter::Client(*client), entry.wait_ends));
        let requests = self.requests.iter().map(|(request, entry)| (Waiter::Request(*request), entry.wait_ends));
        let due = self.patience.ends();
        let mut expected = 0;
        for (waiter, ends) in clients.chain(requests) {
            let waits = self.still_waits(waiter) && !self.may_go_on_waiting(waiter);
            if waits && ends.is_none() {
                return Some(format!("{waiter:?} waits for ever"));
            }
            if ends.is_some() && self.is_settled(waiter) {
                return Some(format!("{waiter:?} has what it waits for, or a window, and an end of its wait"));
            }
            // Whoever is out hears the end of its attempt.
            if let Some(at) = ends.filter(|at| waits || *at > self.now) {
                expected += 1;
                if !due.contains(&(at, waiter)) {
                    return Some(format!("nothing is due at the end of the wait of {waiter:?}"));
                }
            }
        }
        (expected != due.len()).then(|| "something is due for somebody who does not wait".to_string())
    }

    fn is_settled(&self, waiter: Waiter) -> bool {
        match waiter {
            Waiter::Client(client) => {
                self.may_go_on_waiting(waiter) || self.clients.get(&client).is_some_and(|entry| entry.opened)
            }
            Waiter::Request(_) => !self.still_waits(waiter),
        }
    }

    fn check_counts(&self) -> Option<String> {
        let mut pending: BTreeMap<&MonolithId, u32> = BTreeMap::new();
        let mut clients: BTreeMap<&MonolithId, u32> = BTreeMap::new();
        let (mut waiting, mut out, mut queued, mut unconfirmed) = (0, 0, 0, 0);
        for room in self.rooms.values() {
            if let Some(monolith) = room.pending_on() {
                *pending.entry(monolith).or_insert(0) += 1;
            }
            if let State::Parked { waiting: queue, .. }
            | State::Placing(Placing { waiting: queue, .. })
            | State::Unloading(Unloading { waiting: queue, .. })
            | State::Settling(Settling { waiting: queue, .. }) = &room.state
            {
                let live = queue.iter().filter(|waiter| self.still_waits(**waiter));
                live.for_each(|waiter| {
                    waiting += 1;
                    queued += usize::from(matches!(waiter, Waiter::Request(_)));
                });
            }
            unconfirmed += usize::from(!room.is_confirmed());
            out += room.out().len();
        }
        for request in self.requests.values().filter(|request| request.room.is_none()) {
            if let Some(monolith) = &request.sent_to {
                *pending.entry(monolith).or_insert(0) += 1;
            }
        }
        for client in self.clients.values() {
            if let Place::Joined { link, .. } = client.place
                && let Some(monolith) = self.links.get(&link)
            {
                *clients.entry(monolith).or_insert(0) += 1;
            }
        }
        if (waiting, out, unconfirmed) != (self.waiting, self.out, self.unconfirmed) {
            return Some(format!(
                "counted {waiting} waiting, {out} out and {unconfirmed} unconfirmed, but booked {}, {} and {}",
                self.waiting, self.out, self.unconfirmed
            ));
        }
        let unsent = self.requests.values().filter(|request| request.sent_to.is_none()).count();
        if unsent != queued {
            return Some(format!("{queued} requests wait for a room, but {unsent} were not sent"));
        }
        for (id, monolith) in &self.monoliths {
            let row = self.view.get(id)?;
            let rooms = u32::try_from(monolith.copies.len()).unwrap_or(u32::MAX);
            let booked = (row.rooms, row.clients, row.pending);
            let counted = (rooms, clients.get(id).copied().unwrap_or(0), pending.get(id).copied().unwrap_or(0));
            if booked != counted {
                return Some(format!("{id}: booked {booked:?}, counted {counted:?} (rooms, clients, pending)"));
            }
        }
        (self.links.len() != self.monoliths.len() || self.view.rows().len() != self.monoliths.len())
            .then(|| "links, Monoliths and view differ".to_string())
    }
}
