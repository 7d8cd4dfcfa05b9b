//! `admit`: whether a client may have the WebSocket of a room, asked before its upgrade is answered. Who is held waits
//! here, on no VM and no lock, and keeps the place among `limits.clients` that it took when it came.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Request;
use tokio::time::Instant;

use super::door::region_of;
use super::hold::Held;
use super::listener::Stop;
use super::proxy::{self, RouteDecider};
use super::respond::Refusal;
use crate::config::Config;
use crate::control::Control;
use crate::link::stats::count;
use crate::model::metrics::MetricsText;
use crate::model::policy::{Answer, Call, CallClient, CallRequest, Decision, Hook};
use crate::model::{CloseCode, Region, RoomName};

/// The shortest hold: what policies see of the Monoliths changes as often, so to ask sooner would be to ask the same.
const SHORTEST_HOLD: Duration = Duration::from_millis(100);

/// Bytes of the reason in a close frame (RFC 6455 section 5.5, less the code).
const CLOSE_REASON: usize = 123;

/// What becomes of a client that got no status instead of its upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may come in.
    Admitted,
    /// It is upgraded, and closed at once.
    Closed(CloseCode, String),
}

/// Who is asking for what.
pub(super) struct Asking {
    room: RoomName,
    region: Option<Region>,
    reconnect: bool,
    request: CallRequest,
}

impl Asking {
    pub(super) fn new<B>(room: &RoomName, reconnect: bool, request: &Request<B>, config: &Config) -> Self {
        let region = region_of(request.headers());
        Self { room: room.clone(), region, reconnect, request: proxy::visible(request, config) }
    }
}

/// What `admit` has said.
#[derive(Debug, Default)]
struct AdmitCounters {
    /// Clients that were let in.
    admitted: AtomicU64,
    /// Clients that were refused.
    rejected: AtomicU64,
    /// Holds: a client may be held more than once.
    holds: AtomicU64,
    /// Clients that were held for `timeouts.hold` in all, and refused.
    timed_out: AtomicU64,
    /// Calls that failed, so that the client was let in.
    fallbacks: AtomicU64,
    /// Clients that are held now.
    held: AtomicU64,
}

/// Asks the policy.
pub(super) struct Gate {
    config: Arc<ArcSwap<Config>>,
    control: Control,
    decider: Arc<dyn RouteDecider>,
    stop: Stop,
    calls: AtomicU64,
    counters: AdmitCounters,
}

impl Gate {
    pub(super) fn new(
        config: Arc<ArcSwap<Config>>,
        control: Control,
        decider: Arc<dyn RouteDecider>,
        stop: Stop,
    ) -> Self {
        Self { config, control, decider, stop, calls: AtomicU64::new(0), counters: AdmitCounters::default() }
    }

    /// Whether the policy has the hook at all. If it has not, nothing else here is to be done.
    pub(super) fn is_asked(&self) -> bool {
        self.decider.admits()
    }

    /// Asks until the policy says yes or no, the client has been held up to `deadline`, or usher stops. Dropping the
    /// future, as when the client goes away, ends it at any moment.
    pub(super) async fn ask(&self, asking: Asking, deadline: Instant) -> Result<Verdict, Refusal> {
        let mut held = None;
        let mut attempt = 1;
        loop {
            let delay = match self.decide(&asking, attempt).await?.answer {
                Answer::Hold { delay } => delay.max(SHORTEST_HOLD),
                Answer::Reject { code, reason } => {
                    count(&self.counters.rejected);
                    return rejected(code, reason);
                }
                Answer::Default | Answer::Admit | Answer::Ranked(_) | Answer::Moves(_) => {
                    count(&self.counters.admitted);
                    return Ok(Verdict::Admitted);
                }
            };
            count(&self.counters.holds);
            held.get_or_insert_with(|| Held::new(&self.counters.held));
            // A hold beyond the limit waits for as long as there is, and is not asked again: that would be too early.
            let asked_again = Instant::now() + delay;
            tokio::select! {
                biased;
                () = self.stop.wait() => return Err(Refusal::unavailable()),
                () = tokio::time::sleep_until(asked_again.min(deadline)) => {}
            }
            if asked_again > deadline {
                count(&self.counters.timed_out);
                return Err(Refusal::unavailable());
            }
            attempt += 1;
            if !self.decider.admits() {
                // Another policy decides by now, and asks nobody.
                count(&self.counters.admitted);
                return Ok(Verdict::Admitted);
            }
        }
    }

    async fn decide(&self, asking: &Asking, attempt: u32) -> Result<Decision, Refusal> {
        if !self.control.routes().available() {
            return Err(Refusal::unavailable());
        }
        let (key, region) = (asking.room.key().clone(), asking.region.clone());
        let facts = self.control.query(move |cluster| cluster.room_facts(&key, region)).await;
        // Without a control thread usher is stopping.
        let room = facts.map_err(|_| Refusal::unavailable())?;
        let (now_us, seed) = proxy::clock_and_seed(&self.calls);
        let call = Call {
            hook: Hook::Admit,
            now_us,
            seed,
            region: self.config.load().region.clone(),
            room: Some(room),
            client: Some(CallClient { region: asking.region.clone(), reconnect: asking.reconnect, attempt }),
            cause: None,
            request: Some(asking.request.clone()),
            excluded: Vec::new(),
            rooms: [].into(),
        };
        let decision = self.decider.admit(&call, &self.control.routes().published().view);
        if decision.fault.is_some() {
            count(&self.counters.fallbacks);
        }
        Ok(decision)
    }

    /// Writes what is counted.
    pub(super) fn write_metrics(&self, out: &mut MetricsText) {
        let counters = &self.counters;
        for (name, help, value) in [
            ("usher_admit_admitted_total", "Clients that admit let in.", &counters.admitted),
            ("usher_admit_rejected_total", "Clients that admit refused.", &counters.rejected),
            ("usher_admit_holds_total", "Times that admit held a client.", &counters.holds),
            ("usher_admit_hold_timeouts_total", "Clients held for timeouts.hold, and refused.", &counters.timed_out),
            ("usher_admit_fallbacks_total", "Calls of admit that failed, and let in.", &counters.fallbacks),
        ] {
            out.counter(name, help, value.load(Relaxed));
        }
        out.gauge("usher_admit_held", "Clients that admit holds now.", counters.held.load(Relaxed));
    }
}

fn rejected(code: u16, reason: String) -> Result<Verdict, Refusal> {
    match CloseCode::sendable(code) {
        Some(close) => {
            let reason = if reason.is_empty() { close.reason().to_owned() } else { cut(reason) };
            Ok(Verdict::Closed(close, reason))
        }
        None => {
            let reason = if reason.is_empty() { "not admitted".into() } else { reason };
            Err(Refusal::Policy { status: code, reason })
        }
    }
}

/// As much of a reason as a close frame holds, in whole characters.
fn cut(mut reason: String) -> String {
    let ends = reason.char_indices().map(|(at, c)| at + c.len_utf8());
    let fits = ends.take_while(|end| *end <= CLOSE_REASON).last().unwrap_or(0);
    reason.truncate(fits);
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_is_a_status_or_a_close_frame_that_fits() {
        let status = |status, reason: &str| Err(Refusal::Policy { status, reason: reason.into() });
        assert_eq!(rejected(403, "no".into()), status(403, "no"));
        assert_eq!(rejected(503, String::new()), status(503, "not admitted"));
        let closed = |code, reason: &str| Ok(Verdict::Closed(CloseCode::sendable(code).unwrap(), reason.into()));
        assert_eq!(rejected(4321, "full".into()), closed(4321, "full"));
        assert_eq!(rejected(1013, String::new()), closed(1013, "try again later"));
        assert_eq!(rejected(4000, "é".repeat(120)), closed(4000, &"é".repeat(61)));
    }
}
