//! Claims of rooms: what the cluster wants of the store that all balancers share, and what the store says.

use super::event::Micros;
use super::{MonolithId, RoomKey};

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
    },
    /// These rooms are where they are: their claims are kept, and those that have ended are made anew.
    Renew {
        /// Each with its Monolith.
        rooms: Vec<(RoomKey, MonolithId)>,
    },
    /// A room is not there any more. A claim of another balancer is left alone.
    Release {
        /// The room.
        room: RoomKey,
        /// Where it was.
        monolith: MonolithId,
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
        /// Where that sends the room.
        by: MonolithId,
        /// After what time its claim ends unless it is renewed, in microseconds.
        expires_in: Micros,
    },
    /// The store did not answer: there are no claims now.
    Unavailable,
}
