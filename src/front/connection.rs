//! One client connection: which protocol it speaks, and its life until it ends or is upgraded.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::body::Body;
use super::guard::{Activity, Guarded, InRequest, PREFACE, Patience, Verdict};
use super::listener::{Handler, Peer, Serving, Settings, Slot, Stage, Stop};
use super::respond::Refusal;
use super::upstream::BodyError;

/// Bytes that hyper buffers in each direction of an HTTP/1 connection, unless `limits.header` needs more. What a client
/// does not read is held up to this much and then left with the Monolith.
const BUFFER: usize = 64 << 10;

/// What a client that wants into a room sends first.
pub(super) const ROOM: &[u8; 14] = b"GET /api/room/";

/// HTTP/2: requests at once, and how much of each body a client may send ahead of the Monolith.
const STREAMS: u32 = 100;
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// HTTP/2 has pings of its own for clients that vanished.
const PING: Duration = Duration::from_secs(20);

/// How long a connection that was asked to close in good order may take when nothing is under way on it.
const FAREWELL: Duration = Duration::from_secs(1);

/// A connection that has been accepted.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) peer: Peer,
    pub(super) slot: Slot,
    pub(super) serving: Serving,
}

/// Which thread serves a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// The one that answers how this balancer is doing.
    Desk,
    /// The one for those who want into rooms; they have had their turn.
    Reception,
    /// Those for everything else.
    Workers,
}

impl Home {
    /// Whether a request is one of those for which its connection was taken there.
    fn is_for<H: Handler>(self, handler: &H, request: &Request<Incoming>) -> bool {
        match self {
            Self::Desk => handler.is_probe(request),
            Self::Reception => handler.is_newcomer(request),
            Self::Workers => true,
        }
    }
}

/// Has the runtime of the caller tell when a stream is ready, and no more the one that did.
pub(super) fn here(stream: TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(stream.into_std()?)
}

/// Serves a connection to its end, on the thread that is its home.
pub(super) async fn serve<H: Handler>(accepted: Accepted, handler: Arc<H>, home: Home) {
    let Accepted { stream, peer, slot, serving } = accepted;
    let mut stream = match if home == Home::Desk { Ok(stream) } else { here(stream) } {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(peer = %peer.addr, %error, "a connection cannot be served"),
    };
    let Settings { header, head, keep_alive, stall, .. } = serving.0.settings();
    let stop = serving.0.stop.clone();
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(peer = %peer.addr, %error, "a client's connection delays small packets");
    }
    let mut prefix = [0; PREFACE.len()];
    let read = tokio::select! {
        biased;
        read = detect(&mut stream, &mut prefix, head, keep_alive) => read,
        () = stop.wait() => return,
    };
    let Ok((version, len)) = read else { return };
    let activity = Arc::new(Activity::new());
    let http2 = version == Version::HTTP_2;
    let stream = TokioIo::new(Guarded::new(stream, slot, &prefix[..len], http2, Arc::clone(&activity)));
    let workers = (home != Home::Workers).then(|| serving.0.threads.workers().clone());
    let client = Arc::new(Client { handler, peer, activity: Arc::clone(&activity), stop: stop.clone(), home, workers });
    let service = service_fn(move |request| {
        let client = Arc::clone(&client);
        let running = client.activity.request();
        async move { Ok::<_, Infallible>(client.answer(running, request).await) }
    });
    let ended = if http2 {
        let patience = Patience { keep_alive, head, stall: None };
        // Boxed, so that the many connections that speak HTTP/1 do not carry its size.
        let mut connection = Box::pin(http2_builder(header).serve_connection(stream, service));
        // It can say goodbye without losing a request that is on its way.
        let at = Stage::Leaving;
        drive(connection.as_mut(), |connection| connection.graceful_shutdown(), at, &activity, &patience, &stop).await
    } else {
        let patience = Patience { keep_alive, head, stall: Some(stall) };
        let connection = http1_builder(header).serve_connection(stream, service).with_upgrades();
        let at = Stage::Stopping;
        drive(pin!(connection), |connection| connection.graceful_shutdown(), at, &activity, &patience, &stop).await
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a client's connection ended early");
    }
    drop(serving);
}

/// Tells HTTP/2 from HTTP/1 by the first bytes; returns how many were read.
async fn detect(
    stream: &mut TcpStream,
    prefix: &mut [u8; PREFACE.len()],
    head: Duration,
    keep_alive: Duration,
) -> io::Result<(Version, usize)> {
    let mut len = 0;
    while len < PREFACE.len() {
        let patience = if len == 0 { keep_alive } else { head };
        let read = tokio::time::timeout(patience, stream.read(&mut prefix[len..])).await??;
        if read == 0 && len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        len += read;
        if read == 0 || prefix[..len] != PREFACE[..len] {
            return Ok((Version::HTTP_11, len));
        }
    }
    Ok((Version::HTTP_2, len))
}

fn http1_builder(header: usize) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_header_size(header)
        .max_buf_size(BUFFER.max(header + (8 << 10)))
        // The connection's own timer tells idling from a slow head.
        .header_read_timeout(None);
    builder
}

fn http2_builder(header: usize) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(BUFFER)
        .max_header_list_size(u32::try_from(header).unwrap_or(u32::MAX))
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

/// Runs a connection under its time-outs and the listener's stop, with one timer that moves only when it fires. It is
/// asked to finish when the stop is at `finish_at`.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    mut connection: Pin<&mut C>,
    finish: impl Fn(Pin<&mut C>),
    finish_at: Stage,
    activity: &Activity,
    patience: &Patience,
    stop: &Stop,
) -> hyper::Result<()> {
    let shortest = patience.stall.map_or(patience.keep_alive, |stall| stall.min(patience.keep_alive));
    let mut timer = pin!(tokio::time::sleep(shortest));
    let mut changed = pin!(stop.changed());
    let mut seen = Stage::Running;
    let mut registered = false;
    let mut farewell = None;
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(end) = connection.as_mut().poll(cx) {
                return Poll::Ready(end);
            }
            if !registered {
                // Once: it takes a lock that all connections share. The stage itself is an atomic.
                registered = true;
                if changed.as_mut().poll(cx).is_ready() {
                    registered = false;
                    changed.set(stop.changed());
                    continue;
                }
            }
            let stage = stop.stage();
            if stage == Stage::Aborting {
                return Poll::Ready(Ok(()));
            }
            if stage > seen {
                seen = stage;
                registered = false;
                changed.set(stop.changed());
                if stage >= finish_at {
                    finish(connection.as_mut());
                }
                continue;
            }
            if let Some(deadline) = activity.urgent(patience)
                && deadline < timer.deadline()
            {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            match activity.verdict(now, patience) {
                Verdict::Wait(until) => timer.as_mut().reset(until.min(now + shortest)),
                Verdict::Stalled => return Poll::Ready(Ok(())),
                Verdict::Idle if farewell.is_some_and(|until| until <= now) => return Poll::Ready(Ok(())),
                Verdict::Idle => {
                    let until = *farewell.get_or_insert(now + FAREWELL);
                    timer.as_mut().reset(until);
                    finish(connection.as_mut());
                }
            }
        }
    })
    .await
}

/// What the requests of one connection share.
struct Client<H> {
    handler: Arc<H>,
    peer: Peer,
    activity: Arc<Activity>,
    stop: Stop,
    home: Home,
    /// Where requests go that the connection was not expected to carry; none if it lives there.
    workers: Option<Handle>,
}

impl<H: Handler> Client<H> {
    async fn answer(self: Arc<Self>, running: InRequest, request: Request<Incoming>) -> Response<Tracked> {
        // HTTP/1.0 knows the end of an answer without a length by the close alone.
        let ends_by_close = request.version() == Version::HTTP_10;
        let http1 = request.version() < Version::HTTP_2;
        let mut astray = false;
        let mut response = match &self.workers {
            Some(workers) if !self.home.is_for(&*self.handler, &request) => {
                astray = true;
                self.elsewhere(workers, request).await
            }
            Some(_) | None => self.handler.handle(request, &self.peer).await,
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            running.activity().upgraded();
        } else if http1 && (astray || self.stop.stage() == Stage::Leaving) {
            // The client's next connection is another process's, or another thread's.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response.map(|body| Tracked { body, running, ends_by_close })
    }

    /// Answers a request on another thread, for as long as the client waits.
    async fn elsewhere(self: &Arc<Self>, workers: &Handle, request: Request<Incoming>) -> Response<Body> {
        let client = Arc::clone(self);
        let mut tasks = JoinSet::new();
        tasks.spawn_on(async move { client.handler.handle(request, &client.peer).await }, workers);
        match tasks.join_next().await {
            Some(Ok(response)) => response,
            Some(Err(error)) => match error.try_into_panic() {
                // It ends a connection wherever it happens.
                Ok(panic) => std::panic::resume_unwind(panic),
                // The workers end.
                Err(_) => Refusal::unavailable().response(),
            },
            None => Refusal::unavailable().response(),
        }
    }
}

/// The body of an answer; its request is under way until it is dropped.
struct Tracked {
    body: Body,
    running: InRequest,
    ends_by_close: bool,
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = &frame {
            tracing::debug!(%error, "an answer broke off");
            if self.ends_by_close {
                self.running.activity().aborted();
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[path = "connection_test.rs"]
mod tests;
