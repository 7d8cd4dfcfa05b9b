//! The stream of one client connection, under guard: requests are checked before hyper reads them, and what the
//! connection is doing is noted for its time-outs.
//!
//! **Refusal.** From the first bad byte on, hyper is given bytes that it refuses by itself and then the end of the
//! stream. So answers to earlier requests on the connection still come first and in order, then a 400, then the close.
//!
//! **Upgrades.** After a request for an upgrade the bytes are still read as HTTP until the answer is 101
//! ([`Activity::upgraded`] is set before hyper writes it); from then on everything passes. A client must not speak the
//! new protocol before it has seen the 101, so an honest one notices nothing. One that does so all the same breaks its
//! own connection only: its bytes are refused as a bad request.
//!
//! **Closing.** Closing a socket with unread bytes makes the kernel reset it, which can destroy an answer that is still
//! on its way. So when a request was not read to its end, the guard reads on for a moment after the close.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::framing::Framing;

/// How long, and how many bytes, are read after the close of a connection whose last request was not read to its end.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 256 << 10;

/// The first bytes of an HTTP/2 connection.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection is doing, shared between its stream, its service and its task. Times are milliseconds since the
/// connection began, so that they fit an atomic; a 0 where a moment is meant says "not now".
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    /// Since when a head has been incomplete.
    head_since: AtomicU64,
    /// Since when the guard has been reading what nobody wants.
    lingering_since: AtomicU64,
    /// Whether the body of a request has not been read to its end.
    unread: AtomicBool,
    /// When bytes moved or a request ended.
    last: AtomicU64,
    in_flight: AtomicU32,
    upgraded: AtomicBool,
    aborted: AtomicBool,
}

/// What the time-outs say about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Look again then.
    Wait(Instant),
    /// Nothing is under way: close it in good order.
    Idle,
    /// It holds something up: drop it.
    Stalled,
}

/// The bounds that [`Activity::verdict`] applies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Between two requests.
    pub(super) keep_alive: Duration,
    /// For the whole of a head, from its first byte.
    pub(super) head: Duration,
    /// For any byte in either direction while a request is under way; none: not checked.
    pub(super) stall: Option<Duration>,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            head_since: AtomicU64::new(0),
            lingering_since: AtomicU64::new(0),
            unread: AtomicBool::new(false),
            last: AtomicU64::new(1),
            in_flight: AtomicU32::new(0),
            upgraded: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
        }
    }

    /// A request has come; ends when the guard that this returns is dropped.
    pub(super) fn request(self: &Arc<Self>) -> InRequest {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InRequest(Arc::clone(self))
    }

    /// The answer is 101: from now on the bytes are not HTTP.
    pub(super) fn upgraded(&self) {
        self.upgraded.store(true, Ordering::Release);
    }

    /// An answer broke off whose end only the close of the connection shows: the close has to be a reset, or the
    /// client would take what it has for the whole.
    pub(super) fn aborted(&self) {
        self.aborted.store(true, Ordering::Release);
    }

    /// A deadline that may come before the one that the connection's timer is set to.
    pub(super) fn urgent(&self, patience: &Patience) -> Option<Instant> {
        let lingering = self.lingering_since.load(Ordering::Relaxed);
        if lingering != 0 {
            return Some(self.at(lingering) + LINGER);
        }
        if self.in_flight.load(Ordering::Relaxed) != 0 {
            return None;
        }
        if self.unread.load(Ordering::Relaxed) {
            // The answer is out, and hyper waits for the rest of a body that nobody wants.
            return Some(self.at(self.last.load(Ordering::Relaxed)) + LINGER);
        }
        match self.head_since.load(Ordering::Relaxed) {
            0 => None,
            since => Some(self.at(since) + patience.head),
        }
    }

    /// What is to be done at this moment.
    pub(super) fn verdict(&self, now: Instant, patience: &Patience) -> Verdict {
        let wait_or = |until: Instant, verdict: Verdict| if until > now { Verdict::Wait(until) } else { verdict };
        let last = self.at(self.last.load(Ordering::Relaxed));
        if let Some(until) = self.urgent(patience) {
            return wait_or(until, Verdict::Stalled);
        }
        if self.in_flight.load(Ordering::Relaxed) == 0 {
            return wait_or(last + patience.keep_alive, Verdict::Idle);
        }
        match patience.stall {
            Some(stall) => wait_or(last + stall, Verdict::Stalled),
            None => Verdict::Wait(now + patience.keep_alive),
        }
    }

    fn at(&self, time: u64) -> Instant {
        self.began + Duration::from_millis(time)
    }

    fn now(&self) -> u64 {
        // The first millisecond is 1, because 0 says "not now".
        self.began.elapsed().as_millis() as u64 + 1
    }

    fn moved(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    fn head(&self, incomplete: bool) {
        if !incomplete {
            self.head_since.store(0, Ordering::Relaxed);
        } else if self.head_since.load(Ordering::Relaxed) == 0 {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }
}

/// A request that is under way on a connection.
#[derive(Debug)]
pub(super) struct InRequest(Arc<Activity>);

impl InRequest {
    pub(super) fn activity(&self) -> &Activity {
        &self.0
    }
}

impl Drop for InRequest {
    fn drop(&mut self) {
        self.0.moved();
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What may be done to a socket when its connection is dropped.
pub(super) trait Reset {
    /// Makes the close a reset.
    fn reset_on_close(&self);
}

impl Reset for tokio::net::TcpStream {
    fn reset_on_close(&self) {
        if let Err(error) = self.set_zero_linger() {
            tracing::debug!(%error, "a connection with a broken answer is closed without a reset");
        }
    }
}

/// A client's stream. `S` is a TCP stream; `T` is dropped with it (the connection's place in the count).
#[derive(Debug)]
pub(super) struct Guarded<S: Reset, T> {
    /// Taken out only by `into_parts`.
    inner: Option<(S, T)>,
    framing: Framing,
    /// Whether everything passes: HTTP/2, or after an upgrade.
    raw: bool,
    /// What was read to tell the protocol, and how much of it hyper has got.
    prefix: [u8; PREFACE.len()],
    prefix_at: u8,
    prefix_len: u8,
    refused: bool,
    poison: &'static [u8],
    shut: bool,
    drained: usize,
    activity: Arc<Activity>,
}

impl<S: Reset, T> Guarded<S, T> {
    /// Guards `stream`, of which `prefix` (at most 24 bytes) has been read already. `raw`: without looking at it.
    pub(super) fn new(stream: S, token: T, prefix: &[u8], raw: bool, activity: Arc<Activity>) -> Self {
        let mut buffer = [0; PREFACE.len()];
        let len = prefix.len().min(buffer.len());
        buffer[..len].copy_from_slice(&prefix[..len]);
        Self {
            inner: Some((stream, token)),
            framing: Framing::new(),
            raw,
            prefix: buffer,
            prefix_at: 0,
            prefix_len: len as u8,
            refused: false,
            poison: &[],
            shut: false,
            drained: 0,
            activity,
        }
    }

    /// The stream and its token, without the guard.
    pub(super) fn into_parts(mut self) -> Option<(S, T)> {
        self.inner.take()
    }

    fn take_prefix(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let left = &self.prefix[usize::from(self.prefix_at)..usize::from(self.prefix_len)];
        if left.is_empty() {
            return false;
        }
        let taken = left.len().min(buf.remaining());
        buf.put_slice(&left[..taken]);
        self.prefix_at += taken as u8;
        true
    }

    fn give_poison(&mut self, buf: &mut ReadBuf<'_>) {
        let taken = self.poison.len().min(buf.remaining());
        buf.put_slice(&self.poison[..taken]);
        self.poison = &self.poison[taken..];
    }

    /// Looks at what was read since the buffer held `before` bytes.
    fn check(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        if buf.filled().len() > before {
            self.activity.moved();
        }
        if !self.raw && self.activity.upgraded.load(Ordering::Acquire) {
            self.raw = true;
        }
        if self.raw {
            return;
        }
        match self.framing.scan(&buf.filled()[before..]) {
            Ok(()) => {
                let in_head = self.framing.in_head();
                self.activity.head(in_head);
                self.activity.unread.store(!in_head && !self.framing.between_messages(), Ordering::Relaxed);
            }
            Err(violation) => {
                buf.set_filled(before + violation.at);
                self.refused = true;
                self.poison = violation.poison;
                self.activity.head(false);
                self.give_poison(buf);
            }
        }
    }
}

impl<S: Reset, T> Drop for Guarded<S, T> {
    fn drop(&mut self) {
        if let Some((stream, _)) = &self.inner
            && self.activity.aborted.load(Ordering::Acquire)
        {
            stream.reset_on_close();
        }
    }
}

fn taken_apart() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the stream was taken out of its guard")
}

impl<S: AsyncRead + Unpin + Reset, T: Unpin> AsyncRead for Guarded<S, T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.refused {
            // After the poison comes the end of the stream.
            this.give_poison(buf);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        if !this.take_prefix(buf) {
            let Some((stream, _)) = &mut this.inner else { return Poll::Ready(Err(taken_apart())) };
            ready!(Pin::new(stream).poll_read(cx, buf))?;
        }
        this.check(buf, before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Reset, T: Unpin> AsyncWrite for Guarded<S, T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some((stream, _)) = &mut this.inner else { return Poll::Ready(Err(taken_apart())) };
        let written = ready!(Pin::new(stream).poll_write(cx, bytes))?;
        this.activity.moved();
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some((stream, _)) = &mut this.inner else { return Poll::Ready(Err(taken_apart())) };
        let written = ready!(Pin::new(stream).poll_write_vectored(cx, slices))?;
        this.activity.moved();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.as_ref().is_some_and(|(stream, _)| stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Some((stream, _)) => Pin::new(stream).poll_flush(cx),
            None => Poll::Ready(Err(taken_apart())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some((stream, _)) = &mut this.inner else { return Poll::Ready(Err(taken_apart())) };
        if !this.shut {
            ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
            this.shut = true;
        }
        if this.raw || (this.framing.between_messages() && !this.refused) {
            return Poll::Ready(Ok(()));
        }
        // The connection's task ends this after LINGER.
        if this.activity.lingering_since.load(Ordering::Relaxed) == 0 {
            this.activity.lingering_since.store(this.activity.now(), Ordering::Relaxed);
        }
        while this.drained < LINGER_BYTES {
            let mut scratch = [0; 4096];
            let mut scratch = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut scratch)) {
                Ok(()) if scratch.filled().is_empty() => break,
                Ok(()) => this.drained += scratch.filled().len(),
                // The answer has been sent; how the client closes is its own affair.
                Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[path = "guard_test.rs"]
mod tests;
