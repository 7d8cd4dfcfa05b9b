//! `POST /_usher/v1/rooms/{name}/move`, and what is counted about moves.

use bytes::Bytes;
use http::{Response, StatusCode};
use serde::Deserialize;

use super::api::body;
use super::{Admin, AdminError, AdminRequest, json as answer};
use crate::cluster::{HandOverCounters, MoveCounters};
use crate::model::metrics::MetricsText;
use crate::model::moves::MoveRefusal;
use crate::model::{MonolithId, RoomKey};

impl Admin {
    /// Moves a room: 200 with where it goes once its Monolith has been asked, 404 for an unknown room, 409 with the
    /// reason when it may not move.
    pub(super) async fn move_room(
        &self,
        name: &str,
        request: &AdminRequest<'_>,
    ) -> Result<Response<Bytes>, AdminError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Move {
            to: String,
        }
        let Move { to } = body(request, r#"{"to": "the id of a Monolith"}"#)?;
        let moved = self.control.move_room(RoomKey::of(name), MonolithId::from(&*to)).await;
        match moved.map_err(|_| AdminError::stopping())? {
            Ok(moving) => Ok(answer(StatusCode::OK, &moving)),
            Err(refusal) => {
                let message = format!("room {name:?} does not move to {to:?}: {refusal}");
                Err(match refusal {
                    MoveRefusal::UnknownRoom => AdminError::new(StatusCode::NOT_FOUND, "not_found", message),
                    _ => AdminError::new(StatusCode::CONFLICT, refusal.label(), message),
                })
            }
        }
    }
}

impl Admin {
    /// Lets a Monolith lose its rooms, or no longer: 200 with what it is then, 404 if it is not linked.
    pub(super) async fn drain(&self, monolith: &str, on: bool) -> Result<Response<Bytes>, AdminError> {
        let drained = self.control.drain(MonolithId::from(monolith), on).await;
        match drained.map_err(|_| AdminError::stopping())? {
            Some(summary) => Ok(answer(StatusCode::OK, &summary)),
            None => {
                let message = format!("no Monolith {monolith:?} is linked; usher monolith list shows those that are");
                Err(AdminError::new(StatusCode::NOT_FOUND, "not_found", message))
            }
        }
    }
}

/// Writes what became of members whose rooms changed their Monolith.
pub(super) fn write_hand_overs(out: &mut MetricsText, counted: &HandOverCounters, now: usize) {
    let counters = [
        ("usher_handover_rooms_total", "Rooms with members that lost their Monolith.", counted.rooms),
        ("usher_handovers_total", "Members that lost their Monolith and kept their sockets.", counted.begun),
        ("usher_handovers_done_total", "Members that the next Monolith has let in.", counted.done),
        ("usher_handover_room_lost_total", "Members closed: no Monolith knew their room.", counted.room_lost),
        ("usher_handover_window_closed_total", "Members closed: no Monolith in time.", counted.window_closed),
        ("usher_handover_lossy_total", "Rooms that moved while somebody still talked.", counted.lossy),
        ("usher_handover_skipped_total", "Moves left undone: the room may not be saved yet.", counted.skipped),
    ];
    out.counters(&counters);
    out.gauge("usher_handing_over", "Members that are between two Monoliths.", now);
}

/// Writes what is counted about moves.
pub(super) fn write(out: &mut MetricsText, moves: &MoveCounters, queued: usize) {
    let counters = [
        ("usher_rebalances_total", "Calls of rebalance.", moves.calls),
        ("usher_rebalance_faults_total", "Of these, without a usable answer: nothing moved.", moves.faults),
        ("usher_rebalance_left_out_total", "Rooms that rebalance was not shown: too many.", moves.left_out),
        ("usher_moves_dry_total", "Moves that a dry run would have queued.", moves.dry),
        ("usher_moves_begun_total", "Rooms whose Monolith was asked to let them go.", moves.begun),
        ("usher_moves_done_total", "Rooms that left their Monolith as asked.", moves.done),
        ("usher_moves_given_up_total", "Moves whose Monolith kept the room, or went.", moves.given_up),
    ];
    out.counters(&counters);
    out.gauge("usher_moves_queued", "Moves that wait for their turn.", queued);
    let labels = MoveRefusal::ALL.map(|refusal| [("reason", refusal.label())]);
    let samples: Vec<(&[(&str, &str)], u64)> =
        labels.iter().zip(moves.refused).map(|(label, count)| (label.as_slice(), count)).collect();
    out.family("usher_moves_refused_total", "Moves that could not be.", "counter", &samples);
}
