//! What waits to be written to one Monolith: first in, first out, bounded in bytes. Clients wait for room in it, so a
//! slow Monolith slows its own clients and nobody else; lifecycle frames never wait.
//!
//! What the writer has taken counts as written, whether or not it arrived. What it has not taken can be had back by the
//! client whose it is, for the next Monolith of its room: from the queue, or from what was set aside when the link ended.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use tokio::sync::{Semaphore, TryAcquireError};

use crate::model::{Hashing, MemberId, MonolithId};

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
    queue: VecDeque<Entry>,
    bytes: usize,
    stage: Stage,
    /// What was not written when the link ended, by member.
    unsent: HashMap<MemberId, Vec<String>, Hashing>,
    writer: Option<Waker>,
}

/// How far a link is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Everything is written in turn.
    #[default]
    Open,
    /// The link has ended: only its goodbye is still written.
    Ended,
    /// Nothing is written any more.
    Closed,
}

#[derive(Debug)]
struct Entry {
    frame: Outgoing,
    permits: u32,
    /// Whose message it is; none for a lifecycle frame.
    from: Option<MemberId>,
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

/// Why a client's frame was not queued.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no room now. The frame comes back, to be sent when there is.
    Full(String),
    /// The link is gone.
    Closed,
}

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

    /// Queues a client's frame if there is room now.
    pub fn try_send(&self, from: MemberId, frame: String) -> Result<(), Refused> {
        let permits = self.permits(&frame);
        match self.room.try_acquire_many(permits) {
            Ok(room) => {
                room.forget();
                let entry = Entry { frame: Outgoing::Text(frame), permits, from: Some(from) };
                self.push(entry).map_err(|Closed| Refused::Closed)
            }
            Err(TryAcquireError::NoPermits) => Err(Refused::Full(frame)),
            Err(TryAcquireError::Closed) => Err(Refused::Closed),
        }
    }

    /// Queues a client's frame when there is room; fair among those that wait. Until it has returned nothing is queued,
    /// so whoever stops waiting has sent nothing.
    pub async fn send(&self, from: MemberId, frame: String) -> Result<(), Closed> {
        let permits = self.permits(&frame);
        let room = self.room.acquire_many(permits).await.map_err(|_| Closed)?;
        room.forget();
        self.push(Entry { frame: Outgoing::Text(frame), permits, from: Some(from) })
    }

    /// Takes back what a member's client has queued and nobody has written, in order.
    pub fn reclaim(&self, member: MemberId) -> Vec<String> {
        let (frames, permits) = {
            let mut state = self.lock();
            match state.stage {
                Stage::Open => state.take_back(member),
                Stage::Ended | Stage::Closed => (state.unsent.remove(&member).unwrap_or_default(), 0),
            }
        };
        self.room.add_permits(permits);
        frames
    }

    /// Queues a lifecycle frame, which never waits. Clients that come and go leave two each behind, so a Monolith that
    /// reads nothing is to be given up once [`Outbox::is_choked`].
    pub(super) fn push_control(&self, frame: Outgoing) {
        // A link that is gone owes nobody anything.
        let _ = self.push(Entry { frame, permits: 0, from: None });
    }

    /// Takes a lifecycle frame back, if nobody has written it.
    pub(super) fn take_control_back(&self, text: &str) -> bool {
        let mut state = self.lock();
        let is_it =
            |entry: &Entry| entry.from.is_none() && matches!(&entry.frame, Outgoing::Text(waiting) if waiting == text);
        let Some(entry) = state.queue.iter().position(is_it).and_then(|at| state.queue.remove(at)) else {
            return false;
        };
        state.bytes -= entry.frame.len();
        true
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

    /// The link has ended. What clients have queued is set aside for them, whoever waits for room is told, and only the
    /// goodbye is still to be written.
    pub(super) fn end(&self) {
        self.room.close();
        let writer = {
            let mut state = self.lock();
            if state.stage != Stage::Open {
                return;
            }
            state.stage = Stage::Ended;
            for Entry { frame, from, .. } in std::mem::take(&mut state.queue) {
                if let (Outgoing::Text(text), Some(member)) = (frame, from) {
                    state.unsent.entry(member).or_default().push(text);
                }
            }
            state.bytes = 0;
            state.queue.push_back(Entry { frame: Outgoing::Close, permits: 0, from: None });
            state.writer.take()
        };
        wake(writer);
    }

    /// Nobody will write any more.
    pub(super) fn close(&self) {
        self.end();
        let writer = {
            let mut state = self.lock();
            state.stage = Stage::Closed;
            state.queue = VecDeque::new();
            state.writer.take()
        };
        wake(writer);
    }

    /// The next frame, or `None` when closed.
    pub(super) async fn next(&self) -> Option<Outgoing> {
        poll_fn(|cx| {
            let mut state = self.lock();
            if let Some(next) = state.pop() {
                return Poll::Ready(Some(next));
            }
            if state.stage == Stage::Closed {
                return Poll::Ready(None);
            }
            state.writer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
        .map(|entry| self.release(entry))
    }

    /// The next frame if there is one.
    pub(super) fn try_next(&self) -> Option<Outgoing> {
        let next = self.lock().pop();
        next.map(|entry| self.release(entry))
    }

    fn release(&self, entry: Entry) -> Outgoing {
        if entry.permits > 0 {
            self.room.add_permits(entry.permits as usize);
        }
        entry.frame
    }

    fn push(&self, entry: Entry) -> Result<(), Closed> {
        let writer = {
            let mut state = self.lock();
            if state.stage != Stage::Open {
                return Err(Closed);
            }
            state.bytes += entry.frame.len();
            state.queue.push_back(entry);
            state.writer.take()
        };
        wake(writer);
        Ok(())
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
    fn pop(&mut self) -> Option<Entry> {
        let next = self.queue.pop_front()?;
        self.bytes -= next.frame.len();
        Some(next)
    }

    /// The messages of one member, and the room that they took.
    fn take_back(&mut self, member: MemberId) -> (Vec<String>, usize) {
        if !self.queue.iter().any(|entry| entry.from == Some(member)) {
            return (Vec::new(), 0);
        }
        let (mut frames, mut permits) = (Vec::new(), 0);
        for entry in std::mem::take(&mut self.queue) {
            match entry {
                Entry { frame: Outgoing::Text(text), permits: room, from: Some(from) } if from == member => {
                    self.bytes -= text.len();
                    permits += room as usize;
                    frames.push(text);
                }
                other => self.queue.push_back(other),
            }
        }
        (frames, permits)
    }
}

fn wake(writer: Option<Waker>) {
    if let Some(writer) = writer {
        writer.wake();
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
    use crate::model::{Attachment, ClientId};
    use std::sync::Arc;

    fn member(n: u128) -> MemberId {
        ClientId::from_u128(n << 64).member(Attachment(1))
    }

    fn text(text: &str) -> Option<Outgoing> {
        Some(Outgoing::Text(text.into()))
    }

    #[tokio::test]
    async fn a_full_queue_makes_clients_wait_and_lifecycle_frames_pass() {
        let outbox = Arc::new(Outbox::new("m".into(), 10));
        outbox.try_send(member(1), "0123456789".into()).unwrap();
        assert_eq!(outbox.try_send(member(1), "x".into()), Err(Refused::Full("x".into())));
        outbox.push_control(Outgoing::Text("leave".into()));
        let waiting = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.send(member(1), "later".into()).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(outbox.len(), 15);
        assert_eq!(outbox.next().await, text("0123456789"));
        waiting.await.unwrap().unwrap();
        assert_eq!(outbox.next().await, text("leave"));
        assert_eq!(outbox.next().await, text("later"));
    }

    #[tokio::test]
    async fn a_frame_larger_than_the_queue_passes_alone() {
        let outbox = Outbox::new("m".into(), 4);
        outbox.send(member(1), "much larger".into()).await.unwrap();
        assert!(outbox.try_send(member(1), "x".into()).is_err());
        assert!(outbox.next().await.is_some());
        outbox.try_send(member(1), "x".into()).unwrap();
    }

    #[tokio::test]
    async fn the_end_tells_whoever_waits_and_sets_aside_what_was_not_written() {
        let outbox = Arc::new(Outbox::new("m".into(), 4));
        outbox.try_send(member(1), "a".into()).unwrap();
        outbox.push_control(Outgoing::Text("leave".into()));
        for (n, frame) in [(1, "b"), (2, "c"), (1, "d")] {
            outbox.try_send(member(n), frame.into()).unwrap();
        }
        let waiting = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.send(member(1), "e".into()).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(outbox.next().await, text("a"));
        outbox.end();
        // It may have got the room of the first one just before.
        let waited = waiting.await.unwrap();
        assert_eq!(outbox.try_send(member(1), "f".into()), Err(Refused::Closed));
        assert_eq!(outbox.next().await, Some(Outgoing::Close));
        outbox.close();
        assert_eq!(outbox.next().await, None);
        let expected = if waited.is_ok() { vec!["b", "d", "e"] } else { vec!["b", "d"] };
        assert_eq!(outbox.reclaim(member(1)), expected);
        assert_eq!(outbox.reclaim(member(1)), Vec::<String>::new(), "once");
        assert_eq!(outbox.reclaim(member(2)), ["c"]);
    }

    #[tokio::test]
    async fn a_member_takes_back_its_own_and_leaves_the_rest_in_order() {
        let outbox = Outbox::new("m".into(), 4);
        for (n, frame) in [(1, "a"), (2, "b"), (1, "c"), (3, "d")] {
            outbox.try_send(member(n), frame.into()).unwrap();
        }
        assert_eq!(outbox.reclaim(member(1)), ["a", "c"]);
        assert_eq!(outbox.len(), 2);
        outbox.try_send(member(4), "ef".into()).unwrap();
        assert!(outbox.try_send(member(4), "x".into()).is_err(), "its room is free again, and no more");
        for frame in ["b", "d", "ef"] {
            assert_eq!(outbox.next().await, text(frame));
        }
    }
}
