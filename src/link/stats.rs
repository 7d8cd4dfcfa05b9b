//! What links measure, as plain atomics that anybody may read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::outbox::Outbox;

/// Measurements of one link.
#[derive(Debug, Default)]
pub struct LinkStats {
    rtt_us: AtomicU64,
    outbox: OnceLock<Arc<Outbox>>,
}

impl LinkStats {
    /// The round trip of the last heartbeat; zero before the first.
    pub fn rtt(&self) -> Duration {
        Duration::from_micros(self.rtt_us.load(Relaxed))
    }

    /// Bytes that wait to be written.
    pub fn queued(&self) -> usize {
        self.outbox.get().map_or(0, |outbox| outbox.len())
    }

    pub(super) fn set_rtt(&self, rtt: Duration) {
        self.rtt_us.store(u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn set_outbox(&self, outbox: Arc<Outbox>) {
        // A link has one outbox for life.
        let _ = self.outbox.set(outbox);
    }
}

macro_rules! counters {
    ($(#[$outer:meta])* $name:ident { $($(#[$doc:meta])* $field:ident,)* }) => {
        $(#[$outer])*
        #[derive(Debug, Default)]
        pub struct $name {
            $($(#[$doc])* pub $field: AtomicU64,)*
        }
    };
}

counters! {
    /// Counters over all links of a balancer.
    LinkCounters {
        /// Frames that came from Monoliths.
        frames_in,
        /// Frames that went to Monoliths.
        frames_out,
        /// Messages queued for clients.
        deliveries,
        /// Frames that were not understood.
        bad_frames,
        /// Frames of a type that this version does not know.
        unknown_types,
        /// Fields that this version does not know.
        unknown_fields,
        /// Messages and kicks for members that are not here.
        unknown_members,
        /// Broadcasts that came before a member's join was answered.
        before_answer,
        /// Clients closed because their inbox was full.
        overflows,
        /// Failed attempts at linking.
        dial_failures,
        /// Links that were lost.
        lost,
    }
}

/// Adds one to a counter.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
