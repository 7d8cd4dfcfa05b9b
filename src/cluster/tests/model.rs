//! A model of the outside world: Monoliths that load, answer, kick, unload or stay silent, links that carry it all in
//! order, sockets and workers. It does what effects say, and checks each of them against what it knows.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::property::ROOMS;
use super::*;
use crate::cluster::{Claiming, Rebalancing, Seamless};

/// A membership as its link knows it.
pub(super) struct Member {
    room: RoomKey,
    answered: bool,
    report: bool,
    open: bool,
    /// Whether it was in the room on another Monolith.
    rejoin: bool,
}

/// A room in a Monolith's memory.
#[derive(Clone)]
pub(super) struct Load {
    pub(super) spelling: String,
    pub(super) epoch: u32,
    /// Whether it was asked to unload it.
    pub(super) asked: bool,
}

/// One link with the Monolith behind it.
pub(super) struct Peer {
    pub(super) id: MonolithId,
    members: BTreeMap<(ClientId, Attachment), Member>,
    /// What the Monolith has in memory; our link has carried all of it.
    pub(super) loaded: BTreeMap<RoomKey, Load>,
    /// What it had at the gossip before.
    before: BTreeMap<RoomKey, Load>,
}

pub(super) struct Model {
    pub(super) w: World,
    pub(super) peers: BTreeMap<u64, Peer>,
    pub(super) next_link: u64,
    pub(super) next_client: u64,
    next_request: u64,
    /// Clients whose sockets are open.
    pub(super) clients: BTreeSet<ClientId>,
    /// Clients that wait before their upgrade.
    pub(super) knocking: BTreeSet<ClientId>,
    /// Requests that wait to hear where to go, and those that were sent and are awaited.
    pub(super) asking: BTreeSet<RequestId>,
    pub(super) awaited: BTreeMap<RequestId, (Option<usize>, bool)>,
    wanted: BTreeMap<RequestId, (Option<usize>, bool)>,
    owners: HashMap<RoomKey, MonolithId>,
    /// Claims that were not answered: their number, for whom and when they were asked.
    pub(super) claims: BTreeMap<RoomKey, (u64, MonolithId, Micros)>,
    /// Memberships that were ended by either side, for answers and kicks that come too late.
    pub(super) ended: Vec<(u64, ClientId, Attachment)>,
    /// Clients whose messages go to a Monolith.
    speaking: BTreeSet<ClientId>,
    /// Rooms that links were asked to say something of when they are quiet.
    pub(super) watched: Vec<(u64, RoomKey)>,
    seamless: bool,
}

pub(super) fn pick<T: Clone>(index: usize, items: impl IntoIterator<Item = T>) -> Option<T> {
    let items: Vec<T> = items.into_iter().collect();
    (!items.is_empty()).then(|| items[index % items.len()].clone())
}

fn model_settings(seamless: bool) -> Settings {
    let rebalance = Some(Rebalancing { every: 3 * SECOND, dry: false });
    let seamless = seamless.then_some(Seamless { window: 10 * SECOND, quiet: 6 * SECOND });
    Settings { pending_joins: 12, pending_rooms: 4, rebalance, seamless, move_rate: 2, ..settings() }
}

const CLAIMING: Claiming = Claiming { wait: SECOND / 5, lease: 15 * SECOND };

impl Model {
    /// With `others`, the balancer is one of several, and claims its rooms.
    pub(super) fn new(discovered: bool, others: bool, seamless: bool) -> Self {
        let mut w = fresh();
        if others {
            w.cluster = Cluster::new(settings(), SECOND).among_others(7);
        }
        let claims = others.then_some(CLAIMING);
        w.cluster.configure(Settings { claims, ..model_settings(seamless) });
        let mut model = Self {
            w,
            peers: BTreeMap::new(),
            next_link: 1,
            next_client: 1,
            next_request: 1,
            clients: BTreeSet::new(),
            knocking: BTreeSet::new(),
            asking: BTreeSet::new(),
            awaited: BTreeMap::new(),
            wanted: BTreeMap::new(),
            owners: HashMap::new(),
            claims: BTreeMap::new(),
            ended: Vec::new(),
            speaking: BTreeSet::new(),
            watched: Vec::new(),
            seamless,
        };
        if discovered {
            model.feed(Event::Discovered { endpoints: vec![endpoint(1), endpoint(2), endpoint(4)] });
        }
        model
    }

    pub(super) fn feed(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.w.cluster.apply(self.w.now, event, &mut self.w.policy, &mut effects);
        for effect in effects {
            self.carry_out(effect);
        }
        assert_eq!(self.w.cluster.broken_invariant(), None);
        // Those whose room did not survive are in none, and wait to be closed.
        let clients = self.w.cluster.size().1 + self.w.cluster.handovers.refused();
        assert_eq!(clients, self.clients.len(), "clients that the cluster knows, and sockets that are open");
        for peer in self.peers.values() {
            let row = self.w.cluster.view().get(&peer.id).unwrap();
            assert_eq!(row.clients as usize, peer.members.len(), "members of {}", peer.id);
        }
    }

    /// A client leaves, and has told the link of its open membership itself. Without one it names a membership that is
    /// over, or none.
    pub(super) fn leave_directly(&mut self, client: ClientId) {
        self.clients.remove(&client);
        self.speaking.remove(&client);
        let mut told =
            self.ended.iter().rev().find(|(_, other, _)| *other == client).map(|(.., attachment)| *attachment);
        for (link, peer) in &mut self.peers {
            let open = peer.members.iter().find(|((other, _), member)| *other == client && member.open);
            if let Some((client, attachment)) = open.map(|(key, _)| *key) {
                peer.members.remove(&(client, attachment));
                self.ended.push((*link, client, attachment));
                told = Some(attachment);
            }
        }
        self.feed(Event::Leave { client, told });
    }

    /// What links, sockets and workers do about an effect.
    pub(super) fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::AcceptLink { link } => assert!(self.peers.contains_key(&link.0)),
            Effect::RefuseLink { link } => assert!(!self.peers.contains_key(&link.0)),
            Effect::Attach { link, client, attachment, room, open, report, rejoin, .. } => {
                assert!(self.clients.contains(&client), "{client} is gone");
                let speaks = self.seamless && self.speaking.contains(&client);
                assert!(!speaks, "{client} still speaks to another Monolith");
                assert!(self.seamless || !rejoin, "clients come back by themselves");
                let elsewhere = self.peers.values().any(|peer| peer.members.keys().any(|(other, _)| *other == client));
                assert!(!elsewhere, "{client} is a member already");
                let peer = self.peers.get_mut(&link.0).expect("a live link");
                if open {
                    assert_eq!(self.owners.get(room.key()), Some(&peer.id), "only an owner gets open members");
                } else {
                    assert!(report, "nothing would ever release it");
                    assert!(!self.owners.contains_key(room.key()), "a bound room keeps nobody waiting");
                    if let Some((.., asked)) = self.claims.get(room.key()) {
                        assert!(
                            asked + CLAIMING.wait <= self.w.now,
                            "{room} was sent out before its claim was answered"
                        );
                    }
                    let out = peer.members.values().filter(|member| member.room == *room.key() && !member.answered);
                    assert_eq!(out.count(), 0, "one join is out at a time");
                }
                let member = Member { room: room.key().clone(), answered: false, report, open, rejoin };
                assert!(peer.members.insert((client, attachment), member).is_none(), "an attachment is used once");
                if open {
                    self.speaking.insert(client);
                }
            }
            Effect::Hold { client, attachment } => {
                let joined = self.peers.values().any(|peer| peer.members.contains_key(&(client, attachment)));
                assert!(joined, "{client} has nothing to lose");
                assert!(self.seamless && self.clients.contains(&client));
                self.speaking.remove(&client);
            }
            Effect::Watch { link, room, .. } => {
                assert!(self.peers.contains_key(&link.0) && self.owners.contains_key(&room));
                self.watched.push((link.0, room));
            }
            Effect::Open { link, client, attachment } => {
                let peer = self.peers.get_mut(&link.0).expect("a live link");
                peer.members.get_mut(&(client, attachment)).expect("a member").open = true;
                self.speaking.insert(client);
            }
            Effect::Detach { link, client, attachment } => {
                let peer = self.peers.get_mut(&link.0).expect("a live link");
                assert!(peer.members.remove(&(client, attachment)).is_some(), "one leave for one join");
                self.ended.push((link.0, client, attachment));
            }
            Effect::Unload { link, room, epoch, why } => {
                let peer = self.peers.get_mut(&link.0).expect("a live link");
                let load = peer.loaded.get_mut(room.key()).expect("unload kills a Monolith without the room");
                assert_eq!(room.spelling(), load.spelling);
                assert_eq!(epoch, Epoch(load.epoch));
                assert!(!std::mem::replace(&mut load.asked, true), "unload is sent once per load");
                let left = peer.members.values().filter(|member| member.room == *room.key() && member.open).count();
                if why == UnloadCause::Duplicate {
                    assert_eq!(left, 0, "traffic ends before the unload");
                } else {
                    assert_eq!(why == UnloadCause::HandOver, self.seamless);
                    assert_ne!(left, 0, "an empty room may be about to go by itself");
                    assert!(!self.owners.contains_key(room.key()), "whoever comes now waits");
                }
                if why == UnloadCause::HandOver {
                    let here = |((client, _), member): (&(ClientId, Attachment), &mut Member)| {
                        (member.room == *room.key()).then(|| {
                            member.open = false;
                            *client
                        })
                    };
                    let held: Vec<ClientId> = peer.members.iter_mut().filter_map(here).collect();
                    held.iter().for_each(|client| assert!(self.speaking.remove(client), "{client} did not speak"));
                }
            }
            Effect::Moving { outcome, .. } => {
                if let Ok(moving) = outcome {
                    let to = moving.to.expect("an operator names a target");
                    assert!(self.peers.values().any(|peer| peer.id == to), "{to} is not linked");
                    assert_ne!(moving.from, to);
                }
            }
            Effect::Rebalanced(done) => {
                assert!(done.refused <= done.asked);
                assert!(done.rooms <= self.owners.len(), "only rooms that are bound are shown");
            }
            Effect::Close { client, code } => {
                assert!(self.clients.remove(&client), "{client} was closed twice");
                assert!(!self.seamless || code != CloseCode::AWAY, "{client} could have stayed");
                self.speaking.remove(&client);
            }
            Effect::Enter { client, .. } => assert!(self.knocking.remove(&client), "{client} does not knock"),
            Effect::Ejection(Ejection::Out { monolith, .. }) => {
                let serving = self.w.cluster.view().rows().iter().filter(|row| row.serves()).count();
                assert!(serving > 0, "{monolith} was the last one");
            }
            Effect::Ejection(Ejection::Spared { .. } | Ejection::Back { .. }) => {}
            Effect::Send { request, monolith, awaited } => {
                assert!(self.asking.remove(&request), "{request} was answered twice");
                assert!(self.peers.values().any(|peer| peer.id == monolith), "{monolith} is not linked");
                let wanted = self.wanted.remove(&request).unwrap();
                if awaited {
                    self.awaited.insert(request, wanted);
                }
            }
            Effect::Refuse { request, status } => {
                assert!((400..600).contains(&status));
                assert!(self.asking.remove(&request), "{request} was answered twice");
            }
            Effect::Bind { room, monolith } => {
                assert!(self.peers.values().any(|peer| peer.id == monolith), "{monolith} is not linked");
                assert_ne!(self.owners.insert(room, monolith.clone()), Some(monolith), "bound twice");
            }
            Effect::Unbind { room } => assert!(self.owners.remove(&room).is_some(), "{room} was not bound"),
            Effect::Claim(ClaimCommand::Ask { room, number, monolith, .. }) => {
                assert!(self.peers.values().any(|peer| peer.id == monolith), "{monolith} is not linked");
                assert!(!self.owners.contains_key(&room), "{room} is there already");
                self.claims.insert(room, (number, monolith, self.w.now));
            }
            Effect::Claim(ClaimCommand::Renew { rooms }) => {
                for (room, RoomLoad { monolith, .. }) in rooms {
                    assert!(self.peers.values().any(|peer| peer.id == monolith), "{room}: {monolith} is not linked");
                }
            }
            Effect::Claim(ClaimCommand::Release { .. }) => {}
            Effect::Story(note) => assert!(note.at <= self.w.now, "{note:?} is of the future"),
        }
    }

    pub(super) fn request(&mut self, room: Option<usize>, create: bool) {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.asking.insert(request);
        self.wanted.insert(request, (room, create));
        let name = room.map(|room| RoomName::parse(ROOMS[room % ROOMS.len()]).unwrap());
        let cause = if create { Cause::Create } else { Cause::Http };
        self.feed(Event::Request { request, room: name, cause, region: None });
    }

    pub(super) fn outcome(&mut self, request: RequestId, kind: u8) {
        let Some((room, create)) = self.awaited.remove(&request) else {
            // It gives up while it waits.
            self.asking.remove(&request);
            self.wanted.remove(&request);
            self.feed(Event::RequestDone { request, outcome: RequestOutcome::Failed });
            return;
        };
        let name = RoomName::reported(room.map_or("made-up", |room| ROOMS[room % ROOMS.len()]));
        let outcome = match kind {
            0..=2 if create => RequestOutcome::Created(name),
            0..=2 => RequestOutcome::Status(200),
            3 | 4 => RequestOutcome::Status(404),
            5 => RequestOutcome::Status(500),
            6 => RequestOutcome::NotSent,
            _ => RequestOutcome::Failed,
        };
        let again = matches!(outcome, RequestOutcome::NotSent);
        self.feed(Event::RequestDone { request, outcome });
        if again {
            self.request(room, create);
        }
    }

    pub(super) fn link_up(&mut self, monolith: u64) {
        let id = super::monolith(monolith);
        if self.peers.values().any(|peer| peer.id == id) {
            return;
        }
        let link = self.next_link;
        self.next_link += 1;
        let peer = Peer { id, members: BTreeMap::new(), loaded: BTreeMap::new(), before: BTreeMap::new() };
        self.peers.insert(link, peer);
        let (endpoint, id) = (endpoint(monolith), super::monolith(monolith));
        self.feed(Event::LinkUp { link: LinkId(link), endpoint, monolith: id, region: Region::from("ewr") });
    }

    pub(super) fn link_down(&mut self, link: u64) {
        if let Some(peer) = self.peers.remove(&link) {
            self.ended.extend(peer.members.keys().map(|(client, attachment)| (link, *client, *attachment)));
            self.watched.retain(|(other, _)| *other != link);
            // It tells its members before it goes.
            peer.members.keys().for_each(|(client, _)| {
                self.speaking.remove(client);
            });
        }
        self.feed(Event::LinkDown { link: LinkId(link) });
    }

    pub(super) fn members(&self) -> Vec<(u64, ClientId, Attachment)> {
        let of = |(link, peer): (&u64, &Peer)| peer.members.keys().map(|(c, a)| (*link, *c, *a)).collect::<Vec<_>>();
        self.peers.iter().flat_map(of).collect()
    }

    pub(super) fn answer(&mut self, link: u64, client: ClientId, attachment: Attachment) {
        let member = self.peers.get_mut(&link).unwrap().members.get_mut(&(client, attachment)).unwrap();
        let first = !std::mem::replace(&mut member.answered, true);
        if first && member.report {
            self.feed(Event::Answered { link: LinkId(link), client, attachment });
        }
    }

    pub(super) fn kick(&mut self, link: u64, client: ClientId, attachment: Attachment, code: u16) {
        let member = self.peers.get_mut(&link).unwrap().members.remove(&(client, attachment)).unwrap();
        self.ended.push((link, client, attachment));
        self.speaking.remove(&client);
        let code = CloseCode::sendable(code).unwrap();
        // Whoever was in the room a moment ago is closed when its turn comes.
        let later = member.rejoin && code == CloseCode::ROOM_NOT_FOUND;
        if code != CloseCode::AWAY && !later {
            self.clients.remove(&client);
        }
        self.feed(Event::Kicked { link: LinkId(link), client, attachment, code });
        if later && member.answered {
            // Its link has closed it, and it leaves.
            self.clients.remove(&client);
            self.feed(Event::Leave { client, told: None });
        }
    }

    pub(super) fn unload(&mut self, link: u64, room: RoomKey, reason: UnloadReason) {
        let peer = self.peers.get_mut(&link).unwrap();
        peer.loaded.remove(&room);
        // Whoever had no frame is in flight, and its first frame is told from now on.
        let mut detached = Vec::new();
        for ((client, attachment), member) in &mut peer.members {
            if member.room == room && member.answered {
                detached.push((*client, *attachment));
                self.speaking.remove(client);
            } else if member.room == room {
                member.report = true;
            }
        }
        self.feed(Event::Unloaded { link: LinkId(link), room, reason, detached });
    }

    pub(super) fn gossip(&mut self, link: u64, vanished: bool) {
        let peer = self.peers.get_mut(&link).unwrap();
        // Some of it has vanished without a word since the last one.
        if vanished {
            peer.loaded.retain(|key, _| peer.before.contains_key(key));
        }
        peer.before = peer.loaded.clone();
        let reports = peer.loaded.values().map(|load| report((&load.spelling, load.epoch))).collect();
        self.feed(Event::Gossip { link: LinkId(link), rooms: reports });
    }

    /// A link says that a room that it watches is quiet, or that it has watched it for long enough.
    pub(super) fn quiet(&mut self, index: usize, disturbed: bool) {
        if self.watched.is_empty() {
            return;
        }
        let (link, room) = self.watched.swap_remove(index % self.watched.len());
        self.feed(Event::Quiet { link: LinkId(link), room, disturbed });
    }

    /// Lets time pass with nobody doing anything, then checks that nothing waits any more.
    pub(super) fn settle(&mut self) {
        self.w.cluster.configure(Settings { rebalance: None, ..model_settings(self.seamless) });
        for _ in 0..60 {
            self.w.now += SECOND;
            self.feed(Event::Tick);
            while !self.watched.is_empty() {
                self.quiet(0, false);
            }
        }
        // Requests that were sent are answered some time, whatever the Monolith said of the room.
        for request in self.awaited.keys().copied().collect::<Vec<_>>() {
            self.outcome(request, 7);
        }
        for _ in 0..30 {
            self.w.now += SECOND;
            self.feed(Event::Tick);
        }
        assert_eq!((self.w.cluster.waiting(), &self.asking), (0, &BTreeSet::new()), "somebody waits for ever");
        let serving = self.w.cluster.view().rows().iter().any(|row| row.serves());
        assert_eq!(self.w.cluster.held(), self.knocking.len());
        assert!(!serving || (self.knocking.is_empty() && self.w.cluster.is_open()), "somebody is held for ever");
        for client in std::mem::take(&mut self.knocking) {
            self.feed(Event::Withdraw { client });
        }
        let members = self.members();
        assert_eq!(members.len(), self.clients.len(), "every client is a member somewhere");
        for peer in self.peers.values() {
            for ((client, _), member) in &peer.members {
                assert!(member.open, "{client} is held for ever");
                assert_eq!(self.owners.get(&member.room), Some(&peer.id));
            }
        }
        // Then everyone goes, and what is left is what Monoliths reported.
        assert_eq!(self.w.cluster.handing_over(), 0);
        for client in self.clients.clone() {
            self.clients.remove(&client);
            self.feed(Event::Leave { client, told: None });
        }
        self.w.now += 60 * SECOND;
        self.feed(Event::Tick);
        for row in self.w.cluster.view().rows() {
            assert_eq!((row.clients, row.pending), (0, 0));
        }
        for (room, owner) in &self.owners {
            let peer = self.peers.values().find(|peer| peer.id == *owner).unwrap();
            assert!(peer.loaded.contains_key(room), "{room} is bound to {owner}, which never reported it");
        }
        assert_eq!(self.w.cluster.size().0, self.owners.len(), "rooms that nobody has and nobody wants");
        for link in self.peers.keys().copied().collect::<Vec<_>>() {
            self.link_down(link);
        }
        assert_eq!((self.w.cluster.size(), self.w.cluster.next_deadline()), ((0, 0), None));
    }
}
