//! Whether this balancer should be given new clients, and if not, why.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::Serialize;

use super::Admin;
use crate::model::policy::MonolithState;

/// The answer of `GET /_usher/ready`.
#[derive(Debug, Serialize)]
pub struct Readiness {
    /// Whether new clients are welcome.
    pub ready: bool,
    /// Why not; also what is wrong without being reason enough.
    pub reasons: Vec<String>,
}

impl Admin {
    /// Looks at everything that could keep clients from being served.
    pub fn readiness(&self) -> Readiness {
        let mut reasons = Vec::new();
        if self.stopping.load(Relaxed) {
            reasons.push("draining: usher is stopping".to_string());
        } else if self.taken_over.load(Relaxed) {
            reasons.push("draining: taken over by another usher".to_string());
        }
        let routes = self.control.routes();
        if !routes.available() {
            reasons.push("no Monolith is linked".to_string());
        } else if routes.serving() == 0 {
            reasons.push("no Monolith takes new rooms: those that are linked are suspect or draining".to_string());
        }
        let health = self.control.health();
        if health.is_late() {
            reasons.push("the control thread is late".to_string());
        }
        let config = self.config.load();
        // A join waits for one Monolith at most so long before the next is tried.
        let patience = config.timeouts.load + Duration::from_secs(1);
        if health.stalled_for() > patience {
            reasons.push(format!("joins stall: no Monolith has answered one for {} s", health.stalled_for().as_secs()));
        }
        if health.pending() >= config.limits.pending_joins {
            reasons.push(format!("at a limit: limits.pending_joins: {} joins and requests wait", health.pending()));
        }
        reasons.extend(self.limits.iter().filter_map(|limit| limit()).map(|limit| format!("at a limit: {limit}")));
        let ready = reasons.is_empty();
        for row in routes.published().view.rows() {
            match row.state {
                MonolithState::Suspect => reasons.push(format!("detail: Monolith {} misses heartbeats", row.id)),
                MonolithState::Ejected => {
                    reasons.push(format!("detail: Monolith {} is ejected: it kept failing", row.id))
                }
                MonolithState::Up | MonolithState::Draining => {}
            }
        }
        if !routes.is_open() && routes.serving() > 0 {
            reasons.push("detail: joins are paced after an outage (limits.joins_per_second)".to_string());
        }
        if self.policies.breaker() != "closed" {
            // The built-in policy serves meanwhile, so this is a detail and no reason to stay away.
            reasons.push(format!("detail: the policy's breaker is {}", self.policies.breaker()));
        }
        if self.policies.serves_last_good() {
            let detail = "detail: the configured policy is broken since the start; its last good version serves";
            reasons.push(detail.to_string());
        }
        // Rooms are placed all the same, as they would be without claims.
        reasons.extend(self.claims.detail().map(|detail| format!("detail: {detail}")));
        Readiness { ready, reasons }
    }
}
