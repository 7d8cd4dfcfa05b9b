//! Requests to Monoliths over a pool of connections.
//!
//! The pool keeps connections for less time than a Monolith does, hands out the one that was used last, and checks that
//! it is alive. If it turns out dead all the same, before anything was answered, a request that may be repeated goes
//! out once more, on a new connection to the same Monolith. To try another Monolith is the caller's choice, who gets
//! the request back if nothing of it was sent.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::upload::{RequestBody, UploadError};
use super::wire::{Timer, Wire};
use crate::config::{Config, Timeouts};

/// Idle connections kept per Monolith; beyond it they are closed.
const IDLE_PER_TARGET: usize = 256;

/// How often idle connections are looked at that nobody asks for.
const REAP_EVERY: Duration = Duration::from_secs(1);

/// The waits of [`Pool`].
#[derive(Clone, Copy, Debug)]
pub struct PoolTimeouts {
    /// For a connection.
    pub connect: Duration,
    /// For the head of an answer, and between two pieces of its body.
    pub response: Duration,
    /// How long a connection is kept that nobody uses.
    pub idle: Duration,
}

impl From<&Timeouts> for PoolTimeouts {
    fn from(timeouts: &Timeouts) -> Self {
        Self { connect: timeouts.http_connect, response: timeouts.http_response, idle: timeouts.upstream_idle }
    }
}

/// Why a request got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SendErrorKind {
    /// The Monolith takes no connection.
    Connect,
    /// It did not take one in time.
    ConnectTimeout,
    /// No head of an answer in time.
    HeadTimeout,
    /// The connection broke before the answer.
    Broken,
    /// What came is no answer.
    Invalid,
    /// The client's own request broke off, or was malformed.
    Request,
    /// Its body comes too slowly.
    SlowRequest,
}

impl SendErrorKind {
    /// A stable label for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect_timeout",
            Self::HeadTimeout => "head_timeout",
            Self::Broken => "broken",
            Self::Invalid => "invalid",
            Self::Request => "request",
            Self::SlowRequest => "slow_request",
        }
    }

    /// Whether the client is to blame, and not the Monolith.
    pub fn is_of_client(self) -> bool {
        match self {
            Self::Request | Self::SlowRequest => true,
            Self::Connect | Self::ConnectTimeout | Self::HeadTimeout | Self::Broken | Self::Invalid => false,
        }
    }

    pub(super) fn of(error: &hyper::Error) -> Self {
        if error.is_user() {
            // The only thing of ours that hyper runs here is the body, and its errors are the client's.
            let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<UploadError>());
            if matches!(source, Some(UploadError::TooSlow)) { Self::SlowRequest } else { Self::Request }
        } else if error.is_parse() {
            Self::Invalid
        } else {
            Self::Broken
        }
    }
}

/// A request that got no answer.
#[derive(Debug, thiserror::Error)]
#[error("no answer from the Monolith: {}", kind.label())]
pub struct SendError {
    /// Why.
    pub kind: SendErrorKind,
    /// The request, if nothing of it was sent: it may go to another Monolith.
    pub request: Option<Box<Request<RequestBody>>>,
}

/// Counts requests in flight: one as long as it lives.
#[derive(Debug)]
pub struct InFlight(Arc<AtomicU32>);

impl InFlight {
    /// Counts one more.
    pub fn enter(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where the waits come from.
#[derive(Debug)]
enum Waits {
    Fixed(PoolTimeouts),
    /// As the configuration says at this moment.
    Live(Arc<ArcSwap<Config>>),
}

/// Connections to all Monoliths. A clone is the same pool.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waits: Waits,
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    /// The one used last is at the end. Boxed, because a connection that is taken out moves through several futures.
    #[allow(clippy::vec_box)]
    by_target: HashMap<SocketAddr, Vec<Box<Wire>>, foldhash::fast::RandomState>,
    /// Whether somebody closes those that nobody asks for.
    reaped: bool,
}

impl Pool {
    /// A pool with these waits.
    pub fn new(timeouts: PoolTimeouts) -> Self {
        Self(Arc::new(Shared { waits: Waits::Fixed(timeouts), idle: Mutex::default() }))
    }

    /// A pool whose waits change with the configuration, for requests that begin after the change.
    pub fn live(config: Arc<ArcSwap<Config>>) -> Self {
        Self(Arc::new(Shared { waits: Waits::Live(config), idle: Mutex::default() }))
    }

    /// The waits.
    pub fn timeouts(&self) -> PoolTimeouts {
        self.0.timeouts()
    }

    /// How many idle connections there are.
    pub fn idle(&self) -> usize {
        self.0.lock().by_target.values().map(Vec::len).sum()
    }

    /// Sends a request and waits for the head of the answer. `in_flight` is dropped when the body has ended.
    ///
    /// The request's URI has to be a path, its `Host` a header, its version HTTP/1.1: `forward::to_upstream` sees to it.
    ///
    /// # Errors
    /// If no head of an answer came. A broken body is an error of the body.
    pub async fn send(
        &self,
        target: SocketAddr,
        mut request: Request<RequestBody>,
        in_flight: Option<InFlight>,
    ) -> Result<Response<UpstreamBody>, SendError> {
        let upload = request.body_mut().track();
        let timeouts = self.0.timeouts();
        let mut next = request;
        if let Some(mut wire) = self.0.take(target).await {
            let again = (upload.is_none() && is_idempotent(next.method())).then(|| copy_of(&next));
            match wire.exchange(next, upload.as_ref(), timeouts.response).await {
                Ok(response) => {
                    return self.answer(wire, response, upload.is_some_and(|up| !up.is_done()), in_flight).await;
                }
                Err(failed) => {
                    let broken = failed.kind == SendErrorKind::Broken;
                    match failed.request.or_else(|| again.filter(|_| broken).map(Box::new)) {
                        Some(request) => next = *request,
                        None => return Err(SendError { kind: failed.kind, request: None }),
                    }
                }
            }
        }
        let mut wire = match Wire::connect(target, timeouts.connect).await {
            Ok(wire) => wire,
            Err(kind) => return Err(SendError { kind, request: Some(Box::new(next)) }),
        };
        match wire.exchange(next, upload.as_ref(), timeouts.response).await {
            Ok(response) => self.answer(wire, response, upload.is_some_and(|up| !up.is_done()), in_flight).await,
            Err(failed) => Err(SendError { kind: failed.kind, request: failed.request }),
        }
    }

    /// The body of an answer on a connection that is none of the pool's and runs in a task.
    pub(super) fn detached(
        &self,
        incoming: Incoming,
        task: Option<AbortHandle>,
        in_flight: Option<InFlight>,
    ) -> UpstreamBody {
        let timeout = self.0.timeouts().response;
        let driver = Some(Driver::Runtime(task, Timer::new(Instant::now() + timeout)));
        let rest = Some(Rest { incoming, driver });
        UpstreamBody { first: Bytes::new(), rest, deadline: None, timeout, _in_flight: in_flight }
    }

    /// Turns hyper's answer into ours. An answer that is already here whole is taken at once, so that the connection is
    /// free for the next request before the client has got this one.
    async fn answer(
        &self,
        wire: Box<Wire>,
        response: Response<Incoming>,
        uploading: bool,
        in_flight: Option<InFlight>,
    ) -> Result<Response<UpstreamBody>, SendError> {
        let (mut parts, incoming) = response.into_parts();
        // hyper would pass an old Monolith's version on to the client.
        parts.version = Version::HTTP_11;
        let mut body = UpstreamBody {
            first: Bytes::new(),
            rest: None,
            deadline: None,
            timeout: self.0.timeouts().response,
            _in_flight: in_flight,
        };
        if incoming.is_end_stream() && !uploading {
            self.0.put_back(wire);
            body._in_flight = None;
            return Ok(Response::from_parts(parts, body));
        }
        let driver = if uploading {
            let (task, timer) = wire.detach();
            Driver::Runtime(Some(task), timer)
        } else {
            Driver::Reader(wire, Arc::downgrade(&self.0))
        };
        body.rest = Some(Rest { incoming, driver: Some(driver) });
        let first = std::future::poll_fn(|cx| Poll::Ready(body.poll_rest(cx))).await;
        match first {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => body.first = data,
                // Trailers without a body: hyper would need to be told of them before; nobody sends such.
                Err(_) => body.end(),
            },
            Poll::Ready(Some(Err(_))) => return Err(SendError { kind: SendErrorKind::Broken, request: None }),
            Poll::Ready(None) | Poll::Pending => {}
        }
        Ok(Response::from_parts(parts, body))
    }
}

impl Shared {
    fn timeouts(&self) -> PoolTimeouts {
        match &self.waits {
            Waits::Fixed(timeouts) => *timeouts,
            Waits::Live(config) => PoolTimeouts::from(&config.load().timeouts),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that is alive as far as one can see.
    async fn take(&self, target: SocketAddr) -> Option<Box<Wire>> {
        let keep = self.timeouts().idle;
        loop {
            let mut wire = {
                let mut idle = self.lock();
                let wires = idle.by_target.get_mut(&target)?;
                let wire = wires.pop()?;
                if wire.idle_since.elapsed() >= keep {
                    // The others have been idle for longer.
                    wires.clear();
                    return None;
                }
                wire
            };
            if std::future::poll_fn(|cx| Poll::Ready(wire.poll_ready(cx))).await {
                return Some(wire);
            }
        }
    }

    fn put_back(self: &Arc<Self>, mut wire: Box<Wire>) {
        if !wire.is_ready() {
            return;
        }
        wire.idle_since = Instant::now();
        let mut idle = self.lock();
        let wires = idle.by_target.entry(wire.target()).or_default();
        if wires.len() < IDLE_PER_TARGET {
            wires.push(wire);
        }
        if !std::mem::replace(&mut idle.reaped, true) {
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn(reap(Arc::downgrade(self)))),
                // The runtime is going down, and the pool with it.
                Err(_) => idle.by_target.clear(),
            }
        }
    }
}

/// Closes what has been idle for too long, until there is nothing left to look after.
async fn reap(pool: Weak<Shared>) {
    loop {
        tokio::time::sleep(REAP_EVERY).await;
        let Some(pool) = pool.upgrade() else { return };
        let keep = pool.timeouts().idle;
        let mut closed = Vec::new();
        let mut idle = pool.lock();
        idle.by_target.retain(|_, wires| {
            let stale = wires.iter().take_while(|wire| wire.idle_since.elapsed() >= keep).count();
            closed.extend(wires.drain(..stale));
            !wires.is_empty()
        });
        let done = idle.by_target.is_empty();
        idle.reaped = !done;
        drop(idle);
        // Sockets are closed without the lock.
        drop(closed);
        if done {
            return;
        }
    }
}

/// Methods that may be repeated without harm (RFC 9110 section 9.2.2).
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::PUT | Method::DELETE | Method::OPTIONS | Method::TRACE)
}

/// The same request, which has no body.
fn copy_of(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Why an answer broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The Monolith's connection broke, or what came is no body.
    #[error("the body of the answer broke off")]
    Broken(#[source] hyper::Error),
    /// Nothing came for `timeouts.http_response`.
    #[error("the body of the answer stalled")]
    Timeout,
}

/// The body of a Monolith's answer. Dropping it early ends the request at the Monolith.
#[derive(Debug)]
pub struct UpstreamBody {
    /// What came together with the head.
    first: Bytes,
    rest: Option<Rest>,
    /// When the next piece is due, while somebody waits for it.
    deadline: Option<Instant>,
    timeout: Duration,
    _in_flight: Option<InFlight>,
}

struct Rest {
    incoming: Incoming,
    /// Taken out only by drop.
    driver: Option<Driver>,
}

/// Who drives the connection on which a body comes.
enum Driver {
    /// Whoever reads the body; the connection goes back to the pool afterwards.
    Reader(Box<Wire>, Weak<Shared>),
    /// A task; the connection ends with the body.
    Runtime(Option<AbortHandle>, Timer),
}

impl UpstreamBody {
    fn end(&mut self) {
        if let Some(mut rest) = self.rest.take()
            && let Some(Driver::Reader(wire, pool)) = rest.driver.take()
            && let Some(pool) = pool.upgrade()
        {
            drop(rest);
            pool.put_back(wire);
        }
        self._in_flight = None;
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(Rest { incoming, driver: Some(driver) }) = &mut self.rest else { return Poll::Ready(None) };
        let mut frame = Pin::new(&mut *incoming).poll_frame(cx);
        if frame.is_pending()
            && let Driver::Reader(wire, _) = driver
        {
            // Asking made hyper want to read; now it may.
            wire.drive(cx);
            frame = Pin::new(&mut *incoming).poll_frame(cx);
        }
        let Poll::Ready(frame) = frame else {
            let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + self.timeout);
            ready!(match driver {
                Driver::Reader(wire, _) => wire.poll_deadline(cx, deadline),
                Driver::Runtime(_, timer) => timer.poll_until(cx, deadline),
            });
            self.rest = None;
            return Poll::Ready(Some(Err(BodyError::Timeout)));
        };
        self.deadline = None;
        match frame {
            Some(Ok(frame)) => {
                if incoming.is_end_stream() {
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.rest = None;
                Poll::Ready(Some(Err(BodyError::Broken(error))))
            }
            None => {
                self.end();
                Poll::Ready(None)
            }
        }
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        if let Some(Driver::Runtime(Some(task), _)) = &self.driver {
            task.abort();
        }
    }
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rest").finish_non_exhaustive()
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.first.is_empty() {
            this.poll_rest(cx)
        } else {
            Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.first)))))
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.rest.as_ref().is_none_or(|rest| rest.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let here = self.first.len() as u64;
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), |rest| rest.incoming.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(here.saturating_add(rest.lower()));
        if let Some(upper) = rest.upper() {
            hint.set_upper(here.saturating_add(upper));
        }
        hint
    }
}

#[cfg(test)]
#[path = "upstream_test.rs"]
mod tests;
