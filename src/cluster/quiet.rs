//! Moves whose rooms are to be quiet first. A room that is goes at once, unless another has just gone: rooms that fall quiet
//! together leave one after another, and each is asked to be quiet once more when its turn comes.

use std::collections::{BTreeMap, VecDeque};

use super::room::Room;
use super::{Cluster, Turn};
use crate::model::event::{Effect, Micros};
use crate::model::moves::{MoveRefusal, Moving};
use crate::model::story::Mover;
use crate::model::{LinkId, MonolithId, RoomKey};

/// How long a room is left to become quiet, as a multiple of how long it is to be quiet, and at most (in microseconds).
const WITHIN: (Micros, Micros) = (10, 60_000_000);

/// Moves that wait until their room is quiet, or for their turn.
#[derive(Default)]
pub(super) struct Quiet {
    rooms: BTreeMap<RoomKey, Watched>,
    exits: BTreeMap<MonolithId, Exit>,
}

/// A move that has begun.
struct Watched {
    from: MonolithId,
    to: Option<MonolithId>,
    by: Mover,
    /// When it is waited for no longer.
    until: Micros,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Until it is quiet.
    Noisy,
    /// It was quiet, or never (`disturbed`), and others leave before it.
    Queued { disturbed: bool },
    /// It is its turn, and it goes as soon as it is quiet again.
    Called,
}

/// Where the rooms of one Monolith leave it, at a pace.
#[derive(Default)]
struct Exit {
    /// Before this moment no other leaves.
    free_at: Micros,
    /// Entries of rooms that do not wait any more may be among them.
    queue: VecDeque<RoomKey>,
}

impl Quiet {
    pub(super) fn contains(&self, key: &RoomKey) -> bool {
        self.rooms.contains_key(key)
    }

    pub(super) fn len(&self) -> usize {
        self.rooms.len()
    }

    pub(super) fn is_busy(&self, from: &MonolithId) -> bool {
        self.rooms.values().any(|watched| watched.from == *from)
    }

    /// A Monolith is no longer drained.
    pub(super) fn call_off(&mut self, from: &MonolithId) {
        self.rooms.retain(|_, watched| watched.by != Mover::Drain || watched.from != *from);
    }

    /// A Monolith has gone.
    pub(super) fn lost(&mut self, from: &MonolithId) {
        self.rooms.retain(|_, watched| watched.from != *from);
        self.exits.remove(from);
    }

    /// When the next room may leave, if one waits for that.
    pub(super) fn next_due(&self) -> Option<Micros> {
        self.exits.values().filter(|exit| !exit.queue.is_empty()).map(|exit| exit.free_at).min()
    }
}

impl Cluster {
    /// Everything goes on in the room until nobody in it has said anything for a while.
    pub(super) fn wait_for_quiet(
        &mut self,
        key: &RoomKey,
        to: Option<MonolithId>,
        by: Mover,
        quiet: Micros,
        turn: &mut Turn<'_>,
    ) -> Option<Moving> {
        let room = self.rooms.get(key)?;
        let from = room.bound_to()?.clone();
        let (name, clients) = (room.name.spelling().to_string(), room.members.len());
        let until = self.now.saturating_add(quiet.saturating_mul(WITHIN.0).min(WITHIN.1));
        self.watch(key, &from, (quiet, until), turn)?;
        let watched = Watched { from: from.clone(), to: to.clone(), by, until, stage: Stage::Noisy };
        self.moves.quiet.rooms.insert(key.clone(), watched);
        Some(Moving { room: name, from, to, clients })
    }

    fn watch(
        &self,
        key: &RoomKey,
        from: &MonolithId,
        (quiet, until): (Micros, Micros),
        turn: &mut Turn<'_>,
    ) -> Option<()> {
        let link = self.link_of(from)?;
        let at_most = until.saturating_sub(self.now);
        turn.emit(Effect::Watch { link, room: key.clone(), quiet, at_most });
        Some(())
    }

    /// A room is quiet, or has been waited for long enough.
    pub(super) fn quiet(&mut self, link: LinkId, key: &RoomKey, disturbed: bool, turn: &mut Turn<'_>) {
        let Some(monolith) = self.sender(link) else { return };
        let quiet = &mut self.moves.quiet;
        // It may have been called off, or wait for its turn already.
        let Some(watched) = quiet.rooms.get_mut(key).filter(|watched| watched.from == monolith) else { return };
        match watched.stage {
            Stage::Queued { .. } => return,
            Stage::Called => {}
            Stage::Noisy => {
                let exit = quiet.exits.entry(monolith.clone()).or_default();
                if exit.free_at > self.now || !exit.queue.is_empty() {
                    watched.stage = Stage::Queued { disturbed };
                    exit.queue.push_back(key.clone());
                    return;
                }
                self.charge_exit(&monolith, key);
            }
        }
        self.leave_quietly(key, disturbed, turn);
    }

    /// The rooms whose turn it is.
    pub(super) fn call_due_rooms(&mut self, turn: &mut Turn<'_>) {
        let due = self.moves.quiet.exits.iter().filter(|(_, exit)| exit.free_at <= self.now);
        let due: Vec<MonolithId> = due.map(|(id, _)| id.clone()).collect();
        for from in due {
            while let Some(exit) = self.moves.quiet.exits.get_mut(&from)
                && exit.free_at <= self.now
            {
                let Some(key) = exit.queue.pop_front() else {
                    // Nobody waits and nothing is paced: there is nothing to remember of it.
                    self.moves.quiet.exits.remove(&from);
                    break;
                };
                let Some(watched) = self.moves.quiet.rooms.get_mut(&key).filter(|watched| watched.from == from) else {
                    continue;
                };
                let Stage::Queued { disturbed } = watched.stage else { continue };
                watched.stage = Stage::Called;
                let until = watched.until;
                if self.rooms.get(&key).and_then(Room::bound_to) != Some(&from) {
                    // It has gone by itself: that is told, and costs nothing.
                    self.leave_quietly(&key, disturbed, turn);
                    continue;
                }
                self.charge_exit(&from, &key);
                match self.settings.seamless.map(|seamless| seamless.quiet) {
                    Some(quiet) if quiet > 0 && !disturbed => _ = self.watch(&key, &from, (quiet, until), turn),
                    Some(_) | None => self.leave_quietly(&key, disturbed, turn),
                }
            }
        }
    }

    /// As many clients as the room has change their Monolith: nobody else does for as long as that takes.
    fn charge_exit(&mut self, from: &MonolithId, key: &RoomKey) {
        let cost = self.move_cost(self.rooms.get(key).map_or(0, |room| room.members.len()));
        let exit = self.moves.quiet.exits.entry(from.clone()).or_default();
        exit.free_at = exit.free_at.max(self.now).saturating_add(cost);
    }

    fn leave_quietly(&mut self, key: &RoomKey, disturbed: bool, turn: &mut Turn<'_>) {
        let Some(Watched { from, to, by, .. }) = self.moves.quiet.rooms.remove(key) else { return };
        let refusal = match self.may_move(key, to.as_ref()) {
            Err(refusal) => Some(refusal),
            Ok(active) if active.monolith != from => Some(MoveRefusal::Changed),
            Ok(_) if self.may_be_unsaved(key, &from) => Some(MoveRefusal::TooYoung),
            Ok(_) => None,
        };
        match refusal {
            Some(refusal) => self.refuse_move(key, to.as_ref(), by, refusal, turn),
            None => _ = self.let_go(key, to, by, disturbed, turn),
        }
    }
}
