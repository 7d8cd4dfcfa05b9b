//! The way to a thread that writes a trace. Whoever records never waits: what does not fit into the queue is counted, and
//! the count stands in the trace where it is missing.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

use super::record::{Decided, Gap, LiveEvent, PolicyText};
use crate::config::Distances;

/// Records that may wait for the thread; what comes on top is dropped and counted.
const QUEUE: usize = 16 << 10;
/// Monoliths in all views that may wait: a few hundred bytes each. What comes on top is dropped and counted.
const QUEUE_ROWS: usize = 32 << 10;

/// Something to write.
pub(super) enum Record {
    Event(LiveEvent),
    Decision(Box<Taken>),
    Distances(Box<Distances>),
    /// Everything before it is to be taken in; dropping the sender says so.
    Mark(SyncSender<()>),
    #[cfg(test)]
    Panic,
}

/// A decision, and the policy that took it.
pub(super) struct Taken {
    pub(super) decided: Decided,
    pub(super) by: Arc<PolicyText>,
    pub(super) canary: bool,
}

/// What waits for the thread, with the moment at which it happened.
pub(super) type Inbox = Receiver<(Instant, Record)>;

/// The way to a thread that writes, for as many as want one.
#[derive(Clone)]
pub struct Recorder {
    queue: SyncSender<(Instant, Record)>,
    shared: Arc<Shared>,
}

/// How a recording goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// The file that is written.
    pub path: PathBuf,
    /// Bytes in all files of this recording, as they are on disk.
    pub bytes: u64,
    /// Events that were written.
    pub events: u64,
    /// Decisions that were written.
    pub decisions: u64,
    /// Events that were dropped.
    pub dropped_events: u64,
    /// Decisions that were dropped.
    pub dropped_decisions: u64,
    /// Full files that were begun anew.
    pub rotations: u64,
    /// Why the disk last refused, until it takes something again; or that the thread has broken off.
    pub error: Option<String>,
}

/// What the thread and those who record have in common.
#[derive(Default)]
pub(super) struct Shared {
    /// Not recorded, and not yet told in the trace.
    missing_events: AtomicU64,
    missing_decisions: AtomicU64,
    /// Monoliths in the views that wait.
    rows: AtomicUsize,
    stop: AtomicBool,
    progress: Mutex<Progress>,
}

/// A queue with both its ends, and what they have in common.
pub(super) fn queue() -> (Recorder, Inbox) {
    let (queue, inbox) = sync_channel(QUEUE);
    (Recorder { queue, shared: Arc::default() }, inbox)
}

impl Recorder {
    /// Records that something happened.
    pub fn event(&self, event: LiveEvent) {
        self.offer(Record::Event(event), &self.shared.missing_events);
    }

    /// Records a decision. The text of the policy is written once a file, before its first decision there; that of a
    /// `canary` does not become the one that the next file begins with.
    pub fn decision(&self, decided: Decided, by: &Arc<PolicyText>, canary: bool) {
        let rows = decided.view.rows().len();
        if self.shared.rows.load(Relaxed) + rows > QUEUE_ROWS {
            self.shared.missing_decisions.fetch_add(1, Relaxed);
            return;
        }
        self.shared.rows.fetch_add(rows, Relaxed);
        let taken = Record::Decision(Box::new(Taken { decided, by: by.clone(), canary }));
        if !self.offer(taken, &self.shared.missing_decisions) {
            self.shared.rows.fetch_sub(rows, Relaxed);
        }
    }

    /// Other distances from here on: they stand in the header, so another file begins.
    pub fn distances(&self, distances: Distances) {
        self.offer(Record::Distances(Box::new(distances)), &self.shared.missing_events);
    }

    /// How the recording goes.
    pub fn progress(&self) -> Progress {
        let mut progress = self.shared.progress(|progress| progress.clone());
        progress.dropped_events += self.shared.missing_events.load(Relaxed);
        progress.dropped_decisions += self.shared.missing_decisions.load(Relaxed);
        progress
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// A receiver that ends once everything before this moment was taken in; none if the queue is full.
    pub(super) fn mark(&self) -> Option<Receiver<()>> {
        let (mark, passed) = sync_channel(1);
        self.queue.try_send((Instant::now(), Record::Mark(mark))).is_ok().then_some(passed)
    }

    #[cfg(test)]
    pub(super) fn panic(&self) {
        let _ = self.queue.try_send((Instant::now(), Record::Panic));
    }

    /// Whether it was taken.
    fn offer(&self, record: Record, missing: &AtomicU64) -> bool {
        match self.queue.try_send((Instant::now(), record)) {
            Ok(()) => true,
            // After an orderly stop nothing is missing; a thread that broke off misses everything.
            Err(TrySendError::Disconnected(_)) if self.shared.stops() => false,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                missing.fetch_add(1, Relaxed);
                false
            }
        }
    }
}

impl Shared {
    /// The thread is to end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    pub(super) fn stops(&self) -> bool {
        self.stop.load(Relaxed)
    }

    pub(super) fn progress<T>(&self, change: impl FnOnce(&mut Progress) -> T) -> T {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The thread has taken a decision out of the queue.
    pub(super) fn received(&self, taken: &Taken) {
        self.rows.fetch_sub(taken.decided.view.rows().len(), Relaxed);
    }

    /// Counts what was not written, until it can be told in the trace.
    pub(super) fn missing(&self, what: Gap) {
        self.missing_events.fetch_add(what.events, Relaxed);
        self.missing_decisions.fetch_add(what.decisions, Relaxed);
    }

    /// What is missing and has to be told now.
    pub(super) fn take_missing(&self) -> Gap {
        Gap { events: self.missing_events.swap(0, Relaxed), decisions: self.missing_decisions.swap(0, Relaxed) }
    }
}

/// Held by the thread for as long as it runs: a panic shows as the error of the recording.
pub(super) struct Alive(pub(super) Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = "the thread that writes has broken off; stop the recording and start another";
            self.0.progress(|progress| progress.error = Some(error.into()));
        }
    }
}
