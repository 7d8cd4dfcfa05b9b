//! Clients that want into a room while no Monolith takes it, or soon after: they wait here, before their upgrade, for as long
//! as a join is held. Whoever is not let in by then is refused with a time to come back at, and never upgraded only to be closed.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

#[cfg(test)]
use super::broken::{self, Rule};
use super::listener::Stop;
use super::respond::Refusal;
use crate::control::Control;
use crate::link::stats::count;
use crate::model::metrics::MetricsText;
use crate::model::{ClientId, RoomKey};

/// What a question to the control thread may take, however short a hold is.
const ANSWER: Duration = Duration::from_millis(200);

/// The way in during an outage and after it.
pub(crate) struct Hold {
    control: Control,
    stop: Stop,
    counters: HoldCounters,
}

/// What became of those who had to wait.
#[derive(Debug, Default)]
struct HoldCounters {
    /// Clients that wait now.
    held: AtomicU64,
    /// Clients that waited for `timeouts.hold`, and were refused.
    timed_out: AtomicU64,
    /// Clients that were refused because as many waited as may.
    full: AtomicU64,
}

impl Hold {
    pub(crate) fn new(control: Control, stop: Stop) -> Self {
        Self { control, stop, counters: HoldCounters::default() }
    }

    /// Waits until a client may be upgraded; at once, unless there is an outage or was one lately. Dropping the future, as when
    /// the client goes away, ends it at any moment.
    pub(crate) async fn pass(&self, client: ClientId, room: &RoomKey, deadline: Instant) -> Result<(), Refusal> {
        if self.control.routes().is_open() {
            return Ok(());
        }
        let counters = &self.counters;
        let _held = Held::new(&counters.held);
        let deadline = deadline.max(Instant::now() + ANSWER);
        #[cfg(test)]
        let deadline = if broken::is(Rule::TheHoldEnds) { deadline + Duration::from_secs(1) } else { deadline };
        let outcome = tokio::select! {
            biased;
            () = self.stop.wait() => return Err(Refusal::unavailable()),
            outcome = tokio::time::timeout_at(deadline, self.control.knock(client, room.clone())) => outcome,
        };
        let counter = match outcome {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(_)) => &counters.full,
            Err(_) => &counters.timed_out,
        };
        count(counter);
        Err(Refusal::unavailable())
    }

    /// Writes what is counted.
    pub(super) fn write_metrics(&self, out: &mut MetricsText) {
        let counters = &self.counters;
        out.gauge("usher_held", "Clients that wait for a Monolith before their upgrade.", counters.held.load(Relaxed));
        for (name, help, value) in [
            ("usher_held_timeouts_total", "Clients held for timeouts.hold, and refused.", &counters.timed_out),
            ("usher_held_full_total", "Clients refused because limits.pending_joins waited.", &counters.full),
        ] {
            out.counter(name, help, value.load(Relaxed));
        }
    }
}

/// A client that waits, as long as it lives.
pub(super) struct Held<'a>(&'a AtomicU64);

impl<'a> Held<'a> {
    pub(super) fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
