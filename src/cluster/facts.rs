//! What is known of one room at this moment, as policies see it.

use std::sync::Arc;

use super::Cluster;
use crate::model::policy::CallRoom;
use crate::model::wire::Metadata;
use crate::model::{Region, RoomKey};

impl Cluster {
    /// A room as `admit` sees it, whether anybody has it or not. `region` is the edge region of the client that asks,
    /// who would be the first member of a room that has none.
    pub fn room_facts(&self, key: &RoomKey, region: Option<Region>) -> CallRoom {
        let mut facts = CallRoom { name: Some(key.as_str().into()), attempt: 1, ..CallRoom::default() };
        match self.rooms.get(key) {
            Some(room) => {
                facts.region = room.region.clone().or(region);
                facts.clients = u32::try_from(room.members.len()).unwrap_or(u32::MAX);
                facts.regions = room.regions.clone();
                facts.previous = room.previous.clone();
                facts.owner = room.bound_to().cloned();
                facts.bound = facts.owner.is_some();
            }
            None => {
                facts.region = region;
                facts.previous = self.departed.of(key).map(|(previous, _)| previous.clone());
            }
        }
        facts.metadata = self.metadata_value(key);
        facts
    }

    /// A room's metadata as its Monolith reported it last, or as its last one did; none before any report.
    pub(super) fn metadata_value(&self, key: &RoomKey) -> Option<serde_json::Value> {
        // What a Monolith sends is an object, or its frame would have been refused.
        serde_json::from_str(self.metadata_of(key)?.raw()).ok()
    }

    fn metadata_of(&self, key: &RoomKey) -> Option<Arc<Metadata>> {
        let Some(room) = self.rooms.get(key) else { return self.departed.of(key)?.1.clone() };
        let copy = room.monolith().and_then(|id| self.monoliths.get(id)).and_then(|m| m.copies.get(key));
        copy.map(|copy| copy.metadata.clone()).or_else(|| room.metadata.clone())
    }
}
