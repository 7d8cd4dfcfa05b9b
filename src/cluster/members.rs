//! Clients: one membership at a time, and exactly one `leave` for every `join`.

use super::handover::HandOver;
use super::monolith::Monolith;
use super::placing::Refusal;
use super::room::{Active, Binding, Placing, State, Waiter};
use super::{Cluster, Turn};
use crate::model::event::{Effect, Micros, Token};
use crate::model::policy::{CallClient, Cause};
use crate::model::story::What;
use crate::model::{Attachment, ClientId, CloseCode, LinkId, MonolithId, Region, RoomKey, RoomName};

/// A client that has said which room it wants.
pub(super) struct Client {
    pub(super) room: RoomKey,
    /// The room as this client spells it.
    pub(super) name: RoomName,
    pub(super) region: Option<Region>,
    pub(super) reconnect: bool,
    token: Token,
    /// How many clients and requests had come before it.
    pub(super) arrival: u64,
    attachments: u64,
    pub(super) place: Place,
    /// Whether what it says goes on to the Monolith, or will once its link has seen the answer to its join.
    pub(super) opened: bool,
    /// Set while its room is between two Monoliths: until the next one has let it in.
    pub(super) handover: Option<HandOver>,
    /// Whether it was in the room on another Monolith when it was joined here.
    rejoined: bool,
    /// When it has waited for long enough; none once it was let in, or has a window.
    pub(super) wait_ends: Option<Micros>,
    /// Where it stands in its room's list of members.
    index: usize,
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// No Monolith has been told of it.
    Waiting,
    /// The Monolith at the other end of this link got its `join`, and is owed a `leave`.
    Joined { link: LinkId, attachment: Attachment },
    /// Its Monolith has sent it away with 1001 and still has the room: more is to come, or it goes back in.
    SentAway { until: Micros },
}

impl Cluster {
    pub(super) fn join(
        &mut self,
        client: ClientId,
        name: RoomName,
        token: Token,
        region: Option<Region>,
        reconnect: bool,
        turn: &mut Turn<'_>,
    ) {
        if self.clients.contains_key(&client) {
            return;
        }
        let key = name.key().clone();
        let bound = self.rooms.get(&key).is_some_and(|room| room.bound_to().is_some());
        if !bound && (self.waiting >= self.settings.pending_joins || self.too_many_rooms(&key)) {
            self.counters.refused_full += 1;
            turn.emit(Effect::Close { client, code: CloseCode::TRY_AGAIN });
            return;
        }
        self.arrivals += 1;
        let entry = Client {
            room: key.clone(),
            name: name.clone(),
            region,
            reconnect,
            token,
            arrival: self.arrivals,
            attachments: 0,
            place: Place::Waiting,
            opened: false,
            handover: None,
            rejoined: false,
            wait_ends: None,
            index: usize::MAX,
        };
        self.clients.insert(client, entry);
        let waiter = Waiter::Client(client);
        match self.rooms.get(&key).map(|room| &room.state) {
            Some(State::Active(_)) => {
                self.enlist(&key, waiter);
                self.let_in(&key, waiter, turn);
            }
            Some(State::Placing(_) | State::Parked { .. } | State::Unloading(_) | State::Settling(_)) => {
                self.wait_for_room(&key, waiter, turn);
            }
            None => self.place_first(name, waiter, turn),
        }
    }

    /// A client has gone. Where `told` is its present attachment the Monolith's link knows.
    pub(super) fn leave(&mut self, client: ClientId, told: Option<Attachment>, turn: &mut Turn<'_>) {
        self.handovers.forget_refused(client);
        let Some((key, was_out)) = self.unwait(client, turn) else { return };
        match self.unjoin(client) {
            Some((_, attachment)) if told == Some(attachment) => {}
            Some((link, attachment)) => turn.emit(Effect::Detach { link, client, attachment }),
            None => {}
        }
        self.forget(client);
        if was_out {
            self.advance(&key, turn);
        }
    }

    /// The Monolith has said something to a member that had heard nothing yet.
    pub(super) fn answered(&mut self, link: LinkId, client: ClientId, attachment: Attachment, turn: &mut Turn<'_>) {
        let Some(entry) = self.clients.get(&client) else { return };
        if entry.place != (Place::Joined { link, attachment }) {
            return;
        }
        let key = entry.room.clone();
        let Some(room) = self.rooms.get(&key) else { return };
        let Some(monolith) = room.monolith().cloned() else { return };
        let binding = match self.copy_epoch(&monolith, &key) {
            Some(epoch) => Binding::Reported(epoch),
            None => Binding::Answered { deadline: self.now + self.settings.load_timeout },
        };
        match &room.state {
            State::Placing(_) => self.activate(&key, &monolith, binding, turn),
            State::Active(Active { binding: Binding::Provisional { .. }, .. }) => {
                self.answers += 1;
                self.rebind(&key, binding, turn);
            }
            State::Active(_) | State::Parked { .. } | State::Unloading(_) | State::Settling(_) => {}
        }
    }

    /// The Monolith has ended a membership and is owed no `leave`. The link has closed the client, but for 1001, and for 4002
    /// where it was in the room a moment ago.
    pub(super) fn kicked(
        &mut self,
        link: LinkId,
        client: ClientId,
        attachment: Attachment,
        code: CloseCode,
        turn: &mut Turn<'_>,
    ) {
        let Some(entry) = self.clients.get_mut(&client) else { return };
        if entry.place != (Place::Joined { link, attachment }) {
            return;
        }
        // It is forgotten there already, so nothing is owed.
        let (key, rejoined) = (entry.room.clone(), entry.rejoined);
        let was_out = self.is_out(&key, Waiter::Client(client));
        self.answers += u64::from(was_out);
        if code == CloseCode::AWAY
            && self.settings.seamless.is_some()
            && let Some(from) = self.links.get(&link).cloned()
        {
            self.sent_away(client, &key, &from, turn);
            return;
        }
        let name = self.name_on_the_wire(client);
        self.forget(client);
        if code == CloseCode::ROOM_NOT_FOUND
            && rejoined
            && let Some(monolith) = self.links.get(&link).cloned()
        {
            // If the Monolith has said something to it before, its link has closed it.
            self.refuse_in_turn(client, &monolith);
        }
        if code == CloseCode::AWAY {
            turn.emit(Effect::Close { client, code });
        }
        if !was_out {
            return;
        }
        self.take_out(&key, Waiter::Client(client), turn);
        if code == CloseCode::ROOM_NOT_FOUND
            && let Some(monolith) = self.links.get(&link).cloned()
        {
            self.tell(&key, What::Denied { monolith: monolith.clone(), code: code.get() }, turn);
            if let Some(name) = name {
                self.refuse_same_spelling(&key, &name, &monolith, turn);
            }
        }
        self.advance_or_drop(&key, code == CloseCode::ROOM_NOT_FOUND, turn);
        self.release_unless_awaited(&key, turn);
    }

    /// The Monolith does not know the room under this spelling: everyone who asked for it in the same way hears so.
    fn refuse_same_spelling(&mut self, key: &RoomKey, name: &RoomName, monolith: &MonolithId, turn: &mut Turn<'_>) {
        let Some(State::Placing(Placing { waiting, .. })) = self.rooms.get(key).map(|room| &room.state) else { return };
        let same: Vec<ClientId> = waiting
            .iter()
            .filter_map(|waiter| match waiter {
                Waiter::Client(client) => Some(*client),
                Waiter::Request(_) => None,
            })
            .filter(|client| self.name_on_the_wire(*client).is_some_and(|own| own.spelling() == name.spelling()))
            .filter(|client| self.still_waits(Waiter::Client(*client)))
            .collect();
        for client in same {
            // Whoever was in the room a moment ago has made no mistake.
            let lost = self.may_go_on_waiting(Waiter::Client(client));
            self.end_client(client, (!lost).then_some(CloseCode::ROOM_NOT_FOUND), turn);
            if lost {
                self.refuse_in_turn(client, monolith);
            }
        }
    }

    /// The room of a client as its next `join` spells it. A Monolith that has not loaded the room knows it only as it was
    /// created: whoever was in it comes back under the name that its last Monolith gave it.
    fn name_on_the_wire(&self, client: ClientId) -> Option<RoomName> {
        let entry = self.clients.get(&client)?;
        let room = self.rooms.get(&entry.room).filter(|room| room.spelled && entry.handover.is_some());
        Some(room.map_or(&entry.name, |room| &room.name).clone())
    }

    /// After an answer that says there is no such room, the choice is dropped as soon as nobody else wants to try.
    pub(super) fn advance_or_drop(&mut self, key: &RoomKey, no_such_room: bool, turn: &mut Turn<'_>) {
        self.advance(key, turn);
        // A request that waits is no member.
        if no_such_room
            && !self.waits_for(key)
            && let Some(room) = self.rooms.get(key)
            && room.members.is_empty()
            && let State::Placing(placing) = &room.state
            && placing.out.is_empty()
            // A request may wait for an answer to the room's claim.
            && !self.waits_for(key)
        {
            self.unbind(key, "refused", turn);
        }
    }

    /// Sends the join of a client, or gives a request its Monolith: alone, with nothing known about the room.
    pub(super) fn send_out(&mut self, key: &RoomKey, waiter: Waiter, turn: &mut Turn<'_>) {
        match waiter {
            Waiter::Client(client) => self.attach(client, false, true, turn),
            Waiter::Request(request) => self.send_request(key, request, true, turn),
        }
    }

    /// Sends the join of a client, or gives a request its Monolith: the room is there.
    pub(super) fn let_in(&mut self, key: &RoomKey, waiter: Waiter, turn: &mut Turn<'_>) {
        match waiter {
            Waiter::Client(client) => {
                let Some(room) = self.rooms.get(key) else { return };
                let (confirmed, alone) = (room.is_confirmed(), room.members.len() == 1);
                if !confirmed && alone {
                    // Its join gets the same time as any other.
                    self.extend_binding(key, turn);
                }
                self.attach(client, true, !confirmed, turn);
            }
            Waiter::Request(request) => self.send_request(key, request, false, turn),
        }
    }

    /// The room of a waiter that is out is up.
    pub(super) fn open(&mut self, waiter: Waiter, turn: &mut Turn<'_>) {
        if let Waiter::Client(client) = waiter
            && let Some(Client { place: Place::Joined { link, attachment }, .. }) = self.clients.get(&client)
        {
            turn.emit(Effect::Open { link: *link, client, attachment: *attachment });
            self.handed_over(client);
        }
    }

    fn attach(&mut self, client: ClientId, open: bool, report: bool, turn: &mut Turn<'_>) {
        let Some(room) = self.name_on_the_wire(client) else { return };
        let Some(entry) = self.clients.get_mut(&client) else { return };
        let Some(monolith) = self.rooms.get(&entry.room).and_then(super::Room::monolith) else { return };
        let Some(link) = self.monoliths.get(monolith).map(|monolith| monolith.link) else { return };
        debug_assert_eq!(entry.place, Place::Waiting, "{client} is joined already");
        entry.attachments += 1;
        let attachment = Attachment(entry.attachments);
        entry.place = Place::Joined { link, attachment };
        entry.rejoined = entry.handover.is_some();
        let (token, rejoin) = (entry.token.clone(), entry.rejoined);
        let (monolith, key) = (monolith.clone(), entry.room.clone());
        if let Some(room) = self.rooms.get_mut(&key) {
            room.joined = self.now;
        }
        self.count_client(&monolith, 1);
        self.note_join(client, &monolith);
        self.counters.joins += 1;
        self.list_version += 1;
        turn.emit(Effect::Attach { link, client, attachment, room, token, open, report, rejoin });
        if open {
            self.handed_over(client);
        }
    }

    /// Takes a client's `join` back: it waits again. `false` for a request, which cannot be taken back.
    pub(super) fn withdraw(&mut self, waiter: Waiter, turn: &mut Turn<'_>) -> bool {
        let Waiter::Client(client) = waiter else { return false };
        let Some(entry) = self.clients.get(&client) else { return false };
        let from = match entry.place {
            Place::Joined { link, .. } if entry.opened => {
                let linked = self.links.get(&link);
                let owner = linked.or_else(|| self.rooms.get(&entry.room)?.monolith());
                owner.map(|owner| (owner.clone(), linked.is_some()))
            }
            Place::Joined { .. } | Place::Waiting | Place::SentAway { .. } => None,
        };
        match from.filter(|_| self.settings.seamless.is_some()) {
            // It was in the room, and its join crossed an unload. A link that has ended has told it so.
            Some((from, linked)) => self.release(client, &from, Cause::Lost, linked, turn),
            None => {
                self.detach(client, turn);
                self.begin_wait(waiter);
            }
        }
        true
    }

    /// Tells the Monolith, if one was told of this client, that it has gone.
    pub(super) fn detach(&mut self, client: ClientId, turn: &mut Turn<'_>) {
        if let Some((link, attachment)) = self.unjoin(client) {
            turn.emit(Effect::Detach { link, client, attachment });
        }
    }

    /// Counts a client out of its Monolith, if it is at one that is still linked.
    fn unjoin(&mut self, client: ClientId) -> Option<(LinkId, Attachment)> {
        let entry = self.clients.get_mut(&client)?;
        let Place::Joined { link, attachment } = entry.place else { return None };
        (entry.place, entry.opened) = (Place::Waiting, false);
        let monolith = self.links.get(&link)?.clone();
        self.count_client(&monolith, -1);
        self.counters.leaves += 1;
        Some((link, attachment))
    }

    /// The end of a client: its Monolith is told, and with a code the client too. Returns its room, and whether it was
    /// the one that was out for it.
    pub(super) fn end_client(
        &mut self,
        client: ClientId,
        code: Option<CloseCode>,
        turn: &mut Turn<'_>,
    ) -> Option<(RoomKey, bool)> {
        let ended = self.unwait(client, turn)?;
        self.detach(client, turn);
        self.forget(client);
        if let Some(code) = code {
            turn.emit(Effect::Close { client, code });
        }
        Some(ended)
    }

    /// Whatever a client waits for goes on without it. Returns its room, and whether it was the one that was out for it.
    fn unwait(&mut self, client: ClientId, turn: &mut Turn<'_>) -> Option<(RoomKey, bool)> {
        let key = self.clients.get(&client)?.room.clone();
        let waiter = Waiter::Client(client);
        let was_out = self.is_out(&key, waiter);
        if was_out {
            self.take_out(&key, waiter, turn);
            self.left_unanswered(&key);
        } else if self.still_waits(waiter) {
            self.waiting -= 1;
        }
        Some((key, was_out))
    }

    /// One of our clients more or less on a Monolith. Its users are at least these: what it reports is up to 20 s old.
    pub(super) fn count_client(&mut self, monolith: &MonolithId, by: i32) {
        let reported = self.monoliths.get(monolith).map_or(0, Monolith::reported_users);
        self.view.update(monolith, |row| {
            row.clients = row.clients.saturating_add_signed(by);
            row.users = reported.max(row.clients);
        });
    }

    /// Removes a client from every table.
    fn forget(&mut self, client: ClientId) {
        let Some(entry) = self.clients.remove(&client) else { return };
        self.forget_window(client, entry.place, entry.handover);
        self.patience.forget(Waiter::Client(client), entry.wait_ends);
        if let Place::Joined { link, .. } = entry.place
            && let Some(monolith) = self.links.get(&link).cloned()
        {
            self.count_client(&monolith, -1);
        }
        self.list_version += 1;
        let Some(room) = self.rooms.get_mut(&entry.room) else { return };
        if room.members.get(entry.index) == Some(&client) {
            room.members.swap_remove(entry.index);
            if let Some(moved) = room.members.get(entry.index)
                && let Some(moved) = self.clients.get_mut(moved)
            {
                moved.index = entry.index;
            }
        }
        if let Some(region) = &entry.region
            && let Some(count) = room.regions.get_mut(region)
        {
            *count -= 1;
            if *count == 0 {
                room.regions.remove(region);
            }
        }
    }

    /// Enters a client in its room's list of members. Requests are no members.
    pub(super) fn enlist(&mut self, key: &RoomKey, waiter: Waiter) {
        let Waiter::Client(client) = waiter else { return };
        let (Some(room), Some(entry)) = (self.rooms.get_mut(key), self.clients.get_mut(&client)) else { return };
        entry.index = room.members.len();
        room.members.push(client);
        if let Some(region) = &entry.region {
            *room.regions.entry(region.clone()).or_insert(0) += 1;
        }
        if room.region.is_none() {
            room.region = entry.region.clone();
        }
    }

    /// Says no to somebody who waits.
    pub(super) fn refuse(&mut self, waiter: Waiter, refusal: Refusal, turn: &mut Turn<'_>) {
        match waiter {
            Waiter::Client(client) => {
                self.forget(client);
                turn.emit(Effect::Close { client, code: refusal.code });
            }
            Waiter::Request(request) => {
                self.remove_request(request);
                turn.emit(Effect::Refuse { request, status: refusal.status });
            }
        }
    }

    /// Whether somebody in a queue still wants what it queued for.
    pub(super) fn still_waits(&self, waiter: Waiter) -> bool {
        match waiter {
            Waiter::Client(client) => self.clients.get(&client).is_some_and(|client| client.place == Place::Waiting),
            Waiter::Request(request) => self.requests.get(&request).is_some_and(|request| request.sent_to.is_none()),
        }
    }

    pub(super) fn is_out(&self, key: &RoomKey, waiter: Waiter) -> bool {
        self.rooms.get(key).is_some_and(|room| room.out().contains(&waiter))
    }

    pub(super) fn take_out(&mut self, key: &RoomKey, waiter: Waiter, turn: &mut Turn<'_>) {
        self.change_room(key, turn, |room| {
            if let State::Placing(placing) = &mut room.state {
                placing.out.retain(|other| *other != waiter);
            }
        });
    }

    /// Somebody who was out for a room has gone without an answer.
    pub(super) fn left_unanswered(&mut self, key: &RoomKey) {
        if let Some(State::Placing(placing)) = self.rooms.get_mut(key).map(|room| &mut room.state) {
            placing.unanswered = true;
        }
    }

    pub(super) fn region_of(&self, waiter: Waiter) -> Option<Region> {
        match waiter {
            Waiter::Client(client) => self.clients.get(&client)?.region.clone(),
            Waiter::Request(request) => self.requests.get(&request)?.region.clone(),
        }
    }

    pub(super) fn call_client(&self, waiter: Waiter) -> Option<CallClient> {
        let Waiter::Client(client) = waiter else { return None };
        let entry = self.clients.get(&client)?;
        Some(CallClient { region: entry.region.clone(), reconnect: entry.reconnect, attempt: 1 })
    }

    /// Whether a room may not be started because too many are unconfirmed already.
    pub(super) fn too_many_rooms(&self, key: &RoomKey) -> bool {
        !self.rooms.contains_key(key) && self.unconfirmed >= self.settings.pending_rooms
    }
}
