//! What links measure, as plain atomics that anybody may read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::activity::Activities;
use super::outbox::Outbox;
use crate::model::RoomKey;
use crate::model::metrics::MetricsText;

/// Measurements of one link.
#[derive(Debug, Default)]
pub struct LinkStats {
    rtt_us: AtomicU64,
    outbox: OnceLock<Arc<Outbox>>,
    activities: OnceLock<Arc<Activities>>,
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

    /// Somebody says something to a room over HTTP.
    pub fn spoken_to(&self, room: &RoomKey) {
        if let Some(activities) = self.activities.get() {
            activities.note(room);
        }
    }

    pub(super) fn set_activities(&self, activities: Arc<Activities>) {
        // As with the outbox.
        let _ = self.activities.set(activities);
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
    ($(#[$outer:meta])* $name:ident { $($(#[doc = $help:literal])* $field:ident $metric:literal,)* }) => {
        $(#[$outer])*
        #[derive(Debug, Default)]
        pub struct $name {
            $($(#[doc = $help])* pub $field: AtomicU64,)*
        }

        impl $name {
            /// Writes every counter.
            pub fn write_metrics(&self, out: &mut MetricsText) {
                $(out.counter($metric, concat!($($help),*).trim(), self.$field.load(Relaxed));)*
            }
        }
    };
}

counters! {
    /// Counters over all links of a balancer.
    LinkCounters {
        /// Frames that came from Monoliths.
        frames_in "usher_link_frames_in_total",
        /// Frames that went to Monoliths.
        frames_out "usher_link_frames_out_total",
        /// Messages queued for clients.
        deliveries "usher_deliveries_total",
        /// Frames that were not understood.
        bad_frames "usher_link_bad_frames_total",
        /// Frames of a type that this version does not know.
        unknown_types "usher_link_unknown_types_total",
        /// Fields that this version does not know.
        unknown_fields "usher_link_unknown_fields_total",
        /// Messages and kicks for members that are not here.
        unknown_members "usher_link_unknown_members_total",
        /// Broadcasts that came before a member's join was answered.
        before_answer "usher_before_answer_total",
        /// Clients that a Monolith let in after they had left: they got a second leave.
        late_answers "usher_link_late_answers_total",
        /// Clients closed because their inbox was full.
        overflows "usher_client_overflows_total",
        /// Failed attempts at linking.
        dial_failures "usher_link_dial_failures_total",
        /// Unloads that were not sent: the room had gone meanwhile, or was to move and nobody had been let in yet.
        unloads_withheld "usher_unloads_withheld_total",
        /// Links that were lost.
        lost "usher_links_lost_total",
    }
}

/// Adds one to a counter.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
