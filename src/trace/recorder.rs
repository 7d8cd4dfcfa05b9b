//! The way to a thread that writes a trace. Whoever records never waits: what does not fit into the queue is counted, and
//! the count stands in the trace where it is missing.
//!
//! The thread sleeps, and takes what waits all at once: to wake it for each record would cost several times as much as the
//! record. It is woken before its time only when much waits, or when somebody waits for it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::record::{Decided, Gap, LiveEvent, PolicyText};
use crate::config::Distances;

/// Records that may wait for the thread; what comes on top is dropped and counted.
const QUEUE: usize = 16 << 10;
/// Monoliths in all snapshots that may wait, each counted once however many snapshots share it: a few hundred bytes each.
/// What comes on top is dropped and counted.
const QUEUE_ROWS: usize = 32 << 10;
/// The thread is woken when a queue is full to one part in so many.
const EARLY: usize = 4;
/// How long the thread sleeps otherwise.
const PAUSE: Duration = Duration::from_millis(100);

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
pub(super) struct Inbox {
    records: Receiver<(Instant, Record)>,
    shared: Arc<Shared>,
}

/// Whether more can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Sooner or later.
    Comes,
    /// The thread was told to end, or nobody is left who records.
    Nothing,
}

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
    /// Events that the disk has taken.
    pub events: u64,
    /// Decisions that the disk has taken.
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
    /// Records that wait.
    waiting: AtomicUsize,
    /// What their snapshots hold besides those before them.
    rows: AtomicUsize,
    stop: AtomicBool,
    /// The one that writes. Known before anybody can record.
    thread: OnceLock<Thread>,
    progress: Mutex<Progress>,
}

/// A queue with both its ends, and what they have in common.
pub(super) fn queue() -> (Recorder, Inbox) {
    let (queue, records) = sync_channel(QUEUE);
    let shared = Arc::<Shared>::default();
    (Recorder { queue, shared: shared.clone() }, Inbox { records, shared })
}

impl Inbox {
    /// Sleeps for a while, unless there is a reason not to, and takes in what waits then, oldest first.
    pub(super) fn batch(&self, mut each: impl FnMut(Instant, Record)) -> Rest {
        if !self.shared.stops() {
            std::thread::park_timeout(PAUSE);
        }
        // Asked before the queue: what was recorded before somebody said so is taken in.
        let mut rest = if self.shared.stops() { Rest::Nothing } else { Rest::Comes };
        // Those who record while this goes on do not keep it from its other work.
        for _ in 0..QUEUE {
            match self.records.try_recv() {
                Ok((at, record)) => {
                    self.shared.taken(&record);
                    each(at, record);
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    rest = Rest::Nothing;
                    break;
                }
            }
        }
        rest
    }
}

impl Recorder {
    /// Records that something happened.
    pub fn event(&self, event: LiveEvent) {
        self.offer(Record::Event(event), &self.shared.missing_events);
    }

    /// Records a decision. The text of the policy is written once a file, before its first decision there; that of a
    /// `canary` does not become the one that the next file begins with.
    pub fn decision(&self, decided: Decided, by: &Arc<PolicyText>, canary: bool) {
        let rows = decided.view.holds();
        let before = self.shared.rows.fetch_add(rows, Relaxed);
        // One alone always fits, however large the cluster is.
        if before > 0 && before + rows > QUEUE_ROWS {
            self.shared.rows.fetch_sub(rows, Relaxed);
            self.shared.missing_decisions.fetch_add(1, Relaxed);
            return;
        }
        let taken = Record::Decision(Box::new(Taken { decided, by: by.clone(), canary }));
        if !self.offer(taken, &self.shared.missing_decisions) {
            self.shared.rows.fetch_sub(rows, Relaxed);
        } else if before < QUEUE_ROWS / EARLY && before + rows >= QUEUE_ROWS / EARLY {
            self.shared.wake();
        }
    }

    /// Other distances from here on: they stand in the header, so another file begins.
    pub fn distances(&self, distances: Distances) {
        self.offer(Record::Distances(Box::new(distances)), &self.shared.missing_events);
    }

    /// How the recording goes.
    pub fn progress(&self) -> Progress {
        // What is missing is told while nobody looks, so that the sums never fall.
        self.shared.progress(|progress| Progress {
            dropped_events: progress.dropped_events + self.shared.missing_events.load(Relaxed),
            dropped_decisions: progress.dropped_decisions + self.shared.missing_decisions.load(Relaxed),
            ..progress.clone()
        })
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// A receiver that ends once everything before this moment was taken in; none if the queue is full.
    pub(super) fn mark(&self) -> Option<Receiver<()>> {
        let (mark, passed) = sync_channel(1);
        self.send(Record::Mark(mark)).is_ok().then(|| {
            self.shared.wake();
            passed
        })
    }

    #[cfg(test)]
    pub(super) fn panic(&self) {
        let _ = self.send(Record::Panic);
    }

    /// Whether it was taken.
    fn offer(&self, record: Record, missing: &AtomicU64) -> bool {
        match self.send(record) {
            Ok(()) => true,
            // After an orderly stop nothing is missing; a thread that broke off misses everything.
            Err(TrySendError::Disconnected(_)) if self.shared.stops() => false,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                missing.fetch_add(1, Relaxed);
                false
            }
        }
    }

    fn send(&self, record: Record) -> Result<(), TrySendError<(Instant, Record)>> {
        let before = self.shared.waiting.fetch_add(1, Relaxed);
        let sent = self.queue.try_send((Instant::now(), record));
        if sent.is_err() {
            self.shared.waiting.fetch_sub(1, Relaxed);
        } else if before + 1 == QUEUE / EARLY {
            self.shared.wake();
        }
        sent
    }
}

impl Shared {
    /// Whom to wake.
    pub(super) fn written_by(&self, thread: &Thread) {
        // Each queue has one thread, so there is none before it.
        let _ = self.thread.set(thread.clone());
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// The thread is to end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Relaxed);
        self.wake();
    }

    pub(super) fn stops(&self) -> bool {
        self.stop.load(Relaxed)
    }

    pub(super) fn progress<T>(&self, change: impl FnOnce(&mut Progress) -> T) -> T {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The thread has taken a record out of the queue.
    fn taken(&self, record: &Record) {
        self.waiting.fetch_sub(1, Relaxed);
        if let Record::Decision(taken) = record {
            self.rows.fetch_sub(taken.decided.view.holds(), Relaxed);
        }
    }

    /// Counts what was not written, until it can be told in the trace.
    pub(super) fn missing(&self, what: Gap) {
        self.missing_events.fetch_add(what.events, Relaxed);
        self.missing_decisions.fetch_add(what.decisions, Relaxed);
    }

    /// What is missing and has to be told now.
    pub(super) fn tell_missing(&self) -> Gap {
        if self.missing_events.load(Relaxed) == 0 && self.missing_decisions.load(Relaxed) == 0 {
            return Gap::default();
        }
        self.progress(|progress| {
            let missing = Gap {
                events: self.missing_events.swap(0, Relaxed),
                decisions: self.missing_decisions.swap(0, Relaxed),
            };
            progress.dropped_events += missing.events;
            progress.dropped_decisions += missing.decisions;
            missing
        })
    }

    /// What was told was lost: it is missing still.
    pub(super) fn untell_missing(&self, told: Gap) {
        self.progress(|progress| {
            progress.dropped_events = progress.dropped_events.saturating_sub(told.events);
            progress.dropped_decisions = progress.dropped_decisions.saturating_sub(told.decisions);
            self.missing(told);
        });
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
