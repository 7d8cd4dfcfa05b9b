//! Members whose room has changed its Monolith: what they have said meanwhile goes once their join is answered, since a join
//! may meet the `unload` of another balancer, or of the Monolith itself, and what follows it would be lost. A Monolith that
//! answers no joins gets it after a while.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::model::{Attachment, ClientId};

/// Those of one link, oldest first, with the moment until which each of them waits.
#[derive(Debug, Default)]
pub(super) struct Rejoining {
    waiting: VecDeque<(Instant, ClientId, Attachment)>,
}

impl Rejoining {
    /// A member is being joined, or could be let on but for the answer. Each one has the same time.
    pub(super) fn push(&mut self, until: Instant, client: ClientId, attachment: Attachment) {
        self.waiting.push_back((until, client, attachment));
    }

    /// When the next one has waited for long enough.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.front().map(|(until, ..)| *until)
    }

    /// The next one that has waited for long enough by now, answered or not.
    pub(super) fn pop_due(&mut self) -> Option<(ClientId, Attachment)> {
        self.next_due().filter(|until| *until <= Instant::now())?;
        self.waiting.pop_front().map(|(_, client, attachment)| (client, attachment))
    }
}
