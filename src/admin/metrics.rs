//! `/api/status/metrics`: Prometheus text. Names of ott-balancer where the meaning is the same, `usher_*` besides. The
//! only label that comes from outside is the Monolith, and one that goes takes its series along.

use bytes::Bytes;
use http::{Response, StatusCode};

use super::{Admin, AdminError, text};
use crate::model::event::EjectionCause;
use crate::model::metrics::MetricsText;
use crate::model::policy::MonolithState;

impl Admin {
    pub(super) async fn metrics_text(&self) -> Result<Response<Bytes>, AdminError> {
        let read = self.control.query(|cluster| {
            let waiting = (cluster.waiting(), cluster.queued_moves(), cluster.handing_over());
            (cluster.counters(), cluster.size(), waiting, cluster.monoliths())
        });
        let (counters, (rooms, members), (waiting, moves, handing_over), monoliths) =
            read.await.map_err(|_| AdminError::stopping())?;
        let mut out = MetricsText::default();
        out.gauge("usher_rooms", "Rooms that are bound, being placed or waited for.", rooms);
        out.gauge("usher_members", "Clients that have asked for a room.", members);
        out.gauge("usher_waiting", "Joins and requests that wait for a room.", waiting);
        for (name, help, value) in [
            ("usher_joins_total", "Joins sent to Monoliths.", counters.joins),
            ("usher_leaves_total", "Leaves sent to Monoliths.", counters.leaves),
            ("usher_placements_total", "Decisions of place.", counters.placements),
            (
                "usher_placement_fallbacks_total",
                "Of these, taken by the built-in default after a fault.",
                counters.fallbacks,
            ),
            (
                "usher_load_timeouts_total",
                "Placements that a Monolith did not confirm in time.",
                counters.load_timeouts,
            ),
            ("usher_duplicates_total", "Rooms found on two Monoliths.", counters.duplicates),
            ("usher_unloads_total", "Unloads sent to the loser of a duplicate.", counters.unloads),
            (
                "usher_unloads_spared_total",
                "Unloads that were not sent: the room had gone before this balancer's turn.",
                counters.unloads_spared,
            ),
            ("usher_duplicate_overlaps_total", "Losers of duplicates that were unloaded.", counters.overlaps.count),
            ("usher_claims_total", "Claims asked for before a placement.", counters.claims.asked),
            ("usher_claims_granted_total", "Of these, granted.", counters.claims.granted),
            ("usher_claims_taken_total", "Of these, held by another balancer.", counters.claims.taken),
            ("usher_claims_unavailable_total", "Placements without a claim.", counters.claims.unavailable),
            ("usher_refused_full_total", "Joins and requests refused because too many waited.", counters.refused_full),
            ("usher_refused_unplaced_total", "Joins and requests that no Monolith took.", counters.refused_unplaced),
            ("usher_held_total", "Clients that had to wait before their upgrade.", counters.held),
            ("usher_held_admitted_total", "Clients let in during an outage, or soon after one.", counters.entered),
            (
                "usher_ejections_spared_total",
                "Monoliths not ejected since too many were, or nobody else served.",
                counters.ejections_spared,
            ),
            ("usher_stale_events_total", "Events of links that were not registered.", counters.stale_events),
        ] {
            out.counter(name, help, value);
        }
        let seconds = |micros: u64| micros as f64 / 1e6;
        let help = "Time from the moment that both copies of a room were known until the loser's was unloaded.";
        out.counter("usher_duplicate_overlap_seconds_total", help, seconds(counters.overlaps.total));
        let help = "The longest of these times.";
        out.gauge("usher_duplicate_overlap_seconds_max", help, seconds(counters.overlaps.longest));
        let causes = EjectionCause::ALL.map(|cause| [("cause", cause.label())]);
        let ejections: Vec<(&[(&str, &str)], u64)> =
            causes.iter().zip(counters.ejections).map(|(cause, count)| (&cause[..], count)).collect();
        out.family("usher_ejections_total", "Monoliths left alone for a while.", "counter", &ejections);
        super::moves::write(&mut out, &counters.moves, moves);
        super::moves::write_hand_overs(&mut out, &counters.handover, handing_over);
        type Column = (&'static str, &'static str, fn(&crate::cluster::MonolithSummary) -> f64);
        let columns: [Column; 6] = [
            ("usher_monolith_rooms", "Rooms that a Monolith reports loaded.", |m| f64::from(m.rooms)),
            ("usher_monolith_clients", "Our clients on a Monolith.", |m| f64::from(m.clients)),
            ("usher_monolith_pending", "Unconfirmed placements on a Monolith.", |m| f64::from(m.pending)),
            ("usher_monolith_rtt_seconds", "Round trip of the last heartbeat.", |m| m.rtt_ms / 1e3),
            ("usher_monolith_up", "1 if a Monolith takes new rooms.", |m| {
                f64::from(u8::from(m.state == MonolithState::Up))
            }),
            ("usher_monolith_ejected", "1 if a Monolith is left alone for a while since it kept failing.", |m| {
                f64::from(u8::from(m.state == MonolithState::Ejected))
            }),
        ];
        for (name, help, read) in columns {
            let labels: Vec<[(&str, &str); 2]> =
                monoliths.iter().map(|m| [("monolith_id", m.id.as_str()), ("region", m.region.as_str())]).collect();
            let samples: Vec<(&[(&str, &str)], f64)> =
                monoliths.iter().zip(&labels).map(|(m, labels)| (labels.as_slice(), read(m))).collect();
            out.family(name, help, "gauge", &samples);
        }
        let health = self.control.health();
        let (decisions, took) = health.decisions.total();
        out.counter("usher_decisions_total", "Calls of the deciding policy.", decisions);
        out.counter("usher_decision_seconds_total", "Time that they took.", took.as_secs_f64());
        out.gauge("usher_decision_seconds_max", "The slowest of them.", health.decisions.slowest().as_secs_f64());
        self.control.stories().write_metrics(&mut out);
        self.policies.write_metrics(&mut out);
        for source in &self.metrics {
            source(&mut out);
        }
        Ok(text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", out.finish()))
    }
}
