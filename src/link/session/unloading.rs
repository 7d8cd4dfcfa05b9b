//! Rooms that a Monolith is asked to let go: never one that it does not have for certain, since that ends a real one.

use tracing::{info, warn};

use super::super::handover::Leaving;
use super::super::outbox::Outgoing;
use super::super::stats::count;
use super::Session;
use crate::model::event::{Event, UnloadCause};
use crate::model::{RoomKey, RoomName, wire};

impl Session {
    /// The room is to go: at once, or when its clients hold.
    pub(super) fn let_go(&mut self, leaving: Leaving, why: UnloadCause) {
        if why == UnloadCause::HandOver && self.may_unload(&leaving, why) {
            self.members.hold(leaving.room.key());
            self.leaving.hold(leaving, &self.members, &self.commands);
        } else {
            self.unload(&leaving, why);
        }
    }

    /// Every client of a room holds.
    pub(super) fn all_hold(&mut self, room: &RoomKey, number: u64) {
        if let Some(leaving) = self.leaving.all_hold(room, number) {
            self.unload(&leaving, UnloadCause::HandOver);
        }
    }

    /// Rooms that are quiet, and rooms whose clients have had their time to hold.
    pub(super) fn look_at_those_leaving(&mut self) {
        let (quiet, overdue) = self.leaving.due(&self.members);
        for (room, disturbed) in quiet {
            self.events.push_back(Event::Quiet { link: self.link, room, disturbed });
        }
        for leaving in overdue {
            self.unload(&leaving, UnloadCause::HandOver);
        }
    }

    /// Sends `unload`. The control thread may not have heard yet that the room has gone, and an unload of a room that is
    /// not loaded kills a Monolith.
    fn unload(&mut self, leaving: &Leaving, why: UnloadCause) {
        let Leaving { room, epoch } = leaving;
        if !self.may_unload(leaving, why) {
            count(&self.context.counters.unloads_withheld);
            if why != UnloadCause::Duplicate {
                let (link, room, epoch) = (self.link, room.key().clone(), *epoch);
                self.events.push_back(Event::Withheld { link, room, epoch });
            }
            return;
        }
        match why {
            UnloadCause::Duplicate => warn!(monolith = %self.init.id, "asking the loser of a duplicate to unload it"),
            UnloadCause::Move | UnloadCause::HandOver => {
                info!(monolith = %self.init.id, "asking for a room that is to move");
            }
        }
        self.outbox.push_control(Outgoing::Text(wire::unload(room.spelling())));
        if why == UnloadCause::HandOver {
            self.outbox.push_control(Outgoing::Ping(self.unread.asked(room.key().clone())));
        }
    }

    /// A room that the Monolith had has left it: an `unload` that nobody has written yet would end a real Monolith.
    pub(super) fn has_gone(&mut self, room: &RoomKey, name: &RoomName) {
        self.leaving.forget(room);
        self.going.remove(room);
        self.unread.unloaded(room);
        if self.outbox.take_control_back(&wire::unload(name.spelling())) {
            count(&self.context.counters.unloads_withheld);
        }
    }

    /// Whether the Monolith has this load of the room for certain. One that is to move also needs a member that has been let in: an
    /// empty room could be about to be unloaded by the Monolith itself.
    fn may_unload(&self, Leaving { room, epoch }: &Leaving, why: UnloadCause) -> bool {
        let inhabited = || self.members.of_room(room.spelling()).iter().any(|member| member.answer.is_over());
        self.loaded.get(room.key()).is_some_and(|report| report.epoch == *epoch)
            && (why == UnloadCause::Duplicate || inhabited())
    }
}
