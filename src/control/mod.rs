//! The one thread that owns the cluster and the deciding policy, and handles for everyone else.
//!
//! It never awaits a link or a client: commands to links go into queues whose bound is `3 x limits.clients` by
//! construction, so nothing in the wait graph leads back here.

mod departures;
mod health;
mod knock;
mod moves;
pub mod policies;
pub mod recording;
pub mod reload;
mod request;
pub mod routes;
pub mod scrape;
#[cfg(not(test))]
mod shell;
#[cfg(test)]
pub(crate) mod shell;
pub mod stories;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::{mpsc, oneshot};

pub use self::health::{DecisionStats, Health};
pub use self::knock::TurnedAway;
pub use self::request::{Placement, Refused, Sent};
pub use self::shell::{ControlSettings, spawn};
use crate::cluster::{Cluster, MonolithSummary, Settings};
use crate::link::inbox::Inbox;
use crate::model::claims::ClaimAnswer;
use crate::model::event::{RequestOutcome, Token};
use crate::model::policy::Cause;
use crate::model::{Attachment, ClientId, MonolithId, Region, RequestId, RoomKey, RoomName};
use crate::policy::Policy;
use crate::trace::write::Recorder;

use self::departures::Departures;
use self::routes::Routes;
use self::stories::Stories;

/// What the control thread is asked to do. The channel has no number of its own: each client has at most one join and
/// one leave in it and before them a knock, its end and one question of `admit`, each HTTP request at most its start and its end, and `limits`
/// bounds both.
enum Command {
    Join {
        client: ClientId,
        room: RoomName,
        token: Token,
        region: Option<Region>,
        reconnect: bool,
        inbox: Arc<Inbox>,
    },
    /// A client wants an upgrade during an outage, or soon after one.
    Knock {
        client: ClientId,
        room: RoomKey,
        reply: oneshot::Sender<bool>,
    },
    /// It does not any more.
    Withdraw(ClientId),
    Leave(ClientId),
    /// Enough clients have left by themselves to look at them now.
    Departures,
    Request {
        request: RequestId,
        room: Option<RoomName>,
        cause: Cause,
        region: Option<Region>,
        reply: oneshot::Sender<Result<(Arc<routes::Target>, bool), Refused>>,
    },
    RequestDone(RequestId, RequestOutcome),
    Move {
        request: RequestId,
        room: RoomKey,
        to: MonolithId,
        reply: moves::Reply,
    },
    /// The store of claims has answered: once for each room that is being placed.
    Claim(RoomKey, ClaimAnswer),
    Drain {
        monolith: MonolithId,
        on: bool,
        reply: oneshot::Sender<Option<MonolithSummary>>,
    },
    Query(Box<dyn FnOnce(&Cluster) + Send>),
    Decide(PolicyTask),
    Configure(Settings),
    Record(Option<Recorder>),
    Stop(oneshot::Sender<()>),
}

type PolicyTask = Box<dyn FnOnce(&mut dyn Policy, &Cluster) + Send>;

/// The way to the control thread, for as many as want one.
#[derive(Clone)]
pub struct Control {
    commands: mpsc::UnboundedSender<Command>,
    routes: Arc<Routes>,
    health: Arc<Health>,
    requests: Arc<AtomicU64>,
    departures: Arc<Departures>,
    stories: Arc<Stories>,
}

/// The control thread has ended: usher is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("usher is stopping")]
pub struct Stopped;

impl Control {
    /// Where bound rooms are, and what is known of the Monoliths.
    pub fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// How the control thread is doing.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// What happened to rooms lately.
    pub fn stories(&self) -> &Arc<Stories> {
        &self.stories
    }

    /// A client wants into a room; everything else comes through its inbox.
    pub fn join(
        &self,
        client: ClientId,
        room: RoomName,
        token: Token,
        region: Option<Region>,
        reconnect: bool,
        inbox: Arc<Inbox>,
    ) -> Result<(), Stopped> {
        self.send(Command::Join { client, room, token, region, reconnect, inbox })
    }

    /// A client has gone.
    pub fn leave(&self, client: ClientId) {
        // Without a control thread there is nobody left to be told.
        let _ = self.send(Command::Leave(client));
    }

    /// A client has gone, and the link of this attachment of its is told by the client itself. The thread hears of it
    /// before anything that is said to it later, or with its next tick.
    pub fn left(&self, client: ClientId, told: Attachment) {
        if self.departures.add(client, told) {
            // Without a control thread there is nobody left to be told.
            let _ = self.send(Command::Departures);
        }
    }

    /// Finds a Monolith for a request whose room is not bound or is being created. It is held until the room's first
    /// outcome is known, if somebody else is ahead.
    pub async fn place(
        &self,
        room: Option<RoomName>,
        cause: Cause,
        region: Option<Region>,
    ) -> Result<Placement, Refused> {
        let request = RequestId(self.requests.fetch_add(1, Relaxed));
        let (reply, answer) = oneshot::channel();
        let sent = Sent::new(request, self.clone());
        self.send(Command::Request { request, room, cause, region, reply }).map_err(|_| Refused { status: 503 })?;
        let (target, awaited) = answer.await.map_err(|_| Refused { status: 503 })??;
        Ok(Placement { target, sent: awaited.then_some(sent) })
    }

    /// Reads the cluster as it is at one moment.
    pub async fn query<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Cluster) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        let query = Box::new(move |cluster: &Cluster| {
            // Whoever asked may have gone.
            let _ = reply.send(read(cluster));
        });
        self.send(Command::Query(query))?;
        answer.await.map_err(|_| Stopped)
    }

    /// Runs with the deciding policy at a call boundary.
    pub async fn with_policy<T: Send + 'static>(
        &self,
        run: impl FnOnce(&mut dyn Policy, &Cluster) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        let run = Box::new(move |policy: &mut dyn Policy, cluster: &Cluster| {
            // Whoever asked may have gone.
            let _ = reply.send(run(policy, cluster));
        });
        self.send(Command::Decide(run))?;
        answer.await.map_err(|_| Stopped)
    }

    /// The store of claims has answered.
    pub fn claimed(&self, room: RoomKey, answer: ClaimAnswer) {
        // Without a control thread nobody waits for it.
        let _ = self.send(Command::Claim(room, answer));
    }

    /// Changes bounds and waits.
    pub fn configure(&self, settings: Settings) -> Result<(), Stopped> {
        self.send(Command::Configure(settings))
    }

    /// Begins or ends recording what happens; the thread has taken it up when this returns.
    async fn record(&self, to: Option<Recorder>) {
        // Without a control thread nothing happens any more.
        if self.send(Command::Record(to)).is_ok() {
            let _ = self.query(|_| ()).await;
        }
    }

    /// Closes the links and ends the thread.
    pub async fn stop(&self) {
        let (reply, stopped) = oneshot::channel();
        if self.send(Command::Stop(reply)).is_ok() {
            // An error means that it has ended already.
            let _ = stopped.await;
        }
    }

    /// Waits until the thread has ended, which it does by itself only where it breaks.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }

    fn done(&self, request: RequestId, outcome: RequestOutcome) {
        // Without a control thread there is nobody left to be told.
        let _ = self.send(Command::RequestDone(request, outcome));
    }

    fn send(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).map_err(|_| Stopped)
    }
}
