//! The listening socket and the connections of HTTP clients: their bounds in number and time, and a stop that lets
//! requests finish.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::accept::{Newcomers, accept};
use super::body::Body;
use super::connection::{self, Accepted, Home};
use super::guard::Guarded;
use super::threads::Threads;
use super::turnstile::Turnstile;
use crate::config::Config;
use crate::model::metrics::MetricsText;

/// Sockets beyond `limits.clients`, for HTTP: requests are short, so this is far more than are ever in use at once.
/// Over the bound a connection is accepted and closed at once, which costs little and tells the client so.
pub const HTTP_CONNECTIONS: usize = 4096;

/// For the whole of a request's head, from its first byte.
const HEAD: Duration = Duration::from_secs(10);

/// The queue of connections that the kernel has completed and nobody has accepted yet.
const BACKLOG: i32 = 4096;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The address; an IPv4 client on an IPv6 socket has its IPv4 address.
    pub addr: SocketAddr,
    /// The address without the port, as a header value, made once for all requests.
    pub text: HeaderValue,
}

impl Peer {
    /// The peer with this address.
    pub fn new(addr: SocketAddr) -> Self {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let text = HeaderValue::from_str(&addr.ip().to_string());
        Self { addr, text: text.unwrap_or_else(|_| HeaderValue::from_static("unknown")) }
    }
}

/// What answers requests. An answer 101 has to be one whose request had an upgrade taken with `hyper::upgrade::on`.
pub trait Handler: Send + Sync + 'static {
    /// The answer to a request. It is dropped when the client goes away.
    fn handle(&self, request: Request<Incoming>, peer: &Peer) -> impl Future<Output = Response<Body>> + Send;

    /// Whether a request is about this balancer, and answered without waiting for anybody.
    fn is_probe(&self, request: &Request<Incoming>) -> bool;

    /// Whether a request wants into a room, and nobody decides whether it may.
    fn is_newcomer(&self, request: &Request<Incoming>) -> bool;
}

/// The bounds of a listener's connections.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Sockets that are open at once, those that were upgraded included.
    pub connections: usize,
    /// New connections per second from one address; 0: as many as it likes.
    pub per_address: u32,
    /// Bytes of a request's head.
    pub header: usize,
    /// For the whole of a request's head.
    pub head: Duration,
    /// For the next request.
    pub keep_alive: Duration,
    /// For a byte in either direction while a request is under way (HTTP/1).
    pub stall: Duration,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        Self {
            connections: config.limits.clients + HTTP_CONNECTIONS,
            per_address: config.limits.connections_per_second,
            header: config.limits.header,
            head: HEAD,
            keep_alive: config.timeouts.keep_alive,
            // An answer may keep a client waiting for a room and for a Monolith. Only then is it the client who does not
            // read, or does not send.
            stall: (config.timeouts.http_response * 2).saturating_add(config.timeouts.patience(&config.limits)),
        }
    }
}

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    addr: SocketAddr,
    counters: Arc<ListenerCounters>,
}

/// Connections that were closed as soon as they were accepted.
#[derive(Debug, Default)]
pub struct ListenerCounters {
    /// There were as many as may be.
    pub too_many: AtomicU64,
    /// Their address connects more often than it may.
    pub too_fast: AtomicU64,
}

impl ListenerCounters {
    /// Writes what is counted.
    pub fn write_metrics(&self, out: &mut MetricsText) {
        let (many, fast) = (self.too_many.load(Ordering::Relaxed), self.too_fast.load(Ordering::Relaxed));
        out.counter("usher_refused_connections_total", "Connections closed at once since too many were open.", many);
        out.counter("usher_refused_rate_total", "Connections closed at once at limits.connections_per_second.", fast);
    }
}

impl Listener {
    /// Listens on every address of the machine: one socket for IPv6 and IPv4, or for IPv4 where there is no IPv6.
    ///
    /// # Errors
    /// If the port cannot be had.
    pub fn bind_any(port: u16) -> io::Result<Self> {
        match Self::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
            Err(error) if no_ipv6(&error) => Self::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
            bound => bound,
        }
    }

    /// Listens on a free port of the loopback interface, for tests and demonstrations.
    ///
    /// # Errors
    /// If no port can be had.
    pub fn bind_loopback() -> io::Result<Self> {
        Self::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Listens on this address; IPv6 any takes IPv4 too.
    ///
    /// # Errors
    /// If the address cannot be had.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        // A restarted balancer must get its port although connections of the last one linger.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        let socket = TcpListener::from_std(socket.into())?;
        let addr = socket.local_addr()?;
        Ok(Self { socket, addr, counters: Arc::default() })
    }

    /// Takes a socket that listens already: one that systemd, or the usher before this one, has passed.
    ///
    /// # Errors
    /// If it does not listen.
    pub fn from_std(socket: std::net::TcpListener) -> io::Result<Self> {
        let addr = socket.local_addr()?;
        if !rustix::net::sockopt::socket_acceptconn(&socket)? {
            let message = format!("the socket of {addr} that was passed does not listen; pass one that does");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        socket.set_nonblocking(true)?;
        Ok(Self { socket: TcpListener::from_std(socket)?, addr, counters: Arc::default() })
    }

    /// A second descriptor of the same socket, to be passed on. As long as it is open, connections queue up.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }

    /// The address that was bound.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What it counts.
    pub fn counters(&self) -> Arc<ListenerCounters> {
        self.counters.clone()
    }

    /// Accepts and serves until `stop` (or until nobody can accept any more, which is a fault); then lets requests finish for `grace` (or as long as the stop says) and drops what
    /// is left. Returns how many connections that were. Upgraded ones are not waited for: they belong to whoever took
    /// them.
    pub async fn serve<H: Handler>(
        self,
        handler: Arc<H>,
        bounds: Bounds,
        threads: Arc<Threads>,
        stop: Stop,
        grace: Duration,
    ) -> usize {
        let (turnstile, mut turning) = Turnstile::new(threads.reception(), {
            let handler = handler.clone();
            move |accepted| _ = tokio::spawn(connection::serve(accepted, handler.clone(), Home::Reception))
        });
        let shared = Arc::new(Shared {
            bounds,
            stop,
            open: AtomicUsize::new(0),
            serving: AtomicUsize::new(0),
            last: Notify::new(),
            turnstile,
            newcomers: Newcomers::new(),
            counters: self.counters,
            threads,
        });
        let mut accepting = match self.socket.into_std() {
            Ok(socket) => shared.threads.desk().spawn(accept(socket, handler, shared.clone())),
            Err(error) => {
                tracing::error!(%error, "cannot accept connections");
                return 0;
            }
        };
        tokio::select! {
            biased;
            () = shared.stop.reached(Stage::Leaving) => {
                accepting.abort();
                // The socket is closed once the task has ended, and ending is all that it is asked for.
                let _ = accepting.await;
            }
            ended = &mut accepting => {
                tracing::error!(?ended, "nobody accepts connections any more");
                return shared.serving.load(Ordering::Acquire);
            }
            ended = &mut turning => {
                tracing::error!(?ended, "nobody lets newcomers in any more");
                return shared.serving.load(Ordering::Acquire);
            }
        }
        tokio::select! {
            () = shared.stop.wait() => {}
            () = shared.drained() => return 0,
        }
        let grace = shared.stop.0.grace.get().copied().unwrap_or(grace);
        let drained = tokio::time::timeout(grace, shared.drained()).await.is_ok();
        if drained {
            return 0;
        }
        let left = shared.serving.load(Ordering::Acquire);
        shared.stop.abort();
        shared.drained().await;
        left
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let unsupported = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL, Errno::PROTONOSUPPORT, Errno::INVAL, Errno::NOPROTOOPT];
    error.raw_os_error().is_some_and(|raw| unsupported.iter().any(|errno| errno.raw_os_error() == raw))
}

/// What all connections of a listener share.
#[derive(Debug)]
pub(super) struct Shared {
    bounds: Bounds,
    pub(super) stop: Stop,
    /// Sockets, upgraded ones included.
    open: AtomicUsize,
    /// Connections that speak HTTP.
    serving: AtomicUsize,
    last: Notify,
    pub(super) turnstile: Turnstile<Accepted>,
    pub(super) newcomers: Newcomers,
    pub(super) counters: Arc<ListenerCounters>,
    pub(super) threads: Arc<Threads>,
}

/// Where the bounds of connections come from.
#[derive(Debug)]
pub enum Bounds {
    /// They do not change.
    Fixed(Settings),
    /// Those that the configuration has when a connection begins.
    Live(Arc<ArcSwap<Config>>),
}

impl Shared {
    pub(super) fn settings(&self) -> Settings {
        match &self.bounds {
            Bounds::Fixed(settings) => *settings,
            Bounds::Live(config) => Settings::from(&**config.load()),
        }
    }

    /// How often an address may connect; 0: as often as it likes, as trusted proxies do, behind whom many users are.
    pub(super) fn rate_for(&self, address: IpAddr) -> u32 {
        match &self.bounds {
            Bounds::Fixed(settings) => settings.per_address,
            Bounds::Live(config) => {
                let config = config.load();
                let rate = config.limits.connections_per_second;
                let address = address.to_canonical();
                let trusted = rate > 0 && config.trusted.iter().any(|range| range.contains(&address));
                if trusted { 0 } else { rate }
            }
        }
    }

    async fn drained(&self) {
        loop {
            let last = self.last.notified();
            if self.serving.load(Ordering::Acquire) == 0 {
                return;
            }
            last.await;
        }
    }
}

/// A place among the sockets that may be open, given back when it is dropped.
#[derive(Debug)]
pub struct Slot(Arc<Shared>);

impl Slot {
    pub(super) fn take(shared: &Arc<Shared>) -> Option<Self> {
        let limit = shared.settings().connections;
        // Only the accepting task adds, so the count cannot pass the limit in between.
        if shared.open.load(Ordering::Relaxed) >= limit {
            return None;
        }
        shared.open.fetch_add(1, Ordering::Relaxed);
        Some(Self(Arc::clone(shared)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that speaks HTTP, as long as it lives.
#[derive(Debug)]
pub(super) struct Serving(pub(super) Arc<Shared>);

impl Serving {
    pub(super) fn begin(shared: &Arc<Shared>) -> Self {
        shared.serving.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if self.0.serving.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.last.notify_waiters();
        }
    }
}

/// Tells a listener and its connections to stop. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Stopping>);

#[derive(Debug, Default)]
struct Stopping {
    stage: AtomicU8,
    changed: Notify,
    /// How long requests may go on, where the stop itself says it.
    grace: OnceLock<Duration>,
}

/// How far a stop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Running,
    /// Somebody else accepts. Connections that there are stay until they have been answered once more: who keeps one may
    /// be sending on it just now, and would be told nothing by its end.
    Leaving,
    /// Requests may finish, and no new ones begin.
    Stopping,
    /// Everything ends now.
    Aborting,
}

impl Stop {
    /// Nothing is to stop yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stop accepting, since another process does, and end each connection with its next answer.
    pub fn leave(&self) {
        self.advance(Stage::Leaving);
    }

    /// Stop accepting, finish what is under way.
    pub fn trigger(&self) {
        self.advance(Stage::Stopping);
    }

    /// The same with a time of its own for what is under way.
    pub fn trigger_within(&self, grace: Duration) {
        // Whoever stopped first has said how long it may take.
        let _ = self.0.grace.set(grace);
        self.trigger();
    }

    /// Whether anything is to stop yet.
    pub fn is_begun(&self) -> bool {
        self.stage() > Stage::Running
    }

    /// Returns once `trigger` was called.
    pub async fn wait(&self) {
        self.reached(Stage::Stopping).await;
    }

    async fn reached(&self, stage: Stage) {
        loop {
            let changed = self.changed();
            if self.stage() >= stage {
                return;
            }
            changed.await;
        }
    }

    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.0.changed.notified()
    }

    pub(super) fn stage(&self) -> Stage {
        match self.0.stage.load(Ordering::Acquire) {
            0 => Stage::Running,
            1 => Stage::Leaving,
            2 => Stage::Stopping,
            _ => Stage::Aborting,
        }
    }

    fn abort(&self) {
        self.advance(Stage::Aborting);
    }

    fn advance(&self, to: Stage) {
        self.0.stage.fetch_max(to as u8, Ordering::AcqRel);
        self.0.changed.notify_waiters();
    }
}

/// The plain TCP stream of a connection that was upgraded, with what the client sent already, and its place in the
/// count of sockets, to be kept as long as the stream.
///
/// # Errors
/// Gives the connection back if it is not one of ours.
pub fn into_tcp(upgraded: Upgraded) -> Result<(TcpStream, bytes::Bytes, Slot), Upgraded> {
    let parts = upgraded.downcast::<TokioIo<Guarded<TcpStream, Slot>>>()?;
    match parts.io.into_inner().into_parts() {
        Some((stream, slot)) => Ok((stream, parts.read_buf, slot)),
        // Only this function takes a stream out of its guard, and it consumes the guard.
        None => unreachable!("a guard without its stream"),
    }
}

#[cfg(test)]
#[path = "listener_test.rs"]
mod tests;
