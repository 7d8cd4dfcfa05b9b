//! One room on two Monoliths: which of them keeps it, when the other one is asked to unload it, and for how long both
//! had it.
//!
//! Every balancer sees the same duplicate and comes to the same loser, and a second `unload` of one load ends a real
//! Monolith. Balancers do not talk to each other, but all of them hear the loser's `unloaded`. So each waits for a turn
//! of its own before it asks, and whoever hears that the room has gone asks no more. Traffic to the loser ends at once;
//! who was in it there is let in by the winner once the loser has let go (`settling`).

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::hash::BuildHasher;

use foldhash::fast::FixedState;

use super::monolith::{Asked, Copy};
use super::room::{Active, Binding, State, Unloading};
use super::{Cluster, Turn};
use crate::model::event::{Effect, Micros, UnloadCause};
use crate::model::policy::Cause;
use crate::model::story::MoveEnd;
use crate::model::{CloseCode, Epoch, LinkId, MonolithId, RoomKey};

/// What this balancer has to do with a copy that is to go: the more, the earlier is its turn. The spans do not touch, save for
/// that of moves, of which there are few:
/// between two of them there is time for `unloaded` to arrive from the other side of the earth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nearness {
    /// It sent the room there. When two balancers have placed one room on two Monoliths, this is true of one of them.
    SentIt,
    /// Its clients are in it.
    HasMembers,
    /// Neither. Its turn comes only if the other balancers are gone.
    Neither,
    /// It wants the room elsewhere. A second one that does so at the same time is asked not to be (`README.md`), save where
    /// discovery withdraws a Monolith.
    Moves,
}

impl Nearness {
    /// When turns begin and over how long they are spread, in microseconds. The first of a duplicate leaves the others
    /// time to hear of it, and their joins time to arrive: one that came after the `unload` would load the room again.
    fn span(self) -> (Micros, Micros) {
        match self {
            Self::Moves => (0, 250_000),
            Self::SentIt => (100_000, 1_000_000),
            Self::HasMembers => (1_500_000, 2_000_000),
            Self::Neither => (5_000_000, 4_000_000),
        }
    }
}

/// Requests to unload that wait for their turn.
#[derive(Default)]
pub(super) struct Unloads {
    /// What this balancer's turns are drawn from. Without it there is no other balancer, and nobody waits.
    seed: Option<u64>,
    /// One counts only if the copy still says the same.
    due: BTreeSet<(Micros, MonolithId, RoomKey)>,
}

/// For how long rooms were on two Monoliths: from the moment when both copies were known until the loser's was unloaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overlaps {
    /// Copies that were unloaded.
    pub count: u64,
    /// All these times together, in microseconds.
    pub total: Micros,
    /// The longest of them, in microseconds.
    pub longest: Micros,
}

impl Cluster {
    /// The same cluster as one of several balancers. `seed` says when its turns come, and differs for each balancer.
    #[must_use]
    pub fn among_others(mut self, seed: u64) -> Self {
        self.unloads.seed = Some(seed);
        self
    }

    /// What this balancer has drawn for a Monolith, less than `over`; none where it has no others beside it.
    pub(super) fn drawn(&self, monolith: &MonolithId, over: Micros) -> Option<Micros> {
        self.unloads.seed.map(|seed| draw(seed, monolith, over))
    }

    /// Two Monoliths have one room. The older load wins; the loser's traffic ends before it is asked to unload.
    pub(super) fn duplicate(
        &mut self,
        key: &RoomKey,
        owner: (&MonolithId, Binding),
        other: (&MonolithId, Epoch),
        turn: &mut Turn<'_>,
    ) {
        let owner_wins = owner.1.epoch().is_some_and(|epoch| older((epoch, owner.0), (other.1, other.0)));
        if owner_wins {
            let nearness = self.nearness(key, other.0, false);
            if self.contest(other.0, key, nearness, turn) {
                let (kept, lost) = ((owner.0, owner.1.epoch()), (other.0, Some(other.1)));
                self.tell_duplicate(key, kept, lost, 0, turn);
            }
            return;
        }
        let clients = self.rooms.get(key).map_or(0, |room| room.members.len());
        let nearness = self.nearness(key, owner.0, clients > 0);
        self.tell_duplicate(key, (other.0, Some(other.1)), (owner.0, owner.1.epoch()), clients, turn);
        let mut released = self.release_or_close(key, owner.0, (Cause::Lost, true), CloseCode::RESTART, turn);
        released.extend(self.take_sent_away(key));
        self.counters.handover.rooms += u64::from(!released.is_empty());
        self.contest(owner.0, key, nearness, turn);
        self.settle(key, other, owner.0, released, turn);
    }

    pub(super) fn nearness(&self, key: &RoomKey, loser: &MonolithId, members: bool) -> Nearness {
        let placed = self.rooms.get(key).and_then(|room| room.placed.as_ref());
        match placed {
            Some(placed) if placed.monolith == *loser && !placed.followed => Nearness::SentIt,
            Some(_) | None if members => Nearness::HasMembers,
            Some(_) | None => Nearness::Neither,
        }
    }

    /// A Monolith has loaded the room of which another may have an older load: one that was to go, as long as nobody has asked it
    /// to, when there was an older one still.
    pub(super) fn yield_to_older(&mut self, key: &RoomKey, monolith: &MonolithId, epoch: Epoch, turn: &mut Turn<'_>) {
        let due = self.monoliths.iter().filter_map(|(id, entry)| {
            let copy = entry.copies.get(key).filter(|copy| matches!(copy.asked, Some(Asked::Due(_))))?;
            (id != monolith && older((copy.epoch, id), (epoch, monolith))).then(|| (id.clone(), copy.epoch))
        });
        let best = due.reduce(|one, other| if older((one.1, &one.0), (other.1, &other.0)) { one } else { other });
        if let Some((id, older)) = best {
            self.keep_copy(&id, key);
            self.duplicate(key, (monolith, Binding::Reported(epoch)), (&id, older), turn);
        }
    }

    /// Has the loser of a duplicate unload it. Returns whether that is news.
    pub(super) fn contest(
        &mut self,
        loser: &MonolithId,
        key: &RoomKey,
        nearness: Nearness,
        turn: &mut Turn<'_>,
    ) -> bool {
        let now = self.now;
        let Some(copy) = self.copy_mut(loser, key).filter(|copy| copy.asked.is_none()) else { return false };
        copy.contested = Some(now);
        self.counters.duplicates += 1;
        self.ask_in_turn(loser, key, nearness, turn);
        true
    }

    /// Asks a Monolith to unload a copy when this balancer's turn comes: only what it has reported, and never twice,
    /// since an `unload` of a room that is not loaded kills a Monolith.
    pub(super) fn ask_in_turn(
        &mut self,
        monolith: &MonolithId,
        key: &RoomKey,
        nearness: Nearness,
        turn: &mut Turn<'_>,
    ) {
        let Some(seed) = self.unloads.seed else {
            let why = match nearness {
                Nearness::SentIt | Nearness::HasMembers | Nearness::Neither => UnloadCause::Duplicate,
                Nearness::Moves => self.move_cause(key),
            };
            self.send_unload(monolith, key, why, turn);
            return;
        };
        let at = self.now.saturating_add(delay(seed, monolith, nearness));
        if let Some(copy) = self.copy_mut(monolith, key).filter(|copy| copy.asked.is_none()) {
            copy.asked = Some(Asked::Due(at));
            self.unloads.due.insert((at, monolith.clone(), key.clone()));
        }
    }

    /// What a room that moves is asked to unload for: whether its members keep their sockets, as it was when it began.
    fn move_cause(&self, key: &RoomKey) -> UnloadCause {
        match self.rooms.get(key).map(|room| &room.state) {
            Some(State::Unloading(Unloading { hold: true, .. })) => UnloadCause::HandOver,
            Some(_) | None => UnloadCause::Move,
        }
    }

    fn send_unload(&mut self, monolith: &MonolithId, key: &RoomKey, why: UnloadCause, turn: &mut Turn<'_>) {
        let Some(entry) = self.monoliths.get_mut(monolith) else { return };
        let Some(copy) = entry.copies.get_mut(key) else { return };
        match copy.asked {
            Some(Asked::Sent(_)) => return,
            Some(Asked::Due(_)) | None => copy.asked = Some(Asked::Sent(entry.gossips)),
        }
        self.counters.unloads += u64::from(why == UnloadCause::Duplicate);
        turn.emit(Effect::Unload { link: entry.link, room: copy.name.clone(), epoch: copy.epoch, why });
    }

    /// A link has not asked for a room that is to move, since everybody had left: that load may be asked for another time.
    pub(super) fn withheld(&mut self, link: LinkId, key: &RoomKey, epoch: Epoch, turn: &mut Turn<'_>) {
        let Some(monolith) = self.sender(link) else { return };
        let Some(copy) = self.copy_mut(&monolith, key).filter(|copy| copy.epoch == epoch) else { return };
        copy.asked = None;
        if self.is_leaving(key, &monolith) {
            self.stays(key, MoveEnd::Deserted, turn);
        } else if let Some(State::Settling(settling)) = self.rooms.get(key).map(|room| &room.state)
            && settling.loser == monolith
        {
            // It was asked for a move that has become a duplicate.
            let nearness = self.nearness(key, &monolith, true);
            self.contest(&monolith, key, nearness, turn);
        }
    }

    /// When the next turn comes, if one is waited for.
    pub(super) fn next_unload(&self) -> Option<Micros> {
        self.unloads.due.first().map(|(at, ..)| *at)
    }

    /// Sends the requests whose turn has come. What another balancer's has done meanwhile is no longer there to be asked.
    pub(super) fn send_due_unloads(&mut self, turn: &mut Turn<'_>) {
        while let Some((at, ..)) = self.unloads.due.first()
            && *at <= self.now
        {
            let Some((at, monolith, key)) = self.unloads.due.pop_first() else { return };
            let Some(copy) = self.copy_mut(&monolith, &key).filter(|copy| copy.asked == Some(Asked::Due(at))) else {
                continue;
            };
            let (name, binding) = (copy.name.clone(), Binding::Reported(copy.epoch));
            match self.rooms.get(&key).map(|room| &room.state) {
                Some(State::Unloading(unloading)) if unloading.monolith == monolith => {
                    if self.joined_to(&key).is_empty() {
                        // They have left meanwhile, and the Monolith could be about to unload it by itself.
                        self.keep_copy(&monolith, &key);
                        self.stays(&key, MoveEnd::Deserted, turn);
                    } else {
                        let why = self.move_cause(&key);
                        self.send_unload(&monolith, &key, why, turn);
                    }
                }
                Some(State::Active(active)) if active.monolith == monolith => self.keep_copy(&monolith, &key),
                Some(State::Settling(settling)) if settling.monolith == monolith => self.keep_copy(&monolith, &key),
                Some(State::Active(_) | State::Unloading(_) | State::Settling(_)) => {
                    self.send_unload(&monolith, &key, UnloadCause::Duplicate, turn);
                }
                // The winner has gone meanwhile: this is the only copy, and nobody is to lose it.
                Some(State::Placing(_) | State::Parked { .. }) => {
                    self.keep_copy(&monolith, &key);
                    self.activate(&key, &monolith, binding, turn);
                }
                None => {
                    self.keep_copy(&monolith, &key);
                    self.tell_bound(&key, &monolith, binding, None, turn);
                    self.insert_room(name, State::Active(Active { monolith, binding }), turn);
                }
            }
        }
    }

    /// The oldest copy of a room that is not leaving. One whose turn to be asked has not come stays if it is the oldest.
    pub(super) fn best_copy(&mut self, key: &RoomKey) -> Option<(MonolithId, Epoch)> {
        let mut best: Option<(Epoch, &MonolithId)> = None;
        for (id, monolith) in &self.monoliths {
            if let Some(copy) = monolith.copies.get(key)
                && copy.is_to_be_had()
                && best.is_none_or(|best| older((copy.epoch, id), best))
            {
                best = Some((copy.epoch, id));
            }
        }
        let (epoch, id) = best.map(|(epoch, id)| (epoch, id.clone()))?;
        self.keep_copy(&id, key);
        Some((id, epoch))
    }

    /// A copy stays after all. One that was asked and did not go is not asked again.
    fn keep_copy(&mut self, monolith: &MonolithId, key: &RoomKey) {
        let Some(copy) = self.copy_mut(monolith, key) else { return };
        copy.contested = None;
        match copy.asked {
            Some(Asked::Due(_)) => copy.asked = None,
            Some(Asked::Sent(_)) | None => {}
        }
    }

    /// A copy is out of a Monolith's memory.
    pub(super) fn copy_gone(&mut self, copy: &Copy) {
        self.counters.unloads_spared += u64::from(matches!(copy.asked, Some(Asked::Due(_))));
        if let Some(since) = copy.contested {
            let took = self.now.saturating_sub(since);
            let overlaps = &mut self.counters.overlaps;
            overlaps.count += 1;
            overlaps.total = overlaps.total.saturating_add(took);
            overlaps.longest = overlaps.longest.max(took);
        }
    }

    /// A copy that waits to be asked and would not be.
    pub(super) fn forgotten_unload(&self) -> Option<String> {
        self.monoliths.iter().find_map(|(id, monolith)| {
            monolith.copies.iter().find_map(|(key, copy)| match copy.asked {
                Some(Asked::Due(at)) if !self.unloads.due.contains(&(at, id.clone(), key.clone())) => {
                    Some(format!("{id} is to unload {key}, and nobody will ask it"))
                }
                Some(Asked::Due(_) | Asked::Sent(_)) | None => None,
            })
        })
    }

    pub(super) fn copy_mut(&mut self, monolith: &MonolithId, key: &RoomKey) -> Option<&mut Copy> {
        self.monoliths.get_mut(monolith)?.copies.get_mut(key)
    }
}

/// How long a balancer waits before it asks a Monolith. The draw is one for all rooms of a Monolith: two balancers whose
/// draws are too close end it with one room in two hundred as surely as with one draw for each of them, so there is to be
/// one chance of that and not two hundred.
fn delay(seed: u64, monolith: &MonolithId, nearness: Nearness) -> Micros {
    let (from, over) = nearness.span();
    from + draw(seed, monolith, over)
}

/// What a balancer has drawn for a Monolith, less than `over` (at least 1).
fn draw(seed: u64, monolith: &MonolithId, over: Micros) -> Micros {
    FixedState::with_seed(seed).hash_one(monolith.as_str()) % over.max(1)
}

/// Whether load `a` beats load `b`: the older one, or for equal epochs the smaller Monolith id, so that every balancer
/// comes to the same end.
pub(super) fn older(a: (Epoch, &MonolithId), b: (Epoch, &MonolithId)) -> bool {
    match a.0.compare(b.0) {
        Ordering::Less => true,
        Ordering::Greater => false,
        Ordering::Equal => a.1 < b.1,
    }
}
