//! What is going to happen, in the order of time, and for one moment in the order in which it was planned.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::model::event::Micros;
use crate::model::wire::{RoomReport, UnloadReason};
use crate::model::{Attachment, ClientId};

/// A connection to a Monolith: which one, and how often it has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) monolith: u16,
    pub(super) start: u32,
}

/// A visit: the place of its member, and how often that place was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guest {
    pub(super) slot: u32,
    pub(super) use_of: u32,
}

/// A membership at a Monolith.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) balancer: u16,
    pub(super) client: ClientId,
    pub(super) attachment: Attachment,
}

/// Something that is going to happen.
#[derive(Debug)]
pub(super) enum Happening {
    /// The next visit begins.
    Arrival,
    /// A member asks for its room, for the `attempt`th time in a row of holds that ends at `until`.
    Ask { guest: Guest, attempt: u32, until: Micros },
    /// A member was held for too long.
    HeldTooLong { guest: Guest },
    /// A visit is over.
    Over { guest: Guest },
    /// A frame arrives at a Monolith.
    Frame { line: Line, frame: Frame },
    /// A Monolith has loaded a room.
    Loaded { line: Line, room: u32 },
    /// A room has been empty for as long as it is kept.
    Empty { line: Line, room: u32, since: Micros },
    /// A Monolith says what it has.
    GossipDue { line: Line },
    /// A report arrives at a balancer.
    Report { balancer: u16, line: Line, report: Report },
    /// A balancer has a link.
    Linked { balancer: u16, line: Line },
    /// A balancer has lost a link.
    Unlinked { balancer: u16, line: Line },
    /// A balancer hears whether a Monolith takes new rooms.
    Drains { balancer: u16, line: Line },
    /// Something that a balancer waits for is due.
    Tick { balancer: u16 },
    /// Balancers measure.
    Measure,
    /// The load of Monoliths is read.
    ReadLoad,
    /// Steps of the plan are due.
    Steps,
    /// A Monolith whose process had ended is there again.
    Restart { monolith: u16 },
    /// Loads are written down.
    Sample,
}

/// From a balancer to a Monolith.
#[derive(Debug)]
pub(super) enum Frame {
    Join { member: Member, room: u32 },
    Leave { member: Member, room: u32 },
    Unload { room: u32 },
}

/// From a Monolith to a balancer.
#[derive(Debug)]
pub(super) enum Report {
    Loaded(RoomReport),
    Unloaded { room: u32, reason: UnloadReason, detached: Vec<(ClientId, Attachment)> },
    Gossip(Vec<RoomReport>),
    Answered(Member),
    Full(Member),
}

struct Planned {
    at: Micros,
    number: u64,
    what: Happening,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// The queue. It has no bound of its own: each member, each loaded room and each Monolith has a few entries at most.
#[derive(Default)]
pub(super) struct Queue {
    planned: BinaryHeap<Reverse<Planned>>,
    number: u64,
}

impl Queue {
    pub(super) fn push(&mut self, at: Micros, what: Happening) {
        self.number += 1;
        self.planned.push(Reverse(Planned { at, number: self.number, what }));
    }

    pub(super) fn pop(&mut self) -> Option<(Micros, Happening)> {
        self.planned.pop().map(|Reverse(planned)| (planned.at, planned.what))
    }
}
