//! What the admin API and the room list read: copies of what a moment held.

use std::sync::Arc;

use serde::Serialize;

use super::{Cluster, DrainSummary, RoomStatus};
use crate::model::policy::MonolithState;
use crate::model::wire::Metadata;
use crate::model::{ClientId, Epoch, LinkId, MonolithId, Region, RoomKey, RoomName};

/// One room, for people.
#[derive(Clone, Debug, Serialize)]
pub struct RoomSummary {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: RoomStatus,
    /// Its Monolith, if one was chosen.
    pub monolith: Option<MonolithId>,
    /// The number of its load, once reported.
    pub epoch: Option<Epoch>,
    /// Clients of this balancer that wait for it or are joined to it.
    pub clients: usize,
}

/// One Monolith, for people.
#[derive(Clone, Debug, Serialize)]
pub struct MonolithSummary {
    /// Its id.
    pub id: MonolithId,
    /// Its region.
    pub region: Region,
    /// `host:port` of its link.
    pub endpoint: Arc<str>,
    /// What it is up to.
    pub state: MonolithState,
    /// Rooms that it reports loaded.
    pub rooms: u32,
    /// Clients of this balancer on it.
    pub clients: u32,
    /// Placements on it that nothing has confirmed.
    pub pending: u32,
    /// Round trip of the last heartbeat.
    pub rtt_ms: f64,
    /// Seconds since it was linked, or came back from an ejection.
    pub age_s: f64,
    /// How far it is with losing its rooms, if it is to lose them.
    pub drain: Option<DrainSummary>,
}

/// A Monolith in `/api/state`.
#[derive(Debug, Serialize)]
pub struct StateMonolith {
    /// Its id.
    pub id: MonolithId,
    /// Its region.
    pub region: Region,
    /// Its rooms.
    pub rooms: Vec<StateRoom>,
}

/// A room in `/api/state`.
#[derive(Debug, Serialize)]
pub struct StateRoom {
    /// Its name.
    pub name: String,
    /// Its clients.
    pub clients: Vec<StateClient>,
}

/// A client in `/api/state`.
#[derive(Debug, Serialize)]
pub struct StateClient {
    /// Its id.
    pub id: ClientId,
    /// The region at whose edge it arrived.
    pub edge_region: Option<Region>,
}

impl Cluster {
    /// One room, by name in any spelling.
    pub fn room(&self, key: &RoomKey) -> Option<RoomSummary> {
        self.rooms.get(key).map(summary)
    }

    /// Up to `limit` rooms (at least one) after `cursor` in the order of their names, and the cursor of the next page.
    pub fn rooms(&self, cursor: Option<&RoomKey>, limit: usize) -> (Vec<RoomSummary>, Option<RoomKey>) {
        let limit = limit.max(1);
        let mut keys: Vec<&RoomKey> =
            self.rooms.keys().filter(|key| cursor.is_none_or(|cursor| *key > cursor)).collect();
        if keys.len() > limit {
            keys.select_nth_unstable(limit);
            keys.truncate(limit + 1);
        }
        keys.sort_unstable();
        let next = (keys.len() > limit).then(|| keys.get(limit - 1).map(|key| (*key).clone())).flatten();
        let page = keys.iter().take(limit).filter_map(|key| self.rooms.get(*key)).map(summary).collect();
        (page, next)
    }

    /// How many rooms there are, and how many clients.
    pub fn size(&self) -> (usize, usize) {
        (self.rooms.len(), self.clients.len())
    }

    /// How many clients and requests wait for a room.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many clients and requests are at a Monolith that has not answered for their room.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Changes whenever a Monolith has answered for a room that somebody waits for, be it with a no. A join that goes out
    /// is no answer: one Monolith after the other may take joins and say nothing.
    pub fn answers(&self) -> u64 {
        self.answers
    }

    /// All Monoliths, in the order of their ids.
    pub fn monoliths(&self) -> Vec<MonolithSummary> {
        self.monoliths
            .iter()
            .filter_map(|(id, monolith)| {
                let row = self.view.get(id)?;
                Some(MonolithSummary {
                    id: id.clone(),
                    region: monolith.region.clone(),
                    endpoint: monolith.endpoint.clone(),
                    state: row.state,
                    rooms: row.rooms,
                    clients: row.clients,
                    pending: row.pending,
                    rtt_ms: row.rtt_ms,
                    age_s: self.now.saturating_sub(monolith.serving_since) as f64 / 1e6,
                    drain: self.drain_summary(id),
                })
            })
            .collect()
    }

    /// The link of every Monolith, with the moment since which it has taken rooms.
    pub fn links(&self) -> impl Iterator<Item = (&MonolithId, LinkId, u64)> {
        self.monoliths.iter().map(|(id, monolith)| (id, monolith.link, monolith.serving_since))
    }

    /// The public rooms with how many of our own clients each has, in no order.
    pub fn public_rooms(&self) -> Vec<(RoomName, Arc<Metadata>, u32)> {
        let mut rooms = Vec::new();
        for (key, room) in &self.rooms {
            let copy = room.owner().and_then(|id| self.monoliths.get(id)).and_then(|m| m.copies.get(key));
            if let Some(copy) = copy.filter(|copy| copy.metadata.public) {
                let clients = u32::try_from(room.members.len()).unwrap_or(u32::MAX);
                rooms.push((copy.name.clone(), copy.metadata.clone(), clients));
            }
        }
        rooms
    }

    /// The rooms with clients that no Monolith has or is to have yet, for `/api/state`.
    pub fn rooms_without_monolith(&self) -> Vec<StateRoom> {
        let rooms = self.rooms.values().filter(|room| room.monolith().is_none() && !room.members.is_empty());
        let mut rooms: Vec<StateRoom> = rooms.map(|room| self.state_room(room)).collect();
        rooms.sort_by(|a, b| a.name.cmp(&b.name));
        rooms
    }

    fn state_room(&self, room: &super::Room) -> StateRoom {
        let clients = room.members.iter().map(|id| StateClient {
            id: *id,
            edge_region: self.clients.get(id).and_then(|client| client.region.clone()),
        });
        StateRoom { name: room.name.spelling().to_string(), clients: clients.collect() }
    }

    /// Everything that `/api/state` shows of Monoliths.
    pub fn state(&self) -> Vec<StateMonolith> {
        let mut by_monolith: std::collections::BTreeMap<&MonolithId, Vec<StateRoom>> =
            self.monoliths.keys().map(|id| (id, Vec::new())).collect();
        for room in self.rooms.values() {
            let Some(rooms) = room.monolith().and_then(|id| by_monolith.get_mut(id)) else { continue };
            rooms.push(self.state_room(room));
        }
        by_monolith
            .into_iter()
            .filter_map(|(id, mut rooms)| {
                rooms.sort_by(|a, b| a.name.cmp(&b.name));
                let region = self.monoliths.get(id)?.region.clone();
                Some(StateMonolith { id: id.clone(), region, rooms })
            })
            .collect()
    }
}

fn summary(room: &super::Room) -> RoomSummary {
    RoomSummary {
        name: room.name.spelling().to_string(),
        state: room.status(),
        monolith: room.monolith().cloned(),
        epoch: match &room.state {
            super::room::State::Active(active) => active.binding.epoch(),
            super::room::State::Unloading(unloading) => Some(unloading.epoch),
            super::room::State::Settling(settling) => Some(settling.epoch),
            super::room::State::Parked { .. } | super::room::State::Placing(_) => None,
        },
        clients: room.members.len(),
    }
}
