//! The thread itself: turns what arrives into events, and effects into commands.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, info};

use super::departures::Departures;
use super::health::{Health, Progress};
use super::recording::Events;
use super::routes::{Published, Routes, Target};
use super::stories::Stories;
use super::{Command, Control, Refused, moves};
use crate::claims::Claims;
use crate::cluster::{Cluster, Settings};
use crate::link::inbox::Inbox;
use crate::link::{self, Report};
use crate::model::claims::ClaimAnswer;
use crate::model::event::{Effect, Event, Micros};
use crate::model::policy::{Answer, Call, Decision, Fault, Hook, View};
use crate::model::{ClientId, Hashing, LinkId, MonolithId, RequestId, RoomKey};
use crate::policy::Policy;

/// How often measurements are taken in and the view is published.
const TICK: Duration = Duration::from_millis(100);
/// How many messages of one kind are handled before the other kind has its turn.
const BATCH: usize = 128;
/// How many who want something are served before other threads have their turn.
const CROWD: usize = 8;

/// What the control thread starts with.
pub struct ControlSettings {
    /// Bounds and waits of the cluster.
    pub cluster: Settings,
    /// Who decides.
    pub policy: Box<dyn Policy>,
    /// What links say.
    pub reports: mpsc::Receiver<Report>,
    /// The store of claims.
    pub claims: Claims,
    /// What tells this balancer from the others.
    pub seed: u64,
}

/// Starts the thread.
pub fn spawn(settings: ControlSettings) -> std::io::Result<Control> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let (control, thread) = assemble(settings, Clock::start());
    std::thread::Builder::new().name("usher-control".into()).spawn(move || runtime.block_on(thread))?;
    Ok(control)
}

/// The same without a thread of its own, and with a clock that begins at a given moment: for runs in virtual time.
#[cfg(test)]
pub(crate) fn in_virtual_time(settings: ControlSettings, epoch: Micros) -> (Control, impl Future<Output = ()> + Send) {
    assemble(settings, Clock { started: Instant::now(), epoch })
}

fn assemble(settings: ControlSettings, clock: Clock) -> (Control, impl Future<Output = ()> + Send) {
    let (commands, inbox) = mpsc::unbounded_channel();
    let routes = Arc::new(Routes::default());
    let health = Arc::new(Health::default());
    let departures = Arc::new(Departures::default());
    let stories = Arc::new(Stories::default());
    let control = Control {
        commands,
        routes: routes.clone(),
        health: health.clone(),
        requests: Arc::new(AtomicU64::new(1)),
        departures: departures.clone(),
        stories: stories.clone(),
    };
    let ControlSettings { cluster, policy, reports, claims, seed } = settings;
    let cluster = Cluster::new(cluster, clock.now()).among_others(seed);
    let shell = Shell::new(cluster, policy, claims, clock, (routes, health, departures, stories));
    (control, shell.run(inbox, reports))
}

struct Shell {
    cluster: Cluster,
    policy: Timed,
    clock: Clock,
    routes: Arc<Routes>,
    health: Arc<Health>,
    departures: Arc<Departures>,
    stories: Arc<Stories>,
    claims: Claims,
    /// Claims that cannot be made now: the cluster hears of it after what it is doing.
    refused_claims: VecDeque<(RoomKey, ClaimAnswer)>,
    links: HashMap<LinkId, Linked, Hashing>,
    targets: BTreeMap<MonolithId, Arc<Target>>,
    inboxes: HashMap<ClientId, Arc<Inbox>, Hashing>,
    replies: HashMap<RequestId, Reply, Hashing>,
    /// Clients that wait to hear whether they may be upgraded.
    knocks: HashMap<ClientId, oneshot::Sender<bool>, Hashing>,
    /// Operators who wait to hear whether a room moves: answered within the command that asks.
    moves: HashMap<RequestId, moves::Reply, Hashing>,
    effects: Vec<Effect>,
    events: Events,
    published: u64,
    /// As of the last tick.
    answers: u64,
}

type Reply = oneshot::Sender<Result<(Arc<Target>, bool), Refused>>;

struct Linked {
    commands: mpsc::UnboundedSender<link::Command>,
    target: Arc<Target>,
}

impl Shell {
    fn new(
        cluster: Cluster,
        policy: Box<dyn Policy>,
        claims: Claims,
        clock: Clock,
        (routes, health, departures, stories): (Arc<Routes>, Arc<Health>, Arc<Departures>, Arc<Stories>),
    ) -> Self {
        Self {
            cluster,
            policy: Timed { policy, health: health.clone() },
            clock,
            routes,
            health,
            departures,
            stories,
            claims,
            refused_claims: VecDeque::new(),
            links: HashMap::default(),
            targets: BTreeMap::new(),
            inboxes: HashMap::default(),
            replies: HashMap::default(),
            knocks: HashMap::default(),
            moves: HashMap::default(),
            effects: Vec::new(),
            events: Events::default(),
            published: 0,
            answers: 0,
        }
    }

    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>, mut reports: mpsc::Receiver<Report>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut from_links, mut from_front) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        let mut linked = true;
        loop {
            let deadline = self.cluster.next_deadline().map(|at| self.clock.instant_of(at));
            let sleep_until = deadline.unwrap_or_else(Instant::now);
            // What links say comes first: it only ever settles what others wait for.
            tokio::select! {
                biased;
                _ = tick.tick() => {
                    self.departures();
                    self.tick();
                }
                received = reports.recv_many(&mut from_links, BATCH), if linked => {
                    // Without anybody who dials there is nothing to receive, and the thread must not spin on that.
                    linked = received > 0;
                    self.departures();
                    for report in from_links.drain(..) {
                        self.report(report);
                    }
                }
                received = commands.recv_many(&mut from_front, BATCH) => {
                    if received == 0 {
                        return;
                    }
                    self.departures();
                    for (number, command) in from_front.drain(..).enumerate() {
                        if number % CROWD == CROWD - 1 {
                            // On one core those who are in would wait for the end of this thread's time slice.
                            std::thread::yield_now();
                        }
                        if let Some(stopped) = self.command(command) {
                            self.stop(&mut reports).await;
                            // Whoever asked may have gone.
                            let _ = stopped.send(());
                            return;
                        }
                    }
                }
                () = tokio::time::sleep_until(sleep_until), if deadline.is_some() => self.apply(Event::Tick),
            }
            self.routes.set_list_version(self.cluster.list_version());
            self.routes.set_open(self.cluster.is_open());
        }
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Up { link, endpoint, monolith, region, http, commands, stats } => {
                let target = Target::new(monolith.clone(), region.clone(), http, link, stats);
                self.links.insert(link, Linked { commands, target });
                self.events.up(&monolith, &region, &self.targets);
                self.apply(Event::LinkUp { link, endpoint, monolith, region });
                self.publish();
            }
            Report::Event(event) => {
                let down = match &event {
                    Event::LinkDown { link } => Some(*link),
                    _ => None,
                };
                self.apply(event);
                if let Some(link) = down {
                    if let Some(linked) = self.links.remove(&link) {
                        self.targets.remove(&linked.target.id);
                    }
                    self.publish();
                }
            }
        }
    }

    /// Takes in who has left by themselves: before anything that may have been said after it.
    fn departures(&mut self) {
        for (client, told) in self.departures.take() {
            self.apply(Event::Leave { client, told: Some(told) });
            self.inboxes.remove(&client);
        }
    }

    /// Carries out one command; a reply to whoever stops usher ends the thread.
    fn command(&mut self, command: Command) -> Option<oneshot::Sender<()>> {
        match command {
            Command::Join { client, room, token, region, reconnect, inbox } => {
                self.inboxes.insert(client, inbox);
                self.apply(Event::Join { client, room, token, region, reconnect });
            }
            Command::Knock { client, room, reply } => {
                self.knocks.insert(client, reply);
                self.apply(Event::Knock { client, room });
            }
            Command::Withdraw(client) => {
                self.apply(Event::Withdraw { client });
                self.knocks.remove(&client);
            }
            Command::Leave(client) => {
                self.apply(Event::Leave { client, told: None });
                self.inboxes.remove(&client);
            }
            Command::Departures => {}
            Command::Request { request, room, cause, region, reply } => {
                self.replies.insert(request, reply);
                self.apply(Event::Request { request, room, cause, region });
            }
            Command::RequestDone(request, outcome) => {
                self.apply(Event::RequestDone { request, outcome });
                self.replies.remove(&request);
            }
            Command::Move { request, room, to, reply } => {
                self.moves.insert(request, reply);
                self.apply(Event::Move { request, room, to });
                self.moves.remove(&request);
            }
            Command::Claim(room, answer) => self.apply(Event::Claim { room, answer }),
            Command::Drain { monolith, on, reply } => {
                self.apply(Event::Drain { monolith: monolith.clone(), on });
                let summary = self.cluster.monoliths().into_iter().find(|summary| summary.id == monolith);
                // Whoever asked may have gone.
                let _ = reply.send(summary);
            }
            Command::Query(read) => read(&self.cluster),
            Command::Decide(run) => run(self.policy.policy.as_mut(), &self.cluster),
            Command::Configure(settings) => self.cluster.configure(settings),
            Command::Record(to) => self.events.record(to, &self.targets, self.cluster.view()),
            Command::Stop(stopped) => return Some(stopped),
        }
        None
    }

    /// Takes in one event, and then whatever it came to that is known at once: one after another, since one event may
    /// place as many rooms as there are.
    fn apply(&mut self, event: Event) {
        self.apply_one(event);
        while let Some((room, answer)) = self.refused_claims.pop_front() {
            self.apply_one(Event::Claim { room, answer });
        }
    }

    fn apply_one(&mut self, event: Event) {
        self.events.event(&event, |link| self.registered(link));
        let mut effects = std::mem::take(&mut self.effects);
        self.cluster.apply(self.clock.now(), event, &mut self.policy, &mut effects);
        for effect in effects.drain(..) {
            self.carry_out(effect);
        }
        self.effects = effects;
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::AcceptLink { link } => {
                if let Some(linked) = self.links.get(&link) {
                    self.targets.insert(linked.target.id.clone(), linked.target.clone());
                }
                self.tell(link, link::Command::Accept);
            }
            Effect::RefuseLink { link } => {
                self.tell(link, link::Command::Refuse);
                self.links.remove(&link);
            }
            Effect::Attach { link, client, attachment, room, token, open, report, rejoin } => {
                let Some(inbox) = self.inboxes.get(&client).cloned() else { return };
                self.tell(link, link::Command::Attach { client, attachment, room, token, inbox, open, report, rejoin });
            }
            // Here and not by the link that loses the client: the next one could be quicker.
            Effect::Hold { client, attachment } => {
                if let Some(inbox) = self.inboxes.get(&client) {
                    inbox.detached(attachment);
                }
            }
            Effect::Watch { link, room, quiet, at_most } => {
                let (quiet, at_most) = (Duration::from_micros(quiet), Duration::from_micros(at_most));
                self.tell(link, link::Command::Watch { room, quiet, at_most });
            }
            Effect::Open { link, client, attachment } => self.tell(link, link::Command::Open { client, attachment }),
            Effect::Detach { link, client, attachment } => {
                // The answer to its join may be on its way here: its link lets it speak already, and loses it now.
                if let Some(inbox) = self.inboxes.get(&client) {
                    inbox.detached(attachment);
                }
                self.tell(link, link::Command::Detach { client, attachment });
            }
            Effect::Unload { link, room, epoch, why } => {
                self.tell(link, link::Command::Unload { room, epoch, why });
            }
            Effect::Moving { request, outcome } => {
                if let Some(reply) = self.moves.remove(&request) {
                    // Whoever asked may have gone.
                    let _ = reply.send(outcome);
                }
            }
            Effect::Rebalanced(done) => moves::log(&done),
            Effect::Close { client, code } => {
                self.events.closed(client);
                if let Some(inbox) = self.inboxes.remove(&client) {
                    inbox.close(code);
                }
            }
            Effect::Enter { client, admitted } => {
                if let Some(reply) = self.knocks.remove(&client) {
                    // Whoever knocked may have gone.
                    let _ = reply.send(admitted);
                }
            }
            Effect::Ejection(ejection) => super::health::log(&ejection),
            Effect::Send { request, monolith, awaited } => {
                let target = self.targets.get(&monolith).cloned();
                if let Some(reply) = self.replies.remove(&request) {
                    // Whoever asked may have gone: its guard tells.
                    let _ = reply.send(target.map(|target| (target, awaited)).ok_or(Refused { status: 503 }));
                }
            }
            Effect::Refuse { request, status } => {
                if let Some(reply) = self.replies.remove(&request) {
                    // Whoever asked may have gone.
                    let _ = reply.send(Err(Refused { status }));
                }
            }
            Effect::Bind { room, monolith } => match self.targets.get(&monolith) {
                Some(target) => self.routes.bind(room, target.clone()),
                None => self.routes.unbind(&room),
            },
            Effect::Unbind { room } => self.routes.unbind(&room),
            Effect::Claim(command) => self.refused_claims.extend(self.claims.send(command)),
            Effect::Story(note) => self.stories.note(*note),
        }
    }

    /// The Monolith of a link, unless the link was refused.
    fn registered(&self, link: LinkId) -> Option<MonolithId> {
        let id = &self.links.get(&link)?.target.id;
        self.targets.get(id).filter(|target| target.link == link).map(|target| target.id.clone())
    }

    fn tell(&self, link: LinkId, command: link::Command) {
        if let Some(linked) = self.links.get(&link)
            && linked.commands.send(command).is_err()
        {
            // The link has ended; its last report is on its way and settles everyone on it.
            debug!(%link, "command for a link that has ended");
        }
    }

    /// Takes in what is measured elsewhere and publishes what changed.
    fn tick(&mut self) {
        self.apply(Event::Tick);
        let now = self.clock.now();
        let ages: Vec<(MonolithId, f64)> = self
            .cluster
            .links()
            .map(|(id, _, since)| (id.clone(), (now.saturating_sub(since) / 1_000_000) as f64))
            .collect();
        let targets = &self.targets;
        self.cluster.measure(|view| {
            for (id, age) in &ages {
                if let Some(target) = targets.get(id) {
                    measure(view, target, *age);
                }
            }
        });
        self.events.loads(&self.targets);
        if self.cluster.view().revision() != self.published {
            self.publish();
        }
        let (waiting, answers) = (self.cluster.waiting(), self.cluster.answers());
        let progress = Progress {
            anyone_waits: waiting + self.cluster.out() > 0,
            answered: answers != self.answers,
            pending: waiting + self.cluster.held(),
        };
        self.health.tick(progress);
        self.answers = answers;
    }

    fn publish(&mut self) {
        self.published = self.cluster.view().revision();
        self.routes.publish(Published { view: self.cluster.view().clone(), targets: self.targets.clone() });
    }

    /// Closes every link and waits a moment for their goodbyes.
    async fn stop(&mut self, reports: &mut mpsc::Receiver<Report>) {
        info!(links = self.links.len(), "closing links");
        for linked in self.links.values() {
            // A link that has ended needs no stop.
            let _ = linked.commands.send(link::Command::Stop);
        }
        let patience = tokio::time::sleep(Duration::from_secs(1));
        tokio::pin!(patience);
        while !self.links.is_empty() {
            tokio::select! {
                report = reports.recv() => match report {
                    Some(Report::Event(Event::LinkDown { link })) => {
                        self.links.remove(&link);
                    }
                    Some(_) => {}
                    None => return,
                },
                () = &mut patience => return,
            }
        }
    }
}

fn measure(view: &mut View, target: &Target, age_s: f64) {
    target.tick();
    let Some(row) = view.get(&target.id) else { return };
    let round = |value: f64| (value * 100.0).round() / 100.0;
    let rtt_ms = round(target.stats.rtt().as_secs_f64() * 1e3);
    let queue = u32::try_from(target.stats.queued()).unwrap_or(u32::MAX);
    let (inflight, latency_ms) =
        (target.inflight().load(std::sync::atomic::Ordering::Relaxed), round(target.latency_ms()));
    let errors = (target.errors() * 1e3).round() / 1e3;
    let old = (row.rtt_ms, row.queue, row.inflight, row.latency_ms, row.errors, row.age_s);
    if old != (rtt_ms, queue, inflight, latency_ms, errors, age_s) {
        view.update(&target.id, |row| {
            (row.rtt_ms, row.queue, row.inflight, row.latency_ms, row.errors, row.age_s) =
                (rtt_ms, queue, inflight, latency_ms, errors, age_s);
        });
    }
    load(view, target);
}

/// Takes in what was scraped. Its age counts in whole seconds, so that a view does not change more often because of it.
fn load(view: &mut View, target: &Target) {
    let (load, Some(row)) = (target.load(), view.get(&target.id)) else { return };
    let age_s = load.as_ref().map(|load| load.at.elapsed().as_secs() as f64);
    let same = match &load {
        Some(load) => row.load == load.values,
        None => row.load.is_empty(),
    };
    if !same || row.load_age_s != age_s {
        view.update(&target.id, |row| {
            row.load_age_s = age_s;
            if !same {
                row.load = load.map(|load| load.values.clone()).unwrap_or_default();
            }
        });
    }
}

/// Microseconds since the Unix epoch that never go back, whatever happens to the wall clock.
struct Clock {
    started: Instant,
    epoch: Micros,
}

impl Clock {
    fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), epoch: u64::try_from(since.as_micros()).unwrap_or(0) }
    }

    fn now(&self) -> Micros {
        self.epoch + u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX - self.epoch)
    }

    fn instant_of(&self, at: Micros) -> Instant {
        self.started + Duration::from_micros(at.saturating_sub(self.epoch))
    }
}

/// The deciding policy with a stop-watch.
struct Timed {
    policy: Box<dyn Policy>,
    health: Arc<Health>,
}

impl Policy for Timed {
    fn call(&mut self, call: &Call, view: &View) -> Result<Answer, Fault> {
        let started = Instant::now();
        let result = self.policy.call(call, view);
        self.health.decisions.add(started.elapsed());
        result
    }

    fn has(&self, hook: Hook) -> bool {
        self.policy.has(hook)
    }

    fn settled(&mut self, call: &Call, view: &View, decision: &Decision) {
        self.policy.settled(call, view, decision);
    }
}

#[cfg(test)]
#[path = "shell_test.rs"]
mod tests;
