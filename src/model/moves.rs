//! Moves of rooms from one Monolith to another: what has begun, and why one may not.

use serde::{Deserialize, Serialize};

use super::MonolithId;

/// A move that has begun: the room's Monolith has been asked to unload it, or will be once the room is quiet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moving {
    /// The room, as its Monolith spells it.
    pub room: String,
    /// The Monolith that has it.
    pub from: MonolithId,
    /// The Monolith that is to have it; none if that is decided once it has left.
    pub to: Option<MonolithId>,
    /// Clients of this balancer that go with it.
    pub clients: usize,
}

/// What came of asking a policy what should move.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebalanced {
    /// Rooms that the policy was shown.
    pub rooms: usize,
    /// Rooms that it was not shown, because there are too many.
    pub left_out: usize,
    /// Moves that it asked for.
    pub asked: usize,
    /// Of these, those that may not be.
    pub refused: usize,
    /// Whether nothing is to be done about them.
    pub dry: bool,
    /// Why there is no usable answer, if there is none.
    pub fault: Option<String>,
}

/// Why a room may not move. The text is the end of a sentence that names the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum MoveRefusal {
    /// Nobody has it and nobody wants it.
    #[error("there is no such room")]
    UnknownRoom,
    /// It is on its way to a Monolith.
    #[error("it is being placed; ask again when it is active")]
    NotActive,
    /// Its Monolith has not said that it is loaded, so an `unload` could end that Monolith.
    #[error("its Monolith has not reported it yet; ask again in a moment")]
    Unreported,
    /// It is on its way already.
    #[error("it is moving already")]
    UnderWay,
    /// The same load was asked to go before, and stayed.
    #[error("its Monolith was asked to unload it before, and kept it")]
    AskedBefore,
    /// No client of this balancer is in it, so that the Monolith may be about to unload it by itself.
    #[error("no client of this balancer is in it; its Monolith unloads it by itself")]
    NoMembers,
    /// Its Monolith misses heartbeats.
    #[error("its Monolith misses heartbeats; ask again when it answers")]
    SourceSilent,
    /// The policy decided about a room that was on another Monolith then.
    #[error("it has changed its Monolith since the move was asked for")]
    Changed,
    /// One answer moves the room twice.
    #[error("the same answer moves it twice; the first one counts")]
    Duplicate,
    /// It is there.
    #[error("it is on that Monolith already")]
    SameMonolith,
    /// The target is not linked.
    #[error("the Monolith that it is to go to is not linked; usher monolith list shows those that are")]
    UnknownMonolith,
    /// The target takes no new rooms.
    #[error("the Monolith that it is to go to takes no new rooms: it is draining or misses heartbeats")]
    NotServing,
    /// It lives in its Monolith's memory only, or may do so.
    #[error("it is temporary and so young that its Monolith may not have saved it yet; ask again in a few seconds")]
    TooYoung,
    /// Nobody could take it.
    #[error("no other Monolith takes new rooms")]
    Nowhere,
}

impl MoveRefusal {
    /// Every reason, in the order of their counters.
    pub const ALL: [Self; 14] = [
        Self::UnknownRoom,
        Self::NotActive,
        Self::Unreported,
        Self::UnderWay,
        Self::AskedBefore,
        Self::NoMembers,
        Self::SourceSilent,
        Self::Changed,
        Self::Duplicate,
        Self::SameMonolith,
        Self::UnknownMonolith,
        Self::NotServing,
        Self::TooYoung,
        Self::Nowhere,
    ];

    /// A stable label for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::UnknownRoom => "unknown_room",
            Self::NotActive => "not_active",
            Self::Unreported => "unreported",
            Self::UnderWay => "under_way",
            Self::AskedBefore => "asked_before",
            Self::NoMembers => "no_members",
            Self::SourceSilent => "source_silent",
            Self::Changed => "changed",
            Self::Duplicate => "duplicate",
            Self::SameMonolith => "same_monolith",
            Self::UnknownMonolith => "unknown_monolith",
            Self::NotServing => "not_serving",
            Self::TooYoung => "too_young",
            Self::Nowhere => "nowhere",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_and_a_label_of_its_own() {
        for (at, reason) in MoveRefusal::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
            assert_eq!(MoveRefusal::ALL.iter().filter(|other| other.label() == reason.label()).count(), 1);
        }
    }
}
