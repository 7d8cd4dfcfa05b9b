//! Placement: asking the policy, sending one waiter out alone, and what comes of it.

use std::collections::VecDeque;

use super::handover::OFFER_AGAIN;
use super::room::{Placed, Placing, Settling, State, Unloading, Waiter};
use super::{Cluster, Turn};
use crate::model::policy::{Answer, Call, CallClient, CallRoom, Cause, Decision, Hook, Previous};
use crate::model::story::What;
use crate::model::{CloseCode, MonolithId, RoomKey, RoomName};
use crate::policy::decide;

/// Why nobody takes a room: a close code for clients, a status for requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal {
    pub(super) code: CloseCode,
    pub(super) status: u16,
    /// Whether it may be different in a moment.
    pub(super) is_passing: bool,
}

impl Refusal {
    /// No Monolith is left to try.
    pub(super) const UNAVAILABLE: Self = Self { code: CloseCode::TRY_AGAIN, status: 503, is_passing: true };

    /// What a policy said, for a socket that is already upgraded and for a plain request.
    fn of_policy(code: u16) -> Self {
        let status = if (400..600).contains(&code) { code } else { 503 };
        let close = if code == 1013 || code >= 4000 { CloseCode::sendable(code) } else { None };
        Self { code: close.unwrap_or(CloseCode::TRY_AGAIN), status, is_passing: false }
    }
}

impl Cluster {
    /// The first waiter of a room that nobody has. The room must not exist.
    pub(super) fn place_first(&mut self, name: RoomName, waiter: Waiter, turn: &mut Turn<'_>) {
        let key = name.key().clone();
        let deadline = self.parked_until();
        self.insert_room(name, State::Parked { waiting: VecDeque::from([waiter]), deadline }, turn);
        self.enlist(&key, waiter);
        self.begin_wait(waiter);
        self.waiting += 1;
        if self.must_wait() {
            self.tell(&key, What::Waits, turn);
        } else {
            self.unpark(&key, turn);
        }
    }

    /// Another waiter of a room that is being placed or parked.
    pub(super) fn wait_for_room(&mut self, key: &RoomKey, waiter: Waiter, turn: &mut Turn<'_>) {
        self.enlist(key, waiter);
        let lingering = match self.rooms.get_mut(key).map(|room| &mut room.state) {
            Some(
                State::Parked { waiting, .. }
                | State::Unloading(Unloading { waiting, .. })
                | State::Settling(Settling { waiting, .. }),
            ) => {
                waiting.push_back(waiter);
                false
            }
            Some(State::Placing(placing)) => {
                placing.waiting.push_back(waiter);
                placing.out.is_empty()
            }
            Some(State::Active(_)) | None => return,
        };
        self.begin_wait(waiter);
        self.waiting += 1;
        if lingering {
            self.advance(key, turn);
        }
    }

    /// Nobody is out for a room: the next one goes, alone. Without a next one the choice stays until its deadline,
    /// since the Monolith may be loading the room all the same.
    pub(super) fn advance(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        let Some(State::Placing(placing)) = self.rooms.get(key).map(|room| &room.state) else { return };
        if !placing.out.is_empty() {
            return;
        }
        if placing.crossed_unload && self.has_moved_away(key, &placing.monolith) {
            // Who had crossed the unload has gone, and whoever waits is not for the Monolith that was asked to let go.
            self.next_attempt(key, "moved", None, turn);
            return;
        }
        let failed = placing.tried.contains(&placing.monolith);
        if !failed && self.claims_first(key, turn) {
            return;
        }
        let Some(State::Placing(placing)) = self.rooms.get_mut(key).map(|room| &mut room.state) else { return };
        let mut waiting = std::mem::take(&mut placing.waiting);
        while waiting.front().is_some_and(|waiter| !self.still_waits(*waiter)) {
            waiting.pop_front();
        }
        let next = if failed { None } else { waiting.pop_front() };
        let place_again = failed && !waiting.is_empty();
        let deadline = self.now + self.settings.load_timeout;
        self.change_room(key, turn, |room| {
            if let State::Placing(placing) = &mut room.state {
                placing.waiting = waiting;
                if let Some(waiter) = next {
                    placing.out.push(waiter);
                    placing.deadline = deadline;
                }
            }
        });
        if let Some(waiter) = next {
            self.waiting -= 1;
            self.send_out(key, waiter, turn);
        } else if place_again {
            self.place_again(key, None, turn);
        }
    }

    /// A room's Monolith did not confirm it in time: its waiters are withdrawn and the next choice is tried.
    pub(super) fn placing_timed_out(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        if self.claim_timed_out(key, turn) {
            return;
        }
        if self.rooms.get(key).is_some_and(|room| !room.out().is_empty()) {
            self.counters.load_timeouts += 1;
        }
        self.recall(key, turn);
        self.next_attempt(key, "timeout", None, turn);
    }

    /// Withdraws the waiters that are out and puts the clients among them back to the front, in their order.
    pub(super) fn recall(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        let out = self.change_room(key, turn, |room| match &mut room.state {
            State::Placing(placing) => std::mem::take(&mut placing.out),
            State::Parked { .. } | State::Active(_) | State::Unloading(_) | State::Settling(_) => Vec::new(),
        });
        let Some(out) = out else { return };
        if let Some(State::Placing(placing)) = self.rooms.get_mut(key).map(|room| &mut room.state) {
            placing.unanswered |= !out.is_empty();
        }
        // A request that is out cannot be taken back: its own outcome ends it.
        let back: Vec<Waiter> = out.iter().copied().filter(|waiter| self.withdraw(*waiter, turn)).collect();
        let Some(State::Placing(placing)) = self.rooms.get_mut(key).map(|room| &mut room.state) else { return };
        for waiter in back.iter().rev() {
            placing.waiting.push_front(*waiter);
            self.waiting += 1;
        }
        self.end_overdue(&back, turn);
    }

    /// The Monolith of this attempt is out of the question. A join that crossed an unload is no attempt: the room may
    /// go to the same Monolith again.
    pub(super) fn fail_choice(&mut self, key: &RoomKey, why: &str, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(key) else { return };
        let State::Placing(placing) = &mut room.state else { return };
        let (monolith, attempt) = (placing.monolith.clone(), placing.attempt);
        room.previous = Some(Previous { monolith: monolith.clone(), why: why.into() });
        if placing.tried.contains(&monolith) {
            placing.crossed_unload = false;
            return;
        }
        if !std::mem::take(&mut placing.crossed_unload) {
            placing.tried.push(monolith.clone());
            placing.attempt += 1;
        }
        self.tell(key, What::NotConfirmed { monolith, attempt, why: why.into() }, turn);
    }

    /// The Monolith of this attempt did not take the room: tries another for whoever waits.
    pub(super) fn next_attempt(&mut self, key: &RoomKey, why: &str, cause: Option<Cause>, turn: &mut Turn<'_>) {
        self.fail_choice(key, why, turn);
        if self.first_waiting(key).is_some() {
            self.place_again(key, cause, turn);
        } else {
            self.unbind(key, why, turn);
        }
    }

    /// Asks the policy once more for a room that has waiters and no good choice. Without a cause it is that of the
    /// first waiter.
    fn place_again(&mut self, key: &RoomKey, cause: Option<Cause>, turn: &mut Turn<'_>) {
        let Some(first) = self.first_waiting(key) else { return };
        let Some(State::Placing(placing)) = self.rooms.get(key).map(|room| &room.state) else { return };
        let (attempt, tried) = (placing.attempt, placing.tried.clone());
        if attempt > self.settings.place_attempts {
            self.give_up(key, Refusal::UNAVAILABLE, turn);
            return;
        }
        if self.pace.is_outage() {
            self.park(key, turn);
            return;
        }
        match self.choose(key, first, cause, attempt, tried, turn) {
            Ok(monolith) => {
                let deadline = self.now + self.settings.load_timeout;
                self.change_room(key, turn, |room| {
                    if let State::Placing(placing) = &mut room.state {
                        placing.monolith = monolith;
                        placing.unanswered = false;
                        placing.deadline = deadline;
                    }
                });
                self.advance(key, turn);
            }
            Err(refusal) => self.give_up(key, refusal, turn),
        }
    }

    /// Every Monolith has said what it has, and none has this room: it is placed.
    pub(super) fn unpark(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        let Some(first) = self.first_waiting(key) else {
            self.remove_room(key, turn);
            return;
        };
        if self.may_go_on_waiting(first) && !self.view.rows().iter().any(crate::model::policy::MonolithRow::serves) {
            // There is nobody to choose from: no policy is asked again and again about that.
            self.give_up(key, Refusal::UNAVAILABLE, turn);
            return;
        }
        match self.choose(key, first, None, 1, Vec::new(), turn) {
            Ok(monolith) => {
                let deadline = self.now + self.settings.load_timeout;
                self.change_room(key, turn, |room| {
                    let State::Parked { waiting, .. } = &mut room.state else { return };
                    room.state = State::Placing(Placing {
                        monolith,
                        out: Vec::new(),
                        waiting: std::mem::take(waiting),
                        attempt: 1,
                        tried: Vec::new(),
                        crossed_unload: false,
                        unanswered: false,
                        deadline,
                    });
                });
                self.advance(key, turn);
            }
            Err(refusal) => self.give_up(key, refusal, turn),
        }
    }

    /// There is nobody to ask at present: whoever waits goes on waiting, for as long as a join is held.
    fn park(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        let deadline = self.parked_until();
        self.change_room(key, turn, |room| {
            let State::Placing(Placing { waiting, .. }) = &mut room.state else { return };
            room.state = State::Parked { waiting: std::mem::take(waiting), deadline };
        });
        self.tell(key, What::Waits, turn);
    }

    /// Nobody takes the room: whoever waits is told, and the room is gone.
    pub(super) fn give_up(&mut self, key: &RoomKey, refusal: Refusal, turn: &mut Turn<'_>) {
        let waiting = match self.rooms.get_mut(key).map(|room| &mut room.state) {
            Some(State::Parked { waiting, .. }) => std::mem::take(waiting),
            Some(State::Placing(placing)) => std::mem::take(&mut placing.waiting),
            Some(State::Active(_) | State::Unloading(_) | State::Settling(_)) | None => return,
        };
        let (mut refused, mut kept) = (0, VecDeque::new());
        for waiter in waiting {
            if !self.still_waits(waiter) {
                continue;
            }
            if refusal.is_passing && self.may_go_on_waiting(waiter) {
                kept.push_back(waiter);
                continue;
            }
            refused += 1;
            self.waiting -= 1;
            self.counters.refused_unplaced += 1;
            self.refuse(waiter, refusal, turn);
        }
        if refused > 0 || kept.is_empty() {
            self.tell(key, What::Refused { waiting: refused, code: refusal.code.get() }, turn);
        }
        if kept.is_empty() {
            self.unbind(key, "refused", turn);
            return;
        }
        let deadline = self.now.saturating_add(OFFER_AGAIN);
        self.change_room(key, turn, |room| room.state = State::Parked { waiting: kept, deadline });
    }

    /// Where a room without a name goes: the Monolith will make one up.
    pub(super) fn place_nameless(&mut self, waiter: Waiter, turn: &mut Turn<'_>) -> Result<MonolithId, Refusal> {
        let room = CallRoom { region: self.region_of(waiter), attempt: 1, ..CallRoom::default() };
        // A named room remembers who failed; without a name it is the Monolith that has to be remembered.
        let shunned = self.monoliths.iter().filter(|(_, monolith)| monolith.shunned > self.now);
        let mut excluded: Vec<MonolithId> = shunned.map(|(id, _)| id.clone()).collect();
        excluded.sort_unstable();
        if excluded.len() == self.monoliths.len() {
            excluded.clear();
        }
        let decision = self.decide(room, None, Cause::Create, excluded, turn);
        if let Waiter::Request(request) = waiter {
            self.tell_decided(Err(request), turn);
        }
        self.first_choice(&decision)
    }

    /// Asks the policy where a room goes, and writes down what it said.
    fn choose(
        &mut self,
        key: &RoomKey,
        first: Waiter,
        cause: Option<Cause>,
        attempt: u32,
        tried: Vec<MonolithId>,
        turn: &mut Turn<'_>,
    ) -> Result<MonolithId, Refusal> {
        let aim = self.moves.take_aim(key, self.now);
        let cause = if aim.is_some() { Cause::Move } else { cause.unwrap_or_else(|| self.cause_of(first)) };
        if let Some(to) = aim.filter(|to| self.may_take(to) && !tried.contains(to)) {
            if let Some(room) = self.rooms.get_mut(key) {
                room.placed = Some(Placed { at: self.now, monolith: to.clone(), followed: false, moved: true });
            }
            self.tell(key, What::Sent { cause, attempt, monolith: to.clone() }, turn);
            return Ok(to);
        }
        let call_room = CallRoom { attempt, ..self.call_room(key, first) };
        let decision = self.decide(call_room, self.call_client(first), cause, tried, turn);
        self.tell_decided(Ok(key), turn);
        let monolith = self.first_choice(&decision)?;
        if let Some(room) = self.rooms.get_mut(key) {
            let moved = matches!(cause, Cause::Move | Cause::Lost);
            room.placed = Some(Placed { at: self.now, monolith: monolith.clone(), followed: false, moved });
        }
        Ok(monolith)
    }

    fn decide(
        &mut self,
        room: CallRoom,
        client: Option<CallClient>,
        cause: Cause,
        excluded: Vec<MonolithId>,
        turn: &mut Turn<'_>,
    ) -> Decision {
        self.decisions += 1;
        self.counters.placements += 1;
        let call = Call {
            hook: Hook::Place,
            now_us: self.now,
            seed: self.seed(),
            region: self.settings.region.clone(),
            room: Some(room),
            client,
            cause: Some(cause),
            request: None,
            excluded,
            rooms: [].into(),
        };
        let decision = decide(turn.policy, &call, &self.view);
        if decision.fault.is_some() {
            self.counters.fallbacks += 1;
        }
        decision
    }

    /// Every decision has randomness of its own, which a recorded call brings along.
    pub(super) fn seed(&self) -> u64 {
        self.now.rotate_left(32) ^ self.decisions.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Whether somebody waits for a room.
    pub(super) fn waits_for(&self, key: &RoomKey) -> bool {
        self.first_waiting(key).is_some()
    }

    fn first_choice(&self, decision: &Decision) -> Result<MonolithId, Refusal> {
        if let Answer::Reject { code, .. } = &decision.answer {
            return Err(Refusal::of_policy(*code));
        }
        let linked = decision.choices.iter().find(|choice| self.monoliths.contains_key(*choice));
        linked.cloned().ok_or(Refusal::UNAVAILABLE)
    }

    pub(super) fn first_waiting(&self, key: &RoomKey) -> Option<Waiter> {
        match self.rooms.get(key).map(|room| &room.state) {
            Some(
                State::Parked { waiting, .. }
                | State::Placing(Placing { waiting, .. })
                | State::Unloading(Unloading { waiting, .. })
                | State::Settling(Settling { waiting, .. }),
            ) => waiting.iter().copied().find(|waiter| self.still_waits(*waiter)),
            Some(State::Active(_)) | None => None,
        }
    }

    /// When whoever has waited longest for a room came, as a number that rises.
    pub(super) fn first_arrival(&self, key: &RoomKey) -> Option<u64> {
        match self.first_waiting(key)? {
            Waiter::Client(client) => self.clients.get(&client).map(|client| client.arrival),
            Waiter::Request(request) => self.requests.get(&request).map(|request| request.arrival),
        }
    }

    fn call_room(&self, key: &RoomKey, first: Waiter) -> CallRoom {
        let mut call = CallRoom { name: Some(key.as_str().into()), ..CallRoom::default() };
        if let Some(room) = self.rooms.get(key) {
            call.region = room.region.clone().or_else(|| self.region_of(first));
            call.clients = u32::try_from(room.members.len()).unwrap_or(u32::MAX);
            call.regions = room.regions.clone();
            call.previous = room.previous.clone();
            call.metadata = self.metadata_value(key);
        }
        call
    }
}
