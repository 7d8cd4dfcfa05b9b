//! Every client socket there is: how many, and how to reach them when usher stops.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;

use crate::link::inbox::Inbox;
use crate::model::{ClientId, CloseCode};

/// The register of client sockets.
#[derive(Debug, Default)]
pub struct Clients {
    open: Mutex<HashMap<ClientId, Arc<Inbox>, RandomState>>,
    /// Counters for metrics.
    pub counters: ClientCounters,
}

/// What happened to client sockets.
#[derive(Debug, Default)]
pub struct ClientCounters {
    /// Sockets that were upgraded.
    pub upgraded: AtomicU64,
    /// Frames that were no JSON object and therefore not forwarded.
    pub dropped_frames: AtomicU64,
    /// Frames of an attachment that is over.
    pub stale_frames: AtomicU64,
    /// Clients that did not answer heartbeats.
    pub vanished: AtomicU64,
    /// Clients whose first frame was not an `auth` with a token, or did not come.
    pub unauthenticated: AtomicU64,
    /// Clients that sent too much before their join was confirmed.
    pub held_too_much: AtomicU64,
    /// Messages from clients.
    pub messages: AtomicU64,
}

/// A place in the register. Dropping it gives it up.
#[derive(Debug)]
pub struct Registered {
    client: ClientId,
    clients: Arc<Clients>,
}

impl Clients {
    /// Takes a place for a client unless `limit` are taken.
    pub fn register(self: &Arc<Self>, client: ClientId, inbox: Arc<Inbox>, limit: usize) -> Option<Registered> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= limit {
            return None;
        }
        open.insert(client, inbox);
        drop(open);
        Some(Registered { client, clients: self.clone() })
    }

    /// How many sockets are open.
    pub fn len(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Closes every client with one code, spread evenly over a time so that they do not come back all at once, and
    /// waits a moment for the last ones to be gone.
    pub async fn close_all(&self, code: CloseCode, over: Duration) {
        const STEP: Duration = Duration::from_millis(50);
        let inboxes: Vec<Arc<Inbox>> =
            self.open.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let steps = u32::try_from(over.as_millis() / STEP.as_millis()).unwrap_or(u32::MAX).max(1);
        let per_step = inboxes.len().div_ceil(steps as usize).max(1);
        for some in inboxes.chunks(per_step) {
            for inbox in some {
                inbox.close(code);
            }
            if inboxes.len() > per_step {
                tokio::time::sleep(STEP).await;
            }
        }
        let patience = tokio::time::Instant::now() + Duration::from_secs(2);
        while !self.is_empty() && tokio::time::Instant::now() < patience {
            // Whoever came through the door as it was closed registers late.
            let late: Vec<Arc<Inbox>> =
                self.open.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
            late.iter().for_each(|inbox| inbox.close(code));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let gone = self.clients.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.client);
        drop(gone);
    }
}
