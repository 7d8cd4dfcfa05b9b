//! The event stream of a balancer: who listens hears of every message and request; with nobody listening it costs one
//! load. A listener that falls behind loses events, and nobody waits for it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::broadcast;

use crate::model::MonolithId;

/// Events that a listener may fall behind before it loses the oldest.
const BACKLOG: usize = 1024;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TapKind {
    /// A message of or for one client.
    Ws,
    /// An HTTP request.
    Proxy,
    /// A message for a whole room.
    Broadcast,
}

/// Which way it went, seen from the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the Monolith.
    Tx,
    /// From the Monolith.
    Rx,
}

/// One event, in the shape of `/api/state/stream`.
#[derive(Clone, Debug, Serialize)]
pub struct TapEvent {
    /// What happened.
    pub event: TapKind,
    /// The Monolith.
    pub node_id: MonolithId,
    /// Which way.
    pub direction: Direction,
    /// This balancer.
    pub balancer_id: Arc<str>,
    /// Milliseconds since the Unix epoch.
    pub timestamp: u64,
}

/// The sending end.
#[derive(Debug)]
pub struct Tap {
    balancer: Arc<str>,
    events: broadcast::Sender<TapEvent>,
}

impl Tap {
    /// A stream without listeners.
    pub fn new(balancer: Arc<str>) -> Arc<Self> {
        Arc::new(Self { balancer, events: broadcast::Sender::new(BACKLOG) })
    }

    /// The id of this balancer, one per process.
    pub fn balancer(&self) -> &Arc<str> {
        &self.balancer
    }

    /// Tells whoever listens.
    pub fn emit(&self, event: TapKind, node: &MonolithId, direction: Direction) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Without a receiver nothing is lost.
        let _ = self.events.send(TapEvent {
            event,
            node_id: node.clone(),
            direction,
            balancer_id: self.balancer.clone(),
            timestamp: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        });
    }

    /// Listens from now on.
    pub fn listen(&self) -> broadcast::Receiver<TapEvent> {
        self.events.subscribe()
    }
}
