//! Who is in a room: how clients enter, change, are kicked and leave, and what the others hear of it.

use std::sync::Arc;

use serde_json::Value;

use super::frames;
use super::records::LinkNumber;
use super::state::{Member, State};

impl State {
    /// A client enters a loaded room and gets the six messages that the real server answers with.
    pub(super) fn admit(&mut self, link: LinkNumber, room: &str, client: String, token: &str) {
        if !self.links.iter().any(|known| known.number == link) {
            return;
        }
        let Some(room) = self.rooms.get_mut(room.to_ascii_lowercase().as_str()) else { return };
        let name = username(token);
        let user = frames::user(&client, &name, "none");
        let member = Arc::new(Member { client, name, user, link, room: room.key.clone() });
        room.members.push(member.clone());
        let sync = frames::full_sync(&room.info);
        self.clients.entry(member.client.clone()).or_default().push(member.clone());
        if !self.knobs.answer_joins {
            return;
        }
        self.unicast(&member, &sync);
        self.broadcast(&member.room, &frames::event_joined(&member.client, &member.name, &member.user));
        self.broadcast(&member.room, frames::POSITION_SYNC);
        self.broadcast(&member.room, &frames::user_update(&member.user));
        let limit = self.knobs.user_list_limit;
        let Some(room) = self.rooms.get(&member.room) else { return };
        let list = frames::user_list(room.members.iter().rev().take(limit).rev().map(|member| member.user.as_str()));
        self.unicast(&member, &list);
        self.unicast(&member, &frames::you(&member.client));
    }

    /// The oldest membership of a client id.
    pub(super) fn member(&self, client: &str) -> Option<Arc<Member>> {
        self.clients.get(client)?.first().cloned()
    }

    /// Takes a member out and tells the others.
    pub(super) fn remove_member(&mut self, member: &Arc<Member>) {
        self.forget_client(member);
        let Some(room) = self.rooms.get_mut(&member.room) else { return };
        room.members.retain(|other| !Arc::ptr_eq(other, member));
        self.broadcast(&member.room, &frames::event_left(&member.user));
        self.broadcast(&member.room, &frames::user_remove(&member.client));
        self.begin_idle(&member.room);
    }

    pub(super) fn forget_client(&mut self, member: &Arc<Member>) {
        if let Some(memberships) = self.clients.get_mut(&member.client) {
            memberships.retain(|other| !Arc::ptr_eq(other, member));
            if memberships.is_empty() {
                self.clients.remove(&member.client);
            }
        }
    }

    /// Shows a member in another status; the new form takes the place of the old one.
    pub(super) fn set_status(&mut self, member: &Arc<Member>, status: &str) {
        let changed = Arc::new(Member {
            client: member.client.clone(),
            name: member.name.clone(),
            user: frames::user(&member.client, &member.name, status),
            link: member.link,
            room: member.room.clone(),
        });
        let room = self.rooms.get_mut(&member.room).map(|room| &mut room.members);
        for list in self.clients.get_mut(&member.client).into_iter().chain(room) {
            for slot in list.iter_mut().filter(|slot| Arc::ptr_eq(slot, member)) {
                *slot = changed.clone();
            }
        }
        self.broadcast(&member.room, &frames::user_update(&changed.user));
    }

    pub(super) fn kick(&mut self, member: &Arc<Member>, reason: &Value) {
        self.send(member.link, frames::kick(&member.client, reason));
        self.remove_member(member);
    }

    /// `false` if nobody of that id was here.
    pub(super) fn leave(&mut self, client: &str) -> bool {
        match self.member(client) {
            Some(member) => {
                self.remove_member(&member);
                true
            }
            None => self.ghosts.remove(client).is_some(),
        }
    }
}

/// A name that looks like one; the same token always has the same.
fn username(token: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    token.hash(&mut hasher);
    format!("guest_{:08x}", hasher.finish() as u32)
}
