//! Upgrades that are not rooms: the request goes to a Monolith as it is, and if the answer is 101, bytes are copied both
//! ways until either end is done.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1::Builder;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::task::AbortHandle;

use super::body::Body;
use super::forward;
use super::listener::Stop;
use super::upload::RequestBody;
use super::upstream::{InFlight, Pool, SendError, SendErrorKind};
use super::wire;

/// A tunnel through which nothing went for this long ends: it is far longer than any protocol's own heartbeat, and
/// shorter than a vanished peer could hold two sockets otherwise.
pub const IDLE: Duration = Duration::from_secs(600);

/// Bytes held per direction.
const BUFFER: usize = 16 << 10;

/// Forwards a request for an upgrade (headers made by `forward::to_upstream_upgrade`). With an answer 101, the copying
/// goes on in a task of its own until either end is done, `stop` comes, or nothing moves for [`IDLE`]; any other answer
/// is passed on. `in_flight` lasts as long.
///
/// # Errors
/// If no head of an answer came.
pub async fn open(
    pool: &Pool,
    target: SocketAddr,
    mut request: Request<Incoming>,
    in_flight: Option<InFlight>,
    stop: Stop,
) -> Result<Response<Body>, SendError> {
    let client = hyper::upgrade::on(&mut request);
    let request = request.map(RequestBody::from);
    let timeouts = pool.timeouts();
    let stream = match wire::connect(target, timeouts.connect).await {
        Ok(stream) => stream,
        Err(kind) => return Err(SendError { kind, request: Some(Box::new(request)) }),
    };
    let broken = |kind| SendError { kind, request: None };
    let handshake = Builder::new().max_buf_size(wire::BUFFER).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| broken(SendErrorKind::of(&error)))?;
    // An upgrade outlives its request, so its connection has a task from the start; it is not worth a pool.
    let mut driver = Driver(Some(tokio::spawn(connection.with_upgrades()).abort_handle()));
    let answer = tokio::time::timeout(timeouts.response, sender.send_request(request)).await;
    let mut response = match answer {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(broken(SendErrorKind::of(&error))),
        Err(_) => return Err(broken(SendErrorKind::HeadTimeout)),
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        forward::to_client(response.headers_mut());
        return Ok(response.map(|body| pool.detached(body, driver.0.take(), in_flight).into()));
    }
    let monolith = hyper::upgrade::on(&mut response);
    driver.0 = None;
    tokio::spawn(async move {
        let both = async { tokio::try_join!(client, monolith) };
        // The Monolith's side is there already; the client's as soon as the 101 is written.
        match tokio::time::timeout(timeouts.response, both).await {
            Ok(Ok((client, monolith))) => copy(client, monolith, IDLE, &stop).await,
            Ok(Err(error)) => tracing::debug!(%error, "an upgrade was not completed"),
            Err(_) => tracing::debug!("an upgrade was not completed in time"),
        }
        drop(in_flight);
    });
    let (mut parts, _) = response.into_parts();
    forward::to_client_upgrade(&mut parts.headers);
    // hyper's own notes about the Monolith's side must not reach its server half.
    parts.extensions.clear();
    Ok(Response::from_parts(parts, Body::Empty))
}

/// Ends a connection's task unless it is kept: a client that goes away takes its request with it.
struct Driver(Option<AbortHandle>);

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

async fn copy(client: Upgraded, monolith: Upgraded, idle: Duration, stop: &Stop) {
    let moved = Arc::new(AtomicBool::new(false));
    let mut client = Watched { stream: TokioIo::new(client), moved: Arc::clone(&moved) };
    let mut monolith = Watched { stream: TokioIo::new(monolith), moved: Arc::clone(&moved) };
    let stalled = async {
        loop {
            tokio::time::sleep(idle).await;
            if !moved.swap(false, Ordering::Relaxed) {
                return;
            }
        }
    };
    tokio::select! {
        copied = copy_bidirectional_with_sizes(&mut client, &mut monolith, BUFFER, BUFFER) => {
            if let Err(error) = copied {
                tracing::debug!(%error, "a tunnel broke");
            }
        }
        () = stalled => tracing::debug!("a tunnel was idle for {idle:?}"),
        () = stop.wait() => {}
    }
}

/// A stream that notes when bytes arrive.
struct Watched<S> {
    stream: S,
    moved: Arc<AtomicBool>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.moved.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
