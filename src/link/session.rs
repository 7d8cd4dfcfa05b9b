//! One linked Monolith: the read loop with its fan-out, the write loop, heartbeats and commands.

mod opening;
mod unloading;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::SplitStream;
use futures_util::{FutureExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};
use tracing::{debug, info, warn};

use super::departed::Departed;
use super::handover::{HandOvers, Leaving};
use super::heart::{Beat, Heart};
use super::inbox::Line;
use super::members::{Answer, Delivered, Joining, Member, Members, lower_case};
use super::outbox::{Outbox, Outgoing};
use super::rejoining::Rejoining;
use super::stats::{LinkStats, count};
use super::tap::{Direction, TapKind};
use super::unread::Unread;
use super::writer::write_loop;
use super::{Command, LinkContext, LinkSettings, Report};
use crate::model::event::Event;
use crate::model::policy::MonolithState;
use crate::model::wire::{self, Frame, FromMonolith, Gossip, Init, Recipient, RoomMessage, RoomReport};
use crate::model::{CloseCode, Hashing, LinkId, MemberId, RoomKey};

/// How a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// Another link leads to the same Monolith.
    Refused,
    /// usher stops.
    Stopped,
    /// Discovery dropped the endpoint and nobody was left on it, or it took too long.
    Drained,
    /// Anything else.
    Lost(&'static str),
}

/// The state of one link.
pub(super) struct Session {
    link: LinkId,
    init: Init,
    context: LinkContext,
    outbox: Arc<Outbox>,
    /// For those who leave by themselves.
    commands: mpsc::UnboundedSender<Command>,
    members: Members,
    /// What the Monolith says it has loaded, as of the last frame that was read.
    loaded: HashMap<RoomKey, RoomReport, Hashing>,
    /// Those of them that are about to go, since a member was sent away for it.
    going: HashSet<RoomKey, Hashing>,
    departed: Departed,
    leaving: HandOvers,
    unread: Unread,
    rejoining: Rejoining,
    join_answer: Duration,
    drain: Duration,
    heartbeat: Heart,
    stats: Arc<LinkStats>,
    /// Pings of the Monolith since the last beat.
    pings: u32,
    /// Lifecycle events of the frame at hand; they are sent before the next one is read.
    events: VecDeque<Event>,
    /// Set from the moment at which the link is registered until its end has been reported.
    writer: Option<AbortHandle>,
}

/// Pings that a Monolith may send between two of our heartbeats. The real one sends none.
const PINGS: u32 = 1000;
/// Why a link is lost whose Monolith has closed it in good order, as one does that is stopped.
const GOODBYE: &str = "closed by the monolith";
/// Members that are attached before whatever else is due has its turn: a crowd may want in at once, and each of them
/// wakes a task.
const CROWD: u32 = 8;
/// How long the close handshake of a link may take.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

impl Session {
    /// A session, and the commands that it is to be run with.
    pub(super) fn new(
        link: LinkId,
        init: Init,
        settings: &LinkSettings,
        context: LinkContext,
    ) -> (Self, mpsc::UnboundedReceiver<Command>) {
        let (commands, inbox) = mpsc::unbounded_channel();
        let outbox = Arc::new(Outbox::new(init.id.clone(), settings.link_queue));
        let stats = Arc::new(LinkStats::default());
        stats.set_outbox(outbox.clone());
        let members = Members::default();
        stats.set_activities(members.activities());
        let session = Self {
            link,
            init,
            context,
            outbox,
            commands,
            members,
            loaded: HashMap::default(),
            going: HashSet::default(),
            departed: Departed::default(),
            leaving: HandOvers::default(),
            unread: Unread::default(),
            rejoining: Rejoining::default(),
            join_answer: settings.timeouts.join_answer,
            drain: settings.timeouts.drain,
            heartbeat: Heart::new(settings.heartbeat.interval, settings.heartbeat.missed),
            stats,
            pings: 0,
            events: VecDeque::new(),
            writer: None,
        };
        (session, inbox)
    }

    /// Runs until the link ends, and reports the end if it was registered.
    pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Command>,
        stream: WebSocketStream<S>,
        http: SocketAddr,
        endpoint: Arc<str>,
        listed: &mut watch::Receiver<bool>,
    ) -> End {
        let up = Report::Up {
            link: self.link,
            endpoint: endpoint.clone(),
            monolith: self.init.id.clone(),
            region: self.init.region.clone(),
            http,
            commands: self.commands.clone(),
            stats: self.stats.clone(),
        };
        if self.context.reports.send(up).await.is_err() {
            return End::Stopped;
        }
        match inbox.recv().await {
            Some(Command::Accept) => {}
            Some(Command::Refuse) => return End::Refused,
            _ => return End::Stopped,
        }
        info!(%endpoint, monolith = %self.init.id, region = %self.init.region, link = %self.link, "linked");
        let (sink, source) = stream.split();
        let writer = tokio::spawn(write_loop(self.outbox.clone(), sink, self.context.counters.clone()));
        self.writer = Some(writer.abort_handle());
        let end = self.read_loop(source, &mut inbox, listed).await;
        match end {
            // Nobody reads any more. In this order: whoever takes back what was not written finds all of it.
            End::Lost(_) => self.outbox.end(),
            End::Refused | End::Stopped | End::Drained => self.outbox.push_control(Outgoing::Close),
        }
        self.members.end();
        let reports = self.context.reports.clone();
        // What the last frame has said: that its last room has gone is why a link that drains ends.
        while let Some(event) = self.events.pop_front() {
            if reports.send(Report::Event(event)).await.is_err() {
                break;
            }
        }
        if matches!(end, End::Lost(GOODBYE)) {
            // It has said so: the end of this link is no sign of trouble.
            let leaving = Event::LinkState { link: self.link, state: MonolithState::Draining };
            // Without a control thread there is nobody left to be told.
            let _ = reports.send(Report::Event(leaving)).await;
        }
        let down = Report::Event(Event::LinkDown { link: self.link });
        // The members are told through the control thread; a link that is gone owes nobody a leave.
        if reports.send(down).await.is_err() {
            debug!("the control thread has ended before its links");
        }
        self.writer = None;
        let mut writer = writer;
        if tokio::time::timeout(CLOSE_PATIENCE, &mut writer).await.is_err() {
            writer.abort();
        }
        self.outbox.close();
        end
    }

    async fn read_loop<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        mut source: SplitStream<WebSocketStream<S>>,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        listed: &mut watch::Receiver<bool>,
    ) -> End {
        // The first one at once: policies know the round trip of a new Monolith.
        let mut beat = tokio::time::interval(self.heartbeat.interval);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut draining: Option<Instant> = None;
        let mut attached = 0;
        loop {
            while let Some(event) = self.events.pop_front() {
                if self.context.reports.send(Report::Event(event)).await.is_err() {
                    return End::Stopped;
                }
            }
            let deadline = [draining, self.leaving.next_due(), self.rejoining.next_due()].into_iter().flatten().min();
            if attached >= CROWD {
                attached = 0;
                tokio::task::yield_now().await;
                // One message of the rooms that are there already comes before the rest of the crowd.
                if let Some(message) = source.next().now_or_never() {
                    if let Err(end) = self.received(message, draining.is_some()) {
                        return end;
                    }
                    continue;
                }
            }
            tokio::select! {
                biased;
                // Commands first: a member that leaves hears no more.
                command = commands.recv() => match command {
                    Some(Command::Stop) | None => return End::Stopped,
                    Some(command) => {
                        attached += u32::from(matches!(command, Command::Attach { .. }));
                        self.command(command);
                        if self.outbox.is_choked() {
                            return End::Lost("reads nothing");
                        }
                        if draining.is_some() && self.is_done() {
                            return End::Drained;
                        }
                    }
                },
                _ = beat.tick() => {
                    if let Err(end) = self.beat() {
                        return end;
                    }
                }
                changed = listed.changed() => {
                    if changed.is_err() {
                        return End::Stopped;
                    }
                    let listed = *listed.borrow_and_update();
                    draining = (!listed).then(|| Instant::now() + self.drain);
                    let state = if listed { MonolithState::Up } else { MonolithState::Draining };
                    info!(monolith = %self.init.id, listed, "discovery changed its mind about a linked monolith");
                    self.heartbeat.draining = !listed;
                    self.events.push_back(Event::LinkState { link: self.link, state });
                    if !listed && self.is_done() {
                        return End::Drained;
                    }
                }
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    if draining.is_some_and(|until| until <= Instant::now()) {
                        return End::Drained;
                    }
                    self.look_at_those_leaving();
                    self.open_unanswered();
                }
                message = source.next() => {
                    if let Err(end) = self.received(message, draining.is_some()) {
                        return end;
                    }
                }
            }
        }
    }

    /// Whether a link that discovery has dropped may end: nobody is left, and no room is between its members and its end,
    /// which is when it may be elsewhere.
    fn is_done(&self) -> bool {
        self.members.len() == 0 && self.going.is_empty()
    }

    fn received(&mut self, message: Option<tungstenite::Result<Message>>, draining: bool) -> Result<(), End> {
        match message {
            Some(Ok(message)) => self.message(message)?,
            Some(Err(error)) => {
                debug!(monolith = %self.init.id, %error, "link broke");
                return Err(End::Lost("broken"));
            }
            None => return Err(End::Lost("closed")),
        }
        if draining && self.is_done() { Err(End::Drained) } else { Ok(()) }
    }

    fn message(&mut self, message: Message) -> Result<(), End> {
        if let Some(missed) = self.heartbeat.heard() {
            info!(monolith = %self.init.id, missed, "link answers again");
            self.events.push_back(Event::LinkState { link: self.link, state: MonolithState::Up });
        }
        match message {
            Message::Text(text) => self.frame(&text),
            // The real thing reads binary frames that hold JSON like text, and so do we.
            Message::Binary(bytes) => match std::str::from_utf8(&bytes) {
                Ok(text) => self.frame(text),
                Err(_) => count(&self.context.counters.bad_frames),
            },
            Message::Pong(payload) => {
                self.departed.pong(&payload);
                self.unread.pong(&payload).into_iter().for_each(|(client, at)| self.open(client, at));
                if let Some(rtt) = self.heartbeat.answered(&payload) {
                    self.stats.set_rtt(rtt);
                }
            }
            Message::Close(frame) => {
                let code = frame.as_ref().map(|frame| u16::from(frame.code));
                info!(monolith = %self.init.id, ?code, "monolith closes its link");
                return Err(End::Lost(GOODBYE));
            }
            // The answers wait in the socket, outside of every bound, for one that sends and does not read.
            Message::Ping(_) => {
                self.pings += 1;
                if self.pings > PINGS {
                    return Err(End::Lost("floods pings"));
                }
            }
            Message::Frame(_) => {}
        }
        Ok(())
    }

    fn frame(&mut self, text: &str) {
        let counters = self.context.counters.clone();
        count(&counters.frames_in);
        let frame = match Frame::parse(text) {
            Ok(frame) => frame,
            Err(error) => {
                count(&counters.bad_frames);
                debug!(monolith = %self.init.id, %error, "frame ignored");
                return;
            }
        };
        if frame.unknown_fields > 0 {
            counters.unknown_fields.fetch_add(u64::from(frame.unknown_fields), std::sync::atomic::Ordering::Relaxed);
        }
        match frame.message {
            FromMonolith::RoomMessage(message) => self.room_message(&message),
            FromMonolith::Kick { client, code } => self.kick(client, code),
            FromMonolith::Loaded(report) => {
                self.loaded.insert(report.name.key().clone(), report.clone());
                self.events.push_back(Event::Loaded { link: self.link, report });
            }
            FromMonolith::Unloaded { room, reason } => {
                let detached = self.members.unload(room.key());
                let key: RoomKey = room.key().clone();
                let name = self.loaded.remove(&key).map_or(room, |gone| gone.name);
                self.has_gone(&key, &name);
                self.events.push_back(Event::Unloaded { link: self.link, room: key, reason, detached });
            }
            FromMonolith::Gossip(gossip) => self.gossip(gossip),
            FromMonolith::Init(_) => warn!(monolith = %self.init.id, "a second init is ignored"),
            FromMonolith::Unknown => count(&counters.unknown_types),
        }
    }

    fn gossip(&mut self, gossip: Gossip<'_>) {
        let rooms = match gossip.reports(|name| self.loaded.get(&*lower_case(name))) {
            Ok((rooms, 0)) => rooms,
            Ok((mut rooms, skipped)) => {
                self.context.counters.bad_frames.fetch_add(skipped, std::sync::atomic::Ordering::Relaxed);
                // Whatever could not be read may be any of the rooms that are known: none of them is missing for certain.
                let mut known = std::mem::take(&mut self.loaded);
                for report in &rooms {
                    known.remove(report.name.key());
                }
                rooms.extend(known.into_values());
                rooms
            }
            Err(error) => {
                count(&self.context.counters.bad_frames);
                debug!(monolith = %self.init.id, %error, "gossip ignored");
                return;
            }
        };
        let loaded = rooms.iter().map(|report| (report.name.key().clone(), report.clone())).collect();
        let before = std::mem::replace(&mut self.loaded, loaded);
        for (room, gone) in &before {
            if !self.loaded.contains_key(room) {
                self.has_gone(room, &gone.name);
            }
        }
        self.events.push_back(Event::Gossip { link: self.link, rooms });
    }

    fn room_message(&mut self, message: &RoomMessage<'_>) {
        let counters = &self.context.counters;
        let mut answered = Vec::new();
        let mut first = |member: &Member| answered.push((member.client, member.attachment));
        // One copy per message, shared by every delivery: a slice of the frame would keep the whole read buffer alive.
        let payload = || Utf8Bytes::from(message.payload);
        let (delivered, kind) = match message.to {
            Recipient::Everyone => {
                if self.members.of_room(&message.room).is_empty() {
                    count(&counters.unknown_members);
                    return;
                }
                (self.members.broadcast(&message.room, &payload(), first), TapKind::Broadcast)
            }
            Recipient::Member(id) => match self.members.unicast(id, payload()) {
                Some((delivered, member)) => {
                    if let Some(member) = member {
                        first(member);
                    }
                    (Some(delivered), TapKind::Ws)
                }
                None => {
                    if self.departed.heard(id) {
                        debug!(monolith = %self.init.id, "a member was let in after it had left");
                        count(&counters.late_answers);
                        self.outbox.push_control(Outgoing::Text(wire::leave(id)));
                    }
                    (None, TapKind::Ws)
                }
            },
            Recipient::Nobody => (None, TapKind::Ws),
        };
        let Some(Delivered { queued, before_answer, overflowed }) = delivered else {
            count(&counters.unknown_members);
            return;
        };
        use std::sync::atomic::Ordering::Relaxed;
        counters.deliveries.fetch_add(queued, Relaxed);
        if before_answer > 0 {
            counters.before_answer.fetch_add(before_answer, Relaxed);
        }
        if overflowed > 0 {
            counters.overflows.fetch_add(overflowed, Relaxed);
        }
        self.context.tap.emit(kind, &self.init.id, Direction::Rx);
        for (client, attachment) in answered {
            self.answered(client, attachment);
        }
    }

    fn kick(&mut self, id: Option<MemberId>, code: CloseCode) {
        let room = id.and_then(|id| self.members.room_of(id)).cloned();
        let Some(member) = id.and_then(|id| self.members.kick(id)) else {
            if let Some(id) = id {
                self.departed.kicked(id);
            }
            count(&self.context.counters.unknown_members);
            return;
        };
        match code {
            // The Monolith is going, or the room is: what becomes of the client is decided where that is known.
            CloseCode::AWAY => {
                self.going.extend(room.filter(|room| self.loaded.contains_key(room)));
                member.inbox.detached(member.attachment);
            }
            // It was in this room a moment ago, so the user has made no mistake, and is closed when its turn comes.
            CloseCode::ROOM_NOT_FOUND if member.is_rejoining() => member.inbox.detached(member.attachment),
            code => member.inbox.close(code),
        }
        self.events.push_back(Event::Kicked {
            link: self.link,
            client: member.client,
            attachment: member.attachment,
            code,
        });
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Attach { client, attachment, room, token, inbox, open, report, rejoin } => {
                // Subscribing and queueing the join are one step, so no answer can come before the subscription, and
                // the client's own frames can only follow its join.
                // It meets an `unload` if the room has gone, and the control thread has not heard that yet.
                let waits = open && (rejoin || !self.loaded.contains_key(room.key()));
                let joining = Joining { report: report || waits, rejoin, patience: self.join_answer };
                let member = Member::joining(client, attachment, inbox.clone(), joining);
                let id = member.id;
                let activity = self.members.insert(room.key().clone(), member);
                if waits {
                    self.rejoining.push(Instant::now() + self.join_answer, client, attachment);
                }
                let open = open && !waits && !self.unread.holds(room.key(), client, attachment);
                self.outbox.push_control(Outgoing::Text(wire::join(room.spelling(), id, &token.0)));
                let (outbox, commands) = (self.outbox.clone(), self.commands.clone());
                #[cfg(test)]
                inbox.joined_over(self.link);
                inbox.attached(attachment, Line { member: id, outbox, commands, activity }, open);
            }
            Command::Open { client, attachment } => self.let_on(client, attachment),
            Command::Detach { client, attachment } => {
                let id = client.member(attachment);
                let unanswered = self.members.get_mut(id).is_some_and(|member| member.answer != Answer::Heard);
                if self.members.remove(id) {
                    self.outbox.push_control(Outgoing::Text(wire::leave(id)));
                    if unanswered {
                        self.outbox.push_control(Outgoing::Ping(self.departed.left(id)));
                    }
                }
            }
            Command::Watch { room, quiet, at_most } => self.leaving.watch(room, quiet, at_most),
            Command::Unload { room, epoch, why } => self.let_go(Leaving { room, epoch }, why),
            Command::Held { room, number } => self.all_hold(&room, number),
            Command::Accept | Command::Refuse | Command::Stop => {}
        }
    }

    fn beat(&mut self) -> Result<(), End> {
        self.pings = 0;
        match self.heartbeat.beat() {
            Beat::Fine => {}
            Beat::Suspect => {
                warn!(monolith = %self.init.id, "link misses heartbeats: no new rooms until it answers");
                self.events.push_back(Event::LinkState { link: self.link, state: MonolithState::Suspect });
            }
            Beat::Dead => return Err(End::Lost("missed heartbeats")),
        }
        self.outbox.push_control(Outgoing::Ping(self.heartbeat.number));
        Ok(())
    }
}

impl Drop for Session {
    /// A session that breaks says what one says that ends: the control thread would refuse every later link to this Monolith
    /// as the second one, and its members would wait for ever.
    fn drop(&mut self) {
        let Some(writer) = self.writer.take() else { return };
        warn!(monolith = %self.init.id, link = %self.link, "the session of a link broke off");
        count(&self.context.counters.lost);
        // In this order: whoever takes back what was not written finds all of it.
        self.outbox.end();
        writer.abort();
        self.members.end();
        self.outbox.close();
        let down = Report::Event(Event::LinkDown { link: self.link });
        if let Err(TrySendError::Full(down)) = self.context.reports.try_send(down)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let reports = self.context.reports.clone();
            runtime.spawn(async move {
                // Without a control thread there is nobody left to be told.
                let _ = reports.send(down).await;
            });
        }
    }
}

#[cfg(test)]
#[path = "session_test.rs"]
mod tests;
