//! State for dashboards, and `/_usher/v1`: policy, Monoliths, rooms.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::{Admin, AdminError, AdminRequest, json as answer, not_found, only, stories, text};
use crate::model::RoomKey;

/// Rooms on one page if nobody says otherwise, and at most.
const PAGE: (usize, usize) = (100, 1000);

impl Admin {
    /// `/api/state`, in the shape of ott-balancer; `waiting` are the rooms whose clients have no Monolith at this moment.
    pub(super) async fn state(&self) -> Result<Response<Bytes>, AdminError> {
        let read = self.control.query(|cluster| (cluster.state(), cluster.rooms_without_monolith()));
        let (monoliths, waiting) = read.await.map_err(|_| AdminError::stopping())?;
        let id: &str = self.tap.balancer();
        let region = self.config.load().region.clone();
        Ok(answer(StatusCode::OK, &json!({"id": id, "region": region, "monoliths": monoliths, "waiting": waiting})))
    }

    /// `/api/balancing`: a text for people.
    pub(super) async fn balancing(&self) -> Result<Response<Bytes>, AdminError> {
        let read = self.control.query(|cluster| (cluster.monoliths(), cluster.size()));
        let (monoliths, (rooms, clients)) = read.await.map_err(|_| AdminError::stopping())?;
        let mut out = format!("monoliths: {}\nclients: {clients}\nrooms: {rooms}\n", monoliths.len());
        for m in monoliths {
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "{} {} {:?} rooms={} clients={} pending={} rtt_ms={}",
                m.id, m.region, m.state, m.rooms, m.clients, m.pending, m.rtt_ms
            );
        }
        Ok(text(StatusCode::OK, "text/plain; charset=utf-8", out))
    }

    pub(super) async fn api(&self, path: &str, request: &AdminRequest<'_>) -> Result<Response<Bytes>, AdminError> {
        match path {
            "monoliths" => {
                only(request, &[Method::GET])?;
                let read = self.control.query(crate::cluster::Cluster::monoliths);
                let monoliths = read.await.map_err(|_| AdminError::stopping())?;
                Ok(answer(StatusCode::OK, &json!({"monoliths": monoliths})))
            }
            "rooms" => {
                only(request, &[Method::GET])?;
                self.rooms(request.query).await
            }
            "policy" => self.policy("", request).await,
            "record" => self.record(request).await,
            _ if path.starts_with("monoliths/") => {
                let (id, what) = path["monoliths/".len()..].rsplit_once('/').ok_or_else(not_found)?;
                let on = match what {
                    "drain" => true,
                    "resume" => false,
                    _ => return Err(not_found()),
                };
                only(request, &[Method::POST])?;
                self.drain(id, on).await
            }
            _ if path.starts_with("policy/") => self.policy(&path["policy/".len()..], request).await,
            _ => match path.strip_prefix("rooms/").map(|rest| rest.strip_suffix("/move").ok_or(rest)) {
                Some(Ok(name)) if !name.is_empty() && !name.contains('/') => {
                    only(request, &[Method::POST])?;
                    self.move_room(name, request).await
                }
                Some(Err(name)) if !name.is_empty() && !name.contains('/') => {
                    only(request, &[Method::GET])?;
                    self.room(name).await
                }
                _ => Err(not_found()),
            },
        }
    }

    async fn rooms(&self, query: Option<&str>) -> Result<Response<Bytes>, AdminError> {
        let mut cursor = None;
        let mut limit = PAGE.0;
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("cursor", value) => cursor = (!value.is_empty()).then(|| RoomKey::of(value)),
                ("limit", value) => {
                    limit =
                        value.parse().ok().filter(|limit| (1..=PAGE.1).contains(limit)).ok_or_else(|| {
                            bad_request(format!("limit is a number from 1 to {}, not {value:?}", PAGE.1))
                        })?;
                }
                (other, _) => {
                    return Err(bad_request(format!("unknown parameter {other:?}; there are cursor and limit")));
                }
            }
        }
        let read = self.control.query(move |cluster| cluster.rooms(cursor.as_ref(), limit));
        let (rooms, next) = read.await.map_err(|_| AdminError::stopping())?;
        Ok(answer(StatusCode::OK, &json!({"rooms": rooms, "next": next})))
    }

    async fn room(&self, name: &str) -> Result<Response<Bytes>, AdminError> {
        let key = RoomKey::of(name);
        let asked = key.clone();
        let read = self.control.query(move |cluster| cluster.room(&asked)).await.map_err(|_| AdminError::stopping())?;
        let story = self.control.stories().of(&key);
        let Some(document) = stories::document(&key, read.as_ref(), &story) else {
            let message = format!("room {name:?} is not known here, and nothing is remembered of it");
            return Err(AdminError::new(StatusCode::NOT_FOUND, "not_found", message));
        };
        Ok(answer(StatusCode::OK, &document))
    }
}

pub(super) fn body<'a, T: Deserialize<'a>>(request: &AdminRequest<'a>, example: &str) -> Result<T, AdminError> {
    serde_json::from_slice(request.body)
        .map_err(|error| bad_request(format!("the body has to be JSON like {example}: {error}")))
}

pub(super) fn bad_request(message: String) -> AdminError {
    AdminError::new(StatusCode::BAD_REQUEST, "bad_request", message)
}
