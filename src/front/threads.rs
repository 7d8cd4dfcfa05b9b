//! Threads of their own beside the workers, so that on a single core the kernel, and no queue of tasks, says who comes
//! first: one that accepts connections and answers how this balancer is doing, and one, of lower priority, for the
//! handshakes of those who want into rooms. A crowd at the door then delays neither operators nor rooms.

use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// What the reception yields to the others: a weight of a tenth when all are busy, which the kernel gives in full when they
/// are not (`nice(2)`; each step is a factor of about 1.25).
const NICENESS: i32 = 10;

/// Where connections live. The threads end when this is dropped.
#[derive(Debug)]
pub struct Threads {
    workers: Handle,
    desk: Thread,
    reception: Thread,
}

impl Threads {
    /// Starts both beside the current runtime, which is that of the workers.
    ///
    /// # Errors
    /// If the machine gives no thread.
    pub fn start() -> io::Result<Self> {
        let desk = Thread::start("usher-desk", || {})?;
        let reception = Thread::start("usher-reception", || {
            if let Err(error) = rustix::process::nice(NICENESS) {
                tracing::debug!(%error, "new clients are served with the priority of rooms");
            }
        })?;
        Ok(Self { workers: Handle::current(), desk, reception })
    }

    /// Serves rooms, and requests that go to Monoliths.
    pub(super) fn workers(&self) -> &Handle {
        &self.workers
    }

    /// Accepts, and answers what takes no time.
    pub(super) fn desk(&self) -> &Handle {
        &self.desk.runtime
    }

    /// Serves those who want into rooms, until they are upgraded.
    pub(super) fn reception(&self) -> &Handle {
        &self.reception.runtime
    }
}

/// A thread that runs tasks until it is dropped.
#[derive(Debug)]
struct Thread {
    runtime: Handle,
    _end: oneshot::Sender<()>,
}

impl Thread {
    fn start(name: &str, first: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().event_interval(super::SOCKETS_EVERY).build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        thread::Builder::new().name(name.into()).spawn(move || {
            first();
            // An error is the sign that it is not needed any more.
            let _ = runtime.block_on(ended);
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime: handle, _end: end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_that_is_busy_holds_up_no_other_and_all_end_with_their_owner() {
        let threads = Threads::start().unwrap();
        let (free, wait) = std::sync::mpsc::channel::<()>();
        let busy = threads.reception().spawn(async move { wait.recv() });
        let name = async || thread::current().name().map(str::to_owned);
        let desk = threads.desk().spawn(name()).await.unwrap();
        assert_eq!(desk.as_deref(), Some("usher-desk"));
        drop(free);
        assert!(busy.await.unwrap().is_err());
        let waits = threads.desk().spawn(std::future::pending::<()>());
        drop(threads);
        assert!(waits.await.unwrap_err().is_cancelled());
    }
}
