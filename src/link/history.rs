//! What has become of a client's memberships so far, as its inbox was told: for the simulation of faults, which judges by it
//! what the client said.

use std::collections::HashMap;

use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::inbox::Item;
use crate::model::{Attachment, LinkId};

/// The memberships of one client.
#[derive(Debug)]
pub(super) struct History {
    /// Every link over which it was ever joined, and when.
    pub(super) links: Vec<(LinkId, Instant)>,
    /// Since when what it says goes on, or is held back.
    speaks: Vec<(Instant, bool)>,
    /// What it said, and when each was read.
    read: Vec<(Instant, Utf8Bytes)>,
    /// When that was last given to the queue of a Monolith, from which it may have come back.
    given: HashMap<Utf8Bytes, Instant>,
    /// The last attachment that began or ended.
    newest: Attachment,
    present: Option<Attachment>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            links: Vec::new(),
            speaks: vec![(Instant::now(), false)],
            read: Vec::new(),
            given: HashMap::new(),
            newest: Attachment(0),
            present: None,
        }
    }
}

impl History {
    pub(super) fn joined_over(&mut self, link: LinkId) {
        self.links.push((link, Instant::now()));
    }

    /// Takes in what the client's task is going to do.
    pub(super) fn note(&mut self, item: &Item) {
        let speaks = match item {
            Item::Attached { attachment, open, .. } if *attachment > self.newest => {
                (self.newest, self.present) = (*attachment, Some(*attachment));
                *open
            }
            Item::Open(attachment) if self.present == Some(*attachment) => true,
            Item::Hold(attachment, _) if self.present == Some(*attachment) => false,
            Item::Detached(attachment) => {
                self.newest = self.newest.max(*attachment);
                if self.present.take_if(|present| *present <= *attachment).is_none() {
                    return;
                }
                false
            }
            Item::Attached { .. } | Item::Open(_) | Item::Hold(..) | Item::Frame(..) | Item::Close(_) => return,
        };
        if self.speaks.last().is_none_or(|(_, before)| *before != speaks) {
            self.speaks.push((Instant::now(), speaks));
        }
    }

    pub(super) fn has_read(&mut self, text: Utf8Bytes) {
        self.read.push((Instant::now(), text));
    }

    pub(super) fn has_given(&mut self, text: Utf8Bytes) {
        self.given.insert(text, Instant::now());
    }

    /// When the first, second... thing that it said went on that was held back, if that has gone on: for the last time.
    pub(super) fn went_on_late(&self, number: u64) -> Option<Instant> {
        let (read, text) = self.read.get(usize::try_from(number).ok()?.checked_sub(1)?)?;
        self.given.get(text).copied().filter(|given| given > read)
    }

    /// When what it said went on for the first time.
    pub(super) fn first_spoke(&self) -> Option<Instant> {
        self.speaks.iter().find(|(_, speaks)| *speaks).map(|(at, _)| *at)
    }

    /// The beginning of the first time at which it was held back and that is not over before `from`, nor begins after `to`.
    pub(super) fn held_within(&self, from: Instant, to: Instant) -> Option<Instant> {
        let ends = self.speaks.iter().skip(1).map(|(at, _)| Some(*at)).chain([None]);
        let mut spans = self.speaks.iter().zip(ends);
        let held = spans.find(|((since, speaks), end)| !speaks && *since <= to && end.is_none_or(|end| end >= from));
        held.map(|((since, _), _)| *since)
    }
}
