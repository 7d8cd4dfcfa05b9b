//! Client sockets that have been opened and have not said who they are: how many there may be.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The count of them.
#[derive(Clone, Debug, Default)]
pub struct Handshakes(Arc<AtomicUsize>);

/// One of them, as long as it lives.
#[derive(Debug)]
pub struct Handshake(Arc<AtomicUsize>);

impl Handshakes {
    /// One more, unless there are `limit` already.
    pub fn begin(&self, limit: usize) -> Option<Handshake> {
        let more = |count: usize| (count < limit).then_some(count + 1);
        self.0.fetch_update(Relaxed, Relaxed, more).ok().map(|_| Handshake(self.0.clone()))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_more_than_may_be() {
        let handshakes = Handshakes::default();
        let first = handshakes.begin(2).unwrap();
        let second = handshakes.begin(2).unwrap();
        assert!(handshakes.begin(2).is_none());
        drop(first);
        assert_eq!(handshakes.count(), 1);
        assert!(handshakes.begin(2).is_some());
        drop(second);
        assert_eq!(handshakes.count(), 0);
    }
}
