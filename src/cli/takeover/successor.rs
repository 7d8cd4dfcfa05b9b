//! The side of a takeover that wants to serve: it finds the usher that runs, gets its sockets, and takes its place when
//! it is ready.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tracing::{debug, info, warn};

use super::wire::{Message, Monoliths, VERSION, Wire};

/// For a message that needs nothing done first.
const ANSWER: Duration = Duration::from_secs(10);

/// Why the usher that runs goes on.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum TakeoverError {
    /// It cannot be reached, although something is there.
    #[error("the usher that runs cannot be asked at {path}: {error}")]
    Unreachable { path: PathBuf, error: io::Error },
    /// It says no.
    #[error("no takeover: {0}")]
    Refused(String),
    /// It says something else.
    #[error("no takeover: the usher that runs is not understood: {0}")]
    Strange(String),
    /// This process is not ready in time.
    #[error("no takeover: {0}; the usher that runs goes on")]
    NotReady(String),
}

/// The usher that runs.
#[derive(Debug)]
pub(in crate::cli) struct Predecessor {
    wire: Wire,
    path: PathBuf,
    pid: Option<i32>,
}

/// What it offers.
#[derive(Debug)]
pub(in crate::cli) struct Offered {
    /// Its process, as it says.
    pub(in crate::cli) pid: u32,
    /// The socket for clients.
    pub(in crate::cli) main: TcpListener,
    /// The socket of the admin API, if it has one of its own.
    pub(in crate::cli) admin: Option<(TcpListener, SocketAddr)>,
    /// The Monoliths that it has.
    pub(in crate::cli) monoliths: Monoliths,
}

/// Looks for an usher that listens at this path.
///
/// # Errors
/// If something is there that is not this user's, or does not answer.
pub(in crate::cli) async fn find(path: &Path) -> Result<Option<Predecessor>, TakeoverError> {
    let unreachable = |error| TakeoverError::Unreachable { path: path.to_path_buf(), error };
    let stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        // Nobody was ever there, or whoever was has ended and left the file.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(unreachable(error)),
    };
    let wire = Wire::new(stream).map_err(unreachable)?;
    Ok(Some(Predecessor { pid: wire.peer(), wire, path: path.to_path_buf() }))
}

impl Predecessor {
    /// How it is named in messages.
    pub(in crate::cli) fn name(&self) -> String {
        match self.pid {
            Some(pid) => format!("process {pid} at {}", self.path.display()),
            None => self.path.display().to_string(),
        }
    }

    /// Asks for its sockets; none if it has just ended.
    ///
    /// # Errors
    /// If it refuses.
    pub(in crate::cli) async fn ask(&mut self) -> Result<Option<Offered>, TakeoverError> {
        let hello = Message::Hello { version: VERSION, pid: std::process::id() };
        if let Err(error) = self.wire.say(&hello).await {
            // What it said before it stopped to listen is still to be read.
            debug!(%error, "the usher that runs does not listen");
        }
        let heard = tokio::time::timeout(ANSWER, self.wire.hear()).await;
        let heard = heard.map_err(|_| TakeoverError::Refused(format!("{} does not answer", self.name())))?;
        let strange = |error: io::Error| TakeoverError::Strange(error.to_string());
        match heard.map_err(strange)? {
            Some((Message::Offer { pid, main: _, admin, monoliths }, sockets)) => {
                let mut sockets = sockets.into_iter().map(TcpListener::from);
                let main = sockets.next().ok_or_else(|| TakeoverError::Strange("an offer without a socket".into()))?;
                Ok(Some(Offered { pid, main, admin: sockets.next().zip(admin), monoliths }))
            }
            Some((Message::Refused { reason }, _)) => Err(TakeoverError::Refused(reason)),
            Some((other, _)) => Err(TakeoverError::Strange(format!("{other:?}"))),
            None => Ok(None),
        }
    }

    /// Takes its place: waits until `ready` is, says so, and calls `accept` when it may. If the other one ends by itself
    /// meanwhile, that is at once, since nobody else accepts.
    ///
    /// # Errors
    /// If this process does not become ready (`ready` says why), or the other one has changed its mind.
    pub(in crate::cli) async fn replace(
        mut self,
        ready: impl Future<Output = Result<(), String>>,
        accept: impl FnOnce(),
    ) -> Result<(), TakeoverError> {
        tokio::select! {
            ready = ready => ready.map_err(TakeoverError::NotReady)?,
            heard = self.wire.hear() => match heard {
                Ok(Some((Message::Refused { reason }, _))) => return Err(TakeoverError::Refused(reason)),
                Ok(Some((other, _))) => return Err(TakeoverError::Strange(format!("{other:?}"))),
                Ok(None) | Err(_) => {
                    warn!("the usher that ran has ended by itself");
                    accept();
                    return Ok(());
                }
            },
        }
        // If it cannot be told, it has gone, and the next line finds that out.
        let _ = self.wire.say(&Message::Ready).await;
        match tokio::time::timeout(ANSWER, self.wire.hear()).await {
            Ok(Ok(Some((Message::Go, _)))) => {}
            Ok(Ok(Some((Message::Refused { reason }, _)))) => return Err(TakeoverError::Refused(reason)),
            Ok(Ok(Some((other, _)))) => return Err(TakeoverError::Strange(format!("{other:?}"))),
            Ok(Ok(None) | Err(_)) => warn!("the usher that ran has ended by itself"),
            Err(_) => return Err(TakeoverError::Refused(format!("{} does not answer", self.name()))),
        }
        accept();
        let _ = self.wire.say(&Message::Accepting).await;
        match tokio::time::timeout(ANSWER, self.wire.hear()).await {
            Ok(Ok(Some((Message::Done { clients, over_ms }, _)))) => {
                info!(clients, over_ms, "taken over: the usher that ran closes its clients, who come here");
            }
            other => debug!(?other, "taken over; the usher that ran says no more"),
        }
        Ok(())
    }
}
