//! What a call reads from outside of its data: kept on request, or fed back from a list so that a recorded call can be
//! made again. Without either it costs one look at an atomic for each read.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use super::surface::lock;
use crate::model::read::Read;

/// The most reads that are kept of one call, and the most bytes of their names and texts. A call that reads more cannot
/// be made again from what is kept, and says so.
const MAX_READS: usize = 10_000;
const MAX_BYTES: usize = 1 << 20;

const OFF: u8 = 0;
const KEEP: u8 = 1;
const FEED: u8 = 2;

/// The reads of one VM's current call.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    mode: AtomicU8,
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    reads: VecDeque<Read>,
    bytes: usize,
    /// There were more than are kept; or what was to be fed is not what the call reads.
    broken: bool,
}

impl Reads {
    /// The next call's reads are kept.
    pub(crate) fn keep(&self) {
        *lock(&self.list) = List::default();
        self.mode.store(KEEP, Relaxed);
    }

    /// The next call reads these.
    pub(crate) fn feed(&self, reads: Vec<Read>) {
        *lock(&self.list) = List { reads: reads.into(), ..List::default() };
        self.mode.store(FEED, Relaxed);
    }

    /// The call is over.
    pub(crate) fn stop(&self) {
        self.mode.store(OFF, Relaxed);
    }

    /// Whether reads are kept or fed, so that even those that need no host function have to come here.
    pub(crate) fn watched(&self) -> bool {
        self.mode.load(Relaxed) != OFF
    }

    /// Whether values come from a list, and state is not to be touched.
    pub(crate) fn feeds(&self) -> bool {
        self.mode.load(Relaxed) == FEED
    }

    /// What was kept, or `None` if that is not everything.
    pub(crate) fn take(&self) -> Option<Vec<Read>> {
        let list = std::mem::take(&mut *lock(&self.list));
        (!list.broken).then(|| list.reads.into())
    }

    /// Whether the last call read exactly what it was fed.
    pub(crate) fn matched(&self) -> bool {
        let list = lock(&self.list);
        !list.broken && list.reads.is_empty()
    }

    /// One read: the value of `own`, which is kept as `keep` writes it; or what `fed` finds in the next one of the list.
    /// From the first one that does not fit on, the call reads for itself.
    pub(crate) fn read<T>(
        &self,
        fed: impl FnOnce(&Read) -> Option<T>,
        own: impl FnOnce() -> T,
        keep: impl FnOnce(&T) -> Read,
    ) -> T {
        match self.mode.load(Relaxed) {
            KEEP => {
                let value = own();
                lock(&self.list).push(keep(&value));
                value
            }
            FEED => {
                let found = lock(&self.list).next(fed);
                found.unwrap_or_else(own)
            }
            _ => own(),
        }
    }
}

impl List {
    fn push(&mut self, read: Read) {
        self.bytes += match &read {
            Read::Now(_) | Read::Random(_) => 0,
            Read::Counter(name, _) => name.len(),
            Read::Get(key, kept) => key.len() + kept.as_ref().map_or(0, crate::model::read::Kept::bytes),
        };
        self.broken |= self.reads.len() >= MAX_READS || self.bytes > MAX_BYTES;
        if self.broken {
            self.reads.clear();
        } else {
            self.reads.push_back(read);
        }
    }

    fn next<T>(&mut self, fed: impl FnOnce(&Read) -> Option<T>) -> Option<T> {
        if self.broken {
            return None;
        }
        let found = self.reads.front().and_then(fed);
        if found.is_some() {
            self.reads.pop_front();
        } else {
            self.broken = true;
        }
        found
    }
}
