//! Where the listening sockets of `usher run` come from: systemd, the usher that runs, or this process itself.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::activation::Passed;
use super::takeover::{self, Incumbent, Monoliths, Predecessor, Published, Shared, TakeoverError};
use crate::config::Config;
use crate::front::listener::Listener;

/// Why there are no sockets.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocketError {
    /// Another process has the port.
    #[error("{0}")]
    InUse(String),
    /// The usher that runs goes on.
    #[error("{0}")]
    Takeover(#[from] TakeoverError),
    /// The machine does not give what is needed.
    #[error("cannot start on {0}: {1}")]
    Io(String, io::Error),
}

/// What `usher run` listens on.
#[derive(Debug)]
pub(super) struct Sockets {
    /// For clients.
    pub(super) main: Listener,
    /// For the admin API, if it has a socket of its own.
    pub(super) admin: Option<Listener>,
    /// The usher to be replaced, and the Monoliths that it has.
    pub(super) predecessor: Option<(Predecessor, Monoliths)>,
    /// Where the next usher finds this one.
    path: Option<PathBuf>,
}

impl Sockets {
    /// Takes what systemd has passed, else what the usher that runs passes (with `takeover`), else binds.
    ///
    /// # Errors
    /// If another process has the port, or the usher that runs does not hand over.
    pub(super) async fn gather(config: &Config, passed: Passed, takeover: bool) -> Result<Self, SocketError> {
        let from_systemd = |socket: Option<std::net::TcpListener>| {
            let taken = socket.map(Listener::from_std).transpose();
            taken.map_err(|error| SocketError::Io("the socket that systemd passed".into(), error))
        };
        let (mut main, mut admin) = (from_systemd(passed.main)?, from_systemd(passed.admin)?);
        for socket in main.iter().chain(&admin) {
            info!(addr = %socket.addr(), "listens on a socket that was passed at the start");
        }
        let port = main.as_ref().map_or(config.port, |main| main.addr().port());
        let path = takeover::path(&config.takeover, port);
        let mut predecessor = None;
        if takeover {
            let Some(path) = &path else {
                let why = "the configuration has takeover = \"\": no usher can be found; remove that";
                return Err(TakeoverError::Refused(why.into()).into());
            };
            predecessor = Self::replace(config, path, port, &mut main, &mut admin).await?;
        } else if let (Some(main), Some(path)) = (&main, &path)
            && let Ok(Some(other)) = takeover::find(path).await
        {
            // Two that accept on one socket would share the clients by chance.
            let what = format!("an usher serves {} already ({})", main.addr(), other.name());
            return Err(SocketError::InUse(format!("{what}; --takeover replaces it")));
        }
        let main = match main {
            Some(main) => main,
            None => match Listener::bind_any(port) {
                Ok(main) => main,
                Err(error) => return Err(in_use(&format!("port {port}"), error, path.as_deref(), takeover).await),
            },
        };
        let admin = match (admin, config.admin_listen) {
            (Some(admin), _) => Some(admin),
            (None, Some(addr)) => match Listener::bind(addr) {
                Ok(admin) => Some(admin),
                Err(error) => {
                    return Err(in_use(&format!("admin_listen {addr}"), error, path.as_deref(), takeover).await);
                }
            },
            (None, None) => None,
        };
        Ok(Self { main, admin, predecessor, path })
    }

    /// Gets the sockets of the usher that runs, where systemd has not passed them.
    async fn replace(
        config: &Config,
        path: &Path,
        port: u16,
        main: &mut Option<Listener>,
        admin: &mut Option<Listener>,
    ) -> Result<Option<(Predecessor, Monoliths)>, SocketError> {
        let found = match takeover::find(path).await? {
            Some(mut found) => found.ask().await?.map(|offered| (found, offered)),
            None => None,
        };
        let Some((found, offered)) = found else {
            info!(path = %path.display(), "nobody to take over from: no usher listens there");
            return Ok(None);
        };
        info!(pid = offered.pid, linked = offered.monoliths.linked, "taking over from the usher that runs");
        let take =
            |socket| Listener::from_std(socket).map_err(|error| SocketError::Io("a passed socket".into(), error));
        if main.is_none() {
            let taken = take(offered.main)?;
            if taken.addr().port() != port {
                let (name, has) = (found.name(), taken.addr().port());
                let why = format!(
                    "the usher that runs ({name}) has port {has}, and the configuration says {port}: a takeover keeps \
                     the port; write port = {has}, or stop the other one"
                );
                return Err(TakeoverError::Refused(why).into());
            }
            *main = Some(taken);
        }
        let wanted = |addr: SocketAddr| config.admin_listen == Some(addr);
        if let (None, Some((socket, addr))) = (&admin, offered.admin)
            && wanted(addr)
        {
            *admin = Some(take(socket)?);
        }
        Ok(Some((found, offered.monoliths)))
    }

    /// The sockets once more, for the next usher. Without a place where it could ask, this one can still serve.
    pub(super) fn share(&self) -> Option<Shareable> {
        let path = self.path.clone()?;
        match Shared::of(&self.main, self.admin.as_ref()) {
            Ok(shared) => Some(Shareable { path, shared }),
            Err(error) => {
                warn!(%error, "no takeover of this usher will be possible");
                None
            }
        }
    }
}

/// What the next usher will be offered, once this one serves.
#[derive(Debug)]
pub(super) struct Shareable {
    path: PathBuf,
    shared: Shared,
}

impl Shareable {
    /// Offers it from now on; `took_over` says that the usher which was found there has handed over.
    pub(super) async fn publish(self, took_over: bool) -> Option<Incumbent> {
        let published = match took_over {
            true => Published::replace(&self.path),
            false => Published::at(&self.path).await,
        };
        match published {
            Ok(published) => Some(Incumbent::new(published, self.shared)),
            Err(error) => {
                let path = self.path.display();
                warn!(%path, %error, "no takeover of this usher will be possible; set `takeover` to another path, or to \"\"");
                None
            }
        }
    }
}

/// Why an address cannot be had, and what helps.
async fn in_use(what: &str, error: io::Error, path: Option<&Path>, takeover: bool) -> SocketError {
    if error.kind() != io::ErrorKind::AddrInUse {
        return SocketError::Io(what.to_string(), error);
    }
    let Some(path) = path else { return SocketError::Io(what.to_string(), error) };
    let other = takeover::find(path).await;
    SocketError::InUse(match (takeover, other) {
        (false, Ok(Some(other))) => {
            format!(
                "cannot start on {what}: an usher runs there ({}); `usher run --takeover` replaces it",
                other.name()
            )
        }
        (true, Ok(None)) => format!(
            "cannot start on {what}: {error}, and no usher listens at {}; if one runs, its `takeover` names another path",
            path.display()
        ),
        _ => format!("cannot start on {what}: {error}"),
    })
}
