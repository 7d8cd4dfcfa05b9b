//! Tasks that live as long as a balancer. Nothing brings back one that ends by itself, and a process that goes on without it
//! would seem to be well: so it is known which one broke, and the process ends.

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

/// The tasks of one balancer.
#[derive(Debug, Default)]
pub(super) struct VitalTasks {
    tasks: Vec<AbortHandle>,
    broken: watch::Sender<Option<&'static str>>,
}

impl VitalTasks {
    /// Looks after a task that is to run until it is aborted. `what` is how it is called in a log.
    pub(super) fn keep<T: Send + 'static>(&mut self, what: &'static str, task: JoinHandle<T>) {
        let broken = self.broken.clone();
        self.tasks.push(task.abort_handle());
        tokio::spawn(async move {
            let aborted = task.await.is_err_and(|error| error.is_cancelled());
            if !aborted {
                broken.send_modify(|first| _ = first.get_or_insert(what));
            }
        });
    }

    /// Who tells when one of them breaks.
    pub(super) fn broken(&self) -> Broken {
        Broken(self.broken.subscribe())
    }

    /// Ends all of them, which is no fault.
    pub(super) fn abort(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Tells when a task of a balancer breaks.
pub struct Broken(watch::Receiver<Option<&'static str>>);

impl Broken {
    /// What has ended by itself. Never returns as long as nothing has.
    pub async fn wait(&mut self) -> &'static str {
        let what = self.0.wait_for(Option::is_some).await.ok().and_then(|what| *what);
        match what {
            Some(what) => what,
            // The balancer has stopped in order.
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_or_returns_is_told_and_one_that_is_aborted_is_not() {
        let mut tasks = VitalTasks::default();
        tasks.keep("one", tokio::spawn(std::future::pending::<()>()));
        tasks.keep("two", tokio::spawn(std::future::pending::<()>()));
        let mut broken = tasks.broken();
        tasks.abort();
        assert!(tokio::time::timeout(Duration::from_secs(60), broken.wait()).await.is_err());
        tasks.keep("three", tokio::spawn(async {}));
        assert_eq!(broken.wait().await, "three");
        let mut tasks = VitalTasks::default();
        let mut broken = tasks.broken();
        tasks.keep("four", tokio::spawn(async { assert_eq!(1, 2, "as a test wants") }));
        assert_eq!(broken.wait().await, "four");
    }
}
