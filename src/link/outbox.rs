//! What waits to be written to one Monolith: first in, first out, bounded in bytes. Clients wait for room in it, so a
//! slow Monolith slows its own clients and nobody else; lifecycle frames never wait.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use tokio::sync::Semaphore;

use crate::model::MonolithId;

/// Bytes of lifecycle frames that may wait beyond what clients may queue: the joins of 20,000 clients with long tokens.
const LIFECYCLE_LIMIT: usize = 32 << 20;

/// The queue of one link.
#[derive(Debug)]
pub struct Outbox {
    monolith: MonolithId,
    limit: usize,
    room: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<(Outgoing, u32)>,
    bytes: usize,
    closed: bool,
    writer: Option<Waker>,
}

/// One frame for a Monolith.
#[derive(Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// A message.
    Text(String),
    /// A heartbeat with its number.
    Ping(u64),
    /// The end.
    Close,
}

/// The link is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the link is closed")]
pub struct Closed;

impl Outbox {
    /// An empty queue for so many bytes towards a Monolith.
    pub fn new(monolith: MonolithId, limit: usize) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self { monolith, limit, room: Semaphore::new(limit), state: Mutex::default() }
    }

    /// Whose queue it is.
    pub fn monolith(&self) -> &MonolithId {
        &self.monolith
    }

    /// Queues a client's frame if there is room now; gives it back if not.
    pub fn try_send(&self, frame: String) -> Result<(), String> {
        let permits = self.permits(&frame);
        match self.room.try_acquire_many(permits) {
            Ok(room) => {
                room.forget();
                self.push(Outgoing::Text(frame), permits);
                Ok(())
            }
            Err(_) => Err(frame),
        }
    }

    /// Queues a client's frame when there is room; fair among those that wait.
    pub async fn send(&self, frame: String) -> Result<(), Closed> {
        let permits = self.permits(&frame);
        let room = self.room.acquire_many(permits).await.map_err(|_| Closed)?;
        room.forget();
        self.push(Outgoing::Text(frame), permits);
        Ok(())
    }

    /// Queues a lifecycle frame, which never waits. Clients that come and go leave two each behind, so a Monolith that
    /// reads nothing is to be given up once [`Outbox::is_choked`].
    pub(super) fn push_control(&self, frame: Outgoing) {
        self.push(frame, 0);
    }

    /// Whether far more waits than clients alone may queue.
    pub(super) fn is_choked(&self) -> bool {
        self.len() > self.limit + LIFECYCLE_LIMIT
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.lock().bytes
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Nobody will write any more: whoever waits for room is told, and what waits is dropped.
    pub(super) fn close(&self) {
        self.room.close();
        let writer = {
            let mut state = self.lock();
            state.closed = true;
            state.queue = VecDeque::new();
            state.bytes = 0;
            state.writer.take()
        };
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// The next frame, or `None` when closed.
    pub(super) async fn next(&self) -> Option<Outgoing> {
        poll_fn(|cx| {
            let mut state = self.lock();
            if let Some(next) = state.pop() {
                return Poll::Ready(Some(next));
            }
            if state.closed {
                return Poll::Ready(None);
            }
            state.writer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
        .map(|(frame, permits)| self.release(frame, permits))
    }

    /// The next frame if there is one.
    pub(super) fn try_next(&self) -> Option<Outgoing> {
        let next = self.lock().pop();
        next.map(|(frame, permits)| self.release(frame, permits))
    }

    fn release(&self, frame: Outgoing, permits: u32) -> Outgoing {
        if permits > 0 {
            self.room.add_permits(permits as usize);
        }
        frame
    }

    fn push(&self, frame: Outgoing, permits: u32) {
        let writer = {
            let mut state = self.lock();
            if state.closed {
                return;
            }
            state.bytes += frame.len();
            state.queue.push_back((frame, permits));
            state.writer.take()
        };
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// A frame larger than the whole queue passes alone.
    fn permits(&self, frame: &str) -> u32 {
        u32::try_from(frame.len().clamp(1, self.limit)).unwrap_or(u32::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pop(&mut self) -> Option<(Outgoing, u32)> {
        let next = self.queue.pop_front()?;
        self.bytes -= next.0.len();
        Some(next)
    }
}

impl Outgoing {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Ping(_) | Self::Close => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_full_queue_makes_clients_wait_and_lifecycle_frames_pass() {
        let outbox = Arc::new(Outbox::new("m".into(), 10));
        outbox.try_send("0123456789".into()).unwrap();
        assert_eq!(outbox.try_send("x".into()), Err("x".to_string()));
        outbox.push_control(Outgoing::Text("leave".into()));
        let waiting = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.send("later".into()).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(outbox.len(), 15);
        assert_eq!(outbox.next().await, Some(Outgoing::Text("0123456789".into())));
        waiting.await.unwrap().unwrap();
        assert_eq!(outbox.next().await, Some(Outgoing::Text("leave".into())));
        assert_eq!(outbox.next().await, Some(Outgoing::Text("later".into())));
    }

    #[tokio::test]
    async fn a_frame_larger_than_the_queue_passes_alone() {
        let outbox = Outbox::new("m".into(), 4);
        outbox.send("much larger".into()).await.unwrap();
        assert!(outbox.try_send("x".into()).is_err());
        assert!(outbox.next().await.is_some());
        outbox.try_send("x".into()).unwrap();
    }

    #[tokio::test]
    async fn closing_tells_whoever_waits() {
        let outbox = Arc::new(Outbox::new("m".into(), 1));
        outbox.try_send("x".into()).unwrap();
        let waiting = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.send("y".into()).await }
        });
        tokio::task::yield_now().await;
        outbox.close();
        assert_eq!(waiting.await.unwrap(), Err(Closed));
        assert_eq!(outbox.next().await, None);
    }
}
