//! The body of a request on its way to a Monolith, and how slowly a client may send it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

/// How long a body may have been waited for in all, whatever has come of it.
const PATIENCE: Duration = Duration::from_secs(20);
/// For so many bytes a second more.
const SLOWEST: u64 = 500;

/// The body of a request to a Monolith.
#[derive(Debug)]
pub struct RequestBody {
    /// What was read already, in order.
    first: VecDeque<Bytes>,
    rest: Option<Incoming>,
    progress: Option<Arc<Progress>>,
    pace: Pace,
}

/// Why a body does not go on.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The client broke off, or sent what is no body.
    #[error("the client's body broke off")]
    Broken(#[from] hyper::Error),
    /// It trickles.
    #[error("the client's body comes too slowly")]
    TooSlow,
}

/// How long the Monolith has had to wait for the client: time in which it is the Monolith that does not read is not counted.
#[derive(Debug, Default)]
struct Pace {
    since: Option<Instant>,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn pending(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// So much has come. Whether that was fast enough.
    fn came(&mut self, bytes: usize) -> bool {
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
        self.bytes += bytes as u64;
        self.waited <= PATIENCE + Duration::from_secs(self.bytes / SLOWEST)
    }
}

/// How far the upload is: the sender of a request looks at it to tell a slow upload from a Monolith that hangs.
#[derive(Debug, Default)]
pub(super) struct Progress {
    frames: AtomicU64,
    /// Whether it is the client that has nothing to send at present.
    waiting: AtomicBool,
}

const DONE: u64 = u64::MAX;

impl Progress {
    /// A number that grows as the upload does.
    pub(super) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Whether nothing of the body is left to be sent.
    pub(super) fn is_done(&self) -> bool {
        self.frames() == DONE
    }

    /// Whether the client is waited for.
    pub(super) fn waits_for_client(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }
}

impl RequestBody {
    /// No body.
    pub fn empty() -> Self {
        Self { first: VecDeque::new(), rest: None, progress: None, pace: Pace::default() }
    }

    /// A body that is known whole.
    pub fn full(bytes: Bytes) -> Self {
        Self::resumed([bytes], None)
    }

    /// A body of which the first pieces were read already; with no rest, they are all of it.
    pub fn resumed(first: impl IntoIterator<Item = Bytes>, rest: Option<Incoming>) -> Self {
        let first = first.into_iter().filter(|piece| !piece.is_empty()).collect();
        Self { first, rest: rest.filter(|rest| !rest.is_end_stream()), progress: None, pace: Pace::default() }
    }

    /// Starts to note how far the upload is; none if there is nothing to upload.
    pub(super) fn track(&mut self) -> Option<Arc<Progress>> {
        if self.is_end_stream() {
            return None;
        }
        Some(Arc::clone(self.progress.get_or_insert_default()))
    }

    fn advance(&self, done: bool) {
        if let Some(progress) = &self.progress {
            if done {
                progress.frames.store(DONE, Ordering::Relaxed);
            } else {
                progress.frames.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl From<Incoming> for RequestBody {
    fn from(body: Incoming) -> Self {
        Self::resumed([], Some(body))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let this = &mut *self;
        let frame = match (this.first.pop_front(), &mut this.rest) {
            (Some(piece), _) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            (None, Some(rest)) => match Pin::new(rest).poll_frame(cx) {
                Poll::Pending => {
                    this.pace.pending();
                    Poll::Pending
                }
                Poll::Ready(Some(Ok(frame))) if !this.pace.came(frame.data_ref().map_or(0, Bytes::len)) => {
                    Poll::Ready(Some(Err(UploadError::TooSlow)))
                }
                Poll::Ready(frame) => Poll::Ready(frame.map(|frame| frame.map_err(UploadError::from))),
            },
            (None, None) => Poll::Ready(None),
        };
        if let Some(progress) = &this.progress {
            progress.waiting.store(frame.is_pending(), Ordering::Relaxed);
        }
        if let Poll::Ready(frame) = &frame {
            let done = !matches!(frame, Some(Ok(_))) || self.is_end_stream();
            self.advance(done);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let here: u64 = self.first.iter().map(|piece| piece.len() as u64).sum();
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(here.saturating_add(rest.lower()));
        if let Some(upper) = rest.upper() {
            hint.set_upper(here.saturating_add(upper));
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_trickle_ends_and_a_slow_line_or_a_slow_monolith_does_not() {
        // A byte every five seconds.
        let mut trickle = Pace::default();
        let mut pieces = 0;
        loop {
            trickle.pending();
            tokio::time::advance(Duration::from_secs(5)).await;
            if !trickle.came(1) {
                break;
            }
            pieces += 1;
        }
        assert_eq!(pieces, 4);
        // A kilobyte a second, for hours.
        let mut slow = Pace::default();
        for _ in 0..10_000 {
            slow.pending();
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(slow.came(1024));
        }
        // Nobody asks for more for an hour: that is not the client's doing.
        let mut blocked = Pace::default();
        for _ in 0..5 {
            tokio::time::advance(Duration::from_secs(3600)).await;
            assert!(blocked.came(1));
        }
    }
}
