//! Claims: before a room is sent to a Monolith, the other balancers are asked, through a store that all share, whether
//! one of them has sent it elsewhere in the same moment.
//!
//! A claim says where a room goes, so that nobody sends it elsewhere. It is no lock and decides no duplicate: what
//! Monoliths report is the truth, and whatever the store does, no room waits for it longer than its bound.

use std::sync::Arc;

use super::departed::Departed;
use super::room::{Active, Binding, Placed, Placing, Room, State};
use super::{Cluster, Map, Turn};
use crate::model::claims::{ClaimAnswer, ClaimCommand, ClaimOutcome, RoomLoad};
use crate::model::event::{Effect, Micros};
use crate::model::story::What;
use crate::model::{Epoch, MonolithId, RoomKey};

/// How long a room that another balancer has sent to a linked Monolith waits for its report before its claim is asked
/// again, in microseconds: it may have been given back, or be for another one. As long as it holds nobody goes, for
/// as long as a Monolith may take to load a room: two joins that reach it meanwhile load the room twice.
const FOLLOW: Micros = 250_000;
/// The pause before a claim for a Monolith that is not linked, or that the room has left, is asked again, in
/// microseconds.
const AGAIN: (Micros, Micros) = (50_000, 250_000);

/// Waits of claims, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claiming {
    /// For an answer; after it the room goes without one.
    pub wait: Micros,
    /// How long a claim holds that is not renewed.
    pub lease: Micros,
}

/// What happened to claims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClaimCounters {
    /// Claims that were asked for.
    pub asked: u64,
    /// Of these, granted.
    pub granted: u64,
    /// Of these, held by another balancer.
    pub taken: u64,
    /// Of these, without an answer: the room went without a claim.
    pub unavailable: u64,
}

/// The claims of rooms that are placed, and those that are kept up.
#[derive(Default)]
pub(super) struct Claims {
    rooms: Map<RoomKey, Claim>,
    /// The last load of rooms whose end their Monolith has told: a claim for it says nothing any more.
    ended: Departed<RoomLoad>,
    asked: u64,
    renew_at: Option<Micros>,
}

/// The claim of one room for one Monolith, and for its load there once that is reported. It is forgotten when the room
/// goes elsewhere.
struct Claim {
    load: RoomLoad,
    stage: Stage,
}

/// How far a claim is. While one is awaited, nobody is out for the room.
#[derive(Clone)]
enum Stage {
    /// An answer is awaited until the room's deadline. The room waits until `until` for another balancer's claim, which was
    /// for `theirs` when it was asked about last.
    Asked { number: u64, until: Micros, theirs: Option<MonolithId> },
    /// Another balancer has sent the room here, and its report is awaited. It is asked again at the room's deadline, for
    /// the last time at `until`.
    Followed { until: Micros },
    /// It is for a Monolith that is not linked, or that the room has just left. It is asked again at the room's
    /// deadline, and not after `until`.
    Taken { until: Micros, by: MonolithId },
    /// It is ours, and renewed.
    Held,
    /// The room goes without one.
    Waived,
}

impl Stage {
    fn is_awaited(&self) -> bool {
        match self {
            Self::Asked { .. } | Self::Followed { .. } | Self::Taken { .. } => true,
            Self::Held | Self::Waived => false,
        }
    }
}

impl Claims {
    /// Whether a room waits for a claim.
    pub(super) fn is_awaited(&self, key: &RoomKey) -> bool {
        self.rooms.get(key).is_some_and(|claim| claim.stage.is_awaited())
    }
}

impl Cluster {
    /// Claims the room for its Monolith, unless that is done. Returns whether whoever wants to go has to wait for it.
    pub(super) fn claims_first(&mut self, key: &RoomKey, turn: &mut Turn<'_>) -> bool {
        if !self.waits_for(key) {
            return false;
        }
        let Some(monolith) = self.rooms.get(key).and_then(Room::monolith) else { return false };
        // One that is awaited is waited for, also where there are no claims by now: it has a deadline.
        if let Some(claim) = self.claims.rooms.get(key).filter(|claim| claim.load.monolith == *monolith) {
            return claim.stage.is_awaited();
        }
        if self.settings.claims.is_none() {
            return false;
        }
        let monolith = monolith.clone();
        let until = self.now.saturating_add(self.settings.load_timeout);
        self.ask_for_claim(key, monolith, None, (until, None), turn);
        true
    }

    fn ask_for_claim(
        &mut self,
        key: &RoomKey,
        monolith: MonolithId,
        instead_of: Option<Arc<str>>,
        (until, theirs): (Micros, Option<MonolithId>),
        turn: &mut Turn<'_>,
    ) {
        let wait = self.settings.claims.map_or(0, |claiming| claiming.wait);
        self.claims.asked += 1;
        let number = self.claims.asked;
        self.counters.claims.asked += 1;
        self.set_claim(key, monolith.clone(), Stage::Asked { number, until, theirs });
        self.wait_until(key, self.now.saturating_add(wait), turn);
        turn.emit(Effect::Claim(ClaimCommand::Ask { room: key.clone(), number, monolith, instead_of }));
    }

    /// A claim has been granted that nobody waits for any more: it is kept if the room went there without it.
    fn granted_late(&mut self, key: &RoomKey, monolith: MonolithId, turn: &mut Turn<'_>) {
        let claim = self.claims.rooms.get_mut(key).filter(|claim| claim.load.monolith == monolith);
        match claim.map(|claim| &mut claim.stage) {
            Some(stage @ Stage::Waived) => *stage = Stage::Held,
            // The room is there after all, or has been claimed for the same once more.
            Some(Stage::Held | Stage::Asked { .. }) => {}
            Some(Stage::Followed { .. } | Stage::Taken { .. }) | None => {
                let load = RoomLoad { monolith, epoch: None };
                turn.emit(Effect::Claim(ClaimCommand::Release { room: key.clone(), load }));
            }
        }
    }

    /// The store has answered.
    pub(super) fn claim_answered(&mut self, key: &RoomKey, answer: ClaimAnswer, turn: &mut Turn<'_>) {
        let ClaimAnswer { number, monolith, outcome } = answer;
        let claim = self.claims.rooms.get(key);
        let (until, theirs) = match claim.map(|claim| &claim.stage) {
            Some(Stage::Asked { number: asked, until, theirs }) if *asked == number => (*until, theirs.clone()),
            Some(_) | None => {
                if outcome == ClaimOutcome::Granted {
                    self.granted_late(key, monolith, turn);
                }
                return;
            }
        };
        match outcome {
            ClaimOutcome::Granted => {
                self.counters.claims.granted += 1;
                self.set_claim(key, monolith, Stage::Held);
                if let Some(placed) = self.rooms.get_mut(key).and_then(|room| room.placed.as_mut()) {
                    placed.followed = false;
                }
                self.advance(key, turn);
            }
            ClaimOutcome::Unavailable => self.unanswered(key, (until, theirs), turn),
            ClaimOutcome::Taken { by, held, expires_in } => {
                self.counters.claims.taken += 1;
                let known = theirs.as_ref() == Some(&by.monolith);
                // That Monolith has as long as any other to load the room.
                let until = if known { until } else { self.now.saturating_add(self.settings.load_timeout) };
                if self.claims.ended.of(key) == Some(&by) && until > self.now {
                    self.ask_for_claim(key, monolith, Some(held), (until, Some(by.monolith)), turn);
                } else {
                    self.claim_taken(key, (by.monolith, expires_in), until, turn);
                }
            }
        }
    }

    /// Another balancer has sent the room somewhere: it follows if it can, else it waits for that claim to end.
    fn claim_taken(&mut self, key: &RoomKey, (by, ends): (MonolithId, Micros), until: Micros, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get(key) else { return };
        let State::Placing(placing) = &room.state else { return };
        let left = room.previous.as_ref().is_some_and(|previous| previous.monolith == by);
        if !self.monoliths.contains_key(&by) || placing.tried.contains(&by) || left {
            let monolith = placing.monolith.clone();
            self.set_claim(key, monolith, Stage::Taken { until, by });
            let pause = ends.clamp(AGAIN.0, AGAIN.1);
            self.wait_until(key, until.min(self.now.saturating_add(pause)), turn);
            return;
        }
        let placed = room.placed.as_ref();
        // What it followed before it was somewhere else says nothing about where it is sent now.
        let follows = placing.monolith == by && placed.is_some_and(|placed| placed.followed && placed.monolith == by);
        let instead_of = Some(placing.monolith.clone()).filter(|chosen| *chosen != by);
        if let Some(instead_of) = instead_of {
            self.tell(key, What::Claimed { monolith: by.clone(), instead_of }, turn);
        }
        if !follows {
            let (at, monolith) = (self.now, by.clone());
            self.change_room(key, turn, |room| {
                room.placed = Some(Placed { at, monolith: monolith.clone(), followed: true, moved: false });
                if let State::Placing(placing) = &mut room.state {
                    placing.monolith = monolith;
                }
            });
        }
        self.go_on_following(key, by, until, turn);
    }

    /// Nobody goes to the Monolith for which another balancer has claimed the room before that has reported it, or has had
    /// its time.
    fn go_on_following(&mut self, key: &RoomKey, by: MonolithId, until: Micros, turn: &mut Turn<'_>) {
        if until > self.now {
            self.set_claim(key, by, Stage::Followed { until });
            self.wait_until(key, until.min(self.now.saturating_add(FOLLOW)), turn);
        } else {
            self.set_claim(key, by, Stage::Waived);
            self.advance(key, turn);
        }
    }

    /// A room's deadline has passed. Returns whether it was one of its claim.
    pub(super) fn claim_timed_out(&mut self, key: &RoomKey, turn: &mut Turn<'_>) -> bool {
        let Some(claim) = self.claims.rooms.get(key).filter(|claim| claim.stage.is_awaited()) else { return false };
        let monolith = claim.load.monolith.clone();
        match claim.stage.clone() {
            Stage::Asked { until, theirs, .. } => self.unanswered(key, (until, theirs), turn),
            // Whoever has claimed it may have gone on to another one, even in the last moment.
            Stage::Followed { until } if self.settings.claims.is_some() && self.waits_for(key) => {
                self.ask_for_claim(key, monolith.clone(), None, (until, Some(monolith)), turn);
            }
            Stage::Taken { until, by } if until > self.now && self.settings.claims.is_some() && self.waits_for(key) => {
                self.ask_for_claim(key, monolith, None, (until, Some(by)), turn);
            }
            Stage::Taken { .. } | Stage::Followed { .. } => self.waive(key, turn),
            Stage::Held | Stage::Waived => return false,
        }
        true
    }

    /// Nobody knows whether the room is claimed. A claim that is followed is followed as long as it may be.
    fn unanswered(&mut self, key: &RoomKey, (until, theirs): (Micros, Option<MonolithId>), turn: &mut Turn<'_>) {
        let goes_on = until > self.now && self.settings.claims.is_some() && self.waits_for(key);
        let asked = self.claims.rooms.get(key).map(|claim| &claim.load.monolith);
        match theirs.filter(|theirs| goes_on && asked == Some(theirs)) {
            Some(monolith) => self.go_on_following(key, monolith, until, turn),
            None => self.waive(key, turn),
        }
    }

    /// Nobody wants a room any more, and its Monolith has answered whoever did: other balancers need not wait for its report.
    pub(super) fn release_unless_awaited(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        let idle = match self.rooms.get(key).map(|room| &room.state) {
            Some(State::Placing(placing)) => !placing.unanswered && placing.out.is_empty() && !self.waits_for(key),
            Some(State::Active(_) | State::Parked { .. } | State::Unloading(_) | State::Settling(_)) | None => false,
        };
        if idle && self.claims.rooms.get(key).is_some_and(|claim| matches!(claim.stage, Stage::Held)) {
            self.drop_claim(key, turn);
        }
    }

    fn drop_claim(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        if let Some(Claim { load, stage: Stage::Held }) = self.claims.rooms.remove(key) {
            turn.emit(Effect::Claim(ClaimCommand::Release { room: key.clone(), load }));
        }
    }

    /// The room goes without a claim, as if there were none; without anybody who wants it, it goes nowhere.
    fn waive(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        if !self.waits_for(key) {
            self.unbind(key, "timeout", turn);
            return;
        }
        self.counters.claims.unavailable += 1;
        if let Some(claim) = self.claims.rooms.get_mut(key) {
            claim.stage = Stage::Waived;
        }
        self.advance(key, turn);
    }

    /// A Monolith has made a room whose name nobody knew before: other balancers are told where it is.
    pub(super) fn claim_created(&mut self, key: &RoomKey, monolith: &MonolithId, turn: &mut Turn<'_>) {
        if self.settings.claims.is_some() {
            self.set_claim(key, monolith.clone(), Stage::Held);
            let rooms = vec![(key.clone(), self.load_on(key, monolith.clone()))];
            turn.emit(Effect::Claim(ClaimCommand::Renew { rooms }));
        }
    }

    /// When claims are renewed next, if there are any.
    pub(super) fn next_renewal(&self) -> Option<Micros> {
        self.settings.claims.map(|_| self.claims.renew_at.unwrap_or(self.now))
    }

    /// Renews what is held, when that is due: three times in a lease, so that one may be lost. A room with members of
    /// ours is claimed as well, since whoever claimed it may be gone.
    pub(super) fn renew_claims(&mut self, turn: &mut Turn<'_>) {
        let Some(claiming) = self.settings.claims else { return };
        if self.claims.renew_at.is_some_and(|at| at > self.now) {
            return;
        }
        self.claims.renew_at = Some(self.now.saturating_add((claiming.lease / 3).max(1)));
        for (key, room) in &self.rooms {
            if let State::Active(Active { monolith, binding: binding @ Binding::Reported(_) }) = &room.state
                && !room.members.is_empty()
                && !self.claims.rooms.contains_key(key)
            {
                let load = RoomLoad { monolith: monolith.clone(), epoch: binding.epoch() };
                self.claims.rooms.insert(key.clone(), Claim { load, stage: Stage::Held });
            }
        }
        let held = self.claims.rooms.iter().filter(|(_, claim)| matches!(claim.stage, Stage::Held));
        let mut rooms: Vec<_> = held.map(|(key, claim)| (key.clone(), claim.load.clone())).collect();
        if !rooms.is_empty() {
            // The order of effects must not depend on how a table hashes.
            rooms.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
            turn.emit(Effect::Claim(ClaimCommand::Renew { rooms }));
        }
    }

    /// A room has changed: its claim is for its present load, and one for a Monolith that it is not on any more is given
    /// back.
    pub(super) fn settle_claim(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        let Some(claim) = self.claims.rooms.get_mut(key) else { return };
        let room = self.rooms.get(key);
        let there = room.and_then(Room::monolith) == Some(&claim.load.monolith);
        let held = matches!(claim.stage, Stage::Held);
        if there && (held || room.is_some_and(|room| matches!(room.state, State::Placing(_)))) {
            if let Some(State::Active(active)) = room.map(|room| &room.state) {
                claim.load.epoch = active.binding.epoch().or(claim.load.epoch);
            }
            return;
        }
        self.drop_claim(key, turn);
    }

    /// A Monolith has said that a load of a room is over. That a link is lost ends none: others may be in it still.
    pub(super) fn load_ended(&mut self, key: &RoomKey, monolith: &MonolithId, epoch: Epoch) {
        if self.settings.claims.is_some() {
            self.claims.ended.note(key, RoomLoad { monolith: monolith.clone(), epoch: Some(epoch) });
        }
    }

    fn set_claim(&mut self, key: &RoomKey, monolith: MonolithId, stage: Stage) {
        let load = self.load_on(key, monolith);
        self.claims.rooms.insert(key.clone(), Claim { load, stage });
    }

    /// What a room is claimed for that is, or is to go, to this Monolith.
    fn load_on(&self, key: &RoomKey, monolith: MonolithId) -> RoomLoad {
        let epoch = match self.rooms.get(key).map(|room| &room.state) {
            Some(State::Active(active)) if active.monolith == monolith => active.binding.epoch(),
            Some(_) | None => None,
        };
        RoomLoad { monolith, epoch }
    }

    fn wait_until(&mut self, key: &RoomKey, at: Micros, turn: &mut Turn<'_>) {
        self.change_room(key, turn, |room| {
            if let State::Placing(Placing { deadline, .. }) = &mut room.state {
                *deadline = at;
            }
        });
    }
}
