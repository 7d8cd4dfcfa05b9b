//! The last decisions, kept in bounded memory as traces in miniature: what a gate re-decides before another version goes
//! live.
//!
//! Like a recording it has a queue and a thread of its own, so that whoever decides neither waits nor encodes. The
//! decisions are kept in segments. Each stands alone, as a file does: a header, the views that its decisions refer to, the
//! text of each policy that decided in it. A full one is compressed; when all of them together are too large, the oldest
//! goes as a whole. Events are not kept, since no decision refers to them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::encode::Encoder;
use super::record::{Gap, Header};
use super::recorder::{Alive, Inbox, Progress, Record, Recorder, Rest, Shared, queue};
use super::write::LEVEL;

/// Bytes of a segment before it is compressed, besides its header.
const SEGMENT: usize = 512 << 10;
/// How long a reader waits for what is still queued.
const CATCH_UP: Duration = Duration::from_secs(1);

/// The memory of the last decisions. Dropping it ends its thread.
pub struct Recent {
    recorder: Recorder,
    kept: Arc<Mutex<Kept>>,
}

/// The segments, oldest first.
#[derive(Default)]
struct Kept {
    full: VecDeque<Arc<[u8]>>,
    /// Bytes of the full ones.
    bytes: usize,
    /// The one that is written; empty before its header.
    current: Vec<u8>,
    header: usize,
}

impl Recent {
    /// Starts the thread. `limit` is in bytes, for all segments together: beyond it the oldest goes. The newest two are
    /// kept whatever their size. An error says that there is no thread to be had.
    pub fn start(limit: usize, header: Header) -> std::io::Result<Self> {
        let (recorder, inbox) = queue();
        let kept = Arc::new(Mutex::new(Kept::default()));
        let keeper = Keeper {
            encoder: Encoder::new(None),
            header,
            started: Instant::now(),
            limit,
            shared: recorder.shared().clone(),
            kept: kept.clone(),
        };
        let thread = std::thread::Builder::new().name("usher-recent".into()).spawn(move || {
            let _alive = Alive(keeper.shared.clone());
            keeper.run(&inbox);
        })?;
        recorder.shared().written_by(thread.thread());
        Ok(Self { recorder, kept })
    }

    /// The way to it.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// What is kept, oldest first; each is a trace for [`super::read::Reader::new`]. Decisions that were taken before
    /// this call are in it, unless the thread is late by more than a second. Waits for it that long, so this is not for a
    /// thread that serves.
    pub fn segments(&self) -> Vec<Arc<[u8]>> {
        if let Some(passed) = self.recorder.mark() {
            // Nothing is sent: the mark is dropped when its turn comes, and so is the queue with the thread.
            let _ = passed.recv_timeout(CATCH_UP);
        }
        let kept = lock(&self.kept);
        let current = (!kept.current.is_empty()).then(|| Arc::from(kept.current.as_slice()));
        kept.full.iter().cloned().chain(current).collect()
    }

    /// How many decisions were kept so far and how many dropped, the bytes at hand, and why the thread has ended if it
    /// has. `rotations` counts segments that were begun.
    pub fn progress(&self) -> Progress {
        let bytes = {
            let kept = lock(&self.kept);
            kept.bytes + kept.current.len()
        };
        Progress { bytes: bytes as u64, ..self.recorder.progress() }
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        self.recorder.shared().stop();
    }
}

struct Keeper {
    encoder: Encoder,
    header: Header,
    started: Instant,
    limit: usize,
    shared: Arc<Shared>,
    kept: Arc<Mutex<Kept>>,
}

impl Keeper {
    fn run(mut self, inbox: &Inbox) {
        let shared = self.shared.clone();
        // Nobody looks any more at what was decided before the end.
        while inbox.batch(|at, record| {
            if !shared.stops() {
                self.record(at, record)
            }
        }) == Rest::Comes
        {}
    }

    fn record(&mut self, at: Instant, record: Record) {
        let kept = self.kept.clone();
        let mut kept = lock(&kept);
        let taken = match record {
            Record::Decision(taken) => taken,
            Record::Distances(distances) => {
                self.header.distances = *distances;
                return self.end_segment(&mut kept);
            }
            Record::Event(_) => return,
            Record::Mark(passed) => return drop(passed),
            #[cfg(test)]
            Record::Panic => panic!("asked to"),
        };
        if !taken.canary && *taken.by != self.header.policy {
            self.header.policy = (*taken.by).clone();
        }
        if kept.current.is_empty() {
            self.encoder.header(&self.header, &mut kept.current);
            kept.header = kept.current.len();
        }
        let t = u64::try_from(at.saturating_duration_since(self.started).as_micros()).unwrap_or(u64::MAX);
        let missing = self.shared.tell_missing();
        if missing != Gap::default() {
            self.encoder.gap(t, missing, &mut kept.current);
        }
        self.encoder.declare(t, &taken.by, &mut kept.current);
        self.encoder.decision(t, taken.decided, &mut kept.current);
        self.shared.progress(|progress| progress.decisions += 1);
        if kept.current.len() >= kept.header + SEGMENT {
            self.end_segment(&mut kept);
        }
    }

    fn end_segment(&self, kept: &mut Kept) {
        let current = std::mem::take(&mut kept.current);
        if current.is_empty() {
            return;
        }
        // It is readable as it is, should there be no memory to compress it with.
        let full = zstd::bulk::compress(&current, LEVEL).unwrap_or(current);
        kept.bytes += full.len();
        kept.full.push_back(full.into());
        while kept.full.len() > 1 && kept.bytes + kept.header + SEGMENT > self.limit {
            let oldest = kept.full.pop_front().map_or(0, |oldest| oldest.len());
            kept.bytes -= oldest;
        }
        self.shared.progress(|progress| progress.rotations += 1);
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}
