//! What has become of a client's memberships so far, as its inbox was told: for the simulation of faults, which judges by it
//! what the client said.

use tokio::time::Instant;

use super::inbox::Item;
use crate::model::{Attachment, LinkId};

/// The memberships of one client.
#[derive(Debug)]
pub(super) struct History {
    /// Every link over which it was ever joined, and when.
    pub(super) links: Vec<(LinkId, Instant)>,
    /// Since when what it says goes on, or is held back.
    speaks: Vec<(Instant, bool)>,
    /// When each thing that it said was read.
    read: Vec<Instant>,
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
            Item::Attached { attachment, .. } if *attachment > self.newest => {
                (self.newest, self.present) = (*attachment, Some(*attachment));
                false
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

    pub(super) fn has_read(&mut self) {
        self.read.push(Instant::now());
    }

    /// When the first, second... thing that it said went on that was held back, if that has gone on.
    pub(super) fn went_on_late(&self, number: u64) -> Option<Instant> {
        let read = *self.read.get(usize::try_from(number).ok()?.checked_sub(1)?)?;
        let spoke = self.speaks.iter().rev().find(|(since, _)| *since <= read).is_some_and(|(_, speaks)| *speaks);
        self.speaks.iter().find(|(at, speaks)| !spoke && *speaks && *at > read).map(|(at, _)| *at)
    }

    /// The beginning of the first time at which it was held back and that is not over before `from`, nor begins after `to`.
    pub(super) fn held_within(&self, from: Instant, to: Instant) -> Option<Instant> {
        let ends = self.speaks.iter().skip(1).map(|(at, _)| Some(*at)).chain([None]);
        let mut spans = self.speaks.iter().zip(ends);
        let held = spans.find(|((since, speaks), end)| !speaks && *since <= to && end.is_none_or(|end| end >= from));
        held.map(|((since, _), _)| *since)
    }
}
