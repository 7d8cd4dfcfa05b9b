//! What waits to be written to one client: a queue with one reader, bounded in messages and bytes. Whoever would
//! overfill it closes the client instead; nobody ever waits for a client.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::mpsc;
#[cfg(test)]
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::Command;
use super::activity::Activity;
use super::handover::Holding;
#[cfg(test)]
use super::history::History;
use super::outbox::Outbox;
use crate::config::QueueLimit;
#[cfg(test)]
use crate::model::LinkId;
use crate::model::{Attachment, CloseCode, MemberId};

/// One thing for a client's task.
#[derive(Debug)]
pub enum Item {
    /// A `join` is queued: frames with an older attachment are stale from now on.
    Attached {
        /// Which of its attachments.
        attachment: Attachment,
        /// What it needs to speak to the Monolith.
        line: Line,
        /// Whether its own frames may go at once.
        open: bool,
    },
    /// The room is up: the client's own frames may go.
    Open(Attachment),
    /// The room is about to leave its Monolith, or has left it before the client's join was answered: what it says from now
    /// on is kept, for the next one or for that answer. The other part is dropped once everything that it has said so far
    /// stands in the outbox.
    Hold(Attachment, Option<Arc<Holding>>),
    /// The attachment is over, and the client stays: what the Monolith has not been sent of it, and what it says from now
    /// on, is kept for the next one.
    Detached(Attachment),
    /// A message for the client.
    Frame(Attachment, Utf8Bytes),
    /// The end, with a code for the client.
    Close(CloseCode),
}

/// A client's way to the Monolith of its room.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name there.
    pub member: MemberId,
    /// Where its own frames go.
    pub outbox: Arc<Outbox>,
    /// Where it says that it leaves.
    pub commands: mpsc::UnboundedSender<Command>,
    /// Where it notes that it has said something.
    pub activity: Arc<Activity>,
}

/// The queue of one client.
#[derive(Debug)]
pub struct Inbox {
    limit: QueueLimit,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Item>,
    messages: usize,
    bytes: usize,
    closing: bool,
    overflowed: bool,
    reader: Option<Waker>,
    #[cfg(test)]
    history: History,
}

/// A client did not keep up; it is being closed with 1013.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow;

/// A queue that once held a burst gives its memory back when it is empty.
const KEPT_CAPACITY: usize = 16;

impl Inbox {
    /// An empty queue.
    pub fn new(limit: QueueLimit) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default() })
    }

    /// Queues a message. An error says that the client is being closed because of it; once a client is closing,
    /// messages are dropped without one.
    pub fn push(&self, attachment: Attachment, frame: Utf8Bytes) -> Result<(), Overflow> {
        let reader = {
            let mut state = self.lock();
            if state.closing {
                return Ok(());
            }
            // A message larger than the whole queue passes alone: a room with a large state would otherwise be closed
            // to everyone for good.
            let too_large = state.messages > 0 && state.bytes + frame.len() > self.limit.bytes;
            if state.messages >= self.limit.messages || too_large {
                // What waits will never be read: its memory goes at once.
                state.queue = VecDeque::new();
                (state.messages, state.bytes) = (0, 0);
                state.overflowed = true;
                state.close(CloseCode::TRY_AGAIN);
                let reader = state.reader.take();
                drop(state);
                wake(reader);
                return Err(Overflow);
            }
            state.messages += 1;
            state.bytes += frame.len();
            state.queue.push_back(Item::Frame(attachment, frame));
            state.reader.take()
        };
        wake(reader);
        Ok(())
    }

    /// Announces an attachment.
    pub fn attached(&self, attachment: Attachment, line: Line, open: bool) {
        self.control(Item::Attached { attachment, line, open });
    }

    /// Notes over which link an attachment is.
    #[cfg(test)]
    pub(crate) fn joined_over(&self, link: LinkId) {
        self.lock().history.joined_over(link);
    }

    /// Every link over which its client was ever joined, and when.
    #[cfg(test)]
    pub(crate) fn links(&self) -> Vec<(LinkId, Instant)> {
        self.lock().history.links.clone()
    }

    /// Since when what its client says has been held back, if it ever was in this time.
    #[cfg(test)]
    pub(crate) fn held_within(&self, from: Instant, to: Instant) -> Option<Instant> {
        self.lock().history.held_within(from, to)
    }

    /// Notes that its client's task has read something.
    #[cfg(test)]
    pub(crate) fn has_read(&self, text: Utf8Bytes) {
        self.lock().history.has_read(text);
    }

    /// Notes that its client's task has given this to the queue of a Monolith.
    #[cfg(test)]
    pub(crate) fn has_given(&self, text: Utf8Bytes) {
        self.lock().history.has_given(text);
    }

    /// When what its client said went on for the first time.
    #[cfg(test)]
    pub(crate) fn first_spoke(&self) -> Option<Instant> {
        self.lock().history.first_spoke()
    }

    /// When the first, second... thing that its client said went on that was held back, if that has gone on: for the last time.
    #[cfg(test)]
    pub(crate) fn went_on_late(&self, number: u64) -> Option<Instant> {
        self.lock().history.went_on_late(number)
    }

    /// Lets the client's own frames through.
    pub fn open(&self, attachment: Attachment) {
        self.control(Item::Open(attachment));
    }

    /// Holds the client's own frames back.
    pub fn hold(&self, attachment: Attachment, holding: Option<Arc<Holding>>) {
        self.control(Item::Hold(attachment, holding));
    }

    /// Announces the end of an attachment whose client stays.
    pub fn detached(&self, attachment: Attachment) {
        self.control(Item::Detached(attachment));
    }

    /// Ends the client after everything that is queued already.
    pub fn close(&self, code: CloseCode) {
        let reader = {
            let mut state = self.lock();
            if state.closing {
                return;
            }
            state.close(code);
            state.reader.take()
        };
        wake(reader);
    }

    /// The next item, in order.
    pub async fn next(&self) -> Item {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next item if there is one.
    pub fn try_next(&self) -> Option<Item> {
        self.lock().pop()
    }

    /// Waits until the client has overflowed: what is being written to it is then not worth waiting for.
    pub async fn overflowed(&self) {
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.overflowed {
                return Poll::Ready(());
            }
            state.register(cx);
            Poll::Pending
        })
        .await;
    }

    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Item> {
        let mut state = self.lock();
        match state.pop() {
            Some(item) => Poll::Ready(item),
            None => {
                state.register(cx);
                Poll::Pending
            }
        }
    }

    /// Items without a bound of their own: there are at most a handful per attachment.
    fn control(&self, item: Item) {
        let reader = {
            let mut state = self.lock();
            if state.closing {
                return;
            }
            #[cfg(test)]
            state.history.note(&item);
            state.queue.push_back(item);
            state.reader.take()
        };
        wake(reader);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn close(&mut self, code: CloseCode) {
        self.closing = true;
        self.queue.push_back(Item::Close(code));
    }

    fn pop(&mut self) -> Option<Item> {
        let item = self.queue.pop_front()?;
        if let Item::Frame(_, frame) = &item {
            self.messages -= 1;
            self.bytes -= frame.len();
        }
        if self.queue.is_empty() && self.queue.capacity() > KEPT_CAPACITY {
            self.queue = VecDeque::new();
        }
        Some(item)
    }

    fn register(&mut self, cx: &Context<'_>) {
        match &mut self.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            None => self.reader = Some(cx.waker().clone()),
        }
    }
}

fn wake(reader: Option<Waker>) {
    if let Some(reader) = reader {
        reader.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox() -> Arc<Inbox> {
        Inbox::new(QueueLimit { messages: 3, bytes: 100 })
    }

    const FIRST: Attachment = Attachment(1);

    #[tokio::test]
    async fn items_come_out_in_order_and_the_close_last() {
        let inbox = inbox();
        inbox.push(FIRST, "a".into()).unwrap();
        inbox.open(FIRST);
        inbox.push(FIRST, "b".into()).unwrap();
        inbox.close(CloseCode::AWAY);
        inbox.push(FIRST, "late".into()).unwrap();
        assert!(matches!(inbox.next().await, Item::Frame(_, f) if f == "a"));
        assert!(matches!(inbox.next().await, Item::Open(_)));
        assert!(matches!(inbox.next().await, Item::Frame(_, f) if f == "b"));
        assert!(matches!(inbox.next().await, Item::Close(CloseCode::AWAY)));
        assert!(inbox.try_next().is_none());
    }

    #[tokio::test]
    async fn f32_a_full_inbox_drops_what_waits_and_closes_its_client() {
        for frames in [vec!["x"; 4], vec!["x", "y", &"z".repeat(99)], vec![&"z".repeat(500), "x"]] {
            let inbox = inbox();
            let (last, first) = frames.split_last().unwrap();
            for frame in first {
                inbox.push(FIRST, (*frame).into()).unwrap();
            }
            assert_eq!(inbox.push(FIRST, (*last).into()), Err(Overflow));
            inbox.overflowed().await;
            assert!(matches!(inbox.next().await, Item::Close(CloseCode::TRY_AGAIN)));
        }
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken() {
        let inbox = inbox();
        let reader = tokio::spawn({
            let inbox = inbox.clone();
            async move { inbox.next().await }
        });
        tokio::task::yield_now().await;
        inbox.push(FIRST, "a".into()).unwrap();
        assert!(matches!(reader.await.unwrap(), Item::Frame(..)));
    }
}
