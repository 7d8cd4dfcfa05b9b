//! Who may speak, and when: nothing goes to a Monolith behind a join that may meet an `unload`, or behind an `unload`
//! itself, where it would be lost.

use tokio::time::Instant;

use super::super::members::Answer;
use super::Session;
use crate::model::event::Event;
use crate::model::{Attachment, ClientId};

impl Session {
    /// A member has heard its first frame: it is in, so its own frames may go. The control thread, which lets everybody else
    /// in, comes later.
    pub(super) fn answered(&mut self, client: ClientId, attachment: Attachment) {
        self.events.push_back(Event::Answered { link: self.link, client, attachment });
        // One that was told to hold waits for what becomes of its room: the answer says nothing about that.
        if self.members.get_mut(client.member(attachment)).is_some_and(|member| !member.held) {
            self.speaks(client, attachment);
        }
    }

    /// The room of a member is up, or stays after all.
    pub(super) fn let_on(&mut self, client: ClientId, attachment: Attachment) {
        if let Some(member) = self.members.get_mut(client.member(attachment)) {
            member.held = false;
        }
        self.open(client, attachment);
    }

    /// Lets a member's own frames go: at once, or with the answer to its join if that may meet an `unload`.
    pub(super) fn open(&mut self, client: ClientId, attachment: Attachment) {
        let id = client.member(attachment);
        let loaded = self.members.room_of(id).is_some_and(|room| self.loaded.contains_key(room));
        let Some(member) = self.members.get_mut(id) else { return };
        if member.crossed && !loaded {
            // That was said of the load that has gone.
            return;
        }
        if member.is_rejoining() && !member.answer.is_over() {
            member.report = true;
            self.rejoining.push(Instant::now() + self.join_answer, client, attachment);
            return;
        }
        self.speaks(client, attachment);
    }

    /// Lets a member's own frames go, once nothing is before them that would make them be lost.
    fn speaks(&mut self, client: ClientId, attachment: Attachment) {
        let id = client.member(attachment);
        let held = self.members.room_of(id).is_some_and(|room| self.unread.holds(room, client, attachment));
        if let Some(member) = self.members.get_mut(id).filter(|_| !held) {
            member.inbox.open(attachment);
        }
    }

    /// Lets those speak whose Monolith does not answer joins. Where the room is not loaded it is loading still, or it has
    /// gone: what was said would be lost, so they wait on, until it is there or they are taken away.
    pub(super) fn open_unanswered(&mut self) {
        while let Some((client, attachment)) = self.rejoining.pop_due() {
            let id = client.member(attachment);
            let Some(room) = self.members.room_of(id) else { continue };
            let loaded = self.loaded.contains_key(room);
            let Some(member) = self.members.get_mut(id).filter(|member| !member.held) else { continue };
            let heard = member.answer == Answer::Heard;
            if loaded || heard {
                self.open(client, attachment);
            } else {
                self.rejoining.push(Instant::now() + self.join_answer, client, attachment);
            }
        }
    }
}
