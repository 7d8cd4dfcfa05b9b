//! A simulated Monolith: a link server and an HTTP server on loopback that behave like the real ones, with a handle
//! that makes them do what goes wrong in production.

mod builder;
mod endpoints;
mod frames;
mod http;
mod link;
mod members;
mod receive;
mod records;
mod rooms;
mod shared;
mod state;
#[cfg(test)]
mod tests;
mod view;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::tungstenite::{Bytes, Utf8Bytes};
use uuid::Uuid;

pub use self::builder::Builder;
pub use self::records::{FrameRecord, HttpRecord, JoinRecord, LeaveRecord, LinkNumber, UnloadRecord};
use self::shared::{Flow, Shared};
use self::state::Out;
pub use self::state::{InitStyle, State, UnloadReason};
use super::TimedOut;
use super::world::{RoomInfo, World};

/// A running simulated Monolith. When it is dropped, its tasks end and its sockets close.
pub struct Monolith {
    shared: Arc<Shared>,
    process: Mutex<Option<JoinHandle<()>>>,
    link_addr: SocketAddr,
    http_addr: SocketAddr,
}

impl Drop for Monolith {
    fn drop(&mut self) {
        if let Some(process) = self.take_process() {
            process.abort();
        }
    }
}

/// The body of the process: it owns every task, so that they end with it.
async fn run(shared: Arc<Shared>, links: TcpListener, requests: TcpListener) {
    let mut tasks = JoinSet::new();
    loop {
        let due = shared.look(State::next_due);
        tokio::select! {
            () = shared.kill.notified() => break,
            accepted = links.accept() => if let Ok((stream, _)) = accepted {
                tasks.spawn(link::serve(shared.clone(), stream));
            },
            accepted = requests.accept() => if let Ok((stream, _)) = accepted {
                tasks.spawn(http::serve(shared.clone(), stream));
            },
            () = shared.timer.notified() => {}
            () = sleep_until(due.map_or_else(Instant::now, Instant::from_std)), if due.is_some() => {
                shared.change(|state| state.run_due(std::time::Instant::now()));
            }
            Some(_) = tasks.join_next() => {}
        }
    }
    drop((links, requests));
    tasks.shutdown().await;
    shared.change(State::forget_everything);
}

impl Monolith {
    /// What to build one with.
    pub fn builder(world: &World) -> Builder {
        Builder::new(world)
    }

    /// One with all defaults.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(world: &World) -> io::Result<Self> {
        Self::builder(world).start().await
    }

    /// Where a balancer dials its link.
    pub fn link_addr(&self) -> SocketAddr {
        self.link_addr
    }

    /// Where it serves HTTP. The `init` names only the port.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Its present id: a restart gives it a new one.
    pub fn id(&self) -> String {
        self.look(|state| state.id.clone())
    }

    /// Looks at its state.
    pub fn look<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        self.shared.look(look)
    }

    /// Waits until the state is as the condition says.
    ///
    /// # Errors
    /// When `deadline` has passed and the condition still does not hold.
    pub async fn wait_for(&self, condition: impl FnMut(&State) -> bool, deadline: Duration) -> Result<(), TimedOut> {
        if self.shared.wait(Instant::now() + deadline, condition).await {
            return Ok(());
        }
        Err(TimedOut::new(
            deadline,
            self.look(|state| {
                format!(
                    "monolith {} has {} links, rooms {:?}, {} clients, got {} joins, {} leaves, {} frames, died: {:?}",
                    state.id,
                    state.link_count(),
                    state.rooms(),
                    state.client_count(),
                    state.join_count(),
                    state.leave_count(),
                    state.frame_count(),
                    state.died(),
                )
            }),
        ))
    }
}

/// What it was sent.
impl Monolith {
    /// Why it died, if a balancer has killed it; it stays set through a restart, for a test to assert `None` at its end.
    pub fn died(&self) -> Option<String> {
        self.look(|state| state.died.clone())
    }

    /// The frames that came, in order.
    pub fn frames(&self) -> Vec<FrameRecord> {
        self.look(|state| state.frames.to_vec())
    }

    /// The joins that came, in order.
    pub fn joins(&self) -> Vec<JoinRecord> {
        self.look(|state| state.joins.to_vec())
    }

    /// The leaves that came, in order.
    pub fn leaves(&self) -> Vec<LeaveRecord> {
        self.look(|state| state.leaves.to_vec())
    }

    /// The unloads that came, in order.
    pub fn unloads(&self) -> Vec<UnloadRecord> {
        self.look(|state| state.unloads.to_vec())
    }

    /// The HTTP requests that came, in order.
    pub fn requests(&self) -> Vec<HttpRecord> {
        self.look(|state| state.http.to_vec())
    }

    /// The members of a room, in the order of their joins.
    pub fn members(&self, room: &str) -> Vec<String> {
        self.look(|state| state.members(room))
    }

    /// How often rooms were loaded.
    pub fn loads(&self) -> u64 {
        self.look(|state| state.loads(None))
    }

    /// How often this room was loaded.
    pub fn loads_of(&self, room: &str) -> u64 {
        self.look(|state| state.loads(Some(room)))
    }
}

/// What it is made to do.
impl Monolith {
    /// Loads a room at once, from the store or as a new temporary one; its epoch.
    pub fn load(&self, name: &str) -> u32 {
        self.shared.change(|state| {
            if let Some(room) = state.room(name) {
                return room.epoch;
            }
            let info = state.world.find(name).unwrap_or_else(|| {
                let info = RoomInfo::temporary(name);
                state.world.create(info.clone());
                info
            });
            state.install(info)
        })
    }

    /// Loads a room with this metadata at once; its epoch.
    pub fn load_with(&self, info: RoomInfo) -> u32 {
        self.shared.change(|state| {
            state.world.create(info.clone());
            state.install(info)
        })
    }

    /// Unloads a room of its own accord; `false` if it was not loaded.
    pub fn unload(&self, name: &str, reason: UnloadReason) -> bool {
        self.shared.change(|state| state.unload(name, reason))
    }

    /// Sends a room message with this payload, verbatim, to one client or to all. For a client or a room that is not
    /// here the frame goes to every link all the same.
    pub fn say(&self, room: &str, client: Option<&str>, payload: &str) {
        self.shared.change(|state| {
            let member = client.map(|client| state.member(client));
            match member {
                Some(Some(member)) => state.unicast(&member, payload),
                None if state.room(room).is_some_and(|room| !room.members.is_empty()) => state.broadcast(room, payload),
                Some(None) | None => {
                    let name = state.room(room).map_or(room, |room| room.info.name.as_str());
                    let text = Utf8Bytes::from(frames::room_msg(&frames::quoted(name), client, payload));
                    state.raw_to_all(|| Out::Text(text.clone()));
                }
            }
        });
    }

    /// Sends a text frame, verbatim, on every link.
    pub fn say_raw(&self, text: &str) {
        let text = Utf8Bytes::from(text);
        self.shared.change(|state| state.raw_to_all(|| Out::Text(text.clone())));
    }

    /// Sends a binary frame on every link.
    pub fn say_binary(&self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.shared.change(|state| state.raw_to_all(|| Out::Binary(bytes.clone())));
    }

    /// Puts bytes on the TCP connection of every link: for frames that no library would write.
    pub fn say_bytes(&self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.shared.change(|state| state.raw_to_all(|| Out::Raw(bytes.clone())));
    }

    /// Kicks a client; the reason may be any JSON. `false` if it was not here: then the frame goes to every link.
    pub fn kick(&self, client: &str, reason: impl Into<Value>) -> bool {
        let reason = reason.into();
        self.shared.change(|state| match state.member(client) {
            Some(member) => {
                state.kick(&member, &reason);
                true
            }
            None => {
                let text = Utf8Bytes::from(frames::kick(client, &reason));
                state.raw_to_all(|| Out::Text(text.clone()));
                false
            }
        })
    }

    /// Sends its gossip now.
    pub fn gossip_now(&self) {
        self.shared.change(State::gossip);
    }

    /// The links neither read nor write from now on, like those of a process that hangs. HTTP goes on.
    pub fn stall(&self) {
        self.shared.flow.send_replace(Flow::Frozen);
    }

    /// The links read nothing from now on, but write.
    pub fn stall_reading(&self) {
        self.shared.flow.send_replace(Flow::NotReading);
    }

    /// Ends a stall.
    pub fn resume(&self) {
        self.shared.flow.send_replace(Flow::Running);
    }

    /// Cuts every link without a close frame.
    pub fn drop_links(&self) {
        self.shared.change(|state| {
            for number in state.links.iter().map(|link| link.number).collect::<Vec<_>>() {
                state.close_link(number);
            }
        });
        // Links that are frozen look only when their flow changes.
        self.shared.flow.send_modify(|_| {});
    }

    /// Closes every link with a close frame.
    pub fn close_links(&self, code: u16, reason: &'static str) {
        self.shared.change(|state| state.raw_to_all(|| Out::Close(code, reason)));
    }

    /// Whether new links are cut before their handshake.
    pub fn refuse(&self, refuse: bool) {
        self.shared.change(|state| state.knobs.refuse_links = refuse);
    }

    /// How it introduces itself on later links.
    pub fn set_init(&self, style: InitStyle) {
        self.shared.change(|state| state.knobs.init = style);
    }

    /// How long later loads take.
    pub fn delay_loads(&self, delay: Duration) {
        self.shared.change(|state| state.knobs.load_delay = delay);
    }

    /// Loads that are under way, and later ones, do not end until `thaw_loads`.
    pub fn freeze_loads(&self) {
        self.shared.change(|state| state.knobs.loads_frozen = true);
    }

    /// Ends all loads that were held, in their order.
    pub fn thaw_loads(&self) {
        self.shared.change(State::thaw_loads);
    }

    /// Whether a join gets its six messages. Without them the client is a member all the same.
    pub fn answer_joins(&self, answer: bool) {
        self.shared.change(|state| state.knobs.answer_joins = answer);
    }

    /// Whether `POST /api/room/create` is answered. Without that nothing is made either: a test makes the room, or not.
    pub fn answer_creations(&self, answer: bool) {
        self.shared.change(|state| state.knobs.answer_creations = answer);
    }

    /// What `/api/status/metrics` says besides its standard lines.
    pub fn set_metrics(&self, text: impl Into<String>) {
        self.shared.change(|state| state.knobs.metrics = text.into());
    }

    /// What the real one does on SIGTERM: one close frame to each link and nothing after it. For `linger` (a second
    /// in the real one) its port accepts handshakes and never sends an `init`; then everything is closed.
    pub fn begin_shutdown(&self, linger: Duration) {
        self.shared.change(|state| {
            state.raw_to_all(|| Out::Close(1001, "Server shutting down"));
            state.stopping = true;
            state.exit_after(linger);
        });
    }

    /// What the design of the server says instead: every client is kicked with 1001 and every room unloaded because of the
    /// shutdown before the close frame of [`Self::begin_shutdown`].
    pub fn begin_designed_shutdown(&self, linger: Duration) {
        self.shared.change(State::unload_everything);
        self.begin_shutdown(linger);
    }

    /// [`Self::begin_shutdown`] with the real one's second, until it has ended.
    pub async fn shut_down_gracefully(&self) {
        self.begin_shutdown(Duration::from_secs(1));
        self.stopped().await;
    }

    /// Ends it abruptly: every connection just goes.
    pub async fn kill(&self) {
        self.shared.kill.notify_one();
        self.stopped().await;
    }

    /// Waits until its process has ended, for whatever reason.
    pub async fn stopped(&self) {
        if let Some(process) = self.take_process() {
            // The process ends by itself or was aborted: both is the end that is waited for.
            let _ = process.await;
        }
    }

    /// Starts it again on the same ports with a new id and nothing in memory; kills it first if it runs.
    ///
    /// # Errors
    /// When somebody has taken one of its ports.
    pub async fn restart(&self) -> io::Result<()> {
        self.kill().await;
        let links = TcpListener::bind(self.link_addr).await?;
        let requests = TcpListener::bind(self.http_addr).await?;
        self.shared.change(|state| state.restart(Uuid::new_v4().to_string()));
        // A kill that nobody has taken up belongs to the old process.
        let _ = tokio::time::timeout(Duration::ZERO, self.shared.kill.notified()).await;
        self.shared.flow.send_replace(Flow::Running);
        let process = tokio::spawn(run(self.shared.clone(), links, requests));
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    fn take_process(&self) -> Option<JoinHandle<()>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
