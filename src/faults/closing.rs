//! Why a client of a run may lose its connection: whoever was let in keeps it, whatever becomes of its room.

use super::balancer::Balancer;
use super::ledger::Ledger;

/// How a connection ended that its client did not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// It was closed with this code.
    Closed(u16),
    /// It broke; `cut` says that its balancer was killed.
    Broken { cut: bool },
}

/// Whether there is a reason for it. No outage of a run lasts as long as those who were in may wait for the next Monolith,
/// no Monolith goes by itself from a room with members, and no balancer stops in order.
pub(super) fn is_explained(lost: Lost, let_in: bool, room: &str, balancer: &Balancer, ledger: &Ledger) -> bool {
    match lost {
        Lost::Broken { cut } => cut,
        Lost::Closed(4002) => room == "missing" && !let_in,
        // There was no Monolith, or none that heard of the room or loaded it in time.
        Lost::Closed(1013) => !let_in && (!balancer.is_linked() || ledger.was_slow(room)),
        Lost::Closed(_) => false,
    }
}
