//! Claims of rooms: what the cluster wants of the store that all balancers share, and what the store says.

use std::sync::Arc;

use super::event::Micros;
use super::{Epoch, MonolithId, RoomKey};

/// What a room is claimed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomLoad {
    /// Where the room is, or is to go.
    pub monolith: MonolithId,
    /// Its load there; none while it is only sent there and nobody has reported it.
    pub epoch: Option<Epoch>,
}

/// What the cluster wants of the store. Each of these may be lost: a claim that nobody renews ends by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimCommand {
    /// Claim a room before it is sent to a Monolith, and say what came of it.
    Ask {
        /// The room.
        room: RoomKey,
        /// The number of the question, for the answer.
        number: u64,
        /// Where the room is to go.
        monolith: MonolithId,
        /// A claim of another balancer, word for word, that says nothing any more: if it is still this one, it is
        /// replaced.
        instead_of: Option<Arc<str>>,
    },
    /// These rooms are where they are: their claims are kept, and those that have ended are made anew.
    Renew {
        /// Each with what it is claimed for.
        rooms: Vec<(RoomKey, RoomLoad)>,
    },
    /// A room is not there any more. A claim of another balancer is left alone, and so is one for a newer load.
    Release {
        /// The room.
        room: RoomKey,
        /// Where it was.
        load: RoomLoad,
    },
}

/// The answer to [`ClaimCommand::Ask`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimAnswer {
    /// The number of the question.
    pub number: u64,
    /// The Monolith that was asked for.
    pub monolith: MonolithId,
    /// What came of it.
    pub outcome: ClaimOutcome,
}

/// What came of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// No other balancer sends this room anywhere until it is released, or not renewed.
    Granted,
    /// Another balancer was first.
    Taken {
        /// What that has claimed it for.
        by: RoomLoad,
        /// Its claim, word for word.
        held: Arc<str>,
        /// After what time its claim ends unless it is renewed, in microseconds.
        expires_in: Micros,
    },
    /// The store did not answer: there are no claims now.
    Unavailable,
}
