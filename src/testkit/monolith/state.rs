//! What a simulated Monolith knows: its links, rooms and members, and what it does with them. No I/O: frames go to
//! bounded queues, one for each link, and waiting is left to jobs with a due time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::{Bytes, Utf8Bytes};

use super::super::world::{RoomInfo, World};
use super::frames;
use super::records::{FrameRecord, HttpRecord, JoinRecord, LeaveRecord, LinkNumber, Log, UnloadRecord};

/// Why a room goes, as the wire names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnloadReason {
    /// Nobody was in it for a while.
    Keepalive,
    /// An operator asked for it.
    Admin,
    /// A balancer asked for it.
    Commanded,
    /// The process stops.
    Shutdown,
}

impl UnloadReason {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keepalive => "Keepalive",
            Self::Admin => "Admin",
            Self::Commanded => "Commanded",
            Self::Shutdown => "Shutdown",
        }
    }

    fn kick_code(self) -> u16 {
        match self {
            Self::Keepalive | Self::Admin => 4003,
            Self::Commanded | Self::Shutdown => 1001,
        }
    }
}

/// What the writer of a link is told.
pub(super) enum Out {
    Text(Utf8Bytes),
    Binary(Bytes),
    /// Bytes straight onto the TCP connection.
    Raw(Bytes),
    /// A close frame; nothing is sent after it.
    Close(u16, &'static str),
}

pub(super) struct Link {
    pub(super) number: LinkNumber,
    pub(super) balancer: Option<String>,
    pub(super) queue: mpsc::Sender<Out>,
}

pub(super) struct Member {
    pub(super) client: String,
    pub(super) name: String,
    /// How messages show this user, as JSON.
    pub(super) user: String,
    pub(super) link: LinkNumber,
    pub(super) room: Arc<str>,
}

pub(super) struct Room {
    pub(super) info: RoomInfo,
    pub(super) epoch: u32,
    /// More than one when joins that crossed loaded it several times.
    pub(super) copies: usize,
    pub(super) members: Vec<Arc<Member>>,
    quoted_name: String,
    pub(super) key: Arc<str>,
    /// Rises whenever the room becomes empty, so that an older idle job does not unload it.
    idle_turn: u64,
}

/// Who waits for a load.
pub(super) enum Waiter {
    Nobody,
    Join { link: LinkNumber, client: String, token: String },
    Http(oneshot::Sender<bool>),
}

pub(super) struct Load {
    name: String,
    waiter: Waiter,
}

pub(super) enum Job {
    Load(Load),
    Idle { key: Arc<str>, turn: u64 },
    Gossip,
    Exit,
}

/// How a Monolith introduces itself on a new link.
#[derive(Clone, Debug, PartialEq)]
pub enum InitStyle {
    /// At once, as the real one does.
    Normal,
    /// Late.
    Delayed(Duration),
    /// Not at all.
    Never,
    /// With this text instead, which need not be JSON.
    Text(String),
    /// As a binary frame with the right content.
    Binary,
}

/// What can be changed while it runs.
pub(super) struct Knobs {
    pub(super) load_delay: Duration,
    pub(super) loads_frozen: bool,
    pub(super) answer_joins: bool,
    pub(super) answer_creations: bool,
    pub(super) init: InitStyle,
    pub(super) refuse_links: bool,
    pub(super) keep_alive: Option<Duration>,
    pub(super) gossip_every: Duration,
    pub(super) init_timeout: Duration,
    pub(super) user_list_limit: usize,
    pub(super) token: Option<String>,
    pub(super) api_key: String,
    pub(super) http_idle: Duration,
    pub(super) metrics: String,
}

/// The state of one simulated Monolith, as a test may look at it.
pub struct State {
    pub(super) world: World,
    pub(super) id: String,
    pub(super) region: String,
    pub(super) http_port: u16,
    pub(super) knobs: Knobs,
    pub(super) links: Vec<Link>,
    pub(super) links_accepted: LinkNumber,
    pub(super) rooms: HashMap<Arc<str>, Room>,
    pub(super) clients: HashMap<String, Vec<Arc<Member>>>,
    /// Clients whose room was unloaded without a kick, until their `leave` comes.
    pub(super) ghosts: HashMap<String, LinkNumber>,
    jobs: BTreeMap<(Instant, u64), Job>,
    jobs_made: u64,
    pub(super) frozen: Vec<Load>,
    pub(super) stopping: bool,
    pub(super) died: Option<String>,
    pub(super) kill: bool,
    pub(super) frames: Log<FrameRecord>,
    pub(super) joins: Log<JoinRecord>,
    pub(super) leaves: Log<LeaveRecord>,
    pub(super) unloads: Log<UnloadRecord>,
    pub(super) http: Log<HttpRecord>,
    pub(super) loads: HashMap<String, u64>,
    pub(super) loads_total: u64,
}

impl State {
    pub(super) fn new(world: World, id: String, region: String, knobs: Knobs, log_limit: usize) -> Self {
        let first_gossip = Instant::now() + knobs.gossip_every;
        let mut state = Self {
            world,
            id,
            region,
            http_port: 0,
            knobs,
            links: Vec::new(),
            links_accepted: 0,
            rooms: HashMap::new(),
            clients: HashMap::new(),
            ghosts: HashMap::new(),
            jobs: BTreeMap::new(),
            jobs_made: 0,
            frozen: Vec::new(),
            stopping: false,
            died: None,
            kill: false,
            frames: Log::new(log_limit),
            joins: Log::new(log_limit),
            leaves: Log::new(log_limit),
            unloads: Log::new(log_limit),
            http: Log::new(log_limit),
            loads: HashMap::new(),
            loads_total: 0,
        };
        state.schedule(first_gossip, Job::Gossip);
        state
    }

    /// What a process forgets when it dies. The records stay.
    pub(super) fn forget_everything(&mut self) {
        self.world.forget_unwritten(self.rooms.values().map(|room| room.info.name.as_str()));
        self.links.clear();
        self.rooms.clear();
        self.clients.clear();
        self.ghosts.clear();
        self.jobs.clear();
        self.frozen.clear();
    }

    pub(super) fn restart(&mut self, id: String) {
        self.id = id;
        (self.stopping, self.kill) = (false, false);
        self.schedule(Instant::now() + self.knobs.gossip_every, Job::Gossip);
    }

    /// Ends the process as an uncaught exception does, and says so loudly.
    pub(super) fn die(&mut self, why: String) {
        tracing::error!(monolith = %self.id, "simulated monolith dies: {why}");
        self.died.get_or_insert(why);
        self.kill = true;
        self.forget_everything();
    }

    // === jobs ===

    fn schedule(&mut self, due: Instant, job: Job) {
        self.jobs_made += 1;
        self.jobs.insert((due, self.jobs_made), job);
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.jobs.first_key_value().map(|((due, _), _)| *due)
    }

    pub(super) fn run_due(&mut self, now: Instant) {
        while let Some(entry) = self.jobs.first_entry().filter(|entry| entry.key().0 <= now) {
            match entry.remove() {
                Job::Load(load) if self.knobs.loads_frozen => self.frozen.push(load),
                Job::Load(load) => self.finish_load(load),
                Job::Idle { key, turn } => {
                    let idle = |room: &Room| room.members.is_empty() && room.idle_turn == turn;
                    if self.rooms.get(&key).is_some_and(idle) {
                        self.unload(&key, UnloadReason::Keepalive);
                    }
                }
                Job::Gossip => {
                    self.gossip();
                    self.schedule(now + self.knobs.gossip_every, Job::Gossip);
                }
                Job::Exit => self.kill = true,
            }
        }
    }

    pub(super) fn exit_after(&mut self, delay: Duration) {
        self.schedule(Instant::now() + delay, Job::Exit);
    }

    pub(super) fn thaw_loads(&mut self) {
        self.knobs.loads_frozen = false;
        for load in std::mem::take(&mut self.frozen) {
            self.finish_load(load);
        }
    }

    // === links ===

    pub(super) fn open_link(&mut self, queue: mpsc::Sender<Out>) -> LinkNumber {
        self.links_accepted += 1;
        self.links.push(Link { number: self.links_accepted, balancer: None, queue });
        self.links_accepted
    }

    /// The first init makes the link a balancer's; a later one silently renames it, as in the real server.
    pub(super) fn introduce(&mut self, number: LinkNumber, balancer: String) {
        let Some(link) = self.links.iter_mut().find(|link| link.number == number) else { return };
        let first = link.balancer.replace(balancer).is_none();
        if first {
            let text = frames::gossip(&self.gossip_entries());
            self.send(number, text);
        }
    }

    /// All clients of the link leave. A real Monolith knows links by the balancer's id, so another link that has the
    /// same id loses its clients too.
    pub(super) fn close_link(&mut self, number: LinkNumber) {
        let Some(index) = self.links.iter().position(|link| link.number == number) else { return };
        let closed = self.links.remove(index);
        let mut gone = vec![number];
        if closed.balancer.is_some() {
            gone.extend(self.links.iter().filter(|link| link.balancer == closed.balancer).map(|link| link.number));
        }
        self.ghosts.retain(|_, link| !gone.contains(link));
        let members: Vec<_> =
            self.clients.values().flatten().filter(|member| gone.contains(&member.link)).cloned().collect();
        for member in members {
            self.remove_member(&member);
        }
    }

    /// Queues a frame. A queue that overflows means a balancer that stopped reading: the link is cut.
    pub(super) fn send(&mut self, number: LinkNumber, text: impl Into<Utf8Bytes>) {
        self.send_out(number, Out::Text(text.into()));
    }

    pub(super) fn send_out(&mut self, number: LinkNumber, out: Out) {
        if self.stopping {
            return;
        }
        let Some(link) = self.links.iter().find(|link| link.number == number) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = link.queue.try_send(out) {
            tracing::warn!(monolith = %self.id, link = number, "simulated monolith: link queue full, link cut");
            self.close_link(number);
        }
    }

    /// Sends to every balancer that has introduced itself.
    fn send_all(&mut self, text: String) {
        let text = Utf8Bytes::from(text);
        let known = self.links.iter().filter(|link| link.balancer.is_some());
        for number in known.map(|link| link.number).collect::<Vec<_>>() {
            self.send(number, text.clone());
        }
    }

    pub(super) fn raw_to_all(&mut self, out: impl Fn() -> Out) {
        for number in self.links.iter().map(|link| link.number).collect::<Vec<_>>() {
            self.send_out(number, out());
        }
    }

    fn gossip_entries(&self) -> Vec<String> {
        let mut rooms: Vec<&Room> = self.rooms.values().collect();
        rooms.sort_by(|a, b| a.key.cmp(&b.key));
        let entries = |room: &&Room| vec![frames::entry(&room.info, room.members.len(), room.epoch); room.copies];
        rooms.iter().flat_map(entries).collect()
    }

    /// The rooms as `/api/room/list` shows them: most users first, then by name.
    pub(super) fn room_list(&self, all: bool) -> String {
        let listed = |room: &&Room| all || room.info.visibility == "public";
        let mut rooms: Vec<&Room> = self.rooms.values().filter(listed).collect();
        rooms.sort_by(|a, b| b.members.len().cmp(&a.members.len()).then_with(|| a.info.name.cmp(&b.info.name)));
        let entries: Vec<_> = rooms.iter().map(|room| frames::metadata(&room.info, room.members.len())).collect();
        format!("[{}]", entries.join(","))
    }

    pub(super) fn gossip(&mut self) {
        let text = frames::gossip(&self.gossip_entries());
        self.send_all(text);
    }

    // === rooms ===

    pub(super) fn room(&self, name: &str) -> Option<&Room> {
        self.rooms.get(name.to_ascii_lowercase().as_str())
    }

    pub(super) fn room_mut(&mut self, name: &str) -> Option<&mut Room> {
        self.rooms.get_mut(name.to_ascii_lowercase().as_str())
    }

    pub(super) fn start_load(&mut self, name: &str, waiter: Waiter) {
        let load = Load { name: name.to_owned(), waiter };
        if self.knobs.loads_frozen {
            self.frozen.push(load);
        } else if self.knobs.load_delay.is_zero() {
            self.finish_load(load);
        } else {
            self.schedule(Instant::now() + self.knobs.load_delay, Job::Load(load));
        }
    }

    fn finish_load(&mut self, load: Load) {
        let found = self.world.find(&load.name);
        let known = found.is_some();
        if let Some(info) = found {
            self.install(info);
        }
        match load.waiter {
            Waiter::Nobody => {}
            // Whoever asked over HTTP may have gone meanwhile.
            Waiter::Http(answer) => drop(answer.send(known)),
            Waiter::Join { link, client, token } if known => self.admit(link, &load.name, client, &token),
            Waiter::Join { link, client, .. } => self.send(link, frames::kick(&client, &Value::from(4002))),
        }
    }

    /// A room comes into memory. If it is there already, a second copy of it appears, as in the real server.
    pub(super) fn install(&mut self, info: RoomInfo) -> u32 {
        let spent = self.world.take_epoch();
        let key: Arc<str> = info.name.to_ascii_lowercase().into();
        *self.loads.entry(key.to_string()).or_default() += 1;
        self.loads_total += 1;
        let room = self.rooms.entry(key.clone()).or_insert_with(|| Room {
            quoted_name: frames::quoted(&info.name),
            info,
            epoch: spent,
            copies: 0,
            members: Vec::new(),
            key: key.clone(),
            idle_turn: 0,
        });
        room.copies += 1;
        let (text, epoch) = (frames::loaded(&room.info, room.epoch), room.epoch);
        self.send_all(text);
        self.begin_idle(&key);
        epoch
    }

    pub(super) fn begin_idle(&mut self, key: &Arc<str>) {
        let Some(after) = self.knobs.keep_alive else { return };
        let Some(room) = self.rooms.get_mut(key).filter(|room| room.members.is_empty()) else { return };
        room.idle_turn += 1;
        let turn = room.idle_turn;
        self.schedule(Instant::now() + after, Job::Idle { key: key.clone(), turn });
    }

    /// Unloads a room; `false` if it was not loaded. Only every other client of each link is kicked: the others
    /// stay as ghosts until they leave.
    pub(super) fn unload(&mut self, name: &str, reason: UnloadReason) -> bool {
        let Some(room) = self.rooms.remove(name.to_ascii_lowercase().as_str()) else { return false };
        let code = Value::from(reason.kick_code());
        let mut seen: HashMap<LinkNumber, usize> = HashMap::new();
        for member in &room.members {
            self.forget_client(member);
            let turn = seen.entry(member.link).or_default();
            if turn.is_multiple_of(2) {
                self.send(member.link, frames::kick(&member.client, &code));
            } else {
                self.ghosts.insert(member.client.clone(), member.link);
            }
            *turn += 1;
        }
        // Idle and deleted rooms are gone for good if they are temporary; the others stay in the store.
        if room.info.is_temporary && matches!(reason, UnloadReason::Keepalive | UnloadReason::Admin) {
            self.world.remove(&room.info.name);
        }
        self.send_all(frames::unloaded(&room.info.name, reason.as_str()));
        true
    }

    /// What the design of the server says about a stop: every client of each room is kicked with 1001, and the room is
    /// unloaded.
    pub(super) fn unload_everything(&mut self) {
        let mut keys: Vec<Arc<str>> = self.rooms.keys().cloned().collect();
        keys.sort();
        for key in keys {
            let members = self.rooms.get(&key).map(|room| room.members.clone()).unwrap_or_default();
            for member in members {
                self.send(member.link, frames::kick(&member.client, &Value::from(1001)));
                self.forget_client(&member);
            }
            if let Some(room) = self.rooms.get_mut(&key) {
                room.members.clear();
            }
            self.unload(&key, UnloadReason::Shutdown);
        }
    }

    /// Sends a payload to everybody in a room: once to each balancer that has someone there.
    pub(super) fn broadcast(&mut self, room: &str, payload: &str) {
        let Some(room) = self.room(room) else { return };
        let mut numbers: Vec<LinkNumber> = Vec::new();
        for member in &room.members {
            if !numbers.contains(&member.link) {
                numbers.push(member.link);
            }
        }
        let text = Utf8Bytes::from(frames::room_msg(&room.quoted_name, None, payload));
        let mut sent: Vec<LinkNumber> = Vec::new();
        for number in numbers {
            // Broadcasts find their link by the balancer's id: with two of one id, the older one gets them.
            let Some(own) = self.links.iter().find(|link| link.number == number) else { continue };
            let Some(target) = self.links.iter().find(|link| link.balancer == own.balancer) else { continue };
            let target = target.number;
            if !sent.contains(&target) {
                sent.push(target);
                self.send(target, text.clone());
            }
        }
    }

    pub(super) fn unicast(&mut self, member: &Member, payload: &str) {
        let Some(room) = self.rooms.get(&member.room) else { return };
        let text = frames::room_msg(&room.quoted_name, Some(&member.client), payload);
        self.send(member.link, text);
    }
}
