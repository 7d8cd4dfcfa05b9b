//! The body of a request on its way to a Monolith.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// The body of a request to a Monolith.
#[derive(Debug)]
pub struct RequestBody {
    /// What was read already, in order.
    first: VecDeque<Bytes>,
    rest: Option<Incoming>,
    progress: Option<Arc<Progress>>,
}

/// How far the upload is: the sender of a request looks at it to tell a slow upload from a Monolith that hangs.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicU64);

const DONE: u64 = u64::MAX;

impl Progress {
    /// A number that grows as the upload does.
    pub(super) fn frames(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether nothing of the body is left to be sent.
    pub(super) fn is_done(&self) -> bool {
        self.frames() == DONE
    }
}

impl RequestBody {
    /// No body.
    pub fn empty() -> Self {
        Self { first: VecDeque::new(), rest: None, progress: None }
    }

    /// A body that is known whole.
    pub fn full(bytes: Bytes) -> Self {
        Self::resumed([bytes], None)
    }

    /// A body of which the first pieces were read already; with no rest, they are all of it.
    pub fn resumed(first: impl IntoIterator<Item = Bytes>, rest: Option<Incoming>) -> Self {
        let first = first.into_iter().filter(|piece| !piece.is_empty()).collect();
        Self { first, rest: rest.filter(|rest| !rest.is_end_stream()), progress: None }
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
                progress.0.store(DONE, Ordering::Relaxed);
            } else {
                progress.0.fetch_add(1, Ordering::Relaxed);
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
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = match (self.first.pop_front(), &mut self.rest) {
            (Some(piece), _) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            (None, Some(rest)) => Pin::new(rest).poll_frame(cx),
            (None, None) => Poll::Ready(None),
        };
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
