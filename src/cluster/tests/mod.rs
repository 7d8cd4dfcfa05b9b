//! A scripted cluster: named Monoliths `m1`.. on links of the same number, rooms, clients `c1`.., requests `r1`..
//!
//! Every step is one event and returns what came of it as text, so that a test reads like a protocol. `c2#1` is the
//! first attachment of client 2; `alone` means that its first frame is to be reported and its own frames are held,
//! `unsure` that they may go but the first frame is reported.

mod claims;
mod drain;
mod duplicates;
mod ejection;
mod facts;
mod failures;
mod handover;
mod joins;
mod links;
mod model;
mod moves;
mod pace;
mod patience;
mod property;
mod reports;
mod requests;
mod settling;
mod story;

use std::sync::Arc;

use super::members::Place;
use super::{Cluster, EjectionSettings, Settings};
use crate::config::Weights;
use crate::model::claims::{ClaimAnswer, ClaimCommand, ClaimOutcome, RoomLoad};
use crate::model::event::{Effect, Ejection, Event, Micros, RequestOutcome, Token, UnloadCause};
use crate::model::policy::{Answer, Call, Cause, Fault, Hook, MonolithState, Move, View};
use crate::model::story::{About, Note};
use crate::model::wire::{Frame, FromMonolith, RoomReport, UnloadReason};
use crate::model::{Attachment, ClientId, CloseCode, Epoch, LinkId, MonolithId, Region, RequestId, RoomKey, RoomName};
use crate::policy::Policy;

const SECOND: Micros = 1_000_000;

/// A policy that says what it is told to, and remembers what it was asked.
struct Script {
    answer: Answer,
    /// What it says to `rebalance`.
    moves: Vec<Move>,
    calls: Vec<Call>,
}

impl Policy for Script {
    fn call(&mut self, call: &Call, _: &View) -> Result<Answer, Fault> {
        self.calls.push(call.clone());
        Ok(if call.hook == Hook::Rebalance { Answer::Moves(self.moves.clone()) } else { self.answer.clone() })
    }
}

struct World {
    cluster: Cluster,
    policy: Script,
    now: Micros,
    /// What was told of rooms since it was last looked at.
    told: Vec<Note>,
}

/// What came of one event.
#[must_use]
struct Got(Vec<String>);

impl Got {
    /// Checks the effects, separated by `; `.
    #[track_caller]
    fn gives(self, expected: &str) {
        assert_eq!(self.0.join("; "), expected);
    }

    fn has(&self, effect: &str) -> bool {
        self.0.iter().any(|got| got == effect)
    }

    fn ignore(self) {}
}

fn settings() -> Settings {
    Settings {
        region: Region::from("ewr"),
        load_timeout: 5 * SECOND,
        drain: 300 * SECOND,
        place_attempts: 3,
        pending_joins: 100,
        pending_rooms: 50,
        hold: 10 * SECOND,
        patience: 25 * SECOND,
        joins_per_second: 10,
        ejection: EjectionSettings { errors: 0.5, after: 5 * SECOND, flaps: 3, base: 30 * SECOND, most: 0.5 },
        rebalance: None,
        seamless: None,
        move_rate: 50,
        weights: Weights::default(),
        claims: None,
    }
}

/// A cluster with this many Monoliths that have said that they have nothing; `m1` is the first choice.
fn world(monoliths: u64) -> World {
    let mut world = fresh();
    world.event(Event::Discovered { endpoints: Vec::new() }).gives("");
    for n in 1..=monoliths {
        world.up(n).gives(&format!("accept {n}"));
        world.gossip(n, &[]).gives("");
    }
    world
}

/// A cluster that has heard nothing yet.
fn fresh() -> World {
    let names: Vec<MonolithId> = (1..=9).map(monolith).collect();
    let policy = Script { answer: Answer::Ranked(names), moves: Vec::new(), calls: Vec::new() };
    World { cluster: Cluster::new(settings(), SECOND), policy, now: SECOND, told: Vec::new() }
}

fn monolith(n: u64) -> MonolithId {
    MonolithId::from(&*format!("m{n}"))
}

fn endpoint(n: u64) -> Arc<str> {
    format!("host{n}:3000").into()
}

fn client(n: u64) -> ClientId {
    ClientId::from_u128(u128::from(n) << 64)
}

fn report((room, epoch): (&str, u32)) -> RoomReport {
    let temporary = room.starts_with("temp");
    let room = format!(r#"{{"name":"{room}","visibility":"public","users":2,"isTemporary":{temporary}}}"#);
    let frame = format!(r#"{{"type":"loaded","payload":{{"room":{room},"load_epoch":{epoch}}}}}"#);
    match Frame::parse(&frame).unwrap().message {
        FromMonolith::Loaded(report) => report,
        _ => panic!("not loaded: {frame}"),
    }
}

fn show(effect: &Effect) -> String {
    let number = |client: &ClientId| {
        let text = client.to_string().replace('-', "");
        u128::from_str_radix(&text, 16).unwrap() >> 64
    };
    match effect {
        Effect::AcceptLink { link } => format!("accept {link}"),
        Effect::RefuseLink { link } => format!("refuse link {link}"),
        Effect::Attach { link, client, attachment, room, open, report, rejoin, .. } => {
            let again = if *rejoin { " again" } else { "" };
            let how = match (open, report) {
                (false, true) => " alone",
                (true, true) => " unsure",
                (true, false) => "",
                (false, false) => " HELD FOR EVER",
            };
            format!("join m{link} c{}#{attachment} {room}{how}{again}", number(client))
        }
        Effect::Open { link, client, attachment } => format!("open m{link} c{}#{attachment}", number(client)),
        Effect::Detach { link, client, attachment } => format!("leave m{link} c{}#{attachment}", number(client)),
        Effect::Unload { link, room, why: UnloadCause::Duplicate, .. } => format!("unload m{link} {room}"),
        Effect::Unload { link, room, why: UnloadCause::Move, .. } => format!("let go m{link} {room}"),
        Effect::Unload { link, room, why: UnloadCause::HandOver, .. } => format!("hand over m{link} {room}"),
        Effect::Hold { client, attachment } => format!("hold c{}#{attachment}", number(client)),
        Effect::Watch { link, room, .. } => format!("watch m{link} {room}"),
        Effect::Moving { request, outcome: Ok(moving) } => {
            let to = moving.to.as_ref().map_or("anywhere", MonolithId::as_str);
            format!("r{request} moves {} {} {to} {}", moving.room, moving.from, moving.clients)
        }
        Effect::Moving { request, outcome: Err(refusal) } => format!("r{request} stays {}", refusal.label()),
        Effect::Rebalanced(done) => format!("rebalanced {}-{} of {}", done.asked, done.refused, done.rooms),
        Effect::Close { client, code } => format!("close c{} {code}", number(client)),
        Effect::Enter { client, admitted: true } => format!("enter c{}", number(client)),
        Effect::Enter { client, admitted: false } => format!("turn away c{}", number(client)),
        Effect::Ejection(Ejection::Out { monolith, cause, lasts, times }) => {
            format!("eject {monolith} {} {}s {times}x", cause.label(), lasts / SECOND)
        }
        Effect::Ejection(Ejection::Spared { monolith, cause }) => format!("spare {monolith} {}", cause.label()),
        Effect::Ejection(Ejection::Back { monolith }) => format!("{monolith} is back"),
        Effect::Send { request, monolith, awaited } => {
            format!("send r{request} {monolith}{}", if *awaited { " awaited" } else { "" })
        }
        Effect::Refuse { request, status } => format!("refuse r{request} {status}"),
        Effect::Bind { room, monolith } => format!("bind {room} {monolith}"),
        Effect::Unbind { room } => format!("unbind {room}"),
        Effect::Claim(ClaimCommand::Ask { room, number, monolith, instead_of }) => {
            let instead_of = instead_of.as_ref().map(|held| format!(" instead of {held}")).unwrap_or_default();
            format!("claim {number} {room} {monolith}{instead_of}")
        }
        Effect::Claim(ClaimCommand::Renew { rooms }) => {
            let rooms: Vec<String> = rooms.iter().map(|(room, load)| format!("{room} {}", shown_load(load))).collect();
            format!("renew {}", rooms.join(", "))
        }
        Effect::Claim(ClaimCommand::Release { room, load }) => format!("release {room} {}", shown_load(load)),
        Effect::Story(_) => unreachable!("stories are kept apart"),
    }
}

fn shown_load(RoomLoad { monolith, epoch }: &RoomLoad) -> String {
    format!("{monolith} {}", epoch.map_or_else(|| "-".into(), |epoch| epoch.to_string()))
}

impl World {
    fn event(&mut self, event: Event) -> Got {
        let mut effects = Vec::new();
        self.cluster.apply(self.now, event, &mut self.policy, &mut effects);
        assert_eq!(self.cluster.broken_invariant(), None);
        let mut got = Vec::new();
        for effect in effects {
            match effect {
                Effect::Story(note) => self.told.push(*note),
                effect => got.push(show(&effect)),
            }
        }
        Got(got)
    }

    fn wait(&mut self, seconds: u64) -> Got {
        self.now += seconds * SECOND;
        self.event(Event::Tick)
    }

    fn pass(&mut self, micros: Micros) -> Got {
        self.now += micros;
        self.event(Event::Tick)
    }

    fn up(&mut self, n: u64) -> Got {
        self.up_as(n, n, n)
    }

    fn up_as(&mut self, link: u64, at: u64, id: u64) -> Got {
        let (endpoint, monolith) = (endpoint(at), monolith(id));
        self.event(Event::LinkUp { link: LinkId(link), endpoint, monolith, region: Region::from("ewr") })
    }

    fn down(&mut self, link: u64) -> Got {
        self.event(Event::LinkDown { link: LinkId(link) })
    }

    fn state(&mut self, link: u64, state: MonolithState) {
        self.state_gives(link, state, "");
    }

    #[track_caller]
    fn state_gives(&mut self, link: u64, state: MonolithState, expected: &str) {
        self.event(Event::LinkState { link: LinkId(link), state }).gives(expected);
    }

    fn loaded(&mut self, link: u64, room: &str, epoch: u32) -> Got {
        self.event(Event::Loaded { link: LinkId(link), report: report((room, epoch)) })
    }

    fn gossip(&mut self, link: u64, rooms: &[(&str, u32)]) -> Got {
        self.event(Event::Gossip { link: LinkId(link), rooms: rooms.iter().copied().map(report).collect() })
    }

    /// `unanswered`: (client, attachment) that had no frame since their join.
    fn unloaded(&mut self, link: u64, room: &str, reason: UnloadReason, unanswered: &[(u64, u64)]) -> Got {
        let unanswered: Vec<_> = unanswered.iter().map(|(n, at)| (client(*n), Attachment(*at))).collect();
        let room = RoomKey::of(room);
        let members = self.cluster.rooms.get(&room).map(|room| room.members.clone()).unwrap_or_default();
        let joined = |client: ClientId| match self.cluster.clients[&client].place {
            Place::Joined { link: at, attachment } if at == LinkId(link) => Some((client, attachment)),
            Place::Joined { .. } | Place::Waiting | Place::SentAway { .. } => None,
        };
        let detached = members.into_iter().filter_map(joined).filter(|member| !unanswered.contains(member)).collect();
        self.event(Event::Unloaded { link: LinkId(link), room, reason, detached })
    }

    fn join(&mut self, n: u64, room: &str) -> Got {
        self.event(Event::Join {
            client: client(n),
            room: RoomName::parse(room).unwrap(),
            token: Token("secret".into()),
            region: Some(Region::from("cdg")),
            reconnect: false,
        })
    }

    fn leave(&mut self, n: u64) -> Got {
        self.event(Event::Leave { client: client(n), told: None })
    }

    fn answered(&mut self, link: u64, n: u64, attachment: u64) -> Got {
        self.event(Event::Answered { link: LinkId(link), client: client(n), attachment: Attachment(attachment) })
    }

    fn kicked(&mut self, link: u64, n: u64, attachment: u64, code: u16) -> Got {
        let code = CloseCode::sendable(code).unwrap();
        self.event(Event::Kicked { link: LinkId(link), client: client(n), attachment: Attachment(attachment), code })
    }

    fn get(&mut self, n: u64, room: &str) -> Got {
        self.request(n, Some(room), Cause::Http)
    }

    fn create(&mut self, n: u64, room: &str) -> Got {
        self.request(n, Some(room), Cause::Create)
    }

    fn generate(&mut self, n: u64) -> Got {
        self.request(n, None, Cause::Create)
    }

    /// An operator moves a room, as request 99.
    fn move_room(&mut self, room: &str, to: u64) -> Got {
        let (request, room) = (RequestId(99), RoomKey::of(room));
        self.event(Event::Move { request, room, to: monolith(to) })
    }

    fn quiet(&mut self, link: u64, room: &str, disturbed: bool) -> Got {
        self.event(Event::Quiet { link: LinkId(link), room: RoomKey::of(room), disturbed })
    }

    fn withheld(&mut self, link: u64, room: &str, epoch: u32) -> Got {
        let (link, epoch) = (LinkId(link), Epoch(epoch));
        self.event(Event::Withheld { link, room: RoomKey::of(room), epoch })
    }

    fn drain(&mut self, n: u64, on: bool) -> Got {
        self.event(Event::Drain { monolith: monolith(n), on })
    }

    fn request(&mut self, n: u64, room: Option<&str>, cause: Cause) -> Got {
        let room = room.map(|room| RoomName::parse(room).unwrap());
        self.event(Event::Request { request: RequestId(n), room, cause, region: Some(Region::from("cdg")) })
    }

    fn done(&mut self, n: u64, outcome: RequestOutcome) -> Got {
        self.event(Event::RequestDone { request: RequestId(n), outcome })
    }

    fn created(&mut self, n: u64, room: &str) -> Got {
        self.done(n, RequestOutcome::Created(RoomName::reported(room)))
    }

    fn status(&mut self, n: u64, status: u16) -> Got {
        self.done(n, RequestOutcome::Status(status))
    }

    /// Client 1 is joined to `room`, which `m1` has reported with `epoch`.
    fn settled(&mut self, room: &str, epoch: u32) {
        self.join(1, room).gives(&format!("join m1 c1#1 {room} alone"));
        let key = RoomKey::of(room);
        self.loaded(1, room, epoch).gives(&format!("bind {key} m1; open m1 c1#1"));
    }

    fn row(&self, n: u64) -> (u32, u32, u32) {
        let row = self.cluster.view().get(&monolith(n)).unwrap();
        (row.rooms, row.clients, row.pending)
    }

    fn last_call(&self) -> &Call {
        self.policy.calls.last().unwrap()
    }
}
