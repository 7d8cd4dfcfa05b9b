//! One HTTP/1.1 connection to a Monolith.
//!
//! Nothing runs in the background for it: whoever waits for its answer drives it, in the task of the client's own
//! connection. That saves a task switch each way per request, lets a client that goes away take its request with it,
//! and lets an idle connection cost nothing. Whether it is still alive is seen when it is taken out of the pool.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::upload::{Progress, RequestBody};
use super::upstream::SendErrorKind;

/// Bytes that hyper buffers in each direction of one connection: it bounds what a slow reader can make us hold.
pub(super) const BUFFER: usize = 64 << 10;

/// What became of a request that got no answer.
pub(super) struct Failed {
    pub(super) kind: SendErrorKind,
    /// The request, if nothing of it was sent.
    pub(super) request: Option<Box<Request<RequestBody>>>,
}

/// A connection to a Monolith.
pub(super) struct Wire {
    sender: SendRequest<RequestBody>,
    connection: Connection<TokioIo<TcpStream>, RequestBody>,
    /// Whether `connection` has ended: it must not be polled again.
    ended: bool,
    target: SocketAddr,
    /// When it was put into the pool.
    pub(super) idle_since: Instant,
    timer: Timer,
}

/// A timer that is moved as seldom as possible: it stays where it was armed, and when it fires too early it is armed
/// again. So a wait that ends in time costs no visit to the runtime's timer wheel.
pub(super) struct Timer(Pin<Box<Sleep>>);

impl Timer {
    pub(super) fn new(until: Instant) -> Self {
        Self(Box::pin(tokio::time::sleep_until(until)))
    }

    /// Ready once `deadline` has passed.
    pub(super) fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        if self.0.deadline() > deadline {
            self.0.as_mut().reset(deadline);
        }
        while self.0.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

impl Wire {
    /// Connects, within `timeout`.
    pub(super) async fn connect(target: SocketAddr, timeout: Duration) -> Result<Box<Self>, SendErrorKind> {
        let stream = connect(target, timeout).await?;
        let handshake = Builder::new().max_buf_size(BUFFER).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|_| SendErrorKind::Connect)?;
        let now = Instant::now();
        Ok(Box::new(Self {
            sender,
            connection,
            ended: false,
            target,
            idle_since: now,
            timer: Timer::new(now + timeout),
        }))
    }

    pub(super) fn target(&self) -> SocketAddr {
        self.target
    }

    /// Does what the sockets allow; afterwards, whether another request could be sent now.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        !self.ended && self.sender.is_ready()
    }

    /// [`Self::poll_ready`] without being woken later.
    pub(super) fn is_ready(&mut self) -> bool {
        self.poll_ready(&mut Context::from_waker(Waker::noop()))
    }

    /// Does what the sockets allow.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.ended
            && let Poll::Ready(end) = Pin::new(&mut self.connection).poll(cx)
        {
            self.ended = true;
            if let Err(error) = end {
                tracing::debug!(target = %self.target, %error, "a connection to a Monolith broke");
            }
        }
    }

    /// Ready once `deadline` has passed.
    pub(super) fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        self.timer.poll_until(cx, deadline)
    }

    /// Sends a request and waits for the head of the answer: `timeout` after the last progress of the upload at most.
    pub(super) async fn exchange(
        &mut self,
        request: Request<RequestBody>,
        upload: Option<&Arc<Progress>>,
        timeout: Duration,
    ) -> Result<Response<Incoming>, Failed> {
        let mut answer = pin!(self.sender.try_send_request(request));
        let mut deadline = Instant::now() + timeout;
        let mut frames = 0;
        let answer = std::future::poll_fn(|cx| {
            loop {
                self.drive(cx);
                if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                    return Poll::Ready(Some(answer));
                }
                if self.timer.poll_until(cx, deadline).is_pending() {
                    return Poll::Pending;
                }
                let now = upload.map_or(0, |upload| upload.frames());
                if now == frames {
                    return Poll::Ready(None);
                }
                frames = now;
                deadline = Instant::now() + timeout;
            }
        });
        match answer.await {
            // A Monolith that changes the protocol unasked would have hyper hand out a stream that is no answer.
            Some(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Err(Failed { kind: SendErrorKind::Invalid, request: None })
            }
            Some(Ok(response)) => Ok(response),
            Some(Err(mut error)) => {
                let request = error.take_message().map(Box::new);
                Err(Failed { kind: SendErrorKind::of(&error.into_error()), request })
            }
            // The Monolith cannot answer what the client has not sent.
            None if upload.is_some_and(|upload| upload.waits_for_client()) => {
                Err(Failed { kind: SendErrorKind::SlowRequest, request: None })
            }
            None => Err(Failed { kind: SendErrorKind::HeadTimeout, request: None }),
        }
    }

    /// Leaves the connection to the runtime, for an answer that came before the upload was over: the upload goes on
    /// even while the client is not reading. It ends with the answer; the handle ends it earlier.
    pub(super) fn detach(self: Box<Self>) -> (tokio::task::AbortHandle, Timer) {
        let Self { connection, sender, ended, timer, .. } = *self;
        let task = tokio::spawn(async move {
            if !ended && let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a Monolith broke");
            }
            drop(sender);
        });
        (task.abort_handle(), timer)
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("target", &self.target).finish_non_exhaustive()
    }
}

/// Opens a TCP connection to a Monolith, within `timeout`.
pub(super) async fn connect(target: SocketAddr, timeout: Duration) -> Result<TcpStream, SendErrorKind> {
    match tokio::time::timeout(timeout, TcpStream::connect(target)).await {
        Ok(Ok(stream)) => {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%target, %error, "a connection to a Monolith delays small packets");
            }
            Ok(stream)
        }
        Ok(Err(error)) => {
            tracing::debug!(%target, %error, "a Monolith does not accept a connection");
            Err(SendErrorKind::Connect)
        }
        Err(_) => Err(SendErrorKind::ConnectTimeout),
    }
}
