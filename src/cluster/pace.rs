//! Holding and pacing: while no Monolith takes rooms, clients that knock wait before their upgrade; once one does again, they
//! are let in oldest first, at a pace per Monolith that also holds for those who come back meanwhile.

use std::collections::BTreeMap;

use super::handover::OFFER_AGAIN;
use super::room::{State, Waiter};
use super::{Cluster, Map, Turn};
use crate::model::event::{Effect, Micros};
use crate::model::{ClientId, MonolithId, RoomKey};

/// How long the pace holds after an outage, in microseconds. Clients that were turned away meanwhile come back with a pause of up to
/// some 20 s.
const LASTS: Micros = 30_000_000;
/// What a Monolith may get at once of what its pace allows, in microseconds of it.
const BURST: Micros = 250_000;
/// How often those who wait are looked at, in microseconds.
const LOOK: Micros = 20_000;

/// Who waits before its upgrade, and who may come in when.
#[derive(Default)]
pub(super) struct Pace {
    phase: Phase,
    /// The version of the view whose rows `serving` was made from.
    membership: Option<u64>,
    /// Those that take rooms.
    serving: Vec<MonolithId>,
    /// Those who wait, oldest first.
    line: BTreeMap<u64, (ClientId, RoomKey)>,
    /// Their places in the line.
    places: Map<ClientId, u64>,
    knocks: u64,
    buckets: BTreeMap<MonolithId, Bucket>,
    /// Who was let in and is on its way to a Monolith, and what it was charged to; `None`: to all, since its room was on none.
    /// Emptied when the pace ends, which bounds it.
    under_way: Map<ClientId, Option<MonolithId>>,
    next_look: Micros,
    /// Whether rooms are parked whose members wait for the pace alone.
    parked: bool,
    /// Whether a Monolith has gone since all was well that had clients: they come back.
    lost_clients: bool,
}

/// Whether there is an outage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// No Monolith takes rooms, as at the start.
    #[default]
    Outage,
    /// One does since this moment, and joins are paced.
    Recovering { since: Micros },
    /// Everybody comes in at once.
    Open,
}

/// What a Monolith has got of its pace (the generic cell rate algorithm: one number instead of tokens and the time of their
/// counting).
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// When all that it got would have been due, evenly spaced.
    due: Micros,
}

impl Bucket {
    fn has_room(self, now: Micros) -> bool {
        self.due < now.saturating_add(BURST)
    }

    fn charge(&mut self, interval: Micros, now: Micros) {
        self.due = self.due.max(now).saturating_add(interval);
    }

    fn refund(&mut self, interval: Micros) {
        self.due = self.due.saturating_sub(interval);
    }
}

impl Pace {
    /// Whether clients need not knock.
    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether no Monolith takes rooms.
    pub(super) fn is_outage(&self) -> bool {
        self.phase == Phase::Outage
    }

    /// Those who wait.
    pub(super) fn held(&self) -> usize {
        self.line.len()
    }

    /// When somebody may be let in, if that is a matter of time.
    pub(super) fn next_due(&self) -> Option<Micros> {
        let somebody_waits = self.parked || !self.line.is_empty();
        (matches!(self.phase, Phase::Recovering { .. }) && somebody_waits).then_some(self.next_look)
    }

    /// A Monolith has gone that had clients of ours.
    pub(super) fn lost_clients(&mut self) {
        self.lost_clients = true;
    }

    /// Between two joins of one Monolith. When the pace has held for its time it doubles every second, so that it ends without a
    /// rush whatever waits.
    fn interval(&self, per_second: u32, now: Micros) -> Micros {
        let interval = 1_000_000 / u64::from(per_second.max(1));
        let over = match self.phase {
            Phase::Recovering { since } => now.saturating_sub(since.saturating_add(LASTS)) / 1_000_000,
            Phase::Outage | Phase::Open => 0,
        };
        interval >> over.min(63)
    }

    fn leave_line(&mut self, client: ClientId) -> bool {
        self.places.remove(&client).is_some_and(|place| self.line.remove(&place).is_some())
    }

    /// Whether a join may come in that goes to this Monolith, or to any; if so it is charged.
    fn take(&mut self, client: ClientId, to: Option<MonolithId>, interval: Micros, now: Micros) -> bool {
        let free = match &to {
            Some(id) => self.buckets.get(id).is_none_or(|bucket| bucket.has_room(now)),
            // Nobody knows yet whom the policy will choose: so each of them has to have room.
            None => !self.serving.is_empty() && self.all_have_room(now),
        };
        if free {
            let charged = if to.is_some() { to.as_slice() } else { &self.serving };
            for id in charged {
                self.buckets.entry(id.clone()).or_default().charge(interval, now);
            }
            self.under_way.insert(client, to);
        }
        free
    }

    /// Whether every Monolith that takes rooms has room.
    fn all_have_room(&self, now: Micros) -> bool {
        self.serving.iter().all(|id| self.buckets.get(id).is_none_or(|bucket| bucket.has_room(now)))
    }

    /// A join goes out to a Monolith: it alone is charged.
    fn joined(&mut self, client: ClientId, monolith: &MonolithId, interval: Micros, now: Micros) {
        let charged = match self.under_way.remove(&client) {
            Some(Some(id)) => id == *monolith,
            Some(None) => {
                let others = self.buckets.iter_mut().filter(|(id, _)| *id != monolith);
                others.for_each(|(_, bucket)| bucket.refund(interval));
                self.buckets.contains_key(monolith)
            }
            None => false,
        };
        if !charged {
            self.buckets.entry(monolith.clone()).or_default().charge(interval, now);
        }
    }
}

impl Cluster {
    /// Whether clients may be upgraded without knocking: there is no outage, and the last one is over.
    pub fn is_open(&self) -> bool {
        self.pace.is_open()
    }

    /// How many clients wait before their upgrade.
    pub fn held(&self) -> usize {
        self.pace.held()
    }

    /// A client asks whether it may be upgraded.
    pub(super) fn knock(&mut self, client: ClientId, room: RoomKey, turn: &mut Turn<'_>) {
        // Who waits already goes first; in an outage they wait for something else.
        if (self.pace.line.is_empty() || self.pace.is_outage()) && self.may_come_in(client, &room) {
            self.enter(client, turn);
            return;
        }
        if self.pace.held() + self.waiting >= self.settings.pending_joins {
            self.counters.refused_full += 1;
            turn.emit(Effect::Enter { client, admitted: false });
            return;
        }
        self.counters.held += 1;
        self.pace.knocks += 1;
        let place = self.pace.knocks;
        self.pace.line.insert(place, (client, room));
        self.pace.places.insert(client, place);
    }

    fn enter(&mut self, client: ClientId, turn: &mut Turn<'_>) {
        self.counters.entered += 1;
        turn.emit(Effect::Enter { client, admitted: true });
    }

    /// A client that knocked has gone, or has waited for too long.
    pub(super) fn withdraw_knock(&mut self, client: ClientId) {
        self.pace.leave_line(client);
        self.pace.under_way.remove(&client);
    }

    fn may_come_in(&mut self, client: ClientId, room: &RoomKey) -> bool {
        let to = self.rooms.get(room).and_then(super::Room::monolith);
        match self.pace.phase {
            Phase::Open => true,
            Phase::Outage => self.rooms.get(room).is_some_and(|room| room.bound_to().is_some()),
            Phase::Recovering { .. } => {
                let to = to.cloned();
                let interval = self.pace.interval(self.settings.joins_per_second, self.now);
                self.pace.take(client, to, interval, self.now)
            }
        }
    }

    /// The join of a client goes out.
    pub(super) fn note_join(&mut self, client: ClientId, monolith: &MonolithId) {
        if matches!(self.pace.phase, Phase::Recovering { .. }) {
            let interval = self.pace.interval(self.settings.joins_per_second, self.now);
            self.pace.joined(client, monolith, interval, self.now);
        }
    }

    /// Brings the phase in line with who takes rooms, and lets in whose turn it is. Called after every event.
    pub(super) fn keep_pace(&mut self, turn: &mut Turn<'_>) {
        self.notice_who_serves(turn);
        match self.pace.phase {
            Phase::Recovering { since }
                if self.pace.line.is_empty() && !self.pace.parked && self.now >= since.saturating_add(LASTS) =>
            {
                self.all_is_well();
            }
            Phase::Outage | Phase::Recovering { .. } => {
                if self.now >= self.pace.next_look && (self.pace.parked || !self.pace.line.is_empty()) {
                    self.pace.next_look = self.now.saturating_add(LOOK);
                    // They were upgraded before the others came.
                    self.unpark_all_if_synced(turn);
                    self.let_in_whose_turn_it_is(turn);
                }
            }
            Phase::Open => {}
        }
    }

    /// Begins an outage or ends one, where somebody has started or stopped to take rooms.
    pub(super) fn notice_who_serves(&mut self, turn: &mut Turn<'_>) {
        if self.pace.membership == Some(self.view.membership()) {
            return;
        }
        self.return_somebody_if_nobody_serves(turn);
        self.pace.membership = Some(self.view.membership());
        let serving = self.view.rows().iter().filter(|row| row.serves());
        self.pace.serving = serving.map(|row| row.id.clone()).collect();
        let view = &self.view;
        self.pace.buckets.retain(|id, _| view.get(id).is_some());
        match (self.pace.phase, self.pace.serving.is_empty()) {
            (Phase::Outage, false) => {
                if self.pace.line.is_empty() && !self.pace.lost_clients {
                    self.all_is_well();
                } else {
                    self.pace.phase = Phase::Recovering { since: self.now };
                    self.pace.next_look = self.now;
                }
                self.unpark_all_if_synced(turn);
            }
            (Phase::Recovering { .. } | Phase::Open, true) => {
                self.pace.phase = Phase::Outage;
                self.pace.parked = false;
                self.pace.under_way.clear();
                self.pace.buckets.clear();
            }
            (Phase::Outage, true) | (Phase::Recovering { .. } | Phase::Open, false) => {}
        }
    }

    fn all_is_well(&mut self) {
        self.pace.phase = Phase::Open;
        self.pace.lost_clients = false;
        self.pace.parked = false;
        self.pace.under_way = Map::default();
        self.pace.buckets.clear();
    }

    /// Places parked rooms in this order: all of them at once, or after an outage as many as the pace allows, with everybody who waits in them.
    pub(super) fn unpark_at_pace(&mut self, rooms: Vec<RoomKey>, turn: &mut Turn<'_>) {
        self.pace.parked = false;
        for room in rooms {
            let paced = matches!(self.pace.phase, Phase::Recovering { .. });
            if paced && !self.pace.all_have_room(self.now) {
                self.pace.parked = true;
                return;
            }
            self.unpark(&room, turn);
            if paced {
                self.charge_members(&room);
            }
        }
    }

    /// A parked room's deadline has passed. While joins are paced that is no reason to let it in: those that an outage has
    /// parked together are due together.
    pub(super) fn parked_timed_out(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        if !matches!(self.pace.phase, Phase::Recovering { .. }) {
            self.unpark(key, turn);
            return;
        }
        self.pace.parked = true;
        let later = self.now.saturating_add(OFFER_AGAIN);
        self.change_room(key, turn, |room| {
            if let State::Parked { deadline, .. } = &mut room.state {
                *deadline = later;
            }
        });
    }

    /// The members of a room that has just been placed: whoever still waits is going to the same Monolith.
    fn charge_members(&mut self, room: &RoomKey) {
        let interval = self.pace.interval(self.settings.joins_per_second, self.now);
        let Some(room) = self.rooms.get(room) else { return };
        let Some(monolith) = room.monolith() else { return };
        let waits = |client: &&ClientId| self.still_waits(Waiter::Client(**client));
        let waiting: Vec<ClientId> = room.members.iter().filter(waits).copied().collect();
        let bucket = self.pace.buckets.entry(monolith.clone()).or_default();
        for client in waiting {
            // Whoever knocked has been charged, though nobody knew to whom.
            if !self.pace.under_way.contains_key(&client) {
                bucket.charge(interval, self.now);
                self.pace.under_way.insert(client, Some(monolith.clone()));
            }
        }
    }

    /// Goes through the line from its oldest end. Whoever has to wait for its own Monolith holds up nobody else's.
    fn let_in_whose_turn_it_is(&mut self, turn: &mut Turn<'_>) {
        let mut after = 0;
        while let Some((place, (client, room))) = self.pace.line.range(after..).next() {
            let (place, client, room) = (*place, *client, room.clone());
            after = place + 1;
            if self.may_come_in(client, &room) {
                self.pace.leave_line(client);
                self.enter(client, turn);
            } else if !self.somebody_has_room() {
                return;
            }
        }
    }

    /// Whether anybody at all could come in now. In an outage only those whose room is bound may, and they seldom wait.
    fn somebody_has_room(&self) -> bool {
        match self.pace.phase {
            Phase::Open => true,
            Phase::Outage => false,
            Phase::Recovering { .. } => {
                let known = |id: &MonolithId| self.pace.buckets.get(id).is_none_or(|bucket| bucket.has_room(self.now));
                self.monoliths.keys().any(known)
            }
        }
    }

    /// What is wrong with the line, if anything is.
    pub(super) fn check_line(&self) -> Option<String> {
        let pace = &self.pace;
        if pace.is_open() && pace.held() > 0 {
            return Some(format!("{} wait before their upgrade, and nothing keeps them", pace.held()));
        }
        let serving = self.view.rows().iter().filter(|row| row.serves()).count();
        if pace.serving.len() != serving || pace.is_outage() != (serving == 0) {
            return Some(format!("{serving} Monoliths take rooms, but the phase is {:?}", pace.phase));
        }
        (pace.places.len() != pace.line.len()).then(|| "the line and its places differ".to_string())
    }
}
