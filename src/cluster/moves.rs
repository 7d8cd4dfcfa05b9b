//! Moves of rooms: what a policy, an operator or a drain asks for is checked, paced, begun, and remembered until the room
//! comes back. Where clients keep their sockets, a room is left to become quiet first (`quiet`). How a room leaves its
//! Monolith is in `unloading`.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::quiet::Quiet;
use super::room::{Active, Binding, Room, State};
use super::{Cluster, Map, Turn};
use crate::model::event::{Effect, Micros};
use crate::model::moves::{MoveRefusal, Moving, Rebalanced};
use crate::model::policy::{Answer, Call, CallRoom, Hook, MonolithState, Move};
use crate::model::story::{Mover, What};
use crate::model::{MonolithId, RequestId, RoomKey};
use crate::policy::decide;

/// Rooms that one call of `rebalance` is shown. Where there are more, it sees those with most clients. The control thread
/// decides nothing else meanwhile, and the pace lets only some of them move before the next call.
const SHOWN_ROOMS: usize = 2_000;
/// How long a room that left its Monolith is expected at its target, in microseconds: long enough for clients that come
/// back with a growing pause.
const AIMED_FOR: Micros = 30_000_000;
/// From what age on a temporary room is in the store, in microseconds: the real Monolith writes it with a delay of 5 s.
const SAVED_AFTER: Micros = 6_000_000;
/// Rooms that are expected at a target at once; beyond it the oldest is placed as any other.
const KEPT_AIMS: usize = 10_000;

/// How the policy is asked what should move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebalancing {
    /// How often, in microseconds.
    pub every: Micros,
    /// Whether its answer is checked and counted only.
    pub dry: bool,
}

/// What happened to moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MoveCounters {
    /// Calls of `rebalance`.
    pub calls: u64,
    /// Of these, without a usable answer.
    pub faults: u64,
    /// Rooms that calls were not shown because there were too many.
    pub left_out: u64,
    /// Moves that a dry run would have queued.
    pub dry: u64,
    /// Moves that have begun.
    pub begun: u64,
    /// Rooms that left their Monolith as asked.
    pub done: u64,
    /// Moves that were given up: the Monolith kept the room, or went.
    pub given_up: u64,
    /// Moves that were refused, by reason.
    pub refused: [u64; MoveRefusal::ALL.len()],
}

/// Moves that wait for their turn, and rooms that are expected at a target.
pub(super) struct Moves {
    lines: BTreeMap<MonolithId, Line>,
    pub(super) quiet: Quiet,
    aims: Map<RoomKey, Aim>,
    /// The aims in the order of their ends.
    ends: VecDeque<(Micros, RoomKey)>,
    next_call: Option<Micros>,
}

/// The moves away from one Monolith, which share its pace.
#[derive(Default)]
struct Line {
    /// Before this moment none begins.
    free_at: Micros,
    waiting: VecDeque<Wanted>,
}

/// A move that somebody wants.
pub(super) struct Wanted {
    pub(super) room: RoomKey,
    /// Where to; none if that is decided once it has left.
    pub(super) to: Option<MonolithId>,
    pub(super) by: Mover,
}

struct Aim {
    to: MonolithId,
    until: Micros,
}

impl Moves {
    pub(super) fn new(rebalance: Option<Rebalancing>, now: Micros) -> Self {
        Self {
            lines: BTreeMap::new(),
            quiet: Quiet::default(),
            aims: Map::default(),
            ends: VecDeque::new(),
            next_call: rebalance.map(|rebalance| now.saturating_add(rebalance.every)),
        }
    }

    /// A changed interval counts from now on. Who wants no more rebalancing wants none of the moves that wait either.
    pub(super) fn configure(&mut self, old: Option<Rebalancing>, new: Option<Rebalancing>, now: Micros) {
        if old.is_some() && new.is_none() {
            self.drop_rebalancing();
        }
        if old.map(|old| old.every) != new.map(|new| new.every) {
            self.next_call = new.map(|new| now.saturating_add(new.every));
        }
    }

    /// What the policy wanted and has not begun.
    fn drop_rebalancing(&mut self) {
        self.lines.values_mut().for_each(|line| line.waiting.retain(|wanted| wanted.by != Mover::Policy));
    }

    /// Queues a move away from a Monolith.
    pub(super) fn queue(&mut self, from: &MonolithId, wanted: Wanted) {
        self.lines.entry(from.clone()).or_default().waiting.push_back(wanted);
    }

    /// The rooms that wait for their turn to leave a Monolith.
    pub(super) fn queued_from(&self, from: &MonolithId) -> HashSet<&RoomKey> {
        self.lines.get(from).into_iter().flat_map(|line| &line.waiting).map(|wanted| &wanted.room).collect()
    }

    /// Whether rooms of a Monolith wait for their turn or to be quiet.
    pub(super) fn is_busy(&self, from: &MonolithId) -> bool {
        let waits = self.lines.get(from).is_some_and(|line| !line.waiting.is_empty());
        waits || self.quiet.is_busy(from)
    }

    /// A Monolith is no longer drained: what has not been asked to go stays.
    pub(super) fn call_off(&mut self, from: &MonolithId) {
        if let Some(line) = self.lines.get_mut(from) {
            line.waiting.retain(|wanted| wanted.by != Mover::Drain);
        }
        self.quiet.call_off(from);
    }

    /// A Monolith has gone: nothing moves away from it any more.
    pub(super) fn lost(&mut self, from: &MonolithId) {
        self.call_off(from);
        self.quiet.lost(from);
    }

    /// When there is something to do, if ever.
    pub(super) fn next_due(&self) -> Option<Micros> {
        let waiting = self.lines.values().filter(|line| !line.waiting.is_empty());
        waiting.map(|line| line.free_at).chain(self.next_call).chain(self.quiet.next_due()).min()
    }

    /// Moves that have not begun.
    pub(super) fn queued(&self) -> usize {
        self.lines.values().map(|line| line.waiting.len()).sum::<usize>() + self.quiet.len()
    }

    /// Whoever asks for this room soon is sent there.
    pub(super) fn aim(&mut self, key: &RoomKey, to: MonolithId, now: Micros) {
        let until = now.saturating_add(AIMED_FOR);
        self.aims.insert(key.clone(), Aim { to, until });
        self.ends.push_back((until, key.clone()));
        while let Some((end, key)) = self.ends.front()
            && (*end <= now || self.ends.len() > KEPT_AIMS)
        {
            // A later aim of the same room has an end of its own.
            if self.aims.get(key).is_some_and(|aim| aim.until == *end) {
                self.aims.remove(key);
            }
            self.ends.pop_front();
        }
    }

    /// Whether a room is expected somewhere.
    fn expects(&self, key: &RoomKey, now: Micros) -> bool {
        self.aims.get(key).is_some_and(|aim| aim.until > now)
    }

    /// Where a room is expected, if it is. It is told once.
    pub(super) fn take_aim(&mut self, key: &RoomKey, now: Micros) -> Option<MonolithId> {
        if self.aims.is_empty() {
            return None;
        }
        self.aims.remove(key).filter(|aim| aim.until > now).map(|aim| aim.to)
    }
}

impl Cluster {
    /// Moves that have not begun.
    pub fn queued_moves(&self) -> usize {
        self.moves.queued()
    }

    /// Asks the policy what should move, when that is due. Its answer replaces what has not begun.
    pub(super) fn rebalance_if_due(&mut self, turn: &mut Turn<'_>) {
        let Some(Rebalancing { every, dry }) = self.settings.rebalance else { return };
        if self.moves.next_call.is_none_or(|at| at > self.now) {
            return;
        }
        self.moves.next_call = Some(self.now.saturating_add(every));
        self.moves.drop_rebalancing();
        if !turn.policy.has(Hook::Rebalance) {
            return;
        }
        self.counters.moves.calls += 1;
        let (rooms, left_out) = self.rooms_to_show();
        self.counters.moves.left_out += left_out as u64;
        let shown = rooms.len();
        self.decisions += 1;
        let call = Call {
            hook: Hook::Rebalance,
            now_us: self.now,
            seed: self.seed(),
            region: self.settings.region.clone(),
            room: None,
            client: None,
            cause: None,
            request: None,
            excluded: Vec::new(),
            rooms: rooms.into(),
        };
        let decision = decide(turn.policy, &call, &self.view);
        self.counters.moves.faults += u64::from(decision.fault.is_some());
        // An answer of another kind is no answer, and nothing moves by default.
        let moves = if let Answer::Moves(moves) = decision.answer { moves } else { Vec::new() };
        let mut done = Rebalanced {
            rooms: shown,
            left_out,
            asked: moves.len(),
            refused: 0,
            dry,
            fault: decision.fault.map(|fault| fault.to_string()),
        };
        let mut seen = HashSet::new();
        for Move { room, to } in moves {
            let key = RoomKey::of(&room);
            let checked = self.may_move(&key, Some(&to)).map(|active| active.monolith.clone());
            match checked {
                _ if !seen.insert(key.clone()) => {
                    self.refuse_move(&key, Some(&to), Mover::Policy, MoveRefusal::Duplicate, turn);
                    done.refused += 1;
                }
                Err(refusal) => {
                    self.refuse_move(&key, Some(&to), Mover::Policy, refusal, turn);
                    done.refused += 1;
                }
                Ok(_) if dry => {
                    self.counters.moves.dry += 1;
                    self.tell(&key, What::WouldMove { to, policy: None }, turn);
                }
                Ok(from) => self.moves.queue(&from, Wanted { room: key, to: Some(to), by: Mover::Policy }),
            }
        }
        turn.emit(Effect::Rebalanced(done));
    }

    /// Begins the moves whose turn it is.
    pub(super) fn begin_due_moves(&mut self, turn: &mut Turn<'_>) {
        if self.moves.lines.is_empty() {
            return;
        }
        let due = self.moves.lines.iter().filter(|(_, line)| line.free_at <= self.now);
        let due: Vec<MonolithId> = due.map(|(id, _)| id.clone()).collect();
        for from in due {
            while let Some(line) = self.moves.lines.get_mut(&from)
                && line.free_at <= self.now
            {
                let Some(Wanted { room, to, by }) = line.waiting.pop_front() else {
                    // Nothing waits and nothing is paced: there is nothing to remember of it.
                    self.moves.lines.remove(&from);
                    break;
                };
                let begun = match self.may_move(&room, to.as_ref()) {
                    Err(refusal) => Err(refusal),
                    Ok(active) if active.monolith != from => Err(MoveRefusal::Changed),
                    Ok(_) => self.begin_move(&room, to.clone(), by, turn),
                };
                if let Err(refusal) = begun {
                    self.refuse_move(&room, to.as_ref(), by, refusal, turn);
                }
            }
        }
    }

    /// An operator's move begins at once, whatever waits; it counts towards the pace of those that follow.
    pub(super) fn move_by_hand(&mut self, request: RequestId, key: &RoomKey, to: &MonolithId, turn: &mut Turn<'_>) {
        let outcome = self.may_move(key, Some(to)).map(|_| ());
        let outcome = outcome.and_then(|()| self.begin_move(key, Some(to.clone()), Mover::Hand, turn));
        if let Err(refusal) = outcome {
            self.refuse_move(key, Some(to), Mover::Hand, refusal, turn);
        }
        turn.emit(Effect::Moving { request, outcome });
    }

    /// Whether a room that this Monolith has let go is to be elsewhere.
    pub(super) fn has_moved_away(&self, key: &RoomKey, monolith: &MonolithId) -> bool {
        self.moves.expects(key, self.now) || !self.may_take(monolith)
    }

    /// Whether a Monolith takes rooms.
    pub(super) fn may_take(&self, monolith: &MonolithId) -> bool {
        self.monoliths.contains_key(monolith) && self.view.get(monolith).is_some_and(|row| row.serves())
    }

    /// Checks a move as things are now.
    pub(super) fn may_move(&self, key: &RoomKey, to: Option<&MonolithId>) -> Result<&Active, MoveRefusal> {
        let room = self.rooms.get(key).ok_or(MoveRefusal::UnknownRoom)?;
        let active = match &room.state {
            State::Active(active) => active,
            State::Unloading(_) => return Err(MoveRefusal::UnderWay),
            State::Parked { .. } | State::Placing(_) | State::Settling(_) => return Err(MoveRefusal::NotActive),
        };
        if self.moves.quiet.contains(key) {
            return Err(MoveRefusal::UnderWay);
        }
        match to {
            Some(to) if !self.monoliths.contains_key(to) => return Err(MoveRefusal::UnknownMonolith),
            Some(to) if active.monolith == *to => return Err(MoveRefusal::SameMonolith),
            Some(to) if !self.may_take(to) => return Err(MoveRefusal::NotServing),
            None if !self.somebody_else_takes(&active.monolith) => return Err(MoveRefusal::Nowhere),
            Some(_) | None => {}
        }
        let copy = self.monoliths.get(&active.monolith).and_then(|monolith| monolith.copies.get(key));
        let Some(copy) = copy.filter(|copy| active.binding == Binding::Reported(copy.epoch)) else {
            return Err(MoveRefusal::Unreported);
        };
        if copy.asked.is_some() {
            return Err(MoveRefusal::AskedBefore);
        }
        if self.view.get(&active.monolith).is_some_and(|row| row.state == MonolithState::Suspect) {
            return Err(MoveRefusal::SourceSilent);
        }
        if self.joined_to(key).is_empty() {
            return Err(MoveRefusal::NoMembers);
        }
        Ok(active)
    }

    /// For how long a room with so many clients is the only one to leave its Monolith.
    pub(super) fn move_cost(&self, clients: usize) -> Micros {
        ((clients as u64).saturating_mul(1_000_000) / u64::from(self.settings.move_rate.max(1))).max(1)
    }

    pub(super) fn refuse_move(
        &mut self,
        key: &RoomKey,
        to: Option<&MonolithId>,
        by: Mover,
        refusal: MoveRefusal,
        turn: &mut Turn<'_>,
    ) {
        self.counters.moves.refused[refusal as usize] += 1;
        self.counters.handover.skipped += u64::from(refusal == MoveRefusal::TooYoung);
        self.tell_move_refused(key, to, by, refusal, turn);
    }

    /// Begins a checked move and books its cost: so many clients will come back, at `move_rate` a second.
    fn begin_move(
        &mut self,
        key: &RoomKey,
        to: Option<MonolithId>,
        by: Mover,
        turn: &mut Turn<'_>,
    ) -> Result<Moving, MoveRefusal> {
        let patient = self.settings.seamless.is_some_and(|seamless| seamless.quiet > 0);
        let from = self.rooms.get(key).and_then(Room::bound_to).cloned();
        if !patient && from.is_some_and(|from| self.may_be_unsaved(key, &from)) {
            return Err(MoveRefusal::TooYoung);
        }
        let moving = match self.settings.seamless.map(|seamless| seamless.quiet) {
            Some(quiet) if quiet > 0 => self.wait_for_quiet(key, to, by, quiet, turn),
            Some(_) | None => self.let_go(key, to, by, false, turn),
        };
        let moving = moving.ok_or(MoveRefusal::NotActive)?;
        let cost = self.move_cost(moving.clients);
        let line = self.moves.lines.entry(moving.from.clone()).or_default();
        line.free_at = line.free_at.max(self.now).saturating_add(cost);
        line.waiting.retain(|wanted| wanted.room != *key);
        Ok(moving)
    }

    /// Whether a room may live in its Monolith's memory only: that it moves then would end it.
    pub(super) fn may_be_unsaved(&self, key: &RoomKey, monolith: &MonolithId) -> bool {
        let copy = self.monoliths.get(monolith).and_then(|monolith| monolith.copies.get(key));
        copy.is_some_and(|copy| copy.metadata.temporary && self.now.saturating_sub(copy.since) < SAVED_AFTER)
    }

    /// Asks the Monolith of a checked room to let it go.
    pub(super) fn let_go(
        &mut self,
        key: &RoomKey,
        to: Option<MonolithId>,
        by: Mover,
        lossy: bool,
        turn: &mut Turn<'_>,
    ) -> Option<Moving> {
        let moving = self.ask_to_let_go(key, to, turn)?;
        let (from, to, clients) = (moving.from.clone(), moving.to.clone(), moving.clients);
        if lossy {
            self.counters.handover.lossy += 1;
            if let Some(drain) = self.monoliths.get_mut(&from).and_then(|monolith| monolith.drain.as_mut()) {
                drain.lossy += 1;
            }
        }
        // The cluster does not know versions; whoever keeps the story does.
        self.tell(key, What::Moving { from, to, clients, by, lossy, policy: None, explained: Vec::new() }, turn);
        self.counters.moves.begun += 1;
        Some(moving)
    }

    /// The rooms that `rebalance` sees, sorted by name, and how many more there are.
    fn rooms_to_show(&self) -> (Vec<CallRoom>, usize) {
        let active = |room: &Room| matches!(room.state, State::Active(_));
        let mut shown: Vec<(&RoomKey, &Room)> = self.rooms.iter().filter(|(_, room)| active(room)).collect();
        let left_out = shown.len().saturating_sub(SHOWN_ROOMS);
        if left_out > 0 {
            // By name where they have equally many, since the table has no order of its own.
            shown.select_nth_unstable_by(SHOWN_ROOMS, |a, b| {
                b.1.members.len().cmp(&a.1.members.len()).then_with(|| a.0.cmp(b.0))
            });
            shown.truncate(SHOWN_ROOMS);
        }
        shown.sort_unstable_by(|a, b| a.0.cmp(b.0));
        (shown.into_iter().map(|(key, room)| self.room_to_show(key, room)).collect(), left_out)
    }

    fn room_to_show(&self, key: &RoomKey, room: &Room) -> CallRoom {
        let owner = room.owner();
        let copy = owner.and_then(|id| self.monoliths.get(id)).and_then(|monolith| monolith.copies.get(key));
        let placed = room.placed.as_ref().filter(|placed| Some(&placed.monolith) == owner);
        CallRoom {
            name: Some(key.as_str().into()),
            region: room.region.clone(),
            clients: u32::try_from(room.members.len()).unwrap_or(u32::MAX),
            regions: room.regions.clone(),
            // What was read from a frame is JSON.
            metadata: copy.and_then(|copy| serde_json::from_str(copy.metadata.raw()).ok()),
            previous: room.previous.clone(),
            attempt: 1,
            bound: true,
            owner: owner.cloned(),
            age_s: placed.map(|placed| self.now.saturating_sub(placed.at) as f64 / 1e6),
        }
    }
}
