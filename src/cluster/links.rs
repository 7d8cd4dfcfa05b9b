//! Monoliths that come and go, and how long placement waits for what they have.

use std::collections::HashSet;

use super::monolith::{Monolith, Sync};
use super::room::{Room, State};
use super::{Cluster, Endpoint, Map, SYNC_TIMEOUT, Turn};
use crate::model::event::{Effect, Micros};
use crate::model::policy::MonolithRow;
use crate::model::{LinkId, MonolithId, Region, RoomKey};

/// The first moments of a balancer: rooms may be loaded on Monoliths that it has not heard yet.
pub(super) enum WarmUp {
    /// Discovery has not spoken yet.
    Undiscovered { until: Micros },
    /// It has not spoken in time. Nobody waits for it any more, but for those that it names first.
    Overdue,
    /// These have neither been linked nor failed to answer.
    Waiting { endpoints: HashSet<Endpoint>, until: Micros },
    /// Everyone has, or it took too long.
    Done,
}

impl WarmUp {
    pub(super) fn new(until: Micros) -> Self {
        Self::Undiscovered { until }
    }

    fn deadline(&self) -> Option<Micros> {
        match self {
            Self::Undiscovered { until } | Self::Waiting { until, .. } => Some(*until),
            Self::Overdue | Self::Done => None,
        }
    }

    /// Nobody waits any longer.
    fn expire(&mut self) {
        *self = match self {
            Self::Undiscovered { .. } | Self::Overdue => Self::Overdue,
            Self::Waiting { .. } | Self::Done => Self::Done,
        };
    }

    /// An endpoint is linked, or has failed to answer.
    pub(super) fn settle(&mut self, endpoint: &str) {
        if let Self::Waiting { endpoints, .. } = self {
            endpoints.remove(endpoint);
            if endpoints.is_empty() {
                *self = Self::Done;
            }
        }
    }
}

impl Cluster {
    pub(super) fn discovered(&mut self, endpoints: Vec<Endpoint>, turn: &mut Turn<'_>) {
        match &mut self.warm_up {
            first @ (WarmUp::Undiscovered { .. } | WarmUp::Overdue) => {
                let until = first.deadline().unwrap_or(self.now.saturating_add(self.settings.load_timeout));
                let linked: HashSet<&Endpoint> = self.monoliths.values().map(|monolith| &monolith.endpoint).collect();
                let endpoints: HashSet<Endpoint> =
                    endpoints.into_iter().filter(|endpoint| !linked.contains(endpoint)).collect();
                self.warm_up = if endpoints.is_empty() { WarmUp::Done } else { WarmUp::Waiting { endpoints, until } };
            }
            WarmUp::Waiting { endpoints: waiting, .. } => {
                waiting.retain(|endpoint| endpoints.contains(endpoint));
                if waiting.is_empty() {
                    self.warm_up = WarmUp::Done;
                }
            }
            WarmUp::Done => {}
        }
        self.unpark_all_if_synced(turn);
    }

    pub(super) fn dial_failed(&mut self, endpoint: &Endpoint, turn: &mut Turn<'_>) {
        self.warm_up.settle(endpoint);
        self.unpark_all_if_synced(turn);
    }

    pub(super) fn link_up(
        &mut self,
        link: LinkId,
        endpoint: Endpoint,
        id: MonolithId,
        region: Region,
        turn: &mut Turn<'_>,
    ) {
        if self.monoliths.contains_key(&id) {
            // Two endpoints lead to one Monolith: the older link stays.
            self.warm_up.settle(&endpoint);
            turn.emit(Effect::RefuseLink { link });
            self.unpark_all_if_synced(turn);
            return;
        }
        // From here on the Monolith's own time to send its gossip counts: more at the start, when all rooms are unknown.
        let sync_until = self.warm_up.deadline().max(Some(self.now.saturating_add(SYNC_TIMEOUT)));
        self.warm_up.settle(&endpoint);
        self.links.insert(link, id.clone());
        let weight = self.settings.weights.of(id.as_str(), &endpoint, region.as_str());
        let drained = self.drained.contains(&id);
        self.view.insert(MonolithRow { id: id.clone(), region: region.clone(), weight, ..MonolithRow::default() });
        let monolith = Monolith {
            link,
            region,
            endpoint,
            serving_since: self.now,
            sync: sync_until.map_or(Sync::Done, |until| Sync::Waiting { until }),
            copies: Map::default(),
            gossips: 0,
            users: 0,
            shunned: 0,
            suspect: false,
            unlisted: false,
            drained,
            stops: false,
            drain: None,
        };
        self.monoliths.insert(id.clone(), monolith);
        turn.emit(Effect::AcceptLink { link });
        if drained {
            self.state_changed(&id, turn);
        }
        self.judge_newcomer(&id, turn);
    }

    /// The weights of all Monoliths as the settings have them by now.
    pub(super) fn weigh(&mut self) {
        for (id, monolith) in &self.monoliths {
            let weight = self.settings.weights.of(id.as_str(), &monolith.endpoint, monolith.region.as_str());
            if self.view.get(id).is_some_and(|row| row.weight.to_bits() != weight.to_bits()) {
                self.view.update(id, |row| row.weight = weight);
            }
        }
    }

    pub(super) fn link_down(&mut self, link: LinkId, turn: &mut Turn<'_>) {
        let Some(id) = self.links.remove(&link) else { return };
        let gone = self.monoliths.remove(&id);
        // One that was about to leave has not broken off.
        if let Some(gone) = gone.as_ref().filter(|gone| !gone.is_leaving()) {
            self.note_broken_link(&gone.endpoint);
        }
        if self.view.remove(&id).is_some_and(|row| row.clients > 0) {
            self.pace.lost_clients();
        }
        // Whoever has to be placed anew waits, if it was the last one.
        self.notice_who_serves(turn);
        self.list_version += 1;
        // What it created without a name is no longer booked as pending; a later report will tell of the room.
        self.requests.retain(|_, request| request.room.is_some() || request.sent_to.as_ref() != Some(&id));
        let mut orphans: Vec<RoomKey> =
            self.rooms.iter().filter(|(_, room)| room.concerns(&id)).map(|(key, _)| key.clone()).collect();
        // The order of effects must not depend on how a table hashes.
        orphans.sort_unstable();
        self.moves.lost(&id);
        let mut copies = gone.map(|gone| gone.copies).unwrap_or_default();
        for key in orphans {
            if let (Some(room), Some(copy)) = (self.rooms.get_mut(&key), copies.remove(&key)) {
                room.metadata = Some(copy.metadata);
            }
            self.orphan(&key, &id, turn);
        }
        self.unpark_all_if_synced(turn);
    }

    /// Whether every Monolith that discovery listed first has said what it has, or has had its time to.
    pub fn has_warmed_up(&self) -> bool {
        self.sync_deadline().is_none_or(|until| until <= self.now)
    }

    /// Whether placement waits: some Monolith may have a room that nobody has reported, or none takes rooms.
    pub(super) fn must_wait(&self) -> bool {
        self.pace.is_outage() || !self.has_warmed_up()
    }

    /// Until when a room waits that cannot be placed yet.
    pub(super) fn parked_until(&self) -> Micros {
        let outage = self.pace.is_outage().then(|| self.now.saturating_add(self.settings.hold));
        self.sync_deadline().max(outage).unwrap_or(self.now)
    }

    /// Until when placement waits at most.
    pub(super) fn sync_deadline(&self) -> Option<Micros> {
        self.sync_deadlines().max()
    }

    /// When the next of those that placement waits for has had its time.
    pub(super) fn next_sync_deadline(&self) -> Option<Micros> {
        self.sync_deadlines().min()
    }

    fn sync_deadlines(&self) -> impl Iterator<Item = Micros> {
        let waiting = self.monoliths.values().filter_map(|monolith| match monolith.sync {
            Sync::Waiting { until } => Some(until),
            Sync::Done => None,
        });
        waiting.chain(self.warm_up.deadline())
    }

    /// Nobody waits longer than promised for a Monolith that does not say what it has, or cannot be reached.
    pub(super) fn expire_sync(&mut self, turn: &mut Turn<'_>) {
        if self.next_sync_deadline().is_none_or(|until| until > self.now) {
            return;
        }
        if self.warm_up.deadline().is_some_and(|until| until <= self.now) {
            self.warm_up.expire();
        }
        for monolith in self.monoliths.values_mut() {
            if matches!(monolith.sync, Sync::Waiting { until } if until <= self.now) {
                monolith.sync = Sync::Done;
            }
        }
        self.unpark_all_if_synced(turn);
    }

    pub(super) fn unpark_all_if_synced(&mut self, turn: &mut Turn<'_>) {
        if self.must_wait() {
            return;
        }
        // Every parked room has a timer, so this walks no more than the rooms that are unconfirmed.
        let parked = |key: &&RoomKey| matches!(self.rooms.get(*key), Some(Room { state: State::Parked { .. }, .. }));
        let rooms = self.timers.iter().map(|(_, key)| key).filter(parked);
        let mut rooms: Vec<(Option<u64>, RoomKey)> = rooms.map(|key| (self.first_arrival(key), key.clone())).collect();
        // Whoever waits has come in some order, which neither their deadlines nor the names of their rooms tell.
        rooms.sort_unstable();
        self.unpark_at_pace(rooms.into_iter().map(|(_, key)| key).collect(), turn);
    }
}
