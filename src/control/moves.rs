//! Moves of rooms by hand, and what a policy's rebalancing came to, in the log.

use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{Command, Control, Stopped};
use crate::cluster::MonolithSummary;
use crate::model::moves::{MoveRefusal, Moving, Rebalanced};
use crate::model::{MonolithId, RequestId, RoomKey};

/// Who waits to hear whether a room moves.
pub(super) type Reply = oneshot::Sender<Result<Moving, MoveRefusal>>;

impl Control {
    /// Moves a room to another Monolith. What is returned has begun: the room's Monolith has been asked to let it go, or
    /// will be when the room is quiet.
    pub async fn move_room(&self, room: RoomKey, to: MonolithId) -> Result<Result<Moving, MoveRefusal>, Stopped> {
        let request = RequestId(self.requests.fetch_add(1, Relaxed));
        let (reply, answer) = oneshot::channel();
        self.send(Command::Move { request, room, to, reply })?;
        answer.await.map_err(|_| Stopped)
    }

    /// Lets a Monolith lose its rooms, or no longer. Returns what it is then; none if it is not linked.
    pub async fn drain(&self, monolith: MonolithId, on: bool) -> Result<Option<MonolithSummary>, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Drain { monolith, on, reply })?;
        answer.await.map_err(|_| Stopped)
    }
}

/// One line for each answer that asks for anything, and for each fault.
pub(super) fn log(done: &Rebalanced) {
    let Rebalanced { rooms, left_out, asked, refused, dry, fault } = done;
    match fault {
        Some(fault) => warn!(rooms, left_out, %fault, "rebalance failed; nothing moves"),
        None if *dry => info!(rooms, left_out, asked, refused, "rebalance, dry: these moves would be queued"),
        None if *asked > 0 => info!(rooms, left_out, asked, refused, "rebalance: moves are queued"),
        None => {}
    }
}
