//! Clients that have told their link themselves that they leave. The control thread need not be woken for each: nothing
//! waits for its knowing, so it takes them in with whatever else wakes it, and always before that.

use std::sync::{Mutex, PoisonError};

use crate::model::{Attachment, ClientId};

/// How many departures are worth waking the control thread for: about what its tick would find when clients leave by the
/// thousand.
const WORTH_WAKING: usize = 256;

/// The list. Each client stands in it once at most, so `limits.clients` bounds it.
#[derive(Debug, Default)]
pub(super) struct Departures(Mutex<Vec<(ClientId, Attachment)>>);

impl Departures {
    /// Adds one. `true` when the control thread is to be woken.
    pub(super) fn add(&self, client: ClientId, told: Attachment) -> bool {
        // No code that can panic runs under the lock.
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.push((client, told));
        list.len().is_multiple_of(WORTH_WAKING)
    }

    /// Empties the list.
    pub(super) fn take(&self) -> Vec<(ClientId, Attachment)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_many_departures_wakes_and_none_is_lost() {
        let departures = Departures::default();
        let woken =
            (0..3 * WORTH_WAKING).filter(|n| departures.add(ClientId::from_u128(*n as u128), Attachment(1))).count();
        assert_eq!(woken, 3);
        assert_eq!(departures.take().len(), 3 * WORTH_WAKING);
        assert!(departures.take().is_empty());
    }
}
