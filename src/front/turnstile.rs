//! Where new connections to rooms take turns. When thousands come at once, each of them is a few pieces of work, and
//! whoever asks how this balancer is doing would wait behind all of them. So one begins, everything that is due gets done,
//! then the next one begins. Nobody holds anything while it has its turn, so nobody can keep others out.

use tokio::sync::{mpsc, oneshot};

/// How many begin at once. With eight, half of those who ask in between wait two to four times as long; joins are no faster.
const AT_ONCE: usize = 1;

/// The queue of those whose turn has not come. It holds one entry a connection, so the bound on connections is its bound.
#[derive(Debug)]
pub(super) struct Turnstile {
    queue: mpsc::UnboundedSender<oneshot::Sender<()>>,
}

impl Turnstile {
    /// Starts on the current runtime and ends when it is dropped.
    pub(super) fn new() -> Self {
        let (queue, mut waiting) = mpsc::unbounded_channel::<oneshot::Sender<()>>();
        tokio::spawn(async move {
            let mut next = Vec::with_capacity(AT_ONCE);
            while waiting.recv_many(&mut next, AT_ONCE).await > 0 {
                for turn in next.drain(..) {
                    // A client that has gone needs no turn.
                    let _ = turn.send(());
                }
                tokio::task::yield_now().await;
            }
        });
        Self { queue }
    }

    /// Waits for a turn: first come, first served.
    pub(super) async fn turn(&self) {
        let (turn, mine) = oneshot::channel();
        if self.queue.send(turn).is_ok() {
            // Without a turnstile everyone goes at once.
            let _ = mine.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[tokio::test]
    async fn a_few_begin_at_once_and_what_is_due_comes_in_between() {
        let turnstile = Arc::new(Turnstile::new());
        let begun = Arc::new(AtomicUsize::new(0));
        let crowd: Vec<_> = (0..10 * AT_ONCE)
            .map(|_| {
                let (turnstile, begun) = (turnstile.clone(), begun.clone());
                tokio::spawn(async move {
                    turnstile.turn().await;
                    begun.fetch_add(1, SeqCst);
                })
            })
            .collect();
        let mut most = 0;
        while begun.load(SeqCst) < 10 * AT_ONCE {
            let before = begun.load(SeqCst);
            tokio::task::yield_now().await;
            most = most.max(begun.load(SeqCst) - before);
        }
        assert!((1..=2 * AT_ONCE).contains(&most), "{most} began at once");
        for one in crowd {
            one.await.unwrap();
        }
    }
}
