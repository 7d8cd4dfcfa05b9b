//! The one lock of a simulated Monolith and the signals around it. The lock never leaves this file, so no guard can
//! cross an await.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::state::State;

/// What the sockets of the links do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// They read and write.
    Running,
    /// They write, but read nothing.
    NotReading,
    /// They do nothing at all, like a process that hangs.
    Frozen,
}

pub(super) struct Shared {
    state: Mutex<State>,
    /// Woken after every change.
    changed: Notify,
    /// Woken when the next job has become another one.
    pub(super) timer: Notify,
    /// Woken when the process must end.
    pub(super) kill: Notify,
    pub(super) flow: watch::Sender<Flow>,
}

impl Shared {
    pub(super) fn new(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            changed: Notify::new(),
            timer: Notify::new(),
            kill: Notify::new(),
            flow: watch::Sender::new(Flow::Running),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the state.
    pub(super) fn look<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.lock())
    }

    /// Changes the state and wakes whoever waits for a change.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let due = state.next_due();
        let result = change(&mut state);
        let (kill, due_changed) = (state.kill, state.next_due() != due);
        drop(state);
        if kill {
            self.kill.notify_one();
        }
        if due_changed {
            self.timer.notify_one();
        }
        self.changed.notify_waiters();
        result
    }

    /// Waits until `condition` holds; `false` when the deadline came first.
    pub(super) async fn wait(&self, deadline: Instant, mut condition: impl FnMut(&State) -> bool) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that no change in between is missed.
            changed.as_mut().enable();
            if self.look(&mut condition) {
                return true;
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return self.look(&mut condition);
            }
        }
    }
}
