//! One linked Monolith: what it is and what it says it has loaded.

use std::sync::Arc;

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
    /// What its link says of it.
    pub(super) link_state: MonolithState,
    pub(super) sync: Sync,
    /// What it has reported loaded and not yet unloaded.
    pub(super) copies: Map<RoomKey, Copy>,
    /// Rises with each gossip, to tell which copies the last one named.
    pub(super) gossips: u64,
    /// The sum of `users` over `copies`.
    pub(super) users: u64,
    /// Until when births without a name go elsewhere, because one could not be sent here over HTTP.
    pub(super) shunned: Micros,
}

impl Monolith {
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
    /// The number of the gossip that named it last.
    pub(super) gossip: u64,
    /// The number of the gossip before the moment when it lost against an older copy and was asked to unload. The same
    /// load is never asked twice.
    pub(super) asked: Option<u64>,
}

impl Copy {
    /// Whether it is on its way out: nobody is sent to it. The next gossip may have crossed the request; one that
    /// still names it after that means that the Monolith keeps it.
    pub(super) fn is_leaving(&self) -> bool {
        self.asked.is_some_and(|asked| self.gossip <= asked + 1)
    }
}
