//! What the cluster tells about a room to whoever keeps stories: notes among the effects, in the order of what happened.
//! Only changes of a room are told, never a message or a member that comes to a bound room.

use super::room::Binding;
use super::{Cluster, Turn};
use crate::model::event::Effect;
use crate::model::story::{About, MoveEnd, Mover, Note, Sign, What};
use crate::model::wire::UnloadReason;
use crate::model::{Epoch, MonolithId, RequestId, RoomKey};

impl Cluster {
    /// A chapter of a room.
    pub(super) fn tell(&self, room: &RoomKey, what: What, turn: &mut Turn<'_>) {
        self.note(About::Chapter(room.clone(), what), turn);
    }

    /// `place` was asked just now, about a room or for a request that creates one without a name.
    pub(super) fn tell_decided(&self, about: Result<&RoomKey, RequestId>, turn: &mut Turn<'_>) {
        let about = match about {
            Ok(room) => About::Decided(room.clone()),
            Err(request) => About::DecidedFor(request),
        };
        self.note(about, turn);
    }

    /// The room of a request without a name has got one.
    pub(super) fn tell_named(&self, request: RequestId, room: &RoomKey, turn: &mut Turn<'_>) {
        self.note(About::Named(request, room.clone()), turn);
    }

    /// A Monolith has the room from now on.
    pub(super) fn tell_bound(
        &self,
        room: &RoomKey,
        monolith: &MonolithId,
        binding: Binding,
        instead_of: Option<MonolithId>,
        turn: &mut Turn<'_>,
    ) {
        let how = match binding {
            Binding::Reported(_) => Sign::Reported,
            Binding::Answered { .. } => Sign::Answered,
            Binding::Provisional { .. } => Sign::Served,
        };
        let what = What::Bound { monolith: monolith.clone(), epoch: binding.epoch(), how, instead_of };
        self.tell(room, what, turn);
    }

    /// The room has left the memory of its Monolith.
    pub(super) fn tell_unloaded(
        &self,
        room: &RoomKey,
        monolith: &MonolithId,
        reason: Option<UnloadReason>,
        turn: &mut Turn<'_>,
    ) {
        let clients = self.members_of(room);
        self.tell(room, What::Unloaded { monolith: monolith.clone(), reason, clients }, turn);
    }

    /// Two Monoliths had the room: the one that keeps it, and the one that is to unload it.
    pub(super) fn tell_duplicate(
        &self,
        room: &RoomKey,
        (kept, kept_epoch): (&MonolithId, Option<Epoch>),
        (lost, lost_epoch): (&MonolithId, Option<Epoch>),
        clients: usize,
        turn: &mut Turn<'_>,
    ) {
        let (kept, lost) = (kept.clone(), lost.clone());
        self.tell(room, What::Duplicate { kept, kept_epoch, lost, lost_epoch, clients }, turn);
    }

    /// The link to the room's Monolith is gone.
    pub(super) fn tell_lost(&self, room: &RoomKey, turn: &mut Turn<'_>) {
        let Some(monolith) = self.rooms.get(room).and_then(super::Room::owner).cloned() else { return };
        self.tell(room, What::Lost { monolith, clients: self.members_of(room) }, turn);
    }

    /// A move may not be. A room that nobody knows has no story.
    pub(super) fn tell_move_refused(
        &self,
        room: &RoomKey,
        to: Option<&MonolithId>,
        by: Mover,
        why: crate::model::moves::MoveRefusal,
        turn: &mut Turn<'_>,
    ) {
        if self.rooms.contains_key(room) {
            self.tell(room, What::MoveRefused { to: to.cloned(), by, why }, turn);
        }
    }

    /// A move is over.
    pub(super) fn tell_move_ended(
        &self,
        room: &RoomKey,
        from: &MonolithId,
        to: Option<&MonolithId>,
        how: MoveEnd,
        turn: &mut Turn<'_>,
    ) {
        self.tell(room, What::MoveEnded { from: from.clone(), to: to.cloned(), how }, turn);
    }

    fn members_of(&self, room: &RoomKey) -> usize {
        self.rooms.get(room).map_or(0, |room| room.members.len())
    }

    fn note(&self, about: About, turn: &mut Turn<'_>) {
        turn.emit(Effect::Story(Box::new(Note { at: self.now, about })));
    }
}
