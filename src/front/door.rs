//! The front door itself: one method that answers every request that is not for the balancer's own administration.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use http::header::{CONNECTION, HOST, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tracing::debug;

use super::admit::{Asking, Gate, Verdict};
use super::body::Body;
use super::clients::Clients;
use super::connection;
use super::forward;
use super::handshakes::Handshakes;
use super::hold::Hold;
use super::listener::{Peer, Stop, into_tcp};
use super::proxy::{self, Proxy};
use super::respond::Refusal;
use super::room_list::{self, RoomList};
use super::room_socket::{self, RoomRequest, SocketContext, SocketSettings};
use super::router::{self, Intent};
use super::upstream::Pool;
use crate::config::Config;
use crate::control::Control;
use crate::link::inbox::Inbox;
use crate::link::tap::Tap;
use crate::model::metrics::MetricsText;
use crate::model::{ClientId, CloseCode, InvalidRoomName, Region, RoomName};

pub use super::proxy::RouteDecider;

/// Everything that serves clients.
pub struct FrontDoor {
    config: Arc<ArcSwap<Config>>,
    control: Control,
    clients: Arc<Clients>,
    sockets: Arc<SocketContext>,
    list: RoomList,
    proxy: Proxy,
    hold: Hold,
    gate: Gate,
    handshakes: Handshakes,
    stop: Stop,
    /// Where rooms are served, wherever their clients came in.
    workers: Handle,
    /// Counters for metrics.
    pub counters: Arc<FrontCounters>,
}

/// What happened at the front door.
#[derive(Debug, Default)]
pub struct FrontCounters {
    /// Requests of any kind.
    pub requests: AtomicU64,
    /// Upgrades refused because no Monolith was available, or too many waited for one.
    pub no_monolith: AtomicU64,
    /// Upgrades refused at `limits.clients`.
    pub too_many_clients: AtomicU64,
    /// Upgrades refused at `limits.handshakes`.
    pub too_many_handshakes: AtomicU64,
    /// Requests passed on to Monoliths.
    pub proxied: AtomicU64,
    /// Requests that got no answer from a Monolith.
    pub proxy_errors: AtomicU64,
    /// `route` calls answered by the built-in default because of a fault.
    pub route_fallbacks: AtomicU64,
}

impl FrontDoor {
    /// A front door of the current runtime. `stop` ends its tunnels, and the waiting of those who are held.
    pub fn new(
        config: Arc<ArcSwap<Config>>,
        control: Control,
        tap: Arc<Tap>,
        decider: Arc<dyn RouteDecider>,
        stop: Stop,
    ) -> Self {
        let clients = Arc::new(Clients::default());
        let counters = Arc::new(FrontCounters::default());
        let pool = Pool::live(config.clone());
        Self {
            sockets: Arc::new(SocketContext { control: control.clone(), clients: clients.clone(), tap: tap.clone() }),
            list: RoomList::default(),
            proxy: Proxy::new(pool, control.clone(), decider.clone(), tap, counters.clone()),
            hold: Hold::new(control.clone(), stop.clone()),
            handshakes: Handshakes::default(),
            gate: Gate::new(config.clone(), control.clone(), decider, stop.clone()),
            config,
            control,
            clients,
            stop,
            workers: Handle::current(),
            counters,
        }
    }

    /// The register of client sockets.
    pub fn clients(&self) -> &Arc<Clients> {
        &self.clients
    }

    /// Whether a request wants into a room, and the policy is not asked whether it may: its VMs are those of the workers.
    pub fn is_newcomer(&self, request: &Request<Incoming>) -> bool {
        let websocket = router::wants_websocket(request.version(), request.method(), request.headers());
        let intent = router::intent(request.method(), request.uri().path(), websocket);
        matches!(intent, Intent::Socket(_)) && !self.gate.is_asked()
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request<Incoming>, peer: &Peer) -> Response<Body> {
        self.counters.requests.fetch_add(1, Relaxed);
        match self.answer(request, peer).await {
            Ok(response) => response,
            Err(refusal) => refusal.response(),
        }
    }

    async fn answer(&self, mut request: Request<Incoming>, peer: &Peer) -> Result<Response<Body>, Refusal> {
        if request.method() == Method::CONNECT {
            return Err(Refusal::MethodNotAllowed("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        if request.uri().authority().is_some() && request.uri().scheme().is_none() {
            // A target such as `host:80` is for CONNECT only (RFC 9112 section 3.2.3); it would replace `Host`.
            return Err(Refusal::BadRequest);
        }
        if request.version() == Version::HTTP_11 && !request.headers().contains_key(HOST) {
            // RFC 9112 section 3.2: whoever reads it next might take another host for granted than we do.
            return Err(Refusal::BadRequest);
        }
        let config = self.config.load();
        let websocket = router::wants_websocket(request.version(), request.method(), request.headers());
        match router::intent(request.method(), request.uri().path(), websocket) {
            Intent::Socket(room) => self.socket(request, room, &config).await,
            Intent::List if room_list::is_privileged(request.headers()) => {
                forward::to_upstream(&mut request, peer, &config.trusted);
                let (parts, _) = request.into_parts();
                room_list::privileged(self.proxy.pool(), &self.control, &parts.uri, &parts.headers).await
            }
            Intent::List => self.list.public(&self.control).await,
            Intent::Room(room) if forward::wants_upgrade(&request) => {
                let target = self.proxy.room_target(room, &request).await?;
                self.tunnel(request, peer, &config, target.http, target.inflight()).await
            }
            Intent::Other(_) if forward::wants_upgrade(&request) => {
                let target = self.proxy.first_route(&request, &config)?;
                self.tunnel(request, peer, &config, target.http, target.inflight()).await
            }
            Intent::Create { generate } => self.proxy.create(request, generate, peer, &config).await,
            Intent::Room(room) => self.proxy.room(room, request, peer, &config).await,
            Intent::Other(_) => self.proxy.other(request, peer, &config).await,
        }
    }

    async fn tunnel(
        &self,
        mut request: Request<Incoming>,
        peer: &Peer,
        config: &Config,
        target: std::net::SocketAddr,
        in_flight: Arc<std::sync::atomic::AtomicU32>,
    ) -> Result<Response<Body>, Refusal> {
        forward::to_upstream_upgrade(&mut request, peer, &config.trusted);
        let in_flight = Some(super::upstream::InFlight::enter(&in_flight));
        let opened = super::tunnel::open(self.proxy.pool(), target, request, in_flight, self.stop.clone()).await;
        opened.map_err(|error| error.kind.into())
    }

    /// A room's WebSocket: the upgrade is answered once the policy has admitted the client (at once, if it asks nobody),
    /// and a task of its own serves it.
    async fn socket(
        &self,
        mut request: Request<Incoming>,
        room: Result<RoomName, InvalidRoomName>,
        config: &Config,
    ) -> Result<Response<Body>, Refusal> {
        let Some(key) = router::websocket_key(request.headers()) else {
            let mut response = Refusal::BadRequest.response();
            response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            return Ok(response);
        };
        let accept = derive_accept_key(key.as_bytes());
        let region = region_of(request.headers());
        let reconnect = router::query_is(request.uri().query(), "reconnect", "true");
        let settings = SocketSettings {
            auth: config.timeouts.auth,
            message: config.limits.message,
            held: config.limits.held_frames,
            heartbeat: config.heartbeat,
        };
        // What an outage and a policy make a client wait is one time.
        let deadline = Instant::now() + config.timeouts.hold;
        let client = ClientId::random();
        let inbox = Inbox::new(config.limits.client_queue);
        let Some(registered) = self.clients.register(client, inbox.clone(), config.limits.clients) else {
            self.counters.too_many_clients.fetch_add(1, Relaxed);
            return Err(Refusal::unavailable());
        };
        if let Ok(room) = &room
            && let Err(refusal) = self.hold.pass(client, room.key(), deadline).await
        {
            self.counters.no_monolith.fetch_add(1, Relaxed);
            return Err(refusal);
        }
        let verdict = match &room {
            Ok(room) if self.gate.is_asked() => {
                let asking = Asking::new(room, reconnect, &request, config);
                // Boxed, so that those who are not asked do not carry its size.
                Box::pin(self.gate.ask(asking, deadline)).await?
            }
            // Nobody is asked about a name that is no room: it is turned away below.
            Ok(_) | Err(_) => Verdict::Admitted,
        };
        let Some(handshake) = self.handshakes.begin(config.limits.handshakes) else {
            self.counters.too_many_handshakes.fetch_add(1, Relaxed);
            return Err(Refusal::unavailable());
        };
        self.clients.counters.upgraded.fetch_add(1, Relaxed);
        let context = self.sockets.clone();
        let upgrade = hyper::upgrade::on(&mut request);
        self.workers.spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let Ok((stream, read, slot)) = into_tcp(upgraded) else {
                debug!("an upgraded connection was not one of this listener");
                return;
            };
            // Its socket has been another thread's until now.
            let Ok(stream) = connection::here(stream) else { return };
            let websocket = room_socket::websocket_config(&settings);
            let socket =
                WebSocketStream::from_partially_read(stream, read.to_vec(), Role::Server, Some(websocket)).await;
            match (room, verdict) {
                (Ok(room), Verdict::Admitted) => {
                    let request = RoomRequest { client, room, region, reconnect, handshake };
                    // A task of its own: this one still holds what only the upgrade needed, twice over.
                    tokio::spawn(room_socket::serve(socket, request, inbox, (registered, slot), settings, context));
                }
                (Ok(_), Verdict::Closed(code, reason)) => {
                    room_socket::turn_away(socket, code, &reason).await;
                    drop((slot, registered));
                }
                (Err(_), _) => {
                    room_socket::turn_away(socket, CloseCode::INVALID_URL, CloseCode::INVALID_URL.reason()).await;
                    drop((slot, registered));
                }
            }
        });
        switching_protocols(&accept)
    }

    /// The limit that is reached just now, if one is: whoever comes next is refused.
    pub fn at_limit(&self) -> Option<String> {
        let limits = &self.config.load().limits;
        let (clients, handshakes) = (self.clients.len(), self.handshakes.count());
        if clients >= limits.clients {
            return Some(format!("limits.clients: {clients} clients are connected"));
        }
        (handshakes >= limits.handshakes)
            .then(|| format!("limits.handshakes: {handshakes} clients have not said who they are"))
    }

    /// Writes what the front door counts.
    pub fn write_metrics(&self, out: &mut MetricsText) {
        let (front, clients) = (&self.counters, &self.clients.counters);
        out.gauge("balancer_clients", "Client sockets that are open, held ones included.", self.clients.len());
        for (name, help, value) in [
            ("balancer_http_requests", "HTTP requests, upgrades included.", &front.requests),
            ("usher_http_proxied_total", "Requests passed on to Monoliths.", &front.proxied),
            ("usher_http_proxy_errors_total", "Of these, without an answer.", &front.proxy_errors),
            ("usher_route_fallbacks_total", "Calls of route that failed.", &front.route_fallbacks),
            ("usher_refused_no_monolith_total", "Upgrades refused for want of a Monolith.", &front.no_monolith),
            ("usher_refused_clients_total", "Upgrades refused at limits.clients.", &front.too_many_clients),
            ("usher_refused_handshakes_total", "Upgrades refused at limits.handshakes.", &front.too_many_handshakes),
            ("usher_clients_total", "Client sockets ever opened.", &clients.upgraded),
            ("usher_client_messages_total", "Messages from clients.", &clients.messages),
            ("usher_client_dropped_frames_total", "Frames that were no JSON object.", &clients.dropped_frames),
            ("usher_client_stale_frames_total", "Frames of an attachment that was over.", &clients.stale_frames),
            ("usher_client_vanished_total", "Clients that stopped answering.", &clients.vanished),
            ("usher_client_unauthenticated_total", "Clients without a token.", &clients.unauthenticated),
            ("usher_client_held_too_much_total", "Clients that sent too much too early.", &clients.held_too_much),
            ("usher_handover_held_frames_total", "Messages kept while a room had no Monolith.", &clients.handover_held),
            (
                "usher_handover_reclaimed_frames_total",
                "Messages taken back from the queue of a Monolith that was lost.",
                &clients.handover_reclaimed,
            ),
        ] {
            out.counter(name, help, value.load(Relaxed));
        }
        self.hold.write_metrics(out);
        out.gauge("usher_handshakes", "Client sockets that have not said who they are.", self.handshakes.count());
        self.gate.write_metrics(out);
    }
}

/// The answer 101 to a WebSocket handshake.
pub fn switching_protocols(accept: &str) -> Result<Response<Body>, Refusal> {
    let accept = HeaderValue::from_str(accept).map_err(|_| Refusal::BadRequest)?;
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// The region at whose edge a user arrived, as Fly's proxy says.
pub(super) fn region_of(headers: &http::HeaderMap) -> Option<Region> {
    const LONGEST: usize = 32;
    let region = headers.get(proxy::FLY_REGION)?.to_str().ok()?;
    (!region.is_empty() && region.len() <= LONGEST).then(|| Region::from(region))
}
