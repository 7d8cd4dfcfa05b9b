//! Members that left before the Monolith had answered their `join`. A Monolith that is still loading the room does not
//! know such a member yet, so it ignores the `leave`, and lets the member in afterwards: a ghost that keeps the room
//! loaded for good. A ping behind the `leave` tells the two cases apart: an answer that comes before the pong has
//! crossed the `leave`, one that comes after it was given by a Monolith that needs to be told again.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use crate::model::MemberId;

/// For how long a late answer is watched for.
const WATCH: Duration = Duration::from_secs(60);
/// How many members are watched for; the oldest are given up first.
const LIMIT: usize = 10_000;
/// Set in the numbers of these pings, which no heartbeat reaches.
const MARK: u64 = 1 << 63;

/// The members of one link whose `leave` may have come too early.
#[derive(Debug, Default)]
pub(super) struct Departed {
    /// By member, the ping that followed its `leave`.
    members: HashMap<MemberId, u64, RandomState>,
    order: VecDeque<(Instant, MemberId)>,
    sent: u64,
    answered: u64,
}

impl Departed {
    /// The `leave` of an unanswered member is being queued. Returns the number of the ping that has to follow it.
    pub(super) fn left(&mut self, member: MemberId) -> u64 {
        self.expire();
        self.sent += 1;
        self.members.insert(member, self.sent);
        self.order.push_back((Instant::now(), member));
        MARK | self.sent
    }

    /// A pong came; those of heartbeats are of no interest.
    pub(super) fn pong(&mut self, payload: &[u8]) {
        let Ok(number) = payload.try_into().map(u64::from_be_bytes) else { return };
        if number & MARK != 0 && number & !MARK <= self.sent {
            self.answered = self.answered.max(number & !MARK);
        }
    }

    /// Something came for a member that is not here. `true` if a second `leave` is due.
    pub(super) fn heard(&mut self, member: MemberId) -> bool {
        self.members.remove(&member).is_some_and(|ping| ping <= self.answered)
    }

    /// The Monolith has refused a member that had left.
    pub(super) fn kicked(&mut self, member: MemberId) {
        self.members.remove(&member);
    }

    fn expire(&mut self) {
        while let Some((at, member)) = self.order.front()
            && (self.order.len() >= LIMIT || at.elapsed() > WATCH)
        {
            self.members.remove(member);
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Attachment, ClientId};

    fn member(n: u128) -> MemberId {
        ClientId::from_u128(n << 64).member(Attachment(1))
    }

    #[test]
    fn f33_only_an_answer_behind_the_pong_needs_a_second_leave() {
        let mut departed = Departed::default();
        let (crossed, late, refused) = (member(1), member(2), member(3));
        for member in [crossed, late, refused] {
            departed.left(member);
        }
        assert!(!departed.heard(crossed));
        departed.pong(&7_u64.to_be_bytes());
        departed.pong(b"odd");
        departed.pong(&(MARK | 3).to_be_bytes());
        departed.kicked(refused);
        assert!(departed.heard(late));
        assert!(!departed.heard(late), "once");
        assert!(!departed.heard(crossed) && !departed.heard(refused) && !departed.heard(member(4)));
    }

    #[test]
    fn it_is_bounded() {
        let mut departed = Departed::default();
        for n in 0..2 * LIMIT as u128 {
            departed.left(member(n + 1));
        }
        assert!(departed.members.len() <= LIMIT && departed.order.len() <= LIMIT);
    }
}
