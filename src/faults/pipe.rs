//! A connection in memory: bytes arrive in order and after a while, and it can be stalled, cut, or swallow everything as
//! a network does that has lost one of its ends.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Bytes that may be on their way in one direction: what a kernel keeps for a reader that does not read.
const CAPACITY: usize = 64 << 10;

/// WebSockets whose buffers fit what is said in a run: the large ones would be cleared anew for each of its thousands.
pub(super) fn small() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(1 << 10).write_buffer_size(4 << 10)
}

/// One direction.
#[derive(Default)]
struct Lane {
    /// Pieces with the moments at which they arrive.
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// The writer has finished, or is gone: so it is seen at this moment.
    ended: Option<Instant>,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// What can be done to a connection while it is used.
#[derive(Clone)]
pub(super) struct Line(Arc<Mutex<Both>>);

struct Both {
    lanes: [Lane; 2],
    latency: Duration,
    cut: bool,
    swallows: bool,
    stalled: bool,
    began: Instant,
}

/// One end of a connection.
pub(super) struct End {
    line: Line,
    /// The lane that it writes; it reads the other one.
    writes: usize,
    arrival: Option<Pin<Box<Sleep>>>,
}

/// A connection whose bytes take `latency` each way.
pub(super) fn pipe(latency: Duration) -> (End, End, Line) {
    let lanes = [Lane::default(), Lane::default()];
    let both = Both { lanes, latency, cut: false, swallows: false, stalled: false, began: Instant::now() };
    let line = Line(Arc::new(Mutex::new(both)));
    let end = |writes| End { line: line.clone(), writes, arrival: None };
    (end(0), end(1), line.clone())
}

impl Line {
    /// Both ends see an error, and what is on its way is lost.
    pub(super) fn cut(&self) {
        let mut both = self.lock();
        both.cut = true;
        both.lanes.iter_mut().for_each(|lane| lane.pieces.clear());
        both.wake();
    }

    pub(super) fn is_cut(&self) -> bool {
        self.lock().cut
    }

    /// Whether it has carried what was written to it for this long, whoever reads that.
    pub(super) fn has_carried_for(&self, time: Duration) -> bool {
        let both = self.lock();
        !both.cut && !both.swallows && both.began.elapsed() > time
    }

    /// From now on nothing arrives any more, and nobody is told.
    pub(super) fn swallow(&self) {
        let mut both = self.lock();
        both.swallows = true;
        for lane in &mut both.lanes {
            lane.pieces.clear();
            lane.bytes = 0;
        }
        both.wake();
    }

    /// Nothing is read until it goes on; what is written waits.
    pub(super) fn stall(&self, stalled: bool) {
        let mut both = self.lock();
        both.stalled = stalled;
        both.wake();
    }

    fn lock(&self) -> MutexGuard<'_, Both> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Both {
    fn wake(&mut self) {
        for lane in &mut self.lanes {
            [lane.reader.take(), lane.writer.take()].into_iter().flatten().for_each(Waker::wake);
        }
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut both = this.line.lock();
        if both.cut {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let (stalled, swallows) = (both.stalled, both.swallows);
        let lane = &mut both.lanes[1 - this.writes];
        lane.reader = Some(cx.waker().clone());
        if stalled || swallows {
            return Poll::Pending;
        }
        let now = Instant::now();
        let due = match lane.pieces.front_mut() {
            Some((at, piece)) if *at <= now => {
                let taken = piece.len().min(into.remaining());
                into.put_slice(&piece[..taken]);
                piece.drain(..taken);
                if piece.is_empty() {
                    lane.pieces.pop_front();
                }
                lane.bytes -= taken;
                if let Some(writer) = lane.writer.take() {
                    writer.wake();
                }
                return Poll::Ready(Ok(()));
            }
            Some((at, _)) => *at,
            None => match lane.ended {
                Some(at) if at <= now => return Poll::Ready(Ok(())),
                Some(at) => at,
                None => return Poll::Pending,
            },
        };
        drop(both);
        let mut sleep = Box::pin(tokio::time::sleep_until(due));
        let over = sleep.as_mut().poll(cx).is_ready();
        this.arrival = Some(sleep);
        if over {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut both = self.line.lock();
        let (arrives, swallows) = (Instant::now() + both.latency, both.swallows);
        if both.cut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let lane = &mut both.lanes[self.writes];
        if lane.reader_gone && !swallows {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = CAPACITY.saturating_sub(lane.bytes);
        if room == 0 {
            lane.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = bytes.len().min(room);
        lane.bytes += taken;
        if !swallows {
            lane.pieces.push_back((arrives, bytes[..taken].to_vec()));
            if let Some(reader) = lane.reader.take() {
                reader.wake();
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl End {
    fn finish(&self) {
        let mut both = self.line.lock();
        let at = Instant::now() + both.latency;
        let lane = &mut both.lanes[self.writes];
        lane.ended.get_or_insert(at);
        if let Some(reader) = lane.reader.take() {
            reader.wake();
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.finish();
        let mut both = self.line.lock();
        let lane = &mut both.lanes[1 - self.writes];
        lane.reader_gone = true;
        if let Some(writer) = lane.writer.take() {
            writer.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_arrive_whole_in_order_and_after_a_while() {
        let (mut a, mut b, _line) = pipe(Duration::from_millis(20));
        let began = Instant::now();
        a.write_all(b"one").await.unwrap();
        a.write_all(b"two").await.unwrap();
        drop(a);
        let mut heard = Vec::new();
        b.read_to_end(&mut heard).await.unwrap();
        assert_eq!((heard.as_slice(), began.elapsed()), (&b"onetwo"[..], Duration::from_millis(20)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_swallows_tells_nobody_and_one_that_is_cut_both() {
        let (mut a, mut b, line) = pipe(Duration::from_millis(1));
        line.swallow();
        a.write_all(b"lost").await.unwrap();
        let waited = tokio::time::timeout(Duration::from_secs(60), b.read_u8()).await;
        assert!(waited.is_err(), "{waited:?}");
        line.cut();
        assert!(a.write_all(b"x").await.is_err() && b.read_u8().await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_stops_who_writes() {
        let (mut a, mut b, line) = pipe(Duration::from_millis(1));
        line.stall(true);
        let write = tokio::spawn(async move {
            a.write_all(&vec![7; 2 * CAPACITY]).await.unwrap();
            a
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!write.is_finished());
        line.stall(false);
        let mut all = vec![0; 2 * CAPACITY];
        b.read_exact(&mut all).await.unwrap();
        drop(write.await.unwrap());
    }
}
