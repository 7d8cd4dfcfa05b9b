//! A balancer of a run: the control thread's loop, the sessions of its links and the tasks of its clients are the real
//! ones; only the streams under them are simulated.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::choosing::Chooser;
use super::dice::Dice;
use super::ledger::{Ledger, LinkNumber, NEWS, Session};
use super::monolith::{Monolith, World};
use super::pipe::{End, Line, pipe, small};
use super::relay::Relay;
use super::store::{Claimant, Store};
use crate::claims;
use crate::config::Config;
use crate::control::reload::{cluster_settings, link_settings};
use crate::control::shell::in_virtual_time;
use crate::control::{Control, ControlSettings};
use crate::front::clients::Clients;
use crate::front::handshakes::Handshakes;
use crate::front::hold::Hold;
use crate::front::listener::Stop;
use crate::front::room_socket::{RoomRequest, SocketContext, SocketSettings, serve, websocket_config};
use crate::link::inbox::Inbox;
use crate::link::tap::Tap;
use crate::link::{LinkContext, Report, run_over};
use crate::model::event::Event;
use crate::model::wire::Init;
use crate::model::{ClientId, LinkId, RoomName};
use crate::policy::shipped::Shipped;

/// When every run begins: the same moment, since randomness of decisions grows from it.
const EPOCH: u64 = 1_800_000_000_000_000;

/// What timers may be late.
const SLACK: Duration = Duration::from_millis(10);

/// One way to a Monolith.
pub(super) struct Way {
    pub(super) listed: watch::Sender<bool>,
    /// Whether dialling reaches it.
    pub(super) open: Arc<AtomicU8>,
    /// The connection that stands, if one does.
    pub(super) line: Arc<Mutex<Option<Line>>>,
    /// Whether its Monolith is being drained by this balancer.
    pub(super) drained: AtomicBool,
}

/// One balancer, in one of its lives.
pub(super) struct Balancer {
    pub(super) control: Control,
    pub(super) policy: Arc<AtomicU8>,
    pub(super) ways: Vec<Way>,
    context: Arc<SocketContext>,
    hold: Hold,
    config: Arc<Config>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    lines: Mutex<Vec<Line>>,
    reports: mpsc::Sender<Report>,
}

/// What a balancer dials, and how far away it is.
pub(super) struct Surroundings<'a> {
    pub(super) world: &'a World,
    pub(super) monoliths: &'a [Monolith],
    pub(super) ledger: &'a Ledger,
    pub(super) config: &'a Arc<Config>,
    pub(super) script: Option<&'static Shipped>,
    pub(super) store: Option<&'a Store>,
    /// In a hundred links, those that are later than others.
    pub(super) late_links: u64,
}

impl Balancer {
    /// Starts one with a way to each Monolith, and one more way to the first: two addresses of one Monolith.
    pub(super) fn start(name: &str, around: &Surroundings<'_>, dice: &mut Dice) -> Arc<Self> {
        let (reports, received) = mpsc::channel(4096);
        let (chooser, policy) = Chooser::new(around.script);
        let (claims, wanted) = claims::queue();
        let claimant = around.store.map(|store| store.claimant(around.ledger, around.config));
        let settings = ControlSettings {
            cluster: cluster_settings(around.config),
            policy: chooser,
            reports: received,
            claims,
            seed: name.bytes().fold(1u64, |seed, byte| seed.wrapping_mul(31) + u64::from(byte)),
        };
        let (control, thread) = in_virtual_time(settings, EPOCH);
        let mut tasks = vec![watched(around.ledger, "the control thread", thread)];
        if let Some(claimant) = &claimant {
            let serve = claimant.clone().serve(wanted, control.clone());
            tasks.push(watched(around.ledger, "the way to the store of claims", serve));
        }
        let tap = Tap::new(name.into());
        let links = LinkContext {
            reports: reports.clone(),
            settings: watch::channel(Arc::new(link_settings(around.config))).1,
            tap: tap.clone(),
            numbers: Arc::default(),
            counters: Arc::default(),
        };
        let mut ways = Vec::new();
        let targets = around.monoliths.iter().chain(around.monoliths.first());
        for (number, monolith) in targets.enumerate() {
            let (listed, watched_list) = watch::channel(true);
            let way =
                Way { listed, open: Arc::new(AtomicU8::new(1)), line: Arc::default(), drained: AtomicBool::new(false) };
            // The second way to the first Monolith is there for a while only.
            if number == around.monoliths.len() {
                way.open.store(0, Relaxed);
            }
            let supervisor = Supervisor {
                endpoint: format!("{name}-way-{number}:1").into(),
                monolith: monolith.clone(),
                world: around.world.clone(),
                ledger: around.ledger.clone(),
                open: way.open.clone(),
                line: way.line.clone(),
                dice: dice.apart(number as u64),
                links: links.clone(),
                claims: claimant.clone(),
                late_links: around.late_links,
            };
            tasks.push(watched(around.ledger, "a supervisor", supervisor.run(watched_list)));
            ways.push(way);
        }
        let endpoints = (0..around.monoliths.len()).map(|number| format!("{name}-way-{number}:1").into()).collect();
        let discovered = reports.try_send(Report::Event(Event::Discovered { endpoints }));
        assert!(discovered.is_ok(), "the queue is empty at the start");
        let clients = Arc::<Clients>::default();
        let context = Arc::new(SocketContext { control: control.clone(), clients, tap });
        Arc::new(Self {
            hold: Hold::new(control.clone(), Stop::new()),
            control,
            policy,
            ways,
            context,
            config: around.config.clone(),
            tasks: Mutex::new(tasks),
            lines: Mutex::default(),
            reports,
        })
    }

    /// A client connects and waits for its upgrade, as long as it may. None: it is told to come later.
    pub(super) async fn connect(
        &self,
        ledger: &Ledger,
        session: Session,
        room: &str,
        reconnect: bool,
        latency: Duration,
    ) -> Option<(End, Line)> {
        let client = ClientId::from_u128(u128::from(session) << 64);
        let inbox = Inbox::new(self.config.limits.client_queue);
        let place = self.context.clients.register(client, inbox.clone(), self.config.limits.clients)?;
        let (room, came) = (RoomName::parse(room).ok()?, Instant::now());
        let admitted = self.hold.pass(client, room.key(), came + self.config.timeouts.hold).await;
        let waited = came.elapsed();
        if waited > Duration::ZERO {
            ledger.count(if admitted.is_ok() { "held and let in" } else { "held in vain" });
        }
        if waited > self.config.timeouts.hold + SLACK {
            ledger.violation(format!("session {session} waited for {waited:?} before its upgrade"));
        }
        // Nobody hears from a process that has been killed.
        if admitted.is_err() || self.reports.is_closed() {
            return None;
        }
        ledger.begins(session, inbox.clone());
        let (ours, theirs, line) = pipe(latency);
        let settings = SocketSettings {
            auth: self.config.timeouts.auth,
            message: self.config.limits.message,
            held: self.config.limits.held_frames,
            heartbeat: self.config.heartbeat,
        };
        let handshake = Handshakes::default().begin(1)?;
        let request = RoomRequest { client, room, region: Some("ewr".into()), reconnect, handshake };
        let context = self.context.clone();
        let task = watched(ledger, "the task of a client", async move {
            let socket = WebSocketStream::from_raw_socket(ours, Role::Server, Some(websocket_config(&settings))).await;
            serve(socket, request, inbox, place, settings, context).await;
        });
        lock(&self.tasks).push(task);
        lock(&self.lines).push(line.clone());
        Some((theirs, line))
    }

    /// Whether a Monolith has been there for it lately: one that it could ask, and that it was linked to before whatever it
    /// does now.
    pub(super) fn is_linked(&self) -> bool {
        let takes_rooms = |way: &&Way| !way.drained.load(Relaxed);
        let mut ways = self.ways.iter().filter(takes_rooms);
        ways.any(|way| lock(&way.line).as_ref().is_some_and(|line| line.has_carried_for(NEWS)))
    }

    /// Frames that came for clients too late, and did not reach them.
    pub(super) fn late_frames(&self) -> u64 {
        self.context.clients.counters.stale_frames.load(Relaxed)
    }

    /// Its process is killed.
    pub(super) fn crash(&self) {
        lock(&self.tasks).drain(..).for_each(|task| task.abort());
        lock(&self.lines).drain(..).for_each(|line| line.cut());
        for way in &self.ways {
            if let Some(line) = lock(&way.line).take() {
                line.cut();
            }
        }
    }
}

/// A task that fails the run if it panics.
pub(super) fn watched(
    ledger: &Ledger,
    what: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let ledger = ledger.clone();
    let task = tokio::spawn(task);
    let abort = task.abort_handle();
    tokio::spawn(async move {
        let _aborts = AbortOnDrop(abort);
        if let Err(error) = task.await
            && error.is_panic()
        {
            ledger.violation(format!("{what} panics: {:?}", error.into_panic().downcast_ref::<String>()));
        }
    })
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Supervisor {
    endpoint: Arc<str>,
    monolith: Monolith,
    world: World,
    ledger: Ledger,
    open: Arc<AtomicU8>,
    line: Arc<Mutex<Option<Line>>>,
    dice: Dice,
    links: LinkContext,
    claims: Option<Arc<Claimant>>,
    late_links: u64,
}

/// Tells of the end of a link, also where it comes with that of its balancer.
struct Ended {
    number: LinkNumber,
    ledger: Ledger,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.ledger.link_ended(self.number);
    }
}

impl Supervisor {
    async fn run(mut self, mut listed: watch::Receiver<bool>) {
        loop {
            let reachable = *listed.borrow_and_update() && self.open.load(Relaxed) == 1;
            match self.monolith.id().filter(|_| reachable) {
                Some(id) => {
                    let (ours, theirs, line) = pipe(self.dice.millis(1..25));
                    let number = self.world.next_link();
                    self.ledger.link_began(number);
                    *lock(&self.line) = Some(line.clone());
                    let lags = self.dice.percent(self.late_links);
                    self.monolith.accept(theirs, line, number);
                    let socket = WebSocketStream::from_raw_socket(ours, Role::Client, Some(small())).await;
                    let init = Init { port: 80, region: "ewr".into(), id: id.as_str().into(), token: None };
                    let endpoint = self.endpoint.clone();
                    let relay = Relay {
                        lags,
                        dice: self.dice.apart(number),
                        monolith: init.id.clone(),
                        claims: self.claims.clone(),
                    };
                    let links = LinkContext { reports: relay.begin(self.links.reports.clone()), ..self.links.clone() };
                    let ended = Ended { number, ledger: self.ledger.clone() };
                    run_over(LinkId(number), init, socket, endpoint, &mut listed, links).await;
                    drop(ended);
                    *lock(&self.line) = None;
                }
                None if reachable => {
                    let failed = Event::DialFailed { endpoint: self.endpoint.clone() };
                    if self.links.reports.send(Report::Event(failed)).await.is_err() {
                        return;
                    }
                }
                None => {}
            }
            let pause = self.dice.millis(100..800);
            tokio::select! {
                biased;
                () = sleep(pause) => {}
                changed = listed.changed() => if changed.is_err() { return },
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
