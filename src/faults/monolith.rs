//! A Monolith of a run: rooms, members and what the real one does with them, frame by frame, with its sharp edges.

mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

pub(super) use self::requests::Reply;
use super::dice::Dice;
use super::ledger::{Ledger, LinkNumber, NEWS, NEWS_IN_A_STALL, Session};
use super::pipe::{End, Line, small};

/// A room that takes longer than this to load may not be there when its balancer gives up.
const SLOW: Duration = Duration::from_secs(1);

/// What all Monoliths of a run share: the store of rooms.
#[derive(Clone)]
pub(super) struct World(Arc<Mutex<Store>>);

struct Store {
    next_load: u64,
    links: LinkNumber,
    /// Rooms that were created, besides those that every run begins with.
    created: BTreeSet<String>,
}

impl World {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Store { next_load: 0, links: 0, created: BTreeSet::new() })))
    }

    fn next_load(&self) -> u64 {
        let mut store = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        store.next_load += 1;
        store.next_load
    }

    /// Creates a room, with a name of its own if none is asked for. None if there is one of that name.
    fn create(&self, name: Option<&str>) -> Option<String> {
        let mut store = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = name.map_or_else(|| format!("made-{}", store.created.len()), str::to_owned);
        store.created.insert(name.clone()).then_some(name)
    }

    fn has(&self, room: &str) -> bool {
        room.starts_with("room-") || self.0.lock().unwrap_or_else(PoisonError::into_inner).created.contains(room)
    }

    pub(super) fn next_link(&self) -> LinkNumber {
        let mut store = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        store.links += 1;
        store.links
    }
}

/// How a Monolith ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Its connections break.
    Crash,
    /// One close frame on each link and nothing after it, as the real one does.
    Goodbye,
    /// Everybody is kicked, every room is unloaded, then the links close.
    InOrder,
}

/// What it would look like at a Monolith if a balancer broke a rule: proof that runs would find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// Some `leave`s do not come.
    LeavesAreLost,
    /// Some input comes twice.
    InputComesTwice,
    /// Some input does not come.
    InputIsLost,
    /// Some messages to a room overtake the ones before them.
    MessagesAreSwapped,
    /// Now and then an `unload` comes for a room that is not here.
    StrayUnloads,
    /// Some `unload`s that are asked for are not obeyed.
    UnloadsAreIgnored,
    /// Some `unload`s come twice.
    UnloadsComeTwice,
    /// A balancer takes a room for its own that another one has claimed.
    ClaimsAreIgnored,
    /// Some who are in are closed while they talk.
    MembersAreClosed,
    /// Some who want in are closed.
    JoinsAreRefused,
}

/// One Monolith, through all its lives.
#[derive(Clone)]
pub(super) struct Monolith(Arc<Mutex<State>>);

struct State {
    name: String,
    life: u64,
    up: bool,
    world: World,
    ledger: Ledger,
    dice: Dice,
    rooms: BTreeMap<String, Room>,
    loading: BTreeMap<String, Vec<(LinkNumber, String, Session)>>,
    members: BTreeMap<String, Member>,
    /// Members whose room was unloaded without a kick, until their `leave`.
    ghosts: BTreeMap<String, LinkNumber>,
    links: BTreeMap<LinkNumber, (mpsc::UnboundedSender<Message>, Line)>,
    /// Each room that was unloaded in this life: when that was last, and over which link it was asked for, if it was.
    unloaded: BTreeMap<String, (Instant, Option<LinkNumber>)>,
    /// When it was last stalled, or went on.
    stalled: Option<Instant>,
    /// Whether it does nothing.
    asleep: bool,
    sabotage: Option<Sabotage>,
    /// A message that lets the next one overtake it.
    overtaken: Option<(BTreeSet<LinkNumber>, Value)>,
}

struct Room {
    load: u64,
    messages: u64,
    members: Vec<String>,
    emptied: u64,
}

#[derive(Clone)]
struct Member {
    room: String,
    link: LinkNumber,
    session: Session,
}

impl Monolith {
    pub(super) fn new(name: String, world: World, ledger: Ledger, dice: Dice, sabotage: Option<Sabotage>) -> Self {
        let monolith = Self(Arc::new(Mutex::new(State {
            name,
            life: 0,
            up: false,
            world,
            ledger,
            dice,
            rooms: BTreeMap::new(),
            loading: BTreeMap::new(),
            members: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            links: BTreeMap::new(),
            unloaded: BTreeMap::new(),
            stalled: None,
            asleep: false,
            sabotage,
            overtaken: None,
        })));
        monolith.start();
        monolith
    }

    /// A process begins, with an id of its own.
    pub(super) fn start(&self) {
        let life = {
            let mut state = self.lock();
            if state.up {
                return;
            }
            state.up = true;
            state.unloaded.clear();
            state.life += 1;
            state.life
        };
        let monolith = self.clone();
        tokio::spawn(async move {
            loop {
                let pause = monolith.lock().dice.millis(500..4000);
                sleep(pause).await;
                if !monolith.lives(life) {
                    return;
                }
                monolith.lock().gossip(None);
                if monolith.lock().breaks(Sabotage::StrayUnloads) {
                    monolith.asked_to_unload("room-of-nobody", None);
                }
            }
        });
    }

    pub(super) fn id(&self) -> Option<String> {
        let state = self.lock();
        state.up.then(|| format!("{}-{}", state.name, state.life))
    }

    /// Ends the process, if it runs.
    pub(super) fn end(&self, how: Ending) {
        let mut state = self.lock();
        if !state.up {
            return;
        }
        state.ledger.tell(|| format!("{} ends: {how:?}", state.name));
        if how == Ending::InOrder {
            let rooms: Vec<String> = state.rooms.keys().cloned().collect();
            for room in rooms {
                state.unload(&room, "Shutdown", (1001, 1), None);
            }
        }
        state.up = false;
        for (number, (queue, line)) in std::mem::take(&mut state.links) {
            state.ledger.link_unread(number);
            match how {
                Ending::Crash => line.cut(),
                Ending::Goodbye | Ending::InOrder => {
                    let frame = CloseFrame { code: 1001.into(), reason: "Server shutting down".into() };
                    let _ = queue.send(Message::Close(Some(frame)));
                }
            }
        }
        state.rooms.clear();
        state.loading.clear();
        state.members.clear();
        state.ghosts.clear();
    }

    /// It stops for a while, as a process does that is swapped out.
    pub(super) fn stall(&self, stalled: bool) {
        let mut state = self.lock();
        if !stalled && !state.asleep {
            return;
        }
        (state.stalled, state.asleep) = (Some(Instant::now()), stalled);
        state.ledger.slept();
        for (number, (_, line)) in &state.links {
            line.stall(stalled);
            state.ledger.link_stalled(*number);
        }
    }

    /// Says what it has, to everybody.
    pub(super) fn gossip(&self) {
        self.lock().gossip(None);
    }

    /// Unloads one of its rooms by itself, as after a long time without users.
    pub(super) fn tidy_up(&self) {
        let mut state = self.lock();
        let empty = state.rooms.iter().find(|(_, room)| room.members.is_empty()).map(|(name, _)| name.clone());
        if let Some(room) = empty {
            state.unload(&room, "Keepalive", (4003, 2), None);
        }
    }

    /// A balancer has connected.
    pub(super) fn accept(&self, end: End, line: Line, number: LinkNumber) {
        let (queue, mut waiting) = mpsc::unbounded_channel();
        let life = {
            let mut state = self.lock();
            state.links.insert(number, (queue, line));
            state.gossip(Some(number));
            state.life
        };
        let monolith = self.clone();
        tokio::spawn(async move {
            let mut socket = WebSocketStream::from_raw_socket(end, Role::Server, Some(small())).await;
            loop {
                tokio::select! {
                    biased;
                    message = waiting.recv() => {
                        let Some(message) = message else { return };
                        let last = message.is_close();
                        if socket.send(message).await.is_err() {
                            break;
                        }
                        if last {
                            while socket.next().await.is_some_and(|message| message.is_ok()) {}
                            return;
                        }
                    }
                    message = socket.next() => {
                        match message {
                            Some(Ok(Message::Text(text))) => monolith.receive(life, number, &text),
                            Some(Ok(_)) => {}
                            Some(Err(_)) | None => break,
                        }
                        // What a frame caused goes out before more is read, so that no pong overtakes it.
                        let mut sent = true;
                        while sent && let Ok(message) = waiting.try_recv() {
                            sent = !message.is_close() && socket.feed(message).await.is_ok();
                        }
                        if !sent || socket.flush().await.is_err() {
                            break;
                        }
                    }
                }
            }
            monolith.link_gone(life, number);
        });
    }

    /// Everybody who is in, by session: the room and how often.
    pub(super) fn sessions(&self) -> Vec<(Session, String)> {
        let state = self.lock();
        state.members.values().map(|member| (member.session, member.room.clone())).collect()
    }

    /// Those that were unloaded without a kick and never said to have left.
    pub(super) fn ghosts(&self) -> usize {
        self.lock().ghosts.len()
    }

    fn lives(&self, life: u64) -> bool {
        let state = self.lock();
        state.up && state.life == life
    }

    fn receive(&self, life: u64, link: LinkNumber, text: &str) {
        if !self.lives(life) {
            return;
        }
        let frame: Value = serde_json::from_str(text).unwrap_or(Value::Null);
        let payload = &frame["payload"];
        let field = |name: &str| payload[name].as_str().unwrap_or_default().to_owned();
        match frame["type"].as_str().unwrap_or_default() {
            "join" => self.join(life, link, field("room").to_ascii_lowercase(), field("client"), &field("token")),
            "leave" => {
                let mut state = self.lock();
                if !state.breaks(Sabotage::LeavesAreLost) {
                    state.leave(&field("client"));
                }
            }
            "client_msg" => {
                let mut state = self.lock();
                let lost = state.breaks(Sabotage::InputIsLost);
                let times = if lost { 0 } else { 1 + usize::from(state.breaks(Sabotage::InputComesTwice)) };
                (0..times).for_each(|_| state.input(link, &field("client_id"), &payload["payload"]));
            }
            "unload" => {
                let times = 1 + usize::from(self.lock().breaks(Sabotage::UnloadsComeTwice));
                (0..times).for_each(|_| self.asked_to_unload(&field("room").to_ascii_lowercase(), Some(link)));
            }
            _ => self.lock().ledger.violation(format!("a frame that no balancer sends: {text}")),
        }
    }

    fn join(&self, life: u64, link: LinkNumber, room: String, member: String, token: &str) {
        let session: Session = token.parse().unwrap_or(0);
        let delay = {
            let mut state = self.lock();
            state.ledger.count("joins");
            if !state.world.has(&room) {
                state.send(link, &json!({"type": "kick", "payload": {"client_id": member, "reason": 4002}}));
                return;
            }
            if state.breaks(Sabotage::JoinsAreRefused) {
                state.send(link, &json!({"type": "kick", "payload": {"client_id": member, "reason": 1013}}));
                return;
            }
            if state.rooms.contains_key(&room) {
                state.admit(link, &room, member, session);
                return;
            }
            if state.unloaded_lately(&room).is_some() {
                // Its balancer may take the room for loaded, and what it says goes to a room that is only being loaded.
                state.ledger.surprise(session, link, true);
            }
            if let Some(waiting) = state.loading.get_mut(&room) {
                waiting.push((link, member, session));
                return;
            }
            state.loading.insert(room.clone(), vec![(link, member, session)]);
            state.time_to_load()
        };
        self.load(life, room, delay);
    }

    /// A room is there after a while, if the process is.
    fn load(&self, life: u64, room: String, delay: Duration) {
        let monolith = self.clone();
        if delay > SLOW {
            monolith.lock().ledger.loads_slowly(&room, delay);
        }
        tokio::spawn(async move {
            sleep(delay).await;
            if monolith.lives(life) {
                monolith.lock().loaded(&room);
            }
        });
    }

    fn asked_to_unload(&self, room: &str, by: Option<LinkNumber>) {
        let mut state = self.lock();
        if state.rooms.contains_key(room) {
            if !state.breaks(Sabotage::UnloadsAreIgnored) {
                state.unload(room, "Commanded", (1001, 2), by);
            }
            return;
        }
        // Who has asked for it over the same link knows.
        let crossed = state.unloaded_lately(room).is_some_and(|first| first != by);
        let name = state.name.clone();
        if crossed {
            state.ledger.count("unloads that crossed");
        } else {
            state.ledger.violation(format!("{name} is asked to unload {room}, which it does not have: that ends it"));
        }
        drop(state);
        self.end(Ending::Crash);
        let monolith = self.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(500)).await;
            monolith.start();
        });
    }

    fn link_gone(&self, life: u64, link: LinkNumber) {
        let mut state = self.lock();
        state.ledger.link_unread(link);
        if !state.up || state.life != life || state.links.remove(&link).is_none() {
            return;
        }
        let gone: Vec<String> =
            state.members.iter().filter(|(_, member)| member.link == link).map(|(id, _)| id.clone()).collect();
        gone.iter().for_each(|member| state.leave(member));
        // Who is gone owes no leave.
        state.ghosts.retain(|_, from| *from != link);
        state.loading.values_mut().for_each(|waiting| waiting.retain(|(from, ..)| *from != link));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn send(&self, link: LinkNumber, frame: &Value) {
        if let Some((queue, _)) = self.links.get(&link) {
            // A link whose task has ended hears nothing more.
            let _ = queue.send(Message::text(frame.to_string()));
        }
    }

    /// Whether this is one of the times at which a rule is broken on purpose.
    fn breaks(&mut self, rule: Sabotage) -> bool {
        self.sabotage == Some(rule) && self.dice.percent(20)
    }

    /// Whether a balancer may not know yet that a room was unloaded, and over which link that was asked for, if it was. An
    /// unload that crosses the Monolith's own, or another balancer's, on the way ends a real one and cannot be avoided.
    fn unloaded_lately(&self, room: &str) -> Option<Option<LinkNumber>> {
        let kept = self.stalled.is_some_and(|at| at.elapsed() < NEWS_IN_A_STALL);
        let news = if kept { NEWS_IN_A_STALL } else { NEWS };
        self.unloaded.get(room).filter(|(at, _)| at.elapsed() < news).map(|(_, by)| *by)
    }

    /// Now and then longer than a balancer waits.
    fn time_to_load(&mut self) -> Duration {
        if self.dice.percent(4) { self.dice.millis(1500..4000) } else { self.dice.millis(1..60) }
    }

    fn send_all(&self, frame: &Value) {
        self.links.keys().for_each(|link| self.send(*link, frame));
    }

    fn gossip(&self, to: Option<LinkNumber>) {
        let rooms: Vec<Value> = self.rooms.iter().map(|(name, room)| report(name, room)).collect();
        let frame = json!({"type": "gossip", "payload": {"rooms": rooms}});
        match to {
            Some(link) => self.send(link, &frame),
            None => self.send_all(&frame),
        }
    }

    fn loaded(&mut self, name: &str) {
        let Some(waiting) = self.loading.remove(name) else { return };
        let load = self.world.next_load();
        let room = Room { load, messages: 0, members: Vec::new(), emptied: 0 };
        self.send_all(&json!({"type": "loaded", "payload": report(name, &room)}));
        self.rooms.insert(name.to_owned(), room);
        self.ledger.count("loads");
        for (link, member, session) in waiting {
            self.admit(link, name, member, session);
        }
    }

    /// Somebody comes in: the answer is the state of the room, and the others hear of it.
    fn admit(&mut self, link: LinkNumber, name: &str, member: String, session: Session) {
        if !self.links.contains_key(&link) {
            return;
        }
        if self.members.contains_key(&member) {
            self.ledger.violation(format!("member {member} joins {} twice", self.name));
            return;
        }
        let Some(room) = self.rooms.get_mut(name) else { return };
        room.members.push(member.clone());
        let answer = json!({"answer": room.load, "last": room.messages, "of": self.name});
        self.members.insert(member.clone(), Member { room: name.to_owned(), link, session });
        let frame = json!({"type": "room_msg", "payload": {"room": name, "client_id": member, "payload": answer}});
        self.send(link, &frame);
        self.say(name, json!({"joined": session}));
    }

    /// One message to everybody in a room: once to each link that has somebody there.
    fn say(&mut self, name: &str, mut what: Value) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        room.messages += 1;
        what["load"] = room.load.into();
        what["number"] = room.messages.into();
        let links: BTreeSet<LinkNumber> =
            room.members.iter().filter_map(|member| self.members.get(member)).map(|member| member.link).collect();
        let frame = json!({"type": "room_msg", "payload": {"room": name, "payload": what}});
        if self.overtaken.is_none() && self.breaks(Sabotage::MessagesAreSwapped) {
            self.overtaken = Some((links, frame));
            return;
        }
        links.into_iter().for_each(|link| self.send(link, &frame));
        if let Some((links, frame)) = self.overtaken.take() {
            links.into_iter().for_each(|link| self.send(link, &frame));
        }
    }

    fn input(&mut self, link: LinkNumber, member: &str, payload: &Value) {
        let Some(known) = self.members.get(member).cloned() else { return };
        if known.link != link {
            self.ledger.violation(format!("input of member {member} over another link than its join"));
        }
        let (session, number) = (payload["session"].as_u64().unwrap_or(0), payload["input"].as_u64().unwrap_or(0));
        if session != known.session {
            self.ledger.violation(format!("input of session {session} as member of session {}", known.session));
        }
        self.ledger.input(session, number, link);
        if self.breaks(Sabotage::MembersAreClosed) {
            self.leave(member);
            self.send(link, &json!({"type": "kick", "payload": {"client_id": member, "reason": 1013}}));
            return;
        }
        self.say(&known.room, json!({"session": session, "input": number}));
    }

    fn leave(&mut self, member: &str) {
        self.ghosts.remove(member);
        // The real one does not know a member yet whose room it is loading, and takes no notice of its leave.
        let Some(gone) = self.members.remove(member) else { return };
        self.ledger.count("leaves");
        if let Some(room) = self.rooms.get_mut(&gone.room) {
            room.members.retain(|other| other != member);
            room.emptied += u64::from(room.members.is_empty());
        }
        self.say(&gone.room, json!({"left": gone.session}));
    }

    /// A room goes. Of the members of each link only every so-many-eth is kicked, as the real one does.
    /// A balancer that asked for it has made its own clients wait.
    fn unload(&mut self, name: &str, reason: &str, (code, every): (u16, usize), by: Option<LinkNumber>) {
        let Some(room) = self.rooms.remove(name) else { return };
        let mut seen: BTreeMap<LinkNumber, usize> = BTreeMap::new();
        for id in room.members {
            let Some(member) = self.members.remove(&id) else { continue };
            if by != Some(member.link) {
                self.ledger.surprise(member.session, member.link, false);
            }
            let turn = seen.entry(member.link).or_default();
            if turn.is_multiple_of(every) {
                self.send(member.link, &json!({"type": "kick", "payload": {"client_id": id, "reason": code}}));
            } else {
                self.ghosts.insert(id, member.link);
            }
            *turn += 1;
        }
        self.unloaded.insert(name.to_owned(), (Instant::now(), by));
        self.ledger.count("unloads");
        self.send_all(&json!({"type": "unloaded", "payload": {"name": name, "reason": reason}}));
    }
}

fn report(name: &str, room: &Room) -> Value {
    json!({
        "room": {"name": name, "title": "", "description": "", "isTemporary": false, "visibility": "public",
                 "queueMode": "manual", "currentSource": null, "users": room.members.len()},
        "load_epoch": room.load,
    })
}
