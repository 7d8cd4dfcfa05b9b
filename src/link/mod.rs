//! Links to Monoliths: one supervisor per endpoint dials for as long as discovery lists it. A link's session owns
//! `room -> members` of that link and nothing else, so the order of a room's messages is a property of the design: one
//! reader, first-in first-out queues, no lock across rooms.

pub mod activity;
mod departed;
mod dial;
pub mod handover;
mod heart;
#[cfg(test)]
mod history;
pub mod inbox;
mod members;
pub mod outbox;
mod rejoining;
mod session;
pub mod stats;
mod supervisor;
pub mod tap;
mod unread;
mod writer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
#[cfg(test)]
use tokio_tungstenite::WebSocketStream;

pub use self::supervisor::spawn;
use crate::config::{Heartbeat, Secret, Timeouts};
use crate::model::event::{Event, Token, UnloadCause};
use crate::model::{Attachment, ClientId, Epoch, LinkId, MonolithId, Region, RoomKey, RoomName};

use self::inbox::Inbox;
use self::stats::LinkStats;
use self::tap::Tap;

/// What a link tells the control thread, in the order in which it happened.
pub enum Report {
    /// A handshake is done; the session goes on when it is accepted.
    Up {
        /// The connection.
        link: LinkId,
        /// `host:port`.
        endpoint: Arc<str>,
        /// Who answered.
        monolith: MonolithId,
        /// Its region.
        region: Region,
        /// Where its HTTP server is.
        http: SocketAddr,
        /// How to command it.
        commands: mpsc::UnboundedSender<Command>,
        /// What it measures.
        stats: Arc<LinkStats>,
    },
    /// Anything else.
    Event(Event),
}

/// What the control thread tells a link, and what clients do that leave or hold. There are at most three of these per
/// client under way (its attach, and its detach from both sides) and three per room, which has at least one client, so
/// `6 x limits.clients` bounds the channel although it has no number of its own.
#[derive(Debug)]
pub enum Command {
    /// The link is registered.
    Accept,
    /// Another link leads to the same Monolith.
    Refuse,
    /// Send `join` and subscribe.
    Attach {
        /// Who.
        client: ClientId,
        /// Which of its attachments.
        attachment: Attachment,
        /// The room, in the spelling that goes on the wire.
        room: RoomName,
        /// Its secret.
        token: Token,
        /// What it hears goes here.
        inbox: Arc<Inbox>,
        /// Whether its own frames may follow: at once, or with the answer to the join where that may meet an `unload`.
        open: bool,
        /// Whether the first frame for it is to be reported.
        report: bool,
        /// Whether its client was in the room on another Monolith: that there is no such room is then no news for it.
        rejoin: bool,
    },
    /// The room is up: the client's own frames may follow.
    Open {
        /// Who.
        client: ClientId,
        /// Which of its attachments.
        attachment: Attachment,
    },
    /// Send `leave`, unless the Monolith has ended the membership itself.
    Detach {
        /// Who.
        client: ClientId,
        /// Which of its attachments.
        attachment: Attachment,
    },
    /// Report when nobody in a room has said anything for a while.
    Watch {
        /// The room.
        room: RoomKey,
        /// For how long.
        quiet: Duration,
        /// How long that is waited for.
        at_most: Duration,
    },
    /// Send `unload`, for a hand-over once the room's clients hold.
    Unload {
        /// The room, as this Monolith spells it.
        room: RoomName,
        /// The load that is to go.
        epoch: Epoch,
        /// What for.
        why: UnloadCause,
    },
    /// The clients of a room hold.
    Held {
        /// The room.
        room: RoomKey,
        /// Which time.
        number: u64,
    },
    /// Close the link: usher stops.
    Stop,
}

/// What every link of a balancer shares.
#[derive(Clone)]
pub struct LinkContext {
    /// Where reports go.
    pub reports: mpsc::Sender<Report>,
    /// Limits and waits; a change is taken up at the next handshake.
    pub settings: watch::Receiver<Arc<LinkSettings>>,
    /// Where the event stream listens.
    pub tap: Arc<Tap>,
    /// The numbers of links.
    pub numbers: Arc<std::sync::atomic::AtomicU64>,
    /// Counters over all links.
    pub counters: Arc<stats::LinkCounters>,
}

/// One link over any stream, from the moment at which both sides have introduced themselves until its end: for runs in
/// which streams are simulated.
#[cfg(test)]
pub(crate) async fn run_over<S>(
    link: crate::model::LinkId,
    init: crate::model::wire::Init,
    stream: WebSocketStream<S>,
    endpoint: Arc<str>,
    listed: &mut watch::Receiver<bool>,
    context: LinkContext,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let settings = context.settings.borrow().clone();
    let http = SocketAddr::from(([127, 0, 0, 1], init.port));
    let (session, commands) = session::Session::new(link, init, &settings, context);
    session.run(commands, stream, http, endpoint, listed).await;
}

/// What a link takes from the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkSettings {
    /// What an `init` has to carry, if anything.
    pub link_token: Secret,
    /// Bytes of one message from a Monolith.
    pub link_message: usize,
    /// Bytes that may wait for a Monolith.
    pub link_queue: usize,
    /// Waits.
    pub timeouts: Timeouts,
    /// Pings.
    pub heartbeat: Heartbeat,
}
