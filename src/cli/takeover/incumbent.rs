//! The side of a takeover that serves already: it passes its sockets to whoever asks, and goes on until that one accepts.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tokio::net::UnixStream;
use tracing::{debug, info, warn};

use super::place::Published;
use super::wire::{Message, Monoliths, VERSION, Wire};
use crate::front::listener::Listener;

/// For a message that needs nothing done first.
const ANSWER: Duration = Duration::from_secs(5);
/// For the successor to be ready: longer than it gives itself.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts to accept when the process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(200);

/// The listening sockets, once more, to be passed on.
#[derive(Debug)]
pub(in crate::cli) struct Shared {
    main: (OwnedFd, SocketAddr),
    admin: Option<(OwnedFd, SocketAddr)>,
}

impl Shared {
    /// Second descriptors of these.
    ///
    /// # Errors
    /// If the process has none left.
    pub(in crate::cli) fn of(main: &Listener, admin: Option<&Listener>) -> io::Result<Self> {
        let share = |listener: &Listener| Ok::<_, io::Error>((listener.share()?, listener.addr()));
        Ok(Self { main: share(main)?, admin: admin.map(share).transpose()? })
    }
}

/// An usher that can be taken over. Dropping it takes that offer back.
#[derive(Debug)]
pub(in crate::cli) struct Incumbent {
    published: Published,
    sockets: Shared,
}

/// Another usher accepts by now.
#[derive(Debug)]
pub(in crate::cli) struct TakenOver {
    /// Its process.
    pub(in crate::cli) by: u32,
    wire: Wire,
}

impl TakenOver {
    /// Tells the successor what becomes of the clients. It may not care.
    pub(in crate::cli) async fn done(self, clients: usize, over: Duration) {
        let over_ms = u64::try_from(over.as_millis()).unwrap_or(u64::MAX);
        let message = Message::Done { clients, over_ms };
        if !matches!(tokio::time::timeout(ANSWER, self.wire.say(&message)).await, Ok(Ok(()))) {
            debug!("the successor does not listen any more");
        }
    }
}

impl Incumbent {
    /// Offers these sockets at a published path.
    pub(in crate::cli) fn new(published: Published, sockets: Shared) -> Self {
        Self { published, sockets }
    }

    /// Waits until another usher has taken over, and lets go of the sockets. One that fails on its way, and one that
    /// comes while another is on its way, changes nothing. `monoliths` says what this one has.
    pub(in crate::cli) async fn taken_over<F>(mut self, monoliths: impl Fn() -> F) -> TakenOver
    where
        F: Future<Output = Monoliths>,
    {
        let taken = self.wait(&monoliths).await;
        self.published.leave();
        taken
    }

    async fn wait<F>(&self, monoliths: &impl Fn() -> F) -> TakenOver
    where
        F: Future<Output = Monoliths>,
    {
        let mut session = None;
        loop {
            tokio::select! {
                accepted = self.published.listener.accept() => match accepted {
                    Ok((stream, _)) if session.is_some() => {
                        tokio::spawn(refuse(stream));
                    }
                    Ok((stream, _)) => session = Some(Box::pin(self.hand_over(stream, monoliths))),
                    Err(error) => {
                        warn!(%error, "cannot accept a takeover, trying again in {PAUSE:?}");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                outcome = async {
                    match session.as_mut() {
                        Some(session) => session.await,
                        None => pending().await,
                    }
                } => {
                    session = None;
                    match outcome {
                        Ok(Some(taken)) => return taken,
                        Ok(None) => debug!("somebody looked whether an usher listens here"),
                        Err(why) => warn!(why, "no takeover: this usher goes on"),
                    }
                }
            }
        }
    }

    /// One conversation; none if the other end said nothing.
    async fn hand_over<F>(&self, stream: UnixStream, monoliths: &impl Fn() -> F) -> Result<Option<TakenOver>, String>
    where
        F: Future<Output = Monoliths>,
    {
        let mut wire = Wire::new(stream).map_err(|error| error.to_string())?;
        let by = match hear(&mut wire, ANSWER).await? {
            Some(Message::Hello { version: VERSION, pid }) => pid,
            Some(Message::Hello { version, .. }) => {
                let reason = format!(
                    "the usher that runs takes part in takeovers of version {VERSION}, and this one in version \
                     {version}; stop it and start this one"
                );
                return refused(&wire, reason).await;
            }
            Some(other) => return Err(format!("a successor began with {other:?}")),
            None => return Ok(None),
        };
        info!(by, "another usher asks to take over");
        let Shared { main, admin } = &self.sockets;
        let mut passed: Vec<BorrowedFd<'_>> = vec![main.0.as_fd()];
        passed.extend(admin.as_ref().map(|(socket, _)| socket.as_fd()));
        let admin = admin.as_ref().map(|(_, addr)| *addr);
        let Ok(monoliths) = tokio::time::timeout(ANSWER, monoliths()).await else {
            let reason = "the control thread of the usher that runs does not answer; stop it and start this one";
            return refused(&wire, reason.to_string()).await;
        };
        let offer = Message::Offer { pid: std::process::id(), main: main.1, admin, monoliths };
        wire.say_with(&offer, &passed).await.map_err(gone)?;
        match hear(&mut wire, PATIENCE).await {
            Ok(Some(Message::Ready)) => {}
            Ok(Some(other)) => return Err(format!("a successor said {other:?} before it was ready")),
            Ok(None) => return Err(format!("process {by} ended before it was ready")),
            Err(why) => return refused(&wire, format!("{why}: the usher that runs goes on")).await,
        }
        wire.say(&Message::Go).await.map_err(gone)?;
        match hear(&mut wire, ANSWER).await? {
            Some(Message::Accepting) => Ok(Some(TakenOver { by, wire })),
            Some(other) => Err(format!("a successor said {other:?} instead of accepting")),
            None => Err(format!("process {by} ended before it accepted")),
        }
    }
}

fn gone(error: io::Error) -> String {
    format!("the other usher has gone: {error}")
}

/// The next message; none when the other end has gone.
async fn hear(wire: &mut Wire, patience: Duration) -> Result<Option<Message>, String> {
    match tokio::time::timeout(patience, wire.hear()).await {
        Ok(Ok(heard)) => Ok(heard.map(|(message, _)| message)),
        Ok(Err(error)) => Err(format!("the other usher is not understood: {error}")),
        Err(_) => Err(format!("the other usher said nothing for {} s", patience.as_secs())),
    }
}

async fn refused<T>(wire: &Wire, reason: String) -> Result<T, String> {
    let message = Message::Refused { reason: reason.clone() };
    // Whoever is gone needs no answer.
    let _ = tokio::time::timeout(ANSWER, wire.say(&message)).await;
    Err(reason)
}

/// Refuses somebody while another takeover is under way.
async fn refuse(stream: UnixStream) {
    let Ok(wire) = Wire::new(stream) else { return };
    let reason = "another usher is taking over already; wait for it, and try again if it fails".to_string();
    let _ = refused::<()>(&wire, reason).await;
}
