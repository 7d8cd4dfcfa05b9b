//! One room and the states of its life.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::Serialize;

use crate::model::event::Micros;
use crate::model::policy::Previous;
use crate::model::wire::Metadata;
use crate::model::{ClientId, Epoch, MonolithId, Region, RequestId, RoomName};

/// A room that somebody wants or some Monolith has. A room that is neither does not exist here.
pub struct Room {
    /// Its name, in the Monolith's spelling once one has reported it.
    pub(super) name: RoomName,
    /// Whether a Monolith has spelled its name: others who have not loaded it know it under no other spelling.
    pub(super) spelled: bool,
    pub(super) state: State,
    /// Everyone who waits for it or is joined to it.
    pub(super) members: Vec<ClientId>,
    /// The same by edge region; regions with nobody left are absent.
    pub(super) regions: BTreeMap<Region, u32>,
    /// When one of them was joined last.
    pub(super) joined: Micros,
    /// The edge region of the first member.
    pub(super) region: Option<Region>,
    /// The Monolith that it left last.
    pub(super) previous: Option<Previous>,
    /// What the Monolith that it left last said of it.
    pub(super) metadata: Option<Arc<Metadata>>,
    /// Where it was sent last, and when.
    pub(super) placed: Option<Placed>,
}

/// What is remembered of a placement.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Placed {
    /// When, in microseconds since the Unix epoch.
    pub(super) at: Micros,
    /// What was chosen.
    pub(super) monolith: MonolithId,
    /// Whether another balancer has chosen it: its claim was found, and followed.
    pub(super) followed: bool,
    /// Whether the room came from another Monolith: each balancer with clients in it has then placed it.
    pub(super) moved: bool,
}

/// Where a room is in its life.
pub(super) enum State {
    /// Some Monolith has not said yet what it has, and whoever has this room may be among them; or no Monolith takes it now,
    /// and its members keep their sockets for a while.
    Parked { waiting: VecDeque<Waiter>, deadline: Micros },
    /// Chosen, and not confirmed.
    Placing(Placing),
    /// On one Monolith.
    Active(Active),
    /// Its Monolith was asked to unload it, so that it can go to another.
    Unloading(Unloading),
    /// On two Monoliths, one of which is to let it go.
    Settling(Settling),
}

/// A room that another Monolith keeps than the one that it was on. Nobody speaks to that one any more, and nobody is let
/// into the other before it has let go: what it saves last is to be older than whatever they say next.
pub(super) struct Settling {
    /// The one that keeps it.
    pub(super) monolith: MonolithId,
    /// The load that is kept.
    pub(super) epoch: Epoch,
    /// The one that is to let it go.
    pub(super) loser: MonolithId,
    pub(super) waiting: VecDeque<Waiter>,
    /// When everybody is let in all the same.
    pub(super) deadline: Micros,
}

/// A room whose Monolith has been asked to let it go. Its members are joined there until it has; whoever comes
/// meanwhile waits, since a join or a request would load the room there again.
pub(super) struct Unloading {
    pub(super) monolith: MonolithId,
    /// The load that was asked to go.
    pub(super) epoch: Epoch,
    /// Where it is to go; none if that is decided once it has left.
    pub(super) to: Option<MonolithId>,
    /// Whether its members' messages are held back meanwhile.
    pub(super) hold: bool,
    pub(super) waiting: VecDeque<Waiter>,
    /// When it is given up.
    pub(super) deadline: Micros,
}

/// A room whose Monolith has been chosen and has not confirmed it.
pub(super) struct Placing {
    pub(super) monolith: MonolithId,
    /// Whose join or request is at the Monolith. One at a time, save for joins that crossed an unload.
    pub(super) out: Vec<Waiter>,
    /// Everyone else, in the order in which they came. Holds entries of clients that have left meanwhile.
    pub(super) waiting: VecDeque<Waiter>,
    /// From 1.
    pub(super) attempt: u32,
    /// The Monoliths that failed it, the present one included until another is found.
    pub(super) tried: Vec<MonolithId>,
    /// Whether those who are out joined a room that was unloaded under them: that is no failure of the Monolith.
    pub(super) crossed_unload: bool,
    /// Whether somebody who was out has gone without an answer: the Monolith may be loading the room all the same.
    pub(super) unanswered: bool,
    pub(super) deadline: Micros,
}

/// A room that is on one Monolith.
pub(super) struct Active {
    pub(super) monolith: MonolithId,
    pub(super) binding: Binding,
}

/// How sure it is that a Monolith has a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binding {
    /// It reported this load.
    Reported(Epoch),
    /// It answered for the room, and will report it. Without a report it counts only as long as there are members,
    /// which is looked at each time the deadline passes.
    Answered { deadline: Micros },
    /// It created or served it over HTTP; a report or an answer has to come before the deadline.
    Provisional { deadline: Micros },
}

impl Binding {
    pub(super) fn epoch(self) -> Option<Epoch> {
        match self {
            Self::Reported(epoch) => Some(epoch),
            Self::Answered { .. } | Self::Provisional { .. } => None,
        }
    }

    fn deadline(self) -> Option<Micros> {
        match self {
            Self::Reported(_) => None,
            Self::Answered { deadline } | Self::Provisional { deadline } => Some(deadline),
        }
    }
}

/// Somebody who needs the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waiter {
    Client(ClientId),
    Request(RequestId),
}

/// A room's state by name, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RoomStatus {
    /// Waiting for Monoliths to say what they have, or for one that takes it.
    Parked,
    /// Chosen, and not confirmed.
    Placing,
    /// On one Monolith.
    Active,
    /// On one Monolith that was asked to let it go.
    Unloading,
    /// On two Monoliths, one of which is to let it go.
    Settling,
}

impl Room {
    pub(super) fn new(name: RoomName, state: State) -> Self {
        let (members, regions) = (Vec::new(), BTreeMap::new());
        Self {
            name,
            spelled: false,
            state,
            members,
            regions,
            joined: 0,
            region: None,
            previous: None,
            metadata: None,
            placed: None,
        }
    }

    pub(super) fn monolith(&self) -> Option<&MonolithId> {
        match &self.state {
            State::Parked { .. } => None,
            State::Placing(placing) => Some(&placing.monolith),
            State::Active(active) => Some(&active.monolith),
            State::Unloading(unloading) => Some(&unloading.monolith),
            State::Settling(settling) => Some(&settling.monolith),
        }
    }

    /// Whether it makes a difference to the room that this Monolith has gone.
    pub(super) fn concerns(&self, monolith: &MonolithId) -> bool {
        let loser = match &self.state {
            State::Settling(settling) => Some(&settling.loser),
            State::Parked { .. } | State::Placing(_) | State::Active(_) | State::Unloading(_) => None,
        };
        [self.monolith(), loser].contains(&Some(monolith))
    }

    /// The Monolith on which it counts as a placement that nothing has confirmed.
    pub(super) fn pending_on(&self) -> Option<&MonolithId> {
        match &self.state {
            State::Placing(placing) => Some(&placing.monolith),
            State::Active(Active { monolith, binding: Binding::Provisional { .. } }) => Some(monolith),
            State::Parked { .. } | State::Active(_) | State::Unloading(_) | State::Settling(_) => None,
        }
    }

    /// The Monolith to which everybody who comes may go at once.
    pub(super) fn bound_to(&self) -> Option<&MonolithId> {
        match &self.state {
            State::Active(active) => Some(&active.monolith),
            State::Parked { .. } | State::Placing(_) | State::Unloading(_) | State::Settling(_) => None,
        }
    }

    /// The Monolith that has it, even if it was asked to let it go.
    pub(super) fn owner(&self) -> Option<&MonolithId> {
        match &self.state {
            State::Active(active) => Some(&active.monolith),
            State::Unloading(unloading) => Some(&unloading.monolith),
            State::Settling(settling) => Some(&settling.monolith),
            State::Parked { .. } | State::Placing(_) => None,
        }
    }

    /// Whose join or request is at a Monolith that has not answered for the room.
    pub(super) fn out(&self) -> &[Waiter] {
        match &self.state {
            State::Placing(placing) => &placing.out,
            State::Parked { .. } | State::Active(_) | State::Unloading(_) | State::Settling(_) => &[],
        }
    }

    pub(super) fn is_confirmed(&self) -> bool {
        match &self.state {
            State::Active(active) => !matches!(active.binding, Binding::Provisional { .. }),
            State::Unloading(_) | State::Settling(_) => true,
            State::Parked { .. } | State::Placing(_) => false,
        }
    }

    pub(super) fn deadline(&self) -> Option<Micros> {
        match &self.state {
            State::Parked { deadline, .. } => Some(*deadline),
            State::Placing(placing) => Some(placing.deadline),
            State::Active(active) => active.binding.deadline(),
            State::Unloading(unloading) => Some(unloading.deadline),
            State::Settling(settling) => Some(settling.deadline),
        }
    }

    pub(super) fn status(&self) -> RoomStatus {
        match &self.state {
            State::Parked { .. } => RoomStatus::Parked,
            State::Placing(_) => RoomStatus::Placing,
            State::Active(_) => RoomStatus::Active,
            State::Unloading(_) => RoomStatus::Unloading,
            State::Settling(_) => RoomStatus::Settling,
        }
    }
}
