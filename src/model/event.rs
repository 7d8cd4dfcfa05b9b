//! What happens to the cluster, and what the cluster wants done about it.

use std::sync::Arc;

use super::claims::{ClaimAnswer, ClaimCommand};
use super::moves::{MoveRefusal, Moving, Rebalanced};
use super::policy::{Cause, MonolithState};
use super::story::Note;
use super::wire::{RoomReport, UnloadReason};
use super::{Attachment, ClientId, CloseCode, Epoch, LinkId, MonolithId, Region, RequestId, RoomKey, RoomName};

/// Microseconds since the Unix epoch, never going back.
pub type Micros = u64;

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Discovery lists these endpoints; the first such event says for whom a fresh balancer waits.
    Discovered {
        /// `host:port` of each.
        endpoints: Vec<Arc<str>>,
    },
    /// An endpoint could not be linked this time.
    DialFailed {
        /// `host:port`.
        endpoint: Arc<str>,
    },
    /// A handshake is done.
    LinkUp {
        /// The connection.
        link: LinkId,
        /// `host:port`.
        endpoint: Arc<str>,
        /// Who is at the other end.
        monolith: MonolithId,
        /// Its region.
        region: Region,
    },
    /// A connection is gone, and with it everything that this balancer had joined there.
    LinkDown {
        /// The connection.
        link: LinkId,
    },
    /// A link misses heartbeats, answers again, or is to drain.
    LinkState {
        /// The connection.
        link: LinkId,
        /// What it is now.
        state: MonolithState,
    },
    /// A room is in a Monolith's memory.
    Loaded {
        /// Who says so.
        link: LinkId,
        /// The room.
        report: RoomReport,
    },
    /// A room has left a Monolith's memory. The link has detached the members that had heard of it. The `join` of every
    /// other one crossed the unload and may yet be answered: also of those that the link did not know at that moment.
    Unloaded {
        /// Who says so.
        link: LinkId,
        /// The room.
        room: RoomKey,
        /// Why.
        reason: UnloadReason,
        /// The members that were detached.
        detached: Vec<(ClientId, Attachment)>,
    },
    /// Everything that a Monolith has loaded.
    Gossip {
        /// Who says so.
        link: LinkId,
        /// The rooms.
        rooms: Vec<RoomReport>,
    },
    /// The first frame for a member whose join was to be reported.
    Answered {
        /// On which link.
        link: LinkId,
        /// The member.
        client: ClientId,
        /// Which of its attachments.
        attachment: Attachment,
    },
    /// The Monolith has ended a membership. The client has been closed; but for [`CloseCode::AWAY`], after which what it
    /// says is kept and the cluster decides.
    Kicked {
        /// On which link.
        link: LinkId,
        /// The member.
        client: ClientId,
        /// Which of its attachments.
        attachment: Attachment,
        /// With which code.
        code: CloseCode,
    },
    /// A client wants into a room.
    Join {
        /// The client.
        client: ClientId,
        /// The room as the client spells it.
        room: RoomName,
        /// Its secret, for the Monolith.
        token: Token,
        /// The region at whose edge it arrived.
        region: Option<Region>,
        /// Whether it says that it comes back.
        reconnect: bool,
    },
    /// A client asks whether it may be upgraded, as everybody has to during an outage and for a while after it.
    Knock {
        /// The client.
        client: ClientId,
        /// The room.
        room: RoomKey,
    },
    /// A client that has knocked waits no longer.
    Withdraw {
        /// The client.
        client: ClientId,
    },
    /// A client has gone.
    Leave {
        /// The client.
        client: ClientId,
        /// The attachment whose link has been told already, so that it need not hear of it twice.
        told: Option<Attachment>,
    },
    /// An HTTP request needs a Monolith: for a room that is not bound, or for one that is being created.
    Request {
        /// The request.
        request: RequestId,
        /// The room; `None` where the Monolith makes up the name.
        room: Option<RoomName>,
        /// [`Cause::Http`] or [`Cause::Create`].
        cause: Cause,
        /// The region at whose edge it arrived.
        region: Option<Region>,
    },
    /// What became of a request that had been given a Monolith.
    RequestDone {
        /// The request.
        request: RequestId,
        /// How it ended.
        outcome: RequestOutcome,
    },
    /// An operator wants a room elsewhere.
    Move {
        /// Who asked, for the answer.
        request: RequestId,
        /// The room.
        room: RoomKey,
        /// Where it is to go.
        to: MonolithId,
    },
    /// The store of claims has answered.
    Claim {
        /// The room.
        room: RoomKey,
        /// What it said.
        answer: ClaimAnswer,
    },
    /// Nobody in a room has said anything for a while, as [`Effect::Watch`] wanted it, or that has been waited for long
    /// enough.
    Quiet {
        /// On which link.
        link: LinkId,
        /// The room.
        room: RoomKey,
        /// Whether somebody still talks.
        disturbed: bool,
    },
    /// A room that is to move was not asked for after all: whoever had been let in has left, and an empty room could be
    /// about to be unloaded by the Monolith itself.
    Withheld {
        /// On which link.
        link: LinkId,
        /// The room.
        room: RoomKey,
        /// The load that was to go.
        epoch: Epoch,
    },
    /// An operator wants a Monolith to lose its rooms, or no longer.
    Drain {
        /// The Monolith.
        monolith: MonolithId,
        /// Whether it is to lose them.
        on: bool,
    },
    /// Time has passed.
    Tick,
}

/// A user's secret on its way to a Monolith. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub Arc<str>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(token)")
    }
}

/// How a request ended, as far as its room is concerned.
#[derive(Debug, Clone)]
pub enum RequestOutcome {
    /// The Monolith created this room.
    Created(RoomName),
    /// The Monolith answered with this status.
    Status(u16),
    /// Nothing was sent: the Monolith could not be reached.
    NotSent,
    /// It broke off, or its client went away.
    Failed,
}

/// Why a Monolith is asked to unload a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnloadCause {
    /// An older copy is elsewhere. Nobody of this balancer is in this one any more.
    Duplicate,
    /// The room is to move. Its members are still in it: an empty room could be about to be unloaded by the Monolith
    /// itself, and two unloads that cross end a real one.
    Move,
    /// The same, and its members keep their sockets: what they say is held back from now on, and the `unload` goes out once
    /// everything that they have said before stands in front of it.
    HandOver,
}

/// Something to be done.
#[derive(Debug, Clone)]
pub enum Effect {
    /// The link is registered and may read on.
    AcceptLink {
        /// The connection.
        link: LinkId,
    },
    /// Another link leads to the same Monolith: close this one.
    RefuseLink {
        /// The connection.
        link: LinkId,
    },
    /// Send `join`, and from then on what the room says.
    Attach {
        /// Where.
        link: LinkId,
        /// Who.
        client: ClientId,
        /// Which of its attachments.
        attachment: Attachment,
        /// The room, in the spelling that goes on the wire.
        room: RoomName,
        /// Its secret.
        token: Token,
        /// Whether the client's own frames may follow: at once, or with the answer to the join where that may meet an `unload`.
        open: bool,
        /// Whether the first frame for it is to be reported.
        report: bool,
        /// Whether it was in the room on another Monolith: that there is no such room is then no mistake of its user.
        rejoin: bool,
    },
    /// The room is up: the client's own frames may follow.
    Open {
        /// Where.
        link: LinkId,
        /// Who.
        client: ClientId,
        /// Which of its attachments.
        attachment: Attachment,
    },
    /// Send `leave`, unless the Monolith has ended the membership itself.
    Detach {
        /// Where.
        link: LinkId,
        /// Who.
        client: ClientId,
        /// Which of its attachments.
        attachment: Attachment,
    },
    /// A client loses its Monolith and stays: what it says from now on, and what has not been written, is kept for the
    /// next one. Where the link itself has ended the membership, it has done so already.
    Hold {
        /// Who.
        client: ClientId,
        /// Which of its attachments is over.
        attachment: Attachment,
    },
    /// Say with [`Event::Quiet`] when nobody in a room has said anything for a while.
    Watch {
        /// Where.
        link: LinkId,
        /// The room.
        room: RoomKey,
        /// For how long, in microseconds.
        quiet: Micros,
        /// How long that is waited for, in microseconds.
        at_most: Micros,
    },
    /// Send `unload`.
    Unload {
        /// Where.
        link: LinkId,
        /// The room, as that Monolith spells it.
        room: RoomName,
        /// The load that is to go.
        epoch: Epoch,
        /// What for.
        why: UnloadCause,
    },
    /// The answer to [`Event::Move`].
    Moving {
        /// Who asked.
        request: RequestId,
        /// The move that has begun, or why it may not.
        outcome: Result<Moving, MoveRefusal>,
    },
    /// A policy has been asked what should move.
    Rebalanced(Rebalanced),
    /// Close a client's socket, after what is on its way to it.
    Close {
        /// Who.
        client: ClientId,
        /// With which code.
        code: CloseCode,
    },
    /// The answer to a knock.
    Enter {
        /// Who knocked.
        client: ClientId,
        /// Whether it may be upgraded; else too many wait already.
        admitted: bool,
    },
    /// A Monolith is ejected, or is back.
    Ejection(Ejection),
    /// A request has a Monolith.
    Send {
        /// The request.
        request: RequestId,
        /// Where it goes.
        monolith: MonolithId,
        /// Whether the room is waiting for what becomes of it: then nobody else may be tried behind its back.
        awaited: bool,
    },
    /// A request has none.
    Refuse {
        /// The request.
        request: RequestId,
        /// 400 to 599.
        status: u16,
    },
    /// A room has a Monolith from now on.
    Bind {
        /// The room.
        room: RoomKey,
        /// Its Monolith.
        monolith: MonolithId,
    },
    /// A room has none any more.
    Unbind {
        /// The room.
        room: RoomKey,
    },
    /// Something for the store of claims.
    Claim(ClaimCommand),
    /// Something for the story of a room.
    Story(Box<Note>),
}

/// Why a Monolith is left alone for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EjectionCause {
    /// Too many of its HTTP requests failed.
    Errors,
    /// Its links broke too often.
    Flaps,
}

impl EjectionCause {
    /// Every cause.
    pub const ALL: [Self; 2] = [Self::Errors, Self::Flaps];

    /// A stable label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Errors => "errors",
            Self::Flaps => "flaps",
        }
    }
}

/// What happened to a Monolith that keeps failing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ejection {
    /// It gets nothing new for a while.
    Out {
        /// Which.
        monolith: MonolithId,
        /// Why.
        cause: EjectionCause,
        /// For how long, in microseconds.
        lasts: Micros,
        /// How often it was of late, this time included.
        times: u32,
    },
    /// It should be, but too many are already, or nobody else serves.
    Spared {
        /// Which.
        monolith: MonolithId,
        /// Why it should be.
        cause: EjectionCause,
    },
    /// Its time is over.
    Back {
        /// Which.
        monolith: MonolithId,
    },
}
