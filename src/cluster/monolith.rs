//! One linked Monolith: what it is and what it says it has loaded.

use std::sync::Arc;

use super::drain::Drain;
use super::{Endpoint, Map};
use crate::model::event::Micros;
use crate::model::policy::MonolithState;
use crate::model::wire::Metadata;
use crate::model::{Epoch, LinkId, Region, RoomKey, RoomName};

/// A Monolith with a registered link.
pub struct Monolith {
    pub(super) link: LinkId,
    pub(super) region: Region,
    pub(super) endpoint: Endpoint,
    /// Since when it has taken rooms, linked or back from an ejection.
    pub(super) serving_since: Micros,
    pub(super) sync: Sync,
    /// What it has reported loaded and not yet unloaded.
    pub(super) copies: Map<RoomKey, Copy>,
    /// Rises with each gossip, to tell which copies the last one named.
    pub(super) gossips: u64,
    /// The sum of `users` over `copies`.
    pub(super) users: u64,
    /// Until when births without a name go elsewhere, because one could not be sent here over HTTP.
    pub(super) shunned: Micros,
    /// Whether it misses heartbeats.
    pub(super) suspect: bool,
    /// Whether discovery no longer lists it.
    pub(super) unlisted: bool,
    /// Whether an operator wants it empty.
    pub(super) drained: bool,
    /// Whether it has said that it stops.
    pub(super) stops: bool,
    /// Its rooms on their way elsewhere.
    pub(super) drain: Option<Drain>,
}

impl Monolith {
    /// Whether it keeps what it has and takes nothing new.
    pub(super) fn is_leaving(&self) -> bool {
        self.unlisted || self.drained || self.stops
    }

    /// What policies and people see of that.
    pub(super) fn state(&self) -> MonolithState {
        match (self.suspect, self.is_leaving()) {
            (true, _) => MonolithState::Suspect,
            (false, true) => MonolithState::Draining,
            (false, false) => MonolithState::Up,
        }
    }

    /// The users in its rooms by its own account, over all balancers.
    pub(super) fn reported_users(&self) -> u32 {
        u32::try_from(self.users).unwrap_or(u32::MAX)
    }
}

/// Whether a Monolith has said what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sync {
    /// Not yet; nobody waits for it after this moment.
    Waiting { until: Micros },
    /// It has, or it took too long.
    Done,
}

/// A room in a Monolith's memory.
pub(super) struct Copy {
    pub(super) name: RoomName,
    pub(super) epoch: Epoch,
    pub(super) metadata: Arc<Metadata>,
    /// When this load was reported first.
    pub(super) since: Micros,
    /// When a gossip named it last.
    pub(super) counted: Micros,
    /// The number of the gossip that named it last.
    pub(super) gossip: u64,
    /// Whether it is to go: it lost against an older copy, or its room moves. The same load is never asked twice.
    pub(super) asked: Option<Asked>,
    /// Since when an older copy is known besides.
    pub(super) contested: Option<Micros>,
}

/// How far the request to unload a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// It is sent at this moment, unless another balancer's has done it by then.
    Due(Micros),
    /// It was sent when its Monolith had gossiped so often.
    Sent(u64),
}

impl Copy {
    /// Whether it is on its way out: nobody is sent to it. The next gossip may have crossed the request; one that
    /// still names it after that means that the Monolith keeps it.
    pub(super) fn is_leaving(&self) -> bool {
        match self.asked {
            Some(Asked::Due(_)) => true,
            Some(Asked::Sent(gossips)) => self.gossip <= gossips + 1,
            None => false,
        }
    }

    /// Whether rooms may be found here: it stays, or nobody of us has asked it to go so far.
    pub(super) fn is_to_be_had(&self) -> bool {
        match self.asked {
            Some(Asked::Due(_)) => true,
            Some(Asked::Sent(_)) | None => !self.is_leaving(),
        }
    }
}
