//! One client's WebSocket: `auth` first, then everything both ways, in order.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error as WsError};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tracing::debug;

#[cfg(test)]
use super::broken::{self, Rule};
use super::clients::{ClientCounters, Clients};
use super::handshakes::Handshake;
use crate::config::{Heartbeat, QueueLimit};
use crate::control::Control;
use crate::link::Command;
use crate::link::inbox::{Inbox, Item, Line};
use crate::link::outbox::{Closed, Refused};
use crate::link::stats::count;
use crate::link::tap::{Direction, Tap, TapKind};
use crate::model::event::Token;
use crate::model::hello::{self, Hello};
use crate::model::wire;
use crate::model::{Attachment, ClientId, CloseCode, Region, RoomName};

/// How long a client may take to answer a close frame.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// Bytes that are gathered for one write. Larger batches would only make the first of them wait.
const WRITE_BATCH: usize = 16 << 10;
/// What a socket reads at once: an idle client costs no more than this.
const READ_BUFFER: usize = 1 << 10;

/// What a client asked for in its upgrade.
#[derive(Debug)]
pub struct RoomRequest {
    /// The client.
    pub client: ClientId,
    /// The room.
    pub room: RoomName,
    /// The region at whose edge it arrived.
    pub region: Option<Region>,
    /// Whether it says that it comes back.
    pub reconnect: bool,
    /// Its place among those that have not said who they are.
    pub handshake: Handshake,
}

/// What every client's task shares.
pub struct SocketContext {
    /// The way to the control thread.
    pub control: Control,
    /// The register of clients.
    pub clients: Arc<Clients>,
    /// The event stream.
    pub tap: Arc<Tap>,
}

/// What a client's task takes from the configuration as it was when it came.
#[derive(Clone, Copy, Debug)]
pub struct SocketSettings {
    /// For the first frame.
    pub auth: Duration,
    /// Bytes of one message.
    pub message: usize,
    /// What may be sent before the join is confirmed, and while the room changes its Monolith.
    pub held: QueueLimit,
    /// Pings.
    pub heartbeat: Heartbeat,
}

/// How tungstenite is to treat a client.
pub fn websocket_config(settings: &SocketSettings) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BATCH)
        .max_message_size(Some(settings.message))
        .max_frame_size(Some(settings.message))
}

/// Closes a socket that should not have been opened, such as one for a name that is no room.
pub async fn turn_away<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: WebSocketStream<S>,
    code: CloseCode,
    reason: &str,
) {
    close(&mut socket, code, reason).await;
}

/// Serves one client until it has gone. `places` are kept as long: its place in the register and in the count of
/// sockets.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin, P>(
    socket: WebSocketStream<S>,
    request: RoomRequest,
    inbox: Arc<Inbox>,
    places: P,
    settings: SocketSettings,
    context: Arc<SocketContext>,
) {
    let mut task = ClientTask {
        client: request.client,
        socket,
        inbox,
        phase: Phase::AwaitingAuth(request),
        membership: None,
        newest: Attachment(0),
        pending: None,
        held: VecDeque::new(),
        held_bytes: 0,
        silent: 0,
        settings,
        context,
    };
    let end = task.run().await;
    debug!(client = %task.client, ?end, "client ends");
    task.leave();
    let ClientTask { mut socket, pending, context, .. } = task;
    drop(pending);
    match end {
        End::Close(code) => close(&mut socket, code, code.reason()).await,
        End::Answer => {
            // tungstenite has queued the answer to the client's close frame.
            let _ = tokio::time::timeout(CLOSE_PATIENCE, socket.flush()).await;
        }
        End::Vanished => count(&context.clients.counters.vanished),
        End::Broken => {}
    }
    drop(places);
}

/// Where a client is in its life.
enum Phase {
    /// Its first frame has not come.
    AwaitingAuth(RoomRequest),
    /// No Monolith has confirmed its room: what it sends is held.
    Joining,
    /// What it sends goes on.
    Open,
    /// Its room is leaving its Monolith, or has lost it: what it sends is held for the next one.
    HandingOver,
}

/// What a client is at a Monolith.
struct Membership {
    attachment: Attachment,
    line: Line,
}

/// How a client ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// We close it.
    Close(CloseCode),
    /// It closed.
    Answer,
    /// It does not answer.
    Vanished,
    /// Its socket is gone.
    Broken,
}

/// A message that waits for room in a Monolith's queue. When this is dropped before it is done, nothing was sent.
struct Pending {
    text: Utf8Bytes,
    sending: Pin<Box<dyn Future<Output = Result<(), Closed>> + Send>>,
}

struct ClientTask<S> {
    client: ClientId,
    socket: WebSocketStream<S>,
    inbox: Arc<Inbox>,
    phase: Phase,
    membership: Option<Membership>,
    /// The last attachment that began or ended. Two links announce theirs in no order of each other's.
    newest: Attachment,
    /// Until this has found room, nothing more is read from the client.
    pending: Option<Pending>,
    held: VecDeque<Utf8Bytes>,
    held_bytes: usize,
    /// Heartbeats that went unanswered.
    silent: u32,
    settings: SocketSettings,
    context: Arc<SocketContext>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ClientTask<S> {
    async fn run(&mut self) -> End {
        let timer = tokio::time::sleep(self.settings.auth);
        tokio::pin!(timer);
        loop {
            let step = tokio::select! {
                biased;
                item = self.inbox.next() => self.items(item).await,
                sent = async { Some(self.pending.as_mut()?.sending.as_mut().await) }, if self.pending.is_some() => {
                    self.sent(sent);
                    Ok(())
                }
                // Before what the client sends: one that sends without end would put off every deadline.
                () = &mut timer => self.time(timer.as_mut()).await,
                message = self.socket.next(), if self.pending.is_none() => {
                    let ping = matches!(message, Some(Ok(Message::Ping(_))));
                    match self.message(message, timer.as_mut()) {
                        // Its answer goes out before more is read: the answers to a client that only sends would pile up.
                        Ok(()) if ping => self.flush().await,
                        step => step,
                    }
                }
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// The Monolith hears of it before the client has finished its goodbye: where the room is up, straight through the
    /// link, and the control thread need not be woken for it.
    fn leave(&mut self) {
        let (client, control) = (self.client, &self.context.control);
        match (&self.phase, self.membership.take()) {
            (Phase::Open, Some(Membership { attachment, line: Line { commands, .. } })) => {
                // The control thread's list comes first: what the link reports from now on finds it up to date.
                control.left(client, attachment);
                // A link that has ended owes nobody a leave.
                let _ = commands.send(Command::Detach { client, attachment });
            }
            _ => control.leave(client),
        }
    }

    fn sent(&mut self, sent: Option<Result<(), Closed>>) {
        match sent {
            // A link that is gone says so through the inbox, and what becomes of the client.
            Some(Err(Closed)) => self.hold(),
            Some(Ok(())) | None => {
                self.pending = None;
                self.pump();
            }
        }
    }

    /// From now on what the client sends is kept, after what has not found room yet.
    fn hold(&mut self) {
        if let Some(Pending { text, .. }) = self.pending.take() {
            self.held_bytes += text.len();
            self.held.push_front(text);
        }
        if matches!(self.phase, Phase::Open) {
            self.phase = Phase::HandingOver;
        }
    }

    /// The membership is over and the client stays. What stands unwritten in the queue of the Monolith that had it comes
    /// back, before everything that is held.
    fn detached(&mut self, attachment: Attachment) -> Result<(), End> {
        self.newest = self.newest.max(attachment);
        // The end of one that was never announced, since its link is slower than the decision to leave it, is the end of the
        // one before it as well.
        let Some(Membership { line, .. }) = self.membership.take_if(|present| present.attachment <= attachment) else {
            return Ok(());
        };
        self.hold();
        let unsent = line.outbox.reclaim(line.member);
        self.counters().handover_reclaimed.fetch_add(unsent.len() as u64, Relaxed);
        for frame in unsent.into_iter().rev() {
            let text = Utf8Bytes::from(wire::said(&frame));
            self.held_bytes += text.len();
            self.held.push_front(text);
        }
        let limit = self.settings.held;
        if self.held.len() > limit.messages || self.held_bytes > limit.bytes.max(self.settings.message) {
            return Err(self.too_much());
        }
        Ok(())
    }

    /// The client has sent more than is kept for it.
    fn too_much(&self) -> End {
        count(&self.counters().held_too_much);
        // Who joins may have sent too much; whose room changes its Monolith has done nothing wrong.
        let handing_over = matches!(self.phase, Phase::HandingOver);
        End::Close(if handing_over { CloseCode::RESTART } else { CloseCode::TRY_AGAIN })
    }

    /// Writes what has come for the client, as much as there is, with one flush.
    async fn items(&mut self, first: Item) -> Result<(), End> {
        let mut next = Some(first);
        let mut dirty = false;
        let mut end = None;
        while let Some(item) = next {
            match item {
                Item::Frame(attachment, frame) => {
                    let present = self.membership.as_ref().map(|membership| membership.attachment);
                    #[cfg(test)]
                    let present = if broken::is(Rule::LateFramesAreDropped) { Some(attachment) } else { present };
                    if present != Some(attachment) {
                        count(&self.counters().stale_frames);
                    } else {
                        dirty = true;
                        self.write(Message::Text(frame)).await?;
                    }
                }
                // One that is over already, or that a newer one has replaced: its link was slower.
                Item::Attached { attachment, .. } if attachment <= self.newest => {}
                Item::Attached { attachment, line, open } => {
                    self.newest = attachment;
                    #[cfg(test)]
                    if broken::is(Rule::HeldInputIsKept) && matches!(self.phase, Phase::HandingOver) {
                        self.held_bytes = 0;
                        self.held.clear();
                    }
                    self.hold();
                    self.membership = Some(Membership { attachment, line });
                    if open {
                        self.open();
                    }
                }
                Item::Open(attachment) => {
                    if self.membership.as_ref().is_some_and(|membership| membership.attachment == attachment) {
                        self.open();
                    }
                }
                Item::Hold(attachment, holding) => {
                    if self.membership.as_ref().is_some_and(|membership| membership.attachment == attachment) {
                        self.hold();
                    }
                    drop(holding);
                }
                Item::Detached(attachment) => self.detached(attachment)?,
                Item::Close(code) => {
                    end = Some(End::Close(code));
                    break;
                }
            }
            next = self.inbox.try_next();
        }
        if dirty {
            self.flush().await?;
        }
        end.map_or(Ok(()), Err)
    }

    fn open(&mut self) {
        #[cfg(test)]
        if broken::is(Rule::HeldInputGoesOnOnce)
            && let Some(text) = self.held.front().cloned()
        {
            self.held_bytes += text.len();
            self.held.push_front(text);
        }
        self.phase = Phase::Open;
        self.pump();
    }

    /// Something came from the client.
    fn message(&mut self, message: Option<Result<Message, WsError>>, timer: Pin<&mut Sleep>) -> Result<(), End> {
        self.silent = 0;
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(end_of(&error)),
            None => return Err(End::Broken),
        };
        match message {
            Message::Text(text) => self.text(text, timer),
            Message::Binary(bytes) => {
                if matches!(self.phase, Phase::AwaitingAuth(_)) {
                    count(&self.counters().unauthenticated);
                    return Err(End::Close(CloseCode::UNSUPPORTED));
                }
                match Utf8Bytes::try_from(bytes) {
                    Ok(text) => self.text(text, timer),
                    Err(_) => {
                        count(&self.counters().dropped_frames);
                        Ok(())
                    }
                }
            }
            Message::Close(_) => Err(End::Answer),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(()),
        }
    }

    fn text(&mut self, text: Utf8Bytes, timer: Pin<&mut Sleep>) -> Result<(), End> {
        if let Phase::AwaitingAuth(_) = &self.phase {
            return self.hello(&text, timer);
        }
        count(&self.counters().messages);
        #[cfg(test)]
        self.inbox.has_read(text.clone());
        if !hello::is_object(&text) {
            count(&self.counters().dropped_frames);
            return Ok(());
        }
        if matches!(self.phase, Phase::Joining | Phase::HandingOver) {
            let limit = self.settings.held;
            if self.held.len() >= limit.messages || self.held_bytes + text.len() > limit.bytes {
                return Err(self.too_much());
            }
        }
        if matches!(self.phase, Phase::HandingOver) {
            count(&self.counters().handover_held);
        }
        self.held_bytes += text.len();
        self.held.push_back(text);
        self.pump();
        Ok(())
    }

    fn hello(&mut self, text: &str, timer: Pin<&mut Sleep>) -> Result<(), End> {
        let token = match Hello::parse(text) {
            Hello::Auth(token) => Token(token.into()),
            Hello::NoToken => {
                count(&self.counters().unauthenticated);
                return Err(End::Close(CloseCode::MISSING_TOKEN));
            }
            Hello::NotJson => {
                count(&self.counters().unauthenticated);
                return Err(End::Close(CloseCode::PROTOCOL));
            }
        };
        let Phase::AwaitingAuth(request) = std::mem::replace(&mut self.phase, Phase::Joining) else { return Ok(()) };
        let RoomRequest { client, room, region, reconnect, handshake } = request;
        drop(handshake);
        timer.reset(Instant::now() + self.settings.heartbeat.interval);
        self.context
            .control
            .join(client, room, token, region, reconnect, self.inbox.clone())
            .map_err(|_| End::Close(CloseCode::AWAY))
    }

    /// Sends on what may go: in order, and no further than the Monolith's queue has room.
    fn pump(&mut self) {
        let (Phase::Open, Some(Membership { line, .. })) = (&self.phase, &self.membership) else { return };
        if !self.held.is_empty() {
            line.activity.note();
        }
        let mut ended = false;
        while self.pending.is_none()
            && let Some(text) = self.held.pop_front()
        {
            #[cfg(test)]
            self.inbox.has_given(text.clone());
            match line.outbox.try_send(line.member, wire::client_message(line.member, &text)) {
                Ok(()) => {}
                Err(Refused::Full(frame)) => {
                    let (outbox, member) = (line.outbox.clone(), line.member);
                    let sending = Box::pin(async move { outbox.send(member, frame).await });
                    self.pending = Some(Pending { text: text.clone(), sending });
                }
                Err(Refused::Closed) => {
                    self.held.push_front(text);
                    ended = true;
                    break;
                }
            }
            self.held_bytes -= text.len();
            self.context.tap.emit(TapKind::Ws, line.outbox.monolith(), Direction::Tx);
        }
        if ended {
            // A link that is gone says so through the inbox, and what becomes of the client.
            self.hold();
        }
        if self.held.is_empty() {
            self.held_bytes = 0;
            self.held = VecDeque::new();
        }
    }

    /// The timer of this phase has run out.
    async fn time(&mut self, timer: Pin<&mut Sleep>) -> Result<(), End> {
        if let Phase::AwaitingAuth(_) = self.phase {
            count(&self.counters().unauthenticated);
            return Err(End::Close(CloseCode::MISSING_TOKEN));
        }
        if self.silent >= self.settings.heartbeat.missed {
            return Err(End::Vanished);
        }
        self.silent += 1;
        timer.reset(Instant::now() + self.settings.heartbeat.interval);
        self.write(Message::Ping(tokio_tungstenite::tungstenite::Bytes::new())).await?;
        self.flush().await
    }

    /// Queues one message; a full socket makes it wait.
    async fn write(&mut self, message: Message) -> Result<(), End> {
        let (limit, inbox) = (self.write_limit(), self.inbox.clone());
        let feed = self.socket.feed(message);
        tokio::pin!(feed);
        // Nearly every message only goes into the buffer: the races of a slow write are set up when there is one.
        match futures_util::poll!(feed.as_mut()) {
            std::task::Poll::Ready(result) => result.map_err(|error| end_of(&error)),
            std::task::Poll::Pending => bounded(limit, &inbox, feed).await,
        }
    }

    async fn flush(&mut self) -> Result<(), End> {
        let (limit, inbox) = (self.write_limit(), self.inbox.clone());
        let flush = self.socket.flush();
        tokio::pin!(flush);
        match futures_util::poll!(flush.as_mut()) {
            std::task::Poll::Ready(result) => result.map_err(|error| end_of(&error)),
            std::task::Poll::Pending => bounded(limit, &inbox, flush).await,
        }
    }

    /// How long a write may take: as long as a client may be silent.
    fn write_limit(&self) -> Duration {
        self.settings.heartbeat.interval * (self.settings.heartbeat.missed + 1)
    }

    fn counters(&self) -> &ClientCounters {
        &self.context.clients.counters
    }
}

/// A write that did not go through at once: it ends when it is done, when more waits for the client than may, or when
/// the client has taken nothing for too long.
async fn bounded(limit: Duration, inbox: &Inbox, write: impl Future<Output = Result<(), WsError>>) -> Result<(), End> {
    tokio::select! {
        biased;
        result = write => result.map_err(|error| end_of(&error)),
        () = inbox.overflowed() => Err(End::Close(CloseCode::TRY_AGAIN)),
        () = tokio::time::sleep(limit) => Err(End::Vanished),
    }
}

/// What an error of the socket means for the client.
fn end_of(error: &WsError) -> End {
    match error {
        WsError::Capacity(CapacityError::MessageTooLong { .. }) => End::Close(CloseCode::TOO_BIG),
        WsError::Protocol(_) | WsError::Capacity(_) => End::Close(CloseCode::PROTOCOL),
        WsError::Utf8(_) => CloseCode::sendable(1007).map_or(End::Broken, End::Close),
        _ => End::Broken,
    }
}

/// Says goodbye, and waits a moment for the answer: a socket that is dropped with unread data would be reset, and the
/// close frame with its code would be lost.
async fn close<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>, code: CloseCode, reason: &str) {
    let goodbye = async {
        let frame = CloseFrame { code: code.get().into(), reason: reason.into() };
        socket.send(Message::Close(Some(frame))).await?;
        while let Some(message) = socket.next().await {
            message?;
        }
        Ok::<(), WsError>(())
    };
    // A client that has gone needs no goodbye.
    let _ = tokio::time::timeout(CLOSE_PATIENCE, goodbye).await;
}

#[cfg(test)]
#[path = "room_socket_silence_test.rs"]
mod silence_tests;
#[cfg(test)]
#[path = "room_socket_test.rs"]
mod tests;
