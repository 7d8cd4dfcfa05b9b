//! Every client socket there is: how many, and how to reach them when usher stops.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;

use crate::link::inbox::Inbox;
use crate::model::{ClientId, CloseCode};

/// The register of client sockets.
#[derive(Debug, Default)]
pub struct Clients {
    register: Mutex<Register>,
    /// Counters for metrics.
    pub counters: ClientCounters,
}

#[derive(Debug, Default)]
struct Register {
    open: HashMap<ClientId, Arc<Inbox>, RandomState>,
    /// Set once everybody is being closed: whoever came through the door as it was shut is closed at once.
    closing: Option<CloseCode>,
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
    /// Clients that sent too much before their join was confirmed, or while their room changed its Monolith.
    pub held_too_much: AtomicU64,
    /// Messages that were kept while a room changed its Monolith.
    pub handover_held: AtomicU64,
    /// Messages that were taken back from the queue of a Monolith that a room left.
    pub handover_reclaimed: AtomicU64,
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
    /// Takes a place for a client unless `limit` are taken. Once [`close_all`](Self::close_all) has begun, its inbox is
    /// closed right away.
    pub fn register(self: &Arc<Self>, client: ClientId, inbox: Arc<Inbox>, limit: usize) -> Option<Registered> {
        let mut register = self.lock();
        if register.open.len() >= limit {
            return None;
        }
        let closing = register.closing;
        register.open.insert(client, inbox.clone());
        drop(register);
        if let Some(code) = closing {
            inbox.close(code);
        }
        Some(Registered { client, clients: self.clone() })
    }

    /// How many sockets are open.
    pub fn len(&self) -> usize {
        self.lock().open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Closes every client with one code and waits a moment for the last ones to be gone. The closes are spread over a
    /// time, one at random in each of as many equal parts, so that clients come back neither at once nor in step.
    pub async fn close_all(&self, code: CloseCode, over: Duration) {
        let inboxes: Vec<Arc<Inbox>> = {
            let mut register = self.lock();
            register.closing = Some(code);
            register.open.values().cloned().collect()
        };
        let started = tokio::time::Instant::now();
        let random = RandomState::default();
        for (number, inbox) in inboxes.iter().enumerate() {
            // The first goes at once: a stop is seen to begin.
            let jitter = if number == 0 { 0.0 } else { (random.hash_one(number) >> 11) as f64 / (1_u64 << 53) as f64 };
            let due = started + over.mul_f64((number as f64 + jitter) / inboxes.len() as f64);
            if due > tokio::time::Instant::now() {
                tokio::time::sleep_until(due).await;
            }
            inbox.close(code);
        }
        let patience = tokio::time::Instant::now() + Duration::from_secs(2);
        while !self.is_empty() && tokio::time::Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Register> {
        self.register.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let gone = self.clients.lock().open.remove(&self.client);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::QueueLimit;
    use crate::link::inbox::Item;

    fn inbox() -> Arc<Inbox> {
        Inbox::new(QueueLimit { messages: 8, bytes: 1 << 10 })
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_while_everybody_is_closed_is_closed_at_once() {
        let clients = Arc::new(Clients::default());
        let sockets: Vec<_> = (0..4).map(|_| inbox()).collect();
        let register = |number: u128, inbox: &Arc<Inbox>| {
            clients.register(ClientId::from_u128(number << 64), inbox.clone(), 10).unwrap()
        };
        let places: Vec<_> = (1..).zip(&sockets).map(|(number, inbox)| register(number, inbox)).collect();
        let closing = tokio::spawn({
            let clients = clients.clone();
            async move { clients.close_all(CloseCode::AWAY, Duration::from_secs(60)).await }
        });
        // The first is closed, the others have most of a minute.
        tokio::time::sleep(Duration::from_millis(10)).await;
        let closed = |inbox: &Arc<Inbox>| matches!(inbox.try_next(), Some(Item::Close(CloseCode::AWAY)));
        assert_eq!(sockets.iter().filter(|inbox| closed(inbox)).count(), 1);
        let late = inbox();
        let place = register(99, &late);
        assert!(closed(&late), "long before the spread is over");
        drop((places, place));
        closing.await.unwrap();
        assert!(clients.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn closes_are_spread_evenly_and_not_in_step() {
        let clients = Arc::new(Clients::default());
        let sockets: Vec<_> = (0..100).map(|_| inbox()).collect();
        let places: Vec<_> = (1..)
            .zip(&sockets)
            .map(|(number, inbox)| clients.register(ClientId::from_u128(number << 64), inbox.clone(), 100).unwrap())
            .collect();
        let closing = tokio::spawn({
            let clients = clients.clone();
            async move { clients.close_all(CloseCode::RESTART, Duration::from_secs(100)).await }
        });
        let mut open: Vec<_> = sockets.iter().collect();
        let mut offsets = std::collections::BTreeSet::new();
        for second in 0..100 {
            let before = open.len();
            for step in 0..10 {
                let count = open.len();
                tokio::time::sleep(Duration::from_millis(100)).await;
                open.retain(|inbox| inbox.try_next().is_none());
                if open.len() < count {
                    offsets.insert(step);
                }
            }
            // A close on the border of two seconds may be seen in either.
            assert!(before - open.len() <= 2, "{} in second {second}", before - open.len());
        }
        assert!(offsets.len() > 3, "in step: {offsets:?}");
        drop(places);
        closing.await.unwrap();
    }
}
