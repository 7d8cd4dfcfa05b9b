//! A request that a room waits for, and the promise that its outcome is reported whatever happens to it.

use std::sync::Arc;

use super::Control;
use super::routes::Target;
use crate::model::RequestId;
use crate::model::event::RequestOutcome;

/// Where a request goes.
pub struct Placement {
    /// The Monolith.
    pub target: Arc<Target>,
    /// Present if the room waits for the outcome: then nobody else may be tried behind its back.
    pub sent: Option<Sent>,
}

/// No Monolith for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// 400 to 599.
    pub status: u16,
}

/// A request whose outcome is owed. Dropping it reports a failure.
pub struct Sent {
    request: RequestId,
    control: Option<Control>,
}

impl Sent {
    pub(super) fn new(request: RequestId, control: Control) -> Self {
        Self { request, control: Some(control) }
    }

    /// Reports the outcome.
    pub fn done(mut self, outcome: RequestOutcome) {
        if let Some(control) = self.control.take() {
            control.done(self.request, outcome);
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(control) = self.control.take() {
            control.done(self.request, RequestOutcome::Failed);
        }
    }
}
