//! Simulated Monoliths: rooms that are loaded, stay for a while when they are empty, and are lost when their process ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::queue::{Line, Member, Report};
use super::traffic::Rooms;
use super::world::World;
use crate::model::event::Micros;
use crate::model::wire::{Frame, FromMonolith, Metadata, RoomReport};
use crate::model::{Epoch, MonolithId};

/// One Monolith.
pub(super) struct Monolith {
    number: u16,
    /// How often it has started; each start has an id and links of its own.
    pub(super) starts: u32,
    pub(super) up: bool,
    /// Reasons for it to be away.
    away: u32,
    pub(super) draining: bool,
    /// Reasons for it not to report by itself.
    pub(super) stale: u32,
    /// How many times as long its loads take, for each reason.
    slow: Vec<f64>,
    /// When its load was read last.
    pub(super) load_read: Option<Micros>,
    /// By number, so that gossip has an order.
    rooms: BTreeMap<u32, Room>,
    /// Members of loaded rooms.
    pub(super) clients: u32,
}

enum Room {
    Loading { waiting: Vec<Member> },
    Loaded { epoch: Epoch, members: Vec<Member>, empty_since: Option<Micros> },
}

/// What a Monolith makes of a join.
pub(super) enum Joined {
    /// It is in.
    In,
    /// The room has to be loaded first, which has to be planned.
    Load,
    /// It waits with others for the room.
    Waits,
    /// There are too many clients.
    Full,
}

impl Monolith {
    /// One that is away until [`Self::return_to_work`].
    pub(super) fn new(number: u16) -> Self {
        Self {
            number,
            starts: 0,
            up: false,
            away: 1,
            draining: false,
            stale: 0,
            slow: Vec::new(),
            load_read: None,
            rooms: BTreeMap::new(),
            clients: 0,
        }
    }

    /// The links to this start of it.
    pub(super) fn line(&self) -> Line {
        Line { monolith: self.number, start: self.starts }
    }

    /// Whether a link leads to what is there now.
    pub(super) fn is_at(&self, line: Line) -> bool {
        self.up && self.starts == line.start
    }

    /// Rooms that are loaded or being loaded.
    pub(super) fn rooms(&self) -> u32 {
        self.rooms.len() as u32
    }

    /// What this start of it calls itself: each has an id of its own, as real ones have.
    pub(super) fn id(&self, world: &World) -> MonolithId {
        let name = world.monoliths[usize::from(self.number)].name.as_str();
        match self.starts {
            0 | 1 => name.into(),
            start => format!("{name}.{start}").as_str().into(),
        }
    }

    /// A reason less to be away. Returns whether it starts, for want of another.
    pub(super) fn return_to_work(&mut self) -> bool {
        self.away = self.away.saturating_sub(1);
        if self.up || self.away > 0 {
            return false;
        }
        self.starts += 1;
        (self.up, self.draining, self.load_read) = (true, false, None);
        true
    }

    /// Its loads take this many times as long, or no longer so.
    pub(super) fn slow(&mut self, factor: f64, over: bool) {
        match self.slow.iter().position(|other| *other == factor) {
            Some(at) if over => drop(self.slow.swap_remove(at)),
            _ if over => {}
            _ => self.slow.push(factor),
        }
    }

    /// How many times as long its loads take.
    pub(super) fn slowness(&self) -> f64 {
        self.slow.iter().product()
    }

    /// A reason to be away: the process ends, if it has not yet. Returns its loaded rooms and their members.
    pub(super) fn end(&mut self) -> Vec<(u32, Vec<Member>)> {
        self.away += 1;
        self.up = false;
        self.clients = 0;
        let rooms = std::mem::take(&mut self.rooms).into_iter();
        rooms
            .filter_map(|(room, state)| match state {
                Room::Loaded { members, .. } => Some((room, members)),
                Room::Loading { .. } => None,
            })
            .collect()
    }

    pub(super) fn join(&mut self, room: u32, member: Member, most: u32) -> Joined {
        if self.clients >= most {
            return Joined::Full;
        }
        match self.rooms.get_mut(&room) {
            Some(Room::Loaded { members, empty_since, .. }) => {
                members.push(member);
                *empty_since = None;
                self.clients += 1;
                Joined::In
            }
            Some(Room::Loading { waiting }) => {
                waiting.push(member);
                Joined::Waits
            }
            None => {
                self.rooms.insert(room, Room::Loading { waiting: vec![member] });
                Joined::Load
            }
        }
    }

    /// A member leaves. Returns whether the room is empty by now.
    pub(super) fn leave(&mut self, room: u32, member: Member, now: Micros) -> bool {
        match self.rooms.get_mut(&room) {
            Some(Room::Loaded { members, empty_since, .. }) => {
                let Some(at) = members.iter().rposition(|other| *other == member) else { return false };
                members.swap_remove(at);
                self.clients -= 1;
                if members.is_empty() {
                    *empty_since = Some(now);
                }
                members.is_empty()
            }
            Some(Room::Loading { waiting }) => {
                waiting.retain(|other| *other != member);
                false
            }
            None => false,
        }
    }

    /// A room is in memory. Returns those who waited for it; none if it was not being loaded.
    pub(super) fn loaded(&mut self, room: u32, epoch: Epoch, now: Micros) -> Option<Vec<Member>> {
        let state = self.rooms.get_mut(&room)?;
        let Room::Loading { waiting } = state else { return None };
        let members = std::mem::take(waiting);
        self.clients += members.len() as u32;
        let empty_since = members.is_empty().then_some(now);
        *state = Room::Loaded { epoch, members: members.clone(), empty_since };
        Some(members)
    }

    /// Drops a room that is empty since that moment. Returns whether it did.
    pub(super) fn expire(&mut self, room: u32, since: Micros) -> bool {
        let due = matches!(self.rooms.get(&room), Some(Room::Loaded { empty_since: Some(at), .. }) if *at == since);
        if due {
            self.rooms.remove(&room);
        }
        due
    }

    /// Drops a room because a balancer asked. Returns its members; none if it was not loaded.
    pub(super) fn unload(&mut self, room: u32) -> Option<Vec<Member>> {
        match self.rooms.remove(&room)? {
            Room::Loaded { members, .. } => {
                self.clients -= members.len() as u32;
                Some(members)
            }
            loading @ Room::Loading { .. } => {
                self.rooms.insert(room, loading);
                None
            }
        }
    }

    /// Everything that it has loaded.
    pub(super) fn gossip(&self, rooms: &Rooms, metadata: &mut MetadataCache) -> Report {
        let loaded = self.rooms.iter().filter_map(|(room, state)| match state {
            Room::Loaded { epoch, members, .. } => Some((*room, *epoch, members.len())),
            Room::Loading { .. } => None,
        });
        Report::Gossip(loaded.filter_map(|(room, epoch, users)| metadata.report(rooms, room, epoch, users)).collect())
    }
}

/// What Monoliths say of their rooms besides name and epoch: how many users are in it. One text for each number of users.
#[derive(Default)]
pub(super) struct MetadataCache(Vec<Option<Arc<Metadata>>>);

impl MetadataCache {
    pub(super) fn report(&mut self, rooms: &Rooms, room: u32, epoch: Epoch, users: usize) -> Option<RoomReport> {
        if self.0.len() <= users {
            self.0.resize(users + 1, None);
        }
        let known = &mut self.0[users];
        if known.is_none() {
            *known = metadata_of(users);
        }
        Some(RoomReport { name: rooms.name(room).clone(), epoch, metadata: known.clone()? })
    }
}

/// As a Monolith would write it; there is no other way to make metadata than to read it.
fn metadata_of(users: usize) -> Option<Arc<Metadata>> {
    let room = format!(r#"{{"name":"simulated","isTemporary":true,"visibility":"unlisted","users":{users}}}"#);
    let frame = format!(r#"{{"type":"loaded","payload":{{"room":{room},"load_epoch":1}}}}"#);
    match Frame::parse(&frame).ok()?.message {
        FromMonolith::Loaded(report) => Some(report.metadata),
        _ => None,
    }
}
