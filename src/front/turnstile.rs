//! Where new connections to rooms take turns. When thousands come at once, each of them is a few pieces of work, and
//! whoever asks how this balancer is doing would wait behind all of them. So one begins, everything that is due gets done,
//! then the next one begins. Nobody holds anything while it has its turn, so nobody can keep others out.

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// After so many, threads with other work have their turn.
const CROWD: usize = 8;

/// The queue of those whose turn has not come. It holds one entry a connection, so the bound on connections is its bound.
#[derive(Debug)]
pub(super) struct Turnstile<T> {
    queue: mpsc::UnboundedSender<Entry<T>>,
}

#[derive(Debug)]
enum Entry<T> {
    /// Nothing has been done for it yet.
    Newcomer(T),
    /// It has a task of its own, which waits.
    Waiting(oneshot::Sender<()>),
}

impl<T: Send + 'static> Turnstile<T> {
    /// Starts on this runtime and ends when it is dropped. `begin` is called there with each newcomer. The task must not
    /// end before.
    pub(super) fn new(runtime: &Handle, begin: impl Fn(T) + Send + 'static) -> (Self, JoinHandle<()>) {
        let (queue, mut entries) = mpsc::unbounded_channel();
        let turning = runtime.spawn(async move {
            let mut number = 0_usize;
            while let Some(entry) = entries.recv().await {
                match entry {
                    Entry::Newcomer(newcomer) => begin(newcomer),
                    // A client that has gone needs no turn.
                    Entry::Waiting(turn) => _ = turn.send(()),
                }
                tokio::task::yield_now().await;
                number += 1;
                if number.is_multiple_of(CROWD) {
                    // And whatever other threads have to do: on one core it would wait for the end of a time slice.
                    std::thread::yield_now();
                }
            }
        });
        (Self { queue }, turning)
    }

    /// Queues somebody for whom nothing needs to be done until then. Without a turnstile it is dropped.
    pub(super) fn enter(&self, newcomer: T) {
        let _ = self.queue.send(Entry::Newcomer(newcomer));
    }

    /// Waits for a turn: first come, first served.
    pub(super) async fn turn(&self) {
        let (turn, mine) = oneshot::channel();
        if self.queue.send(Entry::Waiting(turn)).is_ok() {
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
    async fn they_begin_one_by_one_and_what_is_due_comes_in_between() {
        const CROWD: usize = 80;
        let begun = Arc::new(AtomicUsize::new(0));
        let begin = begun.clone();
        let (turnstile, _) = Turnstile::new(&Handle::current(), move |()| _ = begin.fetch_add(1, SeqCst));
        let turnstile = Arc::new(turnstile);
        let crowd: Vec<_> = (0..CROWD)
            .map(|number| {
                let (turnstile, begun) = (turnstile.clone(), begun.clone());
                tokio::spawn(async move {
                    if number % 2 == 0 {
                        return turnstile.enter(());
                    }
                    turnstile.turn().await;
                    begun.fetch_add(1, SeqCst);
                })
            })
            .collect();
        let mut most = 0;
        while begun.load(SeqCst) < CROWD {
            let before = begun.load(SeqCst);
            tokio::task::yield_now().await;
            most = most.max(begun.load(SeqCst) - before);
        }
        assert!((1..=2).contains(&most), "{most} began at once");
        for one in crowd {
            one.await.unwrap();
        }
    }
}
