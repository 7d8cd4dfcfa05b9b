//! Heartbeats of one link.

use std::time::Duration;

use tokio::time::Instant;

/// Whatever is heard proves life, and a ping is sent each interval so that there is something to hear.
pub(super) struct Heart {
    pub(super) interval: Duration,
    allowed: u32,
    missed: u32,
    /// Of the last ping.
    pub(super) number: u64,
    sent: Instant,
    heard: bool,
    /// Whether it takes no new rooms anyway: then it is not suspected, only given up.
    pub(super) draining: bool,
}

/// What an interval has shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Beat {
    Fine,
    /// Silent for the first time.
    Suspect,
    /// Silent for as many intervals as are allowed.
    Dead,
}

impl Heart {
    pub(super) fn new(interval: Duration, allowed: u32) -> Self {
        Self { interval, allowed, missed: 0, number: 0, sent: Instant::now(), heard: true, draining: false }
    }

    /// One interval has passed.
    pub(super) fn beat(&mut self) -> Beat {
        let silent = !std::mem::replace(&mut self.heard, false);
        self.number += 1;
        self.sent = Instant::now();
        if !silent {
            return Beat::Fine;
        }
        self.missed += 1;
        match self.missed {
            missed if missed >= self.allowed => Beat::Dead,
            1 if !self.draining => Beat::Suspect,
            _ => Beat::Fine,
        }
    }

    /// Something came. Returns how many beats were missed if the link was suspected.
    pub(super) fn heard(&mut self) -> Option<u32> {
        self.heard = true;
        let missed = std::mem::take(&mut self.missed);
        (missed > 0 && !self.draining).then_some(missed)
    }

    /// The round trip, if this is the answer to the last ping.
    pub(super) fn answered(&self, payload: &[u8]) -> Option<Duration> {
        (payload == self.number.to_be_bytes()).then(|| self.sent.elapsed())
    }
}
