//! The state machine: rooms, Monoliths and clients. Events in, effects out; no I/O, no clock, no await.
//!
//! [`Cluster::apply`] is the only way in. Everything that can go wrong among balancers, Monoliths and clients is a
//! sequence of [`Event`]s, and therefore a test of this module. `rooms` holds the life of a room, `placing` how
//! one finds its Monolith, `claims` what other balancers agree to, `moves`, `drain` and `unloading` how it gets to another,
//! `handover` what becomes of its members on the way, `reports` what Monoliths say about rooms, `duplicates` who wins when
//! two have one, `members` clients, `requests` HTTP, `links` the Monoliths themselves, `ejection` those that keep failing,
//! `pace` who may come in after an outage.

mod claims;
mod departed;
mod drain;
mod duplicates;
mod ejection;
mod facts;
mod handover;
mod invariants;
mod links;
mod members;
mod monolith;
mod moves;
mod pace;
mod patience;
mod placing;
mod quiet;
mod reports;
mod requests;
mod room;
mod rooms;
mod settling;
mod snapshot;
mod story;
#[cfg(test)]
mod tests;
mod unloading;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

pub use self::claims::{ClaimCounters, Claiming};
pub use self::drain::{DrainNeeds, DrainSummary};
pub use self::duplicates::Overlaps;
pub use self::ejection::EjectionSettings;
pub use self::handover::{HandOverCounters, Seamless};
pub use self::monolith::Monolith;
pub use self::moves::{MoveCounters, Rebalancing};
pub use self::room::{Room, RoomStatus};
pub use self::snapshot::{MonolithSummary, RoomSummary, StateMonolith, StateRoom};

use self::claims::Claims;
use self::departed::Departed;
use self::drain::Drained;
use self::duplicates::Unloads;
use self::ejection::Ejections;
use self::handover::HandOvers;
use self::links::WarmUp;
use self::members::Client;
use self::moves::Moves;
use self::pace::Pace;
use self::patience::Patience;
use self::requests::Request;
use crate::config::Weights;
use crate::model::event::{Effect, EjectionCause, Event, Micros};
use crate::model::policy::{Previous, View};
use crate::model::wire::Metadata;
use crate::model::{ClientId, Hashing, LinkId, MonolithId, Region, RequestId, RoomKey};
use crate::policy::Policy;

type Map<K, V> = HashMap<K, V, Hashing>;

/// Bounds and waits, from the configuration. Times are in microseconds.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The region of this balancer.
    pub region: Region,
    /// How long a Monolith may take to confirm a room.
    pub load_timeout: Micros,
    /// How long a Monolith that discovery no longer lists has to become empty.
    pub drain: Micros,
    /// Attempts at placing one room.
    pub place_attempts: u32,
    /// Joins and requests that may wait for a room.
    pub pending_joins: usize,
    /// Rooms that may be unconfirmed.
    pub pending_rooms: usize,
    /// How long whoever waits for a Monolith does so.
    pub hold: Micros,
    /// How long anybody waits for a room in all.
    pub patience: Micros,
    /// Joins per second and Monolith after an outage.
    pub joins_per_second: u32,
    /// When a Monolith that fails is left alone for a while.
    pub ejection: EjectionSettings,
    /// Whether and how the policy is asked what should move.
    pub rebalance: Option<Rebalancing>,
    /// Whether and for how long clients keep their sockets while their room changes its Monolith; without it they are
    /// closed and come back.
    pub seamless: Option<Seamless>,
    /// Clients per second and Monolith that moves may cost, and that are closed when no Monolith is left for them.
    pub move_rate: u32,
    /// The share of each Monolith relative to the others.
    pub weights: Weights,
    /// Whether and how rooms are claimed before they are placed.
    pub claims: Option<Claiming>,
}

/// How long a fresh link may take to send its first gossip before placement goes on without it. The real one takes 3 ms
/// as a rule and 30 at most.
pub const SYNC_TIMEOUT: Micros = 500_000;

/// Counters of what happened, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Joins sent to a Monolith.
    pub joins: u64,
    /// Leaves sent to a Monolith.
    pub leaves: u64,
    /// Decisions taken by `place`.
    pub placements: u64,
    /// Of these, answered by the built-in default because of a fault.
    pub fallbacks: u64,
    /// Placements that a Monolith did not confirm in time.
    pub load_timeouts: u64,
    /// Rooms found on two Monoliths, each pair once.
    pub duplicates: u64,
    /// `unload` sent to the Monolith that lost a duplicate.
    pub unloads: u64,
    /// `unload` that was not sent, because the room had gone before this balancer's turn came.
    pub unloads_spared: u64,
    /// For how long rooms were on two Monoliths.
    pub overlaps: Overlaps,
    /// Joins and requests refused because too many waited.
    pub refused_full: u64,
    /// Joins and requests refused because no Monolith took the room.
    pub refused_unplaced: u64,
    /// Events of links that are not registered.
    pub stale_events: u64,
    /// Clients that waited before their upgrade.
    pub held: u64,
    /// Clients that knocked and were let in.
    pub entered: u64,
    /// Monoliths that were ejected, by cause.
    pub ejections: [u64; EjectionCause::ALL.len()],
    /// Monoliths that were not, since too many are or nobody else serves.
    pub ejections_spared: u64,
    /// Moves of rooms.
    pub moves: MoveCounters,
    /// Claims of rooms.
    pub claims: ClaimCounters,
    /// Clients whose rooms changed their Monolith.
    pub handover: HandOverCounters,
}

/// Which room is where, who waits, which clients exist.
pub struct Cluster {
    settings: Settings,
    now: Micros,
    monoliths: BTreeMap<MonolithId, Monolith>,
    links: Map<LinkId, MonolithId>,
    rooms: Map<RoomKey, Room>,
    clients: Map<ClientId, Client>,
    requests: Map<RequestId, Request>,
    timers: BTreeSet<(Micros, RoomKey)>,
    departed: Departed<(Previous, Option<Arc<Metadata>>)>,
    moves: Moves,
    unloads: Unloads,
    drained: Drained,
    claims: Claims,
    handovers: HandOvers,
    pace: Pace,
    patience: Patience,
    ejections: Ejections,
    warm_up: WarmUp,
    view: View,
    counters: Counters,
    /// Clients and requests that wait for a room.
    waiting: usize,
    /// Of their like, those that are at a Monolith which has not answered for the room.
    out: usize,
    /// Changes whenever a Monolith has answered for a room that somebody waits for, be it with a no.
    answers: u64,
    /// Rooms that are parked, being placed, or bound without a report.
    unconfirmed: usize,
    /// Changes whenever the list of public rooms may have.
    list_version: u64,
    decisions: u64,
    /// Clients and requests that ever came.
    arrivals: u64,
}

impl Cluster {
    /// A cluster without Monoliths. Joins of unbound rooms wait until the Monoliths of the first
    /// [`Event::Discovered`] have said what they have, at most until `now + load_timeout`.
    pub fn new(settings: Settings, now: Micros) -> Self {
        Self {
            warm_up: WarmUp::new(now + settings.load_timeout),
            moves: Moves::new(settings.rebalance, now),
            unloads: Unloads::default(),
            drained: Drained::default(),
            claims: Claims::default(),
            settings,
            now,
            pace: Pace::default(),
            patience: Patience::default(),
            ejections: Ejections::default(),
            monoliths: BTreeMap::new(),
            links: Map::default(),
            rooms: Map::default(),
            clients: Map::default(),
            requests: Map::default(),
            timers: BTreeSet::new(),
            departed: Departed::default(),
            handovers: HandOvers::default(),
            view: View::default(),
            counters: Counters::default(),
            waiting: 0,
            out: 0,
            answers: 0,
            unconfirmed: 0,
            list_version: 0,
            decisions: 0,
            arrivals: 0,
        }
    }

    /// Takes one event and says what is to be done about it, in order.
    pub fn apply(&mut self, now: Micros, event: Event, policy: &mut dyn Policy, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        let mut turn = Turn { policy, effects };
        match event {
            Event::Discovered { endpoints } => self.discovered(endpoints, &mut turn),
            Event::DialFailed { endpoint } => self.dial_failed(&endpoint, &mut turn),
            Event::LinkUp { link, endpoint, monolith, region } => {
                self.link_up(link, endpoint, monolith, region, &mut turn);
            }
            Event::LinkDown { link } => self.link_down(link, &mut turn),
            Event::LinkState { link, state } => self.link_state(link, state, &mut turn),
            Event::Loaded { link, report } => self.loaded(link, report, &mut turn),
            Event::Unloaded { link, room, reason, detached } => {
                self.unloaded(link, &room, reason, &detached, &mut turn);
            }
            Event::Gossip { link, rooms } => self.gossip(link, rooms, &mut turn),
            Event::Answered { link, client, attachment } => self.answered(link, client, attachment, &mut turn),
            Event::Kicked { link, client, attachment, code } => self.kicked(link, client, attachment, code, &mut turn),
            Event::Join { client, room, token, region, reconnect } => {
                self.join(client, room, token, region, reconnect, &mut turn);
            }
            Event::Knock { client, room } => self.knock(client, room, &mut turn),
            Event::Withdraw { client } => self.withdraw_knock(client),
            Event::Leave { client, told } => self.leave(client, told, &mut turn),
            Event::Request { request, room, cause, region } => self.request(request, room, cause, region, &mut turn),
            Event::RequestDone { request, outcome } => self.request_done(request, outcome, &mut turn),
            Event::Move { request, room, to } => self.move_by_hand(request, &room, &to, &mut turn),
            Event::Claim { room, answer } => self.claim_answered(&room, answer, &mut turn),
            Event::Quiet { link, room, disturbed } => self.quiet(link, &room, disturbed, &mut turn),
            Event::Withheld { link, room, epoch } => self.withheld(link, &room, epoch, &mut turn),
            Event::Drain { monolith, on } => self.drain(&monolith, on, &mut turn),
            Event::Tick => self.review_monoliths(&mut turn),
        }
        self.expire(&mut turn);
        // The check walks everything: with thousands of rooms or clients a debug build would do nothing else.
        if cfg!(any(test, debug_assertions)) && self.rooms.len() + self.clients.len() <= 500 {
            let broken = self.broken_invariant();
            assert!(broken.is_none(), "{broken:?}");
        }
    }

    /// Changes bounds and waits; what is already waiting keeps its deadline.
    pub fn configure(&mut self, settings: Settings) {
        self.moves.configure(self.settings.rebalance, settings.rebalance, self.now);
        self.settings = settings;
        self.weigh();
    }

    /// When the next time-out is due, if any.
    pub fn next_deadline(&self) -> Option<Micros> {
        let room = self.timers.first().map(|(at, _)| *at);
        let rooms =
            [room, self.next_sync_deadline(), self.handovers.next_due(), self.next_unload(), self.next_renewal()];
        let others = [self.moves.next_due(), self.next_drain_step(), self.pace.next_due(), self.patience.next_due()];
        rooms.into_iter().chain(others).flatten().min()
    }

    /// What policies see of the Monoliths.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Fills in what is measured outside: round trips, latencies, queues.
    pub fn measure(&mut self, change: impl FnOnce(&mut View)) {
        change(&mut self.view);
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Changes whenever the list of public rooms may have.
    pub fn list_version(&self) -> u64 {
        self.list_version
    }

    fn link_of(&self, monolith: &MonolithId) -> Option<LinkId> {
        self.monoliths.get(monolith).map(|monolith| monolith.link)
    }

    /// Runs out whatever is due.
    fn expire(&mut self, turn: &mut Turn<'_>) {
        self.keep_pace(turn);
        self.expire_sync(turn);
        while let Some((at, key)) = self.timers.first().cloned()
            && at <= self.now
        {
            self.room_timed_out(&key, turn);
            // A room that is still due would spin: whatever it became, its deadline has passed.
            debug_assert!(!self.timers.contains(&(at, key.clone())), "{key} is due twice");
            self.timers.remove(&(at, key));
        }
        self.expire_waits(turn);
        self.expire_hand_overs(turn);
        self.rebalance_if_due(turn);
        self.continue_drains();
        self.begin_due_moves(turn);
        self.call_due_rooms(turn);
        self.send_due_unloads(turn);
        self.renew_claims(turn);
    }
}

/// What one event may use: the policy that decides and the list of effects.
struct Turn<'a> {
    policy: &'a mut dyn Policy,
    effects: &'a mut Vec<Effect>,
}

impl Turn<'_> {
    fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }
}

/// `host:port` of an endpoint.
type Endpoint = Arc<str>;
