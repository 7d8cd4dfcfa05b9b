//! Rooms that their Monolith has been asked to let go, and that it may not have read yet: what is said behind such an `unload`
//! goes to a room that is no more. The cluster waits for `timeouts.load` and then takes the room to stay; a Monolith that
//! stalls for longer lets it go all the same. So until a ping behind the `unload` is answered, clients that were to go
//! on are held a little longer.

use std::collections::HashMap;

use crate::model::{Attachment, ClientId, Hashing, RoomKey};

/// Set in the numbers of these pings, which neither heartbeats nor those behind a `leave` have.
const MARK: u64 = 1 << 62;

/// The rooms of one link whose `unload` may be unread.
#[derive(Debug, Default)]
pub(super) struct Unread {
    rooms: HashMap<RoomKey, Asked, Hashing>,
    sent: u64,
}

#[derive(Debug)]
struct Asked {
    ping: u64,
    /// Who is to go on once it has been read, and the room is still there.
    waiting: Vec<(ClientId, Attachment)>,
}

impl Unread {
    /// The `unload` of a room is being queued. Returns the number of the ping that has to follow it.
    pub(super) fn asked(&mut self, room: RoomKey) -> u64 {
        self.sent += 1;
        let ping = MARK | self.sent;
        self.rooms.entry(room).or_insert_with(|| Asked { ping, waiting: Vec::new() }).ping = ping;
        ping
    }

    /// A client in this room may go on. `true` if it has to wait for that.
    pub(super) fn holds(&mut self, room: &RoomKey, client: ClientId, attachment: Attachment) -> bool {
        // Nearly always there is none.
        let asked = if self.rooms.is_empty() { None } else { self.rooms.get_mut(room) };
        asked.map(|asked| asked.waiting.push((client, attachment))).is_some()
    }

    /// The room has gone.
    pub(super) fn unloaded(&mut self, room: &RoomKey) {
        self.rooms.remove(room);
    }

    /// A pong came. Returns who may go on: the Monolith has read the `unload`, and kept the room.
    pub(super) fn pong(&mut self, payload: &[u8]) -> Vec<(ClientId, Attachment)> {
        let Ok(number) = payload.try_into().map(u64::from_be_bytes) else { return Vec::new() };
        if number & MARK == 0 || self.rooms.is_empty() {
            return Vec::new();
        }
        // Whoever answers only the latest of several pings has read them all.
        self.rooms.extract_if(|_, asked| asked.ping <= number).flat_map(|(_, asked)| asked.waiting).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_go_on_waits_until_the_unload_has_been_read() {
        let (room, other) = (RoomKey::of("room"), RoomKey::of("other"));
        let (client, attachment) = (ClientId::from_u128(1 << 64), Attachment(1));
        let mut unread = Unread::default();
        let ping = unread.asked(room.clone());
        assert!(unread.holds(&room, client, attachment) && !unread.holds(&other, client, attachment));
        assert_eq!(unread.pong(&7_u64.to_be_bytes()), [], "of a heartbeat");
        assert_eq!(unread.pong(b"odd"), []);
        assert_eq!(unread.pong(&ping.to_be_bytes()), [(client, attachment)]);
        assert!(!unread.holds(&room, client, attachment), "it has been read");
        let ping = unread.asked(room.clone());
        assert!(unread.holds(&room, client, attachment));
        unread.unloaded(&room);
        assert_eq!(unread.pong(&ping.to_be_bytes()), [], "it has gone");
    }
}
