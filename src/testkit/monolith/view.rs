//! What a test may ask about the state of a simulated Monolith.

use super::state::State;

impl State {
    /// The ids of a room's members in the order of their joins; empty when it is not loaded.
    pub fn members(&self, room: &str) -> Vec<String> {
        let members = self.room(room).map(|room| room.members.as_slice()).unwrap_or_default();
        members.iter().map(|member| member.client.clone()).collect()
    }

    /// How many members all rooms have together.
    pub fn client_count(&self) -> usize {
        self.clients.values().map(Vec::len).sum()
    }

    /// Clients of unloaded rooms that were neither kicked nor have left.
    pub fn ghosts(&self) -> Vec<String> {
        self.ghosts.keys().cloned().collect()
    }

    /// The names of the loaded rooms, sorted.
    pub fn rooms(&self) -> Vec<String> {
        let mut names: Vec<_> = self.rooms.values().map(|room| room.info.name.clone()).collect();
        names.sort();
        names
    }

    /// The epoch of a loaded room.
    pub fn room_epoch(&self, room: &str) -> Option<u32> {
        self.room(room).map(|room| room.epoch)
    }

    /// How many loads there were, of all rooms or of one.
    pub fn loads(&self, room: Option<&str>) -> u64 {
        match room {
            Some(room) => self.loads.get(&room.to_ascii_lowercase()).copied().unwrap_or_default(),
            None => self.loads_total,
        }
    }

    /// How many loads wait because they are frozen.
    pub fn frozen_loads(&self) -> usize {
        self.frozen.len()
    }

    /// How many links have introduced themselves and are open.
    pub fn link_count(&self) -> usize {
        self.links.iter().filter(|link| link.balancer.is_some()).count()
    }

    /// How many links were ever accepted.
    pub fn links_accepted(&self) -> u64 {
        self.links_accepted
    }

    /// How many `join` frames came.
    pub fn join_count(&self) -> u64 {
        self.joins.total()
    }

    /// How many `leave` frames came.
    pub fn leave_count(&self) -> u64 {
        self.leaves.total()
    }

    /// How many `unload` frames came.
    pub fn unload_count(&self) -> u64 {
        self.unloads.total()
    }

    /// How many frames came in all.
    pub fn frame_count(&self) -> u64 {
        self.frames.total()
    }

    /// How many HTTP requests came.
    pub fn http_count(&self) -> u64 {
        self.http.total()
    }

    /// Why it died, if something killed it from the link.
    pub fn died(&self) -> Option<&str> {
        self.died.as_deref()
    }
}
