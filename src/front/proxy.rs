//! HTTP that goes on to a Monolith: of a bound room, of one that has to be placed first, of one that is being created,
//! and everything that names no room.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HOST, HeaderName};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::attempts::{Attempts, Bounds};
use super::body::Body;
use super::door::{FrontCounters, region_of};
use super::forward;
use super::listener::Peer;
use super::respond::Refusal;
use super::router;
use super::upload::RequestBody;
use super::upstream::{InFlight, Pool, SendError};
use crate::config::Config;
use crate::control::routes::{Published, Target};
use crate::control::{Control, Placement, Refused, Sent};
use crate::link::tap::{Direction, Tap, TapKind};
use crate::model::event::RequestOutcome;
use crate::model::policy::{Answer, Call, CallRequest, Cause, Decision, Hook, View};
use crate::model::{MonolithId, Region, RoomName};

/// The header in which Fly's proxy names the region at whose edge a user arrived.
pub(super) const FLY_REGION: HeaderName = HeaderName::from_static("fly-region");

/// The longest body of a creation that is read for its name: the Monolith's own limit.
const CREATE_BODY: usize = 100_000;
/// The longest answer to a creation that is read for its name.
const CREATED_BODY: usize = 64 << 10;
/// Who decides about requests that name no room, and about clients that want into one.
pub trait RouteDecider: Send + Sync {
    /// One decision of `route`, in a VM of the calling worker.
    fn route(&self, call: &Call, view: &View) -> Decision;

    /// Whether the policy has `admit` at all.
    fn admits(&self) -> bool;

    /// One decision of `admit`, in the same way.
    fn admit(&self, call: &Call, view: &View) -> Decision;
}

/// Everything that proxying needs.
pub(super) struct Proxy {
    pool: Pool,
    control: Control,
    decider: Arc<dyn RouteDecider>,
    tap: Arc<Tap>,
    counters: Arc<FrontCounters>,
    calls: AtomicU64,
}

impl Proxy {
    pub(super) fn new(
        pool: Pool,
        control: Control,
        decider: Arc<dyn RouteDecider>,
        tap: Arc<Tap>,
        counters: Arc<FrontCounters>,
    ) -> Self {
        Self { pool, control, decider, tap, counters, calls: AtomicU64::new(0) }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// A request of one room.
    pub(super) async fn room(
        &self,
        room: RoomName,
        request: Request<Incoming>,
        peer: &Peer,
        config: &Config,
    ) -> Result<Response<Body>, Refusal> {
        if let Some(target) = self.control.routes().find(room.key()) {
            let speaks = !request.method().is_safe();
            // The room is there and nowhere else: a Monolith that cannot be reached is no reason to ask another.
            let sent = self.send(&target, prepare(request, peer, config)).await.map_err(|error| error.kind.into());
            if speaks {
                // What it has changed may not be saved yet when it is answered: the room is not quiet from then on.
                target.stats.spoken_to(room.key());
            }
            return sent;
        }
        let region = region_of(request.headers());
        let request = prepare(request, peer, config);
        let (response, sent) = self.place_and_send(Some(&room), Cause::Http, region, request, config).await?;
        if let Some(sent) = sent {
            sent.done(RequestOutcome::Status(response.status().as_u16()));
        }
        Ok(response)
    }

    /// The creation of a room. It counts as pending on its Monolith until the answer, and a 201 pins the room there
    /// before the client can know of it.
    pub(super) async fn create(
        &self,
        request: Request<Incoming>,
        generate: bool,
        peer: &Peer,
        config: &Config,
    ) -> Result<Response<Body>, Refusal> {
        let region = region_of(request.headers());
        let (mut request, name) =
            if generate { (prepare(request, peer, config), None) } else { read_name(request, peer, config).await? };
        // Its answer is read for the name of the room.
        request.headers_mut().remove(ACCEPT_ENCODING);
        let (response, sent) = self.place_and_send(name.as_ref(), Cause::Create, region, request, config).await?;
        let Some(sent) = sent else { return Ok(response) };
        if response.status() != StatusCode::CREATED {
            sent.done(RequestOutcome::Status(response.status().as_u16()));
            return Ok(response);
        }
        // If the answer breaks off, what is owed is dropped, which reports the failure.
        let (response, created) = read_created(response, name).await?;
        sent.done(created.map_or(RequestOutcome::Status(201), RequestOutcome::Created));
        Ok(response)
    }

    /// Places a room, sends the request there, and goes on to the next choice as long as nothing was sent. Returns the
    /// answer, and what is owed for it if the room waits for the outcome.
    async fn place_and_send(
        &self,
        room: Option<&RoomName>,
        cause: Cause,
        region: Option<Region>,
        mut request: Request<RequestBody>,
        config: &Config,
    ) -> Result<(Response<Body>, Option<Sent>), Refusal> {
        let mut attempts = Attempts::new(Bounds::of(config));
        loop {
            let Placement { target, sent } = attempts.next(self.place(room.cloned(), cause, region.clone())).await?;
            match (self.send(&target, request).await, sent) {
                (Ok(response), sent) => return Ok((response, sent)),
                (Err(SendError { request: Some(unsent), .. }), Some(sent)) => {
                    sent.done(RequestOutcome::NotSent);
                    request = *unsent;
                }
                // Dropping what is owed reports the failure.
                (Err(error), _) => return Err(error.kind.into()),
            }
        }
    }

    /// A request that names no room: the policy ranks the Monoliths, and one that cannot be reached is passed over.
    pub(super) async fn other(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
        config: &Config,
    ) -> Result<Response<Body>, Refusal> {
        let published = self.control.routes().published();
        let choices = self.decide(&request, config, &published)?;
        let mut request = prepare(request, peer, config);
        let mut last = None;
        for target in
            choices.iter().filter_map(|id| published.targets.get(id)).take(config.limits.place_attempts as usize)
        {
            match self.send(target, request).await {
                Ok(response) => return Ok(response),
                Err(SendError { request: Some(unsent), kind }) => {
                    last = Some(kind.into());
                    request = *unsent;
                }
                Err(error) => return Err(error.kind.into()),
            }
        }
        Err(last.unwrap_or_else(Refusal::unavailable))
    }

    /// The Monolith of a room, for a request that is tunnelled.
    pub(super) async fn room_target<B>(&self, room: RoomName, request: &Request<B>) -> Result<Arc<Target>, Refusal> {
        if let Some(target) = self.control.routes().find(room.key()) {
            return Ok(target);
        }
        // What becomes of a tunnel says nothing about the room: its placement is given back at once.
        Ok(self.place(Some(room), Cause::Http, region_of(request.headers())).await?.target)
    }

    /// The first choice for a request that names no room.
    pub(super) fn first_route<B>(&self, request: &Request<B>, config: &Config) -> Result<Arc<Target>, Refusal> {
        let published = self.control.routes().published();
        let choices = self.decide(request, config, &published)?;
        let target = choices.iter().find_map(|id| published.targets.get(id));
        target.cloned().ok_or_else(Refusal::unavailable)
    }

    async fn place(&self, room: Option<RoomName>, cause: Cause, region: Option<Region>) -> Result<Placement, Refusal> {
        if !self.control.routes().available() {
            return Err(Refusal::unavailable());
        }
        self.control.place(room, cause, region).await.map_err(|Refused { status }| match status {
            503 => Refusal::unavailable(),
            status => Refusal::Policy { status, reason: "refused by policy".into() },
        })
    }

    fn decide<B>(
        &self,
        request: &Request<B>,
        config: &Config,
        published: &Published,
    ) -> Result<Vec<MonolithId>, Refusal> {
        let (now_us, seed) = clock_and_seed(&self.calls);
        let call = Call {
            hook: Hook::Route,
            now_us,
            seed,
            region: config.region.clone(),
            room: None,
            client: None,
            cause: None,
            request: Some(visible(request, config)),
            excluded: Vec::new(),
            rooms: [].into(),
        };
        let decision = self.decider.route(&call, &published.view);
        if decision.fault.is_some() {
            self.counters.route_fallbacks.fetch_add(1, Relaxed);
        }
        match decision.answer {
            Answer::Reject { code, reason } => Err(Refusal::Policy { status: code, reason }),
            _ if decision.choices.is_empty() => Err(Refusal::unavailable()),
            _ => Ok(decision.choices),
        }
    }

    /// One request to one Monolith, with what is measured about it.
    async fn send(&self, target: &Arc<Target>, request: Request<RequestBody>) -> Result<Response<Body>, SendError> {
        self.counters.proxied.fetch_add(1, Relaxed);
        self.tap.emit(TapKind::Proxy, &target.id, Direction::Tx);
        let started = Instant::now();
        let sent = self.pool.send(target.http, request, Some(InFlight::enter(&target.inflight()))).await;
        match sent {
            Ok(mut response) => {
                target.sample(Some(started.elapsed()), response.status().is_server_error());
                forward::to_client(response.headers_mut());
                Ok(response.map(Body::Upstream))
            }
            Err(error) => {
                self.counters.proxy_errors.fetch_add(1, Relaxed);
                if !error.kind.is_of_client() {
                    target.sample(None, true);
                }
                Err(error)
            }
        }
    }
}

fn prepare(mut request: Request<Incoming>, peer: &Peer, config: &Config) -> Request<RequestBody> {
    forward::to_upstream(&mut request, peer, &config.trusted);
    request.map(RequestBody::from)
}

/// The clock of a call, and randomness of its own.
pub(super) fn clock_and_seed(calls: &AtomicU64) -> (u64, u64) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_us = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
    let number = calls.fetch_add(1, Relaxed);
    (now_us, now_us.rotate_left(32) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// What a policy may see of a request.
pub(super) fn visible<B>(request: &Request<B>, config: &Config) -> CallRequest {
    let headers = request.headers();
    let header = |name: &String| {
        let value = headers.get(name.as_str())?.to_str().ok()?;
        Some((name.clone(), value.to_string()))
    };
    let mut query = BTreeMap::new();
    if !config.policy.query.is_empty() {
        for (name, value) in router::parameters(request.uri().query()) {
            if config.policy.query.iter().any(|wanted| wanted == name) {
                query.insert(name.to_string(), value.to_string());
            }
        }
    }
    CallRequest {
        method: request.method().as_str().into(),
        path: request.uri().path().into(),
        host: headers.get(HOST).and_then(|host| host.to_str().ok()).map(Into::into),
        region: region_of(headers),
        headers: config.policy.headers.iter().filter_map(header).collect(),
        query,
    }
}

/// Reads the body of a creation for its name, as far as it is not too long; it is passed on in any case.
async fn read_name(
    mut request: Request<Incoming>,
    peer: &Peer,
    config: &Config,
) -> Result<(Request<RequestBody>, Option<RoomName>), Refusal> {
    #[derive(serde::Deserialize)]
    struct Named {
        name: String,
    }
    forward::to_upstream(&mut request, peer, &config.trusted);
    let (parts, mut body) = request.into_parts();
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut length = 0;
    let read = async {
        while length <= CREATE_BODY {
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        length += data.len();
                        pieces.push(data);
                    }
                }
                Some(Err(_)) => return Err(Refusal::BadRequest),
                None => return Ok(true),
            }
        }
        Ok(false)
    };
    let patience: Duration = config.timeouts.http_response;
    let whole = tokio::time::timeout(patience, read).await.map_err(|_| Refusal::BadRequest)??;
    let name = if whole {
        let text = pieces.concat();
        serde_json::from_slice::<Named>(&text).ok().and_then(|named| RoomName::parse(&named.name).ok())
    } else {
        None
    };
    let rest = (!whole).then_some(body);
    Ok((Request::from_parts(parts, RequestBody::resumed(pieces, rest)), name))
}

/// Reads the name of a created room: the one that was asked for, else the one in the answer. An answer that is too long
/// or not to be read names none, and is passed on.
async fn read_created(
    response: Response<Body>,
    asked: Option<RoomName>,
) -> Result<(Response<Body>, Option<RoomName>), Refusal> {
    #[derive(serde::Deserialize)]
    struct Created {
        room: String,
    }
    if asked.is_some() || response.headers().contains_key(CONTENT_ENCODING) {
        return Ok((response, asked));
    }
    let (parts, mut body) = response.into_parts();
    let mut pieces = Vec::new();
    loop {
        if pieces.len() > CREATED_BODY {
            let rest = Body::Resumed(Bytes::from(pieces), Box::new(body));
            return Ok((Response::from_parts(parts, rest), None));
        }
        match body.frame().await {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    pieces.extend_from_slice(&data);
                }
            }
            Some(Err(_)) => return Err(Refusal::BadGateway),
            None => break,
        }
    }
    let bytes = Bytes::from(pieces);
    let name = serde_json::from_slice::<Created>(&bytes).ok();
    let name = name.and_then(|created| RoomName::parse(&created.room).ok());
    Ok((Response::from_parts(parts, Body::Full(bytes)), name))
}
