//! What Monoliths say about rooms: loaded, unloaded, gossip.

use super::monolith::{Asked, Copy, Sync};
use super::room::{Active, Binding, State};
use super::{Cluster, Turn};
use crate::model::policy::{Cause, MonolithRow};
use crate::model::story::{MoveEnd, What};
use crate::model::wire::{RoomReport, UnloadReason};
use crate::model::{Attachment, ClientId, CloseCode, Epoch, LinkId, MonolithId, RoomKey};

impl Cluster {
    pub(super) fn loaded(&mut self, link: LinkId, report: RoomReport, turn: &mut Turn<'_>) {
        let Some(monolith) = self.sender(link) else { return };
        let gossip = self.monoliths.get(&monolith).map_or(0, |monolith| monolith.gossips);
        self.reported(&monolith, report, gossip, turn);
        self.count_rooms(&monolith);
    }

    pub(super) fn gossip(&mut self, link: LinkId, rooms: Vec<RoomReport>, turn: &mut Turn<'_>) {
        let Some(monolith) = self.sender(link) else { return };
        let Some(entry) = self.monoliths.get_mut(&monolith) else { return };
        entry.gossips += 1;
        entry.sync = Sync::Done;
        let gossip = entry.gossips;
        for report in rooms {
            self.reported(&monolith, report, gossip, turn);
        }
        // Reports and gossip travel on one link in order, so what it reported and no longer names has left it. What
        // only we believe to be there (placements, answers, creations) is not touched by an older gossip.
        let Some(entry) = self.monoliths.get(&monolith) else { return };
        let mut gone: Vec<RoomKey> =
            entry.copies.iter().filter(|(_, copy)| copy.gossip != gossip).map(|(key, _)| key.clone()).collect();
        // The order of effects must not depend on how a table hashes.
        gone.sort_unstable();
        for key in gone {
            self.remove_copy(&monolith, &key);
            if self.gone_while_settling(&key, &monolith, "unloaded", turn) {
                continue;
            }
            let leaving = self.is_leaving(&key, &monolith);
            if !leaving && !self.is_active_on(&key, &monolith) {
                continue;
            }
            self.tell_unloaded(&key, &monolith, None, turn);
            let released = self.release_or_close(&key, &monolith, (Cause::Lost, true), CloseCode::RESTART, turn);
            if leaving {
                self.unloading_over(&key, MoveEnd::LetGo, released, turn);
            } else {
                self.without_owner(&key, &monolith, "unloaded", released, turn);
            }
        }
        self.count_rooms(&monolith);
        self.unpark_all_if_synced(turn);
    }

    /// One room is loaded on one Monolith.
    fn reported(&mut self, monolith: &MonolithId, report: RoomReport, gossip: u64, turn: &mut Turn<'_>) {
        let (name, epoch) = (report.name.clone(), report.epoch);
        let key = name.key();
        let leaving = self.store_copy(monolith, report, gossip);
        let binding = Binding::Reported(epoch);
        let Some(room) = self.rooms.get_mut(key) else {
            if !leaving {
                let active = Active { monolith: monolith.clone(), binding };
                self.tell(key, What::Found { monolith: monolith.clone(), epoch }, turn);
                let key = name.key().clone();
                self.insert_room(name, State::Active(active), turn);
                if let Some(room) = self.rooms.get_mut(&key) {
                    room.spelled = true;
                }
            }
            return;
        };
        match &room.state {
            State::Active(active) if active.monolith == *monolith => {
                let known = active.binding == binding;
                (room.name, room.spelled) = (name.clone(), true);
                if !known {
                    self.rebind(key, binding, turn);
                    self.yield_to_older(key, monolith, epoch, turn);
                }
            }
            State::Unloading(unloading) if unloading.monolith == *monolith => {
                let known = unloading.epoch == epoch;
                (room.name, room.spelled) = (name.clone(), true);
                if !known {
                    self.loaded_again(key, epoch, turn);
                }
            }
            State::Settling(settling) if settling.monolith == *monolith => {
                (room.name, room.spelled) = (name.clone(), true);
                self.reported_while_settling(key, monolith, epoch, turn);
            }
            _ if leaving => {}
            State::Settling(_) => self.reported_while_settling(key, monolith, epoch, turn),
            State::Unloading(_) => self.loaded_elsewhere(key, monolith, epoch, turn),
            State::Parked { .. } | State::Placing(_) => {
                (room.name, room.spelled) = (name.clone(), true);
                self.activate(key, monolith, binding, turn);
                self.yield_to_older(key, monolith, epoch, turn);
            }
            State::Active(active) => {
                let (owner, owned) = (active.monolith.clone(), active.binding);
                self.duplicate(key, (&owner, owned), (monolith, epoch), turn);
            }
        }
    }

    pub(super) fn unloaded(
        &mut self,
        link: LinkId,
        key: &RoomKey,
        reason: UnloadReason,
        detached: &[(ClientId, Attachment)],
        turn: &mut Turn<'_>,
    ) {
        let Some(monolith) = self.sender(link) else { return };
        if reason == UnloadReason::Shutdown
            && let Some(entry) = self.monoliths.get_mut(&monolith)
            && !std::mem::replace(&mut entry.stops, true)
        {
            self.state_changed(&monolith, turn);
        }
        let copy = self.monoliths.get(&monolith).and_then(|monolith| monolith.copies.get(key));
        if reason == UnloadReason::Commanded && copy.is_some_and(|copy| !matches!(copy.asked, Some(Asked::Sent(_)))) {
            self.leave_rooms_to_others(&monolith);
        }
        self.remove_copy(&monolith, key);
        self.count_rooms(&monolith);
        if self.gone_while_settling(key, &monolith, "unloaded", turn) {
            return;
        }
        let leaving = self.is_leaving(key, &monolith);
        if !leaving && !self.is_active_on(key, &monolith) {
            return;
        }
        self.tell_unloaded(key, &monolith, Some(reason), turn);
        // Nobody wants a room that was unused or removed; one that was asked for or whose Monolith stops goes on elsewhere.
        let cause = match reason {
            UnloadReason::Keepalive | UnloadReason::Admin => None,
            UnloadReason::Commanded => Some(Cause::Move),
            UnloadReason::Shutdown | UnloadReason::Other => Some(Cause::Lost),
        };
        let cause = cause.filter(|_| self.settings.seamless.is_some());
        let mut released = Vec::new();
        for (client, attachment) in detached {
            let place = super::members::Place::Joined { link, attachment: *attachment };
            if self.clients.get(client).is_none_or(|entry| entry.room != *key || entry.place != place) {
                continue;
            }
            match cause {
                Some(cause) => {
                    self.release(*client, &monolith, cause, false, turn);
                    released.push(*client);
                }
                None => {
                    self.end_client(*client, Some(reason.close_code()), turn);
                }
            }
        }
        if cause.is_some() && reason == UnloadReason::Shutdown {
            // A join that crossed it is answered by nobody any more.
            released.extend(self.release_all(key, &monolith, Cause::Lost, true, turn));
        }
        if leaving {
            self.unloading_over(key, MoveEnd::LetGo, released, turn);
        } else {
            self.without_owner(key, &monolith, "unloaded", released, turn);
        }
    }

    /// The Monolith of a bound room no longer has it.
    fn without_owner(
        &mut self,
        key: &RoomKey,
        monolith: &MonolithId,
        why: &str,
        released: Vec<ClientId>,
        turn: &mut Turn<'_>,
    ) {
        if self.rooms.get(key).is_some_and(|room| room.members.is_empty()) {
            self.unbind(key, why, turn);
        } else {
            self.next_owner(key, monolith, why, released, turn);
        }
    }

    /// The Monolith of a room is gone, with everything that was joined there.
    pub(super) fn orphan(&mut self, key: &RoomKey, monolith: &MonolithId, turn: &mut Turn<'_>) {
        if self.gone_while_settling(key, monolith, "link_down", turn) {
            return;
        }
        self.tell_lost(key, turn);
        if let Some(State::Placing(_)) = self.rooms.get(key).map(|room| &room.state) {
            self.recall(key, turn);
            match self.best_copy(key) {
                Some((monolith, epoch)) => self.activate(key, &monolith, Binding::Reported(epoch), turn),
                None => self.next_attempt(key, "link_down", Some(Cause::Lost), turn),
            }
            return;
        }
        // The link has told its members before it said that it is gone.
        let released = self.release_or_close(key, monolith, (Cause::Lost, false), CloseCode::AWAY, turn);
        if self.is_leaving(key, monolith) {
            self.unloading_over(key, MoveEnd::SourceLost, released, turn);
        } else {
            self.without_owner(key, monolith, "link_down", released, turn);
        }
    }

    pub(super) fn copy_epoch(&self, monolith: &MonolithId, key: &RoomKey) -> Option<Epoch> {
        self.monoliths.get(monolith)?.copies.get(key).map(|copy| copy.epoch)
    }

    pub(super) fn is_active_on(&self, key: &RoomKey, monolith: &MonolithId) -> bool {
        self.rooms.get(key).and_then(super::Room::bound_to) == Some(monolith)
    }

    /// Writes down what a Monolith has. Returns whether that copy is on its way out.
    fn store_copy(&mut self, monolith: &MonolithId, report: RoomReport, gossip: u64) -> bool {
        let Some(entry) = self.monoliths.get_mut(monolith) else { return false };
        entry.users += u64::from(report.metadata.users);
        let RoomReport { name, epoch, metadata } = report;
        match entry.copies.get_mut(name.key()) {
            Some(copy) => {
                entry.users -= u64::from(copy.metadata.users);
                self.list_version += u64::from(copy.metadata != metadata);
                let same = copy.epoch == epoch;
                let (asked, contested) = if same { (copy.asked, copy.contested) } else { (None, None) };
                let since = if same { copy.since } else { self.now };
                let counted = match gossip > copy.gossip {
                    true => self.now,
                    false if same => copy.counted,
                    false => 0,
                };
                *copy = Copy { name, epoch, metadata, since, counted, gossip, asked, contested };
                copy.is_leaving()
            }
            None => {
                self.list_version += 1;
                let (key, since, counted) = (name.key().clone(), self.now, 0);
                entry
                    .copies
                    .insert(key, Copy { name, epoch, metadata, since, counted, gossip, asked: None, contested: None });
                false
            }
        }
    }

    fn remove_copy(&mut self, monolith: &MonolithId, key: &RoomKey) {
        let Some(entry) = self.monoliths.get_mut(monolith) else { return };
        let Some(copy) = entry.copies.remove(key) else { return };
        entry.users -= u64::from(copy.metadata.users);
        self.copy_gone(&copy);
        self.load_ended(key, monolith, copy.epoch);
        if let Some(room) = self.rooms.get_mut(key)
            && room.monolith() == Some(monolith)
        {
            room.metadata = Some(copy.metadata);
        }
        self.list_version += 1;
    }

    /// Brings the view in line with what a Monolith has.
    fn count_rooms(&mut self, monolith: &MonolithId) {
        let Some(entry) = self.monoliths.get(monolith) else { return };
        let rooms = u32::try_from(entry.copies.len()).unwrap_or(u32::MAX);
        let reported = entry.reported_users();
        let current = |row: &MonolithRow| row.rooms == rooms && row.users == reported.max(row.clients);
        if self.view.get(monolith).is_some_and(|row| !current(row)) {
            self.view.update(monolith, |row| {
                row.rooms = rooms;
                row.users = reported.max(row.clients);
            });
        }
    }

    /// Writes down how sure it is by now that a room is where it is bound.
    pub(super) fn rebind(&mut self, key: &RoomKey, binding: Binding, turn: &mut Turn<'_>) {
        let bound = self.change_room(key, turn, |room| {
            let State::Active(active) = &mut room.state else { return None };
            active.binding = binding;
            Some(active.monolith.clone())
        });
        if let Some(monolith) = bound.flatten() {
            self.tell_bound(key, &monolith, binding, None, turn);
        }
    }

    /// Whose link this is; events of a link that is not registered are ignored and counted.
    pub(super) fn sender(&mut self, link: LinkId) -> Option<MonolithId> {
        let sender = self.links.get(&link).cloned();
        if sender.is_none() {
            self.counters.stale_events += 1;
        }
        sender
    }
}
