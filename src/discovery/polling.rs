//! Asking again and again, whatever happens in between.

use std::fmt::Display;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use tokio::sync::watch;

use super::endpoint::{Endpoint, EndpointSet};
use super::resolver::Query;

/// The longest wait between two failed look-ups, unless the interval itself is longer.
const LONGEST: Duration = Duration::from_secs(30);

/// Looks a name up at every interval and publishes who was found, for ever.
///
/// A failed look-up keeps the last good set and backs off. So does an empty answer: a name that is gone for a moment,
/// as during a deploy or at a resolver that has just started, is no order to drop every link.
pub(super) async fn poll(query: Query, port: u16, interval: Duration, endpoints: &watch::Sender<EndpointSet>) {
    let mut health = Health::Unknown;
    let mut backoff = Backoff::new(interval);
    loop {
        let wait = match query.addresses().await {
            Ok(found) if !found.is_empty() => {
                if health.turns(Health::Good) {
                    tracing::info!(name = query.name, addresses = found.len(), "discovery finds Monoliths");
                }
                backoff = Backoff::new(interval);
                super::publish(endpoints, found.into_iter().map(|ip| Endpoint::of_ip(ip, port)).collect());
                interval
            }
            Ok(_) => {
                if health.turns(Health::Empty) {
                    warn(&query, endpoints, &"the name has no address");
                }
                backoff.next()
            }
            Err(error) => {
                if health.turns(Health::Failing) {
                    warn(&query, endpoints, &error);
                }
                backoff.next()
            }
        };
        tokio::time::sleep(wait).await;
    }
}

fn warn(query: &Query, endpoints: &watch::Sender<EndpointSet>, why: &dyn Display) {
    let kept = endpoints.borrow().len();
    tracing::warn!(name = query.name, kept, %why, "discovery finds nobody, keeping the last Monoliths and trying again");
}

/// How the last look-up went: what is logged is its changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Unknown,
    Good,
    Empty,
    Failing,
}

impl Health {
    /// Takes the new state, and says whether it is news.
    fn turns(&mut self, to: Self) -> bool {
        std::mem::replace(self, to) != to
    }
}

/// Waits that double from a first one up to a longest, each shortened at random by up to a half, so that many
/// balancers that failed together do not come back together.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration) -> Self {
        Self { next: first, longest: first.max(LONGEST) }
    }

    pub(super) fn next(&mut self) -> Duration {
        let full = self.next;
        self.next = full.saturating_mul(2).min(self.longest);
        // A hasher with random keys is the randomness that the standard library has.
        let random = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
        full.mul_f64(0.5 + random / 2.0)
    }
}

#[cfg(test)]
mod tests;
