//! HTTP requests that need a placement: for a room that nobody has, or one that is being created.

use super::placing::Refusal;
use super::room::{Active, Binding, State, Waiter};
use super::{Cluster, Turn};
use crate::model::event::{Effect, Micros, RequestOutcome};
use crate::model::policy::{Cause, MonolithRow};
use crate::model::story::What;
use crate::model::{MonolithId, Region, RequestId, RoomKey, RoomName};

/// How long births without a name go elsewhere after one could not be sent to a Monolith, in microseconds.
const SHUNNED: Micros = 1_000_000;

/// A request that waits for a Monolith, or whose outcome its room waits for.
pub(super) struct Request {
    /// The room; `None` where the Monolith makes up the name.
    pub(super) room: Option<RoomKey>,
    pub(super) cause: Cause,
    pub(super) region: Option<Region>,
    /// How many clients and requests had come before it.
    pub(super) arrival: u64,
    /// Where it was sent.
    pub(super) sent_to: Option<MonolithId>,
    /// When it has waited for long enough; none once it was sent.
    pub(super) wait_ends: Option<Micros>,
}

impl Cluster {
    pub(super) fn request(
        &mut self,
        request: RequestId,
        name: Option<RoomName>,
        cause: Cause,
        region: Option<Region>,
        turn: &mut Turn<'_>,
    ) {
        let waiter = Waiter::Request(request);
        let key = name.as_ref().map(|name| name.key().clone());
        self.arrivals += 1;
        let entry =
            Request { room: key.clone(), cause, region, arrival: self.arrivals, sent_to: None, wait_ends: None };
        self.requests.insert(request, entry);
        let (Some(name), Some(key)) = (name, key) else {
            self.generate(request, turn);
            return;
        };
        let bound = self.rooms.get(&key).is_some_and(|room| room.bound_to().is_some());
        if !bound && (self.waiting >= self.settings.pending_joins || self.too_many_rooms(&key)) {
            self.counters.refused_full += 1;
            self.refuse(waiter, Refusal::UNAVAILABLE, turn);
            return;
        }
        match self.rooms.get(&key).map(|room| &room.state) {
            Some(State::Active(_)) => self.let_in(&key, waiter, turn),
            Some(State::Placing(_) | State::Parked { .. } | State::Unloading(_) | State::Settling(_)) => {
                self.wait_for_room(&key, waiter, turn);
            }
            None => self.place_first(name, waiter, turn),
        }
    }

    /// A room whose name the Monolith makes up. It counts as pending there until the answer.
    fn generate(&mut self, request: RequestId, turn: &mut Turn<'_>) {
        match self.place_nameless(Waiter::Request(request), turn) {
            Ok(monolith) => {
                self.view.update(&monolith, |row| row.pending += 1);
                if let Some(entry) = self.requests.get_mut(&request) {
                    entry.sent_to = Some(monolith.clone());
                }
                turn.emit(Effect::Send { request, monolith, awaited: true });
            }
            Err(refusal) => {
                self.counters.refused_unplaced += 1;
                self.refuse(Waiter::Request(request), refusal, turn);
            }
        }
    }

    /// Gives a request the Monolith of its room. If `awaited`, its outcome decides about the room.
    pub(super) fn send_request(&mut self, key: &RoomKey, request: RequestId, awaited: bool, turn: &mut Turn<'_>) {
        let Some(monolith) = self.rooms.get(key).and_then(super::Room::monolith).cloned() else { return };
        if awaited {
            self.finish_wait(Waiter::Request(request));
            if let Some(entry) = self.requests.get_mut(&request) {
                entry.sent_to = Some(monolith.clone());
            }
        } else {
            self.remove_request(request);
        }
        turn.emit(Effect::Send { request, monolith, awaited });
    }

    pub(super) fn request_done(&mut self, request: RequestId, outcome: RequestOutcome, turn: &mut Turn<'_>) {
        let Some(entry) = self.remove_request(request) else { return };
        let Some(monolith) = entry.sent_to else {
            // It was given up while it waited: its place in the queue is dead, and it held up nobody.
            if let Some(key) = &entry.room
                && self.rooms.get(key).is_some_and(|room| room.bound_to().is_none())
            {
                self.waiting -= 1;
            }
            return;
        };
        let Some(key) = entry.room else {
            self.view.update(&monolith, |row| row.pending = row.pending.saturating_sub(1));
            match outcome {
                RequestOutcome::Created(name) => {
                    self.tell_named(request, name.key(), turn);
                    self.served(&name, &monolith, turn);
                }
                RequestOutcome::NotSent => {
                    if let Some(entry) = self.monoliths.get_mut(&monolith) {
                        entry.shunned = self.now + SHUNNED;
                    }
                }
                RequestOutcome::Status(_) | RequestOutcome::Failed => {}
            }
            return;
        };
        // A request that the room waits for no longer may still tell where the room is, but ends no wait.
        let waiter = Waiter::Request(request);
        let was_out = self.is_out(&key, waiter);
        self.take_out(&key, waiter, turn);
        let answered = matches!(outcome, RequestOutcome::Created(_) | RequestOutcome::Status(_));
        self.answers += u64::from(was_out && answered);
        match outcome {
            RequestOutcome::Created(name) => {
                self.served(&name, &monolith, turn);
                // A Monolith that created it under another name has answered for this one too: the next may go.
                self.advance(&key, turn);
                self.release_unless_awaited(&key, turn);
            }
            RequestOutcome::Status(200..=299) if entry.cause == Cause::Http => {
                self.served(&RoomName::reported(key.as_str()), &monolith, turn);
            }
            RequestOutcome::Status(_) | RequestOutcome::NotSent | RequestOutcome::Failed if !was_out => {}
            // A refused creation has loaded nothing either, so its choice is pending no longer than its answer took.
            RequestOutcome::Status(code) if code == 404 || entry.cause == Cause::Create => {
                self.tell(&key, What::Denied { monolith, code }, turn);
                self.advance_or_drop(&key, true, turn);
            }
            RequestOutcome::NotSent => self.not_sent(&key, turn),
            RequestOutcome::Status(_) => {
                self.advance(&key, turn);
                self.release_unless_awaited(&key, turn);
            }
            RequestOutcome::Failed => {
                self.left_unanswered(&key);
                self.advance(&key, turn);
            }
        }
    }

    /// A Monolith has created a room or answered for it over HTTP: it has it, until somebody knows better.
    fn served(&mut self, name: &RoomName, monolith: &MonolithId, turn: &mut Turn<'_>) {
        if !self.monoliths.contains_key(monolith) {
            return;
        }
        let key = name.key().clone();
        let binding = match self.copy_epoch(monolith, &key) {
            Some(epoch) => Binding::Reported(epoch),
            None => Binding::Provisional { deadline: self.now + self.settings.load_timeout },
        };
        match self.rooms.get(&key).map(|room| &room.state) {
            None => {
                let active = Active { monolith: monolith.clone(), binding };
                self.tell(&key, What::Created { monolith: monolith.clone() }, turn);
                self.insert_room(name.clone(), State::Active(active), turn);
                self.claim_created(&key, monolith, turn);
            }
            Some(State::Placing(_) | State::Parked { .. }) => self.activate(&key, monolith, binding, turn),
            Some(State::Active(_) | State::Unloading(_) | State::Settling(_)) => {}
        }
    }

    /// The Monolith of a placement cannot be reached over HTTP: whoever waits tries another. Where there is none, the first
    /// client that waits goes there all the same, since its join takes the link, which stands. Without anyone else
    /// waiting the choice lingers, marked as failed if there is another: the request that comes back goes there.
    fn not_sent(&mut self, key: &RoomKey, turn: &mut Turn<'_>) {
        let Some(State::Placing(placing)) = self.rooms.get(key).map(|room| &room.state) else { return };
        if !placing.out.is_empty() {
            return;
        }
        let may_take =
            |row: &MonolithRow| row.serves() && row.id != placing.monolith && !placing.tried.contains(&row.id);
        let only_one = !self.view.rows().iter().any(may_take);
        let is_client = |waiter: &Waiter| matches!(waiter, Waiter::Client(_)) && self.still_waits(*waiter);
        let client = placing.waiting.iter().position(is_client);
        let nobody = !self.waits_for(key);
        if let Some(State::Placing(placing)) = self.rooms.get_mut(key).map(|room| &mut room.state)
            && only_one
            && let Some(client) = client.and_then(|at| placing.waiting.remove(at))
        {
            placing.waiting.push_front(client);
        } else if !(only_one && nobody) {
            self.fail_choice(key, "refused", turn);
        }
        self.advance(key, turn);
        self.release_unless_awaited(key, turn);
    }

    pub(super) fn cause_of(&self, waiter: Waiter) -> Cause {
        match waiter {
            Waiter::Client(client) => {
                let handover = self.clients.get(&client).and_then(|entry| entry.handover);
                handover.map_or(Cause::Join, |handover| handover.cause)
            }
            Waiter::Request(request) => self.requests.get(&request).map_or(Cause::Http, |request| request.cause),
        }
    }
}
