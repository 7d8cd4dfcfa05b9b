//! Clients that wait before their upgrade, from their side: a knock, and that it is taken back whatever happens to whoever
//! waits.

use tokio::sync::oneshot;

use super::{Command, Control};
use crate::model::{ClientId, RoomKey};

/// Too many wait already, or usher is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnedAway;

impl Control {
    /// Waits until a client may be upgraded. Whoever stops waiting drops the future, and leaves the line.
    pub async fn knock(&self, client: ClientId, room: RoomKey) -> Result<(), TurnedAway> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Knock { client, room, reply }).map_err(|_| TurnedAway)?;
        let mut waiting = Waiting { client, control: Some(self) };
        let admitted = answer.await;
        waiting.control = None;
        if admitted == Ok(true) { Ok(()) } else { Err(TurnedAway) }
    }
}

/// Somebody in the line, until it has its answer.
struct Waiting<'a> {
    client: ClientId,
    control: Option<&'a Control>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(control) = self.control {
            // Without a control thread there is nobody left to be told.
            let _ = control.send(Command::Withdraw(self.client));
        }
    }
}
