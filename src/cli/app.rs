//! A whole balancer in one process: every part made, connected and, at the end, taken down in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tracing::info;
use uuid::Uuid;

use super::vital::{Broken, VitalTasks};
use crate::admin::{self, Admin, AdminRequest, Owner};
use crate::claims;
use crate::cluster::Settings;
use crate::config::{self, ClaimsConfig, Config, Loaded};
use crate::control::policies::{FirstPolicy, Policies};
use crate::control::recording::Recordings;
use crate::control::reload::{ReloadCounts, Reloader, cluster_settings, link_settings, start_discovery};
use crate::control::scrape::{ScrapeCounters, Scraper};
use crate::control::{Control, ControlSettings};
use crate::discovery::EndpointSet;
use crate::front::body::Body;
use crate::front::door::{FrontDoor, RouteDecider};
use crate::front::listener::{Bounds, Handler, Listener, ListenerCounters, Peer, Stop, into_tcp};
use crate::front::respond::Refusal;
use crate::front::router;
use crate::front::threads::Threads;
use crate::link::stats::LinkCounters;
use crate::link::tap::Tap;
use crate::link::{self, LinkContext, LinkSettings};
use crate::model::CloseCode;
use crate::model::metrics::MetricsText;
use crate::model::policy::{Call, Decision, Hook, View};
use crate::policy::lua::LoadError;

/// Reports that links may be ahead of the control thread; beyond it they read no further.
const REPORTS: usize = 4096;
/// How long requests in flight may go on when usher stops, beyond `timeouts.shutdown`.
const GRACE: Duration = Duration::from_secs(1);

/// How long the body of an admin request may take.
const ADMIN_BODY: Duration = Duration::from_secs(20);

/// Why a balancer does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configured policy is broken.
    #[error("{0}")]
    Policy(#[from] LoadError),
    /// The machine does not give what is needed.
    #[error("cannot start: {0}")]
    Io(#[from] std::io::Error),
}

/// What a balancer is started with.
pub struct Start {
    /// What tells this process from all others; a new one for each.
    pub id: Uuid,
    /// The configuration.
    pub loaded: Loaded,
    /// How it was found, so that it can be found again when it changes.
    pub request: config::Request,
    /// The main socket.
    pub listener: Listener,
    /// The socket of the admin API, if it has one of its own.
    pub admin_listener: Option<Listener>,
}

/// A running balancer.
pub struct App {
    addr: SocketAddr,
    admin_addr: Option<SocketAddr>,
    config: Arc<ArcSwap<Config>>,
    control: Control,
    policies: Arc<Policies>,
    recordings: Arc<Recordings>,
    front: Arc<FrontDoor>,
    links: Arc<LinkCounters>,
    stop: Stop,
    /// The admin API's own socket answers until everything else has ended: it is where a stop can be watched.
    admin_stop: Stop,
    /// Its listeners accept once this is true.
    gate: watch::Sender<bool>,
    stopping: Arc<AtomicBool>,
    taken_over: Arc<AtomicBool>,
    /// None once it has ended.
    serving: Option<JoinHandle<usize>>,
    admin_serving: Option<JoinHandle<usize>>,
    reloader: AbortHandle,
    /// The senders that the reloader has too: who hears from it goes on when it is stopped before everything else.
    _heard: (watch::Sender<EndpointSet>, watch::Sender<Arc<LinkSettings>>, watch::Sender<ClaimsConfig>),
    vital: VitalTasks,
}

impl App {
    /// Starts everything on the current tokio runtime. It accepts at once; clients get 503 until a Monolith is linked.
    pub async fn start(start: Start) -> Result<Self, StartError> {
        let app = Self::start_closed(start).await?;
        app.record().await;
        app.open();
        Ok(app)
    }

    /// The same without accepting yet: connections wait in the queue of the socket, or are another process's.
    pub async fn start_closed(start: Start) -> Result<Self, StartError> {
        let Start { id, loaded, request, listener, admin_listener } = start;
        let workers = request.workers;
        let first = FirstPolicy::prepare(&loaded.config, workers)?;
        let config = Arc::new(ArcSwap::from_pointee(loaded.config));
        let now = config.load_full();
        let (reports, received) = mpsc::channel(REPORTS);
        let (claims, wanted) = claims::queue();
        let store = claims.health().clone();
        let control = crate::control::spawn(ControlSettings {
            // Two that move rooms at the same time can end a Monolith: not before it is this one's turn.
            cluster: Settings { rebalance: None, ..cluster_settings(&now) },
            policy: Box::new(first.deciding()),
            reports: received,
            claims,
            seed: id.as_u64_pair().1,
        })?;
        let (claiming, claiming_now) = watch::channel(now.claims.clone());
        let answers = control.clone();
        let answer = Box::new(move |room, answer| answers.claimed(room, answer));
        let claimer = claims::spawn(wanted, id.to_string(), claiming_now, answer);
        let policies = Arc::new(Policies::new(first, control.clone(), config.clone(), workers));
        let tap = Tap::new(id.to_string().into());
        let (handle, balancer) = (policies.handle().clone(), tap.balancer().clone());
        let recordings = Recordings::new(handle, control.clone(), config.clone(), balancer);
        let remembered = recordings.clone();
        policies.remember(Box::new(move || remembered.recent().map(|recent| recent.segments()).unwrap_or_default()));
        let links = Arc::new(LinkCounters::default());
        let (settings, settings_now) = watch::channel(Arc::new(link_settings(&now)));
        let (endpoints, listed) = watch::channel(EndpointSet::new());
        let supervisor = link::spawn(
            listed,
            LinkContext {
                reports,
                settings: settings_now,
                tap: tap.clone(),
                numbers: Arc::new(AtomicU64::new(1)),
                counters: links.clone(),
            },
        );
        let stop = Stop::new();
        let stopping = Arc::new(AtomicBool::new(false));
        let taken_over = Arc::new(AtomicBool::new(false));
        let decider = Arc::new(Deciding(policies.clone()));
        let front = Arc::new(FrontDoor::new(config.clone(), control.clone(), tap.clone(), decider, stop.clone()));
        let limited = front.clone();
        let scrapes = Arc::new(ScrapeCounters::default());
        let scraper = Scraper::new(config.clone(), control.clone(), scrapes.clone());
        let reloads = Arc::new(ReloadCounts::default());
        let admin = Arc::new(Admin {
            config: config.clone(),
            control: control.clone(),
            policies: policies.clone(),
            recordings: recordings.clone(),
            tap,
            stopping: stopping.clone(),
            taken_over: taken_over.clone(),
            claims: store.clone(),
            limits: vec![Box::new(move || limited.at_limit())],
            metrics: metrics_sources(&front, &links, &scrapes, &reloads, &recordings, &store, listener.counters()),
        });
        let heard = (endpoints.clone(), settings.clone(), claiming.clone());
        let reloader = Reloader {
            request,
            config: config.clone(),
            control: control.clone(),
            policies: policies.clone(),
            recordings: recordings.clone(),
            link_settings: settings,
            claims: claiming,
            endpoints: endpoints.clone(),
            discovery: start_discovery(now.discovery.clone(), endpoints),
            refused: None,
            counts: reloads,
        };
        let (addr, admin_addr) = (listener.addr(), admin_listener.as_ref().map(Listener::addr));
        let grace = now.timeouts.shutdown + GRACE;
        let gate = watch::Sender::new(false);
        let threads = Arc::new(Threads::start()?);
        let mut vital = VitalTasks::default();
        let mut serve = |listener: Listener, scope: Scope, stop: &Stop| {
            let (in_order, ended) = oneshot::channel::<()>();
            vital.keep(
                "a listener",
                tokio::spawn(async move {
                    if ended.await.is_ok() {
                        std::future::pending::<()>().await;
                    }
                }),
            );
            let handler = Arc::new(Dispatch { front: front.clone(), admin: admin.clone(), scope });
            let (mut gate, stop) = (gate.subscribe(), stop.clone());
            let bounds = Bounds::Live(config.clone());
            let serving = listener.serve(handler, bounds, threads.clone(), stop.clone(), grace);
            tokio::spawn(async move {
                tokio::select! {
                    // An error means that nobody is left to open it.
                    _ = gate.wait_for(|open| *open) => {}
                    () = stop.wait() => {}
                }
                let left = if *gate.borrow() { serving.await } else { 0 };
                if stop.is_begun() {
                    // Whoever looks after it may have gone.
                    let _ = in_order.send(());
                }
                left
            })
        };
        let main_scope = if admin_listener.is_some() { Scope::Front } else { Scope::Both };
        let admin_stop = Stop::new();
        let serving = Some(serve(listener, main_scope, &stop));
        let admin_serving = admin_listener.map(|listener| serve(listener, Scope::Admin, &admin_stop));
        let thread = control.clone();
        vital.keep("the control thread", tokio::spawn(async move { thread.ended().await }));
        vital.keep("whoever dials Monoliths", supervisor);
        vital.keep("the store of claims", claimer);
        vital.keep("the scraper", tokio::spawn(scraper.run()));
        let reloading = tokio::spawn(reloader.run());
        let reloader = reloading.abort_handle();
        vital.keep("whoever reloads files and finds Monoliths", reloading);
        Ok(Self {
            addr,
            admin_addr,
            config,
            control,
            policies,
            recordings,
            front,
            links,
            stop,
            admin_stop,
            gate,
            stopping,
            taken_over,
            serving,
            admin_serving,
            reloader,
            _heard: heard,
            vital,
        })
    }

    /// Records from now on what `[record]` asks for. Until now another usher may have written the file.
    pub async fn record(&self) {
        self.recordings.configure().await;
    }

    /// Accepts from now on.
    pub fn open(&self) {
        let config = self.config.load();
        // An error means that the control thread has ended, and usher with it.
        let _ = self.control.configure(cluster_settings(&config));
        self.gate.send_replace(true);
        info!(addr = %self.addr, region = %config.region, "usher accepts");
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where the admin API listens.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr.unwrap_or(self.addr)
    }

    /// The way to the control thread.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The policy and its versions.
    pub fn policies(&self) -> &Arc<Policies> {
        &self.policies
    }

    /// What is recorded.
    pub fn recordings(&self) -> &Arc<Recordings> {
        &self.recordings
    }

    /// Who tells when a part breaks without which this balancer only seems to be well.
    pub fn broken(&self) -> Broken {
        self.vital.broken()
    }

    /// The front door.
    pub fn front(&self) -> &Arc<FrontDoor> {
        &self.front
    }

    /// What links count.
    pub fn links(&self) -> &Arc<LinkCounters> {
        &self.links
    }

    /// How many clients [`leave`](Self::leave) would close, and over what time.
    pub fn clients_to_leave(&self) -> (usize, Duration) {
        (self.front.clients().len(), self.config.load().timeouts.takeover)
    }

    /// Leaves the clients to the usher that accepts by now: readiness 503, no new connections, clients closed with 1012
    /// over `timeouts.takeover`, requests answered. [`stop`](Self::stop) has to follow, and may cut it short when this is
    /// cancelled.
    pub async fn leave(&mut self) {
        let config = self.config.load_full();
        let over = config.timeouts.takeover;
        let until = Instant::now() + over;
        info!(clients = self.front.clients().len(), ?over, "taken over: clients are sent to the other usher");
        self.taken_over.store(true, Relaxed);
        self.recordings.close().await;
        // What decides about rooms from now on is the other one.
        self.reloader.abort();
        let _ = self.control.configure(Settings { rebalance: None, ..cluster_settings(&config) });
        self.stop.leave();
        self.admin_stop.leave();
        self.front.clients().close_all(CloseCode::RESTART, over).await;
        // Connections that clients keep end with their next answer, or now.
        let _ = tokio::time::timeout_at(until, finished(&mut self.serving)).await;
        self.stop.trigger_within(config.timeouts.http_response);
        finished(&mut self.serving).await;
    }

    /// Stops: no new connections, readiness 503, clients closed with 1001 over `timeouts.shutdown`, links closed.
    pub async fn stop(mut self) {
        info!(clients = self.front.clients().len(), "stopping");
        self.stopping.store(true, Relaxed);
        self.stop.trigger();
        let over = self.config.load().timeouts.shutdown;
        self.front.clients().close_all(CloseCode::AWAY, over).await;
        // Requests that were given longer, because another usher had taken over, are not any more.
        let _ = tokio::time::timeout(over + GRACE * 2, finished(&mut self.serving)).await;
        self.recordings.close().await;
        self.control.stop().await;
        self.admin_stop.trigger();
        finished(&mut self.admin_serving).await;
        self.vital.abort();
        info!("stopped");
    }
}

/// Waits for a listener's end, if it has not come. One that broke has nothing left to finish.
async fn finished(serving: &mut Option<JoinHandle<usize>>) {
    if let Some(running) = serving {
        let _ = running.await;
        *serving = None;
    }
}

/// `route` and `admit` decisions in the VM of the calling worker.
struct Deciding(Arc<Policies>);

impl RouteDecider for Deciding {
    fn route(&self, call: &Call, view: &View) -> Decision {
        self.0.decide(call, view)
    }

    fn admits(&self) -> bool {
        self.0.has(Hook::Admit)
    }

    fn admit(&self, call: &Call, view: &View) -> Decision {
        self.0.decide(call, view)
    }
}

/// What a listener answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// Everything.
    Both,
    /// Clients; of the balancer's own only `/api/status`.
    Front,
    /// The balancer's own only.
    Admin,
}

struct Dispatch {
    front: Arc<FrontDoor>,
    admin: Arc<Admin>,
    scope: Scope,
}

impl Handler for Dispatch {
    fn is_probe(&self, request: &Request<Incoming>) -> bool {
        admin::is_open(request.uri().path())
    }

    fn is_newcomer(&self, request: &Request<Incoming>) -> bool {
        self.scope != Scope::Admin && self.front.is_newcomer(request)
    }

    async fn handle(&self, request: Request<Incoming>, peer: &Peer) -> Response<Body> {
        let owner = admin::owner(request.uri().path());
        let open = request.uri().path().trim_end_matches('/') == "/api/status";
        match (owner, self.scope) {
            (Owner::Front, Scope::Both | Scope::Front) => self.front.handle(request, peer).await,
            (Owner::Front | Owner::Disguised, Scope::Admin) | (Owner::Disguised, _) => Refusal::NotFound.response(),
            (Owner::Admin | Owner::Stream, Scope::Front) if !open => Refusal::NotFound.response(),
            (Owner::Admin, _) => self.own(request).await,
            (Owner::Stream, _) => self.stream(request),
        }
    }
}

impl Dispatch {
    async fn own(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = match self.admin.wants_body(parts.uri.path(), &parts.headers) {
            Err(error) => return error.response().map(Body::Full),
            Ok(false) => bytes::Bytes::new(),
            Ok(true) => match tokio::time::timeout(ADMIN_BODY, Limited::new(body, admin::BODY_LIMIT).collect()).await {
                Ok(Ok(body)) => body.to_bytes(),
                Ok(Err(_)) => return Refusal::TooLarge.response(),
                Err(_) => return Refusal::TooSlow.response(),
            },
        };
        let request = AdminRequest {
            method: &parts.method,
            path: parts.uri.path(),
            query: parts.uri.query(),
            headers: &parts.headers,
            body: &body,
        };
        self.admin.answer(&request).await.map(Body::Full)
    }

    fn stream(&self, mut request: Request<Incoming>) -> Response<Body> {
        if let Err(error) = self.admin.authorize(request.headers()) {
            return error.response().map(Body::Full);
        }
        if !router::wants_websocket(request.version(), request.method(), request.headers()) {
            return Refusal::BadRequest.response();
        }
        let Some(accept) = router::websocket_key(request.headers()).map(|key| derive_accept_key(key.as_bytes())) else {
            return Refusal::BadRequest.response();
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let tap = self.admin.tap.clone();
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let Ok((stream, read, slot)) = into_tcp(upgraded) else { return };
            let socket = WebSocketStream::from_partially_read(stream, read.to_vec(), Role::Server, None).await;
            admin::stream::serve(socket, &tap).await;
            drop(slot);
        });
        crate::front::door::switching_protocols(&accept).unwrap_or_else(|refusal| refusal.response())
    }
}

fn metrics_sources(
    front: &Arc<FrontDoor>,
    links: &Arc<LinkCounters>,
    scrapes: &Arc<ScrapeCounters>,
    reloads: &Arc<ReloadCounts>,
    recordings: &Arc<Recordings>,
    claims: &Arc<claims::Health>,
    connections: Arc<ListenerCounters>,
) -> Vec<admin::MetricsSource> {
    let (front, links, scrapes, reloads) = (front.clone(), links.clone(), scrapes.clone(), reloads.clone());
    let of_front: admin::MetricsSource = Box::new(move |out: &mut MetricsText| front.write_metrics(out));
    let of_links: admin::MetricsSource = Box::new(move |out: &mut MetricsText| links.write_metrics(out));
    let of_scrapes: admin::MetricsSource = Box::new(move |out: &mut MetricsText| scrapes.write_metrics(out));
    let of_reloads: admin::MetricsSource = Box::new(move |out: &mut MetricsText| reloads.write_metrics(out));
    let recordings = recordings.clone();
    let of_recordings: admin::MetricsSource = Box::new(move |out: &mut MetricsText| recordings.write_metrics(out));
    let claims = claims.clone();
    let of_claims: admin::MetricsSource = Box::new(move |out: &mut MetricsText| claims.write_metrics(out));
    let of_connections: admin::MetricsSource = Box::new(move |out: &mut MetricsText| connections.write_metrics(out));
    vec![of_front, of_connections, of_links, of_scrapes, of_reloads, of_recordings, of_claims]
}
